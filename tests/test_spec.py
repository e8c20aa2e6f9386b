"""What a user gets told about a spec, its prompt and its seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from synth_assets.errors import SpecError, SpecProblem
from synth_assets.spec.fingerprint import SHAPES, code_version
from synth_assets.spec.load import Dataset, discover, load_dataset
from tests.datasets import DatasetFolder


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    made = DatasetFolder(tmp_path / "defs" / "tickets")
    made.write()
    return made


def loaded(folder: DatasetFolder) -> Dataset:
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    return dataset


def only_problem(folder: DatasetFolder) -> SpecProblem:
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    assert len(caught.value.problems) == 1, str(caught.value)
    return caught.value.problems[0]


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_a_good_spec_loads(folder: DatasetFolder) -> None:
    assert loaded(folder).name == "tickets"


def test_an_unknown_key_is_named_with_its_line_and_the_likely_key(folder: DatasetFolder) -> None:
    folder.edit("generate.temprature", 0.5)
    problem = only_problem(folder)
    assert problem.line == line_of(folder.defs_file, "temprature")
    assert problem.key == "generate.temprature"
    assert "unknown key" in problem.problem
    assert "temperature" in problem.fix


def test_a_wrong_type_is_not_converted(folder: DatasetFolder) -> None:
    folder.edit("generate.rows_per_call", "5")
    problem = only_problem(folder)
    assert problem.key == "generate.rows_per_call"
    assert problem.value == "'5'"
    assert problem.line == line_of(folder.defs_file, "rows_per_call")
    assert "whole number" in problem.fix


def test_a_missing_key_is_named(folder: DatasetFolder) -> None:
    del folder.attributes["generate"]["target"]
    folder.write_spec()
    problem = only_problem(folder)
    assert problem.key == "generate.target"
    assert "missing" in problem.problem


def test_an_impossible_share_is_refused(folder: DatasetFolder) -> None:
    folder.edit("partition", {"holdout": 0.7, "validation": 0.4})
    problem = only_problem(folder)
    assert problem.key == "partition.holdout"
    assert problem.line == line_of(folder.defs_file, "holdout")
    assert "0.7 + 0.4" in problem.value


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1])
def test_a_share_outside_zero_and_one_is_refused(folder: DatasetFolder, share: float) -> None:
    folder.edit("generate.target", {"synthetic_share": share})
    problem = only_problem(folder)
    assert problem.key == "generate.target.synthetic_share"
    assert problem.value == str(share)


def test_an_unknown_label_in_a_target_is_refused(folder: DatasetFolder) -> None:
    folder.edit("generate.target", {"per_label": {"billing": 3, "biling": 4}})
    problem = only_problem(folder)
    assert problem.line == line_of(folder.defs_file, "biling")
    assert "billing" in problem.fix


def test_a_target_of_no_known_kind_says_which_there_are(folder: DatasetFolder) -> None:
    folder.edit("generate.target", {"percent": 3})
    problem = only_problem(folder)
    assert problem.key == "generate.target"
    assert "synthetic_share" in problem.problem


def test_structured_output_of_a_base_model_is_refused(folder: DatasetFolder) -> None:
    folder.edit("generate.style", "continue")
    folder.edit("generate.output", "json_schema")
    problem = only_problem(folder)
    assert (problem.key, problem.value) == ("generate.output", "'json_schema'")


def test_an_owner_that_dagster_would_refuse_is_refused_first(folder: DatasetFolder) -> None:
    folder.edit("owners", ["maintenance"])
    problem = only_problem(folder)
    assert problem.key == "owners.0"
    assert problem.value == "'maintenance'"
    assert "team:" in problem.fix


def test_a_missing_prompt_names_the_file(folder: DatasetFolder) -> None:
    folder.edit("generate.prompt", "other.j2")
    problem = only_problem(folder)
    assert problem.line == line_of(folder.defs_file, "prompt")
    assert "other.j2" in problem.value


def test_an_undefined_template_variable_is_named_with_its_line(folder: DatasetFolder) -> None:
    folder.prompt = "Write rows.\n\nFor {{ lable }}.\n"
    folder.write()
    problem = only_problem(folder)
    assert (problem.line, problem.key) == (3, "lable")
    assert "label" in problem.fix


def test_an_undeclared_attribute_in_a_prompt_is_found_before_a_run(folder: DatasetFolder) -> None:
    folder.prompt = "one\n{{ attributes.tone }}\n"
    folder.write()
    problem = only_problem(folder)
    assert problem.line == 2
    assert "tone" in problem.problem


def test_a_template_syntax_error_has_its_line(folder: DatasetFolder) -> None:
    folder.prompt = "one\n{% for x in %}\n"
    folder.write()
    assert only_problem(folder).line == 2


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ examples.append('x') }}", "{{ self.__init__.__globals__ }}"],
)
def test_a_prompt_cannot_leave_its_sandbox(folder: DatasetFolder, attack: str) -> None:
    folder.prompt = attack
    folder.write()
    assert "cannot be rendered" in only_problem(folder).problem


def test_broken_yaml_has_a_line_and_no_traceback(folder: DatasetFolder) -> None:
    folder.defs_file.write_text("type: synth_assets.SyntheticDataset\nattributes:\n  a: [1, 2\n")
    problem = only_problem(folder)
    assert problem.line >= 3
    assert "not valid YAML" in problem.problem


def test_a_key_written_twice_is_refused(folder: DatasetFolder) -> None:
    text = folder.defs_file.read_text() + "  random_seed: 1\n  random_seed: 2\n"
    folder.defs_file.write_text(text)
    problem = only_problem(folder)
    assert problem.key == "random_seed"
    assert problem.line == len(text.splitlines())


def test_every_mistake_is_told_at_once(folder: DatasetFolder) -> None:
    folder.edit("generate.temperature", "hot")
    folder.edit("partition.holdout", "much")
    with pytest.raises(SpecError) as caught:
        load_dataset(folder.folder)
    assert {p.key for p in caught.value.problems} == {"generate.temperature", "partition.holdout"}


def test_a_seed_with_an_unknown_label_names_its_line(folder: DatasetFolder) -> None:
    (folder.folder / "seeds.jsonl").write_text(
        '{"text": "fine", "label": "billing"}\n{"text": "bad", "label": "biling"}\n'
    )
    problem = only_problem(folder)
    assert (Path(problem.file).name, problem.line, problem.key) == ("seeds.jsonl", 2, "label")


def test_a_duplicate_dataset_name_breaks_only_the_second(tmp_path: Path) -> None:
    for root in ("a", "b"):
        DatasetFolder(tmp_path / root / "tickets").write()
    found = discover([tmp_path / "a", tmp_path / "b"])
    assert found.datasets["tickets"].folder == tmp_path / "a" / "tickets"
    assert [b.folder for b in found.broken] == [tmp_path / "b" / "tickets"]
    assert "exists already" in str(found.broken[0].error)


def test_one_broken_dataset_leaves_the_others_loaded(tmp_path: Path) -> None:
    DatasetFolder(tmp_path / "good").write()
    bad = DatasetFolder(tmp_path / "bad")
    bad.write()
    bad.defs_file.write_text("type: synth_assets.SyntheticDataset\nattributes: {")
    found = discover([tmp_path])
    assert list(found.datasets) == ["good"]
    assert [(b.name, b.parsed) for b in found.broken] == [("bad", False)]


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("generate.temperature", 0.5, {"candidates"}),
        ("generate.rows_per_call", 7, {"plan"}),
        ("generate.timeout_s", 7.0, set()),
        ("generate.concurrency", 3, set()),
        ("owners", ["team:x"], set()),
        ("description", "other", {"release"}),
        ("blend.synthetic_share", 0.5, {"blend"}),
        ("measure.repeats", 9, {"contribution"}),
        ("task.labels", {"billing": "cash", "delivery": "parcels", "login": "access"}, {"plan"}),
        ("validate.near_duplicate", 0.9, {"candidates", "synthetic"}),
    ],
)
def test_a_declared_value_moves_exactly_the_stages_it_shapes(
    folder: DatasetFolder, path: str, value: object, changed: set[str]
) -> None:
    before = {stage: code_version(loaded(folder), stage) for stage in SHAPES}
    folder.edit(path, value)
    after = {stage: code_version(loaded(folder), stage) for stage in SHAPES}
    assert {stage for stage in SHAPES if before[stage] != after[stage]} == changed


def test_the_prompts_text_moves_the_plan_and_its_file_name_does_not(folder: DatasetFolder) -> None:
    before = code_version(loaded(folder), "plan")
    (folder.folder / "renamed.j2").write_text(folder.prompt)
    folder.edit("generate.prompt", "renamed.j2")
    assert code_version(loaded(folder), "plan") == before
    (folder.folder / "renamed.j2").write_text(folder.prompt + "!")
    assert code_version(loaded(folder), "plan") != before
