"""The ledger's tables and statements: plain SQL with ``?`` marks, for any database behind it."""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from synth_assets.llm.rows import CallRow, FailureRow, checksum

SCHEMA_VERSION: Final = 1
_REQUEST_AT = 4

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
}

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
ANSWER_COLUMNS: Final = (
    "request_id, response, status, outcome, finish_reason, prompt_tokens, completion_tokens, "
    "cost_usd, attempts, latency_ms, checksum"
)
DROP_CLAIM = "DELETE FROM claims WHERE request_id = ?"
HEARTBEAT = (
    "INSERT INTO owners (token, host, pid, born, heartbeat_at) VALUES (?,?,?,?,?) "
    "ON CONFLICT (token) DO UPDATE SET heartbeat_at = excluded.heartbeat_at"
)
REMEMBER = (
    "INSERT INTO capabilities (endpoint, model, mode, found_at) VALUES (?,?,?,?) "
    "ON CONFLICT (endpoint, model) DO UPDATE SET mode = excluded.mode, found_at = excluded.found_at"
)
SPENT = (
    "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), "
    "coalesce(sum(cost_usd), 0.0) FROM calls"
)


def marks(count: int) -> str:
    return ",".join("?" * count)


def select_answers(count: int) -> str:
    return f"SELECT {ANSWER_COLUMNS} FROM calls WHERE request_id IN ({marks(count)})"


def select_answered(count: int) -> str:
    return f"SELECT request_id FROM calls WHERE request_id IN ({marks(count)})"


def insert_claims(count: int) -> str:
    """Grants what nobody holds; the ids that come back are ours."""
    rows = ",".join(["(?,?)"] * count)
    return (
        f"INSERT INTO claims (request_id, owner) VALUES {rows} "
        "ON CONFLICT (request_id) DO NOTHING RETURNING request_id"
    )


def call_values(call: CallRow) -> tuple[Any, ...]:
    """The parameters of ``INSERT_CALL``."""
    return (
        call.request_id,
        call.dataset,
        call.endpoint,
        call.model,
        call.request.decode(),
        call.response,
        call.status,
        call.outcome,
        call.finish_reason,
        call.prompt_tokens,
        call.completion_tokens,
        call.cost_usd,
        call.prices,
        call.attempts,
        call.started_at,
        call.latency_ms,
        _checksum(call),
    )


def failure_values(failure: FailureRow) -> tuple[Any, ...]:
    """The parameters of ``INSERT_FAILURE``."""
    return (
        failure.request_id,
        failure.dataset,
        failure.endpoint,
        failure.model,
        failure.request.decode(),
        failure.kind,
        failure.status,
        failure.detail,
        failure.body,
        failure.attempts,
        failure.started_at,
    )


def _checksum(call: CallRow) -> bytes:
    return checksum(
        call.request_id,
        call.response,
        call.status,
        call.outcome,
        call.finish_reason,
        call.prompt_tokens,
        call.completion_tokens,
        call.cost_usd,
        call.attempts,
        call.latency_ms,
    )


def with_request_bytes(row: Sequence[Any]) -> Iterator[Any]:
    """A stored row with its request, the fifth column, as the bytes it was."""
    return (value.encode() if at == _REQUEST_AT else value for at, value in enumerate(row))
