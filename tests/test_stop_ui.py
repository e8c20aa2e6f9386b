"""A run started in the UI and terminated there: it ends soon, and keeps what was answered."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.settings import PROJECT_ROOT
from tests.openai_server import ServerState, running_server
from tests.processes import Place, answered, asked, quiet, unharmed, wait_until

CONCURRENCY = 4
ENDS_WITHIN_S = 10.0
# Runs start at once: without this, a daemon would take them from a queue.
DAGSTER_YAML = """\
telemetry: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
LOCATION = "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }"
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
TERMINATE = """
mutation ($run: String!, $policy: TerminateRunPolicy) {
  terminateRun(runId: $run, terminatePolicy: $policy) {
    __typename
    ... on TerminateRunFailure { message }
    ... on PythonError { message }
  }
}"""
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


@dataclass(frozen=True)
class Webserver:
    """A running ``dagster-webserver``, asked as its UI asks it."""

    url: str
    process: psutil.Process

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return dict(json.load(reply)["data"])

    def is_up(self) -> bool:
        try:
            found = self.ask(LOCATION)["repositoriesOrError"]
        except (urllib.error.URLError, ConnectionError):
            return False
        return bool(found.get("nodes"))

    def launch(self, dataset: str) -> str:
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "synth_assets",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [dataset, stage]} for stage in STAGES],
        }
        launched = self.ask(LAUNCH, params={"selector": selector})["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def status(self, run: str) -> str:
        return str(self.ask(STATUS, run=run)["runOrError"]["status"])

    def terminate(self, run: str, policy: str) -> None:
        done = self.ask(TERMINATE, run=run, policy=policy)["terminateRun"]
        assert done["__typename"] == "TerminateRunSuccess", done

    def workers(self) -> list[psutil.Process]:
        """Processes in which the default launcher executes runs."""
        below = self.process.children(recursive=True)
        return [p for p in below if "--multiprocessing-fork" in p.cmdline()]


@contextmanager
def webserver(place: Place, server: ServerState, log: Path) -> Iterator[Webserver]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Path(sys.executable).parent / "dagster-webserver"
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(command), "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
            cwd=PROJECT_ROOT,
            env=place.environment(server),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    with unharmed(process):
        found = Webserver(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        try:
            wait_until(found.is_up, what=f"the webserver is up (see {log})")
            yield found
        finally:
            # Its code server leads a process group of its own.
            for child in found.process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["SAFE_TERMINATE", "MARK_AS_CANCELED_IMMEDIATELY"])
def test_a_run_terminated_in_the_ui_ends_and_keeps_every_answer(
    tmp_path: Path, policy: str
) -> None:
    place = Place.make(tmp_path)
    (place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
    place.dataset(target={"per_label": 60}, concurrency=CONCURRENCY)
    with running_server(latency_s=0.3) as server:
        with webserver(place, server, tmp_path / "webserver.log") as ui:
            run = ui.launch("tickets")
            answers = server.successes_by_identity
            wait_until(
                lambda: answers.total() > 2 * CONCURRENCY and server.in_flight > 0,
                what="the run asks",
            )
            (worker,) = ui.workers()
            asked_to_end = time.monotonic()
            ui.terminate(run, policy)
            worker.wait(timeout=60)
            seconds = time.monotonic() - asked_to_end
            wait_until(lambda: ui.status(run) in ENDED, what="the run's status")
            assert ui.status(run) == "CANCELED"
        assert seconds < ENDS_WITHIN_S
        quiet(server)
        given = set(answered(server))
        assert given == set(place.bought()), "what was in flight was waited for and kept"
        last = place.run(server)
        assert last.code == 0, last.errors
        assert max(Counter(asked(server)).values()) == 1
        assert last.json["calls"]["made"] == len(set(answered(server)) - given) > 0
        assert {stage["status"] for stage in place.statuses(server).values()} == {"fresh"}
