"""A dataset with imported rows after its run: released, made again, tidied, refreshed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from synth_assets.assets.stages import STAGES
from tests.automation import Automation
from tests.datasets import DatasetFolder
from tests.openai_server import running_server
from tests.test_imports import bring, importing_tickets, made
from tests.test_run import run, statuses, synth, versions


@pytest.fixture
def released(synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetFolder:
    folder = importing_tickets(synth_home.parent / "defs" / "tickets")
    bring(folder, made(20, "billing") + made(12, "login"))
    with running_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        ran = run()
    assert ran.code == 0, ran.errors
    return folder


@pytest.mark.slow
def test_a_release_names_the_import_and_is_made_again_from_it(
    released: DatasetFolder, synth_home: Path, tmp_path: Path
) -> None:
    assert {found["status"] for found in statuses().values()} == {"fresh"}
    root = synth_home / "releases" / "tickets"
    [folder] = [path for path in root.iterdir() if path.is_dir()]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["stages"]) == set(STAGES) - {"release"}
    assert set(manifest["source"]) == {"version", "import_source"}
    splits = [
        pl.read_parquet(folder / f"{split}.parquet") for split in ("train", "validation", "eval")
    ]
    named = sum(split["source"].count() for split in splits)
    assert sum(manifest["counts"]["sources"].values()) == named > 0
    assert "bought.csv" not in (folder / "README.md").read_text()
    again = ("--into", str(tmp_path / "again"), "--source-folder", str(released.folder))
    found = synth("reproduce", str(folder), *again, "--json")
    assert found.code == 0, found.errors + found.result.stdout
    assert (found.json["same"], found.json["problems"]) == (True, [])
    bring(released, made(20, "billing"))
    again = ("--into", str(tmp_path / "other"), "--source-folder", str(released.folder))
    found = synth("reproduce", str(folder), *again, "--json")
    assert found.code == 1
    assert "the import source has changed" in found.json["problems"][0]


def test_clearing_up_leaves_what_the_import_needs(
    released: DatasetFolder, synth_home: Path
) -> None:
    shutil.rmtree(synth_home / "releases")
    for words in (("gc", "tickets", "--yes"), ("gc", "--orphans", "--yes")):
        assert synth(*words).code == 0
    assert (synth_home / "landing" / "tickets.synthetic" / "landed.duckdb").is_file()
    stages = set(versions())
    found = statuses()
    assert {stage for stage in stages if found[stage]["status"] != "fresh"} <= {"release"}
    shutil.move(released.folder, released.folder.parent.parent / "away")
    assert synth("gc", "--orphans", "--yes").code == 0
    assert [path for path in (synth_home / "landing").iterdir() if path.is_dir()] == []


def test_automation_sees_that_an_import_changed(released: DatasetFolder) -> None:
    released.edit("refresh", {"policy": "on_change", "generate": "on_change"})
    with dg.DagsterInstance.get() as instance:
        automation = Automation(instance)
        assert automation.to_rest() == []
        bring(released, [row for topic in released.labels for row in made(20, topic)])
        waves = automation.to_rest()
    ran = [stage for wave in waves for stage in wave]
    assert waves[0] == ["imported_raw"]
    assert len(ran) == len(set(ran))
    assert {"imported", "candidates", "train", "release"} <= set(ran)
    assert set(ran).isdisjoint({"human_raw", "human", "human_train", "seeds", "plan"})
    assert set(statuses()) == {"source", "import_source", *STAGES}
