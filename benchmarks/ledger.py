"""How fast the ledger writes and replays.

    python -m benchmarks.ledger [--calls 20000] [--at PATH_OR_URL]

Puts calls of about 1.5 KB with a given number in flight (each is durable before its put returns),
then reads all of them back as a replay does, three times, and tells the best. Give it a PostgreSQL
database of its own: it leaves its rows there.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from synth_assets.llm import Ledger, Request
from synth_assets.llm.ledger.rows import CallRow

BODY = b'{"choices":[{"message":{"content":"' + b"x" * 900 + b'"},"finish_reason":"stop"}]}'
LOOKUP = 512


def rows(first: int, count: int) -> list[CallRow]:
    made = []
    for number in range(first, first + count):
        messages = [{"role": "user", "content": f"Row {number}. " + "context " * 40}]
        asked = Request("chat", "bench", {"model": "m", "messages": messages, "seed": number}, 0)
        made.append(
            CallRow(
                asked.request_id, "bench", "endpoint", "m", asked.canonical, BODY, 200, "ok",
                "stop", 100, 200, 0.001, None, 1, time.time() + number / 1e3, 12.5,
            )
        )  # fmt: skip
    return made


async def put(ledger: Ledger, calls: list[CallRow], in_flight: int, claiming: bool) -> float:
    source = iter(calls)

    async def worker() -> None:
        for call in source:
            if claiming:
                await ledger.claim([call.request_id])
            await ledger.put(call)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return len(calls) / (time.perf_counter() - started)


async def replay(ledger: Ledger, ids: list[str]) -> float:
    started = time.perf_counter()
    found = 0
    for start in range(0, len(ids), LOOKUP):
        found += len(await ledger.get_many(ids[start : start + LOOKUP]))
    assert found == len(ids)
    return found / (time.perf_counter() - started)


async def measured(location: str, calls: int, first: int, in_flight: int) -> None:
    made = rows(first, calls)
    claimed = rows(first + calls, calls // 4)
    with Ledger.open(location) as ledger:
        written = await put(ledger, made, in_flight, False)
        both = await put(ledger, claimed, in_flight, True)
        read = max([await replay(ledger, [call.request_id for call in made]) for _ in range(3)])
    print(
        f"in flight {in_flight}: put {written:,.0f}/s, claim+put {both:,.0f}/s, "
        f"replay {read:,.0f}/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--at", default="", help="a path or a URL; default: a temporary file")
    arguments = parser.parse_args()
    first = time.time_ns() % 10**12
    with tempfile.TemporaryDirectory() as folder:
        for number, in_flight in enumerate((64, 512)):
            location = arguments.at or str(Path(folder) / f"{in_flight}.sqlite")
            count = arguments.calls
            asyncio.run(measured(location, count, first + 2 * number * count, in_flight))


if __name__ == "__main__":
    main()
