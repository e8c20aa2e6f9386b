"""How every stage of a dataset stands, read from Dagster's own records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.execution.stats import StepEventStatus
from dagster._core.loader import LoadingContextForTest

from synth_assets.assets.stages import SOURCE, STAGES, key, step_name
from synth_assets.spec.load import Dataset
from synth_assets.store.content import ContentStore

Standing = Literal["fresh", "stale", "missing", "failed"]


@dataclass(frozen=True)
class StageStatus:
    """``stale``: made by another declaration or from other parents than now stand, or not yet
    through its blocking checks. ``failed``: the last attempt failed, or a blocking check did."""

    stage: str
    status: Standing
    rows: int | None
    data_version: str | None
    code_version: str | None
    materialized_at: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CheckStatus:
    """The latest result of one check of what now stands."""

    stage: str
    name: str
    passed: bool
    blocking: bool
    description: str


def dataset_status(
    dataset: Dataset, instance: dg.DagsterInstance, graph: Any, store: ContentStore
) -> list[StageStatus]:
    """Every stage in order of the graph. ``graph``: the repository's asset graph."""
    # The resolver is internal to Dagster; it is what the UI's badges come from.
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    keys = [key(dataset, stage) for stage in STAGES]
    records = {r.asset_entry.asset_key: r.asset_entry for r in instance.get_asset_records(keys)}
    declared = declared_checks(dataset, graph)
    evaluated = check_statuses(instance, declared)
    blocked = {check.stage for check in evaluated if check.blocking and not check.passed}
    known = {(check.stage, check.name) for check in evaluated}
    unchecked = {
        check.asset_key.path[-1]
        for check, blocking in declared.items()
        if blocking and (check.asset_key.path[-1], check.name) not in known
    }
    stages = [_source(dataset, instance)]
    for stage in STAGES:
        entry = records.get(key(dataset, stage))
        event = entry.last_materialization if entry else None
        made = event.asset_materialization if event else None
        if event is None or made is None:
            status: Standing = (
                "failed" if _attempt_failed(instance, entry, dataset, stage) else "missing"
            )
            stages.append(StageStatus(stage, status, None, None, None, None))
            continue
        tags, metadata = made.tags or {}, made.metadata
        version = tags.get("dagster/data_version")
        rows = metadata.get("dagster/row_count")
        status = _standing(resolver.get_status(key(dataset, stage)))
        if stage in unchecked:  # nothing may be built upon it before its blocking checks passed
            status = "stale"
        if version is None or not store.path(dataset.name, stage, version).exists():
            status = "missing"
        if stage in blocked or _attempt_failed(instance, entry, dataset, stage):
            status = "failed"
        stages.append(
            StageStatus(
                stage,
                status,
                int(rows.value) if rows is not None else None,  # type: ignore[arg-type]
                version,
                tags.get("dagster/code_version"),
                _iso(event.timestamp),
            )
        )
    return stages


def check_statuses(
    instance: dg.DagsterInstance, declared: Mapping[dg.AssetCheckKey, bool]
) -> list[CheckStatus]:
    """Checks that have been evaluated on what now stands. ``declared``: key -> blocking.

    An evaluation of an earlier table, or one that was planned and never came (a kill between a
    stage and its check), says nothing about the table that stands and is left out.
    """
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(declared))
    assets = instance.get_asset_records(list({check.asset_key for check in declared}))
    standing = {r.asset_entry.asset_key: r.asset_entry.last_materialization_record for r in assets}
    found = []
    for check_key in sorted(latest, key=lambda k: (k.asset_key.path, k.name)):
        record, made = latest[check_key], standing.get(check_key.asset_key)
        evaluation = record.evaluation
        if not isinstance(evaluation, AssetCheckEvaluation) or made is None:
            continue
        target = evaluation.target_materialization_data
        same_run = record.run_id == made.run_id
        if not same_run and (target is None or target.storage_id != made.storage_id):
            continue
        found.append(
            CheckStatus(
                check_key.asset_key.path[-1],
                check_key.name,
                evaluation.passed,
                declared[check_key],
                evaluation.description or "",
            )
        )
    return found


def declared_checks(dataset: Dataset, graph: Any) -> dict[dg.AssetCheckKey, bool]:
    """Every check of the dataset in an asset graph: key -> blocking."""
    return {
        key: graph.get(key).blocking
        for key in graph.asset_check_keys
        if key.asset_key.path[0] == dataset.name
    }


def observe_source(dataset: Dataset, instance: dg.DagsterInstance, version: str) -> bool:
    """Record the source's content hash if it is new; True when it was."""
    if _source(dataset, instance).data_version == version:
        return False
    instance.report_runless_asset_event(
        dg.AssetObservation(key(dataset, SOURCE), tags={"dagster/data_version": version})
    )
    return True


def _source(dataset: Dataset, instance: dg.DagsterInstance) -> StageStatus:
    records = instance.fetch_observations(key(dataset, SOURCE), limit=1).records
    if not records:
        return StageStatus(SOURCE, "missing", None, None, None, None)
    observation = records[0].asset_observation
    tags: Mapping[str, str] = (observation.tags if observation else None) or {}
    version = tags.get("dagster/data_version")
    return StageStatus(SOURCE, "fresh", None, version, None, _iso(records[0].timestamp))


def _standing(status: StaleStatus) -> Standing:
    return {"FRESH": "fresh", "STALE": "stale", "MISSING": "missing"}[status.value]  # type: ignore[return-value]


def _attempt_failed(instance: dg.DagsterInstance, entry: Any, dataset: Dataset, stage: str) -> bool:
    """Whether the latest attempt to make the asset came after what stands, and failed itself."""
    run_id = entry.last_run_id if entry else None
    made = entry.last_materialization if entry else None
    if run_id is None or (made is not None and made.run_id == run_id):
        return False
    run = instance.get_run_by_id(run_id)
    if run is None or run.status != dg.DagsterRunStatus.FAILURE:
        return False
    steps = instance.get_run_step_stats(run_id, [step_name(dataset, stage)])
    return any(step.status == StepEventStatus.FAILURE for step in steps)


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
