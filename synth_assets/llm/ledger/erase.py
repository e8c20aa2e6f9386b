"""Taking requests out of a ledger for good: their rows, and the bytes that deleted rows leave.

What the calls had cost is still counted, as with pruning. A copy of a damaged ledger that lies
beside a repaired one goes as a whole: what it holds cannot be told.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from synth_assets.llm.batch.book import SUBMITTED, SUBMITTING
from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import Batch, Statement
from synth_assets.llm.tokens import prompt_texts

PAGE: Final = 512
# Where requests are kept in full.
_KEPT: Final = {
    "calls": "SELECT request_id, dataset, request FROM calls",
    "failures": "SELECT DISTINCT request_id, dataset, request FROM failures",
    "batch_requests": "SELECT r.request_id, b.dataset, r.request FROM batch_requests r "
    "JOIN batches b ON b.token = r.token",
}
_KEY: Final = {"calls": "request_id", "failures": "request_id", "batch_requests": "r.request_id"}


class Kept(NamedTuple):
    """A request that the ledger holds; ``texts`` are what the model was shown."""

    request_id: str
    dataset: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Erased:
    """Rows that went, by table."""

    calls: int = 0
    failures: int = 0
    batch_requests: int = 0


def kept_requests(ledger: Ledger) -> Iterator[list[Kept]]:
    """Every request of every table, in pages; of one id several times where several tables have it.

    Raises LedgerError.
    """
    for table, select in _KEPT.items():
        last = ""
        query = f"{select} WHERE {_KEY[table]} > ? ORDER BY {_KEY[table]} LIMIT ?"
        while rows := ledger.query(query, (last, PAGE)):
            yield [Kept(name, dataset, _texts(request)) for name, dataset, request in rows]
            # A failure has several rows of one id: a page may end among them, they are all alike.
            last = rows[-1][0]


def open_batches_with(ledger: Ledger, ids: Iterable[str]) -> list[tuple[str, str]]:
    """(token, dataset) of batches at a provider that hold one of the requests."""
    found: set[tuple[str, str]] = set()
    for chunk in sql.chunks(sorted(ids)):
        names = tuple(sql.filled(chunk))
        query = (
            "SELECT DISTINCT b.token, b.dataset FROM batch_requests r JOIN batches b "
            f"ON b.token = r.token WHERE b.state IN ('{SUBMITTING}', '{SUBMITTED}') "
            f"AND r.request_id IN ({sql.marks(len(names))})"
        )
        found.update((str(token), str(dataset)) for token, dataset in ledger.query(query, names))
    return sorted(found)


def count_kept(ledger: Ledger, ids: Iterable[str]) -> Erased:
    """How many rows ``erase_requests`` would delete."""
    counts = dict.fromkeys(_KEPT, 0)
    for chunk in sql.chunks(sorted(ids)):
        names = tuple(dict.fromkeys(chunk))
        for table in counts:
            query = f"SELECT count(*) FROM {table} WHERE request_id IN ({sql.marks(len(names))})"
            counts[table] += int(ledger.query(query, names)[0][0])
    return Erased(**counts)


def erase_requests(ledger: Ledger, ids: Iterable[str]) -> None:
    """Deletes the requests, their answers and failures; may be repeated. Raises LedgerError."""
    for chunk in sql.chunks(sorted(ids)):
        names = tuple(sql.filled(chunk))
        marks = sql.marks(len(names))
        statements: list[Statement] = [(sql.COUNT_PRUNED.format(marks=marks), names)]
        statements += [
            (f"DELETE FROM {table} WHERE request_id IN ({marks})", names) for table in _KEPT
        ]
        ledger.backend.write(Batch(statements=statements))


def _texts(request: str) -> tuple[str, ...]:
    """What a request shows to the model; all of it when it cannot be read."""
    try:
        body = orjson.loads(request)["body"]
        return tuple(prompt_texts(body))
    except (ValueError, KeyError, TypeError, AttributeError):
        return (request,)
