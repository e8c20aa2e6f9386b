"""Batch mode through the front doors: the command line, and Dagster's sensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from synth_assets.assets.batches import batch_sensor, generation_onwards
from synth_assets.assets.workbench import Workbench
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.run import Session
from synth_assets.settings import Home
from synth_assets.spec.load import load_dataset
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.test_budget import home_for
from tests.test_run import run, statuses, synth, table, versions

PRICES = {"input_per_million": 2.0, "output_per_million": 8.0}


@pytest.fixture
def server(synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    with running_server(batch_seconds=0.2) as state:
        monkeypatch.setenv("OPENAI_BASE_URL", state.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield state


@pytest.fixture
def batched(tickets: DatasetFolder, server: ServerState) -> DatasetFolder:
    # A named mode needs no probe: every call of these tests goes through a batch.
    tickets.attributes["generate"] |= {"mode": "batch", "output": "json_schema", "prices": PRICES}
    tickets.edit("generate.batches", {"wait_s": 60, "poll_s": 0.05})
    return tickets


def leave_at_once(dataset: DatasetFolder, server: ServerState) -> None:
    server.batch_seconds = 1.0
    dataset.edit("generate.batches", {"wait_s": 0, "poll_s": 0.05})


def test_batches_give_the_rows_that_live_calls_would_have_given_at_half_the_price(
    batched: DatasetFolder,
    server: ServerState,
    synth_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = run()
    assert ran.code == 0, ran.errors
    assert server.stats()["requests"] == server.stats()["answers"]
    assert server.stats()["batches"], "they went in batches"
    in_batches = versions()
    home_for("live", synth_home, monkeypatch)
    batched.edit("generate.mode", "live")
    live = run()
    assert versions() == in_batches
    assert ran.json["cost_usd"] == pytest.approx(live.json["cost_usd"] / 2, rel=1e-6)


def test_a_run_may_leave_and_a_later_one_collects_without_submitting_again(
    batched: DatasetFolder, server: ServerState
) -> None:
    leave_at_once(batched, server)
    left = run()
    assert left.code == 3, left.errors
    assert "is collected" in left.errors
    assert statuses()["candidates"]["status"] == "missing"
    assert statuses()["plan"]["status"] == "fresh"
    batched.edit("generate.batches", {"wait_s": 60, "poll_s": 0.05})
    ran = run()
    assert ran.code == 0, ran.errors
    assert max(server.answers_by_identity.values()) == 1


def test_the_sensor_collects_what_a_run_left_and_goes_on_from_there(
    batched: DatasetFolder, server: ServerState, synth_home: Path
) -> None:
    leave_at_once(batched, server)
    assert run().code == 3
    dataset = load_dataset(batched.folder)
    assert dataset is not None
    sensor = batch_sensor([dataset])
    with dg.DagsterInstance.get() as instance:
        bench = Workbench(Home(synth_home))
        declared = Session.open(dataset, instance, bench).definitions
        location = dg.Definitions.merge(declared, dg.Definitions(sensors=[sensor]))

        def evaluated() -> dg.SensorExecutionData:
            context = dg.build_sensor_context(
                instance=instance,
                repository_def=location.get_repository_def(),
                resources={"workbench": bench},
            )
            return sensor.evaluate_tick(context)

        server.batch_seconds = 30.0
        early = evaluated()
        server.batch_seconds = 0.0
        assert not early.run_requests
        assert "tickets" in (early.skip_message or "")
        found: list[dg.RunRequest] = []
        while not found:
            found = list(evaluated().run_requests or [])
        assert not evaluated().run_requests, "asked for once"
    wanted = {key.path[-1] for key in found[0].asset_selection or []}
    assert wanted == set(generation_onwards())
    asked = server.answers_by_identity.total()
    batched.edit("generate.batches", {"wait_s": 60, "poll_s": 0.05})
    ran = run()
    assert ran.code == 0, ran.errors
    assert ran.json["calls"]["replayed"] >= asked


def test_batches_can_be_listed_collected_and_cancelled(
    batched: DatasetFolder, server: ServerState, synth_home: Path
) -> None:
    leave_at_once(batched, server)
    server.batch_seconds = 30.0
    assert run().code == 3
    listed = synth("batches", "list", "--json").json
    assert [batch["dataset"] for batch in listed["batches"]] == ["tickets"]
    assert listed["batches"][0]["requests"] > 0
    assert synth("batches", "cancel", "tickets").code == 0
    server.batch_seconds = 0.0
    collected = synth("batches", "collect", "tickets")
    assert collected.code == 0, collected.errors
    assert synth("batches", "list", "--json").json["batches"] == []
    with Ledger.open(synth_home / "ledger" / "ledger.sqlite") as ledger:
        assert ledger.query("SELECT count(*) FROM batch_requests")[0][0] == 0


def test_a_budget_holds_in_batches_too(
    batched: DatasetFolder, server: ServerState, synth_home: Path
) -> None:
    batched.edit("generate.budget", {"calls": 7})
    ran = run()
    assert ran.code == 3, ran.errors
    assert "the budget is reached" in ran.errors
    assert server.answers_by_identity.total() == 7
    assert table(synth_home, "synthetic").height > 0


def test_the_embedded_model_has_no_batches(tickets: DatasetFolder) -> None:
    tickets.attributes["generate"] |= {"mode": "batch", "model": "embedded/gemma-3-270m"}
    tickets.edit("generate.style", "continue")
    checked = synth("check", "tickets")
    assert checked.code == 2
    assert "no batch API" in checked.errors
