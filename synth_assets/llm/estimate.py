"""Calls, tokens, money and time of work that has not begun: arithmetic on counts and limits.

Nothing is read or asked here; ``forecast`` brings the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from synth_assets.llm.budget import Prices
from synth_assets.llm.ledger.history import Pace
from synth_assets.llm.scheduler import Limits

# With no call to learn from: a hosted model's wait for the first token, and its speed after that.
FIRST_TOKEN_S: Final = 0.8
TOKENS_PER_SECOND: Final = 60.0
# The embedded server on one physical core and a model file of 253 MB (Gemma 3 270M, Q4_K_M), with
# all slots in use; the time grows with the file, whose every byte is read for each token.
EMBEDDED_READ_PER_S: Final = 450.0
EMBEDDED_WRITTEN_PER_S: Final = 50.0
EMBEDDED_FILE_MB: Final = 253.0
EMBEDDED_START_S: Final = 2.0

FIGURES: Final = ("calls", "prompt_tokens", "completion_tokens", "usd", "seconds")


@dataclass(frozen=True)
class Work:
    """What is to be asked.

    ``rounds``: expected calls of each round, those in the ledger included; ``cached_calls`` of all
    of them are there. ``prompt_tokens`` and ``completion_tokens`` are those of the other calls.
    """

    rounds: Sequence[int]
    cached_calls: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def calls(self) -> int:
        return sum(self.rounds)

    @property
    def to_ask(self) -> int:
        return max(0, self.calls - self.cached_calls)


@dataclass(frozen=True)
class Cores:
    """An embedded model: its speed is that of the machine's cores, however many calls are open."""

    cores: int
    file_mb: float = EMBEDDED_FILE_MB


@dataclass(frozen=True)
class Estimate:
    """Expected figures. ``calls`` holds the ``cached_calls``, which cost nothing; tokens, money and
    time are those of the rest. ``usd`` is None when no price is known; ``how`` says for each figure
    where it comes from."""

    calls: int
    cached_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float
    how: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "how": dict(self.how)}


def estimate(
    work: Work,
    *,
    limits: Limits,
    prices: Prices | None,
    pace: Pace | None,
    cores: Cores | None = None,
    how: Mapping[str, str] | None = None,
) -> Estimate:
    """What ``work`` will cost and take.

    ``pace`` is what was measured of this model, if anything; ``cores`` belong to an embedded one.
    ``how`` describes the counts, and is passed on with what is known here.
    """
    seconds, timed_by = _seconds(work, limits, pace, cores)
    usd, priced_by = None, "no price is known: declare generate.prices"
    if prices is not None:
        usd, priced_by = _usd(work, prices), prices.source
        if prices.discount != 1.0:
            priced_by += f", times {prices.discount:g}"
    return Estimate(
        calls=work.calls,
        cached_calls=work.cached_calls,
        prompt_tokens=work.prompt_tokens,
        completion_tokens=work.completion_tokens,
        usd=usd,
        seconds=round(seconds, 1),
        how={**(how or {}), "usd": priced_by, "seconds": timed_by},
    )


def forecast_error(expected: Estimate, spent: Mapping[str, float | None]) -> dict[str, Any]:
    """Percent by which each figure was expected too high (positive) or too low.

    ``spent`` by the names in ``FIGURES``; None where either is not known, or nothing was spent.
    """
    return {name: _percent(getattr(expected, name), spent.get(name)) for name in FIGURES}


def _percent(expected: float | None, spent: float | None) -> float | None:
    if expected is None or not spent:
        return None
    return round(100 * (expected - spent) / spent, 1)


def _usd(work: Work, prices: Prices) -> float:
    """Priced per call, for the tier depends on a call's size."""
    if not work.to_ask:
        return 0.0
    each = prices.cost(work.prompt_tokens / work.to_ask, work.completion_tokens / work.to_ask)
    return round(each * work.to_ask, 6)


def _seconds(
    work: Work, limits: Limits, pace: Pace | None, cores: Cores | None
) -> tuple[float, str]:
    if not work.to_ask:
        return 0.0, "nothing is to be asked"
    if cores is not None:
        asking, how = _on_cores(work, pace, cores)
    else:
        asking, how = _at_a_host(work, limits, pace)
    for bound, name in (
        (_by_requests(work, limits), "requests"),
        (_by_tokens(work, limits), "tokens"),
    ):
        if bound > asking:
            asking, how = bound, f"bounded by generate.{name}_per_min"
    return asking, how


def _on_cores(work: Work, pace: Pace | None, cores: Cores) -> tuple[float, str]:
    if pace is not None and pace.per_second > 0:
        longer = _share(work.completion_tokens / work.to_ask, pace.tokens)
        how = f"{pace.per_second:.2f} calls/s in the last {pace.calls} calls of this model"
        return EMBEDDED_START_S + work.to_ask * longer / pace.per_second, how
    size = cores.file_mb / EMBEDDED_FILE_MB
    read = work.prompt_tokens / EMBEDDED_READ_PER_S
    written = work.completion_tokens / EMBEDDED_WRITTEN_PER_S
    how = (
        f"assumed: {EMBEDDED_READ_PER_S / size:.0f} tokens/s read and "
        f"{EMBEDDED_WRITTEN_PER_S / size:.0f} written on each of {cores.cores} cores"
    )
    return EMBEDDED_START_S + (read + written) * size / cores.cores, how


def _at_a_host(work: Work, limits: Limits, pace: Pace | None) -> tuple[float, str]:
    tokens = work.completion_tokens / work.to_ask
    if pace is not None:
        latency = pace.latency_s * _share(tokens, pace.tokens)
        how = f"median {pace.latency_s:.2f} s in the last {pace.calls} calls of this model"
    else:
        latency = FIRST_TOKEN_S + tokens / TOKENS_PER_SECOND
        how = (
            f"assumed: {FIRST_TOKEN_S} s to the first token, then {TOKENS_PER_SECOND:.0f} tokens/s"
        )
    share = work.to_ask / work.calls
    waves = sum(max(1.0, calls * share / limits.concurrency) for calls in work.rounds if calls)
    return waves * latency, f"{how}, {limits.concurrency} calls at once"


def _by_requests(work: Work, limits: Limits) -> float:
    return (work.to_ask - 1) * 60 / limits.requests_per_min if limits.requests_per_min else 0.0


def _by_tokens(work: Work, limits: Limits) -> float:
    tokens = work.prompt_tokens + work.completion_tokens
    return tokens * 60 / limits.tokens_per_min if limits.tokens_per_min else 0.0


def _share(expected: float, known: float) -> float:
    """How much longer an answer takes than the known ones, by its tokens."""
    return expected / known if known > 0 and expected > 0 else 1.0
