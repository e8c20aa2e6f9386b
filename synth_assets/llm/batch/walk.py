"""One walk over the stream: yields what is answered, puts what nobody asks into batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from synth_assets.errors import UsageError
from synth_assets.llm.answers import Answer, replayed
from synth_assets.llm.batch import book
from synth_assets.llm.batch.book import OpenBatch
from synth_assets.llm.batch.draft import Draft
from synth_assets.llm.batch.files import LINE_BYTES
from synth_assets.llm.batch.room import Room, batch_prices_json
from synth_assets.llm.batch.stream import Seat, Stream
from synth_assets.llm.budget import Cost, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import ErrorKind, Failure
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import LedgerError
from synth_assets.llm.outcomes import GaveUp, failed_answer, failure_row, unasked_answer

CHUNK = 500
Seats = dict[str, list[Seat]]


class Walk:
    """What a run knows between walks.

    ``open``: the batches that are waited for; those in ``foreign`` hold no request of ours, only
    room in the budget. ``collected``: batches whose answers this run put into the ledger.
    ``elsewhere``: requests that another process asks. ``blocked``: the budget has no room until
    something that is on its way has ended. ``holding``: nothing is to be submitted for
    now; ``cancelled``: nor later, since this batch was cancelled.
    """

    def __init__(
        self,
        requests: Iterable[Request] | Callable[[], Iterable[Request]],
        *,
        endpoint: Endpoint,
        ledger: Ledger,
        room: Room,
        dataset: str,
        prices: Prices | None,
        max_requests: int,
        max_bytes: int,
        attempts: int,
        submit: Callable[[OpenBatch], Awaitable[None]],
    ) -> None:
        self.open: dict[str, None] = {}
        self.foreign: set[str] = set()
        self.collected: set[str] = set()
        self.elsewhere = 0
        self.blocked = False
        self.holding = False
        self.cancelled = ""
        self._stream = Stream(requests)
        self._endpoint = endpoint
        self._ledger = ledger
        self._room = room
        self._dataset = dataset
        self._prices = batch_prices_json(prices) if prices else None
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._attempts = attempts
        self._submit = submit
        self._drafts: list[Draft] = []
        self._claimed: set[str] = set()
        self._began: set[float] = set()

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return self._stream.outstanding

    async def answers(self, stopped: Callable[[], bool]) -> AsyncGenerator[Answer, None]:
        """Walks once. Ends early, with drafts unsent, when ``stopped`` says so."""
        self.elsewhere = 0
        self.blocked = False
        self._room.refresh()
        self._watch_others()
        for seats in self._stream.chunks(CHUNK, self.open.__contains__):
            for answer in await self._sorted(seats):
                yield answer
            if stopped():
                return
        while self._drafts:
            await self._send(self._drafts[0])

    def untried(self, token: str) -> None:
        """Nothing of the batch was carried out: it counts as no attempt."""
        self._stream.untried(token)

    def closed(self, token: str) -> None:
        """The batch holds nothing any more."""
        self.open.pop(token, None)
        self.foreign.discard(token)

    async def leave(self) -> None:
        """Drops what is not sent and gives back all claims."""
        while self._drafts:
            with suppress(LedgerError):
                await self._drafts.pop().dropped()
        await book.released(self._ledger, list(self._claimed))
        self._claimed.clear()

    # -- sorting -----------------------------------------------------------------------------

    async def _sorted(self, chunk: Sequence[Seat]) -> list[Answer]:
        """Answers of a chunk; the rest is placed in batches, or waits."""
        seats: Seats = {}
        for seat in chunk:
            if seat[1].endpoint != self._endpoint.identity:
                raise ValueError(
                    f"a request for endpoint {seat[1].endpoint!r} cannot be asked at "
                    f"{self._endpoint.identity!r}: its answer would be kept under a wrong name"
                )
            seats.setdefault(seat[1].request_id, []).append(seat)
        answers = await self._replayed(seats, list(seats))
        self._look_for_holders(seats)
        free = list(seats)
        failed = book.failures(self._ledger, free, self._began)
        for name in free:
            gave_up = failed.get(name)
            at, request = seats[name][0]
            final = gave_up is not None and gave_up.failure.kind is ErrorKind.PERMANENT
            if final or self._stream.tries(at) >= self._attempts:
                answers += await self._given_up(request, gave_up, seats.pop(name))
        if seats:
            answers += await self._asked(seats)
        return answers

    async def _replayed(self, seats: Seats, names: Sequence[str]) -> list[Answer]:
        """Answers out of the ledger, whose seats are done and gone."""
        stored = await self._ledger.get_many(names)
        answers: list[Answer] = []
        for name, row in stored.items():
            answer = replayed(seats[name][0][1], row)
            if answer is None:
                continue
            for number, (at, request) in enumerate(seats.pop(name)):
                # Collected in this run: bought, for the first one that asked it.
                new = number == 0 and self._stream.token_at(at) in self.collected
                answers.append(replace(answer, request=request, replayed=not new))
                self._stream.done(at)
        return answers

    def _look_for_holders(self, seats: Seats) -> None:
        """Requests that an open batch holds are waited for, whoever submitted it."""
        for name, token in book.holders(self._ledger, list(seats)).items():
            for at, _ in seats.pop(name):
                self._stream.place(at, token)
            self._watch(token)

    async def _given_up(
        self, request: Request, known: GaveUp | None, seats: Sequence[Seat]
    ) -> list[Answer]:
        tries = self._stream.tries(seats[0][0])
        if known is None:
            detail = f"no answer in {tries} batches"
            known = GaveUp(Failure(ErrorKind.TRANSIENT, detail), tries, min(self._began))
            row = failure_row(request, known, dataset=self._dataset)
            await self._ledger.put_failure(row)
        elif known.failure.kind is ErrorKind.THROTTLED:
            failure = replace(known.failure, kind=ErrorKind.TRANSIENT)
            known = replace(known, failure=failure)
        known = replace(known, attempts=max(1, tries))
        for at, _ in seats:
            self._stream.done(at)
        return [failed_answer(twin, known) for _, twin in seats]

    # -- asking ------------------------------------------------------------------------------

    async def _asked(self, seats: Seats) -> list[Answer]:
        """Requests that nobody has asked yet go into batches, as far as there is room."""
        if self.holding or self.cancelled or self.blocked:
            return []
        claims = await book.claimed(self._ledger, list(seats))
        self._claimed |= claims.granted
        answers: list[Answer] = []
        if claims.answered:
            answers += await self._replayed(seats, list(claims.answered))
        self.elsewhere += len(claims.held)
        for name in [name for name in seats if name not in claims.held]:
            at, request = seats[name][0]
            payload = request.payload()
            worst = self._room.worst(request.body, payload)
            draft = await self._draft_for(request, len(payload), worst or Cost(calls=1))
            if draft is None:
                if not self.blocked:
                    answers += [self._unasked(seat) for seat in seats[name]]
                continue
            draft.add(request, len(payload), worst)
            self._stream.tried(at)
            for twin, _ in seats[name]:
                self._stream.place(twin, draft.token)
        for draft in self._drafts:
            await self._flush(draft)
        await self._let_go(list(claims.granted & self._claimed))
        return answers

    async def _draft_for(self, request: Request, size: int, worst: Cost) -> Draft | None:
        """The batch that the request goes into; None when the budget has no room for it."""
        if self.blocked:
            return None
        draft = next((d for d in self._drafts if d.suits(request.kind, request.model)), None)
        waiting = Cost()
        for other in self._drafts:
            waiting += other.unreserved
        if not self._room.fits(waiting + worst):
            if self.open or self._drafts or self._room.in_use:
                # What is on its way may give room back.
                self.blocked = True
            else:
                self._room.reach()
            return None
        limits = {"max_requests": self._max_requests, "max_bytes": self._max_bytes}
        if draft is not None and not draft.has_room(size, **limits):
            await self._send(draft)
            draft = None
        if size + LINE_BYTES > self._max_bytes:
            raise UsageError(
                f"a request of {size} bytes is larger than a batch may be",
                fix="shorten the prompt, or raise the most bytes of a batch",
            )
        if draft is None:
            draft = await Draft.begun(
                self._ledger,
                self._room,
                request=request,
                dataset=self._dataset,
                prices=self._prices,
            )
            self._began.add(draft.row.created_at)
            self._drafts.append(draft)
        return draft

    def _unasked(self, seat: Seat) -> Answer:
        self._stream.done(seat[0])
        return unasked_answer(seat[1])

    async def _flush(self, draft: Draft) -> None:
        """Into the ledger first, then the claims are given up: the batch holds the requests."""
        await self._let_go(await draft.flush())

    async def _let_go(self, names: Sequence[str]) -> None:
        await book.released(self._ledger, names)
        self._claimed.difference_update(names)

    async def _send(self, draft: Draft) -> None:
        await self._flush(draft)
        row = await draft.sealed()
        self._drafts.remove(draft)
        if row is None or not row.requests:
            await draft.dropped()
            # What was to be in it is another's by now, or asked in the next walk.
            self.elsewhere += 1
            return
        self.open[draft.token] = None
        try:
            await self._submit(row)
        finally:
            await book.released(self._ledger, [book.lock_of(draft.token)])

    # -- batches that are waited for ---------------------------------------------------------

    def _watch(self, token: str) -> None:
        self.foreign.discard(token)
        if token not in self.open and all(draft.token != token for draft in self._drafts):
            row = book.batch(self._ledger, token)
            if row is not None:
                self._began.add(row.created_at)
                self.open[token] = None

    def _watch_others(self) -> None:
        """Batches of this dataset that use up its budget are collected, to give room back."""
        for row in self._room.others:
            if row.endpoint == self._endpoint.identity and row.token not in self.open:
                self._watch(row.token)
                self.foreign.add(row.token)
