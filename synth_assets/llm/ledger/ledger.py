"""The ledger: what was paid for is on disk before it is used, and nobody pays for it twice.

One thread writes, many things at a time (``writer``), and ``await put(...)`` returns only
after the commit.

Several processes share a ledger. Before a request is asked it is *claimed*; a request that
another living process has claimed is waited for instead. A claim lasts while its owner lives: on
one host a dead process is known at once, elsewhere by a heartbeat older than the lease. A process
that was frozen for longer than the lease may find its request asked by another; the first answer
written is the one that counts.

The database behind it is synchronous and small (``backend``): a SQLite file, or PostgreSQL
for several machines, by the same statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from synth_assets.llm.ledger.backend import Backend
from synth_assets.llm.ledger.location import ledger_location, opened_backend
from synth_assets.llm.ledger.rows import (
    CallRow,
    Claims,
    Committed,
    FailureRow,
    Mark,
    Spent,
    Statement,
    StoredAnswer,
    UnseenRow,
)
from synth_assets.llm.ledger.writer import Claim, Execute, Release, Remember, Writer

__all__ = ["DEFAULT_LEASE_S", "DEFAULT_LINGER_S", "Ledger", "ledger_location"]

DEFAULT_LEASE_S: Final = 60.0
# Long enough to gather the answers of one network wake-up, far below any model's latency.
DEFAULT_LINGER_S: Final = 0.002


class Ledger:
    """Open with ``Ledger.open(path)``; close it, or use it as a context manager."""

    def __init__(
        self,
        backend: Backend,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        linger_s: float = DEFAULT_LINGER_S,
    ) -> None:
        self.backend: Final = backend
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._writer = Writer(backend, lease_s=lease_s, linger_s=linger_s)

    @classmethod
    def open(
        cls,
        location: str | Path,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        linger_s: float = DEFAULT_LINGER_S,
        create: bool = True,
    ) -> Ledger:
        """The ledger at a path, ``sqlite:///path`` or ``postgresql://...``; made if not there.

        Raises LedgerError when it cannot be opened, or was written by a newer program; NoLedger
        when it is not there and is not to be made.
        """
        backend = opened_backend(location, lease_s=lease_s, create=create)
        return cls(backend, lease_s=lease_s, linger_s=linger_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Writes what was handed in, gives back claims, closes. May be called twice."""
        if self._writer.close():
            self._reader.shutdown(wait=True)
            self.backend.close()

    # -- writing, from any event loop --------------------------------------------------------

    async def put(self, row: CallRow) -> bool:
        """Keeps a paid answer; it is durable on return, and its claim is given up.

        False when another answer to the same request was there first: use that one.
        """
        return bool(await self._writer.written(row))

    async def put_failure(self, row: FailureRow) -> None:
        """Keeps a failure to look at; its claim stays until ``release``."""
        await self._writer.written(row)

    async def put_unseen(self, row: UnseenRow) -> None:
        """Counts an attempt that may have been billed and whose answer will not be seen.

        Takes off the mark that ``mark_asked`` made: what the attempt may cost is counted once.
        """
        await self._writer.written(row)

    async def claim(self, ids: Sequence[str]) -> Claims:
        """Tries to claim requests that are to be asked; ``ids`` without duplicates."""
        claims = await self._writer.written(Claim(tuple(ids)))
        if not isinstance(claims, Claims):
            raise TypeError("the ledger answered a claim with something else")
        return claims

    def mark_asked(
        self, request_id: str, *, dataset: str, tokens: int | None, usd: float | None
    ) -> None:
        """Notes that a claimed request is on its way now and may cost at most that.

        Returns at once; goes to the disk with the next commit, within 50 ms. If this process is
        killed, what is on its way then is counted as ``committed``.
        """
        self._writer.mark(Mark(request_id, dataset, tokens, usd))

    async def release(self, ids: Iterable[str]) -> None:
        """Gives up claims of requests that will not be asked by us now."""
        names = tuple(ids)
        if names:
            await self._writer.written(Release(names))

    async def remember(self, endpoint: str, model: str, mode: str) -> None:
        """Keeps which structured output mode an endpoint and model understand."""
        await self._writer.written(Remember(endpoint, model, mode))

    async def execute(self, statements: Sequence[Statement]) -> None:
        """Runs statements with ``?`` marks in one transaction; durable on return."""
        await self._writer.written(Execute(tuple(statements)))

    # -- reading -----------------------------------------------------------------------------

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement with ``?`` marks."""
        return self.backend.query(statement, parameters)

    async def get_many(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """The intact answers among ``ids``, read outside the event loop."""
        if not ids:
            return {}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self.backend.answers, tuple(ids))

    def answers(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """As ``get_many``, blocking."""
        return self.backend.answers(ids)

    def call(self, request_id: str) -> CallRow | None:
        """One call with everything known about it."""
        return self.backend.call(request_id)

    def failures(self, request_id: str | None = None) -> list[FailureRow]:
        """Kept failures, oldest first; of one request, or all."""
        return self.backend.failures(request_id)

    def spent(self, dataset: str | None = None) -> Spent:
        """What was ever paid for a dataset (who asked first), or in all; pruned calls too."""
        return self.backend.spent(dataset)

    def committed(self, dataset: str) -> Committed:
        """What a budget must count: paid, pruned, unseen, and at their worst open batches.

        What processes had on its way when they were killed is counted as unseen from then on.
        """
        return self.backend.committed(dataset)

    def capability(self, endpoint: str, model: str) -> str | None:
        """The remembered structured output mode, if any."""
        return self.backend.capability(endpoint, model)
