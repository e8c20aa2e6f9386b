"""Whom an imported row was written from, and whether that may be seen."""

from __future__ import annotations

import polars as pl
import pytest

from synth_assets.lifecycle.parents import IDS, HumanRows, resolve_parents, whole_cells

TEXTS = {
    "a1": "the pump in hall two leaks oil",
    "b2": "my invoice, from march, was charged twice",
    "c3": "the lift stops between two floors",
    "d4": "a smell of gas near the boiler",
}
HOLDOUT, VALIDATION = ["c3"], ["d4"]


def people(**changed: pl.DataFrame) -> HumanRows:
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
    facts = {
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
