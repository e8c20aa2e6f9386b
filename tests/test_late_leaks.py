"""Leak checks follow the holdout: a row that comes late is checked against what stands already."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.datasets import DatasetFolder, write_csv
from tests.openai_server import ServerState, running_server
from tests.processes import Place
from tests.test_run import run, statuses, table, versions

# Its hash puts it on the holdout's side.
LATE = "the voice menu number 01 sends me round in circles"


@pytest.fixture
def server(tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    place = Place(tickets.folder.parents[1])
    with running_server() as state:
        for name, value in place.environment(state).items():
            monkeypatch.setenv(name, value)
        yield state


def test_a_holdout_row_that_comes_after_a_seed_of_the_same_text_stops_the_run(
    tickets: DatasetFolder, server: ServerState
) -> None:
    (tickets.folder / "seeds.jsonl").write_text(json.dumps({"text": LATE, "label": "login"}))
    assert run().code == 0
    before = versions()
    write_csv(tickets.folder / "human.csv", [*tickets.rows, {"body": LATE, "topic": "login"}])
    released = tickets.folder.parents[1] / "home" / "releases" / "tickets" / "current"
    old = released.read_text()
    for _ in range(2):
        ran = run()
        assert ran.code == 3
        assert "seeds/no_leakage" in ran.errors
    # Nothing else about the seeds has changed, so nothing but the check can tell.
    after = versions()
    assert [after[s] == before[s] for s in ("human_train", "seeds", "holdout")] == [
        True,
        True,
        False,
    ]
    assert statuses()["seeds"]["status"] == "failed"
    assert released.read_text() == old


@pytest.mark.slow
def test_a_holdout_row_that_leaks_nowhere_asks_nothing_again(
    tickets: DatasetFolder, server: ServerState
) -> None:
    assert run().code == 0
    asked = server.request_count
    write_csv(tickets.folder / "human.csv", [*tickets.rows, {"body": LATE, "topic": "login"}])
    ran = run()
    assert (ran.code, server.request_count) == (0, asked), ran.errors
    assert {stage["status"] for stage in statuses().values()} == {"fresh"}
    assert LATE in table(tickets.folder.parents[1] / "home", "holdout")["text"].to_list()
