"""A code location that was loaded once, its refresh sensor, and workers that read the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from synth_assets.assets.workbench import Workbench
from synth_assets.run import Session
from synth_assets.settings import defs_roots
from synth_assets.spec.load import dataset_named


def location() -> dg.Definitions:
    """The code location as Dagster loads it, read anew."""
    from synth_assets.definitions import defs

    return defs() if not isinstance(defs, dg.Definitions) else defs


@dataclass(frozen=True)
class Looked:
    """One tick: what it asked for, and what it said when it asked for nothing."""

    requests: list[dg.RunRequest]
    message: str

    @property
    def stages(self) -> dict[str, list[str]]:
        """Dataset -> stages, in the order asked for."""
        return {
            request.tags["synth/dataset"]: [key.path[-1] for key in request.asset_selection or []]
            for request in self.requests
        }


@dataclass
class Automation:
    """Ticks of the sensor as its daemon makes them, by hand: the cursor is carried over."""

    instance: dg.DagsterInstance
    cursor: str | None = None
    repository: Any = field(default_factory=lambda: location().get_repository_def())

    def tick(self) -> Looked:
        sensor = self.repository.get_sensor_def("refresh")
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=self.repository,
            cursor=self.cursor,
            resources={"workbench": Workbench()},
        ) as context:
            found = sensor.evaluate_tick(context)
        self.cursor = found.cursor
        return Looked(list(found.run_requests or []), found.skip_message or "")

    def work(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Executes a requested run as a worker does: with a declaration read from disk anew."""
        dataset = dataset_named(request.tags["synth/dataset"], defs_roots())
        session = Session.open(dataset, self.instance, Workbench())
        return session.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=list(request.asset_selection or []),
            tags=dict(request.tags),
            raise_on_error=False,
        )

    def to_rest(self, dataset: str = "tickets", most: int = 12) -> list[list[str]]:
        """Ticks and runs until a tick asks for nothing: the waves of ``dataset``, in order."""
        waves = []
        for _ in range(most):
            looked = self.tick()
            if not looked.requests:
                return waves
            for request in looked.requests:
                self.work(request)
            waves.append(looked.stages.get(dataset, []))
        raise AssertionError(f"not at rest after {most} ticks: {waves}")
