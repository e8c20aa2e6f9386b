"""A run that is stopped keeps every answer, and the next one goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.test_run import run, statuses, versions

IN_FLIGHT = 2
STOPS = {
    "ctrl-c": (signal.SIGINT, 130),
    "terminated": (signal.SIGTERM, 130),
    "killed": (signal.SIGKILL, -signal.SIGKILL),
}


def started() -> subprocess.Popen[str]:
    synth = Path(sys.executable).parent / "synth"
    return subprocess.Popen(
        [str(synth), "run", "tickets"],
        env=os.environ.copy(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_answers(server: ServerState, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(server.successes_by_identity.values()) < count:
        assert time.monotonic() < deadline, "the run never came to asking"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "how",
    ["ctrl-c", *(pytest.param(how, marks=pytest.mark.slow) for how in ("terminated", "killed"))],
)
def test_a_stopped_run_loses_no_answer_and_buys_none_twice(
    tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tickets.edit("generate.concurrency", IN_FLIGHT)
    with running_server(latency_s=0.3) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        sent, code = STOPS[how]
        process = started()
        wait_for_answers(server, 6)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=20)
        assert "Traceback" not in errors
        assert process.returncode == code, errors
        assert code != 130 or "every answer is kept" in errors
        assert statuses()["plan"]["status"] == "fresh"
        assert statuses()["candidates"]["status"] in {"missing", "failed"}
        ran = run()
        assert ran.code == 0, ran.errors
        # Only what was in flight at a kill, or on its way to the disk, may be asked again.
        lost = 2 * IN_FLIGHT if how == "killed" else 0
        assert ran.json["calls"]["replayed"] >= 6 - lost
        repeated = [n for n in server.successes_by_identity.values() if n > 1]
        assert len(repeated) <= lost
        assert set(versions()) == set(statuses())
