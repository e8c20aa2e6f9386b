"""Is every answer in the ledger still the one that was paid for?

A call is stored with a checksum over everything that a replay uses, and its id is the hash of its
request. Both are computed again, a page of calls at a time; nothing is written. A damaged answer is
never passed on: whoever needs it asks, and pays, again.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import StoredAnswer, storable

PAGE: Final = 500


@dataclass(frozen=True)
class DamagedCall:
    """A call whose stored ``part`` ("request" or "answer") is not what it was."""

    request_id: str
    part: str


@dataclass
class LedgerFindings:
    calls: int = 0
    damaged: list[DamagedCall] = field(default_factory=list)


def verify_ledger(ledger: Ledger, *, dataset: str | None = None) -> LedgerFindings:
    """Every call of the ledger, or those that ``dataset`` asked first.

    Raises:
        LedgerError: it cannot be read.
    """
    found = LedgerFindings()
    for row in _rows(ledger, dataset):
        request, *stored = row
        answer = StoredAnswer._make(stored)
        found.calls += 1
        if hashlib.sha256(str(request).encode()).hexdigest() != answer.request_id:
            found.damaged.append(DamagedCall(answer.request_id, "request"))
        if not _intact(answer):
            found.damaged.append(DamagedCall(answer.request_id, "answer"))
    return found


def _rows(ledger: Ledger, dataset: str | None) -> Iterator[tuple[Any, ...]]:
    mine = "" if dataset is None else " AND dataset = ?"
    values = () if dataset is None else (storable(dataset),)
    query = (
        f"SELECT request, {sql.ANSWER_COLUMNS} FROM calls WHERE request_id > ?{mine} "
        "ORDER BY request_id LIMIT ?"
    )
    after = ""
    while rows := ledger.query(query, (after, *values, PAGE)):
        yield from rows
        after = str(rows[-1][1])


def _intact(answer: StoredAnswer) -> bool:
    try:
        return answer.intact
    except (TypeError, ValueError):  # a value of another type, in a database that lets it be
        return False
