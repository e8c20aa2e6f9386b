"""Which tables of a dataset there are, and which others each was made from.

Three accounts tell: Dagster's records of the latest materialisations, the manifests of releases,
and, only when those two do not know a table, Dagster's older records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import dagster as dg
import polars as pl

from synth_assets.assets.stages import SOURCE, STAGES
from synth_assets.errors import SynthError
from synth_assets.settings import Home
from synth_assets.store.content import TABLE, ContentStore
from synth_assets.store.releases import ReleaseStore

LATEST = "latest"
_VERSION, _INPUT = "dagster/data_version", "dagster/input_data_version"
_HISTORY = 500
_NO_ROWS = frozenset({"contribution", "release"})
# Stages whose rows are examples, calls or source rows: what can be traced.
TRACED = tuple(stage for stage in STAGES if stage not in _NO_ROWS)


class Versions:
    """The tables of one dataset: stage -> data version, as they stand and in each release."""

    def __init__(self, home: Home, instance: dg.DagsterInstance, dataset: str) -> None:
        self.dataset = dataset
        self._store = ContentStore(home.store)
        self._releases = ReleaseStore(home.releases)
        self._instance = instance
        self._inputs: dict[tuple[str, str], dict[str, str]] = {}
        self.latest = self._read_latest()

    @cached_property
    def released(self) -> dict[str, dict[str, str]]:
        """Release -> stage -> data version, the newest release first; damaged ones left out."""
        found = {}
        for version in reversed(self._releases.versions(self.dataset)):
            try:
                stages = self._releases.manifest(self.dataset, version)["stages"]
                found[version] = {str(s): str(one["data_version"]) for s, one in stages.items()}
            except (SynthError, KeyError, TypeError, AttributeError):
                continue
        return found

    def sets(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Sets of tables to look in, by name: what stands now, releases, what else is stored."""
        yield LATEST, self.latest
        yield from ((f"release {name}", stages) for name, stages in self.released.items())
        known = {
            pair for stages in (self.latest, *self.released.values()) for pair in stages.items()
        }
        others = {
            stage: [v for v in self._stored(stage) if (stage, v) not in known] for stage in TRACED
        }
        for at in range(max(map(len, others.values()), default=0)):
            yield "an older table", {s: found[at] for s, found in others.items() if at < len(found)}

    def behind(self, stage: str, version: str) -> dict[str, str]:
        """The tables that a table was made from, all the way back, and itself."""
        found = {stage: version}
        todo = [(stage, version)]
        while todo:
            for parent, made_of in self._made_from(*todo.pop()).items():
                if parent not in found:
                    found[parent] = made_of
                    todo.append((parent, made_of))
        return found

    def tables(
        self, stages: Mapping[str, str], *, release: str | None = None
    ) -> dict[str, pl.LazyFrame]:
        """Scans of those that are there, in the order of the graph.

        ``release``: its own files stand in for stored tables that are gone.
        """
        found = {}
        for stage in TRACED:
            if stage not in stages:
                continue
            path = self.path(stage, stages[stage])
            if not path.is_file() and release is not None:
                path = self._releases.folder(self.dataset, release) / f"{stage}{TABLE}"
            if path.is_file():
                found[stage] = pl.scan_parquet(path, glob=False)
        return found

    def path(self, stage: str, version: str) -> Path:
        return self._store.path(self.dataset, stage, version)

    def _stored(self, stage: str) -> list[str]:
        """Every stored version of a stage, the newest first."""
        folder = self._store.root / self.dataset / stage
        paths = sorted(folder.glob(f"[!.]*{TABLE}"), key=lambda p: (-p.stat().st_mtime_ns, p.name))
        return [path.name.removesuffix(TABLE) for path in paths]

    def _read_latest(self) -> dict[str, str]:
        keys = [dg.AssetKey([self.dataset, stage]) for stage in STAGES]
        latest = {}
        for record in self._instance.get_asset_records(keys):
            event = record.asset_entry.last_materialization
            made = event.asset_materialization if event else None
            if made is not None and (version := self._note(made)) is not None:
                latest[made.asset_key.path[-1]] = version
        return {stage: latest[stage] for stage in STAGES if stage in latest}

    def _note(self, made: dg.AssetMaterialization) -> str | None:
        """Remembers what a materialisation was made from; its data version."""
        tags = made.tags or {}
        version, stage = tags.get(_VERSION), made.asset_key.path[-1]
        if version is not None and stage in STAGES:
            inputs = {p: tags.get(f"{_INPUT}/{self.dataset}/{p}") for p in STAGES[stage].parents}
            seen = {parent: v for parent, v in inputs.items() if v and parent != SOURCE}
            self._inputs.setdefault((stage, version), seen)
        return version

    def _made_from(self, stage: str, version: str) -> dict[str, str]:
        if (stage, version) not in self._inputs:
            for stages in self.released.values():
                if stages.get(stage) == version:
                    parents = STAGES[stage].parents
                    return {p: stages[p] for p in parents if p in stages}
            self._read_history(stage)
        return self._inputs.setdefault((stage, version), {})

    def _read_history(self, stage: str) -> None:
        key = dg.AssetKey([self.dataset, stage])
        for record in self._instance.fetch_materializations(key, limit=_HISTORY).records:
            if record.asset_materialization is not None:
                self._note(record.asset_materialization)
