"""The audit of one row: tables, releases and ledger brought together around a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.audit.calls import Call, answered, given_up
from synth_assets.audit.versions import Versions
from synth_assets.errors import UsageError, shown
from synth_assets.lifecycle import lineage
from synth_assets.lifecycle.lineage import Reference, Row, Trace
from synth_assets.llm.ledger.ledger import Ledger, ledger_location
from synth_assets.llm.ledger.rows import NoLedger
from synth_assets.settings import Home, defs_roots
from synth_assets.spec.load import dataset_named, discover
from synth_assets.store.releases import ReleaseStore
from synth_assets.tasks import task_for
from synth_assets.upkeep.home import datasets_of

MOST_ROWS = 50
# What decides from which tables a row was made, the first that it stands in.
_ANCHORS = ("human", "human_rejects", "synthetic", "rejects", "candidates", "plan")


@dataclass(frozen=True)
class InRelease:
    """A release that holds the row (``splits``) or rows written from it (``descendants``)."""

    version: str
    current: bool
    splits: list[str]
    descendants: list[str]


@dataclass
class Audit:
    """``found_in``: the set of tables that ``stands`` is about; ``versions``: its data versions,
    ``behind``: those of the tables that it was made from."""

    dataset: str
    found_in: str
    trace: Trace
    versions: dict[str, str]
    behind: dict[str, str]
    calls: list[Call] = field(default_factory=list)
    releases: list[InRelease] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        found = self.trace
        return {
            "dataset": self.dataset,
            "reference": asdict(found.reference),
            "found_in": self.found_in,
            "stands": [
                {"stage": stage, "data_version": self.versions[stage], "rows": rows}
                for stage, rows in found.stands.items()
            ],
            "calls": [asdict(call) for call in self.calls],
            "plan": found.behind.plan,
            "seeds": found.behind.parents,
            "source_rows": found.behind.sources,
            "named_in_detail": found.behind.named,
            "made_from": self.behind,
            "written_from_it": {"plan": found.written.plan, **found.written.rows},
            "releases": [asdict(one) for one in self.releases],
            "notes": self.notes,
        }


class Auditor:
    """Traces rows of one dataset; made by ``auditor``."""

    def __init__(self, versions: Versions, releases: ReleaseStore, ledger: Ledger | None) -> None:
        self._versions, self._releases, self._ledger = versions, releases, ledger

    def trace(self, text: str) -> Audit:
        """Everything about what ``text`` names: see ``lineage.Reference``; ids may be cut.

        Raises:
            UsageError: nothing, or more than one thing, has that name.
        """
        found_in, stages, reference = self._find(text)
        release = found_in.partition(" ")[2] if found_in.startswith("release ") else None
        tables = self._versions.tables(stages, release=release)
        behind = self._behind(stages, lineage.standing(tables, reference))
        found = lineage.trace(tables, reference, behind={**tables, **self._versions.tables(behind)})
        _few_enough(found)
        audit = Audit(self._versions.dataset, found_in, found, stages, behind)
        audit.calls = list(self._calls(audit))
        audit.releases = list(self._holding(audit))
        return audit

    def _find(self, text: str) -> tuple[str, dict[str, str], Reference]:
        """Where the one thing of that name is: what stands now comes before releases."""
        for look in (lineage.find, self._find_unjudged):
            for name, stages in self._versions.sets():
                release = name.partition(" ")[2] if name.startswith("release ") else None
                found = look(self._versions.tables(stages, release=release), text)
                if len(found) > 1:
                    several = ", ".join(f"{one.kind} {one.id}" for one in found[:6])
                    raise UsageError(
                        f"{shown(text)} is the beginning of more than one name",
                        where=self._versions.dataset,
                        fix=f"give more of it: {several}",
                    )
                if found:
                    return name, stages, found[0]
        raise UsageError(
            f"nothing is named {shown(text)}",
            where=self._versions.dataset,
            fix="a record id or the beginning of one, SOURCE:ROW, CELL/ORDINAL of the plan, "
            "REQUEST_ID or REQUEST_ID/ITEM; to look for text: synth sql",
        )

    def _find_unjudged(self, tables: lineage.Tables, text: str) -> list[Reference]:
        task = _task(self._versions, self._releases)
        if task is None:
            return []
        return lineage.find_unjudged(tables, text, payload=task[0], kind=task[1])

    def _behind(
        self, stages: Mapping[str, str], stands: Mapping[str, Sequence[Row]]
    ) -> dict[str, str]:
        anchors = [stage for stage in _ANCHORS if stage in stands] or list(stands)[:1]
        found: dict[str, str] = {}
        for stage in reversed(anchors):
            found |= self._versions.behind(stage, stages[stage])
        return found

    def _calls(self, audit: Audit) -> Iterator[Call]:
        for request_id in audit.trace.request_ids:
            if request_id.startswith("import:"):
                continue
            call = self._ledger.call(request_id) if self._ledger else None
            if call is not None:
                yield answered(call)
                continue
            failed = self._ledger.failures(request_id) if self._ledger else []
            yield from map(given_up, failed)
            if not failed:
                audit.notes.append(
                    f"call {request_id} is not in this ledger: pruned, or bought with another"
                )

    def _holding(self, audit: Audit) -> Iterator[InRelease]:
        """Releases whose files hold the row, or rows whose prompt showed it."""
        ids = audit.trace.record_ids
        if not ids:
            return
        descendants = lineage.ids_in(
            {s: r for s, r in audit.trace.written.rows.items() if s != "rejects"}, "record_id"
        )
        dataset = self._versions.dataset
        current = self._releases.current(dataset)
        for version in reversed(self._releases.versions(dataset)):
            try:
                found = _rows_of_release(
                    self._releases.splits(self._releases.folder(dataset, version)), ids, descendants
                )
            except (pl.exceptions.PolarsError, OSError) as error:
                audit.notes.append(f"release {version} cannot be read: {shown(str(error))}")
                continue
            splits = [split for split, rows in found.items() if set(rows) & set(ids)]
            written = [one for rows in found.values() for one in rows if one not in ids]
            if splits or written:
                yield InRelease(version, version == current, splits, written)


@contextmanager
def auditor(home: Home, instance: dg.DagsterInstance, dataset: str) -> Iterator[Auditor]:
    """An auditor of a dataset that is declared, or has left something in the home.

    Raises:
        UsageError: there is none of that name.
    """
    if dataset not in datasets_of(home):
        dataset_named(dataset, defs_roots())
    versions, releases = Versions(home, instance, dataset), ReleaseStore(home.releases)
    try:
        ledger = Ledger.open(ledger_location(home.ledger), create=False)
    except NoLedger:
        yield Auditor(versions, releases, None)
        return
    with ledger:
        yield Auditor(versions, releases, ledger)


def _rows_of_release(
    splits: Mapping[str, pl.LazyFrame], ids: Sequence[str], descendants: Sequence[str]
) -> dict[str, list[str]]:
    """Record ids per split: of ``ids``, of ``descendants``, of rows whose seeds are ``ids``."""
    queries = {}
    for split, rows in splits.items():
        fits = pl.col("record_id").is_in([*ids, *descendants])
        if "seed_ids" in rows.collect_schema():
            shown_it = pl.col("seed_ids").list.set_intersection(list(ids)).list.len() > 0
            fits = fits | shown_it.fill_null(False)
        queries[split] = rows.filter(fits).select("record_id")
    frames = pl.collect_all(list(queries.values()))
    return {
        split: frame["record_id"].to_list() for split, frame in zip(queries, frames, strict=True)
    }


def _few_enough(found: Trace) -> None:
    for stage, rows in found.stands.items():
        if found.reference.kind == "record" and len(rows) > MOST_ROWS:
            items = ", ".join(f"{row['request_id']}/{row['item']}" for row in rows[:3])
            raise UsageError(
                f"{len(rows):,} rows of {stage} have this id: their text is the same, or none",
                fix=f"name one of them as REQUEST_ID/ITEM: {items}, ...",
            )


def _task(versions: Versions, releases: ReleaseStore) -> tuple[list[str], str] | None:
    """The payload columns and the kind of task: as declared now, else as last released."""
    declared = discover(defs_roots()).datasets.get(versions.dataset)
    if declared is not None:
        task = task_for(declared.spec)
        return list(task.payload), task.kind
    for version in versions.released:
        told = releases.manifest(versions.dataset, version).get("task") or {}
        if {"payload", "kind"} <= told.keys():
            return list(told["payload"]), str(told["kind"])
    return None
