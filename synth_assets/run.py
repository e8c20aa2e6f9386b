"""``synth run``: materialise what is out of sync, in process and in waves, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from synth_assets.assets.failures import EXIT_CODE
from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.source import source_versions
from synth_assets.assets.stages import STAGES, key, stages_of
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import Incomplete, Stopped, SynthError
from synth_assets.llm.ledger.owners import process_name
from synth_assets.spec.load import Dataset
from synth_assets.status import (
    CheckStatus,
    StageStatus,
    check_statuses,
    dataset_status,
    declared_checks,
    observe_source,
    warnings_of,
)
from synth_assets.store.content import ContentStore
from synth_assets.store.io_manager import IO_MANAGER_KEY, ContentIOManager
from synth_assets.turns import Turn, present
from synth_assets.underway import TERMINAL_TAG, executed_by_dagster, run_tags
from synth_assets.waves import (
    DUE,
    GENERATED,
    ancestors_and_self,
    below_failed_checks,
    due_stages,
    next_wave,
)

# Dagster makes a step failure of Ctrl-C and SIGTERM.
INTERRUPTIONS = frozenset({"DagsterExecutionInterruptedError", "KeyboardInterrupt"})
LOOK_AGAIN_S = 1.0
# Checks that block nothing and still mean that the work is not done.
INCOMPLETE_CHECKS = frozenset({(GENERATED, "complete"), ("synthetic", "exact_counts")})


@dataclass
class RunSummary:
    """What one ``synth run`` did."""

    dataset: str
    ran: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    exit_code: int = 0
    seconds: float = 0.0
    statuses: list[StageStatus] = field(default_factory=list)
    checks: list[CheckStatus] = field(default_factory=list)

    @property
    def skipped(self) -> list[str]:
        return [stage for stage in self.rows if stage not in self.ran]

    @property
    def rows(self) -> dict[str, int | None]:
        return {s.stage: s.rows for s in self.statuses if s.stage in STAGES}

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
        store = ContentIOManager(workbench.home)
        resources = dg.Definitions(
            resources={IO_MANAGER_KEY: store, "workbench": workbench},
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
        job, stages = self.definitions.resolve_implicit_global_asset_job_def(), list(stages)
        home = self.workbench.home.root
        ours = {TERMINAL_TAG: process_name()}
        with present(home, self.dataset.name):
            return job.execute_in_process(
                instance=self.instance,
                asset_selection=[key(self.dataset, stage) for stage in stages],
                raise_on_error=False,
                # The instance keeps the log; the terminal shows progress instead.
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags=run_tags(self.dataset, stages) | ours,
            )


def run_dataset(
    session: Session,
    *,
    until: str | Collection[str] | None = None,
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
    last = [until] if isinstance(until, str) else until or STAGES
    wanted = set().union(*map(ancestors_and_self, last))
    for name, version in source_versions(session.dataset, session.workbench.home).items():
        observe_source(session.dataset, session.instance, version, name)
    forced = set(force)

    def due_now() -> list[str]:
        statuses = session.statuses()
        due, held = due_stages(statuses) & wanted, below_failed_checks(statuses, session.checks())
        # What ran just now is done with: a check that failed says so below, it is no reason to
        # run the stage again, and neither is a stage that gives something new every time.
        stages = stages_of(session.dataset)
        return next_wave((due - set(summary.ran)) | forced, held=held, stages=stages)

    bench = session.workbench
    free = ancestors_and_self("plan") | ancestors_and_self("imported")
    name, home = session.dataset.name, bench.home.root
    with present(home, name), Turn(home, name, notify=bench.notify) as turn:
        while wave := due_now():
            # Up to the plan nothing is asked: a forecast need not wait for a run of hours.
            if not free.issuperset(wave) and _waited(turn, session) and not (wave := due_now()):
                break
            forced -= set(wave)
            on_wave(wave)
            result = session.materialize(wave)
            summary.ran += wave
            if not result.success:
                _note_failures(result, summary)
                break
            if _left_waiting(result, wave, summary):
                break
        _conclude(session, summary, wanted)
    summary.seconds = round(time.monotonic() - began, 3)
    return summary


def _waited(turn: Turn, session: Session) -> bool:
    """Returns once nobody else runs the dataset; True when somebody had to end before."""
    name = session.dataset.name
    waited, told = turn.take(), ""
    while (other := executed_by_dagster(session.instance, name)) is not None:
        if other != told:
            session.workbench.notify(
                f"waiting: {other} of {name}, started by Dagster, is under way"
            )
        waited, told = True, other
        time.sleep(LOOK_AGAIN_S)
    return waited


def _left_waiting(
    result: dg.ExecuteInProcessResult, wave: Collection[str], summary: RunSummary
) -> bool:
    """Whether generation left while a batch is at the provider: nothing below can run yet."""
    if GENERATED not in wave:
        return False
    events = result.get_asset_materialization_events()
    if GENERATED in {event.asset_key.path[-1] for event in events if event.asset_key}:
        return False
    told = [
        evaluation.description or "waiting for a batch"
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.asset_key.path[-1] == GENERATED and not evaluation.passed
    ]
    summary.problems += told
    summary.exit_code = Incomplete.exit_code
    return True


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
    told = [c for c in summary.checks if (c.stage, c.name) not in INCOMPLETE_CHECKS]
    summary.warnings = warnings_of([c for c in told if c.stage in wanted])
    for check in summary.checks:
        incomplete = (check.stage, check.name) in INCOMPLETE_CHECKS
        if check.passed or check.stage not in wanted or not (check.blocking or incomplete):
            continue
        what = check.description or "see the check's table in the UI"
        summary.problems.append(f"check {check.stage}/{check.name} failed: {what}")
        summary.exit_code = summary.exit_code or Incomplete.exit_code
    unfinished = [s.stage for s in summary.statuses if s.stage in wanted and s.status in DUE]
    if unfinished and not summary.exit_code:
        summary.problems.append(f"not up to date: {', '.join(unfinished)}")
        summary.exit_code = SynthError.exit_code
