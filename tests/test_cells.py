"""Labels and groups that look the same are the same, wherever they are written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_assets.cells import group_named, group_of, tidied, tidy, trimmed
from synth_assets.errors import SpecError
from synth_assets.lifecycle.imported import ImportRules, import_rows
from synth_assets.lifecycle.records import unit
from synth_assets.lifecycle.tombstones import Reading, Tombstones, groups, mark
from synth_assets.spec.load import load_dataset
from synth_assets.tasks.classification import Classification
from tests.datasets import DatasetFolder

NFC, NFD = "Störung", unicodedata.normalize("NFD", "Störung")
# One label, as files and people write it.
SPELLINGS = [
    NFD, f" {NFC} ", f"{NFC}\u00a0", f"\u202f{NFD}", f"\ufeff{NFC}", f"{NFC}\u200b", f"{NFC}\u200e",
    f"{NFC}\t\r\n", "Stö\u00adrung", f"\u3000{NFC}\u2007",
]  # fmt: skip


def raw(**columns: list[str | None]) -> pl.DataFrame:
    height = len(next(iter(columns.values())))
    told = {name: pl.Series(name, cells, pl.String) for name, cells in columns.items()}
    nothing = pl.Series([None] * height, dtype=pl.String)
    return pl.DataFrame(
        {**told, "_source": ["h"] * height, "_row": range(1, height + 1)}
        | {"_problem": nothing, "_raw": nothing}
    )


def texts(count: int) -> list[str | None]:
    return [f"text number {n} of them" for n in range(count)]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=5), st.sampled_from(["nan", "None", "w1", NFD, "\u200b", " NaN"])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_group_that_a_person_names_is_that_of_rows_with_such_cells(cells: list[str]) -> None:
    """`synth erase --group w1 --group nan` names the rows that stand so in the source."""
    names = [str(place) for place in range(len(cells))]
    frame = pl.DataFrame([cells], schema=dict.fromkeys(names, pl.String), orient="row")
    assert (frame.select(group_of(names)).item() or "") == group_named(cells)


@given(st.text(max_size=30))
def test_the_two_ways_to_tidy_agree_and_change_nothing_twice(text: str) -> None:
    both = pl.DataFrame({"text": [text]}, schema={"text": pl.String})
    assert both.select(tidied(pl.col("text"))).item() == tidy(text) == tidy(tidy(text))
    assert not trimmed_text(tidy(text)).startswith((" ", "\u00a0", "\ufeff"))


def trimmed_text(text: str) -> str:
    frame = pl.DataFrame({"text": [text]}, schema={"text": pl.String})
    return str(frame.select(trimmed(pl.col("text"))).item())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_label_is_found_in_every_spelling_on_both_sides(spelling: str) -> None:
    for declared, written in ((NFC, spelling), (spelling, NFC)):
        labels = {tidy(declared): "", "other": ""}
        task = Classification("body", "topic", labels=labels)
        rows, rejects = task.read_human(raw(body=texts(1), topic=[written]))
        assert (rows["label"].to_list(), rejects.height) == ([NFC], 0)
        rules = ImportRules({"text": "body", "label": "topic"}, "label", "classification")
        imported, _ = import_rows(raw(body=texts(1), topic=[written]), rules)
        assert imported["label"].to_list() == [NFC]


def test_blanks_of_every_kind_inside_a_label_are_one_blank() -> None:
    cells: list[str | None] = ["water leak", "water\u00a0leak", "water\u202fleak", "water \t leak"]
    rows, _ = Classification("body", "topic").read_human(raw(body=texts(4), topic=cells))
    assert rows["label"].unique().to_list() == ["water leak"]


def test_a_text_of_nothing_visible_is_missing_and_an_empty_label_too() -> None:
    bodies: list[str | None] = [
        "\u00a0",
        "\u200b\ufeff",
        " \u202f ",
        "",
        "\u00a0a text \ufeff",
        "b c",
    ]
    topics: list[str | None] = ["a", "a", "a", "a", "a", "\u00a0\u200b"]
    rows, rejects = Classification("body", "topic").read_human(raw(body=bodies, topic=topics))
    assert rows["text"].to_list() == ["a text"]
    assert rejects["reason"].to_list() == ["missing_text"] * 4 + ["missing_label"]


def declared(tmp_path: Path, **changes: Any) -> Any:
    folder = DatasetFolder(tmp_path / "tickets")
    for path, value in changes.items():
        node, *parts = path.split("__")
        folder.attributes.setdefault(node, {})[".".join(parts)] = value
    folder.write()
    return folder


def test_what_is_declared_of_labels_is_tidied_as_the_data_is(tmp_path: Path) -> None:
    folder = declared(
        tmp_path,
        task__labels={f"{NFD} ": "x", "\u00a0login": "y"},
        generate__target={"per_label": {NFC: 2, "login\ufeff": 3}},
        human__drop_labels=[f"{NFD}*\u00a0"],
    )
    seed = {"text": " a  text ", "label": f"{NFD}\u00a0"}
    (folder.folder / "seeds.jsonl").write_text(json.dumps(seed) + "\n")
    found = load_dataset(folder.folder)
    assert found is not None
    assert list(found.spec.task.label_descriptions()) == [NFC, "login"]
    assert found.spec.generate.target.per_label == {NFC: 2, "login": 3}  # type: ignore[union-attr]
    assert found.spec.human.drop_labels == [f"{NFC}*"]
    # The text is as it was written: it is part of requests that were paid for.
    assert found.handwritten_seeds == ({"text": " a  text ", "label": NFC},)


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("task__labels", [NFC, NFD, "b"], "task.labels"),
        ("task__labels", {"a b": "", "a\u00a0b": ""}, "task.labels"),
        ("task__labels", ["a", "a ", "b"], "task.labels"),
        ("task__labels", ["\u00a0", "b"], "task.labels"),
        ("generate__target", {"per_label": {"login": 1, " login": 2}}, "generate.target.per_label"),
    ],
)
def test_two_names_of_one_label_are_one_error(
    tmp_path: Path, path: str, value: object, key: str
) -> None:
    folder = declared(tmp_path, **{path: value})
    with pytest.raises(SpecError) as raised:
        load_dataset(folder.folder)
    [problem] = raised.value.problems
    assert problem.key == key
    assert "label" in problem.problem
    assert problem.line > 1


# --- groups -------------------------------------------------------------------------------------


def test_blank_group_cells_are_no_group() -> None:
    blank: list[str | None] = [
        None,
        "",
        " ",
        "\u00a0",
        "nan",
        "None",
        "NULL",
        "<NA>",
        "\u200b",
        "NaT",
    ]
    desks = [*blank, "d1", " d1\u00a0"]
    task = Classification("body", "topic", group_by=("desk",))
    rows, _ = task.read_human(raw(body=texts(12), topic=["a"] * 12, desk=desks))
    assert rows["group"].n_unique() == 11
    assert rows["group"].to_list()[-2:] == ["d1", "d1"]
    # Nine of ten blank: rows fall on the sides by their own texts.
    held = [unit("partition", "1", group) < 0.3 for group in rows["group"]]
    assert 0 < sum(held) < 12


def test_of_several_columns_those_that_say_something_make_the_group() -> None:
    frame = raw(a=["x", None, "", "nan"], b=["y", "y", " ", None])
    found = frame.select(group_of(["a", "b"]).alias("group"))["group"]
    assert found.to_list() == ["x\x1fy", "\x1fy", None, None]
    assert groups(frame, ["a", "b"]).to_list() == found.to_list()


def test_a_group_that_was_erased_by_its_cells_as_they_stood_stays_away() -> None:
    """Former versions marked groups without tidying their cells."""
    frame = raw(body=texts(3), desk=[" d1", "d1", "d2"])
    for value, gone in ((" d1", [True, False, False]), ("d1", [True, True, False])):
        stones = Tombstones("00", {"group": frozenset([mark("00", "group", value)])})
        [left] = stones.redact([frame], Reading("body", ("desk",)))
        assert left["_problem"].is_not_null().to_list() == gone


def test_marks_of_a_former_name_leave_rows_out_as_the_own_ones_do() -> None:
    frame = raw(body=["an erased text", "another text"])
    former = Tombstones("11", {"text": frozenset([mark("11", "text", "an erased text")])})
    stones = Tombstones("", {}, (former,))
    [left] = stones.redact([frame], Reading("body"))
    assert (bool(stones), left["_problem"].to_list()) == (True, ["erased", None])
    assert len({stones.digest, former.digest, Tombstones().digest}) == 3
