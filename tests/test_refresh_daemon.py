"""A real daemon and a real webserver: what changed while they were down is made good, once."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.settings import DEFAULT_DAGSTER_HOME, PROJECT_ROOT
from tests.datasets import DatasetFolder, labels_in, text_of, write_csv
from tests.openai_server import ServerState, running_server
from tests.processes import Place, answered, asked, quiet, unharmed, wait_until
from tests.test_stop_ui import Webserver

# As the project configures its instance, but the queue is looked at more often.
DAGSTER_YAML = (
    (DEFAULT_DAGSTER_HOME / "dagster.yaml").read_text()
    + """
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
  config: {dequeue_interval_seconds: 1}
"""
)
SENSOR = """
query ($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) {
    __typename ... on Sensor { defaultStatus sensorState { status ticks(limit: 1) { status } } }
  }
}"""
NEW_ROW = {"body": "a forklift drove over my brand new espresso machine", "topic": "delivery"}


@dataclass(frozen=True)
class Watched:
    """A place whose daemon is up, or not yet."""

    place: Place
    server: ServerState
    instance: dg.DagsterInstance

    def made(self, dataset: str, since: float) -> list[tuple[str, float]]:
        """(stage, when) of every materialisation since then, in the order of time."""
        found = []
        for stage in STAGES:
            wanted = dg.AssetRecordsFilter(dg.AssetKey([dataset, stage]), after_timestamp=since)
            records = self.instance.fetch_materializations(wanted, limit=50).records
            found += [(stage, record.timestamp) for record in records]
        return sorted(found, key=lambda one: one[1])

    def requested(self, dataset: str) -> list[dg.DagsterRun]:
        """Runs that the sensor asked for, oldest first."""
        tags = {"synth/dataset": dataset, "dagster/sensor_name": "refresh"}
        return list(reversed(self.instance.get_runs(dg.RunsFilter(tags=tags))))

    def at_rest(self, dataset: str) -> bool:
        """Whether the last run asked for has ended well, and a look since asked for no other."""
        # The look before the runs: what a look asks for is there by the time the look is told.
        states = [s for s in self.instance.all_instigator_state() if s.name == "refresh"]
        data = states[0].instigator_data if states else None
        runs = self.requested(dataset)
        if not runs or not all(run.is_finished for run in runs):
            return False
        record = self.instance.get_run_record_by_id(runs[-1].run_id)
        assert record is not None
        looked = getattr(data, "last_tick_start_timestamp", None) or 0.0
        done = getattr(data, "last_tick_success_timestamp", None) or 0.0
        return done >= looked > (record.end_time or time.time())


@contextmanager
def running(words: list[str], place: Place, server: ServerState, log: Path) -> Iterator[Any]:
    """A Dagster process; ends with everything that it started."""
    command = Path(sys.executable).parent / words[0]
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(command), *words[1:]],
            cwd=PROJECT_ROOT,
            env=place.environment(server, SYNTH_REFRESH_INTERVAL_S="1"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    with unharmed(process):
        whole = psutil.Process(process.pid)
        try:
            yield process
        finally:
            # Code servers and their workers lead process groups of their own.
            for child in whole.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()


@contextmanager
def dagster_up(place: Place, server: ServerState) -> Iterator[Webserver]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    web = ["dagster-webserver", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    daemon = ["dagster-daemon", "run", "-w", "workspace.yaml"]
    with (
        running(web, place, server, place.root / "webserver.log") as process,
        running(daemon, place, server, place.root / "daemon.log"),
    ):
        ui = Webserver(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        wait_until(ui.is_up, what="the webserver is up", seconds=120)
        yield ui


def changed(dataset: DatasetFolder) -> None:
    dataset.write_prompt(
        dataset.prompt + '{% if label == "billing" %}Never name a sum of money.{% endif %}'
    )
    write_csv(dataset.folder / "human.csv", [*dataset.rows, NEW_ROW])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_changed_while_the_daemon_was_down_runs_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.make(tmp_path)
    (place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
    dataset = place.dataset()
    dataset.edit("refresh", {"policy": "on_change", "generate": "on_change"})
    left_alone = place.dataset("manual")
    with running_server() as server:
        ran = place.run(server)
        assert ran.code == 0, ran.errors
        before, down, bought = asked(server), time.time(), len(place.bought())
        changed(dataset)
        changed(left_alone)
        monkeypatch.setenv("DAGSTER_HOME", str(place.dagster_home))
        with dagster_up(place, server) as ui, dg.DagsterInstance.get() as instance:
            watched = Watched(place, server, instance)
            wait_until(lambda: watched.at_rest("tickets"), what="rest", seconds=300)
            quiet(server)
            assert {run.status for run in watched.requested("tickets")} == {
                dg.DagsterRunStatus.SUCCESS
            }
            made = watched.made("tickets", down)
            assert {"human_raw", "human", "plan", "candidates", "release"} <= {s for s, _ in made}
            assert set(Counter(stage for stage, _ in made).values()) == {1}
            in_order(made)
            new = asked(server, since=len(before))
            assert len(new) == len(set(new)) == len(place.bought()) - bought > 0
            assert max(answered(server).values()) == 1
            assert watched.made("manual", 0.0) == []
            assert on_by_default(ui)
            statuses = place.statuses(server)
            assert {stage["status"] for stage in statuses.values()} == {"fresh"}
            assert "billing" in labels_in([text_of(r.body) for r in server.requests[len(before) :]])
            no_reload_is_needed(watched, dataset)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generations_wait_for_one_another_when_the_pool_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.make(tmp_path)
    limited = DAGSTER_YAML.replace("default_limit: 2", "default_limit: 1")
    # Both are in the queue when it is first looked at: the pool has never been used before.
    limited = limited.replace("dequeue_interval_seconds: 1}", "dequeue_interval_seconds: 12}")
    assert "default_limit: 1" in limited
    assert "seconds: 12}" in limited
    (place.dagster_home / "dagster.yaml").write_text(limited)
    for name in ("first", "second"):
        dataset = place.dataset(name)
        dataset.edit("refresh", {"policy": "on_change", "generate": "on_change"})
    monkeypatch.setenv("DAGSTER_HOME", str(place.dagster_home))
    with (
        running_server(latency_s=0.1) as server,
        # Before the daemon and the webserver: two that make its tables at once destroy them.
        dg.DagsterInstance.get() as instance,
        dagster_up(place, server),
    ):
        watched = Watched(place, server, instance)
        for name in ("first", "second"):
            wait_until(lambda name=name: watched.at_rest(name), what="rest", seconds=300)
        runs = [watched.requested(name) for name in ("first", "second")]
        assert [len(found) for found in runs] == [1, 1]
        one, other = (instance.get_run_record_by_id(found[0].run_id) for found in runs)
        # Both were asked for in one look; one began only when the other had ended.
        assert one.end_time <= other.start_time or other.end_time <= one.start_time


def no_reload_is_needed(watched: Watched, dataset: DatasetFolder) -> None:
    """A prompt that is edited under a running daemon is what its workers use."""
    edited, calls = time.time(), watched.server.request_count
    runs = len(watched.requested("tickets"))
    dataset.write_prompt("{# reviewed #}" + dataset.prompt)
    wait_until(lambda: len(watched.requested("tickets")) > runs, what="a run", seconds=180)
    wait_until(lambda: watched.at_rest("tickets"), what="rest", seconds=180)
    assert [stage for stage, _ in watched.made("tickets", edited)] == ["plan"]
    assert watched.server.request_count == calls


def in_order(made: list[tuple[str, float]]) -> None:
    """Every stage came after those of its parents that were made, too."""
    place = {stage: number for number, (stage, _) in enumerate(made)}
    for stage in place:
        for parent in STAGES[stage].parents:
            assert place.get(parent, -1) < place[stage], made


def on_by_default(ui: Webserver) -> bool:
    """The sensor looks, and nobody has switched it on."""
    selector = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "synth_assets",
        "sensorName": "refresh",
    }
    found = ui.ask(SENSOR, selector=selector)["sensorOrError"]
    assert found["__typename"] == "Sensor", found
    state = found["sensorState"]
    return found["defaultStatus"] == state["status"] == "RUNNING" and bool(state["ticks"])
