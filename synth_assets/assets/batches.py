"""Collecting batches that a run left at the provider: a run may end, its batch goes on."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from synth_assets.assets.model import model_access
from synth_assets.assets.stages import STAGES, key
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import SynthError
from synth_assets.llm.batch.book import OPEN, open_batches
from synth_assets.llm.batch.collect import Collected, cancel_batch, collect_batches
from synth_assets.llm.sync import run_sync
from synth_assets.spec.load import Dataset
from synth_assets.underway import run_tags, under_way

INTERVAL_S = 60


def batch_sensor(datasets: Sequence[Dataset]) -> dg.SensorDefinition:
    """Looks at open batches; when one has ended, keeps its answers and goes on from there.

    Nothing new is begun by it: a dataset without an open batch is left alone, and what runs is
    the generation that submitted the batch and the stages below it.
    """

    datasets = [dataset for dataset in datasets if dataset.spec.generates]

    @dg.sensor(
        name="batches",
        description="Collects finished batches and goes on with the datasets that wait for them.",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        asset_selection=dg.AssetSelection.assets(
            *(key(dataset, stage) for dataset in datasets for stage in generation_onwards())
        ),
    )
    def batches(
        context: dg.SensorEvaluationContext, workbench: dg.ResourceParam[Workbench]
    ) -> dg.SensorResult:
        told: list[str] = []
        requests: list[dg.RunRequest] = []
        for dataset in datasets:
            try:
                found = collected(dataset, workbench)
            except SynthError as error:
                # One endpoint that does not answer must not hold up the others.
                told.append(f"{dataset.name}: {error.problem}")
                continue
            if found is None:
                continue
            told.append(f"{dataset.name}: {summary(found)}")
            home, name = workbench.home.root, dataset.name
            if ended(found) and not under_way(context.instance, home, [name]):
                stages = generation_onwards()
                requests.append(
                    dg.RunRequest(
                        asset_selection=[key(dataset, stage) for stage in stages],
                        tags=run_tags(dataset, stages),
                    )
                )
        why = None if requests else dg.SkipReason("; ".join(told) or "no batch is open")
        return dg.SensorResult(run_requests=requests, skip_reason=why)

    return batches


def generation_onwards() -> list[str]:
    """``candidates`` and every stage below it."""
    found = {"candidates"}
    for stage in STAGES.values():
        if found & set(stage.parents):
            found.add(stage.name)
    return [name for name in STAGES if name in found]


def ended(found: Collected) -> int:
    """How many batches are open no longer."""
    return sum(count for (_, state), count in found.states.items() if state not in OPEN)


def summary(found: Collected) -> str:
    """One line: batches by state, answers kept, and what could not be looked at."""
    states = ", ".join(f"{count} {state}" for (_, state), count in sorted(found.states.items()))
    parts = [f"batches: {states}", f"{found.answers.total()} answers kept", *found.problems]
    return "; ".join(parts)


def collected(dataset: Dataset, workbench: Workbench) -> Collected | None:
    """Keeps what the dataset's finished batches answered; None when it has no open batch.

    Raises:
        EndpointError: the endpoint does not answer.
    """
    if not dataset.spec.generates or dataset.spec.generation.mode != "batch":
        return None
    with model_access(dataset, workbench) as access:
        if not open_batches(access.ledger, dataset.name):
            return None
        return run_sync(
            collect_batches(
                endpoint=access.known,
                connect=access.connect,
                ledger=access.ledger,
                dataset=dataset.name,
            )
        )


def cancelled(dataset: Dataset, workbench: Workbench) -> dict[str, str]:
    """Asks the provider to stop the dataset's open batches: token -> state afterwards.

    Raises:
        EndpointError: the endpoint does not answer, or refuses.
    """
    with model_access(dataset, workbench) as access:
        return {
            row.token: run_sync(
                cancel_batch(
                    row.token,
                    endpoint=access.known,
                    connect=access.connect,
                    ledger=access.ledger,
                )
            )
            for row in open_batches(access.ledger, dataset.name)
        }
