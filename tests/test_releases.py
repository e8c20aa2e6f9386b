"""A release says everything about itself, can be compared, gone back to, and made again."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from pathlib import Path

import dagster as dg
import orjson
import polars as pl
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.assets.workbench import Workbench
from synth_assets.lifecycle.release import manifest_bytes, version_of, without_user_info
from synth_assets.run import Session
from synth_assets.settings import home
from synth_assets.spec.load import load_dataset
from synth_assets.store.verify import verify_release
from tests.release_support import KEY, SEED, Place, flipped
from tests.test_run import run, synth

pytest_plugins = ["tests.release_fixtures"]


def splits(folder: Path) -> dict[str, pl.DataFrame]:
    return {s: pl.read_parquet(folder / f"{s}.parquet") for s in ("train", "validation", "eval")}


# --- what a release says ------------------------------------------------------------------------


def test_a_manifest_names_every_stage_as_it_stood(released: Place) -> None:
    made = released.manifest(released.current)
    assert set(made["stages"]) == set(STAGES) - {"release"}
    standing = {s["stage"]: s for s in synth("status", "tickets", "--json").json["stages"]}
    for stage, said in made["stages"].items():
        assert said == {name: standing[stage][name] for name in said}, stage
    assert made["source"]["version"] == standing["source"]["data_version"]


def test_a_manifest_counts_what_the_tables_hold(released: Place) -> None:
    made = released.manifest(released.current)
    train = pl.read_parquet(released.releases / released.current / "train.parquet")
    assert made["counts"]["splits"]["train"] == dict(train.group_by("origin").len().iter_rows())
    rejects = pl.read_parquet(released.table("rejects", released.current))
    assert made["counts"]["rejected"] == dict(rejects.group_by("reason").len().iter_rows())
    candidates = pl.read_parquet(released.table("candidates", released.current))
    assert made["counts"]["candidates"] == candidates.height
    assert made["requests"]["count"] == candidates["request_id"].n_unique()


def test_a_manifest_says_how_the_model_was_asked_and_never_a_key(released: Place) -> None:
    first, second = (released.manifest(version)["model"] for version in released.versions)
    assert first["endpoint"]["name"] == "test-server"
    assert second["endpoint"]["name"] is None
    assert re.fullmatch(r"127\.0\.0\.1:\d+", second["endpoint"]["host"])
    assert (first["output"], first["output_mode"]) == ("auto", "json_schema")
    assert (first["sampling"]["temperature"], second["sampling"]["temperature"]) == (1.0, 0.7)
    files = [path for path in released.releases.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [path for path in files if str(released.root).encode() in path.read_bytes()]


def test_a_manifest_gives_scores_with_intervals(released: Place) -> None:
    made = released.manifest(released.current)
    table = pl.read_parquet(released.releases / released.current / "contribution.parquet")
    expected = table.row(
        by_predicate=(pl.col("arm") == "blend - human") & (pl.col("metric") == "macro_f1"),
        named=True,
    )
    said = {(m["arm"], m["metric"]): m for m in made["contribution"]["metrics"]}
    found = said["blend - human", "macro_f1"]
    assert [found[x] for x in ("value", "low", "high")] == [
        expected[x] for x in ("value", "low", "high")
    ]


def test_a_release_carries_what_it_can_be_made_from_again(released: Place) -> None:
    folder = released.releases / released.current
    assert (folder / "prompt.md.j2").read_text() == (released.dataset / "prompt.md.j2").read_text()
    assert (folder / "defs.yaml").read_text() == (released.dataset / "defs.yaml").read_text()
    assert orjson.loads((folder / "seeds.jsonl").read_bytes()) == SEED
    listed = {"manifest.json", *released.manifest(released.current)["files"]}
    assert {path.name for path in folder.iterdir()} == listed


def test_files_of_a_release_are_read_only(released: Place) -> None:
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (released.releases / released.current).iterdir()
    }
    assert modes == {0o444}


def test_the_same_content_gives_the_same_version_and_bytes(
    released: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = released.current
    folder = released.releases / version
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.rename(released.root / "away")
    ran = run("tickets", "--force", "release")
    assert ran.code == 0, ran.errors
    assert released.current == version
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_release_is_put_in_order_by_making_it_again(released: Place) -> None:
    folder = released.releases / released.current
    flipped(folder / "train.parquet", 700)
    (folder / "extra.txt").write_text("x")
    assert verify_release(folder)
    assert run("tickets", "--force", "release").code == 0
    assert verify_release(folder) == []


def test_nothing_is_released_with_a_declaration_that_did_not_make_the_tables(
    released: Place,
) -> None:
    prompt = released.dataset / "prompt.md.j2"
    prompt.write_text("Another prompt.\n" + prompt.read_text())
    (told,) = release_alone(released)
    assert "plan was made by another declaration" in told


def release_alone(released: Place) -> list[str]:
    """Materialise the release and nothing else, as a click in the UI does; why it was not made."""
    dataset = load_dataset(released.dataset)
    assert dataset is not None
    with dg.DagsterInstance.get() as instance:
        result = Session.open(dataset, instance, Workbench(home())).materialize(["release"])
    failures = [e.step_failure_data for e in result.all_node_events if e.is_step_failure]
    return [str(f.user_failure_data.description) for f in failures if f.user_failure_data]


def lose_verdict(released: Place, stage: str, check: str) -> None:
    """As a kill between a stage and its check does."""
    records = released.root / "dagster" / "history" / "runs" / "index.db"
    delete = "DELETE FROM asset_check_executions WHERE check_name = ? AND asset_key LIKE ?"
    with sqlite3.connect(records) as instance:
        assert instance.execute(delete, (check, f'%"{stage}"]')).rowcount >= 1
    instance.close()


@pytest.mark.parametrize(
    ("stage", "check"), [("synthetic", "exact_counts"), ("seeds", "label_support")]
)
def test_a_verdict_that_blocks_nothing_and_was_never_made_is_made_by_the_next_run(
    released: Place, stage: str, check: str
) -> None:
    before = released.current
    assert f"{stage}/{check}" in released.manifest(before)["checks"]
    lose_verdict(released, stage, check)
    ran = run()
    assert (ran.code, stage in ran.json["ran"]) == (0, True), ran.errors
    assert run("tickets", "--force", "release").code == 0
    assert released.current == before


@pytest.mark.parametrize("stage", ["seeds", "plan", "human_train", "train", "validation"])
def test_nothing_is_released_while_a_required_check_has_no_verdict(
    released: Place, stage: str
) -> None:
    assert release_alone(released) == []
    lose_verdict(released, stage, "no_leakage")
    (told,) = release_alone(released)
    assert f"no_leakage is required: {stage}/no_leakage has not been checked" in told
    # An ordinary run makes the verdict, and then the release.
    ran = run("tickets", "--force", "release")
    assert (ran.code, {stage, "release"} <= set(ran.json["ran"])) == (0, True), ran.errors


def test_nothing_is_released_from_a_damaged_table(released: Place) -> None:
    flipped(released.table("train", released.current), 700)
    (released.releases / released.current).rename(released.root / "away")
    ran = run("tickets", "--force", "release")
    assert ran.code == 1
    assert "damaged" in ran.errors
    assert "--force train" in ran.errors
    assert not (released.releases / released.current).exists()


def test_passwords_in_addresses_are_taken_out() -> None:
    declared = {"a": ["postgresql://me:secret@host/db"], "b": "see http://x@y/z and a@b.c"}
    assert without_user_info(declared) == {
        "a": ["postgresql://***@host/db"],
        "b": "see http://***@y/z and a@b.c",
    }


def test_the_order_of_labels_is_part_of_a_release(released: Place) -> None:
    made = released.manifest(released.current)
    labels = made["declared"]["task"]["labels"]
    assert list(labels) == ["billing", "delivery", "login"]
    made["declared"]["task"]["labels"] = dict(reversed(labels.items()))
    assert version_of(made) != released.current


def test_a_manifest_is_written_in_one_way_only(released: Place) -> None:
    content = (released.releases / released.current / "manifest.json").read_bytes()
    assert manifest_bytes(orjson.loads(content)) == content
    assert version_of(orjson.loads(content)) == released.current


# --- listing ------------------------------------------------------------------------------------


def test_releases_are_listed_newest_first_with_the_current_one_marked(released: Place) -> None:
    first, second = released.versions
    found = synth("releases", "tickets", "--json").json["releases"]
    assert [(r["version"], r["current"]) for r in found] == [(second, True), (first, False)]
    train = splits(released.releases / second)["train"]
    assert found[0]["rows"]["train"] == train.height
    human = train.filter(pl.col("origin") == "human").height / train.height
    assert found[0]["human_share"] == pytest.approx(human, abs=1e-4)
    assert set(found[0]["difference"]) == {"value", "low", "high"}
    assert second in synth("releases").result.stdout


def test_a_damaged_release_is_listed_as_such(released: Place) -> None:
    path = released.releases / released.current / "manifest.json"
    path.unlink()
    path.write_text("{")
    found = synth("releases", "tickets", "--json").json["releases"]
    assert {r["version"]: r["damaged"] for r in found}[released.current] is True
    shown = synth("releases")
    assert shown.code == 0
    assert "Traceback" not in shown.result.output


def test_an_unknown_dataset_has_no_releases_and_says_which_have(released: Place) -> None:
    found = synth("releases", "ticket")
    assert found.code == 2
    assert "tickets" in found.errors


# --- comparing ----------------------------------------------------------------------------------


def test_diff_counts_the_rows_that_came_went_and_changed(released: Place) -> None:
    first, second = released.versions
    old, new = (
        {
            row["record_id"]: row
            for frame in splits(released.releases / version).values()
            for row in frame.iter_rows(named=True)
        }
        for version in (first, second)
    )
    found = synth("diff", "tickets", "previous", "current", "--json", "--rows", "3").json
    assert (found["old"], found["new"]) == (first, second)
    rows = found["rows"]
    assert rows["added"] == len(new.keys() - old.keys()) > 0
    assert rows["removed"] == len(old.keys() - new.keys()) > 0
    assert rows["changed"] == sum(old[one] != new[one] for one in old.keys() & new.keys())
    assert {row["origin"] for row in rows["counts"]} == {"synthetic"}
    assert [row["record_id"] for row in rows["examples"]["added"]] == sorted(
        new.keys() - old.keys()
    )[:3]


def test_diff_shows_prompt_parameters_versions_and_scores(released: Place) -> None:
    first, second = released.versions
    found = synth("diff", "tickets", first[:6], second[:6], "--json").json
    assert "+Be inventive." in found["prompt"].splitlines()
    declared = {change["path"]: (change["old"], change["new"]) for change in found["declared"]}
    assert declared["generate.temperature"] == (1.0, 0.7)
    assert declared["blend.weights.synthetic"] == (1.0, 0.5)
    model = {change["path"] for change in found["model"]}
    assert {"endpoint.name", "endpoint.identity", "sampling.temperature"} <= model
    assert found["packages"] == []
    stages = {one["stage"] for one in found["stages"]}
    assert {"plan", "candidates", "train"} <= stages
    assert not stages & {"human", "holdout", "eval"}
    assert found["metrics"][0]["old"]["value"] is not None
    shown = synth("diff", "tickets", first, second, "--rows", "1").result.stdout
    assert "Be inventive." in shown
    assert "generate.temperature: 1.0 -> 0.7" in shown


def test_a_release_does_not_differ_from_itself(released: Place) -> None:
    found = synth("diff", "tickets", "current", "current", "--json").json
    assert (found["rows"]["added"], found["rows"]["removed"], found["rows"]["changed"]) == (0, 0, 0)
    empty = ("prompt", "system", "declared", "model", "packages", "source", "stages")
    assert not any(found[name] for name in empty)


def test_a_version_that_is_none_or_several_is_a_usage_error(released: Place) -> None:
    assert synth("diff", "tickets", "zzzz", "current").code == 2
    assert synth("diff", "tickets", "", "current").code == 2
    assert synth("diff", "nothing", "current", "current").code == 2
    assert synth("rollback", "../tickets", "current").code == 2


def test_a_damaged_release_is_not_compared(released: Place) -> None:
    flipped(released.releases / released.current / "eval.parquet", 30)
    found = synth("diff", "tickets", "previous", "current")
    assert found.code == 1
    assert "damaged" in found.errors


# --- going back ---------------------------------------------------------------------------------


def test_rollback_points_to_an_older_release_and_back(released: Place) -> None:
    first, second = released.versions
    assert synth("rollback", "tickets", "previous").code == 0
    assert released.current == first
    assert synth("rollback", "tickets", second[:8], "--json").json["before"] == first
    assert released.current == second


def test_a_damaged_release_is_never_made_current(released: Place) -> None:
    first, second = released.versions
    flipped(released.releases / first / "prompt.md.j2", 3)
    ran = synth("rollback", "tickets", first)
    assert ran.code == 1
    assert "prompt.md.j2" in ran.errors
    assert released.current == second


# --- making it again ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_release_is_made_again_with_equal_hashes_and_no_call(
    released: Place, tmp_path: Path, which: int
) -> None:
    version = released.versions[which]
    found = synth("reproduce", version, "--into", str(tmp_path / "again"), "--json")
    assert found.code == 0, found.errors + found.result.stdout
    assert found.json["same"] is True
    assert found.json["calls_tried"] == 0
    assert {stage["stage"] for stage in found.json["stages"]} == set(STAGES) - {"release"}
    stored = tmp_path / "again" / "store" / "tickets" / "train"
    assert [p.stem for p in stored.glob("*.parquet")] == [
        released.manifest(version)["stages"]["train"]["data_version"]
    ]


def test_an_answer_that_the_ledger_lost_is_not_bought_again(
    released: Place, tmp_path: Path
) -> None:
    with sqlite3.connect(released.home / "ledger" / "ledger.sqlite") as ledger:
        asked = pl.read_parquet(released.table("candidates", released.current))["request_id"][0]
        assert ledger.execute("DELETE FROM calls WHERE request_id = ?", (asked,)).rowcount == 1
    ledger.close()
    found = synth("reproduce", released.current, "--into", str(tmp_path / "again"), "--json")
    assert found.code == 1
    assert found.json["calls_tried"] > 0
    assert {s["stage"] for s in found.json["stages"] if not s["same"]} >= {"candidates", "train"}
    assert {s["stage"] for s in found.json["stages"] if s["same"]} >= {"human", "plan"}
    assert "nothing may be asked here" in found.errors
    assert "Traceback" not in found.errors


def test_a_source_that_changed_is_named(released: Place, tmp_path: Path) -> None:
    with (released.dataset / "data" / "people.csv").open("a") as file:
        file.write("a forklift drove over my brand new espresso machine,delivery\r\n")
    found = synth("reproduce", released.current, "--into", str(tmp_path / "again"), "--json")
    assert found.code == 1
    assert "the source has changed" in found.errors
    assert not next(s for s in found.json["stages"] if s["stage"] == "human_raw")["same"]


def test_a_release_outlives_its_declaration(released: Place, tmp_path: Path) -> None:
    data = released.dataset.rename(tmp_path / "moved")
    for name in ("defs.yaml", "prompt.md.j2", "seeds.jsonl"):
        (data / name).unlink()
    folder = released.releases / released.current
    again = ("reproduce", str(folder), "--json", "--into")
    assert synth(*again, str(tmp_path / "first")).code == 1
    found = synth(*again, str(tmp_path / "second"), "--source-folder", str(data))
    assert found.code == 0, found.errors


def test_a_home_that_is_not_empty_is_refused(released: Place) -> None:
    found = synth("reproduce", released.current, "--into", str(released.home))
    assert found.code == 2
    assert "empty" in found.errors


def test_json_of_a_manifest_is_what_a_script_reads(released: Place) -> None:
    made = json.loads((released.releases / released.current / "manifest.json").read_text())
    assert {"sha256", "bytes"} == set(made["files"]["train.parquet"])
