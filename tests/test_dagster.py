"""The same datasets through Dagster's own doors: definitions, jobs, ``dg`` and ``dagster``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.assets.stages import STAGES as ALL_STAGES
from synth_assets.settings import PROJECT_ROOT
from synth_assets.waves import next_wave, with_siblings
from tests.datasets import DatasetFolder
from tests.openai_server import running_server


def location() -> dg.Definitions:
    """The code location as Dagster loads it, read anew."""
    from synth_assets.definitions import defs

    return defs() if not isinstance(defs, dg.Definitions) else defs


def keys(definitions: dg.Definitions) -> set[str]:
    graph = definitions.get_repository_def().asset_graph
    return {key.to_user_string() for key in graph.get_all_asset_keys()}


def command(*words: str, cwd: Path = PROJECT_ROOT) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / words[0]
    return subprocess.run(
        [str(script), *words[1:]],
        cwd=cwd,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_location_holds_the_projects_and_the_outside_datasets(tickets: DatasetFolder) -> None:
    found = keys(location())
    for dataset in ("work_orders", "tickets"):
        assert {f"{dataset}/{stage}" for stage in ("source", *STAGES)} <= found


def test_a_broken_dataset_is_an_asset_that_says_why_and_the_others_load(
    tickets: DatasetFolder,
) -> None:
    tickets.edit("generate.temprature", 1.0)
    definitions = location()
    found = keys(definitions)
    assert "work_orders/train" in found
    assert "tickets/train" not in found
    graph = definitions.get_repository_def().asset_graph
    node = graph.get(dg.AssetKey(["tickets", "broken_spec"]))
    assert "temprature" in (node.description or "")


def test_a_dataset_whose_yaml_cannot_be_parsed_does_not_take_the_location_down(
    tickets: DatasetFolder,
) -> None:
    tickets.defs_file.write_text("type: [")
    found = keys(location())
    assert "work_orders/train" in found
    assert "tickets/broken_spec" in found


def test_checks_are_declared_and_the_leak_checks_block(tickets: DatasetFolder) -> None:
    graph = location().get_repository_def().asset_graph
    blocking = {
        f"{key.asset_key.path[-1]}/{key.name}"
        for key in graph.asset_check_keys
        if key.asset_key.path[0] == "tickets" and graph.get(key).blocking
    }
    stages = ("human_train", "seeds", "plan", "train", "validation")
    assert {f"{stage}/no_leakage" for stage in stages} <= blocking


def test_no_stage_before_generation_depends_on_the_holdout(tickets: DatasetFolder) -> None:
    def above(stage: str) -> set[str]:
        parents = set(STAGES[stage].parents) - {"source"}
        return parents.union(*(above(parent) for parent in parents)) if parents else parents

    assert "holdout" not in above("plan")


def test_a_whole_run_in_dagster_is_seen_by_the_command_line(
    tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_run import statuses

    with running_server() as server, dg.DagsterInstance.get() as instance:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        job = location().resolve_implicit_global_asset_job_def()
        assets = [dg.AssetKey(["tickets", stage]) for stage in STAGES]
        observed = dg.AssetKey(["tickets", "source"])
        assert job.execute_in_process(instance=instance, asset_selection=assets).success
        graph = location().get_repository_def().asset_graph
        assert observed in graph.get_all_asset_keys()
    found = statuses()
    assert {found[stage]["status"] for stage in STAGES if stage != "human_raw"} == {"fresh"}


def test_the_contribution_shows_a_picture_and_its_numbers(
    tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_run import run

    with running_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        assert run().code == 0
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tickets", "contribution"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    picture = str(metadata["picture"].value)
    assert "data:image/svg+xml" in picture
    assert len(picture) < 1_000  # longer Markdown is hidden behind a dialog
    assert isinstance(metadata["macro_f1/human"].value, float)


def test_dg_and_dagster_accept_the_project(tickets: DatasetFolder) -> None:
    checked = command("dg", "check", "yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = command("dg", "list", "defs", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "tickets/train" in listed.stdout.replace("\\/", "/")


def test_dg_scaffolds_a_dataset_that_passes_the_check(tmp_path: Path) -> None:
    from dagster.components.scaffold.scaffold import ScaffoldRequest

    from synth_assets.components.scaffold import SyntheticDatasetScaffolder
    from synth_assets.spec.load import load_dataset

    folder = tmp_path / "fresh"
    folder.mkdir()
    request = ScaffoldRequest(
        type_name="synth_assets.components.SyntheticDataset",
        target_path=folder,
        scaffold_format="yaml",
        project_root=tmp_path,
        params=None,
    )
    SyntheticDatasetScaffolder().scaffold(request)
    dataset = load_dataset(folder)
    assert dataset is not None
    assert dataset.name == "fresh"


# --- waves --------------------------------------------------------------------------------------


def test_a_first_run_is_one_wave() -> None:
    assert next_wave(set(STAGES), held=(), stages=STAGES) == list(STAGES)
    assert next_wave(set(ALL_STAGES), held=()) == list(ALL_STAGES)


def test_a_stage_below_an_undecided_one_waits() -> None:
    # `candidates` is out of sync by itself, but `seeds` may change `plan` first.
    assert next_wave({"seeds", "candidates"}, held=()) == ["seeds"]


def test_neighbours_that_must_run_share_a_wave() -> None:
    assert next_wave({"plan", "candidates"}, held=()) == ["plan", "candidates"]


def test_a_held_stage_and_what_is_below_it_do_not_run() -> None:
    assert next_wave({"plan", "candidates", "eval"}, held={"candidates"}) == ["plan", "eval"]


def test_what_one_step_writes_runs_together() -> None:
    assert with_siblings({"holdout"}) == {"human_train", "holdout", "set_aside"}


# --- checks that did not get their turn -----------------------------------------------------------


def materialised_unchecked(dataset: str, stages: list[str]) -> None:
    """What a kill leaves between a stage and its check: the table, and no verdict on it."""
    keys = [dg.AssetKey([dataset, stage]) for stage in stages]
    checks = dg.AssetSelection.checks(*(dg.AssetCheckKey(key, "no_leakage") for key in keys))
    selection = dg.AssetSelection.assets(*keys) - checks
    job = dg.define_asset_job("unchecked", selection=selection)
    definitions = dg.Definitions.merge(location(), dg.Definitions(jobs=[job]))
    with dg.DagsterInstance.get() as instance:
        result = definitions.resolve_job_def("unchecked").execute_in_process(instance=instance)
    assert result.success


def test_a_stage_whose_blocking_check_never_ran_is_not_built_upon(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_run import run, statuses, table

    with running_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        assert run("tickets", "--until", "plan").code == 0
        stolen = table(synth_home, "holdout").row(0, named=True)
        seed = {"text": stolen["text"], "label": stolen["label"]}
        (tickets.folder / "seeds.jsonl").write_text(json.dumps(seed))
        materialised_unchecked("tickets", ["seeds", "plan"])
        found = statuses()
        assert (found["seeds"]["status"], found["plan"]["status"]) == ("stale", "stale")
        ran = run()
        assert ran.code == 3
        assert "seeds/no_leakage" in ran.errors
        assert server.requests == []


def test_a_check_that_catches_up_makes_its_stage_fresh(tickets: DatasetFolder) -> None:
    from tests.test_run import run, statuses

    assert run("tickets", "--until", "seeds").code == 0
    materialised_unchecked("tickets", ["seeds"])
    assert statuses()["seeds"]["status"] == "stale"
    key = dg.AssetCheckKey(dg.AssetKey(["tickets", "seeds"]), "no_leakage")
    with dg.DagsterInstance.get() as instance:
        checks = dg.define_asset_job("checks", selection=dg.AssetSelection.checks(key))
        definitions = dg.Definitions.merge(location(), dg.Definitions(jobs=[checks]))
        assert definitions.resolve_job_def("checks").execute_in_process(instance=instance).success
    assert statuses()["seeds"]["status"] == "fresh"
