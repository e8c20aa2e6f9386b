"""The thread that writes a ledger: gathers what is handed in, commits it as one, tells who waits.

Whatever was handed in while a transaction was on its way to the disk goes into the next one, so
that a hundred answers share an fsync (group commit).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from synth_assets.llm.ledger.backend import Backend
from synth_assets.llm.ledger.owners import this_process
from synth_assets.llm.ledger.rows import (
    Batch,
    CallRow,
    Claims,
    FailureRow,
    LedgerError,
    Mark,
    Statement,
    UnseenRow,
)

log = logging.getLogger(__name__)

# A mark needs no commit of its own: one that comes within this time carries it.
MARKS_WAIT_S: Final = 0.05
LINGER_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Release:
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Claim:
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Remember:
    endpoint: str
    model: str
    mode: str


@dataclass(frozen=True, slots=True)
class Execute:
    statements: Sequence[Statement]


What = CallRow | FailureRow | UnseenRow | Remember | Release | Claim | Execute


@dataclass(frozen=True, slots=True)
class _Op:
    """One thing to write and the future that is told when it is durable."""

    what: What
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Starts its thread at once; ``close`` writes the rest, gives claims back and ends it."""

    def __init__(self, backend: Backend, *, lease_s: float, linger_s: float) -> None:
        self._backend = backend
        self._owner = this_process()
        self._lease_s = lease_s
        self._linger_s = linger_s
        self._claimed: set[str] = set()
        self._beat_at = 0.0
        self._ops: queue.SimpleQueue[_Op | Mark | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="ledger-writer", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """False when it was closed before."""
        if self._closed:
            return False
        self._closed = True
        self._ops.put(None)
        self._thread.join()
        if self._beat_at:
            self._backend.leave(self._owner)
        return True

    def written(self, what: What) -> asyncio.Future[Any]:
        """Hands something in, from any event loop; done when it is durable."""
        self._check_open()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._ops.put(_Op(what, done, loop))
        return done

    def mark(self, mark: Mark) -> None:
        """Hands in what nobody waits for."""
        self._check_open()
        self._ops.put(mark)

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerError("the ledger is closed")

    # -- the thread --------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            ops, closing = self._gathered()
            if ops:
                self._commit(ops)
            elif self._claimed and not closing:
                self._beat()
            if closing:
                return

    def _gathered(self) -> tuple[list[_Op | Mark], bool]:
        """The next batch: the first op that comes, and all that came while we lingered."""
        ops: list[_Op | Mark] = []
        wait, marked_at = self._lease_s / 4, 0.0
        # Until something comes that is waited for, or the first mark has waited long enough.
        while not ops or isinstance(ops[-1], Mark):
            try:
                op = self._ops.get(timeout=wait)
            except queue.Empty:
                return ops, False
            if op is None:
                return ops, True
            marked_at = marked_at or time.monotonic()
            wait = max(0.0, marked_at + MARKS_WAIT_S - time.monotonic())
            ops.append(op)
        if self._linger_s and not self._closed:
            self._linger()
        while True:
            try:
                op = self._ops.get_nowait()
            except queue.Empty:
                return ops, False
            if op is None:
                return ops, True
            ops.append(op)

    def _linger(self) -> None:
        """Waits a little for more; a shorter while once nothing more comes."""
        step, before = self._linger_s / LINGER_STEPS, -1
        for _ in range(LINGER_STEPS):
            time.sleep(step)
            waiting = self._ops.qsize()
            if waiting == before:
                return
            before = waiting

    def _commit(self, everything: Sequence[_Op | Mark]) -> None:
        ops = [op for op in everything if isinstance(op, _Op)]
        calls = [op for op in ops if isinstance(op.what, CallRow)]
        batch = self._batch(everything)
        try:
            written = self._backend.write(batch)
        except Exception as error:
            _tell([(op, None, error) for op in ops])
            if not ops:
                log.warning("ledger: what is on its way could not be noted: %s", error)
            return
        if batch.owner is not None:
            self._beat_at = time.monotonic()
        self._claimed.difference_update(call.request_id for call in batch.calls)
        self._claimed.difference_update(batch.releases)
        self._claimed |= written.claims.granted
        kept = dict(zip(map(id, calls), written.kept, strict=True))
        granted = set(written.claims.granted)
        _tell([(op, _result(op, kept, written.claims, granted), None) for op in ops])

    def _batch(self, ops: Sequence[_Op | Mark]) -> Batch:
        whats = [op if isinstance(op, Mark) else op.what for op in ops]
        releases = [name for what in whats if isinstance(what, Release) for name in what.ids]
        wanted = [name for what in whats if isinstance(what, Claim) for name in what.ids]
        marks = _marks(whats)
        due = bool(self._claimed) and time.monotonic() - self._beat_at > self._lease_s / 4
        return Batch(
            marks=marks,
            calls=[what for what in whats if isinstance(what, CallRow)],
            failures=[what for what in whats if isinstance(what, FailureRow)],
            unseen=[what for what in whats if isinstance(what, UnseenRow)],
            releases=[name for name in releases if name in self._claimed],
            capabilities=[
                (what.endpoint, what.model, what.mode)
                for what in whats
                if isinstance(what, Remember)
            ],
            statements=[
                one for what in whats if isinstance(what, Execute) for one in what.statements
            ],
            claims=list(dict.fromkeys(wanted)),
            owner=self._owner if wanted or marks or due else None,
        )

    def _beat(self) -> None:
        try:
            self._backend.write(Batch(owner=self._owner))
            self._beat_at = time.monotonic()
        except LedgerError as error:
            log.warning("ledger: heartbeat failed: %s", error)


def _marks(whats: Sequence[What | Mark]) -> list[Mark]:
    """The last word on each request; what became of an attempt takes its mark off again."""
    marks: dict[str, Mark] = {}
    for what in whats:
        if isinstance(what, Mark):
            marks[what.request_id] = what
        elif isinstance(what, UnseenRow):
            marks[what.request_id] = Mark(what.request_id, None, None, None)
    return list(marks.values())


def _result(op: _Op, kept: dict[int, bool], claims: Claims, granted: set[str]) -> Any:
    if isinstance(op.what, CallRow):
        return kept[id(op)]
    if isinstance(op.what, Claim):
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
