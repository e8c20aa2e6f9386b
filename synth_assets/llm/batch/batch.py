"""Asks a stream of requests in batches: half the price, hours instead of seconds.

    stream = ask_in_batches(requests, endpoint=endpoint, ledger=ledger, settings=settings, ...)

The promises are those of ``ask``: an Answer per request, durable before it is seen; nothing is
bought twice, nothing is lost at any kill. How a stream goes: it is walked; what the ledger has is
yielded; what an open batch holds is waited for, whoever submitted it; the rest is claimed, written
into the ledger as part of a batch, and submitted. The batches are looked at until one has ended;
its answers go into the ledger, and the stream is walked again, until everything is answered or
``wait_s`` is over. What is left then stays at the provider, and a later run collects it.

Memory does not grow with the stream when ``requests`` is a function that makes it: see
``stream``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from synth_assets.errors import EndpointError, Incomplete, UsageError
from synth_assets.llm.answers import Answer, Tallies
from synth_assets.llm.attempts import Event, unusable
from synth_assets.llm.batch import book
from synth_assets.llm.batch.book import OpenBatch
from synth_assets.llm.batch.keeper import Harvest, Keeper
from synth_assets.llm.batch.provider import Connect, Provider, Unavailable
from synth_assets.llm.batch.room import Room
from synth_assets.llm.batch.walk import Walk
from synth_assets.llm.budget import Budget, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import Failure
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.scheduler import Limits

T = TypeVar("T")
MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000
GROWTH = 1.5
# What the provider calls a batch that would be accepted later.
_QUEUE_FULL = "token_limit_exceeded"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How batches are made and waited for; none of it enters the request identity.

    ``wait_s``: how long a run waits for its batches; ``poll_s``: the first and the longest pause
    between two looks. ``discount``: what part of the declared prices a batch costs. ``attempts``:
    how often one run submits a request that comes back without an answer.
    """

    wait_s: float
    poll_s: tuple[float, float] = (5.0, 120.0)
    max_requests: int = MOST_REQUESTS
    max_bytes: int = MOST_BYTES
    completion_window: str = "24h"
    discount: float = 0.5
    attempts: int = 3

    def __post_init__(self) -> None:
        first, most = self.poll_s
        if self.wait_s < 0 or not 0 < first <= most:
            raise UsageError(f"not a time to wait: {self.wait_s}, {self.poll_s}", where="batch")
        if not 0 <= self.discount <= 1:
            raise UsageError(f"the discount is a part of the price, not {self.discount}")
        for name in ("max_requests", "max_bytes", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"must be at least 1, not {getattr(self, name)}", where=name)


class BatchPending(Incomplete):
    """Requests wait at the provider; nothing is wrong, a later run collects them."""

    def __init__(self, requests: int, batches: list[OpenBatch]) -> None:
        self.requests = requests
        self.batches = batches
        shown = ", ".join(
            f"{row.batch_id or row.token} ({row.detail or row.state}, since "
            f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(row.created_at))})"
            for row in batches[:5]
        )
        more = f" and {len(batches) - 5} more" if len(batches) > 5 else ""
        where = f"batches {shown}{more}" if batches else "another process"
        super().__init__(
            f"{requests} requests are still on their way in {where}",
            fix="run again later: what is answered by then is collected, nothing is asked twice",
        )


async def ask_in_batches(
    requests: Iterable[Request] | Callable[[], Iterable[Request]],
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    settings: BatchSettings,
    connect: Connect | None = None,
    limits: Limits | None = None,
    dataset: str = "",
    prices: Prices | None = None,
    budget: Budget | None = None,
    tallies: Tallies | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncGenerator[Answer, None]:
    """Yields one Answer per request, as batches are collected, each durable before it is seen.

    ``requests``: an iterable, of which the requests without an answer are kept in memory, or a
    function that makes the same stream each time it is called, of which nothing is kept.
    ``endpoint`` is needed for its identity; ``connect`` gives the one to talk to, called the
    first time that the ledger is not enough. ``limits``: timeouts, attempts and patience of calls
    to the provider. ``prices`` are the declared ones, before ``settings.discount``. ``stop``: when
    set, the stream ends at once; batches that were submitted stay at the provider. A request for
    which the budget has no room, with nothing on its way, comes back with ``ErrorKind.BUDGET``.

    Raises:
        BatchPending: when ``settings.wait_s`` is over; everything answered was yielded before.
        Incomplete: when a batch was cancelled at the provider and requests of it have no answer.
        EndpointError: when the provider refuses a batch, does not answer, or refuses every line.
        LedgerError: when answers cannot be kept.
        UsageError: when the budget needs a completion limit and a request has none.
    """
    run = _Run(
        requests,
        endpoint=endpoint,
        ledger=ledger,
        settings=settings,
        provider=Provider(endpoint, limits=limits or Limits(), connect=connect),
        dataset=dataset,
        prices=prices or (budget.prices if budget else None),
        budget=budget,
        tallies=tallies or Tallies(),
        on_event=on_event,
        stop=stop or asyncio.Event(),
    )
    try:
        async for answer in run.answers():
            yield answer
    finally:
        await run.leave()


class _Stopped(Exception):
    """``stop`` was set while something was under way."""


class _Run:
    """Walks and waits, in turns."""

    def __init__(
        self,
        requests: Iterable[Request] | Callable[[], Iterable[Request]],
        *,
        endpoint: Endpoint,
        ledger: Ledger,
        settings: BatchSettings,
        provider: Provider,
        dataset: str,
        prices: Prices | None,
        budget: Budget | None,
        tallies: Tallies,
        on_event: Callable[[Event], None] | None,
        stop: asyncio.Event,
    ) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._settings = settings
        self._provider = provider
        self._tallies = tallies
        self._on_event = on_event
        self._stop = stop
        self._deadline = time.monotonic() + settings.wait_s
        batch_prices = prices.discounted(settings.discount) if prices else None
        self._room = Room(budget, batch_prices, ledger, dataset)
        self._keeper = Keeper(
            ledger,
            provider,
            window=settings.completion_window,
            harvested=self._harvested,
        )
        self._walk = Walk(
            requests,
            endpoint=endpoint,
            ledger=ledger,
            room=self._room,
            dataset=dataset,
            prices=batch_prices,
            max_requests=settings.max_requests,
            max_bytes=settings.max_bytes,
            attempts=settings.attempts,
            submit=self._submit,
        )
        self._interval = settings.poll_s[0]
        self._worked = False
        self._last_failure: Failure | None = None
        self._unavailable: Unavailable | None = None

    # -- turns -------------------------------------------------------------------------------

    async def answers(self) -> AsyncIterator[Answer]:
        walk = self._walk
        try:
            while True:
                async with aclosing(walk.answers(self._stop.is_set)) as found:
                    async for answer in found:
                        self._count(answer)
                        yield answer
                if self._stop.is_set():
                    raise _Stopped
                if not walk.outstanding:
                    break
                if not await self._changed():
                    if self._unavailable is not None:
                        raise self._unavailable
                    self._check_end()
                    raise BatchPending(walk.outstanding, self._waiting_for())
        except _Stopped:
            self._tallies.stopped = True
            self._tell("stopping", "")
            return
        last = self._last_failure
        if not self._worked and last is not None and last.whole_endpoint:
            raise unusable(self._endpoint, last)

    async def leave(self) -> None:
        """Gives back what is not at the provider; safe to call at any time."""
        with suppress(Exception):
            await asyncio.shield(self._walk.leave())
        await self._provider.close()

    async def _changed(self) -> bool:
        """Looks at batches until one has ended; False when it makes no sense to wait longer."""
        while True:
            if await self._looked():
                self._interval = self._settings.poll_s[0]
                return True
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            live = bool(self._walk.elsewhere) or (self._walk.blocked and not self._walk.open)
            if not self._walk.open and not live:
                return False
            await self._unless_stopped(asyncio.sleep(min(self._interval, left)))
            self._interval = min(self._settings.poll_s[1], self._interval * GROWTH)
            if live:
                # Asked by others without a batch: only the ledger and the budget tell when
                # something has changed.
                return True

    async def _looked(self) -> bool:
        """One look at every batch that holds requests of ours, or room that we need."""
        changed = False
        for token in list(self._walk.open):
            submitting = token not in self._walk.foreign
            try:
                ended = await self._unless_stopped(self._keeper.visit(token, submitting=submitting))
            except Unavailable as error:
                # Nothing is lost by looking again: that is what the waiting time is for.
                self._unavailable = error
                self._tell("retry", error.problem)
                break
            self._unavailable = None
            if ended:
                changed = True
                self._ended(token)
        return changed

    def _ended(self, token: str) -> None:
        self._walk.closed(token)
        self._walk.holding = False
        row = book.batch(self._ledger, token)
        if row is None or row.state != book.FAILED:
            self._room.forfeit(token)
        else:
            self._room.refund(token)
            self._walk.untried(token)
        if row is None:
            return
        if row.state == book.FAILED:
            if _QUEUE_FULL not in row.detail:
                raise self._refusal(row.detail)
            # It is taken once others have been worked off.
            self._walk.holding = bool(self._walk.open)
            if not self._walk.open:
                raise self._refusal(row.detail)
        elif row.state == book.CANCELLED:
            self._walk.cancelled = row.batch_id or token

    def _check_end(self) -> None:
        """Nothing is on its way any more, and requests are left: why?"""
        walk = self._walk
        if walk.open or walk.elsewhere:
            return
        if walk.cancelled:
            raise Incomplete(
                f"batch {walk.cancelled} was cancelled; {walk.outstanding} requests have no answer",
                fix="run again to ask them",
            )

    def _refusal(self, detail: str) -> EndpointError:
        return EndpointError(
            f"the batch was refused ({self._endpoint.scrubbed(detail)})",
            where=f"model {self._endpoint.model!r} at {self._endpoint.host}",
            fix="nothing of it was bought; see the provider's message",
        )

    # -- what the parts tell -------------------------------------------------------------------

    async def _submit(self, row: OpenBatch) -> None:
        self._tallies.calls += row.requests
        self._tell("submitting", f"batch of {row.requests} requests")
        await self._unless_stopped(self._keeper.submit(row))

    def _harvested(self, row: OpenBatch, harvest: Harvest) -> None:
        self._room.settle(row.token, harvest.cost)
        self._walk.collected.add(row.token)
        self._worked = self._worked or harvest.stored > 0
        self._last_failure = harvest.last_failure or self._last_failure
        self._tallies.retried += harvest.returned
        self._tell("collected", f"batch {row.batch_id}: {harvest}")

    def _count(self, answer: Answer) -> None:
        self._tallies.count(answer)
        name = "replayed" if answer.replayed else "failed" if answer.error else "bought"
        self._tell(name, answer.error_detail, answer.request_id)

    def _tell(self, name: str, detail: str, request_id: str = "") -> None:
        if self._on_event is not None:
            self._on_event(Event(name, request_id, detail, self._tallies))

    def _waiting_for(self) -> list[OpenBatch]:
        rows = (book.batch(self._ledger, token) for token in self._walk.open)
        return [row for row in rows if row is not None]

    async def _unless_stopped(self, work: Any) -> Any:
        """The result of ``work``; cancels it and raises when ``stop`` is set meanwhile."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Stopped
            return task.result()
        finally:
            stopping.cancel()
            task.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)
