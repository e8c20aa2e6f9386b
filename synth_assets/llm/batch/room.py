"""Money and batches: reduced prices, and room in the budget for what is on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import orjson

from synth_assets.llm.batch.book import OpenBatch, open_batches
from synth_assets.llm.budget import (
    TEMPLATE_TOKENS,
    Budget,
    Cost,
    Prices,
    PriceTier,
    Reservation,
    completion_limit,
)
from synth_assets.llm.ledger.ledger import Ledger

BATCH_NOTE: Final = "batch"
# A batch of an unlimited request: more than any budget has.
_UNBOUNDED = Cost(0, 10**15, math.inf)
_ROUNDING = 1e-9


def batch_prices_json(prices: Prices) -> str:
    """Reduced prices as they are kept with a call, marked as those of a batch."""
    return orjson.dumps({**orjson.loads(prices.as_json()), BATCH_NOTE: True}).decode()


def prices_of(text: str | None) -> Prices | None:
    """The prices in a stored JSON text."""
    if text is None:
        return None
    stored = orjson.loads(text)
    known = {field.name for field in fields(Prices)}
    parts = {name: value for name, value in stored.items() if name in known}
    tiers = tuple(PriceTier(**tier) for tier in parts.pop("tiers", ()))
    return Prices(**parts, tiers=tiers)


def worst_case(body: Mapping[str, Any], size: int, prices: Prices | None) -> Cost | None:
    """The most a request of ``size`` bytes costs at these (reduced) prices; None: no bound."""
    most = completion_limit(body)
    if most is None:
        return None
    prompt = size + TEMPLATE_TOKENS
    return Cost(1, prompt + most, prices.worst_cost(prompt, most) if prices else 0.0)


class Room:
    """Reservations of batches in a Budget, and the open batches of others that use it up too.

    ``prices`` are the reduced ones. A batch of this dataset that another run submitted counts at
    its worst case while it is open, and stays spent at it when somebody else collects it.
    """

    def __init__(
        self, budget: Budget | None, prices: Prices | None, ledger: Ledger, dataset: str
    ) -> None:
        self._budget = budget
        self._prices = prices
        self._ledger = ledger
        self._dataset = dataset
        self._own: dict[str, list[Reservation]] = {}
        self._others: dict[str, OpenBatch] = {}

    @property
    def others(self) -> list[OpenBatch]:
        """Open batches of this dataset that this run did not submit."""
        return list(self._others.values())

    @property
    def in_use(self) -> bool:
        """Whether calls on their way may give room back."""
        return self._budget is not None and self._budget.reserved.calls > 0

    def refresh(self) -> None:
        """Reads which batches of others are open."""
        if self._budget is None:
            return
        batches = open_batches(self._ledger, self._dataset)
        found = {row.token: row for row in batches if row.token not in self._own}
        for token in self._others.keys() - found.keys():
            self._budget.spent += _most(self._others[token])
        self._others = found

    def worst(self, body: Mapping[str, Any], payload: bytes) -> Cost | None:
        """The most this request costs; None: no bound. Raises UsageError when one is needed."""
        if self._budget is not None:
            self._budget.worst_case(body, payload)
        return worst_case(body, len(payload), self._prices)

    def fits(self, cost: Cost) -> bool:
        """Whether ``cost`` may be reserved now, without waiting for anything."""
        if self._budget is None:
            return True
        total = self._budget.spent + self._budget.reserved + cost
        for row in self._others.values():
            total += _most(row)
        caps = self._budget.caps
        return (
            (caps.calls is None or total.calls <= caps.calls)
            and (caps.tokens is None or total.tokens <= caps.tokens)
            and (caps.usd is None or total.usd <= caps.usd + _ROUNDING)
        )

    def reach(self) -> None:
        """The budget has no room and nothing gives any back."""
        if self._budget is not None:
            self._budget.reached = True

    async def reserve(self, token: str, cost: Cost) -> None:
        """Holds room that ``fits`` said is there."""
        if self._budget is not None:
            reservation = await self._budget.reserve(cost)
            if reservation is not None:
                self._own.setdefault(token, []).append(reservation)

    def settle(self, token: str, actual: Cost) -> None:
        """A batch is collected (by us): what it held is spent as far as it was used.

        Batches of other datasets are none of this budget's.
        """
        if self._budget is None or not (token in self._own or token in self._others):
            return
        self._others.pop(token, None)
        for reservation in self._own.pop(token, ()):
            self._budget.refund(reservation)
        self._budget.spent += actual

    def forfeit(self, token: str) -> None:
        """A batch of ours was collected by another process: spent at its worst case."""
        if self._budget is not None:
            for reservation in self._own.pop(token, ()):
                self._budget.settle(reservation, None)

    def refund(self, token: str) -> None:
        """A batch came to nothing."""
        self.settle(token, Cost())


def _most(row: OpenBatch) -> Cost:
    if row.tokens is None:
        return Cost(row.requests, _UNBOUNDED.tokens, _UNBOUNDED.usd)
    return Cost(row.requests, row.tokens, row.usd or 0.0)
