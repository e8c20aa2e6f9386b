"""What a person is told about automation: what the sensor would do with a dataset, and why not."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
)

from synth_assets.refresh.decide import Decision
from synth_assets.refresh.memory import Remembered, read
from synth_assets.refresh.reading import Reading
from synth_assets.refresh.schedule import next_tick, owed
from synth_assets.refresh.sensor import NAME
from synth_assets.refresh.tick import decision_for
from synth_assets.run import Session
from synth_assets.spec.refresh import Refresh
from synth_assets.status import Records
from synth_assets.underway import under_way


@dataclass(frozen=True)
class Told:
    """``running``: what runs the dataset now, "" for nothing; ``last_look``: of the sensor, UTC.

    ``sensor``: ``on``, ``off`` (somebody switched it off) or ``never`` (no daemon has run yet).
    """

    refresh: Refresh
    decision: Decision
    running: str
    sensor: str
    last_look: str | None
    next_tick: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "policy": self.refresh.policy,
            "generate": self.refresh.generate,
            "cron": self.refresh.cron,
            "next_tick": self.next_tick,
            "sensor": self.sensor,
            "last_look": self.last_look,
            "running": self.running,
            "next": self.decision.wave,
            "held": self.decision.held,
        }

    def sentence(self) -> str:
        """One line for the terminal."""
        if not self.refresh.active:
            return "refresh: manual; nothing runs by itself"
        rule = f"refresh: {self.refresh.policy}, generate {self.refresh.generate}"
        if self.next_tick is not None:
            rule += f", next tick {self.next_tick}"
        daemon = {"off": "; the sensor is switched off", "never": "; no daemon has looked yet"}
        doing = f"{self.running} is under way" if self.running else self.decision.sentence()
        return f"{rule}; {doing}{daemon.get(self.sensor, '')}"


def told(session: Session) -> Told:
    """As the sensor would find it now, without looking at sources."""
    dataset, instance, home = session.dataset, session.instance, session.workbench.home
    refresh, now = dataset.spec.refresh, time.time()
    state = _state(instance)
    data = state.instigator_data if state is not None else None
    known = data if isinstance(data, SensorInstigatorData) else None
    coming = next_tick(refresh, now)
    return Told(
        refresh,
        _decision(session, read(known.cursor if known else None).get(dataset.name), now),
        under_way(instance, home.root, [dataset.name]).get(dataset.name, ""),
        "off" if state and state.status is InstigatorStatus.STOPPED else "on" if known else "never",
        _utc(known.last_tick_timestamp if known else None),
        f"{coming:%Y-%m-%d %H:%M} UTC" if coming else None,
    )


def _decision(session: Session, remembered: Remembered | None, now: float) -> Decision:
    dataset, refresh = session.dataset, session.dataset.spec.refresh
    if not refresh.active:
        return Decision()
    known, tick = owed(refresh, remembered or Remembered(), now)
    records = Records.read(session.instance, session.graph, [dataset])
    decision = decision_for(
        dataset,
        Reading(None, records),
        session.workbench.home,
        tick=tick,
        source_problem=known.look.problem if known.look else "",
        now=now,
    )
    if refresh.policy == "manual" and tick is None and decision.wave:
        held = dict.fromkeys(decision.wave, "waits for the next tick")
        decision = replace(decision, wave=[], held=held | decision.held)
    return decision


def _state(instance: dg.DagsterInstance) -> InstigatorState | None:
    """The sensor's state; the one that looked last where several code locations have it."""
    states = instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
    ours = [state for state in states if state.name == NAME]

    def looked(state: InstigatorState) -> float:
        data = state.instigator_data
        known = data.last_tick_timestamp if isinstance(data, SensorInstigatorData) else None
        return known or 0.0

    return max(ours, key=looked, default=None)


def _utc(timestamp: float | None) -> str | None:
    if timestamp is None:
        return None
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
