"""The ledger: what was paid for is on disk before it is used, and nobody pays for it twice.

One thread writes. Whatever was handed in while a transaction was on its way to the disk goes into
the next one, so that a hundred answers share an fsync (group commit), and ``await put(...)``
returns only after the commit.

Several processes share a ledger. Before a request is asked it is *claimed*; a request that
another living process has claimed is waited for instead. A claim lasts while its owner lives: on
one host a dead process is known at once, elsewhere by a heartbeat older than the lease. A process
that was frozen for longer than the lease may find its request asked by another; the first answer
written is the one that counts.

The backend behind it is synchronous and small (``Backend``): SQLite now, another database by the
same statements later.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from synth_assets.llm.ledger_sqlite import SqliteBackend
from synth_assets.llm.owners import this_process
from synth_assets.llm.rows import (
    Batch,
    CallRow,
    Claims,
    FailureRow,
    LedgerError,
    Owner,
    Spent,
    StoredAnswer,
    Written,
)

log = logging.getLogger(__name__)

DEFAULT_LEASE_S: Final = 60.0
# Long enough to gather the answers of one network wake-up, far below any model's latency.
DEFAULT_LINGER_S: Final = 0.002


class Backend(Protocol):
    """A database that keeps a ledger; synchronous; raises LedgerError only."""

    def write(self, batch: Batch) -> Written:
        """One transaction, durable on return: calls, failures, releases, then claims."""

    def answers(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """The stored answers among ``ids``."""

    def call(self, request_id: str) -> CallRow | None: ...

    def failures(self, request_id: str | None = None) -> list[FailureRow]: ...

    def spent(self, dataset: str | None = None) -> Spent: ...

    def capability(self, endpoint: str, model: str) -> str | None: ...

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def leave(self, owner: Owner) -> None:
        """Give back all claims of ``owner``."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Release:
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Claim:
    ids: Sequence[str]


_What = CallRow | FailureRow | tuple[str, str, str] | _Release | _Claim


@dataclass(frozen=True, slots=True)
class _Op:
    """One thing to write and the future that is told when it is durable."""

    what: _What
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Ledger:
    """Open with ``Ledger.open(path)``; close it, or use it as a context manager."""

    def __init__(
        self,
        backend: Backend,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        linger_s: float = DEFAULT_LINGER_S,
    ) -> None:
        self._backend = backend
        self._owner = this_process()
        self._lease_s = lease_s
        self._linger_s = linger_s
        self._claimed: set[str] = set()
        self._beat_at = 0.0
        self._ops: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._closed = False
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-reader")
        self._writer = threading.Thread(target=self._write_all, name="ledger-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(
        cls,
        location: str | Path,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        linger_s: float = DEFAULT_LINGER_S,
    ) -> Ledger:
        """The ledger in the SQLite file at ``location``; made if it is not there.

        Raises LedgerError when it cannot be opened, or was written by a newer program.
        """
        text = str(location)
        if "://" in text and not text.startswith("sqlite:///"):
            scheme = text.partition("://")[0]
            raise LedgerError(
                f"a ledger of kind {scheme!r} is not known", fix="give the path of a SQLite file"
            )
        path = Path(text.removeprefix("sqlite:///")).expanduser()
        return cls(SqliteBackend(path, lease_s=lease_s), lease_s=lease_s, linger_s=linger_s)

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
        if self._closed:
            return
        self._closed = True
        self._ops.put(None)
        self._writer.join()
        self._reader.shutdown(wait=True)
        if self._beat_at:
            self._backend.leave(self._owner)
        self._backend.close()

    # -- writing, from any event loop --------------------------------------------------------

    async def put(self, row: CallRow) -> bool:
        """Keeps a paid answer; it is durable on return, and its claim is given up.

        False when another answer to the same request was there first: use that one.
        """
        return bool(await self._written(row))

    async def put_failure(self, row: FailureRow) -> None:
        """Keeps a failure to look at; its claim stays until ``release``."""
        await self._written(row)

    async def claim(self, ids: Sequence[str]) -> Claims:
        """Tries to claim requests that are to be asked; ``ids`` without duplicates."""
        claims = await self._written(_Claim(tuple(ids)))
        if not isinstance(claims, Claims):
            raise TypeError("the ledger answered a claim with something else")
        return claims

    async def release(self, ids: Iterable[str]) -> None:
        """Gives up claims of requests that will not be asked by us now."""
        names = tuple(ids)
        if names:
            await self._written(_Release(names))

    async def remember(self, endpoint: str, model: str, mode: str) -> None:
        """Keeps which structured output mode an endpoint and model understand."""
        await self._written((endpoint, model, mode))

    # -- reading -----------------------------------------------------------------------------

    async def get_many(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """The intact answers among ``ids``, read outside the event loop."""
        if not ids:
            return {}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._backend.answers, tuple(ids))

    def answers(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """As ``get_many``, blocking."""
        return self._backend.answers(ids)

    def call(self, request_id: str) -> CallRow | None:
        """One call with everything known about it."""
        return self._backend.call(request_id)

    def failures(self, request_id: str | None = None) -> list[FailureRow]:
        """Kept failures, oldest first; of one request, or all."""
        return self._backend.failures(request_id)

    def spent(self, dataset: str | None = None) -> Spent:
        """What was ever paid for a dataset (who asked first), or in all."""
        return self._backend.spent(dataset)

    def capability(self, endpoint: str, model: str) -> str | None:
        """The remembered structured output mode, if any."""
        return self._backend.capability(endpoint, model)

    # -- the writer --------------------------------------------------------------------------

    def _written(self, what: _What) -> asyncio.Future[Any]:
        if self._closed:
            raise LedgerError("the ledger is closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._ops.put(_Op(what, done, loop))
        return done

    def _write_all(self) -> None:
        while True:
            ops, closing = self._gathered()
            if ops:
                self._commit(ops)
            elif self._claimed and not closing:
                self._beat()
            if closing:
                return

    def _gathered(self) -> tuple[list[_Op], bool]:
        """The next batch: the first op that comes, and all that came while we lingered."""
        try:
            first = self._ops.get(timeout=self._lease_s / 4)
        except queue.Empty:
            return [], False
        if first is None:
            return [], True
        if self._linger_s and not self._closed:
            time.sleep(self._linger_s)
        ops = [first]
        while True:
            try:
                op = self._ops.get_nowait()
            except queue.Empty:
                return ops, False
            if op is None:
                return ops, True
            ops.append(op)

    def _commit(self, ops: Sequence[_Op]) -> None:
        calls = [op for op in ops if isinstance(op.what, CallRow)]
        releases = [name for op in ops if isinstance(op.what, _Release) for name in op.what.ids]
        wanted = [name for op in ops if isinstance(op.what, _Claim) for name in op.what.ids]
        due = bool(self._claimed) and time.monotonic() - self._beat_at > self._lease_s / 4
        batch = Batch(
            calls=[op.what for op in calls if isinstance(op.what, CallRow)],
            failures=[op.what for op in ops if isinstance(op.what, FailureRow)],
            releases=[name for name in releases if name in self._claimed],
            capabilities=[op.what for op in ops if isinstance(op.what, tuple)],
            claims=list(dict.fromkeys(wanted)),
            owner=self._owner if wanted or due else None,
        )
        try:
            written = self._backend.write(batch)
        except Exception as error:
            _tell([(op, None, error) for op in ops])
            return
        if batch.owner is not None:
            self._beat_at = time.monotonic()
        self._claimed.difference_update(call.request_id for call in batch.calls)
        self._claimed.difference_update(batch.releases)
        self._claimed |= written.claims.granted
        kept = dict(zip(map(id, calls), written.kept, strict=True))
        granted = set(written.claims.granted)
        _tell([(op, _result(op, kept, written.claims, granted), None) for op in ops])

    def _beat(self) -> None:
        try:
            self._backend.write(Batch(owner=self._owner))
            self._beat_at = time.monotonic()
        except LedgerError as error:
            log.warning("ledger: heartbeat failed: %s", error)


def _result(op: _Op, kept: dict[int, bool], claims: Claims, granted: set[str]) -> Any:
    if isinstance(op.what, CallRow):
        return kept[id(op)]
    if isinstance(op.what, _Claim):
        ids = frozenset(op.what.ids)
        # Two askers in one batch: the first gets it, for the other it is held.
        mine = ids & granted
        granted -= mine
        answered = ids & claims.answered
        return Claims(granted=mine, answered=answered, held=ids - mine - answered)
    return None


def _tell(outcomes: Sequence[tuple[_Op, Any, Exception | None]]) -> None:
    """Resolves futures, with one wake-up per event loop."""
    by_loop: dict[int, list[tuple[_Op, Any, Exception | None]]] = {}
    for outcome in outcomes:
        by_loop.setdefault(id(outcome[0].loop), []).append(outcome)
    for group in by_loop.values():
        loop = group[0][0].loop
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            log.debug("ledger: the loop that asked has ended")


def _resolve(group: Sequence[tuple[_Op, Any, Exception | None]]) -> None:
    for op, value, error in group:
        if op.done.done():
            continue
        if error is not None:
            op.done.set_exception(error)
        else:
            op.done.set_result(value)
