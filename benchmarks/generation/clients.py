"""The clients that are compared. Each runs in a process of its own:

    python -m benchmarks.generation.clients NAME BASE_URL REQUESTS CONCURRENCY

and prints one JSON line: seconds, CPU seconds and peak memory of the process, answers that came.
CPU and time are counted from the first request on; imports and start-up are reported apart.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

MODEL = "bench"
SYSTEM = "You write realistic support tickets. " * 4


def body_of(number: int) -> dict[str, Any]:
    """The same question for every client; no two alike."""
    prompt = f"Write 8 new support tickets about delivery, batch {number}.\n" + "- an example\n" * 6
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
        "temperature": 1.0,
        "max_tokens": 512,
    }


Ask = Callable[[str, int, int], Awaitable[int]]


async def ours(url: str, requests: int, concurrency: int) -> int:
    """The engine with its ledger: every answer on disk before it is used."""
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        return await _through_ledger(Path(folder) / "ledger.sqlite", url, requests, concurrency)


async def _through_ledger(path: Path, url: str, requests: int, concurrency: int) -> int:
    from pydantic import SecretStr

    from synth_assets.llm import Endpoint, Ledger, Limits, Request, ask

    def stream() -> Iterator[Request]:
        for number in range(requests):
            yield Request("chat", "bench", body_of(number))

    endpoint = Endpoint(url, MODEL, SecretStr("no-key"), identity="bench")
    good = 0
    with Ledger.open(path) as ledger:
        answers = ask(
            stream(), endpoint=endpoint, ledger=ledger, limits=Limits(concurrency=concurrency)
        )
        async with aclosing(answers):
            async for answer in answers:
                good += answer.ok
    return good


async def replay(url: str, requests: int, concurrency: int) -> int:
    """Everything from the ledger: bought once (not timed), then read by the same engine."""
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        path = Path(folder) / "ledger.sqlite"
        await _through_ledger(path, url, requests, concurrency)
        _start_clock()
        return await _through_ledger(path, "http://127.0.0.1:9/v1", requests, concurrency)


async def _create_loop(client: Any, requests: int, concurrency: int) -> int:
    places = asyncio.Semaphore(concurrency)
    good = 0

    async def one(number: int) -> None:
        nonlocal good
        async with places:
            answer = await client.chat.completions.create(**body_of(number))
        good += bool(answer.choices[0].message.content)

    async with asyncio.TaskGroup() as group:
        for number in range(requests):
            group.create_task(one(number))
    return good


async def create(url: str, requests: int, concurrency: int) -> int:
    """What a user writes first: ``AsyncOpenAI().chat.completions.create`` and a semaphore."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="no-key", max_retries=0) as client:
        return await _create_loop(client, requests, concurrency)


async def create_aiohttp(url: str, requests: int, concurrency: int) -> int:
    """The same over the client's aiohttp transport."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async with AsyncOpenAI(
        base_url=url, api_key="no-key", max_retries=0, http_client=DefaultAioHttpClient()
    ) as client:
        return await _create_loop(client, requests, concurrency)


async def aiohttp_floor(url: str, requests: int, concurrency: int) -> int:
    """No client library: workers that post JSON and read JSON. Nothing is kept, nothing retried."""
    import aiohttp
    import orjson

    numbers = iter(range(requests))
    good = 0
    headers = {"Authorization": "Bearer no-key", "Content-Type": "application/json"}

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal good
        for number in numbers:
            data = orjson.dumps(body_of(number))
            async with session.post(f"{url}/chat/completions", data=data) as response:
                answer = orjson.loads(await response.read())
            good += bool(answer["choices"][0]["message"]["content"])

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(concurrency):
            group.create_task(worker(session))
    return good


CLIENTS: dict[str, Ask] = {
    "ours": ours,
    "create": create,
    "create_aiohttp": create_aiohttp,
    "aiohttp": aiohttp_floor,
    "replay": replay,
}
_clock = (0.0, 0.0)


def _start_clock() -> None:
    global _clock
    _clock = (time.perf_counter(), time.process_time())


def measured(name: str, url: str, requests: int, concurrency: int) -> dict[str, Any]:
    """Runs one client in this process; uvloop for all, as far as they run in our loop."""
    import uvloop

    if name in ("ours", "replay"):
        import synth_assets.llm  # noqa: F401
    import openai  # noqa: F401

    _start_clock()
    good = uvloop.run(CLIENTS[name](url, requests, concurrency))  # type: ignore[arg-type]
    seconds, cpu = time.perf_counter() - _clock[0], time.process_time() - _clock[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"client": name, "good": good, "seconds": seconds, "cpu": cpu, "peak_mb": peak}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
