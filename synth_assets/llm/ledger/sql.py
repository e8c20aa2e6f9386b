"""The ledger's tables and statements: plain SQL with ``?`` marks, for any database behind it."""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

from synth_assets.llm.ledger.rows import (
    CallRow,
    FailureRow,
    Mark,
    Owner,
    UnseenRow,
    checksum,
    storable,
)

SCHEMA_VERSION: Final = 3
# The most ids that one statement names.
CHUNK: Final = 512
# Lists of ids are filled up to one of these, so that few statements are prepared and kept.
_SIZES: Final = (1, 8, 64, CHUNK)
_REQUEST_AT = 4
# The place of ``started_at`` among CALL_COLUMNS.
STARTED_AT: Final = 14

T = TypeVar("T")

# One entry per version: the statements that lead there from the version before. Released entries
# are never edited; a change to the tables is a new entry.
MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1: (
        """CREATE TABLE calls (
            request_id TEXT NOT NULL PRIMARY KEY,
            dataset TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            model TEXT NOT NULL,
            request TEXT NOT NULL,
            response BLOB NOT NULL,
            status INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            finish_reason TEXT,
            prompt_tokens BIGINT,
            completion_tokens BIGINT,
            cost_usd DOUBLE PRECISION,
            prices TEXT,
            attempts INTEGER NOT NULL,
            started_at DOUBLE PRECISION NOT NULL,
            latency_ms DOUBLE PRECISION NOT NULL,
            checksum BLOB NOT NULL
        )""",
        """CREATE INDEX calls_spent
            ON calls (dataset, prompt_tokens, completion_tokens, cost_usd)""",
        """CREATE TABLE failures (
            request_id TEXT NOT NULL,
            dataset TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            model TEXT NOT NULL,
            request TEXT NOT NULL,
            kind TEXT NOT NULL,
            status INTEGER,
            detail TEXT NOT NULL,
            body BLOB NOT NULL,
            attempts INTEGER NOT NULL,
            started_at DOUBLE PRECISION NOT NULL
        )""",
        "CREATE INDEX failures_of_request ON failures (request_id)",
        """CREATE TABLE owners (
            token TEXT NOT NULL PRIMARY KEY,
            host TEXT NOT NULL,
            pid BIGINT NOT NULL,
            born TEXT NOT NULL,
            heartbeat_at DOUBLE PRECISION NOT NULL
        )""",
        """CREATE TABLE claims (
            request_id TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL
        )""",
        "CREATE INDEX claims_of_owner ON claims (owner)",
        """CREATE TABLE capabilities (
            endpoint TEXT NOT NULL,
            model TEXT NOT NULL,
            mode TEXT NOT NULL,
            found_at DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (endpoint, model)
        )""",
    ),
    2: (
        # What a claimed request may cost once it is on its way under a budget; null before that.
        "ALTER TABLE claims ADD COLUMN dataset TEXT",
        "ALTER TABLE claims ADD COLUMN tokens BIGINT",
        "ALTER TABLE claims ADD COLUMN usd DOUBLE PRECISION",
        # Attempts that may have been billed and whose answer was never seen, at their worst case.
        """CREATE TABLE unseen (
            request_id TEXT NOT NULL,
            dataset TEXT NOT NULL,
            tokens BIGINT,
            usd DOUBLE PRECISION,
            reason TEXT NOT NULL,
            seen_at DOUBLE PRECISION NOT NULL
        )""",
        "CREATE INDEX unseen_of_dataset ON unseen (dataset)",
        # What calls that were pruned had cost: a budget counts them still.
        """CREATE TABLE pruned (
            dataset TEXT NOT NULL PRIMARY KEY,
            calls BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            usd DOUBLE PRECISION NOT NULL
        )""",
        # Batches at a provider. A request of an open batch counts as claimed, by the batch.
        """CREATE TABLE batches (
            token TEXT NOT NULL PRIMARY KEY,
            dataset TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            model TEXT NOT NULL,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            batch_id TEXT,
            input_file_id TEXT,
            requests BIGINT NOT NULL,
            tokens BIGINT,
            usd DOUBLE PRECISION,
            prices TEXT,
            detail TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            updated_at DOUBLE PRECISION NOT NULL
        )""",
        """CREATE TABLE batch_requests (
            request_id TEXT NOT NULL PRIMARY KEY,
            token TEXT NOT NULL,
            request TEXT NOT NULL
        )""",
        "CREATE INDEX batch_requests_of_batch ON batch_requests (token)",
    ),
    # Listing from the newest, pruning from the oldest, paging through both.
    3: (
        "CREATE INDEX calls_by_time ON calls (started_at, request_id)",
        # The latest calls of a model tell what the next ones will cost and take.
        "CREATE INDEX calls_of_model ON calls (endpoint, model, started_at)",
    ),
}

TABLES: Final = (
    "calls",
    "failures",
    "owners",
    "claims",
    "capabilities",
    "unseen",
    "pruned",
    "batches",
    "batch_requests",
    "schema_version",
)
VERSION_TABLE = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"

CALL_COLUMNS: Final = (
    "request_id, dataset, endpoint, model, request, response, status, outcome, finish_reason, "
    "prompt_tokens, completion_tokens, cost_usd, prices, attempts, started_at, latency_ms"
)
INSERT_CALL = (
    f"INSERT INTO calls ({CALL_COLUMNS}, checksum) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (request_id) DO NOTHING"
)
FAILURE_COLUMNS: Final = (
    "request_id, dataset, endpoint, model, request, kind, status, detail, body, attempts, "
    "started_at"
)
INSERT_FAILURE = f"INSERT INTO failures ({FAILURE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
INSERT_UNSEEN = (
    "INSERT INTO unseen (request_id, dataset, tokens, usd, reason, seen_at) VALUES (?,?,?,?,?,?)"
)
ANSWER_COLUMNS: Final = (
    "request_id, response, status, outcome, finish_reason, prompt_tokens, completion_tokens, "
    "cost_usd, attempts, latency_ms, checksum"
)
INSERT_CLAIM = (
    "INSERT INTO claims (request_id, owner) VALUES (?,?) ON CONFLICT (request_id) DO NOTHING"
)
MARK_CLAIM = "UPDATE claims SET dataset = ?, tokens = ?, usd = ? WHERE request_id = ? AND owner = ?"
DROP_CLAIM = "DELETE FROM claims WHERE request_id = ?"
DROP_CLAIMS_OF = "DELETE FROM claims WHERE owner = ?"
# What a process that ended without a word had on its way may have been billed.
ASKED_TO_UNSEEN = (
    "INSERT INTO unseen (request_id, dataset, tokens, usd, reason, seen_at) "
    "SELECT request_id, dataset, tokens, usd, 'killed', CAST(? AS DOUBLE PRECISION) FROM claims "
    "WHERE owner = ? AND dataset IS NOT NULL"
)
OWNERS = "SELECT token, host, pid, born, heartbeat_at FROM owners"
DROP_OWNER = "DELETE FROM owners WHERE token = ?"
HEARTBEAT = (
    "INSERT INTO owners (token, host, pid, born, heartbeat_at) VALUES (?,?,?,?,?) "
    "ON CONFLICT (token) DO UPDATE SET heartbeat_at = excluded.heartbeat_at"
)
REMEMBER = (
    "INSERT INTO capabilities (endpoint, model, mode, found_at) VALUES (?,?,?,?) "
    "ON CONFLICT (endpoint, model) DO UPDATE SET mode = excluded.mode, found_at = excluded.found_at"
)
# Sums of whole numbers are cast, since PostgreSQL's are decimals.
SPENT = (
    "SELECT CAST(coalesce(sum(calls), 0) AS BIGINT), "
    "CAST(coalesce(sum(prompt_tokens), 0) AS BIGINT), "
    "CAST(coalesce(sum(completion_tokens), 0) AS BIGINT), coalesce(sum(usd), 0.0) FROM ("
    "SELECT count(*) AS calls, sum(prompt_tokens) AS prompt_tokens, "
    "sum(completion_tokens) AS completion_tokens, sum(cost_usd) AS usd FROM calls{where} "
    "UNION ALL SELECT calls, prompt_tokens, completion_tokens, usd FROM pruned{where}) AS paid"
)
# One statement, so that all of it is seen at one moment.
COMMITTED = (
    "SELECT CAST(coalesce(sum(calls), 0) AS BIGINT), CAST(coalesce(sum(tokens), 0) AS BIGINT), "
    "coalesce(sum(usd), 0.0) FROM ("
    "SELECT count(*) AS calls, "
    "coalesce(sum(prompt_tokens), 0) + coalesce(sum(completion_tokens), 0) AS tokens, "
    "sum(cost_usd) AS usd FROM calls WHERE dataset = ? "
    "UNION ALL SELECT calls, prompt_tokens + completion_tokens, usd FROM pruned WHERE dataset = ? "
    "UNION ALL SELECT count(*), sum(tokens), sum(usd) FROM unseen WHERE dataset = ? "
    "UNION ALL SELECT sum(requests), sum(tokens), sum(usd) FROM batches "
    "WHERE dataset = ? AND state IN ('submitting', 'submitted')) AS counted"
)
COUNT_PRUNED = (
    "INSERT INTO pruned (dataset, calls, prompt_tokens, completion_tokens, usd) "
    "SELECT dataset, count(*), coalesce(sum(prompt_tokens), 0), "
    "coalesce(sum(completion_tokens), 0), coalesce(sum(cost_usd), 0.0) FROM calls "
    "WHERE request_id IN ({marks}) GROUP BY dataset "
    "ON CONFLICT (dataset) DO UPDATE SET calls = pruned.calls + excluded.calls, "
    "prompt_tokens = pruned.prompt_tokens + excluded.prompt_tokens, "
    "completion_tokens = pruned.completion_tokens + excluded.completion_tokens, "
    "usd = pruned.usd + excluded.usd"
)


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def filled(ids: Sequence[str]) -> Sequence[str]:
    """At most ``CHUNK`` ids, the last one repeated: naming it twice changes no answer."""
    size = next(size for size in _SIZES if size >= len(ids))
    return [*ids, *[ids[-1]] * (size - len(ids))]


def marks(count: int) -> str:
    return ",".join("?" * count)


def select_answers(count: int) -> str:
    return f"SELECT {ANSWER_COLUMNS} FROM calls WHERE request_id IN ({marks(count)})"


def select_answered(count: int) -> str:
    return f"SELECT request_id FROM calls WHERE request_id IN ({marks(count)})"


def select_in_batches(count: int) -> str:
    return f"SELECT request_id FROM batch_requests WHERE request_id IN ({marks(count)})"


def call_values(call: CallRow) -> tuple[Any, ...]:
    """The parameters of ``INSERT_CALL``; the checksum is of what is stored."""
    outcome = storable(call.outcome)
    finish_reason = None if call.finish_reason is None else storable(call.finish_reason)
    return (
        call.request_id,
        storable(call.dataset),
        storable(call.endpoint),
        storable(call.model),
        call.request.decode(),
        call.response,
        call.status,
        outcome,
        finish_reason,
        call.prompt_tokens,
        call.completion_tokens,
        call.cost_usd,
        None if call.prices is None else storable(call.prices),
        call.attempts,
        call.started_at,
        call.latency_ms,
        call_checksum(call, outcome, finish_reason),
    )


def call_checksum(
    call: CallRow, outcome: str | None = None, finish_reason: str | None = None
) -> bytes:
    """The checksum of a call as stored; texts may be given in the form that is stored."""
    return checksum(
        call.request_id,
        call.response,
        call.status,
        outcome or call.outcome,
        finish_reason or call.finish_reason,
        call.prompt_tokens,
        call.completion_tokens,
        call.cost_usd,
        call.attempts,
        call.latency_ms,
    )


def failure_values(failure: FailureRow) -> tuple[Any, ...]:
    """The parameters of ``INSERT_FAILURE``."""
    return (
        failure.request_id,
        storable(failure.dataset),
        storable(failure.endpoint),
        storable(failure.model),
        failure.request.decode(),
        storable(failure.kind),
        failure.status,
        storable(failure.detail),
        failure.body,
        failure.attempts,
        failure.started_at,
    )


def unseen_values(unseen: UnseenRow, *, now: float) -> tuple[Any, ...]:
    """The parameters of ``INSERT_UNSEEN``."""
    return (
        unseen.request_id,
        storable(unseen.dataset),
        unseen.tokens,
        unseen.usd,
        storable(unseen.reason),
        now,
    )


def mark_values(mark: Mark, owner: Owner) -> tuple[Any, ...]:
    """The parameters of ``MARK_CLAIM``."""
    dataset = None if mark.dataset is None else storable(mark.dataset)
    return (dataset, mark.tokens, mark.usd, mark.request_id, owner.token)


def with_request_bytes(row: Sequence[Any]) -> Iterator[Any]:
    """A stored row with its request, the fifth column, as the bytes it was."""
    return (value.encode() if at == _REQUEST_AT else value for at, value in enumerate(row))
