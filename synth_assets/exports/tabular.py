"""Every column of a release as a table: CSV and JSON lines (Parquet is the release's own file)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from synth_assets.exports.batches import batches

GUARD = "'"
# What makes a spreadsheet take a cell for a formula, with the full-width forms that some read
# alike. The guard itself is among them, so that taking one guard off always gives the text back.
GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", GUARD)
CSV_RULE = (
    "A text cell that begins with one of = + - @ tab CR LF (or full-width = + - @) or ' has one ' "
    "put before it. To read a cell back, drop one leading ' if there is one."
)


def guarded(text: pl.Expr) -> pl.Expr:
    """Text that no spreadsheet takes for a formula; ``unguarded`` gives it back."""
    marks = "".join(rf"\x{{{ord(mark):X}}}" for mark in GUARDED)
    return text.str.replace(rf"\A([{marks}])", "'$1")


def unguarded(text: pl.Expr) -> pl.Expr:
    return text.str.strip_prefix(GUARD)


def write_csv(rows: pl.LazyFrame, file: Path, *, verbatim: bool = False) -> None:
    """UTF-8, comma, ``\\n``; text quoted always, null empty and unquoted, lists as JSON text.

    Cells are ``guarded`` unless ``verbatim``.
    """
    schema = rows.collect_schema()
    nested = [name for name, kind in schema.items() if kind.is_nested()]
    texts = [name for name, kind in schema.items() if kind == pl.String or kind.is_nested()]
    plain = rows.with_columns(_as_json(name) for name in nested)
    if not verbatim:
        plain = plain.with_columns(guarded(pl.col(name)) for name in texts)
    with file.open("wb") as out:
        plain.head(0).collect().write_csv(out, quote_style="non_numeric")
        for batch in batches(plain):
            batch.write_csv(out, include_header=False, quote_style="non_numeric")


def _as_json(name: str) -> pl.Expr:
    # polars writes JSON of structs only: make one of a single field, and take its value.
    text = pl.struct(pl.col(name).alias("x")).struct.json_encode()
    value = text.str.strip_prefix('{"x":').str.strip_suffix("}")
    return pl.when(pl.col(name).is_not_null()).then(value).alias(name)


def write_jsonl(rows: pl.LazyFrame, file: Path) -> None:
    """One JSON object a line, UTF-8; lists stay lists, null is null."""
    with file.open("wb") as out:
        for batch in batches(rows):
            batch.write_ndjson(out)
