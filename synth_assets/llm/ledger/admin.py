"""Looking into a ledger and keeping its size down: pages of calls, sums, failures, pruning.

Everything reads in pages that continue after the last key, so a ledger of millions is never held
in memory, and no page keeps others from writing.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import (
    Batch,
    CallRow,
    FailureRow,
    LedgerError,
    Statement,
    storable,
)

log = logging.getLogger(__name__)

PAGE: Final = 100
LEAST_PREFIX: Final = 8
_BEFORE_ALL: Final = (float("-inf"), "")
_AFTER_ALL: Final = (float("inf"), "")


class UnknownCall(LedgerError):
    """No call, or more than one, by the name given."""


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls are meant; ``since`` (from) and ``until`` (before) are Unix seconds."""

    dataset: str | None = None
    model: str | None = None
    outcome: str | None = None
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, tuple[Any, ...]]:
        """Conditions and their parameters."""
        wanted = {
            # The || keeps a database from choosing the index of this column over that of the time,
            # and so from sorting the whole ledger for every page.
            "dataset || '' = ?": self.dataset,
            "model = ?": self.model,
            "outcome = ?": self.outcome,
            "started_at >= ?": self.since,
            "started_at < ?": self.until,
        }
        given = {term: value for term, value in wanted.items() if value is not None}
        values = (storable(value) if isinstance(value, str) else value for value in given.values())
        return "".join(f" AND {term}" for term in given), tuple(values)


class SummaryRow(NamedTuple):
    """What calls of one kind cost; the times are Unix seconds."""

    dataset: str
    endpoint: str
    model: str
    outcome: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    first_at: float
    last_at: float


class Overview(NamedTuple):
    """The ledger as a whole; ``place`` without a password."""

    place: str
    version: int
    bytes: int
    claims: int
    open_batches: int
    failures: int
    unseen: int
    pruned: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be; ``kept`` calls are old enough and still in use."""

    calls: int = 0
    bytes: int = 0
    kept: int = 0
    failures: int = 0


def calls(
    ledger: Ledger,
    wanted: CallFilter | None = None,
    *,
    limit: int | None = None,
    newest_first: bool = False,
) -> Iterator[CallRow]:
    """Whole calls by the time they were started; damaged ones are left out with a warning."""
    terms, values = (wanted or CallFilter()).where()
    beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
    query = (
        f"SELECT {sql.CALL_COLUMNS}, checksum FROM calls "
        f"WHERE (started_at, request_id) {beyond} (?, ?){terms} "
        f"ORDER BY started_at {order}, request_id {order} LIMIT ?"
    )
    after, left = _AFTER_ALL if newest_first else _BEFORE_ALL, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        rows = ledger.query(query, (*after, *values, size))
        for *stored, checksum in rows:
            call = CallRow(*sql.with_request_bytes(stored))
            if sql.call_checksum(call) != checksum:
                log.warning("ledger: damaged answer of %s skipped", call.request_id)
                continue
            yield call
        if len(rows) < size:
            return
        after = (rows[-1][sql.STARTED_AT], rows[-1][0])
        left = None if left is None else left - size


def summary(ledger: Ledger) -> list[SummaryRow]:
    """Sums per dataset, endpoint, model and outcome."""
    rows = ledger.query(
        "SELECT dataset, endpoint, model, outcome, count(*), "
        "CAST(coalesce(sum(prompt_tokens), 0) AS BIGINT), "
        "CAST(coalesce(sum(completion_tokens), 0) AS BIGINT), coalesce(sum(cost_usd), 0.0), "
        "min(started_at), max(started_at) FROM calls "
        "GROUP BY dataset, endpoint, model, outcome ORDER BY dataset, endpoint, model, outcome"
    )
    return [SummaryRow(*row) for row in rows]


def overview(ledger: Ledger) -> Overview:
    """Where the ledger is, how large, and what it holds besides calls."""
    counts = ledger.query(
        "SELECT (SELECT count(*) FROM claims), "
        "(SELECT count(*) FROM batches WHERE state IN ('submitting', 'submitted')), "
        "(SELECT count(*) FROM failures), (SELECT count(*) FROM unseen), "
        "(SELECT CAST(coalesce(sum(calls), 0) AS BIGINT) FROM pruned)"
    )
    backend = ledger.backend
    return Overview(backend.place, backend.version(), backend.size_bytes(), *counts[0])


def failures(
    ledger: Ledger, *, dataset: str | None = None, limit: int | None = None
) -> list[FailureRow]:
    """Failures, the newest first."""
    where = "" if dataset is None else " WHERE dataset = ?"
    values: list[Any] = [] if dataset is None else [storable(dataset)]
    most = "" if limit is None else " LIMIT ?"
    rows = ledger.query(
        f"SELECT {sql.FAILURE_COLUMNS} FROM failures{where} ORDER BY started_at DESC{most}",
        [*values, *([] if limit is None else [limit])],
    )
    return [FailureRow(*sql.with_request_bytes(row)) for row in rows]


def full_id(ledger: Ledger, prefix: str) -> str:
    """The one request, answered or failed, whose id begins with ``prefix``. Raises UnknownCall."""
    prefix = prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_PREFIX},64}}", prefix):
        raise UnknownCall(
            "a request id is 64 hex digits",
            fix=f"give at least the first {LEAST_PREFIX} of them, as: synth ledger calls shows",
        )
    bounds = (prefix, prefix + "g")
    found: set[str] = set()
    for table in ("calls", "failures"):
        rows = ledger.query(
            f"SELECT DISTINCT request_id FROM {table} "
            "WHERE request_id >= ? AND request_id < ? LIMIT 3",
            bounds,
        )
        found.update(row[0] for row in rows)
    if not found:
        raise UnknownCall(
            f"no request {prefix} in the ledger",
            where=ledger.backend.place,
            fix="synth ledger calls",
        )
    if len(found) > 1:
        raise UnknownCall(
            f"{prefix} is the beginning of more than one request",
            where=ledger.backend.place,
            fix=f"give more of it: {', '.join(sorted(found))}",
        )
    return found.pop()


def prune(
    ledger: Ledger,
    before: float,
    *,
    dataset: str | None = None,
    keep: AbstractSet[str] | Callable[[str], bool] = frozenset(),
    dry_run: bool = False,
) -> Pruned:
    """Deletes calls and failures started before a time (Unix seconds); counts only, if dry.

    ``keep`` holds, or tells of, request ids that stay. What the deleted calls had cost is added to
    ``pruned`` in the same transaction, so a budget counts it still; unseen attempts stay for the
    same reason. Each transaction deletes a few hundred rows, so that others are not held up.
    """
    is_kept = keep if callable(keep) else keep.__contains__
    count, size, kept = 0, 0, 0
    for page in _old_calls(ledger, before, dataset):
        going = [(name, length) for name, length in page if not is_kept(name)]
        kept += len(page) - len(going)
        count += len(going)
        size += sum(length for _, length in going)
        if going and not dry_run:
            _delete(ledger, [name for name, _ in going])
    gone = _prune_failures(ledger, before, dataset, dry_run=dry_run)
    return Pruned(calls=count, bytes=size, kept=kept, failures=gone)


def _old_calls(
    ledger: Ledger, before: float, dataset: str | None
) -> Iterator[list[tuple[str, int]]]:
    """Ids and bytes of calls before a time, in pages."""
    terms, values = CallFilter(dataset=dataset, until=before).where()
    query = (
        "SELECT request_id, started_at, length(request) + length(response) FROM calls "
        f"WHERE (started_at, request_id) > (?, ?){terms} ORDER BY started_at, request_id LIMIT ?"
    )
    after = _BEFORE_ALL
    while rows := ledger.query(query, (*after, *values, sql.CHUNK)):
        after = (rows[-1][1], rows[-1][0])
        yield [(name, length) for name, _, length in rows]


def _delete(ledger: Ledger, ids: Sequence[str]) -> None:
    names = tuple(sql.filled(ids))
    marks = sql.marks(len(names))
    # Counted and deleted as one: whoever prunes beside us counts none of them again.
    statements: list[Statement] = [
        (sql.COUNT_PRUNED.format(marks=marks), names),
        (f"DELETE FROM calls WHERE request_id IN ({marks})", names),
    ]
    _write_and_pause(ledger, statements)


def _write_and_pause(ledger: Ledger, statements: list[Statement]) -> None:
    """Leaves the ledger to others half of the time: who waits for a file looks now and then."""
    started = time.monotonic()
    ledger.backend.write(Batch(statements=statements))
    time.sleep(time.monotonic() - started)


def _prune_failures(ledger: Ledger, before: float, dataset: str | None, *, dry_run: bool) -> int:
    terms, values = ("", ()) if dataset is None else (" AND dataset = ?", (storable(dataset),))
    old = f"FROM failures WHERE started_at < ?{terms}"
    count = int(ledger.query(f"SELECT count(*) {old}", (before, *values))[0][0])
    if dry_run:
        return count
    some = f"SELECT DISTINCT request_id {old} LIMIT {sql.CHUNK}"
    while names := tuple(row[0] for row in ledger.query(some, (before, *values))):
        delete = f"DELETE {old} AND request_id IN ({sql.marks(len(names))})"
        _write_and_pause(ledger, [(delete, (before, *values, *names))])
    return count
