"""The code location: every dataset of the project and of ``SYNTH_DEFS``, and what they run on."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from synth_assets.assets.batches import batch_sensor
from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.workbench import Workbench
from synth_assets.audit.events import lineage_sensors
from synth_assets.components.synthetic_dataset import broken_definitions
from synth_assets.refresh.sensor import refresh_sensor
from synth_assets.settings import PROJECT_DEFS, PROJECT_ROOT, defs_roots, home
from synth_assets.spec.load import Discovery, discover
from synth_assets.store.io_manager import IO_MANAGER_KEY, ContentIOManager


@dg.definitions
def defs() -> dg.Definitions:
    found = discover(defs_roots())
    healthy = list(found.datasets.values())
    sensors = dg.Definitions(
        sensors=[batch_sensor(healthy), refresh_sensor(healthy), *lineage_sensors()]
    )
    return dg.Definitions.merge(*_declared(found), _runtime(), sensors)


def _runtime() -> dg.Definitions:
    """Resources once, here; steps run in process, which is the fastest on one machine."""
    where = home()
    return dg.Definitions(
        executor=dg.in_process_executor,
        resources={
            IO_MANAGER_KEY: ContentIOManager(where),
            "workbench": Workbench(where),
        },
    )


def _declared(found: Discovery) -> list[dg.Definitions]:
    """Definitions of the project's folder by Dagster's own loader, of outside folders by ours.

    Dagster's loader stops at the first file it cannot parse; then ours, which goes on, takes over
    for both.
    """
    readable = all(broken.parsed for broken in found.broken)
    inside = [dg.load_from_defs_folder(path_within_project=PROJECT_ROOT)] if readable else []

    def ours(folder: Path) -> bool:
        return not (readable and folder.is_relative_to(PROJECT_DEFS))

    healthy = [d for d in found.datasets.values() if ours(d.folder)]
    broken = [b for b in found.broken if ours(b.folder)]
    return [
        *inside,
        *(dataset_definitions(dataset) for dataset in healthy),
        *(broken_definitions(b.name, b.error) for b in broken),
    ]
