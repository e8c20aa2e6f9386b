"""Which datasets are being run right now, by anybody: the terminal, the UI or a sensor."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG

from synth_assets.assets.stages import STAGES
from synth_assets.llm.ledger.owners import has_ended
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.store.erasures import Log
from synth_assets.turns import anybody_present

DATASET_TAG = "synth/dataset"
# On runs that `synth` executes itself: the process that does so.
TERMINAL_TAG = "synth/terminal"
GONE = "The process that executed this run is gone."
# Which declaration each stage of a run was asked for with.
VERSIONS_TAG = "synth/code_versions"
VERSION_DIGITS = 8
UNDER_WAY = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)
# A code server is on this machine, or its socket file is.
ANSWERS_WITHIN_S = 1.0
# A run whose process is gone from this machine is over once it has been silent for this long; its
# process may have lived on another machine.
SILENT_S = 3600.0
ERASURE = "an erasure (if it was cut short, synth erase finishes it)"


def run_tags(dataset: Dataset, stages: Iterable[str]) -> dict[str, str]:
    """Tags of a run of ``stages``: whose it is, and with which declaration it was asked for."""
    return {
        DATASET_TAG: dataset.name,
        VERSIONS_TAG: json.dumps({stage: version_asked(dataset, stage) for stage in stages}),
    }


def version_asked(dataset: Dataset, stage: str) -> str:
    """The stage's code version as :func:`run_tags` writes it."""
    return code_version(dataset, STAGES[stage].shaped_by)[:VERSION_DIGITS]


def versions_asked(tags: Mapping[str, str]) -> dict[str, str]:
    """What :func:`run_tags` wrote; nothing for a run that somebody launched in the UI."""
    try:
        return dict(json.loads(tags.get(VERSIONS_TAG, "{}")))
    except ValueError:
        return {}


def under_way(instance: dg.DagsterInstance, home: Path, datasets: Iterable[str]) -> dict[str, str]:
    """Dataset -> what is running or erasing it. Runs whose process is gone do not count."""
    names = list(datasets)
    found = {name: "synth run" for name in names if anybody_present(home, name)}
    found |= {name: ERASURE for name in names if Log(home, name).pending_path.exists()}
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY))):
        touched = _touched(run, names) - found.keys()
        if touched and not _dead(run):
            found |= dict.fromkeys(touched, f"run {run.run_id[:8]}")
    return found


def run_under_way(instance: dg.DagsterInstance, dataset: str) -> str:
    """Which run of the dataset is under way in Dagster, in words; empty when there is none."""
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY))):
        if _touched(run, [dataset]) and not (_dead(run) or _silent(instance, run)):
            return (
                f"Dagster's run {run.run_id[:8]} of it is under way (if its process was killed: it "
                f"counts as over an hour after its last event)"
            )
    return ""


def executed_by_dagster(instance: dg.DagsterInstance, dataset: str) -> str | None:
    """A run of the dataset that a code server executes now; queued ones may wait for long."""
    statuses = [status for status in UNDER_WAY if status not in WAITING]
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if TERMINAL_TAG in run.tags or not _touched(run, [dataset]):
            continue
        if not _dead(run):
            return f"run {run.run_id[:8]}"
    return None


def report_dead_runs(instance: dg.DagsterInstance) -> None:
    """Fails runs that a killed process left unfinished: they would count for ever as running."""
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNDER_WAY))):
        if _dead(run):
            instance.report_run_failed(run, GONE)


def _touched(run: dg.DagsterRun, names: list[str]) -> set[str]:
    """Datasets of a run. One that was launched in the UI has no tag of ours, but its assets."""
    tagged = run.tags.get(DATASET_TAG)
    if tagged is not None:
        return {tagged} & set(names)
    if run.asset_selection is None:  # everything there is
        return set(names)
    return {key.path[0] for key in run.asset_selection} & set(names)


def _dead(run: dg.DagsterRun) -> bool:
    """Whether it is certain that nobody executes the run any more, nor will."""
    if has_ended(run.tags.get(TERMINAL_TAG, "")):
        return True
    server = run.tags.get(GRPC_INFO_TAG)
    return run.status not in WAITING and server is not None and _gone(json.loads(server))


def _silent(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the run's process is not on this machine, and it has been silent for long."""
    records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    last = records[0].event_log_entry.timestamp if records else None
    if last is None or time.time() - last < SILENT_S:
        return False
    engine = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    events = [log.dagster_event for log in engine if log.dagster_event is not None]
    told = [event.engine_event_data.metadata.get("pid") for event in events]
    pids = [int(str(pid.value)) for pid in told if pid is not None]
    return bool(pids) and not _lives(pids[-1], since=last)


def _lives(pid: int, *, since: float) -> bool:
    """Whether the process that had this id at ``since`` is still there."""
    try:
        return bool(psutil.Process(pid).create_time() <= since)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _gone(server: Mapping[str, Any]) -> bool:
    """Whether the code server that started a run has ended: it stays while its runs do."""
    path = server.get("socket")
    family = socket.AF_UNIX if path else socket.AF_INET
    address = path or (server.get("host", "localhost"), server.get("port"))
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(ANSWERS_WITHIN_S)
            probe.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        return False
    return False
