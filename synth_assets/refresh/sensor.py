"""Dagster's sensor that refreshes datasets."""

# No `from __future__ import annotations`: Dagster reads the annotations of the function.

import time
from collections.abc import Sequence

import dagster as dg

from synth_assets.assets.generating import POOL
from synth_assets.assets.stages import key, stages_of
from synth_assets.assets.workbench import Workbench
from synth_assets.refresh.memory import read, written
from synth_assets.refresh.tick import Watch, tick
from synth_assets.settings import defs_roots, refresh_interval_s
from synth_assets.spec.load import Dataset

NAME = "refresh"


def refresh_sensor(datasets: Sequence[Dataset]) -> dg.SensorDefinition:
    """``datasets``: those that the code location is made of; the sensor reads them anew itself."""
    watch = Watch()

    @dg.sensor(
        name=NAME,
        description="Makes again what is out of sync, as each dataset's `refresh` section allows.",
        minimum_interval_seconds=refresh_interval_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        asset_selection=dg.AssetSelection.assets(
            *(key(dataset, stage) for dataset in datasets for stage in stages_of(dataset))
        ),
    )
    def refresh(
        context: dg.SensorEvaluationContext, workbench: dg.ResourceParam[Workbench]
    ) -> dg.SensorResult:
        limit_generations(context.instance)
        location = context.repository_def
        found = tick(
            watch,
            roots=defs_roots(),
            instance=context.instance,
            home=workbench.home,
            memory=read(context.cursor),
            loaded=location.asset_graph if location is not None else None,
            now=clock(),
        )
        message = found.message()
        if found.requests:
            context.log.info(message)
        return dg.SensorResult(
            run_requests=found.requests,
            skip_reason=None if found.requests else dg.SkipReason(message),
            cursor=written(found.memory),
        )

    return refresh


def limit_generations(instance: dg.DagsterInstance) -> None:
    """Makes the default limit of the pool known before any run asks for a place in it.

    Dagster reads which pools have a limit before it adds those that it sees for the first time, so
    on a new instance all runs of its first look at the queue would start at once.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    known = {limit.name for limit in storage.get_pool_limits()}
    if POOL not in known and instance.global_op_concurrency_default_limit is not None:
        storage.initialize_concurrency_limit_to_default(POOL)


def clock() -> float:
    """Epoch s."""
    return time.time()
