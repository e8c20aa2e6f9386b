"""Every declared value shapes the stages that the tables name, or is left out for a reason."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from synth_assets.spec.fingerprint import (
    ADDED,
    EXCLUDED,
    REVISIONS,
    SHAPES,
    code_version,
    covered,
    declared_paths,
)
from synth_assets.spec.load import Dataset
from synth_assets.spec.model import DatasetSpec
from synth_assets.spec.prompt import PromptTemplate
from tests.datasets import DatasetFolder

FILES = {"kind": "files", "path": "human.csv", "columns": {"body": "text"}, "name": "a"}
SQL = {"kind": "sql", "url_env": "DB", "cursor": "at", "primary_key": ["id"], "full_every": 3}
REST = {"kind": "rest", "base_url": "https://h/v1", "path": "p", "params": {"q": 1}}
PAGES: list[dict[str, Any]] = [
    {"kind": "page_number", "total_pages": "a", "has_more": "b"},
    {"kind": "offset", "limit": 5, "total": "a", "has_more": "b"},
    {"kind": "cursor", "next": "a"},
    {"kind": "link_header"},
    {"kind": "json_link", "next": "a"},
]
# One of every kind that there is, with every key that another needs.
SOURCES: list[dict[str, Any]] = [
    FILES,
    {"kind": "package", "package": "a==1", "sha256": "0" * 64, "member": "m.csv"},
    {"kind": "huggingface", "repo": "o/n", "path": "a.csv"},
    SQL | {"table": "t", "version_query": "SELECT 1"},
    SQL | {"query": "SELECT 1"},
    *(REST | {"pagination": pages, "auth": {"kind": "bearer", "env": "T"}} for pages in PAGES),
    REST | {"records": "data", "auth": {"kind": "header", "name": "X-Key", "env": "T"}},
]
TARGETS: list[dict[str, Any]] = [
    {"balance": "to_largest"},
    {"per_label": 5},
    {"at_least": 5},
    {"synthetic_share": 0.5},
]
ATTRIBUTES: dict[str, Any] = DatasetFolder(Path("tickets")).attributes
GENERATE = ATTRIBUTES["generate"] | {
    "attributes": {"tone": ["calm"]},
    "budget": {"usd": 1.0, "tokens": 5, "calls": 5},
    "prices": {"input_per_million": 1.0, "output_per_million": 1.0},
}
# What is declared of every synthetic source beside its kind's keys.
IMPORT = {
    "name": "b",
    "role": "synthetic",
    "provenance": {
        "model": "m",
        "model_column": "by",
        "parents_column": "from",
        "attributes_columns": ["tone"],
    },
}
# Another value, where none can be made of the one that stands there.
OTHER: dict[str, Any] = {
    "task.labels": {"billing": "money", "delivery": "parcels", "login": "another description"},
    "source.format": "jsonl",
    "source.package": "a==2",
    "source.sha256": "1" * 64,
    "source.delimiter": ";",
    "source.columns": {"body": "json"},
    "source.extra_columns": "freeze",
    "source.params": {"q": 2},
    "validate.derived_from_unused": "allow",
    "seeds.file": "other.jsonl",
    "seeds.strategy": "random",
    "blend.class_weights": "balanced",
    "validate.same_text": "words",
    "human.limit_train": 7,
    "partition.near_copies": "keep",
    "generate.target.balance": None,
    "generate.attributes": {"tone": ["angry"]},
    "generate.labels_without_human_rows": "generate",
    "generate.system": "Be kind.",
    "generate.style": "continue",
    "generate.output": "tool",
    "generate.mode": "batch",
    "generate.endpoint.base_url": "http://other/v1",
    "generate.top_p": 0.5,
    "generate.presence_penalty": 0.5,
    "generate.frequency_penalty": 0.5,
    "generate.requests_per_min": 5,
    "generate.tokens_per_min": 5,
    "blend.synthetic_share": 0.5,
    "measure.student": "tfidf_nb",
    "release.require": ["exact_counts"],
    "owners": ["team:x"],
    "refresh.policy": "on_change",
    "refresh.observe_every": "1h",
}
# Values that there is one of only: the name of a kind.
NAMES_OF_KINDS = {
    "task.kind",
    *(
        f"{root}.{name}"
        for root in ("source", "import")
        for name in ("kind", "role", "pagination.kind", "auth.kind")
    ),
}
# Values that a source of the role cannot have.
OF_THE_OTHER_ROLE = {"source.provenance", "import.id_column", "import.split"}
# Values that only change together with others: tests of their own.
TOGETHER = {"source.split", "generate.target.all"}
# Where the data itself says which side a row is on.
FOLDS: dict[str, Any] = {"column": "fold", "holdout": ["test"], "train": ["old", "new"]}
# The name of a file that is read: what is in it counts.
FILE_NAMES = {"generate.prompt"}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that can be declared, as a path: through unions, and lists of sections."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}".replace("sources", "source")
        sections = list(models_in(field.annotation))
        for section in sections:
            yield from leaves(section, f"{path}.")
        if not sections:
            yield path


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


PATHS = sorted(
    {path.replace("source.", root, 1) if path.startswith("source.") else path
     for path in leaves(DatasetSpec) for root in ("source.", "import.")}
)  # fmt: skip
SHAPED = [p for p in PATHS if any(covered(p, e) for names in SHAPES.values() for e in names)]


def declared() -> Iterator[dict[str, Any]]:
    """Declarations that use every key between them."""
    yield from (ATTRIBUTES | {"generate": GENERATE, "source": source} for source in SOURCES)
    human = {name: value for name, value in ATTRIBUTES.items() if name != "source"}
    for source in SOURCES:
        yield human | {"sources": [FILES | {"id_column": "id"}, source | IMPORT]}
    for target in TARGETS:
        yield ATTRIBUTES | {"generate": GENERATE | {"target": target}}
    yield ATTRIBUTES | {"partition": FOLDS}


def whole(attributes: dict[str, Any]) -> dict[str, Any]:
    """With every default spelled out."""
    return DatasetSpec.model_validate(attributes).model_dump(mode="json", by_alias=True)


DECLARED = [whole(attributes) for attributes in declared()]


def versions(attributes: dict[str, Any], prompt: str = "x", **more: Any) -> dict[str, str]:
    template = PromptTemplate(Path("prompt.md.j2"), prompt)
    spec = DatasetSpec.model_validate(attributes)
    dataset = Dataset("tickets", Path("tickets"), spec, template, **more)
    return {stage: code_version(dataset, stage) for stage in SHAPES}


def another(path: str, value: Any) -> Any:
    if (known := path.replace("import.", "source.", 1)) in OTHER:
        return OTHER[known]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.75
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "x"]
    raise AssertionError(f"{path}: which other value than {value!r}? Say it in OTHER")


def at(attributes: dict[str, Any], path: str) -> tuple[dict[str, Any], str] | None:
    """The section in which a path stands, and the key there."""
    *parents, key = path.split(".")
    node: Any = attributes
    if parents and parents[0] in ("source", "import") and attributes["sources"]:
        # The last of several is the synthetic one.
        node = dict(zip(("source", "import"), attributes["sources"], strict=True))
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return (node, key) if isinstance(node, dict) and key in node else None


def with_another(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A declaration, and the same with another value at ``path``."""
    for before in DECLARED:
        place = at(before, path)
        if place is None or (
            place[0][place[1]] is None and path.replace("import.", "source.", 1) not in OTHER
        ):
            continue
        after = deepcopy(before)
        section, key = at(after, path) or ({}, "")
        section[key] = another(path, section[key])
        return before, after
    raise AssertionError(f"no declaration of this test uses {path}")


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = versions(before), versions(after)
    return {stage for stage in SHAPES if old[stage] != new[stage]}


def shaped_by(path: str) -> set[str]:
    """The stages that the table says, where only names count (``x.*``) left out."""
    return {
        stage
        for stage, names in SHAPES.items()
        if any(covered(path, name) for name in names if not name.endswith(".*"))
    }


@pytest.mark.parametrize("path", PATHS)
def test_a_declared_value_shapes_a_stage_or_is_excluded_with_a_reason(path: str) -> None:
    reasons = [reason for entry, reason in EXCLUDED.items() if covered(path, entry)]
    assert (path in SHAPED) != bool(reasons), "in one of the tables, not in both"
    assert all(reasons)


def test_the_fingerprint_tables_name_only_what_can_be_declared() -> None:
    entries = {entry for names in SHAPES.values() for entry in names} | set(EXCLUDED)
    assert [e for e in sorted(entries) if not any(covered(p, e) for p in PATHS)] == []
    assert REVISIONS.keys() == SHAPES.keys()


@pytest.mark.parametrize("path", sorted(set(SHAPED) - NAMES_OF_KINDS - FILE_NAMES - TOGETHER))
def test_another_value_moves_exactly_the_stages_that_the_table_names(path: str) -> None:
    if path == "generate.target.balance":
        before, after = DECLARED[-5], DECLARED[-4]  # there is one balance: another kind of target
    else:
        before, after = with_another(path)
    assert moved(before, after) == shaped_by(path)


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ({}, {"provenance": {"model": "m"}}),
        ({"name": "b", "role": "synthetic"}, {"id_column": "id"}),
        ({"name": "b", "role": "synthetic"}, {"split": "train"}),
    ],
)
def test_a_key_of_the_other_role_is_refused(source: dict[str, Any], more: dict[str, Any]) -> None:
    human = {name: value for name, value in ATTRIBUTES.items() if name != "source"}
    several = human | {"sources": [FILES, FILES | {"name": "c"} | source]}
    DatasetSpec.model_validate(several)
    several["sources"][1] |= more
    with pytest.raises(ValueError, match="this says nothing about"):
        DatasetSpec.model_validate(several)


@pytest.mark.parametrize("entry", sorted(EXCLUDED.keys() - OF_THE_OTHER_ROLE))
def test_an_excluded_value_moves_no_stage(entry: str) -> None:
    tried = 0
    for path in (path for path in PATHS if covered(path, entry)):
        try:
            before, after = with_another(path)
            DatasetSpec.model_validate(after)
        except (AssertionError, ValueError):
            continue  # it takes more than this value to make another declaration that is good
        assert moved(before, after) == set(), path
        tried += 1
    assert tried


def test_names_of_labels_move_what_reads_rows_and_their_descriptions_the_plan_only() -> None:
    renamed = deepcopy(DECLARED[0])
    renamed["task"]["labels"]["logon"] = renamed["task"]["labels"].pop("login")
    names = {stage for stage, entries in SHAPES.items() if "task.labels.*" in entries}
    assert moved(DECLARED[0], renamed) == names | {"plan"}


def test_a_key_of_one_of_several_sources_counts_as_a_single_source_s_does() -> None:
    several = whole(
        {name: value for name, value in ATTRIBUTES.items() if name != "source"}
        | {"sources": [FILES, REST | {"name": "b", "auth": {"kind": "bearer", "env": "T"}}]}
    )
    for key, value, stages in (
        ("timeout_s", 5.0, set()),
        ("retries", 1, set()),
        ("license", "CC0", {"release"}),
        ("path", "q", {"human_raw"}),
    ):
        other = deepcopy(several)
        other["sources"][1][key] = value
        assert moved(several, other) == stages, key
    swapped = several | {"sources": several["sources"][::-1]}
    assert moved(several, swapped) >= {"human_raw"}
    spec = DatasetSpec.model_validate(several)
    template = PromptTemplate(Path("p"), "x")
    assert set(declared_paths(Dataset("t", Path("t"), spec, template))) <= {
        *PATHS, "source.columns.body", "source.params.q", "generate.attributes",
        "task.labels.billing", "task.labels.delivery", "task.labels.login", "source.pagination",
        "source.auth", "source.provenance", "generate.budget", "generate.prices",
    }  # fmt: skip


def test_what_is_in_the_files_counts_and_not_what_they_are_called() -> None:
    attributes = DECLARED[0]
    renamed = deepcopy(attributes)
    renamed["generate"]["prompt"] = "renamed.j2"
    assert moved(attributes, renamed) == set()
    old, seeds = versions(attributes), ({"text": "a", "label": "login"},)
    for stage, new in (
        ("plan", versions(attributes, "y")),
        ("seeds", versions(attributes, handwritten_seeds=seeds)),
    ):
        assert {name for name in SHAPES if old[name] != new[name]} == {stage}


@pytest.mark.parametrize("stage", SHAPES)
def test_a_bumped_revision_moves_its_stage_only(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = versions(DECLARED[0])
    monkeypatch.setitem(REVISIONS, stage, REVISIONS[stage] + 1)
    new = versions(DECLARED[0])
    assert {name for name in SHAPES if old[name] != new[name]} == {stage}


def of_sources(*sides: str | None, **more: Any) -> dict[str, Any]:
    """A declaration with a human source for each side."""
    human = {
        name: value for name, value in ATTRIBUTES.items() if name not in ("source", "partition")
    }
    named = [FILES | {"name": f"s{n}"} | ({"split": s} if s else {}) for n, s in enumerate(sides)]
    return human | {"sources": named} | more


def test_the_side_of_a_source_moves_the_rows_and_not_what_is_landed() -> None:
    three = of_sources("train", "holdout", "validation")
    assert moved(three, of_sources("train", "holdout", "train")) == {"human", "partition"}
    assert moved(three, of_sources("holdout", "train", "validation")) == {"human"}
    assert moved(three, of_sources(None, None, None)) == {"human", "partition"}


def test_the_values_of_a_fold_move_the_rows_and_the_sides() -> None:
    before = ATTRIBUTES | {"partition": FOLDS}
    after = ATTRIBUTES | {"partition": FOLDS | {"holdout": ["test", "dev"]}}
    assert moved(before, after) == {"human", "partition"}
    shares = [ATTRIBUTES | {"partition": {"holdout": share}} for share in (0.2, 0.3)]
    assert moved(*shares) == {"partition"}


@pytest.mark.parametrize(
    ("declared", "counted"),
    [
        ({}, False),
        ({"partition": {"near_copies": "keep"}}, True),
        ({"validate": {"derived_from_unused": "allow"}}, True),
    ],
)
def test_a_sentence_that_counts_copies_is_made_anew_for_another_threshold(
    declared: dict[str, Any], counted: bool
) -> None:
    before, after = (
        ATTRIBUTES
        | declared
        | {"validate": declared.get("validate", {}) | {"decontaminate": limit}}
        for limit in (0.6, 0.9)
    )
    assert ("contribution" in moved(before, after)) == counted


def test_without_generation_what_was_made_of_generated_rows_is_made_anew() -> None:
    imports = of_sources(None, None)
    imports["sources"][1] |= {"role": "synthetic"}
    alone = {name: value for name, value in imports.items() if name != "generate"}
    anew = {"synthetic", "blend", "release"}
    of_generation = {"plan", "candidates"}  # which another dataset does not have
    assert moved(imports, alone) - of_generation == anew
    every = imports | {"generate": {"target": {"all": True}}}
    assert moved(imports, every) - of_generation == anew
    assert moved(every, alone) - of_generation == set()


def test_a_key_that_came_later_moves_nothing_while_it_is_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = [DECLARED[0], of_sources(None, None)]
    now = [versions(attributes) for attributes in datasets]
    for stage, entries in SHAPES.items():
        monkeypatch.setitem(SHAPES, stage, tuple(e for e in entries if e not in ADDED))
    assert [versions(attributes) for attributes in datasets] == now
    assert {e for entries in SHAPES.values() for e in entries}.isdisjoint(ADDED)
