"""What a source's columns are expected to hold, and what happens when they do not.

A column that is gone, or that holds something else in more than half of its cells, is a change of
the source: the load ends with one message and the former rows stay. A single cell that is wrong is
a bad row: it is kept with the reason ``wrong_type``. Columns that nobody declared are kept
(``evolve``), left out (``discard``) or refused (``freeze``).

Types: ``text`` is any scalar, ``json`` anything. ``integer``, ``number``, ``boolean`` (true,
false, 0, 1) and ``timestamp`` (ISO 8601, the time optional) are judged on the cell's text, in
which nothing is converted; an empty cell is missing, not wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources import MAX_RAW_CHARS, SERVICE_COLUMNS

ColumnType = Literal["text", "integer", "number", "boolean", "timestamp", "json"]
Extra = Literal["evolve", "freeze", "discard"]

_ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)?"
_PATTERNS: dict[str, str] = {
    "integer": r"^[+-]?\d+$",
    "number": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$",
    "boolean": r"^((?i)true|false|0|1)$",
    "timestamp": rf"^\d{{4}}-\d{{2}}-\d{{2}}([T ]\d{{2}}:\d{{2}}(:\d{{2}}([.,]\d+)?)?{_ZONE})?$",
}


class Tally:
    """Cells of one table that hold something else than expected, by column and what was found."""

    def __init__(self) -> None:
        self.filled: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.found: dict[str, str] = {}

    def add(self, cells: Mapping[str, object], scalar: Collection[str]) -> bool:
        """Count one JSON record; whether a ``scalar`` column of it holds a list or an object."""
        nested = False
        for name in scalar:
            value = cells.get(name)
            if value is not None:
                self.filled[name] += 1
                if isinstance(value, dict | list):
                    nested = True
                    self.wrong[name] += 1
                    self.found.setdefault(name, "struct" if isinstance(value, dict) else "list")
        return nested

    def verdict(self, table: str, expected: Mapping[str, str]) -> None:
        """Raise ``SourceError`` for a column of which more than half is something else."""
        for column, wrong in sorted(self.wrong.items()):
            filled = self.filled[column]
            if wrong * 2 > filled:
                found = f"{self.found[column]} in {wrong} of {filled} cells"
                raise changed_type(table, column, expected.get(column, "text"), found)


def changed_type(table: str, column: str, expected: str, found: str) -> SourceError:
    return SourceError(
        f"column {shown(column)} changed its type: expected {expected}, found {found}",
        where=table,
        fix="mend the source or, if the new type is meant, declare it in `columns` of the source "
        "(a column of the task is always text)",
    )


@dataclass(frozen=True)
class Contract:
    """``required``: columns the task reads (text); ``columns``: declared ones with their types."""

    required: tuple[str, ...] = ()
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    extra: Extra = "evolve"

    @property
    def needed(self) -> list[str]:
        """Every column that must be there."""
        return list(dict.fromkeys((*self.required, *self.columns)))

    @property
    def scalar(self) -> frozenset[str]:
        """Columns in which a list or an object is wrong."""
        return frozenset(name for name in self.needed if self.columns.get(name) != "json")

    @property
    def numbers(self) -> frozenset[str]:
        """Columns declared to hold numbers: no file's names of classes replace them."""
        return frozenset(n for n, kind in self.columns.items() if kind in ("integer", "number"))

    def apply(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Raw frames, checked: bad cells make problem rows, undeclared columns as ``extra`` says.

        Raises ``SourceError``, after the last frame of a table at the latest: an undeclared column
        under ``freeze``, or a column that changed its type.
        """
        tallies: dict[str, Tally] = {}
        for frame in frames:
            table = frame.item(0, "_source") if frame.height else ""
            yield self._typed(self._selected(frame, table), tallies.setdefault(table, Tally()))
        for table, tally in tallies.items():
            tally.verdict(table, self.columns)

    def _selected(self, frame: pl.DataFrame, table: str) -> pl.DataFrame:
        known = {*self.needed, *SERVICE_COLUMNS}
        unknown = [name for name in frame.columns if name not in known]
        if unknown and self.extra == "freeze":
            raise SourceError(
                f"unexpected column {shown(unknown[0])}; expected only "
                f"{', '.join(map(shown, self.needed))}",
                where=table,
                fix="declare it in `columns` of the source, or set extra_columns: evolve or "
                "discard",
            )
        return frame.drop(unknown) if self.extra == "discard" else frame

    def _typed(self, frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
        fine = frame.get_column("_problem").is_null()
        bad = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True)
        for column, kind in self.columns.items():
            pattern = _PATTERNS.get(kind)
            if pattern is None or column not in frame.columns:
                continue
            cells = frame.get_column(column).str.strip_chars()
            filled = fine & cells.is_not_null() & (cells != "").fill_null(False)
            wrong = filled & ~cells.str.contains(pattern).fill_null(True)
            tally.filled[column] += int(filled.sum())
            if wrong.any():
                tally.wrong[column] += int(wrong.sum())
                tally.found.setdefault(column, f"text such as {shown(cells.filter(wrong)[0])}")
                bad = bad | wrong
        return _set_aside(frame, bad) if bad.any() else frame


def _set_aside(frame: pl.DataFrame, bad: pl.Series) -> pl.DataFrame:
    """``frame`` with its bad rows' cells emptied and kept as ``_raw``."""
    cells = [name for name in frame.columns if name not in SERVICE_COLUMNS]
    records = [
        json.dumps(row, ensure_ascii=False)[:MAX_RAW_CHARS]
        for row in frame.filter(bad).select(cells).iter_rows(named=True)
    ]
    raw = frame.get_column("_raw").scatter(bad.arg_true(), records)
    return frame.with_columns(
        *(pl.when(~bad).then(pl.col(name)).alias(name) for name in cells),
        pl.when(bad).then(pl.lit("wrong_type")).otherwise("_problem").alias("_problem"),
        raw,
    )
