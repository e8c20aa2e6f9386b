"""What Dagster is told of columns and code: complete, true of what is stored, and cheap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.metadata.source_code import CodeReferencesMetadataSet

from schemas.human import human_rows
from schemas.synthetic import synthetic_rows
from schemas.training import training_rows
from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.references import names_of
from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.assets.stages import SOURCE
from synth_assets.lifecycle.columns import CARRIED, COMPUTED, column_parents
from synth_assets.lifecycle.plan import SCHEMA as PLAN_SCHEMA
from synth_assets.spec.load import Dataset, load_dataset
from synth_assets.terminal import opened_instance
from tests.release_fixtures import two_releases  # noqa: F401
from tests.release_support import Place

PAYLOAD = ("text", "label")


@pytest.fixture(scope="module")
def place(two_releases: Place) -> Iterator[Place]:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        two_releases.enter(patch)
        yield two_releases


@pytest.fixture(scope="module")
def metadata(place: Place) -> dict[str, Any]:
    """Stage -> metadata of its latest materialisation, as the UI reads it."""
    found = {}
    with opened_instance() as instance:
        for stage in STAGES:
            event = instance.get_latest_materialization_event(dg.AssetKey(["tickets", stage]))
            assert event is not None
            assert event.asset_materialization is not None
            found[stage] = event.asset_materialization.metadata
    return found


@pytest.fixture(scope="module")
def dataset(place: Place) -> Dataset:
    found = load_dataset(place.dataset)
    assert found is not None
    return found


def lineage(metadata: dict[str, Any], stage: str) -> dict[str, list[tuple[str, str]]]:
    found = metadata[stage]["dagster/column_lineage"].value
    return {
        column: [(dep.asset_key.path[-1], dep.column_name) for dep in deps]
        for column, deps in found.deps_by_column.items()
    }


def columns(metadata: dict[str, Any], stage: str) -> list[str]:
    return [column.name for column in metadata[stage]["dagster/column_schema"].value.columns]


def test_every_stored_column_has_its_lineage_and_its_kind(
    place: Place, metadata: dict[str, Any]
) -> None:
    for stage in STAGES:
        path = metadata[stage]["path"].value
        stored = pl.read_parquet_schema(path)
        assert columns(metadata, stage) == list(stored), stage
        assert set(lineage(metadata, stage)) == set(stored), stage


def test_every_parent_column_is_a_column_of_a_parent(metadata: dict[str, Any]) -> None:
    for stage, declared in STAGES.items():
        for column, parents in lineage(metadata, stage).items():
            for parent, name in parents:
                assert parent in declared.parents, (stage, column)
                if parent != SOURCE:
                    assert name in columns(metadata, parent), (stage, column)


def test_the_table_names_no_column_that_is_not_stored(
    metadata: dict[str, Any], dataset: Dataset
) -> None:
    for stage in {*CARRIED, *COMPUTED}:
        assert set(column_parents(stage, names_of(dataset))) == set(columns(metadata, stage))


def test_the_table_has_every_column_of_the_contracts(dataset: Dataset) -> None:
    contracts = {
        "human": human_rows(PAYLOAD, {}),
        "human_train": human_rows(PAYLOAD, {}, ["train"]),
        "holdout": human_rows(PAYLOAD, {}, ["holdout"]),
        "synthetic": synthetic_rows(PAYLOAD, {}),
        "train": training_rows(PAYLOAD, {}, split="train", origins=["human", "synthetic"]),
        "validation": training_rows(PAYLOAD, {}, split="validation", origins=["human"]),
        "eval": training_rows(PAYLOAD, {}, split="eval", origins=["human"]),
    }
    for stage, contract in contracts.items():
        assert set(column_parents(stage, names_of(dataset))) == set(contract.columns), stage
    assert set(column_parents("plan", names_of(dataset))) == set(PLAN_SCHEMA)


def test_a_training_text_leads_back_to_the_cell_of_the_source(metadata: dict[str, Any]) -> None:
    seen, todo = set(), [("train", "text")]
    while todo:
        stage, column = todo.pop()
        if stage != SOURCE and (stage, column) not in seen:
            todo += lineage(metadata, stage)[column]
        seen.add((stage, column))
    assert (SOURCE, "body") in seen
    assert ("plan", "prompt") in seen
    assert ("seeds", "text") in seen
    assert not {one for one in seen if one[0] in ("holdout", "eval", "rejects")}


def test_carried_columns_hold_the_parents_values(place: Place, metadata: dict[str, Any]) -> None:
    tables = {stage: pl.read_parquet(metadata[stage]["path"].value) for stage in STAGES}
    # Hand-written seeds come from a file of the dataset, not from a parent.
    tables["seeds"] = tables["seeds"].filter(pl.col("origin") == "human")
    for stage, parents in CARRIED.items():
        for name in tables[stage].columns:
            holding = [tables[p][name] for p in parents if name in tables[p].columns]
            if all(name in names for names in parents.values()) and len(holding) == len(parents):
                theirs = {str(value) for series in holding for value in series.to_list()}
                mine = {str(value) for value in tables[stage][name].to_list()}
                assert mine <= theirs, (stage, name)


def test_every_asset_names_its_function_and_its_declaration(dataset: Dataset) -> None:
    for stage, asset in specs(dataset).items():
        found = CodeReferencesMetadataSet.extract(asset.metadata).code_references
        assert found is not None, stage
        made, declared, *more = found.code_references
        assert isinstance(made, dg.LocalFileCodeReference)
        assert isinstance(declared, dg.LocalFileCodeReference)
        lines = Path(made.file_path).read_text().splitlines()
        assert made.line_number is not None
        around = "\n".join(lines[made.line_number - 1 : made.line_number + 25])
        assert "@tables(" in around
        assert Path(declared.file_path) == dataset.file
        files = {Path(one.file_path) for one in more if isinstance(one, dg.LocalFileCodeReference)}
        expected = {
            "plan": {dataset.prompt.file},
            "candidates": {dataset.prompt.file},
            "seeds": {dataset.folder / "seeds.jsonl"},
        }
        assert files == expected.get(stage, set())


def test_the_projects_own_datasets_name_their_declaration_once() -> None:
    from synth_assets.definitions import defs

    graph = defs().get_repository_def().asset_graph
    for key in graph.materializable_asset_keys:
        found = CodeReferencesMetadataSet.extract(graph.get(key).metadata).code_references
        assert found is not None
        paths = [one.file_path for one in found.code_references]  # type: ignore[union-attr]
        assert len(paths) == len(set(paths)), key


def test_no_path_of_the_code_or_the_declaration_enters_a_table_or_a_release(
    place: Place, metadata: dict[str, Any]
) -> None:
    code = str(Path(__file__).parent.parent)
    for told in metadata.values():
        assert "dagster/code_references" not in told
    for path in [*place.releases.rglob("*"), *(place.home / "store").rglob("*.parquet")]:
        if path.is_file():
            content = path.read_bytes()
            assert code.encode() not in content
            assert str(place.dataset).encode() not in content


def specs(dataset: Dataset) -> dict[str, dg.AssetSpec]:
    made = list(dataset_definitions(dataset).assets or ())
    return {
        spec.key.path[-1]: spec
        for one in made
        if isinstance(one, dg.AssetsDefinition)
        for spec in one.specs
    }
