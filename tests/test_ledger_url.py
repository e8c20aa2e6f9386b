"""A ledger in PostgreSQL, shared by homes that know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synth_assets.llm.ledger.ledger import Ledger
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.test_budget import home_for
from tests.test_run import run, synth, versions

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def server(synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    with running_server() as state:
        monkeypatch.setenv("OPENAI_BASE_URL", state.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield state


@pytest.mark.slow
def test_what_one_home_bought_another_replays_through_postgresql(
    tickets: DatasetFolder,
    server: ServerState,
    synth_home: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNTH_LEDGER_URL", postgres_url)
    first = run()
    assert first.code == 0, first.errors
    assert not (synth_home / "ledger").exists()
    made, asked = versions(), server.request_count
    with Ledger.open(postgres_url) as ledger:
        assert ledger.spent("tickets").calls == first.json["calls"]["made"] > 0

    home_for("elsewhere", synth_home, monkeypatch)
    second = run()
    assert second.code == 0, second.errors
    assert second.json["calls"]["made"] == 0
    assert (versions(), server.request_count) == (made, asked)
    shown = synth("ledger", "show", "--json")
    assert shown.code == 0, shown.errors


def test_a_ledger_that_cannot_be_reached_is_one_clear_error_without_the_password(
    tickets: DatasetFolder, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("SYNTH_LEDGER_URL", "postgresql://me:hunter2@127.0.0.1:9/none")
    ran = run()
    assert ran.code == 1
    assert "127.0.0.1:9/none" in ran.errors
    assert "hunter2" not in ran.errors + ran.result.stdout
    assert server.request_count == 0
