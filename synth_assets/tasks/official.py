"""Official folds: where the data says itself which side a row is on, by a column or its source."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from synth_assets.cells import filled, tidied
from synth_assets.errors import shown

if TYPE_CHECKING:
    from synth_assets.spec.model import DatasetSpec

SIDE = "side"
# Of two rows with one text on different sides, the one on the earlier side stays.
HOLDOUT_FIRST = ("holdout", "validation", "train")
MOST_NAMED = 20


@dataclass(frozen=True)
class Official:
    """``sides``: value of ``column`` (of the source's name where it is "") -> side.

    ``rest``: the side of a value that is not listed; None: such a row is set aside. ``first``:
    sides, those whose rows stay first.
    """

    column: str
    sides: Mapping[str, str]
    rest: str | None = None
    first: tuple[str, ...] = HOLDOUT_FIRST

    @classmethod
    def from_spec(cls, spec: DatasetSpec) -> Official | None:
        """None where shares decide."""
        declared = spec.partition
        first = HOLDOUT_FIRST[::-1] if declared.near_copies == "drop_holdout" else HOLDOUT_FIRST
        if declared.column is not None:
            listed = {value: side for side, values in declared.folds.items() for value in values}
            return cls(declared.column, listed, None if declared.train else "train", first)
        if spec.official_sources:
            named = {str(source.name): str(source.split) for source in spec.human_sources}
            return cls("", named, None, first)
        return None

    def side(self) -> pl.Expr:
        """Of raw rows: train, validation, holdout, or null where nothing says it."""
        rest = pl.when(self._value() != "").then(pl.lit(self.rest, pl.String))
        return self._value().replace_strict(self.sides, default=rest, return_dtype=pl.String)

    def reason(self) -> pl.Expr:
        """Of raw rows: why a row is on no side; null where it is on one."""
        return (
            pl.when(self._value().is_null() | (self._value() == ""))
            .then(pl.lit("missing_fold"))
            .when(self.side().is_null())
            .then(pl.lit("other_fold"))
        )

    def no_such_value(self, raw: pl.DataFrame) -> tuple[str, str, str] | None:
        """(side, problem, fix) of a listed value that no row of ``raw`` has, or that some rows
        have in another spelling (case, ``1.0`` for ``1``), if there is one.

        A row that a reader could not read, or that was erased, has no cells any more.
        """
        if not self.column:
            return None
        counts = raw.select(value=self._value()).drop_nulls().filter(pl.col("value") != "")
        counted = counts.group_by("value").len().sort("len", "value", descending=[True, False])
        found = dict(counted.iter_rows())
        for value, side in self.sides.items():
            if value in found:
                continue
            close = difflib.get_close_matches(value, list(found), n=1, cutoff=0.5)
            close = close or [one for one in found if one.casefold() == value.casefold()]
            named = [f"{shown(one)} ({rows:,} rows)" for one, rows in found.items()][:MOST_NAMED]
            more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            guess = f"did you mean {shown(close[0])}? " if close else ""
            return (
                side,
                f"no row has {shown(value)} in column {shown(self.column)}",
                f"{guess}values found: {', '.join(named) or 'none'}{more}",
            )
        return self._spelt_otherwise(found)

    def _spelt_otherwise(self, found: Mapping[str, int]) -> tuple[str, str, str] | None:
        """A value beside a listed one: by itself it would be trained on, or used by nobody."""
        listed = {_loosely(value): value for value in self.sides}
        for value, rows in found.items():
            meant = listed.get(_loosely(value))
            if value not in self.sides and meant is not None:
                return (
                    self.sides[meant],
                    f"column {shown(self.column)} has {shown(value)} ({rows:,} rows) beside "
                    f"{shown(meant)}",
                    f"list {shown(value)} too, on the side that it is of, or mend the cells",
                )
        return None

    def _value(self) -> pl.Expr:
        if self.column:
            seen = tidied(pl.col(self.column))
            return pl.when(seen.is_in(list(self.sides))).then(seen).otherwise(filled(seen))
        # A row shows its source's name, and the file it stands in where there may be several.
        return pl.col("_source").str.split("/").list.first()


def _loosely(value: str) -> str:
    """A value whatever its case, and a number however it is written."""
    seen = unicodedata.normalize("NFKC", value).casefold()
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", seen)
    return number[1] if number else seen


def _beside(first: tuple[str, ...]) -> pl.Expr:
    """Why a row is not used whose text stands on an earlier side, too."""
    names = dict(enumerate(first))
    side = pl.col("_best").replace_strict(names, default=None, return_dtype=pl.String)
    same = pl.col("label") == pl.col("_label")
    what = pl.when(same).then(pl.lit("duplicate_of_")).otherwise(pl.lit("conflicts_with_"))
    return pl.concat_str(what, side)


def conflicting_and_repeated(rows: pl.DataFrame, first: tuple[str, ...] = ()) -> pl.DataFrame:
    """``rows`` (same, label, reason, in order; ``side`` where it is official) with more reasons.

    Among rows without a reason, of each text (``same``): the rows of the earliest side of ``first``
    that has any decide. When they disagree about the label, no row of the text is kept
    (conflicting_labels); else the first of them is (the others: duplicate), and rows of other sides
    are duplicate_of_SIDE or, with another label, conflicts_with_SIDE.
    """
    fine = pl.col("reason").is_null()
    rank = pl.col(SIDE).replace_strict(
        dict(zip(first, range(len(first)), strict=True)), default=None, return_dtype=pl.Int8
    )
    rows = rows.with_columns(_rank=rank if first else pl.lit(0, pl.Int8))
    rows = rows.with_columns(_best=pl.col("_rank").filter(fine).min().over("same"))
    deciding = fine & (pl.col("_rank") == pl.col("_best"))
    told = pl.col("label").filter(deciding)
    rows = rows.with_columns(_labels=told.n_unique().over("same"), _label=told.first().over("same"))
    rows = rows.with_columns(
        reason=pl.when(fine & (pl.col("_labels") > 1))
        .then(pl.lit("conflicting_labels"))
        .when(fine & (pl.col("_rank") > pl.col("_best")))
        .then(_beside(first))
        .otherwise("reason")
    )
    left = pl.col("reason").is_null()
    place = pl.int_range(pl.len())  # within its text
    repeated = left & (place > place.filter(left).min())
    return rows.with_columns(
        reason=pl.when(repeated.over("same")).then(pl.lit("duplicate")).otherwise("reason")
    ).drop("_rank", "_best", "_labels", "_label")
