"""What a user gets told about a source, and what of it is part of a version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synth_assets.errors import SpecError
from synth_assets.spec.fingerprint import EXCLUDED, SHAPES, code_version, covered, declared_paths
from synth_assets.spec.load import load_dataset
from tests.datasets import DatasetFolder

SQL: dict[str, Any] = {"kind": "sql", "url_env": "DB", "table": "tickets"}
REST: dict[str, Any] = {"kind": "rest", "base_url": "https://api.example.org/v1", "path": "tickets"}
HUB: dict[str, Any] = {"kind": "huggingface", "repo": "org/tickets", "path": "data/*.parquet"}
FILES: dict[str, Any] = {"kind": "files", "path": "human.csv"}
PASSWORD = "pw-Zq81"


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    made = DatasetFolder(tmp_path / "defs" / "tickets")
    made.write()
    return made


@pytest.mark.parametrize(
    "source",
    [
        FILES | {"path": "s3://bucket/*.csv", "name": "desk"},
        FILES | {"columns": {"age": "integer"}, "extra_columns": "freeze"},
        SQL,
        SQL | {"cursor": "changed", "primary_key": ["id"], "full_every": 7},
        {"kind": "sql", "url_env": "DB", "query": "SELECT 1", "version_query": "SELECT 2"},
        REST | {"params": {"size": 5, "all": True}, "records": "data.items"},
        REST | {"pagination": {"kind": "page_number"}, "auth": {"kind": "bearer", "env": "T"}},
        REST | {"pagination": {"kind": "offset", "limit": 50, "total": "meta.total"}},
        REST | {"pagination": {"kind": "cursor", "next": "meta.next", "param": "after"}},
        REST | {"pagination": {"kind": "link_header"}},
        REST | {"pagination": {"kind": "json_link", "next": "links.next"}},
        REST | {"auth": {"kind": "header", "name": "X-Key", "env": "T"}},
        HUB | {"revision": "a" * 40},
    ],
)
def test_every_kind_of_source_loads_and_each_of_its_keys_is_accounted_for(
    folder: DatasetFolder, source: dict[str, Any]
) -> None:
    folder.edit("source", source)
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    assert [found.kind for found in dataset.spec.human_sources] == [source["kind"]]
    entries = [entry for paths in SHAPES.values() for entry in paths] + list(EXCLUDED)
    loose = [p for p in declared_paths(dataset) if not any(covered(p, e) for e in entries)]
    assert loose == []


@pytest.mark.parametrize(
    ("source", "key", "told", "fix"),
    [
        (FILES | {"pth": "x"}, "source.pth", "unknown key", "did you mean path?"),
        (SQL | {"delimiter": ";"}, "source.delimiter", "unknown key", "url_env"),
        (SQL | {"url": "sqlite://"}, "source.url", "unknown key", "url_env"),
        ({"path": "human.csv"}, "source.kind", "missing", "one of files, package, huggingface"),
        (FILES | {"kind": "csv"}, "source", "", "use 'files', 'package'"),
        (SQL | {"query": "SELECT 1"}, "source.query", "either a table or a query", "keep one"),
        (
            {"kind": "sql", "url_env": "DB"},
            "source.table",
            "either a table or a query",
            "keep one",
        ),
        (SQL | {"cursor": "changed"}, "source.cursor", "primary_key", "add primary_key"),
        (SQL | {"full_every": 3}, "source.full_every", "together with cursor", "add cursor"),
        (SQL | {"primary_key": ["id"]}, "source.primary_key", "together with cursor", ""),
        (REST | {"base_url": "api.example.org"}, "source.base_url", "http or https", "https://"),
        (REST | {"records": "a[["}, "source.records", "not a JSON path", "data.items"),
        (
            REST | {"pagination": {"kind": "pages"}},
            "source.pagination",
            "",
            "use 'page_number', 'offset'",
        ),
        (REST | {"pagination": {"kind": "offset"}}, "source.pagination.limit", "missing", "limit"),
        (REST | {"retries": -1}, "source.retries", "greater than or equal to 0", ""),
        (HUB | {"repo": "tickets"}, "source.repo", "", "write it as"),
        (FILES | {"columns": {"age": "int"}}, "source.columns.age", "", "'integer'"),
        (FILES | {"extra_columns": "keep"}, "source.extra_columns", "", "'freeze'"),
        (FILES | {"role": "synthetic"}, "source.role", "need human rows", "add a source"),
        (FILES | {"role": "machine"}, "source.role", "", "'human' or 'synthetic'"),
        (FILES | {"provenance": {}}, "source.provenance", "human rows", "add role: synthetic"),
        (
            FILES | {"role": "synthetic", "id_column": "id"},
            "source.id_column",
            "synthetic rows",
            "source of the human rows",
        ),
    ],
)
def test_a_mistake_in_a_source_is_named_with_its_line_and_the_fix(
    folder: DatasetFolder, source: dict[str, Any], key: str, told: str, fix: str
) -> None:
    folder.edit("source", source)
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    [problem] = caught.value.problems
    assert problem.key == key
    assert told in problem.problem
    assert fix in problem.fix
    node, deepest = folder.attributes, ""
    for part in key.split("."):
        if isinstance(node, dict) and part in node:
            node, deepest = node[part], part
    assert folder.defs_file.read_text().splitlines()[problem.line - 1].strip().startswith(deepest)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (SQL | {"url_env": f"postgresql://joe:{PASSWORD}@host/db"}, "source.url_env"),
        (FILES | {"path": f"https://joe:{PASSWORD}@host/a.csv"}, "source.path"),
        (REST | {"base_url": f"https://joe:{PASSWORD}@host/v1"}, "source.base_url"),
        (REST | {"auth": {"kind": "bearer", "env": f"Bearer {PASSWORD}"}}, "source.auth.env"),
    ],
)
def test_a_secret_in_the_spec_is_refused_and_not_repeated(
    folder: DatasetFolder, source: dict[str, Any], key: str
) -> None:
    folder.edit("source", source)
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("sources", "key", "told"),
    [
        ([FILES], "sources.0.name", "a name of its own"),
        ([FILES | {"name": "a"}, SQL | {"name": "a"}], "sources.0.name", "a name of its own"),
        ([FILES | {"name": "a/b"}], "sources.0.name", ""),
        ([FILES | {"name": "a", "pth": 1}], "sources.0.pth", "unknown key"),
        ([{"name": "a", "path": "x"}], "sources.0.kind", "missing"),
        ([], "source", "either source or sources"),
    ],
)
def test_mistakes_in_several_sources_are_located(
    folder: DatasetFolder, sources: list[dict[str, Any]], key: str, told: str
) -> None:
    del folder.attributes["source"]
    folder.edit("sources", sources)
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    assert caught.value.problems[0].key == key
    assert told in caught.value.problems[0].problem


def test_source_and_sources_together_are_refused(folder: DatasetFolder) -> None:
    folder.edit("sources", [FILES | {"name": "a"}])
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    assert [problem.key for problem in caught.value.problems] == ["sources"]


def test_sources_that_are_all_synthetic_are_refused_once(folder: DatasetFolder) -> None:
    del folder.attributes["source"]
    made = [FILES | {"name": name, "role": "synthetic"} for name in ("a", "b")]
    folder.edit("sources", made)
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    [problem] = caught.value.problems
    assert problem.key == "sources"
    assert "human rows" in problem.problem


def test_a_source_of_one_role_moves_no_stage_of_the_other(folder: DatasetFolder) -> None:
    def versions(*sources: dict[str, Any]) -> dict[str, str]:
        folder.edit("sources", list(sources))
        dataset = load_dataset(folder.folder)
        assert dataset is not None
        return {stage: code_version(dataset, stage) for stage in SHAPES}

    def moved(old: dict[str, str], new: dict[str, str]) -> set[str]:
        return {stage for stage in SHAPES if old[stage] != new[stage]}

    del folder.attributes["source"]
    human, bought = FILES | {"name": "desk"}, {**FILES, "name": "bought", "role": "synthetic"}
    alone, both = versions(human), versions(human, bought)
    assert moved(alone, both) == {"imported_raw", "imported", "release"}  # its licence
    assert moved(both, versions(human, bought | {"path": "x.csv"})) == {"imported_raw"}
    told = bought | {"provenance": {"parents_column": "from"}}
    assert moved(both, versions(human, told)) == {"imported_raw", "imported"}
    assert moved(both, versions(human | {"path": "*.csv"}, bought)) == {"human_raw"}
    named = human | {"id_column": "id"}
    assert moved(both, versions(named, bought)) == {"human_raw", "imported"}


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("query", "SELECT 2", {"human_raw"}),
        ("columns", {"body": "text"}, {"human_raw"}),
        ("version_query", "SELECT 1", set()),
        ("license", "CC0", {"release"}),
    ],
)
def test_a_key_of_a_source_moves_exactly_the_stages_it_shapes(
    folder: DatasetFolder, key: str, value: Any, changed: set[str]
) -> None:
    def versions() -> dict[str, str]:
        dataset = load_dataset(folder.folder)
        assert dataset is not None
        return {stage: code_version(dataset, stage) for stage in SHAPES}

    folder.edit("source", {"kind": "sql", "url_env": "DB", "query": "SELECT 1"})
    before = versions()
    folder.edit(f"source.{key}", value)
    after = versions()
    assert {stage for stage in SHAPES if before[stage] != after[stage]} == changed
