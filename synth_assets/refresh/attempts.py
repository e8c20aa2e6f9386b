"""Whether a stage was tried already with what it would be given now.

An attempt that came to nothing is not made again before something it depends on is different: the
stage's declaration, or the data of a parent. That holds for a failed step, a failed blocking check,
a cancelled run, and a generation that left while its batch is at the provider. A run that was
broken off (its process is gone) is tried once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg
from dagster._core.execution.stats import StepEventStatus

from synth_assets.assets.stages import key, made_from, sources_of, step_name
from synth_assets.refresh.catalog import files_of
from synth_assets.refresh.files import stats
from synth_assets.spec.load import Dataset
from synth_assets.status import CheckStatus, Records
from synth_assets.underway import TERMINAL_TAG, version_asked, versions_asked

# On a run that repeats one that was broken off: that run's id.
AGAIN_TAG = "synth/again"
VERSION = "dagster/data_version"


@dataclass(frozen=True)
class Attempt:
    """An attempt that came to nothing. ``at``: when its step began, epoch s.

    ``repeat``: it was broken off, and may be made again as it is.
    """

    run_id: str
    at: float
    why: str
    repeat: bool = False


def attempts(
    dataset: Dataset, due: Iterable[str], records: Records, checks: Iterable[CheckStatus]
) -> dict[str, Attempt]:
    """Stages of ``due`` whose last attempt would end now as it did, with that attempt."""
    checks, found = list(checks), {}
    for stage in due:
        attempt = _without_result(dataset, stage, records)
        if attempt is None:
            attempt = _unchecked(dataset, stage, records, checks)
        elif _changed_since(dataset, stage, records, attempt):
            continue
        if attempt is not None:
            found[stage] = attempt
    return found


def last_made_or_tried(dataset: Dataset, stage: str, records: Records) -> float:
    """When the stage was last made, or tried in vain; epoch s, 0.0 for never."""
    entry = records.assets.get(key(dataset, stage))
    made = entry.last_materialization if entry else None
    tried = _without_result(dataset, stage, records)
    return max(made.timestamp if made else 0.0, tried.at if tried else 0.0)


def _without_result(dataset: Dataset, stage: str, records: Records) -> Attempt | None:
    """The attempt of the last run that planned the stage, if it did not give it."""
    entry = records.assets.get(key(dataset, stage))
    made = entry.last_materialization_record if entry else None
    if entry is None or entry.last_run_id is None or (made and made.run_id == entry.last_run_id):
        return None
    record = records.instance.get_run_record_by_id(entry.last_run_id)
    if record is None:
        return None
    run, name = record.dagster_run, f"run {entry.last_run_id[:8]}"
    steps = {s.step_key: s for s in records.instance.get_run_step_stats(run.run_id)}
    step = steps.get(step_name(dataset, stage))
    known = (step.start_time if step else None, record.end_time, record.start_time)
    at = next((time for time in known if time), record.create_timestamp.timestamp())
    repeat = AGAIN_TAG not in run.tags
    if run.status == dg.DagsterRunStatus.CANCELED:
        return Attempt(run.run_id, at, f"{name} was cancelled")
    if step is None and steps:  # not reached, because a stage above failed
        return None
    launched = record.start_time is not None or TERMINAL_TAG in run.tags
    if run.status == dg.DagsterRunStatus.FAILURE and not launched:
        return Attempt(run.run_id, at, f"{name} did not start")
    status = step.status if step else None
    if status == StepEventStatus.SKIPPED:
        return None
    if status == StepEventStatus.FAILURE:
        return Attempt(run.run_id, at, f"{name} failed")
    if status == StepEventStatus.SUCCESS:
        return Attempt(run.run_id, at, f"{name} left its batch with the provider")
    return Attempt(run.run_id, at, f"{name} was broken off", repeat)


def _unchecked(
    dataset: Dataset, stage: str, records: Records, checks: list[CheckStatus]
) -> Attempt | None:
    """The attempt that made what stands, if a blocking check of it failed or could not be made."""
    entry = records.assets.get(key(dataset, stage))
    made = entry.last_materialization_record if entry else None
    if made is None or not records.in_sync(dataset, stage):
        return None
    failed = [c.name for c in checks if c.stage == stage and c.blocking and not c.passed]
    if failed:
        return Attempt(made.run_id, made.timestamp, f"check {stage}/{failed[0]} failed")
    known = {(c.stage, c.name) for c in checks}
    declared = records.declared.get(dataset.name, {})
    missing = [
        check.name
        for check in declared
        if check.asset_key.path[-1] == stage and (stage, check.name) not in known
    ]
    if not missing:
        return None
    steps = records.instance.get_run_step_stats(made.run_id)
    if not any(step.status == StepEventStatus.FAILURE for step in steps):
        return None  # broken off between the stage and its check
    return Attempt(made.run_id, made.timestamp, f"check {stage}/{missing[0]} could not be made")


def _changed_since(dataset: Dataset, stage: str, records: Records, attempt: Attempt) -> bool:
    run = records.instance.get_run_by_id(attempt.run_id)
    asked = versions_asked(run.tags).get(stage) if run is not None else None
    if asked is None:
        # Launched in the UI: nobody wrote down the declaration, but its files have times.
        if stats(files_of(dataset)).newest > attempt.at:
            return True
    elif asked != version_asked(dataset, stage):
        return True
    return any(
        _new_data(dataset, parent, records, attempt.at) for parent in made_from(dataset, stage)
    )


def _new_data(dataset: Dataset, stage: str, records: Records, at: float) -> bool:
    """Whether the stage's data is other than it was at that time."""
    asset = key(dataset, stage)
    if stage in sources_of(dataset):
        fetch = records.instance.fetch_observations
        latest = next(iter(fetch(asset, limit=1).records), None)
    else:
        fetch = records.instance.fetch_materializations
        entry = records.assets.get(asset)
        latest = entry.last_materialization_record if entry else None
    if latest is None or latest.timestamp <= at:
        return False
    before = fetch(dg.AssetRecordsFilter(asset, before_timestamp=at), limit=1).records
    return not before or _version(before[0]) != _version(latest)


def _version(record: dg.EventLogRecord) -> str | None:
    event = record.asset_materialization or record.asset_observation
    return ((event.tags if event else None) or {}).get(VERSION)
