"""What the tests of the language model engine share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from synth_assets.llm import Answer, Endpoint, Ledger, Limits, Request, Tallies, ask, run_sync
from tests.openai_server import ServerState

FAST = Limits(concurrency=16, timeout_s=5.0)


def endpoint_of(
    server: ServerState, *, key: str = "test-key", model: str = "test-model"
) -> Endpoint:
    return Endpoint(server.base_url, model, SecretStr(key), identity="the test server")


def request(number: int, *, sample: int = 0, model: str = "test-model", **body: Any) -> Request:
    messages = [{"role": "user", "content": f"Write one row about pump {number}."}]
    full = {"model": model, "messages": messages, "seed": number, "max_tokens": 200, **body}
    return Request("chat", "the test server", full, sample)


def requests(count: int, **body: Any) -> list[Request]:
    return [request(number, **body) for number in range(count)]


def answers_of(
    asked: Iterable[Request],
    *,
    endpoint: Endpoint,
    path: Path,
    limits: Limits = FAST,
    tallies: Tallies | None = None,
    **options: Any,
) -> list[Answer]:
    """All answers, in completion order, through a ledger at ``path``."""

    async def collected() -> list[Answer]:
        with Ledger.open(path) as ledger:
            stream = ask(
                asked, endpoint=endpoint, ledger=ledger, limits=limits, tallies=tallies, **options
            )
            async with aclosing(stream):
                return [answer async for answer in stream]

    return run_sync(collected())


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
