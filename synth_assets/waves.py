"""What is to run next: the one rule of ``synth run`` and of the ``refresh`` sensor (pure).

A wave holds every stage that must run whatever the others give: it is missing or out of sync
itself, and nothing between it and another stage of the wave is undecided. After a wave the graph
is read again, so a stage that comes out as it was stops the rest (early cutoff).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from synth_assets.assets.stages import SOURCE, STAGES

if TYPE_CHECKING:
    from synth_assets.status import CheckStatus, StageStatus

DUE = frozenset({"stale", "missing", "failed"})
GENERATED = "candidates"


def next_wave(
    due: Collection[str], *, held: Collection[str], stages: Collection[str] = tuple(STAGES)
) -> list[str]:
    """Stages to run now, in order of the graph.

    ``due``: out of sync; ``held``: must not run, because a blocking check above them failed, or
    (the sensor's) because nobody is there who may decide it; ``stages``: those the dataset has.
    """
    undecided: set[str] = set()
    wave: set[str] = set()
    for stage in (STAGES[name] for name in stages):
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


def due_stages(statuses: Iterable[StageStatus]) -> set[str]:
    """Stages that are missing, out of sync or failed."""
    return {s.stage for s in statuses if s.status in DUE} & STAGES.keys()


def below_failed_checks(
    statuses: Iterable[StageStatus], checks: Iterable[CheckStatus]
) -> dict[str, str]:
    """Stages below a blocking check that failed on what now stands, each with that check."""
    failed = {c.stage: f"{c.stage}/{c.name}" for c in checks if c.blocking and not c.passed}
    stale = {s.stage for s in statuses if s.status == "stale"}
    held: dict[str, str] = {}
    for stage in STAGES.values():
        for parent in stage.parents:
            if parent in held or (parent in failed and parent not in stale):
                held[stage.name] = held.get(parent) or failed[parent]
                break
    return held
