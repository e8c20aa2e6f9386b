"""Datasets that generate nothing, with an official test fold: no model, no prompt, no call.

Every connection is refused and counted while the commands run, and no address of a model is known.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from synth_assets.assets.measuring import HUMAN_ONLY
from synth_assets.assets.references import column_lineage
from synth_assets.assets.stages import STAGES, stages_of
from synth_assets.assets.workbench import Workbench
from synth_assets.run import Session
from synth_assets.settings import defs_roots
from synth_assets.spec.load import Dataset, dataset_named, load_dataset
from synth_assets.terminal import opened_instance
from synth_assets.waves import next_wave
from tests.datasets import DatasetFolder, write_csv
from tests.test_dagster import location
from tests.test_imports import made
from tests.test_run import Ran, run, statuses, synth, versions

GENERATING = {"seeds", "plan", "candidates"}
PEOPLE = {"name": "people", "kind": "files", "path": "human.csv", "id_column": "id"}
BOUGHT = {
    "name": "bought",
    "kind": "files",
    "path": "bought.csv",
    "role": "synthetic",
    "provenance": {"model_column": "by", "parents_column": "from"},
}
OFFICIAL = {"column": "fold", "holdout": ["test"], "validation": 0.1}
# What a person would not want to lose silently: text, topic, fold, and what becomes of it.
PLANTED = [
    ("the blue heron stands on the pier", "billing", "test", "holdout"),
    ("The blue heron stands on the pier!", "billing", "train", "duplicate_of_holdout"),
    ("the blue heron stands on the pier", "login", "train", "conflicts_with_holdout"),
    ("the blue heron stands on the pier now", "billing", "train", "near_copy_of_holdout"),
    ("the blue heron stands on the pier", "billing", "test", "duplicate"),
    ("a green canoe drifts past the mill", "login", "test", "conflicting_labels"),
    ("a green canoe drifts past the mill", "billing", "test", "conflicting_labels"),
    ("no", "login", "test", "too_short"),
    ("somebody left the harbour gate open", "login", "", "missing_fold"),
]
NOT_USED = Counter({"conflicting_labels": 2, "duplicate": 1, "too_short": 1})


def official_tickets(folder: Path) -> DatasetFolder:
    """Tickets with ids and folds, every fourth of the test set, and rows that a model wrote."""
    dataset = DatasetFolder(folder)
    rows = [(r["body"], r["topic"], "test" if n % 4 == 0 else "train")
            for n, r in enumerate(dataset.rows)]  # fmt: skip
    planted = [(text, topic, fold) for text, topic, fold, _ in PLANTED]
    dataset.rows = [
        {"id": f"T-{n}", "body": body, "topic": topic, "fold": fold}
        for n, (body, topic, fold) in enumerate([*rows, *planted])
    ]
    for name in ("source", "seeds", "generate"):
        del dataset.attributes[name]
    dataset.attributes |= {"sources": [PEOPLE, BOUGHT], "partition": OFFICIAL}
    dataset.attributes["measure"] = {"repeats": 2}
    dataset.folder.mkdir(parents=True)
    dataset.write_spec()  # and no prompt
    write_csv(dataset.folder / "human.csv", dataset.rows)
    bought = [row for topic in ("billing", "login") for row in made(12, topic, by="big-model")]
    bought[0]["from"] = next(r["id"] for r in dataset.rows if r["fold"] == "test")
    write_csv(dataset.folder / "bought.csv", bought)
    return dataset


@dataclass
class Place:
    """Homes in a folder of their own, in which every connection is refused and counted."""

    root: Path
    connections: list[object] = field(default_factory=list)
    _versions: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def table(self, stage: str) -> pl.DataFrame:
        self._versions = self._versions or versions()  # nothing changes between the tests
        name = f"{self._versions[stage]}.parquet"
        return pl.read_parquet(self.home / "store" / "tickets" / stage / name)

    def release(self) -> tuple[dict[str, Any], str]:
        folder = self.home / "releases" / "tickets"
        folder = folder / (folder / "current").read_text().strip()
        return json.loads((folder / "manifest.json").read_text()), (
            folder / "README.md"
        ).read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("alone"))
    for name in ("home", "dagster", "defs"):
        (found.root / name).mkdir()
    (found.root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")

    def refused(self: socket.socket, address: object) -> None:
        found.connections.append(address)
        raise ConnectionRefusedError(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTH_HOME", str(found.home))
        patch.setenv("DAGSTER_HOME", str(found.root / "dagster"))
        patch.setenv("SYNTH_DEFS", str(found.root / "defs"))
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "SYNTH_CACHE"):
            patch.delenv(name, raising=False)
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(socket.socket, "connect_ex", refused)
        official_tickets(found.root / "defs" / "tickets")
        ran = run()
        assert ran.code == 0, ran.errors
        assert ran.json["calls"] == {"made": 0, "replayed": 0, "failed": 0}
        yield found
        assert found.connections == []


def dataset() -> Dataset:
    return dataset_named("tickets", defs_roots())


def fine(*words: str) -> Ran:
    ran = synth(*words)
    assert ran.code == 0, ran.errors
    return ran


# --- imported rows alone ------------------------------------------------------------------------


def test_the_graph_has_no_stage_of_generation_and_all_others_are_made(place: Place) -> None:
    found = statuses()
    assert set(found) == {"source", "import_source", *STAGES} - GENERATING
    assert {stage["status"] for stage in found.values()} == {"fresh"}
    loaded = [key.path for key in location().get_repository_def().asset_graph.get_all_asset_keys()]
    keys = {path[-1] for path in loaded if path[0] == "tickets"}
    assert keys == set(found)
    assert run().json["ran"] == []


def test_every_accepted_imported_row_is_there_and_none_is_surplus(place: Place) -> None:
    imported, rows, rejects = (place.table(s) for s in ("imported", "synthetic", "rejects"))
    assert (imported.height, rows.height) == (24, 23)
    assert rejects["reason"].to_list() == ["derived_from_holdout"]
    assert set(rows["model"]) == {"big-model"}
    assert place.table("train").filter(origin="synthetic").height == 23


def test_nothing_is_forecast_and_nothing_asks_for_a_model(place: Place) -> None:
    assert "nothing to generate" in fine("plan", "tickets").result.stdout
    forecast = fine("plan", "tickets", "--json").json
    assert (forecast["calls"], forecast["rows"], forecast["usd"]) == (0, 0, 0.0)
    listed = {one["dataset"]: one["model"] for one in fine("list", "--json").json["datasets"]}
    assert listed["tickets"] is None
    assert "tickets" in fine("list").result.stdout
    assert fine("check", "tickets").code == 0
    refused = synth("run", "tickets", "--until", "plan")
    assert (refused.code, "no stage named 'plan'" in refused.errors) == (2, True)
    assert "no batch is open" in fine("batches", "collect", "tickets").result.stdout


def test_what_looks_after_a_home_works_without_a_call(place: Place, tmp_path: Path) -> None:
    assert fine("verify", "tickets", "--json").json["problems"] == []
    assert fine("gc", "tickets", "--json").code == 0
    assert len(fine("releases", "tickets", "--json").json["releases"]) == 1
    row = place.table("synthetic")["record_id"][0]
    assert "big-model" in json.dumps(fine("trace", "tickets", row, "--json").json)
    out = tmp_path / "out"
    fine("export", "tickets", "--format", "hf", "--format", "csv", "--out", str(out))
    card = next(out.rglob("README.md")).read_text()
    assert "Official test split: column fold = test" in card
    assert "with\nthis prompt template" not in card
    assert "bought.csv" in card
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["tags"] == ["synthetic"]


def test_the_release_is_made_again_from_its_own_files(place: Place, tmp_path: Path) -> None:
    made, _ = place.release()
    again = fine("reproduce", made["version"], "--into", str(tmp_path / "again"), "--json").json
    assert (again["same"], again["calls_tried"], again["problems"]) == (True, 0, [])


def test_a_release_says_that_rows_were_imported_and_by_whom(place: Place) -> None:
    made, card = place.release()
    assert (made["model"], made["prompt"], made["requests"]["count"]) == ({"name": None}, "", 0)
    assert made["counts"]["candidates"] == 0
    assert made["counts"]["accepted"] == 23
    assert set(made["stages"]) == set(statuses()) - {"source", "import_source", "release"}
    assert "prompt.md.j2" not in made["files"]
    assert "none were generated" in card


def test_every_column_has_its_lineage_in_stages_that_the_dataset_has(place: Place) -> None:
    tables = {stage: place.table(stage).columns for stage in stages_of(dataset())}
    for stage in set(tables) - {"human_raw", "imported_raw"}:
        found = column_lineage(dataset(), stage).deps_by_column
        assert set(found) == set(tables[stage]), stage
        for dep in (dep for deps in found.values() for dep in deps):
            assert dep.column_name in tables[dep.asset_key.path[-1]], (stage, dep)


# --- the official test fold -----------------------------------------------------------------------


def test_the_test_fold_is_the_holdout_and_what_is_missing_of_it_is_told(place: Place) -> None:
    rows = (place.root / "defs" / "tickets" / "human.csv").read_text().splitlines()
    fold = {n for n, line in enumerate(rows[1:], 1) if line.endswith(",test")}
    rejects, holdout = place.table("human_rejects"), place.table("holdout")
    removed = rejects.filter(side="holdout")
    assert Counter(removed["reason"]) == NOT_USED
    assert set(holdout["source_row"]) | set(removed["source_row"]) == fold
    assert set(place.table("eval")["record_id"]) == set(holdout["record_id"])
    with opened_instance() as instance:
        session = Session.open(dataset(), instance, Workbench())
        checks = {(c.stage, c.name): c for c in session.checks()}
    told = checks["human", "official_rows"]
    assert not told.passed
    assert told.description == (
        f"4 of {len(fold)} rows of the official test set are not used: "
        "conflicting_labels 2, duplicate 1, too_short 1"
    )
    assert checks["holdout", "official_rows"].passed
    assert checks["human_train", "no_leakage"].passed


def test_a_row_that_the_test_fold_also_has_is_told_to_be_set_aside(place: Place) -> None:
    first = place.table("human_raw").height - len(PLANTED) + 1
    found = dict.fromkeys(place.table("holdout")["source_row"], "holdout")
    for stage in ("human_rejects", "set_aside"):
        found |= dict(place.table(stage).select("source_row", "reason").iter_rows())
    assert [found.get(first + n) for n in range(len(PLANTED))] == [why for *_, why in PLANTED]


def test_manifest_and_card_name_the_fold_and_count_what_was_removed(place: Place) -> None:
    made, card = place.release()
    found = made["partition"]
    assert (found["by"], found["column"], found["holdout"]) == ("column", "fold", ["test"])
    assert found["near_copies"] == "drop_train"
    holdout = place.table("holdout").height
    assert found["sides"]["holdout"] == {"rows": holdout, "not_used": dict(NOT_USED)}
    assert found["sides"]["train"]["not_used"]["duplicate_of_holdout"] == 1
    assert f"Official test split: column fold = test ({holdout:,} rows)." in card
    assert "not used: conflicting\\_labels 2, duplicate 1, too\\_short 1." in card


# --- human rows only, other declarations ----------------------------------------------------------


# Kept: a group on both sides. Opposites of two labels are alike in letters only: no copies.
ON_BOTH = {
    "old": [
        ("turn the volume of it up a bit", "login", ""),
        ("a striped zebra crosses", "zoo", "ann"),
    ],
    "new": [
        ("turn the volume of it down a bit", "billing", ""),
        ("the ledger is in the drawer", "billing", "ann"),
    ],
}


def human_only(folder: Path) -> DatasetFolder:
    """Human rows in two sources, one of which is the test set; near-copies of it are kept."""
    dataset = DatasetFolder(folder)
    dataset.attributes["task"]["labels"]["zoo"] = "animals"
    for name in ("source", "seeds", "generate"):
        del dataset.attributes[name]
    named = {"old": "train", "new": "holdout"}
    dataset.attributes |= {
        "sources": [
            {"name": name, "kind": "files", "path": f"{name}.csv", "split": split}
            for name, split in named.items()
        ],
        "partition": {"validation": 0.1, "near_copies": "keep", "group_by": ["who"]},
        "measure": {"repeats": 2},
    }
    folder.mkdir(parents=True)
    dataset.write_spec()
    rows = [row | {"who": ""} for row in dataset.rows]
    for name, its in (("old", rows[28:]), ("new", rows[:28])):
        its += [{"body": text, "topic": topic, "who": who} for text, topic, who in ON_BOTH[name]]
        write_csv(folder / f"{name}.csv", its)
    return dataset


def test_human_rows_only_with_a_test_set_of_their_own_are_released_and_erased(
    synth_home: Path,
) -> None:
    human_only(synth_home.parent / "defs" / "tickets")
    ran = run()
    assert ran.code == 0, ran.errors
    gone = {*GENERATING, "synthetic", "rejects", "imported", "imported_raw"}
    assert set(stages_of(dataset())) == set(STAGES) - gone
    place = Place(synth_home.parent)
    found, card = place.release()
    assert found["contribution"]["verdict"] == "not_measurable"
    assert set(place.table("train")["origin"]) == {"human"}
    assert (found["partition"]["by"], found["partition"]["holdout"]) == ("sources", ["new"])
    # The rows of this grammar are near-copies of each other: all are kept, and it is said.
    kept = place.table("human_train").drop_nulls("kept_despite").height
    assert (place.table("holdout").height, place.table("set_aside").height) == (30, 0)
    assert kept == sum(found["partition"]["kept_despite"].values()) > 10
    train = place.table("human_train").filter(split="train")
    like = train.filter(pl.col("kept_despite").str.ends_with("_holdout"))
    assert "turn the volume of it up a bit" not in set(like["text"])
    caution = found["contribution"]["sentence"].removeprefix(HUMAN_ONLY)
    assert caution.startswith(f" Caution: {like.height} human training rows are near-copies of")
    assert "held-out rows, 1 of them only of the same group, and were kept" in caution
    for told in ("There are no synthetic rows.", "source new (30 rows)", f"{kept:,} training and"):
        assert told in card
    with opened_instance() as instance:
        checks = Session.open(dataset(), instance, Workbench()).checks()
    leaks = {c.stage: c for c in checks if c.name == "no_leakage"}
    assert leaks.keys() == {"human_train", "train", "validation"}
    assert all(check.passed for check in leaks.values())
    assert f"{kept:,} rows that are like an unseen row" in leaks["human_train"].description
    out = synth_home.parent / "out"
    fine("export", "tickets", "--format", "hf", "--out", str(out))
    assert "Human rows only" in next(out.rglob("README.md")).read_text()
    zebra = train.row(by_predicate=pl.col("label") == "zoo", named=True)
    last = fine("impact", "tickets", "--record", zebra["record_id"], "--json").json
    assert "'zoo' loses its last training row" in str(last["warnings"])
    row = place.table("holdout").row(0, named=True)
    chosen = f"{row['source']}:{row['source_row']}"
    erased = fine("erase", "tickets", "--source-row", chosen, "--reason", "r", "--yes", "--json")
    assert erased.json
    again = Place(synth_home.parent)
    assert row["record_id"] not in again.table("holdout")["record_id"]
    assert again.table("holdout").height == 29
    assert fine("verify", "tickets", "--json").json["problems"] == []


def test_a_declared_fold_that_no_row_has_ends_the_run_with_what_there_is(
    synth_home: Path,
) -> None:
    folder = official_tickets(synth_home.parent / "defs" / "tickets")
    folder.edit("partition.holdout", ["Tests"])
    ran = run("tickets", "--until", "human")
    assert ran.code == 1
    assert "no row has 'Tests' in column 'fold'" in ran.errors
    assert "did you mean 'test'? values found: 'train' (" in ran.errors
    assert "defs.yaml: partition.holdout" in ran.errors
    assert "Traceback" not in ran.errors


def test_a_target_of_all_generates_nothing_even_where_a_model_is_declared(tmp_path: Path) -> None:
    folder = official_tickets(tmp_path / "tickets")
    for declared in ({"target": {"all": True}}, {"model": "m", "target": {"all": True}}):
        folder.edit("generate", declared)
        found = load_dataset(folder.folder)
        assert found is not None
        assert set(stages_of(found)) == set(STAGES) - GENERATING
        # Nothing waits for generation: automation that may not generate may make all of it.
        every = list(stages_of(found))
        assert next_wave(set(every), held={"candidates"}, stages=every) == every
