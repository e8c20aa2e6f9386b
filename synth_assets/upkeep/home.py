"""A home as a whole: verified against every hash, and rid of what nothing needs.

What the store's own modules cannot know comes together here: the datasets that are declared, what
Dagster says is their latest, and whether a run is under way.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dagster as dg
from filelock import FileLock, Timeout

from synth_assets.assets.stages import STAGES
from synth_assets.errors import UsageError, shown
from synth_assets.llm.ledger.ledger import Ledger, ledger_location
from synth_assets.llm.ledger.rows import NoLedger
from synth_assets.llm.ledger.verify import verify_ledger
from synth_assets.settings import Home
from synth_assets.sources.landing import dataset_of
from synth_assets.spec.load import Discovery
from synth_assets.store.content import ContentStore
from synth_assets.store.erasures import logged
from synth_assets.store.garbage import (
    Garbage,
    TableName,
    abandoned_landing,
    abandoned_releases,
    find_garbage,
    remove,
)
from synth_assets.store.releases import ReleaseStore
from synth_assets.store.verify import (
    Problem,
    missing_tables,
    tables_of_releases,
    verify_pointer,
    verify_release,
    verify_store,
)
from synth_assets.store.withdrawn import erased_tables, verify_erasures
from synth_assets.underway import run_under_way


@dataclass
class Verified:
    """What was looked at and what is wrong with it."""

    releases: int = 0
    tables: int = 0
    calls: int = 0
    problems: list[Problem] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)


@dataclass
class Collected:
    """``found``: what may go; ``removed``: what went; ``refused``: dataset -> why it was left;
    ``skipped``: those that nobody asked for, which is no failure; ``freed``: those of which nothing
    is kept, not even releases."""

    found: list[Garbage] = field(default_factory=list)
    removed: list[Garbage] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)


def datasets_of(home: Home) -> list[str]:
    """Every dataset that has something in the store or among the releases."""
    roots = [home.store, home.releases]
    roots += [home.root / name for name in ("landing", "snapshots", "exports")]
    found = {p.name for root in roots if root.is_dir() for p in root.iterdir() if p.is_dir()}
    found |= set(logged(home.root))
    return sorted({dataset_of(name) for name in found if not name.startswith(".")})


def past_names(home: Home, found: Discovery) -> list[str]:
    """Datasets that have something here and no folder: removed ones, and former names."""
    known = {*found.datasets, *(broken.name for broken in found.broken)}
    return [name for name in datasets_of(home) if name not in known]


def verify_home(
    home: Home,
    *,
    declared: Collection[str],
    instance: dg.DagsterInstance | None,
    dataset: str | None = None,
    release: str | None = None,
) -> Verified:
    """Releases (of one dataset, or one release), and the store unless ``instance`` is None.

    Raises:
        UsageError: no such dataset or release.
    """
    releases, store = ReleaseStore(home.releases), ContentStore(home.store)
    names = _chosen(home, declared, dataset)
    found = Verified()
    erased: set[TableName] = set()
    for name in names:
        only = None if release is None else releases.find(name, release)
        for version in releases.versions(name):
            if only in (None, version):
                found.releases += 1
                found.problems += verify_release(releases.folder(name, version))
        found.problems += verify_pointer(releases, name)
        found.problems += verify_erasures(home.root, home.releases, name)
        erased |= erased_tables(home.root, name)
    if instance is not None:
        stored = verify_store(store, names)
        found.tables, found.healed = stored.tables, stored.healed
        needed = latest_tables(instance, [name for name in names if name in declared])
        needed |= tables_of_releases(releases, names)
        needed = {table: who for table, who in needed.items() if table not in erased}
        found.problems += stored.problems + missing_tables(store, needed)
        found.problems += vanished_releases(instance, releases, names)
    return found


def verify_answers(home: Home, found: Verified, *, dataset: str | None = None) -> None:
    """Add the ledger's calls (those that ``dataset`` asked first) to what was looked at.

    Raises:
        LedgerError: it cannot be read.
    """
    try:
        with Ledger.open(ledger_location(home.ledger), create=False) as ledger:
            looked = verify_ledger(ledger, dataset=dataset)
            place = ledger.backend.place
    except NoLedger:
        return
    found.calls = looked.calls
    found.problems += [
        Problem(f"{place} call {one.request_id}", f"the {one.part} as it was kept", "another")
        for one in looked.damaged
    ]


def collect_garbage(
    home: Home,
    found: Discovery,
    instance: dg.DagsterInstance,
    *,
    dataset: str | None = None,
    delete: bool = False,
    keep_last: int = 0,
    orphans: bool = False,
    releases: bool = False,
) -> Collected:
    """List what may go, and with ``delete`` let it go; dataset by dataset.

    A dataset with a run under way is refused, and so is one that Dagster's instance knows nothing
    of though it has tables: another ``DAGSTER_HOME`` may be using them. Datasets that are not
    declared are left alone unless ``orphans``, and their releases, with the tables of these, unless
    ``releases``; broken ones are always left alone.

    Raises:
        UsageError: no such dataset.
    """
    collected = Collected()
    broken = {b.name for b in found.broken} - found.datasets.keys()
    for name in _chosen(home, {*found.datasets, *broken}, dataset):
        declared = name in found.datasets
        if name in broken:
            collected.refused[name] = "its declaration is broken (synth check)"
            continue
        if not declared and not orphans:
            (collected.refused if dataset else collected.skipped)[name] = _ORPHAN
            continue
        with _turn(home, name) as ours:
            why = "a run is under way" if not ours else run_under_way(instance, name)
            needed = latest_tables(instance, [name]) if declared else {}
            if declared and not why and not needed and (home.store / name).is_dir():
                why = f"Dagster's instance knows nothing of it ({instance.root_directory})"
            if why:
                collected.refused[name] = why
                continue
            listed_at = time.time()
            free = releases and not declared
            if not free:
                needed |= tables_of_releases(ReleaseStore(home.releases), [name])
            garbage = find_garbage(home, name, needed=needed, keep_last=keep_last)
            if not declared:
                garbage += abandoned_landing(home, name)
            if free:
                garbage += abandoned_releases(home, name)
                collected.freed.append(name)
            collected.found += garbage
            if delete:
                collected.removed += remove(home, garbage, listed_at=listed_at)
    return collected


_ORPHAN = "it is declared nowhere that this command looks (SYNTH_DEFS); --orphans includes it"


def latest_tables(instance: dg.DagsterInstance, datasets: Collection[str]) -> dict[TableName, str]:
    """(dataset, stage, data version) of every latest materialisation -> who refers to it."""
    keys = [dg.AssetKey([dataset, stage]) for dataset in datasets for stage in STAGES]
    needed = {}
    for record in instance.get_asset_records(keys):
        event = record.asset_entry.last_materialization
        made = event.asset_materialization if event else None
        version = (made.tags or {}).get("dagster/data_version") if made else None
        if version is not None:
            dataset, stage = record.asset_entry.asset_key.path
            needed[dataset, stage, version] = "the latest materialisation"
    return needed


def vanished_releases(
    instance: dg.DagsterInstance, releases: ReleaseStore, datasets: Collection[str]
) -> list[Problem]:
    """Releases that a latest materialisation names, and that are neither there nor withdrawn."""
    problems = []
    for record in instance.get_asset_records([dg.AssetKey([name, "release"]) for name in datasets]):
        dataset = record.asset_entry.asset_key.path[0]
        event = record.asset_entry.last_materialization
        made = event.asset_materialization if event else None
        told = made.metadata.get("version") if made else None
        known = {*releases.versions(dataset), *releases.withdrawn(dataset)}
        if told is not None and str(told.value) not in known:
            folder = releases.folder(dataset, str(told.value))
            problems.append(Problem(str(folder), "the release that was made last", "nothing"))
    return problems


@contextmanager
def _turn(home: Home, dataset: str) -> Iterator[bool]:
    """The dataset's lock, which ``synth run`` holds while it works; False: somebody has it."""
    path = home.root / "locks" / f"{dataset}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _chosen(home: Home, declared: Collection[str], dataset: str | None) -> list[str]:
    """The datasets to look at: the one named, or all that have anything here."""
    names = datasets_of(home)
    if dataset is None:
        return names
    if dataset not in names and dataset not in declared:
        known = ", ".join(sorted({*names, *declared}))
        raise UsageError(f"no dataset {shown(dataset)}", fix=f"one of: {known or 'none found'}")
    return [dataset]
