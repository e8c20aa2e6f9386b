"""Several runs on one home: whoever asks first pays, everybody has the answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synth_assets.assets.workbench import Workbench
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.run import Session
from synth_assets.settings import PROJECT_ROOT as ROOT
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import discover
from tests.datasets import WORDS
from tests.openai_server import ServerState, running_server
from tests.processes import Place, answered, asked, finished, quiet, unharmed, wait_until
from tests.test_run import run, statuses, synth, table, versions

LATENCY_S = 0.05
# A plan lists as many calls as its target and this limit allow; a higher target only adds calls.
SMALL: dict[str, Any] = {"per_label": 10}
LARGE: dict[str, Any] = {"per_label": {"billing": 20, "login": 20}}


@pytest.fixture
def place(synth_home: Path) -> Place:
    """Where this process's own commands work too."""
    return Place(synth_home.parent)


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    with running_server(latency_s=LATENCY_S) as state:
        for name, value in place.environment(state).items():
            monkeypatch.setenv(name, value)
        yield state
        quiet(state)


def paid(place: Place) -> Counter[str]:
    """Answers in the ledger by the dataset that paid for them."""
    return Counter(place.bought().values())


def calls_made(place: Place, server: ServerState, *names: str) -> list[int]:
    """``synth run`` of the datasets at once; the calls each of them made."""
    processes = [place.start(server, "run", name, "--json") for name in names]
    with unharmed(*processes):
        done = [finished(process) for process in processes]
    for ran in done:
        assert (ran.code, "Traceback" in ran.errors) == (0, False), ran.errors
    return [ran.json["calls"]["made"] for ran in done]


def test_two_runs_of_one_dataset_at_once_buy_every_answer_once(
    place: Place, server: ServerState
) -> None:
    place.dataset()
    made = calls_made(place, server, "tickets", "tickets")
    assert max(Counter(asked(server)).values()) == 1
    assert sum(made) == len(answered(server)) == sum(paid(place).values())
    assert {stage["status"] for stage in statuses().values()} == {"fresh"}


@pytest.mark.slow
def test_datasets_that_ask_the_same_share_their_answers(place: Place, server: ServerState) -> None:
    for name in ("tickets", "copied", "later"):
        place.dataset(name)
    one, other = calls_made(place, server, "tickets", "copied")
    assert max(Counter(asked(server)).values()) == 1
    assert one + other == len(answered(server))
    # The ledger says who paid.
    assert paid(place) == +Counter({"tickets": one, "copied": other})
    with Ledger.open(place.ledger) as ledger:
        assert ledger.spent("tickets").calls == one
        assert ledger.spent("later").calls == 0
    before = server.request_count
    ran = run("later")
    assert (ran.code, ran.json["calls"]["made"], server.request_count) == (0, 0, before)
    assert paid(place)["later"] == 0
    # A release names its dataset; every table is the same to the byte.
    first, last = ({**versions(name), "release": ""} for name in ("tickets", "later"))
    assert first == last


@pytest.mark.slow
def test_overlapping_targets_buy_the_union_once(place: Place, server: ServerState) -> None:
    place.dataset("small", target=SMALL)
    place.dataset("large", target=LARGE)
    small, large = calls_made(place, server, "small", "large")
    assert max(Counter(asked(server)).values()) == 1
    assert small + large == len(asked(server))
    assert paid(place) == +Counter({"small": small, "large": large})
    # Each has what it wants, and nobody pays for it again.
    wanted = {"small": dict.fromkeys(WORDS, 10), "large": LARGE["per_label"]}
    needs = 0
    for name, counts in wanted.items():
        assert dict(table(place.home, "synthetic", name).group_by("label").len().rows()) == counts
        again = run(name, "--force", "candidates").json["calls"]
        assert again["made"] == 0
        needs += again["replayed"]
    assert needs > small + large, "some of what one wants the other wants too"


@pytest.mark.slow
def test_a_second_run_waits_and_may_be_left_while_a_forecast_does_not(
    place: Place, server: ServerState
) -> None:
    folder = place.dataset(concurrency=1)
    server.latency_s = 5.0  # longer than all that follows takes
    running = place.start(server, "run", "tickets")
    with unharmed(running):
        wait_until(lambda: server.request_count > 0, what="the first run asks")
        second = place.start(server, "run", "tickets")
        with unharmed(second):
            assert second.stderr is not None
            assert "waiting: another run of tickets" in second.stderr.readline()
            second.send_signal(signal.SIGINT)
            left = finished(second)
        folder.edit("generate.target", LARGE)
        forecast = synth("plan", "tickets", "--json")
        assert running.poll() is None
    assert (left.code, "every answer is kept" in left.errors) == (130, True)
    assert (forecast.code, forecast.json["calls"] > 0) == (0, True), forecast.errors


OPENER = """
import sys, time
from pathlib import Path
import dagster
from synth_assets.instance import open_instance
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.0001)
open_instance()
"""


def test_a_new_dagster_instance_may_be_opened_by_many_at_once(place: Place, tmp_path: Path) -> None:
    go, ready = tmp_path / "go", [tmp_path / f"ready{n}" for n in range(3)]
    environment = os.environ | {"DAGSTER_HOME": str(place.dagster_home), "PYTHONPATH": str(ROOT)}

    def opener(mine: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", OPENER, str(mine), str(go)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    processes = [opener(mine) for mine in ready]
    with unharmed(*processes):
        wait_until(lambda: all(mine.exists() for mine in ready), what="all are at the door")
        go.touch()
        codes = [finished(process).code for process in processes]
    assert codes == [0, 0, 0]
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs() == []


def test_a_run_that_was_planned_and_died_takes_no_verdict_away(
    place: Place, server: ServerState
) -> None:
    place.dataset()
    assert run("tickets", "--until", "seeds").code == 0
    seeds = dg.AssetKey(["tickets", "seeds"])
    check = dg.AssetCheckKey(seeds, "no_leakage")
    with dg.DagsterInstance.get() as instance:
        dataset = discover(defs_roots()).datasets["tickets"]
        session = Session.open(dataset, instance, Workbench(home()))
        everything = session.definitions.resolve_implicit_global_asset_job_def()
        # What every run writes down before its first step.
        job = everything.get_subset(asset_selection=frozenset({seeds}))
        instance.create_run_for_job(job, asset_selection=frozenset({seeds}))
        planned = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])
        assert type(planned[check].evaluation).__name__ == "AssetCheckEvaluationPlanned"
    assert statuses()["seeds"]["status"] == "fresh"
