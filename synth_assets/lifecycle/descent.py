"""What descends from source rows: rows, prompts and calls made from them, or showing them.

Tables go in, stage by stage in the order of the graph, and out comes which of their rows descend.
A human row descends when it is made from such a source row. A prompt descends when it was made with
such a row as a seed, or its text stands in it; so does every answer to it, and every row of such an
answer. A row that was imported descends when it names one as its parent.

What a model wrote that only resembles such a row, in answer to a prompt that did not show it, is no
descendant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import polars as pl

from synth_assets.lifecycle.leakage import INSIDE_CHARS
from synth_assets.lifecycle.tombstones import Reading, groups, records
from synth_assets.text import normalise

# Rejects show so much of a text.
SHOWN_CHARS = 2_000
IMPORTED = "import:"
_LINE_MARK = r"^\s*(?:(?:[\p{Pd}*+•‣◦·>#|]+|\(?\d{1,6}[.):\]]|\(?[A-Za-z][.)])\s+)+"
_LINES = r"[\r\n\x0B\x0C\x{85}\x{2028}\x{2029}]+"
FOUND = pl.Schema(
    {
        "dataset": pl.String(),
        "stage": pl.String(),
        "version": pl.String(),
        "rows": pl.Int64(),
        "ids": pl.List(pl.String),
    }
)


class Table(NamedTuple):
    """One version of one stage's table. ``reading``: how the dataset's raw rows are read."""

    dataset: str
    stage: str
    version: str
    reading: Reading | None
    frame: pl.DataFrame


@dataclass
class Known:
    """What descends, as far as is known: grows while tables are looked at.

    ``texts`` are normalised, ``groups`` and ``records`` as ``tombstones`` makes them. ``ids`` are
    those of human rows, ``made`` of rows that no call of ours made, ``calls`` request ids, and
    ``prompts`` digests of prompts in full.
    """

    texts: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    records: frozenset[str] = frozenset()
    ids: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    prompts: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._long = sorted(f" {one} " for one in self.texts if len(one) >= INSIDE_CHARS)
        self._short = sorted(one for one in self.texts if len(one) < INSIDE_CHARS)
        self._all = sorted(self.texts)

    def copy(self) -> Known:
        """The same, to grow by itself."""
        return replace(
            self,
            ids=set(self.ids),
            made=set(self.made),
            calls=set(self.calls),
            prompts=set(self.prompts),
        )

    def is_text(self, texts: pl.Series) -> pl.Series:
        """Whether each is one of the texts, as texts are compared."""
        normal = texts.to_frame("text").select(normalise(pl.col("text"))).to_series()
        return normal.is_in(self._all).fill_null(False)

    def holds(self, texts: pl.Series) -> pl.Series:
        """Whether one of the longer texts stands in each, at word boundaries."""
        if not self._long:
            return _none(texts.len())
        normal = pl.format(" {} ", normalise(pl.col("text")))
        found = normal.str.contains_any(self._long).fill_null(False)
        return texts.to_frame("text").select(found).to_series()

    def shown_by(self, prompts: pl.Series) -> pl.Series:
        """Whether each prompt shows one: in it, or, when it is short, as a whole line."""
        inside = self.holds(prompts)
        if not self._short:
            return inside
        bare = pl.col("text").str.replace_all(_LINES, "\n").str.split("\n")
        lines = (
            prompts.to_frame("text")
            .with_row_index("place")
            .select("place", bare.alias("line"))
            .explode("line")
            .with_columns(normalise(pl.col("line").str.replace(_LINE_MARK, "")))
            .filter(pl.col("line").is_in(self._short))
        )
        whole = pl.Series(range(prompts.len()), dtype=pl.UInt32).is_in(lines["place"].implode())
        return inside | whole


def descent(tables: Iterable[Table], known: Known, *, dataset: str) -> pl.DataFrame:
    """The tables that hold descendants: dataset, stage, version, rows, ids (schema ``FOUND``).

    ``tables`` come stage by stage in the order of the graph. ``ids`` name the rows: a place in the
    source, a record id, a call of the plan, a request and item. ``known`` grows by what is found in
    tables of ``dataset``; what those of others lead to stays among themselves.
    """
    found = []
    within = {dataset: known}
    for table in tables:
        seen = within.setdefault(table.dataset, known.copy())
        rows = table.frame.filter(descendants(table.frame, seen, table.reading))
        if rows.height:
            names = (table.dataset, table.stage, table.version)
            found.append((*names, rows.height, identities(rows).to_list()))
    return pl.DataFrame(found, schema=FOUND, orient="row")


def descendants(frame: pl.DataFrame, known: Known, reading: Reading | None) -> pl.Series:
    """Which rows of a table descend (Boolean), whatever stage it is of; ``known`` grows."""
    if "_row" in frame.columns:
        return raw_descendants(frame, known, reading)
    if "prompt" in frame.columns:
        mask = _parents(frame, known.ids) | known.shown_by(frame["prompt"])
        known.prompts |= {prompt_digest(one) for one in frame.filter(mask)["prompt"].unique()}
        return mask
    mask = _from_calls(frame, known)
    human = _human(frame)
    if "record_id" in frame.columns:
        mask |= human & frame["record_id"].is_in(sorted(known.ids))
    if "text" in frame.columns:
        mask |= human & (known.is_text(frame["text"]) | known.holds(frame["text"]))
    for name in ("raw", "detail"):
        if name in frame.columns and "request_id" not in frame.columns:
            mask |= known.holds(frame[name])
    if "group" in frame.columns and known.groups:
        mask |= human & frame["group"].is_in(sorted(known.groups)).fill_null(False)
    _learn(frame.filter(mask), known)
    return mask


def raw_descendants(frame: pl.DataFrame, known: Known, reading: Reading | None) -> pl.Series:
    """Which raw source rows are meant, or hold one of the texts in any of their cells."""
    mask = _none(frame.height)
    if reading is not None and reading.text in frame.columns:
        mask |= known.is_text(frame[reading.text])
    if reading is not None and known.groups:
        mask |= groups(frame, reading.group_by).is_in(sorted(known.groups)).fill_null(False)
    if known.records:
        mask |= records(frame).is_in(sorted(known.records)).fill_null(False)
    for name, kind in frame.schema.items():
        if kind == pl.String and name not in ("_source", "_problem", "_load_id"):
            mask |= known.holds(frame[name])
    return mask


def identities(rows: pl.DataFrame) -> pl.Series:
    """A name for each row of a table, by what its stage is told apart by."""
    columns = rows.columns
    if "_row" in columns:
        name = pl.format("{}:{}", "_source", "_row")
    elif "ordinal" in columns and "prompt" in columns:
        name = pl.format("{}/{}", "cell", "ordinal")
    elif "request_id" in columns and "split" not in columns:
        name = pl.format("{}/{}", "request_id", "item")
    elif "record_id" in columns:
        name = pl.col("record_id")
    elif "source_row" in columns:
        name = pl.format("{}:{}", "source", "source_row")
    else:
        name = pl.lit("")
    return rows.select(name.alias("id")).to_series()


def prompt_digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


def cut(texts: Sequence[str]) -> list[str]:
    """The texts, and their beginnings as rejects show them."""
    return [*texts, *(text[:SHOWN_CHARS] for text in texts if len(text) > SHOWN_CHARS)]


def normalised(texts: Sequence[str]) -> frozenset[str]:
    """Texts in the form they are compared in; blank ones are left out."""
    series = pl.Series("text", cut([*texts]), dtype=pl.String)
    found = series.to_frame().select(normalise(pl.col("text"))).to_series()
    return frozenset(one for one in found if one)


def _from_calls(frame: pl.DataFrame, known: Known) -> pl.Series:
    """Rows of calls that descend, and imported rows whose parents do."""
    mask = _parents(frame, known.ids)
    if "request_id" not in frame.columns:
        return mask
    mask |= frame["request_id"].is_in(sorted(known.calls)).fill_null(False)
    imported = frame["request_id"].str.starts_with(IMPORTED).fill_null(False)
    while imported.any() and "record_id" in frame.columns:
        known.made |= set(frame.filter(mask & imported)["record_id"])
        more = imported & ~mask & _parents(frame, known.made)
        if not more.any():
            break
        mask |= more
    return mask


def _learn(rows: pl.DataFrame, known: Known) -> None:
    if "record_id" in rows.columns:
        known.ids |= set(rows.filter(_human(rows))["record_id"])
    if "request_id" in rows.columns:
        calls = rows["request_id"].drop_nulls()
        known.calls |= set(calls.filter(~calls.str.starts_with(IMPORTED)))


def _parents(frame: pl.DataFrame, ids: Iterable[str]) -> pl.Series:
    if "seed_ids" not in frame.columns:
        return _none(frame.height)
    shared = pl.col("seed_ids").list.set_intersection(pl.lit(pl.Series([sorted(ids)], dtype=_IDS)))
    return frame.select((shared.list.len() > 0).fill_null(False).alias("mask")).to_series()


def _human(frame: pl.DataFrame) -> pl.Series:
    """Rows that no call made: human ones, and seeds written by hand."""
    if "request_id" in frame.columns:
        return frame["request_id"].is_null()
    if "origin" in frame.columns:
        return frame["origin"] != "synthetic"
    return ~_none(frame.height)


def _none(height: int) -> pl.Series:
    return pl.repeat(False, height, dtype=pl.Boolean, eager=True).alias("mask")


_IDS = pl.List(pl.String)
