"""When a dataset is refreshed without anybody asking for it, and how old it may become."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from synth_assets.spec.base import Strict, fail

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
DURATION_FIX = "a number and a unit: 90s, 15m, 6h, 7d, 2w"
# Dagster refuses shorter freshness windows for the whole code location.
LEAST_FRESH = timedelta(minutes=1)


def duration(text: str) -> timedelta:
    """``7d`` as a time span. Raises ``ValueError`` when it is none."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _duration(value: str) -> str:
    try:
        duration(value)
    except ValueError:
        raise fail("duration", "this is not a time span", fix=DURATION_FIX) from None
    return value


def _cron(value: str) -> str:
    # Late: Dagster takes a second to import, and most specs have no schedule.
    from dagster._utils.schedules import is_valid_cron_string

    if not is_valid_cron_string(value):
        raise fail(
            "cron",
            "this is not a cron string",
            fix='minute, hour, day of month, month, day of week: "0 5 * * 1" is Mondays at 5:00',
        )
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, OSError, ValueError):  # unknown, a folder of zones, not a name at all
        raise fail(
            "timezone", "no such time zone", fix="an IANA name such as Europe/Berlin or UTC"
        ) from None
    return value


Duration = Annotated[str, AfterValidator(_duration)]


class Refresh(Strict):
    """What the ``refresh`` sensor may do with the dataset."""

    policy: Literal["on_change", "manual"] = Field(
        default="manual",
        description="`on_change`: what is out of sync is made again, except generation (see "
        "`generate`). `manual`: left alone, but for the ticks of `cron`.",
    )
    generate: Literal["on_change", "scheduled", "manual"] = Field(
        default="manual",
        description="When generation, which may cost money, is run: whenever it is out of sync, "
        "after a tick of `cron` (once per tick), or only by a person.",
    )
    cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="At each tick sources are looked at and the dataset is refreshed once; what "
        "failed before is tried once more.",
    )
    timezone: Annotated[str, AfterValidator(_timezone)] | None = Field(
        default=None, description="Of `cron`, as an IANA name. Left out: UTC."
    )
    fresh_within: Duration | None = Field(
        default=None, description="A release older than this is shown as overdue by Dagster."
    )
    observe_every: Duration = Field(
        default="15m",
        description="How often sources that are not local files are looked at (policy on_change).",
    )

    @property
    def active(self) -> bool:
        """Whether the sensor ever does anything with the dataset."""
        return self.policy == "on_change" or self.cron is not None

    @property
    def zone(self) -> str:
        return self.timezone or "UTC"

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> Self:
        if self.generate == "scheduled" and self.cron is None:
            raise fail(
                "schedule",
                "scheduled generation needs a schedule",
                key="generate",
                value=self.generate,
                fix='add cron: "0 5 * * 1", or use on_change or manual',
            )
        if self.generate == "on_change" and not self.active:
            raise fail(
                "never",
                "nothing is ever refreshed: the policy is manual, and there is no cron",
                key="generate",
                value=self.generate,
                fix="add policy: on_change, or a cron",
            )
        if self.timezone is not None and self.cron is None:
            raise fail(
                "timezone",
                "a time zone is only used together with cron",
                key="timezone",
                value=self.timezone,
                fix="add cron, or leave it out",
            )
        if self.fresh_within is not None and duration(self.fresh_within) < LEAST_FRESH:
            raise fail(
                "fresh_within",
                "this is too short to be watched",
                key="fresh_within",
                value=self.fresh_within,
                fix="at least 1m",
            )
        return self
