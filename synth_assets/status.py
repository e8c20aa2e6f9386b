"""How every stage of a dataset stands, read from Dagster's own records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.execution.stats import StepEventStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.event_log.base import AssetEntry, AssetRecord

from synth_assets.assets.stages import SOURCE, STAGES, key, sources_of, stages_of, step_name
from synth_assets.spec.load import Dataset
from synth_assets.store.content import ContentStore

EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
EARLIER_VERDICTS = 20
# Metadata of a check: the versions of the other tables it looked at, by stage.
COMPARED_WITH = "compared_with"

Standing = Literal["fresh", "stale", "missing", "failed"]


@dataclass(frozen=True)
class StageStatus:
    """``stale``: made by another declaration or from other parents than now stand, or not yet
    judged by all of its checks. ``failed``: the last attempt failed, or a blocking check did."""

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


@dataclass(frozen=True)
class Records:
    """What an instance has recorded about datasets, read at once for all of them.

    A view of one moment: whoever waits for a change reads anew.
    """

    instance: dg.DagsterInstance
    graph: Any
    assets: Mapping[dg.AssetKey, AssetEntry]
    checks: Mapping[dg.AssetCheckKey, AssetCheckExecutionRecord]
    # Internal to Dagster; it is what the UI's badges come from.
    resolver: CachingStaleStatusResolver

    @classmethod
    def read(
        cls, instance: dg.DagsterInstance, graph: Any, datasets: Collection[Dataset]
    ) -> Records:
        """``graph``: an asset graph that the datasets are in."""
        context = LoadingContextForTest(instance)
        keys = [key(dataset, stage) for dataset in datasets for stage in stages_of(dataset)]
        found = AssetRecord.blocking_get_many(context, keys)
        names = {dataset.name for dataset in datasets}
        checks = [check for check in graph.asset_check_keys if check.asset_key.path[0] in names]
        return cls(
            instance,
            graph,
            {r.asset_entry.asset_key: r.asset_entry for r in found if r is not None},
            instance.event_log_storage.get_latest_asset_check_execution_by_key(checks),
            CachingStaleStatusResolver(instance, graph, context),
        )

    @cached_property
    def declared(self) -> Mapping[str, dict[dg.AssetCheckKey, bool]]:
        """Every check of the graph by dataset: key -> blocking."""
        found: dict[str, dict[dg.AssetCheckKey, bool]] = {}
        for check in self.graph.asset_check_keys:
            blocking = self.graph.get(check).blocking
            found.setdefault(check.asset_key.path[0], {})[check] = blocking
        return found

    def in_sync(self, dataset: Dataset, stage: str) -> bool:
        """Made by the declaration and from the parents that now stand."""
        return self.resolver.get_status(key(dataset, stage)) is StaleStatus.FRESH

    def sources(self, dataset: Dataset) -> list[StageStatus]:
        """What is observed of the dataset: its human sources and, if any, its synthetic ones."""
        return [_source(dataset, self.instance, name) for name in sources_of(dataset)]

    def checks_of(self, dataset: Dataset) -> list[CheckStatus]:
        """See :func:`check_statuses`."""
        declared = self.declared.get(dataset.name, {})
        latest = {check: self.checks[check] for check in declared if check in self.checks}
        standing = {
            asset: entry.last_materialization_record
            for stage in stages_of(dataset)
            if (entry := self.assets.get(asset := key(dataset, stage))) is not None
        }
        return _check_statuses(self.instance, declared, latest, standing)


def dataset_status(
    dataset: Dataset,
    instance: dg.DagsterInstance,
    graph: Any,
    store: ContentStore,
    records: Records | None = None,
) -> list[StageStatus]:
    """Every stage in order of the graph. ``graph``: the repository's asset graph.

    ``records``: where they have been read already, for many datasets at once.
    """
    records = records or Records.read(instance, graph, [dataset])
    evaluated = records.checks_of(dataset)
    blocked = {check.stage for check in evaluated if check.blocking and not check.passed}
    known = {(check.stage, check.name) for check in evaluated}
    unchecked = {
        check.asset_key.path[-1]
        for check in records.declared.get(dataset.name, {})
        if (check.asset_key.path[-1], check.name) not in known
    }
    stages = records.sources(dataset)
    for stage in stages_of(dataset):
        entry = records.assets.get(key(dataset, stage))
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
        status = "fresh" if records.in_sync(dataset, stage) else "stale"
        if stage in unchecked:  # nothing may be built upon it, or said of it, before it is judged
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

    An evaluation of an earlier table, one that was planned and never came (a kill between a stage
    and its check), and one that compared the table with other tables than now stand say nothing
    and are left out.
    """
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(declared))
    # Those that were compared with need not have checks of their own.
    names = {check.asset_key.path[0] for check in declared}
    keys = [dg.AssetKey([name, stage]) for name in names for stage in STAGES]
    assets = instance.get_asset_records(keys)
    standing = {r.asset_entry.asset_key: r.asset_entry.last_materialization_record for r in assets}
    return _check_statuses(instance, declared, latest, standing)


def warnings_of(checks: Iterable[CheckStatus]) -> list[str]:
    """What checks that block nothing have found: a line each, in order of the graph."""
    order = list(STAGES)
    failed = [check for check in checks if not (check.passed or check.blocking)]
    return [
        f"{check.stage}/{check.name}: {line}"
        for check in sorted(failed, key=lambda check: (order.index(check.stage), check.name))
        for line in (check.description or "see the check's table in the UI").splitlines()
    ]


def _check_statuses(
    instance: dg.DagsterInstance,
    declared: Mapping[dg.AssetCheckKey, bool],
    latest: Mapping[dg.AssetCheckKey, AssetCheckExecutionRecord],
    standing: Mapping[dg.AssetKey, dg.EventLogRecord | None],
) -> list[CheckStatus]:
    """``latest``: executions; ``standing``: materialisations, of the checks' assets."""
    found = []
    for check_key in sorted(latest, key=lambda k: (k.asset_key.path, k.name)):
        made = standing.get(check_key.asset_key)
        if made is None:
            continue
        evaluation = _verdict(latest[check_key], made, standing)
        if evaluation is None:
            # "Latest" is by when a run planned it: of two runs at once, the one that planned last
            # need not be the one whose table stands.
            earlier = instance.event_log_storage.get_asset_check_execution_history(
                check_key, limit=EARLIER_VERDICTS, status=EVALUATED
            )
            verdicts = (_verdict(record, made, standing) for record in earlier)
            evaluation = next((one for one in verdicts if one is not None), None)
        if evaluation is None:
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


def _verdict(
    record: AssetCheckExecutionRecord,
    made: dg.EventLogRecord,
    standing: Mapping[dg.AssetKey, dg.EventLogRecord | None],
) -> AssetCheckEvaluation | None:
    """What the execution found, if it judged the table that ``made`` is the record of."""
    evaluation = record.evaluation
    if not isinstance(evaluation, AssetCheckEvaluation):
        return None
    target = evaluation.target_materialization_data
    same_table = target is not None and target.storage_id == made.storage_id
    if not (same_table or record.run_id == made.run_id):
        return None
    compared = evaluation.metadata.get(COMPARED_WITH)
    others: Any = compared.value if compared is not None else {}
    siblings = {key.path[-1]: found for key, found in standing.items()}
    same = all(_data_version(siblings.get(stage)) == seen for stage, seen in others.items())
    return evaluation if same else None


def _data_version(record: dg.EventLogRecord | None) -> str | None:
    made = record.event_log_entry.asset_materialization if record else None
    return (made.tags or {}).get("dagster/data_version") if made else None


def declared_checks(dataset: Dataset, graph: Any) -> dict[dg.AssetCheckKey, bool]:
    """Every check of the dataset in an asset graph: key -> blocking."""
    return {
        key: graph.get(key).blocking
        for key in graph.asset_check_keys
        if key.asset_key.path[0] == dataset.name
    }


def observe_source(
    dataset: Dataset, instance: dg.DagsterInstance, version: str, name: str = SOURCE
) -> bool:
    """Record a source's content hash if it is new; True when it was."""
    if _source(dataset, instance, name).data_version == version:
        return False
    instance.report_runless_asset_event(
        dg.AssetObservation(key(dataset, name), tags={"dagster/data_version": version})
    )
    return True


def _source(dataset: Dataset, instance: dg.DagsterInstance, name: str = SOURCE) -> StageStatus:
    records = instance.fetch_observations(key(dataset, name), limit=1).records
    if not records:
        return StageStatus(name, "missing", None, None, None, None)
    observation = records[0].asset_observation
    tags: Mapping[str, str] = (observation.tags if observation else None) or {}
    version = tags.get("dagster/data_version")
    return StageStatus(name, "fresh", None, version, None, _iso(records[0].timestamp))


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
