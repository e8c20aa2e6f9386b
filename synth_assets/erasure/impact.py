"""What descends from a person's rows, in a whole home: tables, calls, releases, exports.

Nothing is changed here. ``synth impact`` shows what is found, ``synth erase`` deletes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import polars as pl

from synth_assets.assets.provenance import LEDGER_URL_ENV
from synth_assets.assets.source import reading_of
from synth_assets.assets.stages import STAGES
from synth_assets.errors import SynthError
from synth_assets.lifecycle.descent import (
    FOUND,
    Known,
    Table,
    descendants,
    descent,
    identities,
    normalised,
    prompt_digest,
)
from synth_assets.llm.ledger.erase import Erased, Kept, count_kept, kept_requests
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.settings import Home
from synth_assets.spec.load import Dataset
from synth_assets.store.content import TABLE
from synth_assets.store.releases import MANIFEST, ReleaseStore
from synth_assets.tasks import task_for
from synth_assets.upkeep.home import latest_tables

# Stages in which a row is not yet, or no more, told apart by what it says.
LAST = len(STAGES)
SPLITS = ("train", "validation", "eval")


@dataclass(frozen=True)
class ReleaseImpact:
    """A release that holds descendants. ``rows``: how many, by split; ``texts``: other files."""

    version: str
    current: bool
    rows: Mapping[str, int]
    texts: tuple[str, ...] = ()
    damaged: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "current": self.current,
            "rows": dict(self.rows),
            "files": list(self.texts),
            "damaged": self.damaged,
        }


@dataclass
class Impact:
    """``tables``: see ``descent.FOUND``, of all datasets; ``latest``: versions that now stand."""

    dataset: str
    known: Known
    tables: pl.DataFrame = field(default_factory=FOUND.to_frame)
    latest: Mapping[str, str] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    kept: Erased = field(default_factory=Erased)
    callers: set[str] = field(default_factory=set)
    releases: list[ReleaseImpact] = field(default_factory=list)
    exports: list[Path] = field(default_factory=list)

    @property
    def own(self) -> pl.DataFrame:
        """The tables of the dataset itself."""
        return self.tables.filter(pl.col("dataset") == self.dataset)

    @property
    def others(self) -> dict[str, dict[str, int]]:
        """Other dataset -> stage -> most rows that one version of it holds."""
        rest = self.tables.filter(pl.col("dataset") != self.dataset)
        found: dict[str, dict[str, int]] = {name: {} for name in sorted(self.callers)}
        for name, stage, rows in rest.group_by("dataset", "stage").agg(pl.col("rows").max()).rows():
            found.setdefault(name, {})[stage] = rows
        return {name: dict(sorted(found[name].items(), key=_place)) for name in sorted(found)}

    def stages(self) -> list[dict[str, Any]]:
        """Per stage: rows that now stand, tables that hold any, and who they are."""
        told = []
        for stage, (tables, most) in sorted(self._by_stage().items(), key=_place):
            now = self.own.filter(
                (pl.col("stage") == stage) & (pl.col("version") == self.latest.get(stage, ""))
            )
            ids = now["ids"][0].to_list() if now.height else []
            told.append(
                {
                    "stage": stage,
                    "rows": int(now["rows"].sum()),
                    "tables": tables,
                    "most_rows": most,
                    "ids": ids,
                }
            )
        return told

    @property
    def nothing(self) -> bool:
        return not (self.own.height or self.calls or self.releases)

    def _by_stage(self) -> dict[str, tuple[int, int]]:
        grouped = self.own.group_by("stage").agg(pl.len(), pl.col("rows").max().alias("most"))
        return {stage: (int(tables), int(most)) for stage, tables, most in grouped.rows()}


def impact(
    dataset: Dataset,
    declared: Mapping[str, Dataset],
    home: Home,
    instance: dg.DagsterInstance,
    known: Known,
) -> Impact:
    """All that descends from what ``known`` names.

    Raises:
        SynthError: a table or the ledger cannot be read.
    """
    found = Impact(dataset.name, known)
    found.tables = descent(_stored(home, dataset, declared), known, dataset=dataset.name)
    latest = latest_tables(instance, [dataset.name])
    found.latest = {stage: version for _, stage, version in latest}
    with opened_ledger(home) as ledger:
        if ledger is not None:
            _search_ledger(ledger, found)
    if found.calls - known.calls:
        # Calls of which no plan is kept: the tables that were made of them.
        known.calls |= found.calls
        found.tables = descent(_stored(home, dataset, declared), known, dataset=dataset.name)
    found.releases = list(_releases(home, dataset, known))
    found.exports = _exports(home, dataset.name, [one.version for one in found.releases])
    return found


def imported_texts(dataset: Dataset, home: Home, found: Impact) -> frozenset[str]:
    """The normalised texts of imported rows that descend (they name one as a parent)."""
    text, texts = task_for(dataset.spec).text, []
    for version, ids in (
        found.own.filter(pl.col("stage") == "imported").select("version", "ids").rows()
    ):
        rows = read_table(home.store / dataset.name / "imported" / f"{version}{TABLE}")
        texts += rows.filter(identities(rows).is_in(ids))[text].drop_nulls().to_list()
    return normalised(texts)


@contextmanager
def opened_ledger(home: Home) -> Iterator[Ledger | None]:
    """The ledger; None when there is none yet."""
    location = os.environ.get(LEDGER_URL_ENV, "").strip() or home.ledger
    if isinstance(location, Path) and not location.exists():
        yield None
        return
    with Ledger.open(location) as ledger:
        yield ledger


def versions_of(home: Home, dataset: str, stage: str) -> list[Path]:
    """The stored tables of a stage, the newest first."""
    folder = home.store / dataset / stage
    found = folder.glob(f"[!.]*{TABLE}") if folder.is_dir() else ()
    return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))


def read_table(path: Path) -> pl.DataFrame:
    """A stored or released table.

    Raises:
        SynthError: it cannot be read, so that nobody knows what it holds.
    """
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise SynthError(
            "the table cannot be read, so what it holds is not known",
            where=str(path),
            fix="remove it if it is broken (synth verify), then run this again",
        ) from error


def _place(item: tuple[str, Any]) -> int:
    return list(STAGES).index(item[0]) if item[0] in STAGES else LAST


def _stored(home: Home, dataset: Dataset, declared: Mapping[str, Dataset]) -> Iterator[Table]:
    """Every stored table, stage by stage; the dataset's own before those of others."""
    root = home.store
    names = [p.name for p in sorted(root.iterdir()) if p.is_dir()] if root.is_dir() else []
    for name in sorted(names, key=lambda one: (one != dataset.name, one)):
        stages = [p.name for p in (root / name).iterdir() if p.is_dir() and p.name[0] != "."]
        reading = reading_of(declared[name]) if name in declared else None
        for stage in sorted(stages, key=lambda one: (_place((one, None)), one)):
            for path in versions_of(home, name, stage):
                version = path.name.removesuffix(TABLE)
                yield Table(name, stage, version, reading, read_table(path))


def _search_ledger(ledger: Ledger, found: Impact) -> None:
    """Requests whose prompt shows a row, and those that tables and plans led to."""
    known = found.known
    for page in kept_requests(ledger):
        shown = known.shown_by(pl.Series("text", ["\n".join(k.texts) for k in page], pl.String))
        inside = known.holds(pl.Series("text", ["\n".join(k.texts) for k in page], pl.String))
        for kept, short, long in zip(page, shown, inside, strict=True):
            # What is short stands in many a prompt by coincidence: it counts in our own only.
            if long or (short and kept.dataset == found.dataset) or _is_known(kept, known):
                found.calls.add(kept.request_id)
                if kept.dataset != found.dataset:
                    found.callers.add(kept.dataset)
    found.kept = count_kept(ledger, found.calls | known.calls)
    found.calls |= known.calls


def _is_known(kept: Kept, known: Known) -> bool:
    return kept.request_id in known.calls or any(
        prompt_digest(text) in known.prompts for text in kept.texts
    )


def _releases(home: Home, dataset: Dataset, known: Known) -> Iterator[ReleaseImpact]:
    store = ReleaseStore(home.releases)
    for version in store.versions(dataset.name):
        folder = store.folder(dataset.name, version)
        rows: dict[str, int] = {}
        texts: list[str] = []
        damaged = False
        for path in sorted(folder.iterdir()):
            try:
                if path.suffix == TABLE:
                    frame = read_table(path)
                    rows[path.stem] = int(descendants(frame, known, None).sum())
                elif known.holds(pl.Series("text", _texts_in(path), pl.String)).any():
                    texts.append(path.name)
            except SynthError:
                damaged = True
        rows = {split: count for split, count in rows.items() if count}
        if rows or texts or damaged:
            current = store.current(dataset.name) == version
            yield ReleaseImpact(version, current, rows, tuple(texts), damaged)


def _texts_in(path: Path) -> list[str]:
    """The texts of a file: every string of a JSON document, else the file as it is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SynthError(f"cannot be read: {error.strerror}", where=str(path)) from error
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    found = [content.decode("utf-8", "replace")]
    if path.name == MANIFEST or path.suffix == ".jsonl":
        for line in lines:
            try:
                found += _strings(orjson.loads(line))
            except ValueError:
                continue
    return found


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _exports(home: Home, dataset: str, versions: Sequence[str]) -> list[Path]:
    """Exports in the home that were made of releases which hold descendants, or are gone."""
    root = home.root / "exports" / dataset
    if not root.is_dir():
        return []
    clean = set(ReleaseStore(home.releases).versions(dataset)) - set(versions)
    return sorted(path for path in root.iterdir() if path.name not in clean)
