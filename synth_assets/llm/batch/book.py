"""What the ledger knows of batches: which there are, how far they are, which requests they hold.

=============  ===============================================================  ==============
state          what is certain                                                  holds requests
=============  ===============================================================  ==============
preparing      nothing was sent; its process still adds requests                yes
submitting     it may or may not be at the provider: ask there for its token    yes
submitted      it is at the provider, under ``batch_id``                        yes
collected      every answer is in the ledger; the rest may be asked again       no
failed         the provider refused it whole; nothing was bought                no
cancelled      as collected, and somebody did not want the rest                 no
=============  ===============================================================  ==============

A batch that is dropped before anything was sent leaves no row. Whoever works on a batch holds the
claim ``batch:<token>``, so that two processes never submit or collect it at once.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from synth_assets.llm.errors import ErrorKind, Failure
from synth_assets.llm.identity import Kind
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import Claims, Statement
from synth_assets.llm.ledger.sql import marks
from synth_assets.llm.outcomes import GaveUp

PREPARING: Final = "preparing"
SUBMITTING: Final = "submitting"
SUBMITTED: Final = "submitted"
COLLECTED: Final = "collected"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
OPEN: Final = (PREPARING, SUBMITTING, SUBMITTED)
PAGE: Final = 500
_COLUMNS = (
    "token, dataset, endpoint, model, kind, state, batch_id, input_file_id, requests, tokens, usd, "
    "prices, detail, created_at, updated_at"
)


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """One batch as the ledger has it. ``endpoint`` is an identity, not an address.

    ``tokens`` and ``usd`` are the most it can cost, null where there is no bound; ``detail`` is
    what the provider last said; times are Unix seconds.
    """

    token: str
    dataset: str
    endpoint: str
    model: str
    kind: Kind
    state: str
    batch_id: str | None
    input_file_id: str | None
    requests: int
    tokens: int | None
    usd: float | None
    prices: str | None
    detail: str
    created_at: float
    updated_at: float


def open_batches(
    ledger: Ledger, dataset: str | None = None, *, endpoint: str | None = None
) -> list[OpenBatch]:
    """The batches that still hold requests, oldest first; of one dataset or endpoint identity."""
    where, parameters = [f"state IN ({marks(len(OPEN))})"], list[Any](OPEN)
    for column, value in (("dataset", dataset), ("endpoint", endpoint)):
        if value is not None:
            where.append(f"{column} = ?")
            parameters.append(value)
    query = f"SELECT {_COLUMNS} FROM batches WHERE {' AND '.join(where)} ORDER BY created_at, token"
    return [OpenBatch(*row) for row in ledger.query(query, parameters)]


def batch(ledger: Ledger, token: str) -> OpenBatch | None:
    """The row of a batch, open or not; None when it was dropped."""
    rows = ledger.query(f"SELECT {_COLUMNS} FROM batches WHERE token = ?", (token,))
    return OpenBatch(*rows[0]) if rows else None


def holders(ledger: Ledger, ids: Sequence[str]) -> dict[str, str]:
    """The token of the batch that holds each of the requests; free ones are left out."""
    if not ids:
        return {}
    query = f"SELECT request_id, token FROM batch_requests WHERE request_id IN ({marks(len(ids))})"
    return dict(ledger.query(query, ids))


def texts(ledger: Ledger, token: str, ids: Sequence[str]) -> dict[str, bytes]:
    """The canonical texts of those requests that the batch holds."""
    if not ids:
        return {}
    query = (
        "SELECT request_id, request FROM batch_requests "
        f"WHERE token = ? AND request_id IN ({marks(len(ids))})"
    )
    return {name: text.encode() for name, text in ledger.query(query, (token, *ids))}


def all_texts(ledger: Ledger, token: str) -> Iterator[bytes]:
    """The canonical texts of all requests of a batch, a page at a time."""
    query = (
        "SELECT request_id, request FROM batch_requests "
        f"WHERE token = ? AND request_id > ? ORDER BY request_id LIMIT {PAGE}"
    )
    last = ""
    while page := ledger.query(query, (token, last)):
        yield from (text.encode() for _, text in page)
        last = page[-1][0]


def held(ledger: Ledger, token: str) -> int:
    """How many requests a batch holds."""
    query = "SELECT count(*) FROM batch_requests WHERE token = ?"
    return int(ledger.query(query, (token,))[0][0])


def failures(ledger: Ledger, ids: Sequence[str], began: Collection[float]) -> dict[str, GaveUp]:
    """How requests failed in the batches that were created at these times; a final no counts most.

    A failure carries the time its batch was created, so that it is known whose it is.
    """
    if not ids or not began:
        return {}
    query = (
        "SELECT request_id, kind, status, detail, body, attempts, started_at FROM failures "
        f"WHERE request_id IN ({marks(len(ids))}) ORDER BY started_at"
    )
    found: dict[str, GaveUp] = {}
    for name, kind, status, detail, body, attempts, started_at in ledger.query(query, ids):
        known = found.get(name)
        if started_at in began and (known is None or known.failure.kind != ErrorKind.PERMANENT):
            failure = Failure(ErrorKind(kind), detail, status=status, body=body)
            found[name] = GaveUp(failure, attempts, started_at)
    return found


def insert(row: OpenBatch) -> Statement:
    """A new batch."""
    values = tuple(getattr(row, name) for name in _COLUMNS.split(", "))
    return (f"INSERT INTO batches ({_COLUMNS}) VALUES ({marks(len(values))})", values)


def hold(token: str, request_id: str, canonical: bytes) -> Statement:
    """A request that the batch holds from now on.

    Unless the batch was dropped, or the request is another's: the process was frozen for longer
    than its claims last.
    """
    statement = (
        "INSERT INTO batch_requests (request_id, token, request) SELECT ?, ?, ? "
        f"WHERE EXISTS (SELECT 1 FROM batches WHERE token = ? AND state = '{PREPARING}') "
        "ON CONFLICT (request_id) DO NOTHING"
    )
    return (statement, (request_id, token, canonical.decode(), token))


async def change(ledger: Ledger, token: str, *, state: str, to: str = "", **columns: Any) -> float:
    """Sets columns of a batch that is in ``state``, and its state; the new ``updated_at``.

    A batch in another state was taken over by another process: that one knows better.
    """
    now = time.time()
    values = {**columns, "state": to or state, "updated_at": now}
    pairs = ", ".join(f"{name} = ?" for name in values)
    statement = f"UPDATE batches SET {pairs} WHERE token = ? AND state = ?"
    await ledger.execute([(statement, (*values.values(), token, state))])
    return now


async def let_go(ledger: Ledger, token: str, ids: Sequence[str]) -> None:
    """The batch holds these requests no more: they are answered, or free to be asked again."""
    if ids:
        where = f"token = ? AND request_id IN ({marks(len(ids))})"
        await ledger.execute([(f"DELETE FROM batch_requests WHERE {where}", (token, *ids))])


async def close(ledger: Ledger, token: str, state: str, detail: str) -> None:
    """Ends a batch: whatever it still holds becomes free, in one transaction."""
    statement = "UPDATE batches SET state = ?, detail = ?, updated_at = ? WHERE token = ?"
    await ledger.execute([_freed(token), (statement, (state, detail, time.time(), token))])


async def drop(ledger: Ledger, token: str) -> None:
    """Forgets a batch of which nothing was sent."""
    await ledger.execute([_freed(token), ("DELETE FROM batches WHERE token = ?", (token,))])


def _freed(token: str) -> Statement:
    return ("DELETE FROM batch_requests WHERE token = ?", (token,))


# -- claims --------------------------------------------------------------------------------------


def lock_of(token: str) -> str:
    """The name under which work on a batch is claimed."""
    return f"batch:{token}"


@asynccontextmanager
async def locked(ledger: Ledger, token: str) -> AsyncIterator[bool]:
    """Whether the batch is ours to work on, for as long as the context lasts."""
    claims = await claimed(ledger, [lock_of(token)])
    try:
        yield bool(claims.granted)
    finally:
        await released(ledger, claims.granted)


async def claimed(ledger: Ledger, ids: Sequence[str]) -> Claims:
    """As ``Ledger.claim``; a cancellation in the middle leaves no claim behind."""
    claiming = asyncio.ensure_future(ledger.claim(ids))
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        await released(ledger, (await claiming).granted)
        raise


async def released(ledger: Ledger, ids: Sequence[str] | frozenset[str]) -> None:
    """As ``Ledger.release``, also when cancelled in the middle."""
    if ids:
        await asyncio.shield(ledger.release(ids))
