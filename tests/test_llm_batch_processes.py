"""Batches under kills, and of several processes at once: nothing lost, nothing submitted twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synth_assets.llm import Ledger
from synth_assets.llm.batch.book import open_batches
from tests.batch_support import ROOT, asker, finished, striking, until
from tests.llm_support import requests
from tests.openai_server import FaultAction, RequestInfo, ServerState, running_server

COUNT = 200
LONG = 120.0


def assert_bought_once_and_kept(server: ServerState, path: Path, count: int = COUNT) -> None:
    assert server.answers_by_identity.total() == len(server.answers_by_identity) == count
    assert max(server.batches_by_token.values()) == 1
    names = [each.request_id for each in requests(count)]
    with Ledger.open(path) as ledger:
        assert len(ledger.answers(names)) == count
        assert open_batches(ledger) == []
        assert ledger.query("SELECT count(*) FROM batch_requests") == [(0,)]


def state_of(path: Path) -> list[tuple[str, int]]:
    with Ledger.open(path) as ledger:
        return [(row.state, row.requests) for row in open_batches(ledger)]


KILLS: dict[str, tuple[str, FaultAction]] = {
    "before the upload": ("POST /v1/files", FaultAction("stall", seconds=LONG)),
    "uploaded, and not told": ("POST /v1/files", FaultAction("lost_answer", seconds=LONG)),
    "between upload and create": ("POST /v1/batches", FaultAction("stall", seconds=LONG)),
    "created, and not told": ("POST /v1/batches", FaultAction("lost_answer", seconds=LONG)),
    "while polling": ("GET /v1/batches/{id}", FaultAction("stall", seconds=LONG)),
    "while fetching": ("GET /v1/files/{id}/content", FaultAction("lost_answer", seconds=LONG)),
}


@pytest.mark.parametrize("when", KILLS)
def test_a_kill_at_any_call_submits_nothing_twice_and_loses_nothing(
    tmp_path: Path, when: str
) -> None:
    call, action = KILLS[when]
    path = tmp_path / "l"
    with running_server(batch_api_fault=striking(call, action)) as server:
        process = asker(server, path, count=COUNT)
        until(lambda: server.faults.total(), when)
        process.kill()
        process.communicate()
        held = sum(count for _, count in state_of(path))
        assert held > 0, "what was on its way is known"
        seen = finished(asker(server, path, count=COUNT))
        assert_bought_once_and_kept(server, path)
    assert len(seen) == COUNT


@pytest.mark.parametrize(
    ("step", "states"),
    [
        ("flush:3", ["preparing"]),
        ("sealed:1", ["submitting"]),
        ("sealed:2", ["submitted", "submitting"]),
        ("put:1", ["submitted", "submitted"]),
        ("before put:61", ["submitted", "submitted"]),
        ("put:70", ["submitted", "submitted"]),
        ("put:170", ["submitted"]),
    ],
)
def test_a_kill_between_two_transactions_loses_nothing(
    tmp_path: Path, step: str, states: list[str]
) -> None:
    path = tmp_path / "l"
    with running_server() as server:
        process = asker(server, path, count=COUNT, die_after=step)
        process.communicate(timeout=60)
        assert process.returncode == -9
        assert [state for state, _ in state_of(path)] == states
        seen = finished(asker(server, path, count=COUNT))
        assert_bought_once_and_kept(server, path)
    assert len(seen) == COUNT


def test_two_processes_at_once_submit_every_request_once(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=0.5) as server:
        both = [asker(server, path, count=150), asker(server, path, first=50, count=150)]
        one, other = (finished(process) for process in both)
        assert_bought_once_and_kept(server, path)
    assert len(one) == len(other) == 150


def test_two_processes_that_find_a_batch_on_its_way_do_not_both_submit_it(tmp_path: Path) -> None:
    path = tmp_path / "l"

    def slow_uploads(info: RequestInfo) -> FaultAction | None:
        if info.path != "POST /v1/files":
            return None
        first = info.attempt == 1
        return FaultAction("stall", seconds=LONG) if first else FaultAction("slow_body", seconds=1)

    with running_server(batch_api_fault=slow_uploads, batch_seconds=0.3) as server:
        process = asker(server, path, count=100)
        until(lambda: server.faults.total(), "an upload")
        process.kill()
        process.communicate()
        assert state_of(path) == [("submitting", 100)]
        both = [asker(server, path, count=100) for _ in range(2)]
        assert [len(finished(process)) for process in both] == [100, 100]
        assert server.api_calls["POST /v1/batches"] == 1
        assert_bought_once_and_kept(server, path, 100)


MEMORY = """
import sys
from pathlib import Path
from contextlib import aclosing
from pydantic import SecretStr
from synth_assets.llm import Endpoint, Ledger, run_sync
from synth_assets.llm.batch.batch import BatchSettings, ask_in_batches
from tests.llm_support import request

url, path, count = sys.argv[1:4]
endpoint = Endpoint(url, "test-model", SecretStr("test-key"), identity="the test server")
settings = BatchSettings(wait_s=600, poll_s=(0.5, 0.5), max_requests=5_000)

async def main():
    seen = 0
    with Ledger.open(path) as ledger:
        stream = ask_in_batches(
            lambda: (request(n) for n in range(int(count))),
            endpoint=endpoint, ledger=ledger, settings=settings,
        )
        async with aclosing(stream) as answers:
            async for answer in answers:
                seen += answer.ok
    return seen

seen = run_sync(main())
# Not `ru_maxrss`: that begins with what the process had that started this one.
(peak,) = [x for x in Path("/proc/self/status").open() if x.startswith("VmHWM")]
print(seen, int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    def peak_mb(count: int) -> int:
        with running_server(record=False, default_rows=1) as server:
            ran = subprocess.run(
                [sys.executable, "-c", MEMORY, server.base_url, str(tmp_path / f"{count}"),
                 str(count)],
                capture_output=True, text=True, cwd=ROOT, timeout=280,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        seen, peak = ran.stdout.split()
        assert int(seen) == count
        return int(peak)

    few, many = peak_mb(10_000), peak_mb(40_000)
    print(f"{few} MB for 10,000 requests, {many} MB for 40,000")
    # 30,000 requests and answers more; as objects they would take about 100 MB.
    assert many < few + 15
