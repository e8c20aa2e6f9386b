"""Concurrency, pacing and turns."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import SynthError
from synth_assets.llm.scheduler import BACKOFF_MOST_S, Gate, Limits, Pacer, backoff_s
from tests.llm_support import run


def test_a_window_of_successes_adds_one_after_the_first_sign_of_congestion() -> None:
    gate = Gate(100)
    gate.congested()
    before = gate.limit
    for _ in range(int(before)):
        gate.succeeded()
    assert before + 0.8 < gate.limit <= before + 1


def test_a_window_of_congestion_halves_the_limit() -> None:
    gate = Gate(1000, initial=64)
    for _ in range(64):
        gate.congested()
    assert gate.limit == 32
    for _ in range(1000):
        gate.congested()
    assert gate.limit == 1


def test_the_limit_doubles_per_window_until_congestion() -> None:
    gate = Gate(64)
    for _ in range(8):
        gate.succeeded()
    assert gate.limit == 16
    for _ in range(1000):
        gate.succeeded()
    assert gate.limit == 64


def test_a_cancelled_wait_gives_its_place_to_the_next() -> None:
    async def play() -> int:
        gate = Gate(1)
        await gate.enter()
        waits = [asyncio.create_task(gate.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        gate.leave()
        waits[1].cancel()
        await asyncio.sleep(0.01)
        await waits[2]
        return gate.active

    assert run(play()) == 1


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=12), st.floats(30_000, 60_000))
@settings(max_examples=20, deadline=None)
def test_no_minute_holds_more_than_its_share(costs: list[float], per_minute: float) -> None:
    async def play() -> float:
        pacer = Pacer(per_minute)
        started = time.monotonic()
        for cost in costs:
            await pacer.enter(cost)
        return time.monotonic() - started

    assert run(play()) >= sum(costs[:-1]) * 60 / per_minute * 0.99 - 0.002


def test_no_limit_means_no_wait() -> None:
    async def play() -> None:
        pacer = Pacer(None)
        for _ in range(10_000):
            await pacer.enter(1e9)

    asyncio.run(asyncio.wait_for(play(), 5))


def test_backoff_is_bounded_and_jittered() -> None:
    waits = [backoff_s(n % 40, rng=random.Random(n)) for n in range(400)]
    assert min(waits) >= 0
    assert max(waits) <= BACKOFF_MOST_S
    assert len(set(waits)) > 350


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"timeout_s": -1}, {"requests_per_min": 0}])
def test_limits_below_zero_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(SynthError, match=next(iter(bad))):
        Limits(**bad)  # type: ignore[arg-type]
