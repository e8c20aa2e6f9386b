"""Rows made of human rows that training does not use, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from synth_assets.assets.planning import plan_checks
from synth_assets.assets.workbench import Workbench
from synth_assets.lifecycle.partition import PartitionRules, partition
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.unused import (
    caution,
    lines_of,
    made_of_unused,
    says_unused,
    unused_rows,
)
from synth_assets.run import Session
from synth_assets.settings import defs_roots, home
from synth_assets.sources.files import read_batches
from synth_assets.sources.records import FileFormat
from synth_assets.spec.load import dataset_named, load_dataset
from synth_assets.status import CheckStatus
from synth_assets.tasks.classification import Classification
from synth_assets.terminal import opened_instance
from tests.datasets import DatasetFolder
from tests.test_imports import (
    BOUGHT,
    Tables,
    bring,
    go,
    id_of,
    importing,  # noqa: F401
    made,
)
from tests.test_run import run, statuses

LIMIT = 12


def limited_sides(folder: DatasetFolder) -> tuple[list[str], list[str]]:
    """The texts that training uses, and those beyond the limit."""
    [frame] = read_batches(
        [("h", folder.folder / "human.csv")], FileFormat("csv"), required_columns=["body"]
    )
    task = Classification("body", "topic")
    rows = with_record_id(task.read_human(frame)[0], task.payload, kind=task.kind)
    rules = PartitionRules(0.3, 0.1, "1", 0.6, limit_train=LIMIT)
    parts = partition(rows, rules, text=task.text, stratum=task.stratum)
    used = parts.human_train.filter(split="train")["text"].to_list()
    return used, parts.set_aside.filter(reason="beyond_limit_train")["text"].to_list()


@pytest.fixture
def limited(importing: DatasetFolder) -> DatasetFolder:  # noqa: F811
    """Twelve rows are used for training, all others of that side are beyond the limit."""
    importing.edit("human.limit_train", LIMIT)
    return importing


def checks_of(stage: str) -> list[CheckStatus]:
    """The verdicts on a stage as they stand."""
    with opened_instance() as instance:
        bench = Workbench(home(), notify=print)
        session = Session.open(dataset_named("tickets", defs_roots()), instance, bench)
        return [check for check in session.checks() if check.stage == stage]


def refused(tables: Tables) -> list[str | None]:
    return tables["imported"].sort("source_row")["problem"].to_list()


def test_a_row_of_an_unused_human_row_is_rejected_unless_it_is_allowed(
    limited: DatasetFolder, synth_home: Path
) -> None:
    rows = made(6, "login")
    used, beyond = limited_sides(limited)
    assert (len(used), len(beyond) > 20) == (LIMIT, True)
    one, other = id_of(limited, used[0]), id_of(limited, beyond[0])
    same = next(row["topic"] for row in limited.rows if row["body"] == used[0])
    repeat = {"id": "T-900", "body": used[0].upper() + "!", "topic": same}
    named = [one, f"#{other.lower()}", f"{one}, {other}", beyond[1], "T-900", ""]
    limited.rows.append(repeat)
    limited.write()
    bring(limited, [row | {"from": parent} for row, parent in zip(rows, named, strict=True)])
    go("--until", "imported")
    wanted = [None, "derived_from_unused", "derived_from_unused", "derived_from_unused", None, None]
    assert refused(Tables(synth_home)) == wanted
    limited.edit("validate.derived_from_unused", "allow")
    go("--until", "imported")
    noted = Tables(synth_home)["imported"].sort("source_row")["problem_detail"]
    assert refused(Tables(synth_home)) == [None] * 6
    assert noted.is_null().to_list() == [why is None for why in wanted]


def test_parents_that_nobody_knows_are_a_warning_and_too_many_hold_what_is_below(
    limited: DatasetFolder,
) -> None:
    rows = made(10, "login")
    ids = [row["id"] for row in limited.rows[:9]]
    bring(limited, [r | {"from": p} for r, p in zip(rows, [*ids, "elsewhere-7"], strict=True)])
    go("--until", "imported")
    checks = {check.name: check for check in checks_of("imported")}
    assert (checks["parents_found"].passed, checks["descent_known"].passed) == (False, True)
    assert "1 of 10 parents that bought names" in checks["parents_found"].description
    assert "'elsewhere-7'" in checks["parents_found"].description
    bring(limited, [row | {"from": f"elsewhere-{n}"} for n, row in enumerate(rows)])
    held = run("tickets", "--until", "synthetic")
    assert held.code == 3
    assert "imported/descent_known failed: 10 of 10 parents" in held.errors.replace("\n", " ")
    assert {s["stage"]: s["status"] for s in statuses().values()}["candidates"] == "missing"


@pytest.mark.parametrize(
    ("partition", "looked"),
    [
        ({"column": "fold", "holdout": ["test"], "train": ["one"]}, True),
        ({"column": "fold", "holdout": ["test"]}, True),
        ({"holdout": 0.3}, False),
    ],
)
def test_prompts_are_looked_at_wherever_rows_are_left_out(
    tmp_path: Path, partition: dict[str, object], looked: bool
) -> None:
    folder = DatasetFolder(tmp_path / "tickets")
    folder.write()
    folder.edit("partition", partition)
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    names = {key.name for one in plan_checks(dataset) for key in one.check_keys}
    assert ("no_unused" in names) == looked


@pytest.mark.slow
def test_a_hand_written_seed_that_says_an_unused_row_is_shown_to_no_model(
    tickets: DatasetFolder,
) -> None:
    tickets.edit("human.limit_train", LIMIT)
    text = limited_sides(tickets)[1][0]
    seed = {"text": text.title() + ".", "label": "login"}
    (tickets.folder / "seeds.jsonl").write_text(json.dumps(seed) + "\n")
    held = run("tickets", "--until", "plan")
    assert held.code == 3
    told = held.errors.replace("\n", " ")
    assert "plan/no_unused failed" in told
    assert "validate.derived_from_unused: allow" in told
    tickets.edit("validate.derived_from_unused", "allow")
    assert run("tickets", "--until", "plan").code == 0
    (tickets.folder / "seeds.jsonl").unlink()
    tickets.edit("validate.derived_from_unused", "reject")
    tickets.write_prompt(tickets.prompt + f"\n- {text}\n")
    assert run("tickets", "--until", "plan").code == 3


@pytest.mark.slow
def test_the_contribution_says_how_many_rows_are_made_of_unused_ones(
    limited: DatasetFolder, synth_home: Path
) -> None:
    rows = [row for topic in limited.labels for row in made(20, topic)]
    for row, text in zip(rows[:7], limited_sides(limited)[1], strict=False):
        row["from"] = id_of(limited, text)
    bring(limited, rows)
    limited.edit("validate.derived_from_unused", "allow")
    go("--until", "contribution")
    [told] = checks_of("contribution")
    assert "Of 60 synthetic rows, 7 are made of human rows" in told.description
    train = Tables(synth_home)["train"]
    assert train.filter(source=BOUGHT).height == 60


# --- what is counted --------------------------------------------------------------------------


def test_of_what_is_written_by_hand_only_what_is_nearer_to_an_unused_row_counts() -> None:
    aside = pl.DataFrame({"record_id": ["u1"], "text": ["the lift stops between two floors"]})
    rejects = pl.DataFrame(
        {"source": ["h.csv"] * 2, "source_row": [4, 5], "text": ["two labels for one text", None]},
        schema_overrides={"text": pl.String},
    )
    train = pl.DataFrame({"record_id": ["t1"], "text": ["the lift stops between the two floors"]})
    unused = unused_rows(aside, rejects, text="text")
    assert unused["record_id"].to_list() == ["h.csv:4", "u1"]
    texts = [train["text"][0], "The lift stops between two floors!", "two labels for one text", ""]
    found = says_unused(texts, unused, train, text="text", threshold=0.6)
    assert found.select("row", "unused_id").rows() == [(1, "u1"), (2, "h.csv:4")]
    assert lines_of("a\n\n  b \n", None) == ["a", "b"]


def test_rows_of_unused_parents_and_of_prompts_that_showed_one_are_counted() -> None:
    rows = pl.DataFrame(
        {
            "request_id": ["import:b", "import:b", "r1", "r2"],
            "item": [1, 2, 0, 0],
            "seed_ids": [["u1"], [], ["s1", "s2"], ["s2"]],
        },
        schema_overrides={"item": pl.Int32},
    )
    imported = pl.DataFrame(
        {
            "request_id": ["import:b"] * 2,
            "item": [1, 3],
            "problem": [None, "derived_from_holdout"],
            "problem_detail": ["parent u1: ...", "parent h: ..."],
        },
        schema_overrides={"item": pl.Int32},
    )
    assert made_of_unused(rows, imported, ["s1"], always=False) == 2
    assert made_of_unused(rows, imported, [], always=True) == 3
    assert made_of_unused(rows, None, ["s2", "s1"], always=False) == 2
    assert caution(0, 4) == ""
    assert caution(1, 4).startswith("Of 4 synthetic rows, 1 is made of")
