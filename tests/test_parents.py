"""Whom an imported row was written from, and whether that may be seen."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from synth_assets.lifecycle.imported import ImportRules, import_rows
from synth_assets.lifecycle.parents import (
    IDS,
    PLACES,
    HumanRows,
    resolve,
    resolve_parents,
    whole_cells,
)

TEXTS = {
    "a1": "the pump in hall two leaks oil",
    "b2": "my invoice, from march, was charged twice",
    "c3": "the lift stops between two floors",
    "d4": "a smell of gas near the boiler",
}
HOLDOUT, VALIDATION = ["c3"], ["d4"]


def people(**changed: Any) -> HumanRows:
    rows = pl.DataFrame(
        {
            "record_id": list(TEXTS),
            "text": list(TEXTS.values()),
            "group": [f"group of {name}" for name in TEXTS],
        }
    )
    ids = pl.DataFrame(
        {
            "key": [str(n) for n in range(len(TEXTS))],
            "text": list(TEXTS.values()),
            "group": [None] * len(TEXTS),
        },
        schema=IDS,
    )
    facts: dict[str, Any] = {
        "ids": ids,
        "rows": rows,
        "holdout": rows.filter(pl.col("record_id").is_in(HOLDOUT)),
        "validation": rows.filter(pl.col("record_id").is_in(VALIDATION)),
    }
    return HumanRows(**(facts | changed), text="text", threshold=0.6)


def resolved(*parents: list[str], human: HumanRows | None = None) -> pl.DataFrame:
    rows = pl.DataFrame({"seed_ids": list(parents)}, schema={"seed_ids": pl.List(pl.String)})
    return resolve_parents(rows, human or people())


@pytest.mark.parametrize("parent", ["0", "a1", "The pump, in hall TWO, leaks oil!"])
def test_a_parent_is_found_by_id_by_record_and_by_text(parent: str) -> None:
    [(ids, problem, detail)] = resolved([parent]).rows()
    assert (ids, problem, detail) == (["a1"], None, None)


def test_what_names_nobody_stays_as_it_is_written_and_rows_keep_their_order() -> None:
    found = resolved(["x-9", "1"], [], ["1", "b2"])
    assert found["seed_ids"].to_list() == [["x-9", "b2"], [], ["b2"]]
    assert found["problem"].to_list() == [None, None, None]


@pytest.mark.parametrize(
    ("parent", "problem"),
    [
        ("2", "derived_from_holdout"),
        ("c3", "derived_from_holdout"),
        ("The lift stops between TWO floors", "derived_from_holdout"),
        ("the lift stops between the two floors", "derived_from_holdout"),
        ("he said: the lift stops between two floors, and hung up", "derived_from_holdout"),
        ("3", "derived_from_validation"),
    ],
)
def test_a_row_from_an_unseen_row_is_refused_whatever_else_it_is_from(
    parent: str, problem: str
) -> None:
    for parents in ([parent], ["0", parent], ["nobody", parent, "1"]):
        found = resolved(["0"], parents)
        assert found["problem"].to_list() == [None, problem]
        assert found["problem_detail"][1].startswith(f"parent {parent}: ")


def test_the_holdout_is_named_first_when_both_are_parents() -> None:
    assert resolved(["2", "3"])["problem"].to_list() == ["derived_from_holdout"]
    assert resolved(["3", "2"])["problem"].to_list() == ["derived_from_holdout"]


def test_a_source_row_that_was_set_aside_as_a_repeat_of_a_holdout_row_is_no_way_around() -> None:
    repeat = pl.DataFrame([{"key": "77", "text": TEXTS["c3"].upper(), "group": None}], schema=IDS)
    found = resolved(["77"], human=people(ids=repeat))
    assert found.row(0)[:2] == (["c3"], "derived_from_holdout")


def test_a_source_row_of_a_group_that_is_held_out_is_refused() -> None:
    """Nobody uses the row itself, but its machine, or its author, is to be measured on."""
    same = pl.DataFrame(
        [
            {"key": "77", "text": "something else of the same machine", "group": "group of c3"},
            {"key": "78", "text": "something of another machine", "group": "group of a1"},
        ],
        schema=IDS,
    )
    found = resolved(["77"], ["78"], human=people(ids=same))
    assert found["problem"].to_list() == ["derived_from_holdout", None]
    assert found["problem_detail"][0] == "parent 77: its group is in holdout"
    assert found["seed_ids"].to_list() == [["77"], ["78"]]


def test_an_id_that_two_sources_use_stands_for_both() -> None:
    one, other = [{"key": "5", "text": TEXTS[name], "group": None} for name in ("a1", "b2")]
    assert resolved(["5"], human=people(ids=pl.DataFrame([other, one], schema=IDS)))[
        "seed_ids"
    ].to_list() == [["a1", "b2"]]
    held = {"key": "5", "text": TEXTS["c3"], "group": None}
    both = pl.DataFrame([one, held], schema=IDS)
    assert resolved(["5"], human=people(ids=both))["problem"].to_list() == ["derived_from_holdout"]


def test_a_cell_that_is_one_id_or_one_text_as_a_whole_is_not_cut_at_its_commas() -> None:
    human = people(
        ids=pl.DataFrame([{"key": "7,5", "text": TEXTS["a1"], "group": None}], schema=IDS)
    )
    cells = pl.Series(
        "from",
        [
            TEXTS["b2"],
            " 7,5 ",
            "7, 5",
            "the lift, stops between two floors",
            '["7,5"]',
            "",
            None,
            "The lift stops, between the two floors",
        ],
    )
    assert whole_cells(cells, human).to_list() == [
        '["my invoice, from march, was charged twice"]',
        '["7,5"]',
        "7, 5",
        '["the lift, stops between two floors"]',
        '["7,5"]',
        "",
        None,
        '["The lift stops, between the two floors"]',
    ]


def test_nothing_imported_and_nobody_to_name_is_no_error() -> None:
    assert resolved().height == 0
    empty = people().rows.clear()
    nobody = HumanRows(pl.DataFrame(schema=IDS), empty, empty, empty, "text", 0.6)
    assert resolved(["1"], [], human=nobody)["seed_ids"].to_list() == [["1"], []]
    assert whole_cells(pl.Series("from", [None], dtype=pl.String), nobody).to_list() == [None]


# --- spellings ------------------------------------------------------------------------------


def placed(**more: Any) -> HumanRows:
    """The same people with ids 60 to 63, each in the row after the one before."""
    rows = pl.DataFrame(
        [
            {"source": "desk/human.csv", "source_row": n + 1, "key": str(60 + n), "text": text}
            for n, text in enumerate(TEXTS.values())
        ],
        schema=PLACES,
    )
    return people(ids=rows.select(list(IDS)), places=rows, **more)


@pytest.mark.parametrize(
    "parent",
    [
        "62.0", "0062", "#62", "'62'", "６２", "id: 62", "6.2e1", " 62\u200b", "desk/human.csv:62",
        "human.csv:62", "Human.csv:3", "human:62.0", "desk:3", "desk#62", "./human.csv:0062",
    ],
)  # fmt: skip
def test_a_holdout_row_is_known_by_its_id_and_its_place_in_every_spelling(parent: str) -> None:
    cells = whole_cells(pl.Series("from", [parent, f"60, {parent}", f"[{parent}]"]), placed())
    for cell in cells:
        rows, _ = import_rows(raw_with(cell), RULES)
        found = resolve_parents(rows, placed())
        assert found["problem"].to_list() == ["derived_from_holdout"], cell
        assert "c3" in found["seed_ids"][0]


def raw_with(cell: str | None) -> pl.DataFrame:
    said = {"body": "a text", "topic": "a", "from": cell, "_source": "b", "_row": 1}
    return pl.DataFrame(
        [said | {"_problem": None, "_raw": None}],
        schema_overrides={"from": pl.String, "_problem": pl.String, "_raw": pl.String},
    )


RULES = ImportRules(
    {"text": "body", "label": "topic"}, "label", "classification", parents_column="from"
)


def test_an_id_as_it_stands_wins_and_any_other_spelling_stands_for_all_that_it_may_name() -> None:
    rows = [{"key": key, "text": TEXTS[name]} for key, name in (("7", "a1"), ("007", "c3"))]
    human = people(ids=pl.DataFrame(rows, schema=IDS))
    assert resolved(["7"], human=human).row(0)[:2] == (["a1"], None)
    assert resolved(["007"], human=human).row(0)[:2] == (["c3"], "derived_from_holdout")
    found = resolved(["7.0"], human=human).row(0)
    assert found[:2] == (["a1", "c3"], "derived_from_holdout")


def test_a_number_with_marks_between_its_thousands_is_one_id_or_two() -> None:
    keys = pl.DataFrame(
        [{"key": k, "text": TEXTS[n]} for k, n in (("1234", "a1"), ("234", "b2"))], schema=IDS
    )
    cells = whole_cells(pl.Series("from", ["1,234", "1234", "5,678"]), people(ids=keys))
    assert cells.to_list() == ['["1,234", "234"]', '["1234"]', "5,678"]


@pytest.mark.parametrize("text", ["[Hall 2] the lift stops between two floors", "[lift] [stops]"])
def test_a_text_that_begins_with_a_bracket_is_a_text(text: str) -> None:
    rows = people().rows.with_columns(
        text=pl.when(pl.col("record_id") == "c3").then(pl.lit(text)).otherwise("text")
    )
    human = people(rows=rows, holdout=rows.filter(record_id="c3"), ids=pl.DataFrame(schema=IDS))
    cells = whole_cells(pl.Series("from", [text, "[Hall 3] nobody, knows this"]), human)
    rows, rejects = import_rows(raw_with(cells[0]), RULES)
    assert resolve_parents(rows, human).row(0, named=True)["problem"] == "derived_from_holdout"
    assert rejects.is_empty()
    other, _ = import_rows(raw_with(cells[1]), RULES)
    assert other["seed_ids"].to_list() == [["[Hall 3] nobody, knows this"]]


@pytest.mark.parametrize(
    "cell", ["nan", "None", "null", "<NA>", "[]", "[null]", "[nan]", " ", None]
)
def test_a_missing_value_is_no_parent(cell: str | None) -> None:
    rows, _ = import_rows(raw_with(whole_cells(pl.Series("from", [cell]), placed())[0]), RULES)
    assert rows["seed_ids"].to_list() == [[]]


def test_parents_that_name_nobody_are_counted_and_those_like_a_human_row_are_not() -> None:
    rows = pl.DataFrame({"seed_ids": [["60", "x-9"], ["x-9"], ["the pump in hall two leaks"], []]})
    found = resolve(rows, placed())
    assert (found.named, found.unknown.rows()) == (4, [("x-9", 2)])


# --- rows that training does not use --------------------------------------------------------


def limited(**more: Any) -> HumanRows:
    """Only a1 is used for training; b2 is beyond the limit, a reject and a repeat have ids."""
    rejects = pl.DataFrame(
        [
            {"source": "h.csv", "source_row": 8, "key": "68", "text": "two labels for one text"},
            {"source": "h.csv", "source_row": 9, "key": "69", "text": TEXTS["a1"].upper() + "!"},
            {"source": "h.csv", "source_row": 10, "key": "70", "text": None},
        ],
        schema=PLACES,
    )
    known = placed()
    places = pl.concat([known.places, rejects])
    train = known.rows.filter(record_id="a1")
    return people(ids=places.select(list(IDS)), places=places, train=train, **more)


@pytest.mark.parametrize(
    ("parents", "problem"),
    [
        (["60"], None),
        (["69"], None),
        ([TEXTS["a1"]], None),
        (["nobody"], None),
        (["61"], "derived_from_unused"),
        (["b2"], "derived_from_unused"),
        ([TEXTS["b2"].upper()], "derived_from_unused"),
        (["my invoice from march was charged twice!"], "derived_from_unused"),
        (["my invoice from march was charged twice today"], "derived_from_unused"),
        (["68"], "derived_from_unused"),
        (["h.csv:10"], "derived_from_unused"),
        (["60", "61.0"], "derived_from_unused"),
        (["61", "62"], "derived_from_holdout"),
        (["61", "63"], "derived_from_validation"),
    ],
)
def test_a_row_made_of_a_human_row_that_training_does_not_use_is_refused(
    parents: list[str], problem: str | None
) -> None:
    found = resolved(parents, human=limited()).row(0, named=True)
    assert found["problem"] == problem
    assert (found["problem_detail"] is None) == (problem is None)
    allowed = resolved(parents, human=limited(unused_allowed=True)).row(0, named=True)
    assert allowed["problem"] == (None if problem == "derived_from_unused" else problem)
    assert allowed["problem_detail"] == found["problem_detail"]


def test_a_parent_as_near_to_a_row_that_is_used_is_none_of_those_that_are_not() -> None:
    twins = people().rows.with_columns(
        text=pl.when(pl.col("record_id") == "b2")
        .then(pl.lit(TEXTS["a1"] + " badly"))
        .otherwise("text")
    )
    human = people(rows=twins, train=twins.filter(record_id="a1"), ids=pl.DataFrame(schema=IDS))
    near = [TEXTS["a1"], TEXTS["a1"] + " now", TEXTS["a1"] + " badly", TEXTS["a1"] + " badly!"]
    assert resolved(*([one] for one in near), human=human)["problem"].to_list() == [
        None,
        None,
        "derived_from_unused",
        "derived_from_unused",
    ]
