"""One row's history, and what came of it: where it stands, what it was made from, what shows it.

Tables of one dataset go in, lazily, so that only what matches is read; plain rows come out. Columns
decide, not stages: ``source`` and ``source_row`` lead to the source, ``request_id`` and ``item`` to
a call, ``cell`` and ``ordinal`` to the plan, ``seed_ids`` to the rows that a prompt showed or that
an imported row was made from.

The tables need not be of one moment. Seeds and entries of the plan are looked up by what identifies
their content; only rows of a source are looked up by number, so ``human_raw`` must be the table
that the rows were read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Any, Literal

import polars as pl

from synth_assets.lifecycle.records import ID_CHARS, with_record_id

Tables = Mapping[str, pl.LazyFrame]
Row = dict[str, Any]
Kind = Literal["record", "call", "item", "source_row", "plan"]

RAW, PLAN, CANDIDATES = ("human_raw", "imported_raw"), "plan", "candidates"
MOST_MATCHES = 6
MOST_GENERATIONS = 20
_HEX = re.compile(r"[0-9a-f]{1,64}")
_NUMBERED = re.compile(r"(?s)(.+)([:/])([0-9]{1,9})")
_NAMED = re.compile(rf"\b[0-9a-f]{{{ID_CHARS}}}$")


@dataclass(frozen=True, order=True)
class Reference:
    """What is traced, by its one spelling.

    ``record``: a record id; ``call``: a request id; ``item``: ``REQUEST_ID/ITEM``; ``source_row``:
    ``SOURCE:ROW``; ``plan``: ``CELL/ORDINAL``.
    """

    kind: Kind
    id: str

    @property
    def parts(self) -> tuple[str, int]:
        """The name and the number of a reference that has both."""
        name, _, number = self.id.rpartition(":" if self.kind == "source_row" else "/")
        return name, int(number)


@dataclass
class Behind:
    """What rows were made from.

    ``plan``: entries of the plan, prompts in full. ``parents``: record id -> stage -> rows, over
    all generations. ``sources``: rows of ``human_raw``. ``named``: the rows that a reject's detail
    names, as ``parents``.
    """

    plan: list[Row] = field(default_factory=list)
    parents: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    sources: list[Row] = field(default_factory=list)
    named: dict[str, dict[str, list[Row]]] = field(default_factory=dict)


@dataclass
class Written:
    """What was written from prompts that showed a row: entries of the plan, and rows by stage."""

    plan: list[Row] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)


@dataclass
class Trace:
    """``stands``: stage -> the rows of what is traced there."""

    reference: Reference
    stands: dict[str, list[Row]]
    behind: Behind
    written: Written

    @property
    def record_ids(self) -> list[str]:
        """Ids under which its rows may be in a release: those of rejects are not, they may repeat
        what a person wrote."""
        return _record_ids(self.reference, self.stands)

    @property
    def request_ids(self) -> list[str]:
        return ids_in(self.stands, "request_id")


def trace(tables: Tables, reference: Reference, *, behind: Tables | None = None) -> Trace:
    """Everything about a reference. ``behind``: the tables that it was made from, if others."""
    stands = standing(tables, reference)
    return Trace(
        reference,
        stands,
        made_from(tables if behind is None else behind, stands),
        written_from(tables, _record_ids(reference, stands)),
    )


def find(tables: Tables, text: str) -> list[Reference]:
    """Everything that ``text`` names in these tables; ids may be cut after any of their digits.

    At most ``MOST_MATCHES`` of a kind and table; what ``text`` spells in full is the only match.
    """
    asked: list[tuple[Kind, pl.LazyFrame]] = []
    if _HEX.fullmatch(text):
        for rows in _with(tables, "record_id"):
            asked.append(("record", rows.filter(_begins("record_id", text)).select("record_id")))
        for rows in _with(tables, "request_id"):
            asked.append(("call", rows.filter(_begins("request_id", text)).select("request_id")))
    if numbered := _NUMBERED.fullmatch(text):
        asked += _numbered(tables, numbered[1], numbered[2], int(numbered[3]))
    answers = pl.collect_all([rows.unique().head(MOST_MATCHES) for _, rows in asked])
    found = {
        Reference(kind, str(name))
        for (kind, _), frame in zip(asked, answers, strict=True)
        for name in frame.to_series()
    }
    exact = [one for one in found if one.id == text]
    return sorted(exact or found)


def find_unjudged(
    tables: Tables, text: str, *, payload: Sequence[str], kind: str
) -> list[Reference]:
    """As ``find``, among candidates, whose record ids are not stored: every one is computed."""
    if CANDIDATES not in tables or not _HEX.fullmatch(text):
        return []
    rows = tables[CANDIDATES].select("request_id", "item", *payload).collect()
    hits = with_record_id(rows, payload, kind=kind).filter(_begins("record_id", text))
    items = hits.select("request_id", "item").head(MOST_MATCHES).iter_rows()
    return [Reference("item", f"{request_id}/{item}") for request_id, item in items]


def standing(tables: Tables, reference: Reference) -> dict[str, list[Row]]:
    """The rows of a reference, by stage.

    With a record come the candidates and source rows that it was read from, with a source row or a
    call the rows that were made of it.
    """
    found = _rows(tables, {name: _is(reference, columns) for name, columns in _columns(tables)})
    if not found:
        return {}
    more: dict[str, pl.Expr | None] = {}
    items, sources = _items(found), _source_rows(found)
    ids = ids_in(found, "record_id")
    for name, columns in _columns(tables):
        if name in found:
            continue
        if {"request_id", "item"} <= columns and items:
            more[name] = _any(_item(*one) for one in items)
        elif name in RAW and sources:
            more[name] = _any(_raw_row(*one) for one in sources)
        elif "record_id" in columns and not columns & {"source_row", "request_id"} and ids:
            more[name] = pl.col("record_id").is_in(ids)
    found |= _rows(tables, more)
    return {name: found[name] for name in tables if name in found}


def made_from(tables: Tables, stands: Mapping[str, Sequence[Row]]) -> Behind:
    """What the rows of ``standing`` were made from, back to the source."""
    behind = Behind()
    behind.plan = _entries(tables, stands)
    wanted = ids_in(stands, "seed_ids")
    for _ in range(MOST_GENERATIONS):
        wanted = [one for one in wanted if one not in behind.parents]
        if not wanted:
            break
        found = _by_id(tables, wanted, rejects=False)
        behind.parents |= {one: found.get(one, {}) for one in wanted}
        wanted = [seed for rows in found.values() for seed in ids_in(rows, "seed_ids")]
    details = (row.get("detail") for rows in stands.values() for row in rows)
    named = [hit[0] for one in details if one and (hit := _NAMED.search(str(one)))]
    behind.named = _by_id(tables, list(dict.fromkeys(named)), rejects=True)
    everything: list[Mapping[str, Sequence[Row]]] = [
        stands, *behind.parents.values(), *behind.named.values(),
    ]  # fmt: skip
    rows = dict.fromkeys(one for group in everything for one in _source_rows(group))
    if rows:
        wanted_rows = _any(_raw_row(*one) for one in rows)
        for landed in (tables[name] for name in RAW if name in tables):
            found_there = landed.filter(wanted_rows).sort("_source", "_row")
            behind.sources += found_there.collect().to_dicts()
    return behind


def written_from(tables: Tables, ids: Sequence[str]) -> Written:
    """What was written from prompts that showed one of ``ids``, over all generations."""
    written = Written()
    known: set[str] = set()
    wanted = list(ids)
    for _ in range(MOST_GENERATIONS):
        known.update(wanted)
        if not wanted:
            break
        shown = pl.col("seed_ids").list.set_intersection(wanted).list.len() > 0
        found = _rows(
            tables,
            {
                name: shown if "seed_ids" in columns and _is_origin(name, columns) else None
                for name, columns in _columns(tables)
            },
        )
        written.plan += found.pop(PLAN, [])
        for name, rows in found.items():
            written.rows.setdefault(name, []).extend(rows)
        wanted = [one for one in ids_in(_accepted(found), "record_id") if one not in known]
    return written


def _record_ids(reference: Reference, stands: Mapping[str, Sequence[Row]]) -> list[str]:
    return [reference.id] if reference.kind == "record" else ids_in(_accepted(stands), "record_id")


def _accepted(rows: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    return {name: group for name, group in rows.items() if group and "reason" not in group[0]}


def ids_in(rows: Mapping[str, Iterable[Row]], column: str) -> list[str]:
    """The distinct values of a column (of lists, too) over rows by stage, in order."""
    cells = (row.get(column) for group in rows.values() for row in group)
    flat = (one for cell in cells for one in (cell if isinstance(cell, list) else [cell]))
    return list(dict.fromkeys(one for one in flat if one))


# --- looking up -----------------------------------------------------------------------------


def _columns(tables: Tables) -> Iterator[tuple[str, set[str]]]:
    for name, rows in tables.items():
        yield name, set(rows.collect_schema())


def _with(tables: Tables, column: str) -> Iterator[pl.LazyFrame]:
    return (tables[name] for name, columns in _columns(tables) if column in columns)


def _is_origin(name: str, columns: set[str]) -> bool:
    """Whether rows enter the graph here (or are a plan for it): later stages only hand them on."""
    return name == PLAN or ("record_id" in columns and "weight" not in columns)


def _rows(tables: Tables, wanted: Mapping[str, pl.Expr | None]) -> dict[str, list[Row]]:
    """The rows that fit, of every table that has any, all read at once."""
    names = [name for name, expr in wanted.items() if expr is not None]
    frames = pl.collect_all([tables[name].filter(wanted[name]) for name in names])  # type: ignore[arg-type]
    return {
        name: frame.to_dicts() for name, frame in zip(names, frames, strict=True) if frame.height
    }


def _numbered(
    tables: Tables, name: str, mark: str, number: int
) -> Iterator[tuple[Kind, pl.LazyFrame]]:
    for table, columns in _columns(tables):
        rows = tables[table]
        if mark == ":":
            if table in RAW:
                rows = rows.rename({"_source": "source", "_row": "source_row"})
            if table in RAW or {"source", "source_row"} <= columns:
                fits = (pl.col("source") == name) & (pl.col("source_row") == number)
                yield (
                    "source_row",
                    rows.filter(fits).select(pl.format("{}:{}", "source", "source_row")),
                )
        elif table == PLAN:
            fits = (pl.col("cell") == name) & (pl.col("ordinal") == number)
            yield "plan", rows.filter(fits).select(pl.format("{}/{}", "cell", "ordinal"))
        elif {"request_id", "item"} <= columns:
            fits = _begins("request_id", name) & (pl.col("item") == number)
            yield "item", rows.filter(fits).select(pl.format("{}/{}", "request_id", "item"))


def _is(reference: Reference, columns: set[str]) -> pl.Expr | None:
    """What rows of a table with these columns fit; None: it cannot hold any."""
    if reference.kind == "record":
        return pl.col("record_id") == reference.id if "record_id" in columns else None
    if reference.kind == "call":
        return pl.col("request_id") == reference.id if "request_id" in columns else None
    name, number = reference.parts
    if reference.kind == "item":
        return _item(name, number) if {"request_id", "item"} <= columns else None
    if reference.kind == "plan":
        placed = (pl.col("cell") == name) & (pl.col("ordinal") == number)
        return placed if {"cell", "ordinal"} <= columns else None
    if {"_source", "_row"} <= columns:
        return _raw_row(name, number)
    if {"source", "source_row"} <= columns:
        return (pl.col("source") == name) & (pl.col("source_row") == number)
    return None


def _begins(column: str, text: str) -> pl.Expr:
    # The bounds let a reader skip what its statistics rule out.
    return pl.col(column).is_between(pl.lit(text), pl.lit(text + "\U0010ffff"))


def _item(request_id: str, item: int) -> pl.Expr:
    return (pl.col("request_id") == request_id) & (pl.col("item") == item)


def _raw_row(source: str, row: int) -> pl.Expr:
    return (pl.col("_source") == source) & (pl.col("_row") == row)


def _any(conditions: Iterable[pl.Expr]) -> pl.Expr:
    return reduce(or_, conditions)


def _items(rows: Mapping[str, Sequence[Row]]) -> list[tuple[str, int]]:
    pairs = ((r.get("request_id"), r.get("item")) for group in rows.values() for r in group)
    return list(dict.fromkeys((name, at) for name, at in pairs if name and at is not None))


def _source_rows(rows: Mapping[str, Sequence[Row]]) -> list[tuple[str, int]]:
    pairs = ((r.get("source"), r.get("source_row")) for group in rows.values() for r in group)
    return list(dict.fromkeys((name, at) for name, at in pairs if name and at is not None))


def _entries(tables: Tables, stands: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The plan's entries behind rows, if they are of the same text.

    By their places where rows have one (candidates, rejects), else by their cells.
    """
    if PLAN not in tables:
        return []
    rows = [row for group in stands.values() for row in group if row.get("prompt_version")]
    placed = [row for row in rows if "ordinal" in row]
    keys = ("cell", "ordinal", "prompt_version") if placed else ("cell", "prompt_version")
    wanted = dict.fromkeys(tuple(row[key] for key in keys) for row in placed or rows)
    if not wanted:
        return []
    fits = _any(
        reduce(and_, (pl.col(key) == value for key, value in zip(keys, one, strict=True)))
        for one in wanted
    )
    return tables[PLAN].filter(fits).collect().to_dicts()


def _by_id(tables: Tables, ids: Sequence[str], *, rejects: bool) -> dict[str, dict[str, list[Row]]]:
    """Rows by record id and stage, of the stages where rows enter and of the seeds."""
    if not ids:
        return {}
    without = {"weight", "split"} if rejects else {"weight", "split", "reason"}
    wanted = {
        name: pl.col("record_id").is_in(ids)
        if "record_id" in columns and not columns & without
        else None
        for name, columns in _columns(tables)
    }
    found: dict[str, dict[str, list[Row]]] = {}
    for name, rows in _rows(tables, wanted).items():
        for row in rows:
            found.setdefault(row["record_id"], {}).setdefault(name, []).append(row)
    return found
