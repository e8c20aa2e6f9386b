"""Automation: what a change on disk, in a source or in a schedule makes the sensor ask for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.assets.workbench import Workbench
from synth_assets.refresh import sensor
from synth_assets.run import Session, run_dataset
from synth_assets.settings import defs_roots
from synth_assets.spec.load import dataset_named
from synth_assets.turns import present
from synth_assets.underway import TERMINAL_TAG
from tests.automation import Automation
from tests.datasets import DatasetFolder, labels_in, text_of, write_csv
from tests.openai_server import ServerState, running_server
from tests.processes import Place
from tests.test_run import run, synth, versions

BELOW_PLAN = {"candidates", "synthetic", "rejects", "blend", "train", "validation"}
PAID = {*BELOW_PLAN, "contribution", "release"}
# `synthetic` judges by the plan, too: a plan that changed makes both run.
ASKED = ["candidates", "synthetic", "rejects"]
MORE = {"body": "a forklift drove over my brand new espresso machine", "topic": "delivery"}
WEEK = 7 * 86400.0
ALWAYS = {"policy": "on_change", "generate": "on_change"}


@dataclass
class Refreshed:
    """A complete dataset with a refresh section, under automation."""

    dataset: DatasetFolder
    server: ServerState
    place: Place
    automation: Automation
    asked_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.asked_before = self.server.request_count

    def declare(self, **refresh: Any) -> None:
        self.dataset.edit("refresh", refresh)

    def prompts(self) -> list[str]:
        """What reached the server since the dataset was complete."""
        return [text_of(request.body) for request in self.server.requests[self.asked_before :]]

    def add_to_prompt(self, text: str) -> None:
        self.dataset.write_prompt(self.dataset.prompt + text)

    def add_row(self) -> None:
        write_csv(self.dataset.folder / "human.csv", [*self.dataset.rows, MORE])

    def to_rest(self) -> list[list[str]]:
        return self.automation.to_rest()

    def tick(self) -> dict[str, list[str]]:
        return self.automation.tick().stages


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture(scope="module")
def complete(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place in which the dataset ran once; tests work on copies of it."""
    place = Place.make(tmp_path_factory.mktemp("complete"))
    place.dataset()
    ran = place.run(server)
    assert ran.code == 0, ran.errors
    return place.root


@pytest.fixture
def refreshed(
    complete: Path, server: ServerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Refreshed]:
    place = Place(Path(shutil.copytree(complete, tmp_path / "copy")))
    for name, value in place.environment(server).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        dataset = DatasetFolder(place.defs / "tickets")
        dataset.edit("refresh", dict(ALWAYS))
        yield Refreshed(dataset, server, place, Automation(instance))


def once(waves: list[list[str]]) -> set[str]:
    """The stages of all waves; fails when one ran twice."""
    counted = Counter(chain.from_iterable(waves))
    assert set(counted.values()) <= {1}, waves
    return set(counted)


# --- changes --------------------------------------------------------------------------------------


def test_the_sensor_is_on_without_anybody_switching_it_on(refreshed: Refreshed) -> None:
    found = refreshed.automation.repository.get_sensor_def("refresh")
    assert found.default_status is dg.DefaultSensorStatus.RUNNING
    assert found.minimum_interval_seconds == 30


def test_nothing_changed_asks_for_nothing(refreshed: Refreshed) -> None:
    for _ in range(3):
        looked = refreshed.automation.tick()
        assert (looked.requests, looked.message) == ([], "nothing to do")


def test_a_prompt_edit_runs_the_plan_then_generation_then_what_is_below(
    refreshed: Refreshed,
) -> None:
    refreshed.add_to_prompt('{% if label == "billing" %}Never name a sum of money.{% endif %}')
    waves = refreshed.to_rest()
    assert waves[:3] == [["plan"], ASKED, ["blend"]]
    assert once(waves) == {"plan", *PAID}
    assert labels_in(refreshed.prompts()) == {"billing"}
    assert {stage["status"] for stage in statuses().values()} == {"fresh"}


def test_a_prompt_that_renders_the_same_stops_at_the_plan(refreshed: Refreshed) -> None:
    refreshed.add_to_prompt("{# reviewed #}")
    assert refreshed.to_rest() == [["plan"]]
    assert refreshed.prompts() == []


def test_a_source_that_is_touched_runs_nothing(refreshed: Refreshed) -> None:
    assert refreshed.tick() == {}
    path = refreshed.dataset.folder / "human.csv"
    path.write_bytes(path.read_bytes())
    os.utime(path)
    assert refreshed.to_rest() == []


def test_a_source_row_more_runs_every_stage_it_reaches_once(refreshed: Refreshed) -> None:
    refreshed.add_row()
    waves = refreshed.to_rest()
    assert waves[0] == ["human_raw"]
    assert {"human_raw", "human", "human_train", "plan", "candidates"} <= once(waves)
    assert {stage["status"] for stage in statuses().values()} == {"fresh"}


def test_handwritten_seeds_run_the_plan_lane_and_no_ingest(refreshed: Refreshed) -> None:
    seed = {"text": "the voice menu sends me round in circles", "label": "login"}
    (refreshed.dataset.folder / "seeds.jsonl").write_text(json.dumps(seed))
    waves = refreshed.to_rest()
    assert waves[0] == ["seeds"]
    assert once(waves) == {"seeds", "plan", *PAID}
    assert labels_in(refreshed.prompts()) == {"login"}


def test_a_dataset_that_never_ran_is_made_whole_in_one_wave(
    refreshed: Refreshed, server: ServerState
) -> None:
    other = DatasetFolder(refreshed.place.defs / "reviews")
    other.attributes["refresh"] = dict(ALWAYS)
    other.write()
    automation = Automation(refreshed.automation.instance)
    assert automation.to_rest("reviews") == [list(STAGES)]
    assert set(versions("reviews")) == {"source", *STAGES}


# --- what it may not do ---------------------------------------------------------------------------


def test_manual_generation_is_held_while_the_stages_above_it_are_refreshed(
    refreshed: Refreshed,
) -> None:
    refreshed.declare(policy="on_change", generate="manual")
    refreshed.add_to_prompt("Be brief.")
    refreshed.add_row()
    ran = once(refreshed.to_rest())
    assert {"human_raw", "human", "plan"} <= ran
    assert not ran & PAID
    assert refreshed.prompts() == []
    held = refreshed.automation.tick()
    assert "candidates (refresh.generate is manual" in held.message
    assert run("tickets", "--until", "synthetic").code == 0
    assert "blend" in refreshed.tick()["tickets"]


def test_a_manual_policy_leaves_the_dataset_alone(refreshed: Refreshed) -> None:
    refreshed.declare(policy="manual")
    refreshed.add_to_prompt("Be brief.")
    refreshed.add_row()
    seen = observations(refreshed)
    assert refreshed.to_rest() == []
    assert observations(refreshed) == seen


def test_a_dataset_without_a_refresh_section_is_left_alone(refreshed: Refreshed) -> None:
    del refreshed.dataset.attributes["refresh"]
    refreshed.dataset.write_spec()
    refreshed.add_to_prompt("Be brief.")
    assert refreshed.to_rest() == []


def test_a_failed_blocking_check_holds_what_is_below_and_is_not_made_again(
    refreshed: Refreshed,
) -> None:
    stolen = refreshed.place.table(versions(), "holdout").row(0, named=True)
    seeds = refreshed.dataset.folder / "seeds.jsonl"
    seeds.write_text(json.dumps({"text": stolen["text"].upper(), "label": stolen["label"]}))
    assert refreshed.to_rest() == [["seeds"]]
    assert "check seeds/no_leakage failed" in refreshed.automation.tick().message
    assert refreshed.prompts() == []
    seeds.unlink()
    assert refreshed.to_rest() == [["seeds"]]


def test_a_dataset_that_is_broken_on_disk_does_not_hold_up_the_others(
    refreshed: Refreshed,
) -> None:
    bad = DatasetFolder(refreshed.place.defs / "bad")
    bad.write()
    bad.defs_file.write_text("type: [")
    refreshed.add_to_prompt("{# reviewed #}")
    assert refreshed.to_rest() == [["plan"]]
    assert "bad: broken, run: synth check bad" in refreshed.automation.tick().message


def test_a_dataset_that_the_code_location_does_not_know_is_named_and_skipped(
    refreshed: Refreshed,
) -> None:
    new = DatasetFolder(refreshed.place.defs / "new")
    new.attributes["refresh"] = dict(ALWAYS)
    new.write()
    looked = refreshed.automation.tick()
    assert looked.requests == []
    assert "new: it is new: reload the code location" in looked.message


# --- schedules ------------------------------------------------------------------------------------


def test_scheduled_generation_waits_for_the_cron_and_comes_once(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed.declare(policy="on_change", generate="scheduled", cron="0 5 * * 1")
    refreshed.add_to_prompt("Be brief.")
    # The schedule was never seen before: ticks of the past are nobody's.
    assert refreshed.to_rest() == [["plan"]]
    assert "candidates (waits for " in refreshed.automation.tick().message
    # Three weeks without a daemon: three ticks, made up for once.
    later(monkeypatch, 3 * WEEK)
    assert once(refreshed.to_rest()) == PAID
    asked = len(refreshed.prompts())
    assert asked > 0
    # The tick is served: what changes after it waits for the next one.
    refreshed.add_to_prompt("Be very brief.")
    assert refreshed.to_rest() == [["plan"]]
    assert len(refreshed.prompts()) == asked
    later(monkeypatch, 4 * WEEK)
    assert refreshed.tick() == {"tickets": ASKED}


def test_a_manual_policy_with_a_cron_is_refreshed_at_its_ticks_only(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed.declare(policy="manual", generate="manual", cron="0 5 * * 1")
    refreshed.add_row()
    assert refreshed.to_rest() == []
    later(monkeypatch, WEEK)
    assert {"human_raw", "human"} <= once(refreshed.to_rest())
    refreshed.add_to_prompt("{# reviewed #}")
    assert refreshed.to_rest() == []
    later(monkeypatch, 2 * WEEK)
    assert refreshed.to_rest() == [["plan"]]


def test_a_tick_that_is_owed_waits_while_the_dataset_is_broken(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed.declare(policy="manual", generate="manual", cron="0 5 * * 1")
    assert refreshed.tick() == {}
    later(monkeypatch, WEEK)
    refreshed.add_to_prompt("{# reviewed #}")
    good = refreshed.dataset.defs_file.read_text()
    refreshed.dataset.defs_file.write_text("type: [")
    assert refreshed.tick() == {}
    refreshed.dataset.defs_file.write_text(good)
    assert refreshed.to_rest() == [["plan"]]


# --- what came to nothing -------------------------------------------------------------------------


def test_a_failed_generation_is_not_retried_until_something_is_different(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    refreshed.add_to_prompt("Be brief.")
    assert refreshed.to_rest() == [["plan"], ASKED]
    asked = refreshed.server.request_count
    for _ in range(3):
        looked = refreshed.automation.tick()
        assert looked.requests == []
        assert "failed; waits for a change" in looked.message
    # Neither a touched file, nor another cursor, nor something that shapes another stage helps.
    os.utime(refreshed.dataset.folder / "prompt.md.j2")
    refreshed.dataset.edit("owners", ["team:data"])
    refreshed.automation.cursor = None
    assert refreshed.tick() == {}
    assert refreshed.server.request_count == asked
    # Another declaration of the stage does.
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    refreshed.dataset.edit("generate.temperature", 0.5)
    assert refreshed.tick() == {"tickets": ASKED}


def test_a_parent_made_in_the_same_run_is_no_change_after_a_failure(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    refreshed.dataset.edit("task.labels", {**refreshed.dataset.labels, "billing": "invoices"})
    refreshed.dataset.edit("generate.temperature", 0.5)
    assert refreshed.to_rest() == [["plan", "candidates"]]
    assert "candidates (run " in refreshed.automation.tick().message


def test_a_failed_generation_gets_its_chance_when_a_parent_changes_or_a_person_runs_it(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    refreshed.add_to_prompt("Be brief.")
    assert refreshed.to_rest() == [["plan"], ASKED]
    refreshed.add_to_prompt("Be very brief.")
    assert refreshed.to_rest() == [["plan"], ASKED]
    assert run("tickets").code == 1  # a person's attempt counts like any other
    assert refreshed.to_rest() == []
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    assert run("tickets", "--until", "candidates").code == 0
    assert refreshed.tick() == {"tickets": ["synthetic", "rejects"]}


def test_what_failed_is_tried_once_more_at_a_tick_of_the_schedule(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed.declare(**ALWAYS, cron="0 5 * * 1")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    refreshed.add_to_prompt("Be brief.")
    assert refreshed.to_rest() == [["plan"], ASKED]
    later(monkeypatch, WEEK)
    looked = refreshed.automation.tick()
    assert looked.stages == {"tickets": ASKED}
    monkeypatch.setattr(sensor, "clock", time.time)  # so that this attempt is later than the tick
    refreshed.automation.work(looked.requests[0])
    assert refreshed.tick() == {}


def test_a_reached_budget_is_not_tried_again(refreshed: Refreshed) -> None:
    spent = len(refreshed.place.bought())
    refreshed.dataset.edit("generate.budget", {"calls": spent + 2})
    refreshed.add_to_prompt("Be brief.")
    assert "candidates" in once(refreshed.to_rest())
    assert len(refreshed.prompts()) == 2
    for _ in range(2):
        assert refreshed.tick() == {}
    refreshed.dataset.edit("generate.budget", {"calls": spent + 4})
    assert refreshed.tick() == {"tickets": ["candidates"]}


def test_a_run_that_was_cancelled_is_not_started_again(refreshed: Refreshed) -> None:
    refreshed.add_to_prompt("Be brief.")
    (request,) = refreshed.automation.tick().requests
    queued = planned(refreshed, request)
    assert refreshed.tick() == {}
    refreshed.automation.instance.report_run_canceled(queued)
    looked = refreshed.automation.tick()
    assert looked.requests == []
    assert "was cancelled; waits for a change" in looked.message


def test_a_run_whose_process_is_gone_is_repeated_once(refreshed: Refreshed) -> None:
    refreshed.add_to_prompt("{# reviewed #}")
    for _ in range(2):
        (request,) = refreshed.automation.tick().requests
        broken_off(refreshed, planned(refreshed, request))
    looked = refreshed.automation.tick()
    assert looked.requests == []
    assert "was broken off; waits for a change" in looked.message


def test_a_table_that_is_gone_from_the_store_is_made_again(refreshed: Refreshed) -> None:
    assert refreshed.tick() == {}
    version = versions()["eval"]
    (refreshed.place.home / "store" / "tickets" / "eval" / f"{version}.parquet").unlink()
    assert refreshed.to_rest() == [["eval"]]


@pytest.mark.parametrize(("default", "chosen", "known"), [(2, None, 2), (2, 5, 5), (None, None, 0)])
def test_a_look_makes_the_pool_known_and_leaves_a_limit_that_somebody_chose(
    tmp_path: Path, default: int | None, chosen: int | None, known: int
) -> None:
    limit = f"concurrency: {{pools: {{default_limit: {default}}}}}\n" if default else ""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + limit)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        if chosen is not None:
            storage.set_concurrency_slots("generation", chosen)
        for _ in range(2):
            Automation(instance).tick()
            found = {limit.name: limit.limit for limit in storage.get_pool_limits()}
            assert found.get("generation", 0) == known


# --- others at work -------------------------------------------------------------------------------


def test_a_dataset_that_a_terminal_runs_is_left_alone_between_its_waves_too(
    refreshed: Refreshed,
) -> None:
    refreshed.add_to_prompt("{# reviewed #}")
    with present(refreshed.place.home, "tickets"):
        looked = refreshed.automation.tick()
        assert (looked.requests, looked.message) == ([], "tickets: synth run is under way")
    assert refreshed.to_rest() == [["plan"]]


def test_a_run_that_the_ui_launched_is_seen_by_its_assets(refreshed: Refreshed) -> None:
    refreshed.add_to_prompt("{# reviewed #}")
    (request,) = refreshed.automation.tick().requests
    queued = planned(refreshed, dg.RunRequest(asset_selection=request.asset_selection))
    looked = refreshed.automation.tick()
    assert looked.requests == []
    assert f"run {queued.run_id[:8]} is under way" in looked.message


def test_a_terminal_that_was_killed_holds_nobody_up(refreshed: Refreshed) -> None:
    # Its run says STARTED for ever.
    refreshed.add_to_prompt("{# reviewed #}")
    (request,) = refreshed.automation.tick().requests
    name = "from synth_assets.llm.ledger.owners import process_name; print(process_name(), end='')"
    ended = subprocess.check_output([sys.executable, "-c", name], text=True)
    started = planned(refreshed, request, **{TERMINAL_TAG: ended})
    refreshed.automation.instance.report_dagster_event(
        dg.DagsterEvent("PIPELINE_START", started.job_name), started.run_id
    )
    assert refreshed.to_rest() == [["plan"]]
    left = refreshed.automation.instance.get_run_by_id(started.run_id)
    assert left is not None
    assert left.status is dg.DagsterRunStatus.FAILURE


def test_a_terminal_waits_with_generation_for_a_run_that_dagster_executes(
    refreshed: Refreshed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth_assets.run.LOOK_AGAIN_S", 0.01)
    instance = refreshed.automation.instance
    refreshed.add_to_prompt("Be brief.")
    (request,) = refreshed.automation.tick().requests
    other = planned(refreshed, request)
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", other.job_name), other.run_id)
    told: list[str] = []

    def notify(line: str) -> None:
        told.append(line)
        assert refreshed.prompts() == []
        instance.report_run_canceled(other)

    dataset = dataset_named("tickets", defs_roots())
    session = Session.open(dataset, instance, Workbench(notify=notify))
    assert run_dataset(session, until="candidates").exit_code == 0
    assert told == [f"waiting: run {other.run_id[:8]} of tickets, started by Dagster, is under way"]
    assert refreshed.prompts() != []


# --- helpers --------------------------------------------------------------------------------------


def statuses() -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in synth("status", "tickets", "--json").json["stages"]}


def observations(refreshed: Refreshed) -> int:
    source = dg.AssetKey(["tickets", "source"])
    return len(refreshed.automation.instance.fetch_observations(source, limit=100).records)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    moment = time.time() + seconds
    monkeypatch.setattr(sensor, "clock", lambda: moment)


def planned(refreshed: Refreshed, request: dg.RunRequest, **tags: str) -> dg.DagsterRun:
    """The run in Dagster's queue, as the daemon puts it there."""
    job = refreshed.automation.repository.get_job("__ASSET_JOB")
    selection = frozenset(request.asset_selection or [])
    return refreshed.automation.instance.create_run_for_job(
        job.get_subset(asset_selection=selection),
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={**request.tags, **tags},
        asset_selection=selection,
    )


def broken_off(refreshed: Refreshed, run: dg.DagsterRun) -> None:
    """As a code server reports a worker that died in the middle of its first step."""
    instance = refreshed.automation.instance
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", run.job_name), run.run_id)
    instance.report_dagster_event(
        dg.DagsterEvent("STEP_START", run.job_name, step_key="tickets__plan"), run.run_id
    )
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    instance.report_run_failed(found, "the worker exited")
