"""A batch while it is put together: rows in the ledger from the first request on, nothing sent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from uuid import uuid4

from synth_assets.llm.batch import book
from synth_assets.llm.batch.book import OpenBatch
from synth_assets.llm.batch.files import LINE_BYTES
from synth_assets.llm.batch.room import Room
from synth_assets.llm.budget import Cost
from synth_assets.llm.identity import Kind, Request
from synth_assets.llm.ledger.ledger import Ledger


@dataclass
class Draft:
    """Holds the lock of its batch from ``begun`` until it is dropped or handed to ``submit``.

    A kill leaves the state ``preparing``: whoever meets it next finds no living owner of the lock
    and drops it.
    """

    ledger: Ledger
    room: Room
    row: OpenBatch
    requests: int = 0
    size: int = 0
    tokens: int | None = 0
    usd: float | None = 0.0
    _added: list[tuple[str, bytes]] = field(default_factory=list)
    _to_reserve: Cost = field(default_factory=Cost)

    @classmethod
    async def begun(
        cls, ledger: Ledger, room: Room, *, request: Request, dataset: str, prices: str | None
    ) -> Draft:
        """An empty batch for requests of the model and kind of ``request``."""
        now = time.time()
        token = uuid4().hex
        row = OpenBatch(
            token=token,
            dataset=dataset,
            endpoint=request.endpoint,
            model=request.model,
            kind=request.kind,
            state=book.PREPARING,
            batch_id=None,
            input_file_id=None,
            requests=0,
            tokens=None,
            usd=None,
            prices=prices,
            detail="",
            created_at=now,
            updated_at=now,
        )
        # The claim before the row: nobody may take the row for one of a dead process.
        await book.claimed(ledger, [book.lock_of(token)])
        draft = cls(ledger, room, row)
        try:
            await ledger.execute([book.insert(row)])
        except BaseException:
            await draft.dropped()
            raise
        return draft

    @property
    def unreserved(self) -> Cost:
        """What was added since the last ``flush``, at its worst case."""
        return self._to_reserve

    @property
    def token(self) -> str:
        return self.row.token

    def suits(self, kind: Kind, model: str) -> bool:
        return (self.row.kind, self.row.model) == (kind, model)

    def has_room(self, size: int, *, max_requests: int, max_bytes: int) -> bool:
        """Whether one more request of ``size`` bytes stays within the limits of a batch."""
        fits = self.size + size + LINE_BYTES <= max_bytes
        return not self.requests or (self.requests < max_requests and fits)

    def add(self, request: Request, size: int, worst: Cost | None) -> None:
        """One more request; durable with the next ``flush``."""
        self._added.append((request.request_id, request.canonical))
        self._to_reserve += worst or Cost(calls=1)
        self.requests += 1
        self.size += size + LINE_BYTES
        known = self.tokens is not None and self.usd is not None and worst is not None
        self.tokens = (self.tokens or 0) + worst.tokens if known and worst else None
        self.usd = (self.usd or 0.0) + worst.usd if known and worst else None

    async def flush(self) -> list[str]:
        """Puts what was added into the ledger, in one transaction; the batch holds it then.

        The claims of these requests may be released after it: their ids are returned.
        """
        added, self._added = self._added, []
        if added:
            await self.room.reserve(self.token, self._to_reserve)
            self._to_reserve = Cost()
            await self.ledger.execute([book.hold(self.token, *one) for one in added])
        return [name for name, _ in added]

    async def sealed(self) -> OpenBatch | None:
        """The batch is complete and may be sent: from here on it may be at the provider.

        None when it was dropped by a process that took us for dead.
        """
        await book.change(
            self.ledger,
            self.token,
            state=book.PREPARING,
            to=book.SUBMITTING,
            requests=book.held(self.ledger, self.token),
            tokens=self.tokens,
            usd=self.usd,
        )
        return book.batch(self.ledger, self.token)

    async def dropped(self) -> None:
        """Nothing was sent: its requests are free, its room is given back."""
        try:
            await book.drop(self.ledger, self.token)
        finally:
            self.room.refund(self.token)
            await book.released(self.ledger, [book.lock_of(self.token)])
