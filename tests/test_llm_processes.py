"""Kills, and several processes at one ledger: nothing lost, nothing bought twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synth_assets.llm import Ledger
from tests.llm_support import answers_of, endpoint_of, request, requests
from tests.openai_server import FaultAction, RequestInfo, ServerState, running_server

ROOT = Path(__file__).resolve().parents[1]
ASKER = """
import sys
from pathlib import Path
from contextlib import aclosing
from pydantic import SecretStr
from synth_assets.llm import Endpoint, Ledger, Limits, ask, run_sync
from tests.llm_support import request

url, path, first, count, concurrency = sys.argv[1:6]
endpoint = Endpoint(url, "test-model", SecretStr("test-key"), identity="the test server")

async def main():
    asked = (request(n) for n in range(int(first), int(first) + int(count)))
    limits = Limits(concurrency=int(concurrency))
    with Ledger.open(path) as ledger:
        async with aclosing(
            ask(asked, endpoint=endpoint, ledger=ledger, limits=limits, dataset=sys.argv[6])
        ) as stream:
            async for answer in stream:
                print(answer.request_id, answer.ok, flush=True)

run_sync(main())
print("done", flush=True)
"""


def asker(
    server: ServerState, path: Path, *, first: int = 0, count: int, concurrency: int = 16
) -> subprocess.Popen[str]:
    arguments = [server.base_url, str(path), str(first), str(count), str(concurrency), "d"]
    return subprocess.Popen(
        [sys.executable, "-c", ASKER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def finished(process: subprocess.Popen[str]) -> list[str]:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    lines = out.split("\n")
    assert "done" in lines
    return [line.split()[0] for line in lines if line.endswith("True")]


def killed_after(process: subprocess.Popen[str], lines: int) -> list[str]:
    """What the process printed before it was killed right after its n-th line."""
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.communicate()
    return [line.split()[0] for line in seen if line.endswith("True\n")]


def test_what_was_yielded_before_a_kill_is_in_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(latency_s=0.01) as server:
        seen = killed_after(asker(server, path, count=3000), lines=100)
    assert len(seen) >= 100
    with Ledger.open(path) as ledger:
        assert set(ledger.answers(seen)) == set(seen)


def test_kills_cost_at_most_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "l"
    concurrency, kills, total = 8, 3, 400
    with running_server(latency_s=0.02) as server:
        for _ in range(kills):
            killed_after(asker(server, path, count=total, concurrency=concurrency), lines=60)
        seen = finished(asker(server, path, count=total, concurrency=concurrency))
        assert len(set(seen)) == total
        # In flight at a kill, or answered and not yet on disk: asked again, nothing else.
        assert server.successes_by_identity.total() <= total + kills * 2 * concurrency
        assert len(server.successes_by_identity) == total


def test_two_processes_at_once_buy_every_request_once(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(latency_s=0.02) as server:
        both = [asker(server, path, count=300), asker(server, path, first=100, count=300)]
        one, other = (finished(process) for process in both)
        assert max(server.successes_by_identity.values()) == 1
        assert server.request_count == 400
    assert len(one) == len(other) == 300


def test_a_killed_process_does_not_hold_its_claims(tmp_path: Path) -> None:
    path = tmp_path / "l"

    def stall_first(info: RequestInfo) -> FaultAction | None:
        return FaultAction("stall", seconds=20) if info.attempt == 1 and info.index < 8 else None

    with running_server(fault=stall_first) as server:
        process = asker(server, path, count=8)
        deadline = time.monotonic() + 30
        while server.request_count < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        started = time.monotonic()
        answers = answers_of(requests(8), endpoint=endpoint_of(server), path=path)
        seconds = time.monotonic() - started
    assert all(answer.ok for answer in answers)
    assert seconds < 20


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_a_run_in_seconds_and_keeps_what_came(tmp_path: Path, name: str) -> None:
    path = tmp_path / "l"
    stop_by_exit = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    with running_server(latency_s=0.05) as server:
        arguments = [server.base_url, str(path), "0", "5000", "8", "d"]
        process = subprocess.Popen(
            [sys.executable, "-c", stop_by_exit + ASKER, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        started = time.monotonic()
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=30)
        assert time.monotonic() - started < 8
        served = server.successes_by_identity.total()
    assert process.returncode != 0
    with Ledger.open(path) as ledger:
        assert ledger.spent("d").calls == served
        assert ledger.call(request(0).request_id) is not None
