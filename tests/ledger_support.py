"""Rows for ledgers, and places for ledgers to be."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from synth_assets.llm import Ledger
from synth_assets.llm.ledger.backend import Backend
from synth_assets.llm.ledger.location import opened_backend
from synth_assets.llm.ledger.rows import CallRow, FailureRow
from tests.llm_support import request

BODY = b'{"choices":[{"message":{"content":"' + b"x" * 900 + b'"},"finish_reason":"stop"}]}'


def row(number: int, **changes: object) -> CallRow:
    asked = request(number)
    plain = CallRow(
        request_id=asked.request_id,
        dataset="d",
        endpoint="e",
        model="m",
        request=asked.canonical,
        response=BODY + str(number).encode(),
        status=200,
        outcome="ok",
        finish_reason="stop",
        prompt_tokens=10,
        completion_tokens=5,
        cost_usd=0.5,
        prices=None,
        attempts=1,
        started_at=1.0,
        latency_ms=2.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def failure(number: int, *, dataset: str = "d", detail: str = "no", at: float = 1.0) -> FailureRow:
    asked = request(number)
    return FailureRow(
        asked.request_id,
        dataset,
        "e",
        "m",
        asked.canonical,
        "permanent",
        400,
        detail,
        b"raw\xff",
        1,
        at,
    )


async def put_all(ledger: Ledger, rows: list[CallRow]) -> list[bool]:
    return list(await asyncio.gather(*(ledger.put(each) for each in rows)))


class Place:
    """Somewhere for a ledger to be, and a look behind it."""

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    def is_postgres(self) -> bool:
        return self.location.startswith("postgresql://")

    def backend(self, *, lease_s: float = 60.0) -> Backend:
        return opened_backend(self.location, lease_s=lease_s)

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """A statement with ``?`` marks from outside, committed."""
        if self.is_postgres:
            import psycopg

            from synth_assets.llm.ledger.postgres import in_postgres

            with closing(psycopg.connect(self.location, autocommit=True)) as connection:
                cursor = connection.execute(in_postgres(statement), tuple(parameters))
                return cursor.fetchall() if cursor.description else []
        with closing(sqlite3.connect(self.location)) as raw:
            rows = raw.execute(statement, parameters).fetchall()
            raw.commit()
            return rows
