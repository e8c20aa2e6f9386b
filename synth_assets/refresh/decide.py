"""What automation does with one dataset now: the rule of ``synth run``, less what it may not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synth_assets.assets.stages import STAGES
from synth_assets.refresh.attempts import Attempt
from synth_assets.status import CheckStatus, StageStatus
from synth_assets.waves import GENERATED, below_failed_checks, due_stages, next_wave


@dataclass(frozen=True)
class Decision:
    """``wave``: stages to run now. ``held``: stages that are out of sync and stay so, and why.

    ``repeats``: the run that was broken off and is made again, "" when it is a new one.
    """

    wave: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    repeats: str = ""

    def sentence(self) -> str:
        """What happens next, in one line."""
        if self.wave:
            return f"next: {', '.join(self.wave)}"
        if self.held:
            return "held: " + "; ".join(f"{stage} ({why})" for stage, why in self.held.items())
        return "up to date"


def decide(
    statuses: Sequence[StageStatus],
    checks: Sequence[CheckStatus],
    *,
    tried: Mapping[str, Attempt],
    tick: float | None,
    generation: str,
    source_problem: str,
) -> Decision:
    """The next wave, and what is held (pure).

    ``tried``: attempts that would end as they did; a tick of the schedule that came later (epoch s)
    gives them another chance. ``generation``: why nothing may be generated, "" when it may.
    ``source_problem``: why the sources cannot be seen, "" when they can.
    """
    due = due_stages(statuses)
    held = {
        stage: f"below {check}, which failed"
        for stage, check in below_failed_checks(statuses, checks).items()
    }
    spent = {s: a for s, a in tried.items() if not a.repeat and not (tick and a.at < tick)}
    held |= {stage: f"{a.why}; waits for a change" for stage, a in spent.items()}
    if source_problem:
        why = f"the source cannot be seen: {source_problem}"
        held |= {"human_raw": why, "imported_raw": why}
    if generation:
        held[GENERATED] = generation
    stages = [s.stage for s in statuses if s.stage in STAGES]
    wave = next_wave(due, held=held, stages=stages)
    repeats = next((tried[s].run_id for s in wave if s in tried and tried[s].repeat), "")
    return Decision(wave, {s: held[s] for s in held if s in due and s not in wave}, repeats)
