"""Synthetic rows that exist already: raw frames -> rows shaped as the project's own, and rejects.

A pure function: what was landed goes in, rows with the provenance of ``schemas.synthetic`` come
out. Judging them (near-copies, leaks into the holdout) is left to the screen that every generated
row passes; only what makes a row unreadable is a reject here, and nothing is dropped.

Provenance of an imported row: ``request_id`` is ``import:SOURCE`` (no call of ours made it),
``item`` its number there, ``model`` what a column or a constant says, ``seed_ids`` what its parents
column names, ``prompt_version`` empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import polars as pl

from schemas.synthetic import PROVENANCE
from synth_assets.cells import tidied, trimmed
from synth_assets.errors import SourceError, shown
from synth_assets.lifecycle.naming import read_list
from synth_assets.lifecycle.records import column_digests, with_record_id

PREFIX = "import:"
UNKNOWN_MODEL = "unknown"
# Before the first round of calls: imported rows are judged first.
ROUND = -1
MAX_SHOWN_CHARS = 2_000
REJECTS: dict[str, pl.DataType] = {
    "source": pl.String(),
    "source_row": pl.Int64(),
    "raw": pl.String(),
    "reason": pl.String(),
    "detail": pl.String(),
}


@dataclass(frozen=True)
class ImportRules:
    """``payload``: the task's column -> the source's column; ``stratum``: the task's cell column.

    ``model`` names one model for all rows; ``model_column`` overrules it where it is filled.
    ``parents_column`` holds ids of rows that a row was made from: a JSON list, or commas between.
    ``attributes_columns`` become the row's attributes.
    """

    payload: dict[str, str]
    stratum: str
    kind: str
    model: str = UNKNOWN_MODEL
    model_column: str = ""
    parents_column: str = ""
    attributes_columns: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Every source column that is read."""
        named = [*self.payload.values(), self.model_column, self.parents_column]
        return list(dict.fromkeys(filter(None, [*named, *self.attributes_columns])))


def import_rows(raw: pl.DataFrame, rules: ImportRules) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows, rejects); their heights add up to that of ``raw``.

    Rows: ``record_id``, ``origin`` ("synthetic"), payload columns, ``PROVENANCE``; sorted by source
    and row, texts trimmed, labels tidied (``cells``). Rejects: ``REJECTS``; reasons are the
    reader's problem, ``missing_<column>`` for an empty payload cell, ``bad_parents`` for a list
    that is none.

    Raises SourceError: a column the rules name is not there.
    """
    for column in rules.columns:
        if column not in raw.columns:
            found = ", ".join(shown(name) for name in raw.columns if not name.startswith("_"))
            raise SourceError(
                f"no column {shown(column)}; found {found}", fix="name one of the columns found"
            )
    label = rules.payload[rules.stratum]
    rows = raw.sort("_source", "_row").with_columns(
        (tidied if column == label else trimmed)(pl.col(column)) for column in rules.columns
    )
    parents = [_parents(cell) for cell in _cells(rows, rules.parents_column)]
    rows = rows.with_columns(
        pl.Series("seed_ids", parents, dtype=pl.List(pl.String)),
        pl.Series("attributes", _attributes(rows, rules.attributes_columns), dtype=pl.String),
    ).with_columns(_reason(rules).alias("reason"))
    good = rows.filter(pl.col("reason").is_null())
    model = pl.col(rules.model_column) if rules.model_column else pl.lit(None, pl.String)
    shaped = good.select(
        pl.lit("synthetic").alias("origin"),
        *(pl.col(column).alias(name) for name, column in rules.payload.items()),
        pl.concat_str(pl.lit(PREFIX), "_source").alias("request_id"),
        pl.col("_row").cast(pl.Int32).alias("item"),
        "seed_ids",
        pl.lit("").alias("prompt_version"),
        pl.when(model != "").then(model).otherwise(pl.lit(rules.model)).alias("model"),
        pl.col(rules.payload[rules.stratum]).alias("cell"),
        "attributes",
    )
    rejects = rows.filter(pl.col("reason").is_not_null()).select(
        pl.col("_source").alias("source"),
        pl.col("_row").alias("source_row"),
        pl.coalesce("_raw", *rules.payload.values()).str.slice(0, MAX_SHOWN_CHARS).alias("raw"),
        "reason",
        pl.when(pl.col("reason") == "bad_parents")
        .then(pl.col(rules.parents_column or "_raw"))
        .alias("detail"),
    )
    identified = with_record_id(shaped, list(rules.payload), kind=rules.kind)
    return identified.select("record_id", "origin", *rules.payload, *PROVENANCE), rejects


def is_imported() -> pl.Expr:
    """Of rows with ``request_id``: whether they were imported."""
    return pl.col("request_id").fill_null("").str.starts_with(PREFIX)


def as_candidates(
    rows: pl.DataFrame, rejects: pl.DataFrame, *, payload: Sequence[str], schema: pl.Schema
) -> pl.DataFrame:
    """Both of ``import_rows`` in the shape of generated rows, with ``source`` and ``source_row``.

    ``rows`` have ``problem`` and ``problem_detail`` too, null where nothing is wrong; the reason
    of a reject is its problem. ``schema``: that of candidates without ``wanted``. The order, and
    with it which of two like rows stays, is a hash of what rows say, not their place in a file.
    """
    unread = rejects.select(
        pl.concat_str(pl.lit(PREFIX), "source").alias("request_id"),
        pl.col("source_row").cast(pl.Int32).alias("item"),
        pl.lit("").alias("cell"),
        pl.col("reason").alias("problem"),
        pl.col("detail").alias("problem_detail"),
        "raw",
    )
    both = pl.concat([rows, unread], how="diagonal")
    said = ["problem", "raw", "model", "attributes", *payload]
    keys = both.select(
        *(pl.col(name).fill_null("") for name in said if name in both.columns),
        pl.col("seed_ids").list.join("\x1f").fill_null("").alias("seed_ids"),
    )
    return (
        both.with_columns(column_digests(keys, keys.columns, "imported").alias("order"))
        .sort("order", "request_id", "item")
        .with_columns(
            pl.lit(ROUND, pl.Int32).alias("round"),
            pl.int_range(pl.len(), dtype=pl.Int32).alias("ordinal"),
        )
        .select(
            *(pl.col(name).cast(kind) for name, kind in schema.items()),
            pl.col("request_id").str.strip_prefix(PREFIX).alias("source"),
            pl.col("item").cast(pl.Int64).alias("source_row"),
        )
    )


def _reason(rules: ImportRules) -> pl.Expr:
    missing = [
        pl.when(pl.col(column).fill_null("") == "").then(pl.lit(f"missing_{name}"))
        for name, column in rules.payload.items()
    ]
    bad = pl.when(pl.col("seed_ids").is_null()).then(pl.lit("bad_parents"))
    return pl.coalesce(pl.col("_problem"), *missing, bad)


def _cells(rows: pl.DataFrame, column: str) -> list[str | None]:
    return rows.get_column(column).to_list() if column else [None] * rows.height


def _parents(cell: str | None) -> list[str] | None:
    """Ids in a cell; None when it begins as a list and is none."""
    if not cell:
        return []
    if not cell.startswith("["):
        return [part.strip() for part in cell.split(",") if part.strip()]
    try:
        return read_list(cell)
    except ValueError:
        return None


def _attributes(rows: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """The filled cells as JSON, written as a plan writes attributes."""
    if not columns:
        return ["{}"] * rows.height
    return [
        orjson.dumps({k: v for k, v in row.items() if v}, option=orjson.OPT_SORT_KEYS).decode()
        for row in rows.select(columns).iter_rows(named=True)
    ]
