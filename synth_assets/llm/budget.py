"""Never more than was allowed: reserve the worst case before a call, settle after it.

The worst case of a call: every byte of the request a token (byte-level tokenizers never make
more), room for the chat template, and the completion limit of the body, at the highest price that
a call of that size can meet. What was reserved and
not used comes back when the call ends. A call that timed out may have been billed without our
seeing it, so it stays spent in full.

The cap holds for the calls that go through one Budget object; start it with what the ledger says
was spent before, to make it hold over restarts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from synth_assets.errors import SynthError, UsageError, shown
from synth_assets.llm.ledger.rows import Spent

TEMPLATE_TOKENS: Final = 256
_LIMIT_KEYS = ("max_completion_tokens", "max_tokens")
# Sums of many small floats: a cap of 2.0 must not fail on 2.0000000000000004.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PriceTier:
    """Other prices for all tokens of a call whose prompt is longer than ``above_prompt_tokens``."""

    above_prompt_tokens: int
    input_per_million: float
    output_per_million: float


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million tokens, as they are when the call is made.

    ``source``: where they come from ("declared", "genai-prices 0.2.3"). ``discount`` is a factor on
    the whole: 1.0 live, 0.5 in most batch offers. ``per_call`` is US dollars for each call, beside
    its tokens. Tokens read from a provider's prompt cache are counted at the full price, so a cost
    is an upper bound there. Raises SynthError for a negative price.
    """

    input_per_million: float
    output_per_million: float
    source: str = "declared"
    discount: float = 1.0
    tiers: tuple[PriceTier, ...] = ()
    per_call: float = 0.0

    def __post_init__(self) -> None:
        numbers = [self.input_per_million, self.output_per_million, self.discount, self.per_call]
        numbers += [tier.input_per_million for tier in self.tiers]
        numbers += [tier.output_per_million for tier in self.tiers]
        if not all(number >= 0 for number in numbers):
            raise SynthError(f"a price cannot be negative: {self}", where="prices")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """US dollars of one call, in the tier that its prompt falls into."""
        rates = (self.input_per_million, self.output_per_million)
        for tier in self.tiers:
            if prompt_tokens > tier.above_prompt_tokens:
                rates = (tier.input_per_million, tier.output_per_million)
        return self._usd(prompt_tokens, completion_tokens, *rates)

    def worst_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most US dollars that one call can cost with at most so many tokens of each kind."""
        reached = [tier for tier in self.tiers if prompt_tokens > tier.above_prompt_tokens]
        dearest_in = max([self.input_per_million, *(tier.input_per_million for tier in reached)])
        dearest_out = max([self.output_per_million, *(tier.output_per_million for tier in reached)])
        return self._usd(prompt_tokens, completion_tokens, dearest_in, dearest_out)

    def discounted(self, factor: float) -> Prices:
        """The same prices times ``factor``, on top of any discount they have."""
        return replace(self, discount=self.discount * factor)

    def as_json(self) -> str:
        """All of it, so that a stored row tells its price and where it came from."""
        return orjson.dumps(self).decode()

    def _usd(self, prompt: float, completion: float, rate_in: float, rate_out: float) -> float:
        tokens = (prompt * rate_in + completion * rate_out) / 1e6
        return (tokens + self.per_call) * self.discount


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that may be spent: US dollars, tokens of both kinds, answered calls."""

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None

    @property
    def needs_token_bound(self) -> bool:
        return self.usd is not None or self.tokens is not None


@dataclass(frozen=True, slots=True)
class Cost:
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.calls - other.calls, self.tokens - other.tokens, self.usd - other.usd)


@dataclass(eq=False, slots=True)
class Reservation:
    """Room held for one call; end it with exactly one of ``Budget.settle`` and ``refund``."""

    worst: Cost
    open: bool = field(default=True)


class Budget:
    """Reservations under the caps, within one event loop."""

    def __init__(
        self, caps: Caps, *, prices: Prices | None = None, before: Spent | None = None
    ) -> None:
        if caps.usd is not None and prices is None:
            raise UsageError(
                "a budget in US dollars needs prices",
                where="budget.usd",
                fix="declare the prices of the model, or cap tokens or calls instead",
            )
        spent = before or Spent()
        self.caps = caps
        self.prices = prices
        self.spent = Cost(spent.calls, spent.prompt_tokens + spent.completion_tokens, spent.usd)
        self.reserved = Cost()
        self.reached = False
        self._open = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def worst_case(self, body: Mapping[str, Any], payload: bytes) -> Cost:
        """The most that one call with this body can cost.

        Raises UsageError when the body has no completion limit and the caps need one.
        """
        if not self.caps.needs_token_bound:
            return Cost(calls=1)
        most = completion_limit(body)
        if most is None:
            raise UsageError(
                "a budget in US dollars or tokens needs a completion limit in every request",
                where="sampling",
                fix="set max_tokens (or max_completion_tokens)",
            )
        prompt = len(payload) + TEMPLATE_TOKENS
        usd = self.prices.worst_cost(prompt, most) if self.prices else 0.0
        return Cost(1, prompt + most, usd)

    async def reserve(self, worst: Cost) -> Reservation | None:
        """Holds room; waits while calls in flight may give some back. None: the cap is reached."""
        while not self._fits(worst):
            if not self._open:
                self.reached = True
                return None
            freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(freed)
            await freed
        self.reserved += worst
        self._open += 1
        return Reservation(worst)

    def settle(self, reservation: Reservation, actual: Cost | None) -> None:
        """Turns a reservation into spending; None: unknown, so all of it is spent."""
        if self._close(reservation):
            self.spent += reservation.worst if actual is None else actual

    def refund(self, reservation: Reservation) -> None:
        """Gives a reservation back: the call cannot have been billed."""
        self._close(reservation)

    def _close(self, reservation: Reservation) -> bool:
        if not reservation.open:
            return False
        reservation.open = False
        self.reserved -= reservation.worst
        self._open -= 1
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        return True

    def _fits(self, worst: Cost) -> bool:
        total = self.spent + self.reserved + worst
        caps = self.caps
        return (
            (caps.calls is None or total.calls <= caps.calls)
            and (caps.tokens is None or total.tokens <= caps.tokens)
            and (caps.usd is None or total.usd <= caps.usd + _ROUNDING)
        )


def completion_limit(body: Mapping[str, Any]) -> int | None:
    """The most completion tokens the body allows, over all its choices; None when unlimited."""
    limits = [body[key] for key in _LIMIT_KEYS if body.get(key) is not None]
    if not limits:
        return None
    if not all(type(limit) is int and limit > 0 for limit in limits):
        raise UsageError("the completion limit is no positive number", where=shown(limits))
    choices = max(body.get("n") or 1, body.get("best_of") or 1)
    return int(max(limits) * choices)
