"""What the tests of batches share: one run in this process, or one in a process to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from synth_assets.llm import Answer, Endpoint, Ledger, Limits, Request, run_sync
from synth_assets.llm.batch.batch import BatchSettings, ask_in_batches
from tests.openai_server import FaultAction, FaultHook, RequestInfo, ServerState

ROOT = Path(__file__).resolve().parents[1]
QUICK = (0.02, 0.1)
PATIENT = BatchSettings(wait_s=30, poll_s=QUICK)
LEAVING = BatchSettings(wait_s=0, poll_s=QUICK)
LIMITS = Limits(timeout_s=20.0, max_attempts=4)

ASKER = """
import os, signal, sys
from pathlib import Path
from contextlib import aclosing
from pydantic import SecretStr
from synth_assets.llm import Endpoint, Ledger, Limits, run_sync
from synth_assets.llm.batch import draft as batch_draft
from synth_assets.llm.batch import keeper as batch_keeper
from synth_assets.llm.batch import walk as batch_walk
from synth_assets.llm.batch.batch import BatchSettings, ask_in_batches
from tests.llm_support import request

url, path, first, count, die_after = sys.argv[1:6]
endpoint = Endpoint(url, "test-model", SecretStr("test-key"), identity="the test server")
batch_walk.CHUNK = batch_keeper.CHUNK = 20
kind, _, number = die_after.partition(":")

def die_when(method, cls, before=False):
    real, calls = getattr(cls, method), []
    async def dying(*arguments, **named):
        given = None if before else await real(*arguments, **named)
        calls.append(1)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return await real(*arguments, **named) if before else given
    setattr(cls, method, dying)

if kind == "put":
    die_when("put", Ledger)
elif kind == "before put":
    die_when("put", Ledger, before=True)
elif kind == "flush":
    die_when("flush", batch_draft.Draft)
elif kind == "sealed":
    die_when("sealed", batch_draft.Draft)

async def main():
    settings = BatchSettings(wait_s=60, poll_s=(0.02, 0.1), max_requests=150)
    numbers = range(int(first), int(first) + int(count))
    with Ledger.open(path) as ledger:
        stream = ask_in_batches(
            lambda: (request(n) for n in numbers),
            endpoint=endpoint, ledger=ledger, settings=settings, dataset="d",
            limits=Limits(timeout_s=30.0),
        )
        async with aclosing(stream) as answers:
            async for answer in answers:
                print(answer.request_id, answer.ok, flush=True)

run_sync(main())
print("done", flush=True)
"""


def batched(
    asked: Iterable[Request] | Callable[[], Iterable[Request]],
    *,
    endpoint: Endpoint,
    path: Path,
    settings: BatchSettings = PATIENT,
    **options: Any,
) -> list[Answer]:
    """All answers of one run, through a ledger at ``path``."""

    async def collected() -> list[Answer]:
        with Ledger.open(path) as ledger:
            stream = ask_in_batches(
                asked,
                endpoint=endpoint,
                ledger=ledger,
                settings=settings,
                **{"limits": LIMITS, "dataset": "d", **options},
            )
            async with aclosing(stream):
                return [answer async for answer in stream]

    return run_sync(collected())


def asker(
    server: ServerState, path: Path, *, first: int = 0, count: int, die_after: str = ""
) -> subprocess.Popen[str]:
    """A process that asks in batches of 150, 20 requests per transaction."""
    arguments = [server.base_url, str(path), str(first), str(count), die_after]
    return subprocess.Popen(
        [sys.executable, "-c", ASKER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def finished(process: subprocess.Popen[str]) -> list[str]:
    """The ids that were answered well by a process that has to end well."""
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "done" in out
    return [line.split()[0] for line in out.splitlines() if line.endswith("True")]


def until(true: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Waits for something that another thread or process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def striking(call: str, action: FaultAction, *, times: int = 1) -> FaultHook:
    """Strikes the first calls of one kind to the batch routes, as ``POST /v1/files``."""

    def hook(info: RequestInfo) -> FaultAction | None:
        return action if info.path == call and info.attempt <= times else None

    return hook
