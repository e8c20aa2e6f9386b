"""Budgets through the command line: never above the cap, a clean partial, and on from there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synth_assets.llm.ledger.ledger import Ledger
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.test_run import run, statuses, synth, table, versions

PRICES = {"input_per_million": 2.0, "output_per_million": 8.0}


@pytest.fixture
def server(synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    with running_server() as state:
        monkeypatch.setenv("OPENAI_BASE_URL", state.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield state


def home_for(name: str, beside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another empty home and instance, for a run that knows nothing of the first."""
    home, instance = beside.parent / name, beside.parent / f"{name}_dagster"
    home.mkdir()
    instance.mkdir()
    monkeypatch.setenv("SYNTH_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(instance))
    return home


def ledger_of(home: Path) -> Ledger:
    return Ledger.open(home / "ledger" / "ledger.sqlite")


def test_a_reached_budget_is_a_clean_partial_and_raising_it_goes_on(
    tickets: DatasetFolder,
    server: ServerState,
    synth_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tickets.edit("generate.budget", {"calls": 8})
    ran = run()
    assert ran.code == 3, ran.errors
    assert "the budget is reached (8 of 8 calls spent" in ran.errors
    assert "raise generate.budget" in ran.errors
    assert server.successes_by_identity.total() == 8
    assert {stage["status"] for stage in statuses().values()} == {"fresh"}
    partial = table(synth_home, "synthetic")
    assert set(partial["label"]) == {"billing", "delivery", "login"}, "no label was left out"
    assert 0 < partial.height < 60

    again = run()
    assert (again.code, again.json["ran"]) == (3, []), "still not done, and it says so"
    assert server.successes_by_identity.total() == 8

    tickets.edit("generate.budget", {"calls": 1000})
    rest = run()
    assert rest.code == 0, rest.errors
    assert rest.json["calls"]["replayed"] >= 7
    assert max(server.successes_by_identity.values()) == 1
    interrupted = versions()

    home_for("undisturbed", synth_home, monkeypatch)
    assert run().code == 0
    assert versions() == interrupted


def test_another_budget_for_a_complete_dataset_asks_nothing_and_changes_nothing(
    tickets: DatasetFolder, server: ServerState
) -> None:
    assert run().code == 0
    before, asked = versions(), server.request_count
    tickets.edit("generate.budget", {"calls": 1, "tokens": 10})
    ran = run()
    assert (ran.code, ran.json["ran"]) == (0, ["candidates"])
    assert versions() == before
    assert server.request_count == asked


@pytest.mark.parametrize("cap", [{"usd": 0.004}, {"tokens": 3000}], ids=str)
def test_money_and_tokens_stay_below_their_cap(
    tickets: DatasetFolder, server: ServerState, synth_home: Path, cap: dict[str, float]
) -> None:
    tickets.attributes["generate"] |= {"prices": PRICES, "max_tokens": 120, "concurrency": 64}
    tickets.edit("generate.budget", cap)
    ran = run()
    assert ran.code == 3, ran.errors
    with ledger_of(synth_home) as ledger:
        spent = ledger.committed("tickets")
    assert spent.calls > 0
    assert spent.usd <= cap.get("usd", 1e9)
    assert spent.tokens <= cap.get("tokens", 1e9)
    assert ran.json["cost_usd"] == pytest.approx(spent.usd, abs=1e-6)


def test_a_budget_in_dollars_without_a_price_is_refused_before_a_call(
    tickets: DatasetFolder, server: ServerState
) -> None:
    tickets.edit("generate.budget", {"usd": 1.0})
    ran = run()
    assert ran.code == 2
    assert "generate.prices" in ran.errors
    assert server.request_count == 0


def test_a_budget_that_caps_nothing_is_refused_with_its_line(tickets: DatasetFolder) -> None:
    tickets.edit("generate.budget", {})
    checked = synth("check", "tickets")
    assert checked.code == 2
    assert "generate.budget" in checked.errors
    assert "caps usd, tokens or calls" in checked.errors


@pytest.mark.slow
def test_two_runs_at_once_share_one_budget(
    tickets: DatasetFolder, server: ServerState, synth_home: Path
) -> None:
    server.latency_s = 0.1
    tickets.edit("generate.budget", {"calls": 9})
    command = [
        str(Path(sys.executable).parent / "synth"),
        "run",
        "tickets",
        "--until",
        "candidates",
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [3, 3], ended
    assert server.successes_by_identity.total() == 9
