"""A dataset's folder was renamed: what the old name left is looked at, erased and freed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from synth_assets.erasure.past import reading_from_tables
from synth_assets.lifecycle.records import unit
from synth_assets.lifecycle.tombstones import Reading
from synth_assets.settings import Home
from tests.datasets import DatasetFolder, human_rows
from tests.erase_support import PLACE, PLANTED, Place, copied, made, rows_with, synth, traces
from tests.openai_server import ServerState, running_server

pytestmark = pytest.mark.slow

ROW = f"human.csv:{PLACE}"
YES = ("--source-row", ROW, "--yes", "--json", "--no-rebuild")


@dataclass(frozen=True)
class Renamed:
    """``tickets``, released and exported, has become ``parcels``, which has landed only."""

    place: Place
    server: ServerState

    def go(self, *words: str) -> Any:
        ran = synth(self.place, self.server, *words)
        assert ran.code == 0, ran.errors
        return ran.json

    @property
    def own_file(self) -> Path:
        return self.place.defs / "parcels" / "human.csv"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture(scope="module")
def before(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Renamed:
    place = made(tmp_path_factory.mktemp("renamed") / "before")
    folder = DatasetFolder(place.defs / "tickets")
    rows = rows_with(PLANTED, human_rows(dict.fromkeys(folder.labels, 24)))
    # A desk whose rows are for training: what is planted is to be shown in prompts.
    desk = next(name for name in "abcdefgh" if unit("partition", "1", name) > 0.4)
    folder.rows = [{**row, "desk": str(n % 40)} for n, row in enumerate(rows)]
    folder.rows[PLACE - 1]["desk"] = desk
    folder.attributes["partition"]["group_by"] = ["desk"]
    folder.attributes["measure"] = {"repeats": 2}
    folder.attributes["generate"]["target"] = {"per_label": 16}
    folder.attributes["seeds"]["per_label"] = 40
    folder.write()
    assert place.run(server).code == 0
    assert synth(place, server, "export", "tickets", "--format", "csv").code == 0
    folder.folder.rename(place.defs / "parcels")
    assert place.run(server, "parcels", "--until", "human").code == 0
    return Renamed(place, server)


@pytest.fixture
def renamed(before: Renamed, tmp_path: Path) -> Renamed:
    return Renamed(copied(before.place, tmp_path / "copy"), before.server)


def test_a_name_without_a_folder_can_be_looked_at(before: Renamed) -> None:
    release = before.go("releases", "tickets", "--json")["releases"][0]["version"]
    assert release
    row = before.go("trace", "tickets", ROW, "--json")
    assert {"human_raw", "human"} <= {one["stage"] for one in row["stands"]}
    query = "SELECT count(*) AS n FROM human"
    assert before.go("sql", "tickets", query, "--format", "json") == {"n": 73}
    told = before.go("impact", "tickets", "--source-row", ROW, "--json")
    assert {"human_raw", "human", "plan", "train"} <= {one["stage"] for one in told["stages"]}
    assert told["calls"]
    assert (len(told["releases"]), len(told["exports"])) == (1, 1)
    assert before.go("verify", "tickets", "--json")["releases"] == 1


def test_how_its_rows_were_read_is_seen_in_its_tables(before: Renamed) -> None:
    home = Home(before.place.home)
    assert reading_from_tables(home, "tickets") == Reading("body", ("desk",))
    assert reading_from_tables(home, "nothing") == Reading("text")


def test_the_impact_of_a_row_names_what_the_old_name_holds_of_it(before: Renamed) -> None:
    told = before.go("impact", "parcels", "--source-row", ROW, "--json")
    assert [one["dataset"] for one in told["past_names"]] == ["tickets"]
    assert len(told["past_names"][0]["releases"]) == 1
    assert told["other_datasets"] == {}
    seen = before.go("erase", "parcels", "--source-row", ROW, "--json")
    assert (seen["erased"], [one["impact"]["dataset"] for one in seen["past_names"]]) == (
        False,
        ["tickets"],
    )
    shown = synth(before.place, before.server, "impact", "parcels", "--source-row", ROW)
    assert "tickets, which no folder declares" in shown.out
    assert "left as it is" not in shown.out


def test_an_erasure_under_the_new_name_reaches_what_the_old_one_left(renamed: Renamed) -> None:
    assert traces(renamed.place.root, but=(renamed.own_file,))
    told = renamed.go("erase", "parcels", *YES)
    assert told["erased"]
    assert [one["removed"]["releases"] for one in told["past_names"]] == [1]
    assert traces(renamed.place.root, but=(renamed.own_file,)) == []
    assert renamed.go("verify", "--json")["problems"] == []


def test_the_old_name_can_be_erased_from_by_itself(renamed: Renamed) -> None:
    told = renamed.go("erase", "tickets", *YES)
    assert told["erased"]
    assert {"human", "human_raw"} <= set(told["impact"]["other_datasets"]["parcels"])
    old = renamed.place.home
    assert not [
        path
        for root in ("store", "releases", "landing", "exports")
        for path, _ in traces(old / root / "tickets")
    ]
    assert renamed.go("verify", "--json")["problems"] == []


def test_a_row_that_was_erased_before_the_renaming_stays_away_after_it(
    renamed: Renamed, tmp_path: Path
) -> None:
    """Its marks are in the record of the old name; a text file alone says whose data is meant."""
    file = tmp_path / "text"
    file.write_text(PLANTED)
    renamed.go("erase", "tickets", "--text-file", str(file), "--yes", "--json", "--no-rebuild")
    ran = renamed.place.run(renamed.server, "parcels", "--until", "human")
    assert ran.code == 0, ran.errors
    query = "SELECT source_row FROM human_rejects WHERE reason = 'erased'"
    assert renamed.go("sql", "parcels", query, "--format", "json") == {"source_row": PLACE}


def test_what_the_old_name_left_is_freed_when_it_is_asked_for(renamed: Renamed) -> None:
    store, releases = (renamed.place.home / name / "tickets" for name in ("store", "releases"))
    left = synth(renamed.place, renamed.server, "gc", "--json")
    assert (left.code, [*left.json["skipped"]]) == (0, ["tickets"])
    listed = renamed.go("gc", "tickets", "--orphans", "--releases", "--json")
    assert {item["kind"] for item in listed["items"]} == {"table", "landing", "release"}
    assert list(store.rglob("*.parquet"))
    renamed.go("gc", "tickets", "--orphans", "--releases", "--yes", "--json")
    assert not list(store.rglob("*.parquet"))
    assert not list(releases.rglob("*.parquet"))
    assert renamed.go("verify", "--json")["problems"] == []
    assert synth(renamed.place, renamed.server, "gc", "--releases").code == 2
