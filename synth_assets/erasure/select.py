"""Whose rows are meant: a place in the source, a record, a text or a group, found in the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import polars as pl

from synth_assets.assets.source import reading_of
from synth_assets.cells import GROUP_MARK, group_named
from synth_assets.erasure.impact import read_table, versions_of
from synth_assets.errors import UsageError, shown
from synth_assets.lifecycle.descent import Known, normalised, raw_descendants
from synth_assets.lifecycle.tombstones import ERASED, Tombstones, groups, mark, records
from synth_assets.settings import Home
from synth_assets.spec.load import Dataset
from synth_assets.store.erasures import Log
from synth_assets.tasks import task_for
from synth_assets.upkeep.home import latest_tables

LEAST_PREFIX = 8
HUMAN = ("human", "human_train", "holdout", "set_aside", "seeds")


class NothingLeft(UsageError):
    """What is selected was erased before."""


@dataclass(frozen=True)
class Selector:
    """Exactly one of these is given; ``group`` has a value for each column of the group."""

    source_row: str | None = None
    record: str | None = None
    text_file: Path | None = None
    group: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, str]:
        """Kind and value, to be marked: so that the same words are known again."""
        if self.text_file is not None:
            return "text", ""
        if self.group:
            return "group", GROUP_MARK.join(self.group)
        if self.record is not None:
            return "selected record", self.record
        return "selected row", self.source_row or ""


def select(dataset: Dataset, home: Home, instance: dg.DagsterInstance, selector: Selector) -> Known:
    """What the selector names, and every row of the source that says the same or holds it.

    Raises:
        UsageError: there is no such row.
        NothingLeft: it was erased before.
    """
    given = [selector.source_row, selector.record, selector.text_file, selector.group or None]
    if sum(one is not None for one in given) != 1:
        raise UsageError(
            "say whose data is meant, in one way",
            fix="one of --source-row SOURCE:ROW, --record ID, --text-file FILE, --group VALUE",
        )
    finder = _Finder(dataset, home, instance)
    if selector.source_row is not None:
        first = finder.by_place(selector.source_row)
    elif selector.record is not None:
        first = finder.by_record(selector.record)
    elif selector.text_file is not None:
        first = finder.by_text(selector.text_file)
    else:
        first = finder.by_group(selector.group)
    return finder.widened(first)


def marks_of(known: Known, selector: Selector, salt: str) -> tuple[dict[str, list[str]], list[str]]:
    """The marks of what is erased, by kind, and those of the words that selected it."""
    values = {"text": known.texts, "group": known.groups, "record": known.records}
    marks = {kind: sorted(mark(salt, kind, one) for one in these) for kind, these in values.items()}
    kind, value = selector.words
    chosen = [mark(salt, kind, value)] if value else []
    return marks, chosen


class _Finder:
    def __init__(self, dataset: Dataset, home: Home, instance: dg.DagsterInstance) -> None:
        self.dataset, self.home = dataset, home
        self.reading, self.text = reading_of(dataset), task_for(dataset.spec).text
        self.log = Log(home.root, dataset.name)
        found = latest_tables(instance, [dataset.name])
        self.latest = {stage: version for _, stage, version in found}

    def by_place(self, place: str) -> Known:
        source, _, number = place.rpartition(":")
        if not source or not number.isdigit():
            raise UsageError(
                f"{shown(place)} names no row of a source",
                fix="SOURCE:ROW, as the columns source and source_row of human rows have them",
            )
        raw = self._raw_now()
        rows = raw.filter((pl.col("_source") == source) & (pl.col("_row") == int(number)))
        if rows.is_empty():
            self._was_erased(Selector(source_row=place), f"no row {shown(place)}")
            names = ", ".join(raw["_source"].unique().sort().to_list()[:10])
            raise UsageError(
                f"no row {shown(place)} has landed",
                where=self.dataset.name,
                fix=f"sources: {names}"
                if names
                else f"synth run {self.dataset.name}, or name what it was called before",
            )
        if rows["_problem"][0] == ERASED:
            raise NothingLeft(f"{shown(place)} was erased before", where=self.dataset.name)
        return self._of_raw(rows)

    def by_record(self, record: str) -> Known:
        found: dict[str, str] = {}
        for stage in HUMAN:
            for path in versions_of(self.home, self.dataset.name, stage):
                rows = read_table(path).filter(pl.col("record_id").str.starts_with(record))
                found |= dict(rows.select("record_id", self.text).iter_rows())
        if len(found) == 1 and len(record) >= LEAST_PREFIX:
            return Known(texts=normalised([*found.values()]))
        self._was_erased(Selector(record=record), f"no record {shown(record)}")
        raise UsageError(
            f"no human record {shown(record)}"
            if not found
            else f"{shown(record)} is the beginning of {len(found)} records",
            where=self.dataset.name,
            fix=f"at least {LEAST_PREFIX} characters of a record_id of the human tables",
        )

    def by_text(self, file: Path) -> Known:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot be read as UTF-8: {error}", where=str(file)) from error
        texts = normalised([text])
        if not texts:
            raise UsageError("the file holds no text", where=str(file))
        return Known(texts=texts)

    def by_group(self, values: tuple[str, ...]) -> Known:
        columns = self.reading.group_by
        if len(values) == len(columns) and not group_named(values):
            raise UsageError(
                "rows whose cells say nothing are no group",
                fix="select by --source-row, --record or --text-file",
            )
        if len(values) != len(columns):
            raise UsageError(
                f"partition.group_by names {len(columns)} columns, {len(values)} values are given",
                where=str(self.dataset.file),
                fix="--group VALUE once for each column, in their order"
                if columns
                else "select by --source-row, --record or --text-file",
            )
        return Known(groups=frozenset([group_named(values)]))

    def widened(self, known: Known) -> Known:
        """With every row, in any table, that says the same, is of the group, or holds a text."""
        texts, rest = set(known.texts), set(known.records)
        for raw in self._raws():
            for rows in _grouped(raw, known, self.reading.group_by):
                more = self._of_raw(rows)
                texts |= more.texts
                rest |= more.records
        first = Known(frozenset(texts), known.groups, frozenset(rest))
        for raw in self._raws():
            holding = raw.filter(raw_descendants(raw, first, self.reading))
            more = self._of_raw(holding)
            texts |= more.texts
            rest |= more.records
        return Known(frozenset(texts), known.groups, frozenset(rest))

    def already(self, kind: str, value: str) -> bool:
        """Whether something was erased by these very words."""
        lines = [line for line in self.log.lines() if line["event"] == "begun"]
        if not lines or not value:
            return False
        wanted = mark(str(lines[0]["salt"]), kind, value)
        return any(wanted in line["selectors"] for line in lines)

    def _was_erased(self, selector: Selector, problem: str) -> None:
        if self.already(*selector.words):
            raise NothingLeft(f"{problem}: it was erased before", where=self.dataset.name)

    def _of_raw(self, rows: pl.DataFrame) -> Known:
        """The texts of raw rows; of one without a text, all it holds."""
        texts: list[str] = []
        whole: list[str] = []
        column = self.reading.text
        for row, record in zip(rows.iter_rows(named=True), records(rows), strict=True):
            text = row.get(column) or _text_in(row["_raw"], column)
            found = normalised([text]) if text else frozenset()
            texts += found
            if (not found or row["_raw"]) and record:
                whole.append(record)
        return Known(frozenset(texts), frozenset(), frozenset(whole))

    def _raw_now(self) -> pl.DataFrame:
        paths = versions_of(self.home, self.dataset.name, "human_raw")
        now = [path for path in paths if path.stem == self.latest.get("human_raw")]
        if not paths:
            return pl.DataFrame(schema={"_source": pl.String, "_row": pl.Int64})
        return read_table((now or paths)[0])

    def _raws(self) -> Iterator[pl.DataFrame]:
        landed = ("human_raw", "imported_raw")
        for path in (
            p for stage in landed for p in versions_of(self.home, self.dataset.name, stage)
        ):
            raw = read_table(path)
            yield raw.filter(pl.col("_problem").is_null() | (pl.col("_problem") != ERASED))


def _grouped(raw: pl.DataFrame, known: Known, group_by: Sequence[str]) -> Iterator[pl.DataFrame]:
    if known.groups and group_by:
        yield raw.filter(groups(raw, group_by).is_in(sorted(known.groups)).fill_null(False))


def _text_in(raw: str | None, column: str) -> str | None:
    """The text of a record that was kept as JSON because a cell of it was wrong."""
    try:
        found: Any = orjson.loads(raw) if raw else None
    except ValueError:
        return None
    text = found.get(column) if isinstance(found, dict) else None
    return text if isinstance(text, str) else None


def tombstoned(known: Known, stones: Tombstones) -> bool:
    """Whether all of it was erased before."""
    values = [("text", known.texts), ("group", known.groups), ("record", known.records)]
    return bool(stones) and all(
        stones.has(kind, one)  # type: ignore[arg-type]
        for kind, these in values
        for one in these
    )
