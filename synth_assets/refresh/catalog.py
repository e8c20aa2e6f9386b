"""Datasets as they are on disk now. A folder is read again only when one of its files changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.workbench import Workbench
from synth_assets.refresh.files import Seen, stats
from synth_assets.spec.load import DEFS_FILE, Dataset, Discovery, discover, load_dataset
from synth_assets.store.io_manager import IO_MANAGER_KEY, ContentIOManager

SEEDS_FILE = "seeds.jsonl"


class Catalog:
    """Lives as long as its process; a code location keeps one."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Seen, Dataset]] = {}
        self._definitions: dict[Path, tuple[Dataset, dg.Definitions]] = {}
        self._graph: tuple[tuple[Dataset, ...], Any] = ((), None)

    def read(self, roots: Sequence[Path]) -> Discovery:
        """Every dataset below ``roots``, and what is wrong with the broken ones."""
        return discover(roots, self._load)

    def graph(self, datasets: Sequence[Dataset]) -> Any:
        """The asset graph of ``datasets``; the same object as long as they are the same."""
        wanted = tuple(datasets)
        known, graph = self._graph
        if known == wanted:
            return graph
        parts = [self._definitions_of(dataset) for dataset in wanted]
        merged = dg.Definitions.merge(*parts, _placeholders())
        graph = merged.get_repository_def().asset_graph
        self._graph = (wanted, graph)
        return graph

    def _load(self, folder: Path) -> Dataset | None:
        """Raises ``SpecError``. A broken folder is read every time: any file may mend it."""
        known = self._known.get(folder)
        if known is not None and stats(files_of(known[1])).mark == known[0].mark:
            return known[1]
        self._known.pop(folder, None)
        began = time.time()
        dataset = load_dataset(folder)
        if dataset is not None:
            seen = stats(files_of(dataset))
            if seen.settled(began):  # which what changed since then is not
                self._known[folder] = (seen, dataset)
        return dataset

    def _definitions_of(self, dataset: Dataset) -> dg.Definitions:
        known = self._definitions.get(dataset.folder)
        if known is None or known[0] != dataset:
            known = (dataset, dataset_definitions(dataset))
            self._definitions[dataset.folder] = known
        return known[1]


def files_of(dataset: Dataset) -> list[Path]:
    """The files that declare a dataset, those that might, too."""
    seeds = dataset.folder / (dataset.spec.seeds.file or SEEDS_FILE)
    return [dataset.folder / DEFS_FILE, dataset.prompt.file, seeds]


@lru_cache(maxsize=1)
def _placeholders() -> dg.Definitions:
    """Resources, so that a graph can be made of assets that nobody is going to run here."""
    nowhere = Workbench()
    return dg.Definitions(
        resources={
            IO_MANAGER_KEY: ContentIOManager(nowhere.home),
            "workbench": nowhere,
        }
    )
