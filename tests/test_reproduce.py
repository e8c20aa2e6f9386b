"""A release is made again anywhere, from its own files, the ledger and the source; nobody is asked.

What a plain release needs for it is proved in ``test_releases``; here it is what it is made of.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import Batch
from tests.datasets import DatasetFolder, human_rows, write_csv
from tests.openai_server import ServerState, running_server
from tests.test_run import Ran, run, synth

pytest_plugins = ["tests.postgres"]

Shape = Callable[[DatasetFolder], object]
SEED = {"text": "the voice menu sends me round in circles", "label": "login"}


@dataclass(frozen=True)
class Made:
    """A dataset, its release, and the server that was asked for it."""

    dataset: DatasetFolder
    server: ServerState
    home: Path
    location: str | Path
    elsewhere: Path

    @property
    def version(self) -> str:
        return (self.home / "releases" / "tickets" / "current").read_text().strip()

    def again(self, version: str, *words: str) -> Ran:
        """``synth reproduce`` of a version; the model is in reach, and is not asked."""
        asked = self.server.request_count
        into = str(self.elsewhere / "again")
        found = synth("reproduce", version, "--into", into, "--json", *words)
        assert self.server.request_count == asked
        assert "Traceback" not in found.errors
        return found


@pytest.fixture
def server() -> Iterator[ServerState]:
    with running_server(batch_seconds=0.1) as state:
        yield state


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def made(
    request: pytest.FixtureRequest,
    tickets: DatasetFolder,
    server: ServerState,
    synth_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Made:
    """Nothing yet: a test shapes the dataset and runs it, with a ledger of each kind."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    location: str | Path = synth_home / "ledger" / "ledger.sqlite"
    if request.param == "postgres":
        location = str(request.getfixturevalue("postgres_url"))
        monkeypatch.setenv("SYNTH_LEDGER_URL", location)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return Made(tickets, server, synth_home, location, elsewhere)


def plain_lists(dataset: DatasetFolder) -> None:
    dataset.edit("generate.output", "list")


def seeds_and_sources_in_a_batch(dataset: DatasetFolder) -> None:
    (dataset.folder / "seeds.jsonl").write_text(json.dumps(SEED) + "\n")
    (dataset.folder / "human.csv").unlink()
    write_csv(dataset.folder / "old.csv", dataset.rows[:70])
    pairs = ({"text": row["body"], "kind": row["topic"]} for row in dataset.rows[70:])
    rows = [{"body": pair["text"], "topic": pair["kind"]} for pair in pairs]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (dataset.folder / "new.jsonl").write_text(lines)
    del dataset.attributes["source"]
    dataset.attributes["sources"] = [
        {"kind": "files", "path": "old.csv", "name": "old"},
        {"kind": "files", "path": "new.jsonl", "name": "new"},
    ]
    dataset.attributes["generate"] |= {"mode": "batch", "batches": {"wait_s": 60, "poll_s": 0.05}}
    dataset.write_spec()


def forget_the_declaration(dataset: DatasetFolder) -> None:
    """The dataset as it is today: another prompt, another model, no seeds."""
    dataset.write_prompt("Something else about {{ label }}.")
    dataset.attributes["generate"] |= {"model": "another-model", "temperature": 0.1}
    dataset.attributes["random_seed"] = 7
    dataset.write_spec()
    (dataset.folder / "seeds.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "shape", [plain_lists, seeds_and_sources_in_a_batch], ids=lambda shape: shape.__name__
)
def test_every_stage_comes_out_the_same_and_nobody_is_asked(made: Made, shape: Shape) -> None:
    shape(made.dataset)
    ran = run()
    assert ran.code == 0, ran.errors
    forget_the_declaration(made.dataset)
    found = made.again(made.version)
    assert found.code == 0, found.errors + found.result.stdout
    assert (found.json["same"], found.json["calls_tried"]) == (True, 0)
    assert {s["stage"] for s in found.json["stages"] if s["same"]} == set(STAGES) - {"release"}
    assert found.json["problems"] == []


@pytest.mark.slow
def test_a_partial_release_is_made_again_as_partial_after_more_was_bought(made: Made) -> None:
    made.dataset.edit("generate.budget", {"calls": 8})
    ran = run()
    assert ran.code == 3, ran.errors
    partial = made.version
    made.dataset.edit("generate.budget", {"calls": 100})
    assert run().code == 0
    assert made.version != partial
    found = made.again(partial)
    assert found.code == 0, found.errors + found.result.stdout
    assert (found.json["same"], found.json["calls_tried"]) == (True, 0)
    (made.elsewhere / "again").rename(made.elsewhere / "first")
    whole = made.again(made.version)
    assert (whole.code, whole.json["same"]) == (0, True), whole.errors
    assert found.json["answers_copied"] < whole.json["answers_copied"]


@pytest.mark.parametrize("candidates", ["stored", pytest.param("cleared", marks=pytest.mark.slow)])
def test_answers_that_the_ledger_lacks_are_named_and_not_asked_for(
    made: Made, candidates: str
) -> None:
    assert run().code == 0
    with Ledger.open(made.location) as ledger:
        rows = ledger.query("SELECT request_id FROM calls ORDER BY started_at DESC")
        lost = sorted(str(row[0]) for row in rows[:3])
        for request_id in lost:
            delete(ledger, request_id)
    if candidates == "cleared":
        shutil.rmtree(made.home / "store" / "tickets" / "candidates")
    found = made.again(made.version)
    assert (found.code, found.json["same"]) == (1, False)
    named = " ".join(found.json["problems"])
    assert "not in the ledger" in named
    assert any(one[:10] in named for one in lost)
    if candidates == "stored":
        assert all(one[:10] in named for one in lost)
    same = {s["stage"]: s["same"] for s in found.json["stages"]}
    assert same["plan"]
    assert not same["candidates"]


def delete(ledger: Ledger, request_id: str) -> None:
    statement = ("DELETE FROM calls WHERE request_id = ?", (request_id,))
    ledger.backend.write(Batch(statements=[statement]))


@pytest.mark.slow
def test_a_source_that_changed_or_is_gone_is_said(made: Made) -> None:
    assert run().code == 0
    more = {"body": "a forklift drove over my brand new espresso machine", "topic": "delivery"}
    write_csv(made.dataset.folder / "human.csv", [*human_rows(), more])
    changed = made.again(made.version)
    assert changed.code == 1
    assert "the source has changed" in changed.errors
    same = {s["stage"]: s["same"] for s in changed.json["stages"]}
    assert not same["human_raw"]
    shutil.rmtree(made.elsewhere / "again")
    (made.dataset.folder / "human.csv").unlink()
    gone = made.again(made.version)
    assert gone.code == 1
    assert "human.csv" in gone.errors
    assert "--source-folder" in gone.errors


def test_a_ledger_of_another_place_is_said(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().code == 0
    release = made.home / "releases" / "tickets" / made.version
    monkeypatch.delenv("SYNTH_LEDGER_URL", raising=False)
    monkeypatch.setenv("SYNTH_HOME", str(tmp_path / "empty"))
    found = made.again(str(release))
    assert found.code == 1
    assert "the ledger holds no answer of test-model" in found.errors
    assert "SYNTH_HOME" in found.errors
