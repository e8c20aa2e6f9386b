"""How many calls at once, how fast, and how long to wait: adaptive concurrency, rates, backoff."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeVar

from synth_assets.errors import SynthError

T = TypeVar("T")

INITIAL_CONCURRENCY: Final = 8
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MOST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may do to an endpoint. None of it enters the request identity.

    ``concurrency``: most calls at once; the number in use adapts below it. ``requests_per_min``
    and ``tokens_per_min`` (prompt and completion): never exceeded in any minute, tokens as far as
    they can be estimated before a call. ``timeout_s`` bounds one attempt, ``connect_timeout_s``
    its connection. ``max_attempts`` counts the attempts of a request that fail; waiting for a
    throttling endpoint does not count, but ``patience_s`` without any answer ends the run, and a
    Retry-After beyond it is taken as a no. ``grace_s``: how long calls in flight may still answer
    after a stop.
    """

    concurrency: int = 32
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    max_attempts: int = 6
    patience_s: float = 600.0
    grace_s: float = 4.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout_s", "connect_timeout_s", "max_attempts", "patience_s"):
            if getattr(self, name) <= 0:
                raise SynthError(f"must be above zero, not {getattr(self, name)}", where=name)
        for name in ("requests_per_min", "tokens_per_min"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SynthError(f"must be above zero, not {value}", where=name, fix="leave it out")


class Gate:
    """Additive increase, multiplicative decrease of the calls in flight.

    Every success adds 1/limit, so a full window of them adds one; every sign of congestion takes
    one half, so a window of nothing else halves the limit, and a few among many successes cost
    little: the decrease is proportional to the share of congested calls, as in DCTCP (RFC 8257,
    section 3.3). Before the first sign the limit doubles per window (slow start, RFC 5681).
    ``pause_until`` holds back every new call: Retry-After speaks for the whole endpoint.
    """

    def __init__(self, most: int, *, initial: int = INITIAL_CONCURRENCY) -> None:
        self.limit = float(min(initial, most))
        self.active = 0
        self._most = most
        self._starting = True
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0

    async def enter(self) -> None:
        """Waits for a place; leave with ``leave``. Cancelling the wait gives it up."""
        if self.active < int(self.limit) and not self._waiters:
            self.active += 1
        else:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.leave()
                raise
        try:
            await self.wait_out_pause()
        except asyncio.CancelledError:
            self.leave()
            raise

    def leave(self) -> None:
        self.active -= 1
        self._admit()

    def succeeded(self) -> None:
        self.limit = min(self._most, self.limit + (1.0 if self._starting else 1.0 / self.limit))
        self._admit()

    def congested(self) -> None:
        self._starting = False
        self.limit = max(1.0, self.limit - 0.5)

    def pause_until(self, when: float) -> None:
        """No new call before ``when`` (``time.monotonic`` seconds)."""
        self._paused_until = max(self._paused_until, when)

    async def wait_out_pause(self) -> None:
        """Sleeps until no pause holds."""
        while (remaining := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(remaining)

    def _admit(self) -> None:
        while self._waiters and self.active < int(self.limit):
            place = self._waiters.popleft()
            if not place.done():
                self.active += 1
                place.set_result(None)


class Pacer:
    """Spaces costs evenly, so that no minute ever holds more than ``per_minute`` of them.

    A virtual clock: each entry takes the next free moment and moves it on by its cost. Even
    spacing instead of a bucket that may be emptied at once: two full bursts within one minute are
    what providers count as breaking the limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def enter(self, cost: float = 1.0) -> None:
        """Waits for the moment of this cost."""
        if not self._seconds_each:
            return
        now = time.monotonic()
        moment = max(now, self._next)
        self._next = moment + cost * self._seconds_each
        if moment > now:
            await asyncio.sleep(moment - now)

    def settle(self, difference: float) -> None:
        """Corrects an estimate afterwards: positive when the cost was higher."""
        self._next += difference * self._seconds_each


def backoff_s(failures: int, *, rng: random.Random) -> float:
    """Seconds before the next attempt: exponential with full jitter.

    Full jitter: uniform between zero and the exponential bound (M. Brooker, "Exponential backoff
    and jitter", 2015), which spreads a crowd of retries best.
    """
    return rng.uniform(0.0, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures, 10)))
