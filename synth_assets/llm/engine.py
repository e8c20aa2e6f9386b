"""Asks a stream of requests: from the ledger where it can, from the endpoint where it must.

    ledger = Ledger.open(path)
    async with aclosing(ask(requests, endpoint=endpoint, ledger=ledger)) as answers:
        async for answer in answers:
            ...

How a request goes: looked up in the ledger, many at a time; claimed, so that no other process
asks it too; room in the budget reserved; a place among the calls in flight; asked until it is
answered or given up; written to the ledger; yielded. What another process has claimed is looked
for again until it is there, or its owner is gone.

Bounded memory: at most ``window`` requests are between the stream and the consumer, however long
the stream and however slow the consumer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

from synth_assets.llm.answers import Answer, Tallies, replayed
from synth_assets.llm.attempts import Attempts, Event, unusable
from synth_assets.llm.budget import Budget, Prices, Reservation
from synth_assets.llm.client import Client
from synth_assets.llm.collecting import fewer_collections
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.outcomes import (
    GaveUp,
    bought_answer,
    call_row,
    failed_answer,
    failure_row,
    twin_answer,
    unasked_answer,
)
from synth_assets.llm.scheduler import Limits

LOOKUP = 512
FIRST_POLL_S = 0.05
MOST_POLL_S = 1.0


async def ask(
    requests: Iterable[Request],
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    connect: Callable[[], Endpoint] | None = None,
    limits: Limits | None = None,
    dataset: str = "",
    prices: Prices | None = None,
    budget: Budget | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: asyncio.Event | None = None,
    tallies: Tallies | None = None,
) -> AsyncGenerator[Answer, None]:
    """Yields one Answer per request, in the order they complete, each durable before it is seen.

    ``requests`` is read lazily. With ``connect``, ``endpoint`` only says whose answers are wanted;
    where to ask is what ``connect`` returns (in a worker thread, once, when there is something to
    ask), so that a replay needs no server. ``dataset`` labels what is bought. ``prices`` put a cost
    on each call (those of the budget by default). ``stop``: when set, calls in flight get
    ``limits.grace_s`` to answer, then the stream ends; so it does, without yielding, when the
    generator is closed or cancelled. Reaching the budget ends calls, not replays: the rest of the
    stream comes back with ``ErrorKind.BUDGET`` where the ledger has no answer.

    Raises EndpointError when every call fails alike, LedgerError when answers cannot be kept.
    """
    run = _Run(
        requests,
        endpoint=endpoint,
        connect=connect,
        ledger=ledger,
        limits=limits or Limits(),
        dataset=dataset,
        prices=prices or (budget.prices if budget else None),
        budget=budget,
        on_event=on_event,
        tallies=tallies or Tallies(),
    )
    with fewer_collections():
        run.start(stop)
        try:
            async for answer in run.answers():
                yield answer
        finally:
            await run.finish()


class _Run:
    """The tasks of one ``ask`` and what they share."""

    def __init__(
        self,
        requests: Iterable[Request],
        *,
        endpoint: Endpoint,
        connect: Callable[[], Endpoint] | None,
        ledger: Ledger,
        limits: Limits,
        dataset: str,
        prices: Prices | None,
        budget: Budget | None,
        on_event: Callable[[Event], None] | None,
        tallies: Tallies,
    ) -> None:
        self._requests = requests
        self._endpoint = endpoint
        self._ledger = ledger
        self._limits = limits
        self._dataset = dataset
        self._prices = prices
        self._budget = budget
        self._on_event = on_event
        self._tallies = tallies
        self._window = max(2 * LOOKUP, 4 * limits.concurrency)
        self._connect = connect
        self._client: Client | None = None
        self._attempts = Attempts(
            endpoint=endpoint,
            ledger=ledger,
            dataset=dataset,
            limits=limits,
            budget=budget,
            tallies=tallies,
            notify=self._notify,
        )
        self._pending: dict[str, list[Request]] = {}
        self._outstanding = 0
        self._missing: deque[Request] = deque()
        self._held: dict[str, Request] = {}
        self._granted: asyncio.Queue[Request] = asyncio.Queue()
        self._claimed: set[str] = set()
        self._out: deque[Answer] = deque()
        self._all_read = False
        self._error: BaseException | None = None
        self._ended = False
        self._stirred = asyncio.Event()  # something came out, or the end
        self._space = asyncio.Event()  # the consumer took something
        self._more = asyncio.Event()  # the claimer has something to do
        self._waiting = asyncio.Event()  # the poller has something to do
        self._less = asyncio.Event()  # a call came to its end
        self._loops: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._finishing: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------

    def start(self, stop: asyncio.Event | None) -> None:
        parts = [self._read(), self._claim(), self._launch(), self._poll()]
        if stop is not None:
            parts.append(self._watch(stop))
        self._loops = [asyncio.create_task(part) for part in parts]
        for task in self._loops:
            task.add_done_callback(self._failed)

    async def answers(self) -> AsyncIterator[Answer]:
        while True:
            while self._out:
                answer = self._out.popleft()
                self._outstanding -= 1
                self._space.set()
                self._tallies.count(answer)
                yield answer
            if self._ended:
                break
            if self._all_read and not self._pending:
                break
            self._stirred.clear()
            await self._stirred.wait()
        if self._error is not None:
            raise self._error
        breaker = self._attempts.breaker
        if not self._tallies.stopped and breaker.nothing_worked() and breaker.last is not None:
            raise unusable(self._endpoint, breaker.last)

    async def finish(self) -> None:
        """Ends every task, keeping what is on its way; safe to call again."""
        if self._finishing is None:
            self._finishing = asyncio.create_task(self._wind_down())
        await asyncio.shield(self._finishing)

    async def _wind_down(self) -> None:
        self._attempts.stopping = True
        in_flight = self._attempts.in_flight
        idle = [task for task in (*self._loops, *self._calls) if task not in in_flight]
        for task in idle:
            task.cancel()
        if self._calls & in_flight:
            await asyncio.wait(self._calls & in_flight, timeout=self._limits.grace_s)
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._loops, *self._calls, return_exceptions=True)
        if self._claimed:
            with suppress(Exception):
                await self._ledger.release(self._claimed)
            self._claimed.clear()
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        self._ended = True
        self._stirred.set()

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop()

    def _stop(self) -> None:
        if self._finishing is None:
            self._tallies.stopped = True
            self._emit_event("stopping", "", "")
            self._finishing = asyncio.create_task(self._wind_down())

    def _failed(self, task: asyncio.Task[None]) -> None:
        """A task that ended in error ends the run: what is in flight is kept, then it is raised."""
        self._calls.discard(task)
        self._less.set()
        self._attempts.in_flight.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._error is None:
            self._error = error
            if self._finishing is None:
                self._finishing = asyncio.create_task(self._wind_down())

    # -- reading and looking up ----------------------------------------------------------------

    async def _read(self) -> None:
        stream = iter(self._requests)
        while True:
            while (free := self._window - self._outstanding) <= 0:
                self._space.clear()
                await self._space.wait()
            chunk = list(islice(stream, min(LOOKUP, free)))
            if not chunk:
                break
            await self._look_up(chunk)
        self._all_read = True
        self._stirred.set()

    async def _look_up(self, chunk: Sequence[Request]) -> None:
        self._outstanding += len(chunk)
        fresh: list[Request] = []
        for request in chunk:
            if request.endpoint != self._endpoint.identity:
                raise ValueError(
                    f"a request for endpoint {request.endpoint!r} cannot be asked at "
                    f"{self._endpoint.identity!r}: its answer would be kept under a wrong name"
                )
            twins = self._pending.get(request.request_id)
            if twins is not None:
                # The same question twice in one stream: asked once, answered twice.
                twins.append(request)
            else:
                self._pending[request.request_id] = [request]
                fresh.append(request)
        missing = await self._replay(fresh)
        self._missing.extend(missing)
        if missing:
            self._more.set()

    async def _replay(self, requests: Sequence[Request]) -> list[Request]:
        """Yields what the ledger has; returns the rest."""
        stored = await self._ledger.get_many([request.request_id for request in requests])
        missing = []
        for request in requests:
            row = stored.get(request.request_id)
            answer = replayed(request, row) if row is not None else None
            if answer is None:
                missing.append(request)
            else:
                self._emit(answer)
        return missing

    # -- claiming ------------------------------------------------------------------------------

    async def _claim(self) -> None:
        """Claims ahead, so that calls never wait for a commit, but not further than needed."""
        while True:
            ahead = max(1, int(self._attempts.gate.limit))
            if not self._missing or self._granted.qsize() >= ahead:
                self._more.clear()
                await self._more.wait()
                continue
            batch = [self._missing.popleft() for _ in range(min(ahead, len(self._missing)))]
            if self._budget is not None and self._budget.reached:
                for request in batch:
                    self._emit(unasked_answer(request))
                await asyncio.sleep(0)
            else:
                await self._claim_batch({request.request_id: request for request in batch})

    async def _claim_batch(self, wanted: dict[str, Request]) -> bool:
        """Sorts requests into ours, answered and held; True when any of them moved on."""
        claims = await self._ledger.claim(list(wanted))
        self._claimed |= claims.granted
        for name, request in wanted.items():
            if name in claims.granted:
                self._held.pop(name, None)
                self._granted.put_nowait(request)
        if claims.answered:
            lost = await self._replay([wanted[name] for name in claims.answered])
            for name in claims.answered:
                self._held.pop(name, None)
            for request in lost:
                # The row is there and cannot be read: asked again, for this run only.
                self._granted.put_nowait(request)
        for name in claims.held:
            if name not in self._held:
                self._held[name] = wanted[name]
                self._notify("waiting", wanted[name], "another process asks it")
        if self._held:
            self._waiting.set()
        return bool(claims.granted or claims.answered)

    async def _poll(self) -> None:
        """Waits for the answers of other processes, or for their end."""
        wait = FIRST_POLL_S
        while True:
            if not self._held:
                self._waiting.clear()
                await self._waiting.wait()
                wait = FIRST_POLL_S
            await asyncio.sleep(wait)
            batch = dict(islice(self._held.items(), LOOKUP))
            moved = await self._claim_batch(batch)
            # Those behind get a turn too; and less often, as long as nothing moves.
            for name in batch:
                if name in self._held:
                    self._held[name] = self._held.pop(name)
            wait = FIRST_POLL_S if moved else min(MOST_POLL_S, wait * 1.5)

    # -- asking --------------------------------------------------------------------------------

    async def _launch(self) -> None:
        while True:
            request = await self._granted.get()
            self._more.set()
            if self._client is None:
                await self._open_client()
            while len(self._calls) >= self._attempts.most_open:
                self._less.clear()
                await self._less.wait()
            payload = request.payload()
            reservation = await self._attempts.admitted(request, payload)
            if reservation is None:
                await self._let_go(request)
                self._emit(unasked_answer(request))
                continue
            self._tallies.concurrency = self._attempts.gate.active
            task = asyncio.create_task(self._one(request, payload, reservation))
            self._calls.add(task)
            task.add_done_callback(self._failed)
            task.add_done_callback(partial(self._refund, reservation))

    async def _open_client(self) -> None:
        endpoint = self._endpoint
        if self._connect is not None:
            endpoint = await asyncio.to_thread(self._connect)
            if endpoint.identity != self._endpoint.identity:
                raise ValueError(f"connected to {endpoint.identity!r}: another's answers")
        client = Client(
            endpoint,
            timeout_s=self._limits.timeout_s,
            connect_timeout_s=self._limits.connect_timeout_s,
            connections=self._limits.concurrency,
        )
        self._client = await client.__aenter__()
        self._attempts.use(client, endpoint)

    async def _one(self, request: Request, payload: bytes, reservation: Reservation) -> None:
        outcome = await self._attempts.asked(request, payload, reservation)
        if isinstance(outcome, GaveUp):
            await self._keep_failure(request, outcome)
            return
        row = call_row(request, outcome, dataset=self._dataset, prices=self._prices)
        if await self._ledger.put(row):
            self._claimed.discard(request.request_id)
            self._emit(bought_answer(request, outcome, row))
            return
        # Another process was faster (we were frozen, say): its answer is the one that counts.
        self._claimed.discard(request.request_id)
        if await self._replay([request]):
            self._emit(bought_answer(request, outcome, row))

    def _refund(self, reservation: Reservation, _: asyncio.Task[None]) -> None:
        """A task cancelled before its first step has not asked anything."""
        if self._budget is not None:
            self._budget.refund(reservation)

    async def _keep_failure(self, request: Request, gave_up: GaveUp) -> None:
        failure = gave_up.failure
        if failure.kind is not ErrorKind.BUDGET:
            await self._ledger.put_failure(failure_row(request, gave_up, dataset=self._dataset))
        await self._let_go(request)
        self._emit(failed_answer(request, gave_up))

    async def _let_go(self, request: Request) -> None:
        await self._ledger.release([request.request_id])
        self._claimed.discard(request.request_id)

    # -- telling -----------------------------------------------------------------------------

    def _emit(self, answer: Answer) -> None:
        """Hands an answer out, once for every request of the stream that asked it."""
        twins = self._pending.pop(answer.request_id)
        self._out.append(answer)
        for twin in twins[1:]:
            self._out.append(twin_answer(answer, twin))
        self._stirred.set()
        if self._on_event is not None:
            name = "replayed" if answer.replayed else "failed" if answer.error else "bought"
            self._emit_event(name, answer.request_id, answer.error_detail)

    def _notify(self, name: str, request: Request, detail: str) -> None:
        if self._on_event is not None:
            self._emit_event(name, request.request_id, detail)

    def _emit_event(self, name: str, request_id: str, detail: str) -> None:
        if self._on_event is not None:
            self._on_event(Event(name, request_id, detail, self._tallies))
