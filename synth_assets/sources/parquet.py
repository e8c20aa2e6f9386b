"""Records out of Parquet, every column as text.

Columns that hold bytes inside (an image with its path) are kept without the bytes. Whole numbers
that stand for the names of classes (``ClassLabel`` of Hugging Face datasets) become the names:
those that the file's own metadata gives, else those of a card beside it (``Needed.classes``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources.contract import changed_type
from synth_assets.sources.records import BYTES, FileFormat, Needed, escaped, raw_frame

# Cells of bytes are large: so many rows at once where there are any.
BINARY_ROWS = 500
_METADATA = "huggingface"
Classes = Mapping[str, Sequence[str]]


def parquet_frames(
    name: str, path: Path, _: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise SourceError("not a Parquet file", where=name, fix="source.format: csv or jsonl?")
    try:
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        places = needed.landed(schema.names(), name)
        columns = [schema.names()[place] for place in places]
        for column in columns:
            if column in needed.scalar and schema[column].is_nested():
                raise changed_type(name, column, "text", str(schema[column]))
        classes = {**needed.classes, **class_names(path)}
        reading = _Reading(
            name, needed, {k: v for k, v in classes.items() if _named(k, schema, needed)}
        )
        if any(_holds_bytes(schema[column]) for column in columns):
            size = min(size, BINARY_ROWS)
        first_row = 1
        for frame in scan.select(columns).collect_batches(chunk_size=size, maintain_order=True):
            yield reading.text(frame, first_row)
            first_row += frame.height
    except pl.exceptions.PolarsError as error:
        problem = f"damaged Parquet: {shown(str(error))}"
        raise SourceError(problem, where=name, fix="fetch or write it again") from error


def class_names(path: Path) -> dict[str, list[str]]:
    """Column -> the names that its whole numbers stand for, as the file's metadata says."""
    try:
        said = pl.read_parquet_metadata(path).get(_METADATA)
        features = json.loads(said)["info"]["features"] if said else {}
    except (pl.exceptions.PolarsError, OSError, ValueError, KeyError, TypeError):
        return {}
    return of_features(features) if isinstance(features, dict) else {}


def of_features(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The class names among the features of a Hugging Face dataset, of a column or its lists."""
    found = {}
    for column, feature in features.items():
        one = feature
        if isinstance(one, dict) and isinstance(one.get("feature"), dict):
            one = one["feature"]
        if isinstance(one, list) and len(one) == 1:  # how old versions wrote a list
            one = one[0]
        names = one.get("names") if isinstance(one, dict) else None
        if (
            isinstance(names, list)
            and one.get("_type") == "ClassLabel"
            and all(isinstance(each, str) for each in names)
        ):
            found[str(column)] = names
    return found


def _named(column: str, schema: pl.Schema, needed: Needed) -> bool:
    """Whether the numbers of a column are to be read as names."""
    kind: Any = schema.get(column)
    if isinstance(kind, pl.List | pl.Array):
        kind = kind.inner
    return kind is not None and kind.is_numeric() and column not in needed.numbers


class _Reading:
    """Frames of one file as text."""

    def __init__(self, name: str, needed: Needed, classes: Classes) -> None:
        self.name, self.needed, self.classes = name, needed, classes

    def text(self, frame: pl.DataFrame, first_row: int) -> pl.DataFrame:
        texts: list[pl.Series] = []
        bad: dict[int, tuple[str, str]] = {}
        for column in frame.iter_columns():
            text, flaws = self._column(column)
            texts.append(text)
            for problem, mask in flaws:
                if not mask.any():
                    continue
                if self.needed.reads(column.name):
                    for place in mask.arg_true():
                        bad[place] = (problem, escaped(_record(frame, place)))
                else:
                    self.needed.remarks.cells[column.name, problem] += int(mask.sum())
                    texts[-1] = texts[-1].set(mask, None)
        if bad:
            texts = [text.scatter(sorted(bad), None) for text in texts]
        return raw_frame(texts, self.name, first_row, bad, frame.height)

    def _column(self, column: pl.Series) -> tuple[pl.Series, list[tuple[str, pl.Series]]]:
        """A column as text, and masks of the cells that cannot be kept, with the reason."""
        flaws: list[tuple[str, pl.Series]] = []
        if names := self.classes.get(column.name):
            column, unknown = _with_names(column, names)
            flaws.append(("unknown_class", unknown))
        if column.dtype.is_nested() and _holds_bytes(column.dtype):
            filled = column.is_not_null()
            column = _without_bytes(column)
            if not self.needed.reads(column.name) and filled.any():
                self.needed.remarks.cells[column.name, BYTES] += int(filled.sum())
        if column.dtype.is_float() and self.needed.reads(column.name):
            column = column.fill_nan(None)
        text = _column_text(column)
        nul = text.str.contains("\0", literal=True).fill_null(False)
        return text, [
            *flaws,
            ("nul_character", nul),
            ("undecodable", text.is_null() & column.is_not_null()),
        ]


def _record(frame: pl.DataFrame, place: int) -> str:
    row = frame.select(c.name for c in frame.iter_columns() if not _is_image(c.dtype))
    return json.dumps(row.row(place, named=True), default=str)


def _is_image(kind: pl.DataType) -> bool:
    return kind.is_nested() and _holds_bytes(kind)


def _with_names(column: pl.Series, names: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """(the names; where a number is the number of none). -1 is how no label is written."""

    # Numbers with gaps are floats in many files: 0.0 is 0 there, NaN is none.
    numbers = pl.Series(range(len(names)), dtype=pl.Float64)

    def named(number: pl.Expr) -> pl.Expr:
        return number.cast(pl.Float64).replace_strict(
            numbers, list(names), default=None, return_dtype=pl.String
        )

    def wrong(number: pl.Expr) -> pl.Expr:
        known = number.is_not_null() & number.cast(pl.Float64).is_not_nan()
        return known & (number != -1) & named(number).is_null()

    value, kind = pl.col(column.name), column.dtype
    if isinstance(kind, pl.Array):
        value = value.arr.to_list()
    if kind.is_nested():
        texts = value.list.eval(named(pl.element()))
        bad = value.list.eval(wrong(pl.element())).list.any().fill_null(False)
    else:
        texts, bad = named(value), wrong(value)
    found = column.to_frame().select(texts.alias("texts"), bad.alias("bad"))
    return found["texts"].alias(column.name), found["bad"]


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, pl.Struct):
        return any(_holds_bytes(field.dtype) for field in kind.fields)
    if isinstance(kind, pl.List | pl.Array):
        return _holds_bytes(kind.inner)
    return bool(kind == pl.Binary)


def _without_bytes(column: pl.Series) -> pl.Series:
    """A nested column in which bytes are null."""
    value = _blank(pl.col(column.name), column.dtype).alias(column.name)
    return column.to_frame().select(value).to_series()


def _blank(value: pl.Expr, kind: Any) -> pl.Expr:
    if isinstance(kind, pl.Struct):
        fields = [_blank(value.struct.field(f.name), f.dtype).alias(f.name) for f in kind.fields]
        return pl.when(value.is_not_null()).then(pl.struct(fields))
    if isinstance(kind, pl.List):
        return value.list.eval(_blank(pl.element(), kind.inner))
    if isinstance(kind, pl.Array):
        return value.arr.to_list().list.eval(_blank(pl.element(), kind.inner))
    return pl.lit(None, pl.String) if kind == pl.Binary else value


def _column_text(column: pl.Series) -> pl.Series:
    """Any column as String: nested as compact JSON, binary as UTF-8 (null where it is not)."""
    name, kind = column.name, column.dtype
    if kind.is_nested():
        value = pl.col(name)
        encoded = pl.struct(value.alias("v")).struct.json_encode()
        inner = encoded.str.slice(len('{"v":')).str.head(-1)
        text = column.to_frame().select(pl.when(value.is_not_null()).then(inner).alias(name))
        return text.to_series()
    if kind == pl.Binary:
        return pl.Series(name, [_utf8(value) for value in column], pl.String)
    if kind == pl.Duration:
        return column.dt.to_string("iso")
    return column.cast(pl.String)


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
