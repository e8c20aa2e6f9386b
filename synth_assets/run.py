"""``synth run``: materialise what is out of sync, in process, and nothing else.

Stages run in waves. A wave holds every stage that must run whatever the others give: it is missing
or out of sync itself, and nothing between it and another stage of the wave is undecided. After a
wave the graph is read again, so a stage that comes out as it was stops the rest (early cutoff).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from synth_assets.assets.failures import EXIT_CODE
from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.source import source_version
from synth_assets.assets.stages import SOURCE, STAGES, key
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import Incomplete, Stopped, SynthError
from synth_assets.spec.load import Dataset
from synth_assets.status import (
    CheckStatus,
    StageStatus,
    check_statuses,
    dataset_status,
    declared_checks,
    observe_source,
)
from synth_assets.store.content import ContentStore
from synth_assets.store.io_manager import IO_MANAGER_KEY, ContentIOManager

DUE = frozenset({"stale", "missing", "failed"})
# Dagster makes a step failure of Ctrl-C and SIGTERM.
INTERRUPTIONS = frozenset({"DagsterExecutionInterruptedError", "KeyboardInterrupt"})
SHORTFALL_CHECK = ("synthetic", "exact_counts")


@dataclass
class RunSummary:
    """What one ``synth run`` did."""

    dataset: str
    ran: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    exit_code: int = 0
    seconds: float = 0.0
    statuses: list[StageStatus] = field(default_factory=list)
    checks: list[CheckStatus] = field(default_factory=list)

    @property
    def skipped(self) -> list[str]:
        return [stage for stage in STAGES if stage not in self.ran]

    @property
    def rows(self) -> dict[str, int | None]:
        return {s.stage: s.rows for s in self.statuses if s.stage != SOURCE}

    @property
    def evidence(self) -> str:
        """What the measured contribution says, in words."""
        told = [c.description for c in self.checks if c.stage == "contribution"]
        return told[0] if told else ""


@dataclass(frozen=True)
class Session:
    """A dataset, loaded and bound to an instance and a home."""

    dataset: Dataset
    instance: dg.DagsterInstance
    workbench: Workbench
    definitions: dg.Definitions

    @classmethod
    def open(cls, dataset: Dataset, instance: dg.DagsterInstance, workbench: Workbench) -> Session:
        store = ContentStore(workbench.home.store)
        resources = dg.Definitions(
            resources={IO_MANAGER_KEY: ContentIOManager(store), "workbench": workbench},
            executor=dg.in_process_executor,
        )
        return cls(
            dataset,
            instance,
            workbench,
            dg.Definitions.merge(dataset_definitions(dataset), resources),
        )

    @property
    def graph(self) -> Any:
        return self.definitions.get_repository_def().asset_graph

    def statuses(self) -> list[StageStatus]:
        store = ContentStore(self.workbench.home.store)
        return dataset_status(self.dataset, self.instance, self.graph, store)

    def checks(self) -> list[CheckStatus]:
        return check_statuses(self.instance, declared_checks(self.dataset, self.graph))

    def materialize(self, stages: Iterable[str]) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[key(self.dataset, stage) for stage in stages],
            raise_on_error=False,
            # The instance keeps the log; the terminal shows progress instead.
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={"synth/dataset": self.dataset.name},
        )


def run_dataset(
    session: Session,
    *,
    until: str | None = None,
    force: Collection[str] = (),
    on_wave: Callable[[list[str]], None] = lambda stages: None,
) -> RunSummary:
    """Bring the dataset (or what ``until`` needs) up to date; ``force`` re-runs stages regardless.

    Raises:
        SynthError: when the source cannot be seen at all.
        Stopped: after Ctrl-C or SIGTERM.
    """
    began = time.monotonic()
    summary = RunSummary(session.dataset.name)
    wanted = ancestors_and_self(until) if until else set(STAGES)
    observe_source(
        session.dataset, session.instance, source_version(session.dataset, session.workbench.home)
    )
    forced = set(force)
    while True:
        due = {s.stage for s in session.statuses() if s.status in DUE} & wanted
        # What ran just now is done with: a check that failed says so below, it is no reason to
        # run the stage again, and neither is a stage that gives something new every time.
        due = (due - set(summary.ran)) | forced
        wave = next_wave(due, held=_held(session))
        if not wave:
            break
        forced -= set(wave)
        on_wave(wave)
        result = session.materialize(wave)
        summary.ran += wave
        if not result.success:
            _note_failures(result, summary)
            break
    _conclude(session, summary, wanted)
    summary.seconds = round(time.monotonic() - began, 3)
    return summary


def next_wave(due: Collection[str], *, held: Collection[str]) -> list[str]:
    """Stages to run now, in order of the graph (pure).

    ``due``: out of sync; ``held``: must not run, because a blocking check above them failed.
    """
    undecided: set[str] = set()
    wave: set[str] = set()
    for stage in STAGES.values():
        parents = [parent for parent in stage.parents if parent != SOURCE]
        if any(parent in undecided for parent in parents):
            undecided.add(stage.name)
        elif stage.name in due and stage.name not in held:
            wave.add(stage.name)
        elif any(parent in wave or parent in due for parent in parents) or stage.name in due:
            undecided.add(stage.name)
    return [name for name in STAGES if name in with_siblings(wave)]


def with_siblings(stages: Collection[str]) -> set[str]:
    """``stages`` and what the same steps also write."""
    steps = {(STAGES[name].shaped_by, STAGES[name].parents) for name in stages}
    return {s.name for s in STAGES.values() if (s.shaped_by, s.parents) in steps}


def ancestors_and_self(stage: str) -> set[str]:
    found = {stage}
    for parent in STAGES[stage].parents:
        if parent != SOURCE:
            found |= ancestors_and_self(parent)
    return with_siblings(found)


def _held(session: Session) -> set[str]:
    """Stages below a blocking check that failed on what now stands."""
    failed = {c.stage for c in session.checks() if c.blocking and not c.passed}
    stale = {s.stage for s in session.statuses() if s.status == "stale"}
    held: set[str] = set()
    for stage in STAGES.values():
        if any(parent in held or parent in failed - stale for parent in stage.parents):
            held.add(stage.name)
    return held


def _note_failures(result: dg.ExecuteInProcessResult, summary: RunSummary) -> None:
    for event in result.all_node_events:
        if event.event_type != dg.DagsterEventType.STEP_FAILURE:
            continue
        data = event.step_failure_data
        failure = data.user_failure_data
        if failure is not None:
            summary.problems.append(failure.description or "failed")
            code = failure.metadata.get(EXIT_CODE)
            summary.exit_code = max(summary.exit_code, int(code.value) if code else 1)  # type: ignore[arg-type]
        elif data.error is not None and "AssetCheckFailed" not in (data.error.cls_name or ""):
            cause = data.error
            while cause.cause is not None:
                cause = cause.cause
            if cause.cls_name in INTERRUPTIONS:
                raise Stopped
            summary.problems.append(f"{event.step_key}: {cause.message.strip()}")
            summary.exit_code = max(summary.exit_code, SynthError.exit_code)


def _conclude(session: Session, summary: RunSummary, wanted: Collection[str]) -> None:
    summary.statuses = session.statuses()
    summary.checks = session.checks()
    for check in summary.checks:
        shortfall = (check.stage, check.name) == SHORTFALL_CHECK
        if check.passed or check.stage not in wanted or not (check.blocking or shortfall):
            continue
        what = check.description or "see the check's table in the UI"
        summary.problems.append(f"check {check.stage}/{check.name} failed: {what}")
        summary.exit_code = summary.exit_code or Incomplete.exit_code
    unfinished = [s.stage for s in summary.statuses if s.stage in wanted and s.status in DUE]
    if unfinished and not summary.exit_code:
        summary.problems.append(f"not up to date: {', '.join(unfinished)}")
        summary.exit_code = SynthError.exit_code
