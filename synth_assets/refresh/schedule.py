"""Ticks of ``refresh.cron``. A tick that was missed is made up for once, however many there were.

A dataset *owes* its latest tick until everything that the tick allows is done or held; then the
tick counts as served. Ticks from before the schedule was first seen are never owed: to declare
one starts nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from dagster._utils.schedules import get_latest_completed_cron_tick, get_next_cron_tick

from synth_assets.refresh.memory import Remembered
from synth_assets.spec.refresh import Refresh


def owed(refresh: Refresh, known: Remembered, now: float) -> tuple[Remembered, float | None]:
    """The memory as it is to be, and the tick that is owed (epoch s), None when there is none."""
    if refresh.cron is None:
        return replace(known, schedule="", served=0.0), None
    schedule = f"{refresh.cron}|{refresh.zone}"
    if known.schedule != schedule:
        return replace(known, schedule=schedule, served=now), None
    moment = datetime.fromtimestamp(now, UTC)
    tick = get_latest_completed_cron_tick(refresh.cron, moment, refresh.zone).timestamp()
    return known, tick if tick > known.served else None


def served(known: Remembered, tick: float | None) -> Remembered:
    return known if tick is None else replace(known, served=tick)


def next_tick(refresh: Refresh, now: float) -> datetime | None:
    """The coming tick, in UTC."""
    if refresh.cron is None:
        return None
    moment = datetime.fromtimestamp(now, UTC)
    return get_next_cron_tick(refresh.cron, moment, refresh.zone).astimezone(UTC)
