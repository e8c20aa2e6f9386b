"""Comparing releases: joins give what comparing row by row gives."""

from __future__ import annotations

from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.lifecycle.difference import (
    manifest_difference,
    row_difference,
    text_difference,
    value_differences,
)

SCHEMA = {
    "record_id": pl.String,
    "text": pl.String,
    "label": pl.String,
    "origin": pl.String,
    "weight": pl.Float64,
    "seed_ids": pl.List(pl.String),
    "item": pl.Int32,
}
Rows = dict[str, tuple[str, dict[str, Any]]]


@st.composite
def releases(draw: st.DrawFn) -> Rows:
    """record_id -> (split, row)."""
    ids = draw(st.sets(st.integers(0, 12), max_size=12))
    made = {}
    for number in ids:
        row = {
            "record_id": f"{number:032x}",
            "text": f"text {number}",
            "label": "ab"[number % 2],
            "origin": draw(st.sampled_from(["human", "synthetic"])),
            "weight": draw(st.sampled_from([1.0, 0.5])),
            "seed_ids": draw(st.sampled_from([None, [], ["x"], ["x", "y"]])),
            "item": draw(st.sampled_from([None, 0, 1])),
        }
        made[row["record_id"]] = (draw(st.sampled_from(["train", "validation", "eval"])), row)
    return made


def scans(rows: Rows) -> dict[str, pl.LazyFrame]:
    found = {}
    for split in ("train", "validation", "eval"):
        frame = pl.DataFrame([row for where, row in rows.values() if where == split], SCHEMA)
        # As in a release: rows that only people wrote have no columns of generation.
        found[split] = (frame.drop("item") if not frame["item"].count() else frame).lazy()
    return found


@settings(max_examples=60, deadline=None)
@given(releases(), releases())
def test_joins_find_what_comparing_one_by_one_finds(old: Rows, new: Rows) -> None:
    found = row_difference(
        scans(old), scans(new), payload=("text", "label"), stratum="label", shown=99
    )
    changed = [one for one in old.keys() & new.keys() if old[one] != new[one]]
    assert found.totals() == {
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "changed": len(changed),
    }
    moved = sum(old[one][0] != new[one][0] for one in changed)
    assert found.fields.get("split", 0) == moved
    seeds = sum(old[one][1]["seed_ids"] != new[one][1]["seed_ids"] for one in changed)
    assert found.fields.get("seed_ids", 0) == seeds
    assert [row["record_id"] for row in found.examples["changed"]] == sorted(changed)


def test_a_changed_row_shows_old_and_new_of_what_changed() -> None:
    row = dict.fromkeys(SCHEMA) | {"record_id": "a", "text": "t", "label": "x", "origin": "human"}
    old, new = row | {"weight": 1.0}, row | {"weight": 2.0}
    found = row_difference(
        scans({"a": ("train", old)}),
        scans({"a": ("eval", new)}),
        payload=("text", "label"),
        stratum="label",
        shown=1,
    )
    (example,) = found.examples["changed"]
    assert example["weight"] == [1.0, 2.0]
    assert example["split"] == ["train", "eval"]
    assert example["text"] == "t"
    assert found.fields == {"weight": 1, "split": 1}


def test_values_that_differ_are_named_by_dotted_path() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "gone": {"x": 1}}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": {"e": True}}
    assert value_differences(old, new) == [
        {"path": "a.b", "old": 1, "new": 2},
        {"path": "d.e", "old": None, "new": True},
        {"path": "gone.x", "old": 1, "new": None},
    ]


def test_texts_that_are_equal_have_no_difference() -> None:
    assert text_difference("a\nb", "a\nb", "prompt") == ""
    assert "+c" in text_difference("a\nb", "a\nc", "prompt").splitlines()


def test_a_metric_that_only_one_release_has_is_shown_with_nothing_beside_it() -> None:
    base: dict[str, Any] = {"prompt": "", "stages": {}, "contribution": {"verdict": "helps"}}
    score = {"arm": "blend", "metric": "macro_f1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    scored = base | {"contribution": {"verdict": "hurts", "metrics": [score]}}
    found = manifest_difference(base, scored)
    assert found["metrics"][0]["old"] == {"value": None, "low": None, "high": None}
    assert found["metrics"][0]["new"]["value"] == 0.5
    assert found["verdict"] == {"old": "helps", "new": "hurts"}
