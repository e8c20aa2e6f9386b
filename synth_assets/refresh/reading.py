"""How datasets stand, read again only when something has been recorded since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import dagster as dg

from synth_assets.assets.stages import STAGES
from synth_assets.spec.load import Dataset
from synth_assets.status import CheckStatus, Records, StageStatus, dataset_status
from synth_assets.store.content import ContentStore

Standing = tuple[list[StageStatus], list[CheckStatus]]


@dataclass(frozen=True)
class Reading:
    """Records, and what they say of each dataset.

    ``last_event``: the newest event of the log they were read from.
    """

    last_event: int | None
    records: Records
    _standings: dict[str, Standing] = field(default_factory=dict)

    def standing(self, dataset: Dataset, store: ContentStore) -> Standing:
        """Stages and checks. What was read before holds as long as its tables are in the store."""
        known = self._standings.get(dataset.name)
        if known is None or not _all_stored(dataset, known[0], store):
            records = self.records
            statuses = dataset_status(dataset, records.instance, records.graph, store, records)
            known = self._standings[dataset.name] = (statuses, records.checks_of(dataset))
        return known


def read_again(
    last: Reading | None, instance: dg.DagsterInstance, graph: Any, datasets: Sequence[Dataset]
) -> Reading:
    """``last``, if it still holds: no event since, and the same graph."""
    newest = instance.event_log_storage.get_maximum_record_id()
    if last is not None and last.last_event == newest and last.records.graph is graph:
        return last
    return Reading(newest, Records.read(instance, graph, datasets))


def _all_stored(dataset: Dataset, statuses: Sequence[StageStatus], store: ContentStore) -> bool:
    return all(
        s.data_version is None or store.path(dataset.name, s.stage, s.data_version).exists()
        for s in statuses
        if s.stage in STAGES
    )


@lru_cache(maxsize=4)
def shapes(graph: Any) -> dict[str, frozenset[Any]]:
    """Stages, what they depend on and their checks, by dataset."""
    found: dict[str, set[Any]] = {}
    for node in graph.asset_nodes:
        shape = (node.key, frozenset(node.parent_keys), frozenset(node.check_keys))
        found.setdefault(node.key.path[0], set()).add(shape)
    return {name: frozenset(shape) for name, shape in found.items()}
