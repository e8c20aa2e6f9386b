"""A holdout text in training data or in a prompt is found, and nothing else is."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import UsageError
from synth_assets.lifecycle import leakage
from synth_assets.lifecycle.leakage import group_overlap, leaks, prompt_leaks
from synth_assets.text import normalise

LEAK = "Hydraulic oil leaking from main pump"


def frame(**texts: str | None) -> pl.DataFrame:
    return pl.DataFrame(
        {"record_id": list(texts), "text": list(texts.values())},
        schema={"record_id": pl.String, "text": pl.String},
    )


def shown(prompt: str, *, threshold: float = 0.8, **holdout: str) -> list[tuple[object, ...]]:
    found = prompt_leaks(pl.Series([prompt]), frame(**holdout), threshold=threshold)
    return found.select("holdout_id", "kind", "similarity", "excerpt").rows()


# --- rows


def test_a_copy_of_a_holdout_row_is_a_leak() -> None:
    rows = frame(a="hydraulic OIL leaking, from main pump", b="seat torn")
    assert leaks(rows, frame(h=LEAK), threshold=0.8).rows() == [("a", "h", "near_copy", 1.0)]


def test_a_row_that_contains_a_holdout_text_is_a_leak() -> None:
    found = leaks(
        frame(a=f"crew says: {LEAK.lower()} since the last shift change"),
        frame(h=LEAK),
        threshold=0.9,
    )
    assert found.rows() == [("a", "h", "contains", 1.0)]


def test_a_near_copy_of_a_holdout_row_is_a_leak() -> None:
    found = leaks(frame(a=LEAK + "s"), frame(h=LEAK), threshold=0.8)
    assert found.select("record_id", "holdout_id").rows() == [("a", "h")]
    assert 0.8 <= found["similarity"].item() < 1


def test_unrelated_rows_do_not_leak() -> None:
    found = leaks(frame(a="seat torn", b=None), frame(h=LEAK, i=None), threshold=0.5)
    assert found.is_empty()
    assert found.columns == ["record_id", "holdout_id", "kind", "similarity"]


def test_the_lowest_holdout_id_is_named_whatever_the_order() -> None:
    holdout = frame(h2=LEAK, h1=LEAK.upper())
    for known in (holdout, holdout.reverse()):
        assert leaks(frame(a=LEAK), known, threshold=0.8)["holdout_id"].item() == "h1"


def test_another_text_column_is_compared_when_named() -> None:
    rows = frame(a=LEAK).rename({"text": "body"})
    assert leaks(rows, rows, text="body", threshold=0.8).height == 1
    assert prompt_leaks(pl.Series([LEAK]), rows, text="body", threshold=0.8).height == 1


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match="'body'"):
        leaks(frame(a=LEAK), frame(h=LEAK), text="body", threshold=0.8)
    with pytest.raises(UsageError, match="'record_id'"):
        prompt_leaks(pl.Series([LEAK]), frame(h=LEAK).drop("record_id"), threshold=0.8)


# --- prompts


@pytest.mark.parametrize(
    "line",
    [
        "oil leak",
        "- oil leak",
        "* Oil leak!",
        "• oil leak",
        "12. oil leak",
        "(3) oil leak",
        "b) oil leak",
        "- 4. oil leak",
        "Text: oil leak",
        '  "text": "oil leak",',
        "3. Work order = oil leak",
    ],
)
def test_a_short_line_is_found_behind_its_mark_and_field_name(line: str) -> None:
    prompt = f"Continue the list.\n{line}\nseat torn"
    assert shown(prompt, h="oil leak") == [("h", "line", 1.0, line.strip())]


def test_a_near_copy_on_a_line_is_found() -> None:
    [(holdout_id, kind, similarity, excerpt)] = shown(f"List:\r\n1. {LEAK}s\r\n", h=LEAK)
    assert (holdout_id, kind, excerpt) == ("h", "line", f"1. {LEAK}s")
    assert isinstance(similarity, float)
    assert 0.8 <= similarity < 1


def test_a_text_inside_a_longer_line_is_found() -> None:
    prompt = f"For instance, someone wrote '{LEAK.upper()}' and it was labelled Hydraulic System."
    assert shown(prompt, h=LEAK) == [("h", "inside", 1.0, LEAK.lower())]


def test_a_text_broken_over_two_lines_is_found() -> None:
    prompt = "It says: hydraulic oil leaking\n  from main pump, so it is urgent for all of us"
    assert [row[1] for row in shown(prompt, h=LEAK)] == ["inside"]


def test_part_of_a_word_is_not_inside() -> None:
    prompt = f"we saw xhydraulic oil leaking from main pump and {LEAK}ing station in one sentence"
    assert shown(prompt, h=LEAK) == []


def test_a_short_text_inside_a_longer_line_is_coincidence() -> None:
    assert shown("please look for an oil leak near the pump of the machine", h="oil leak") == []


def test_texts_inside_each_other_are_all_found() -> None:
    prompt = f"yesterday the following was reported by the crew: {LEAK} again and nothing else"
    found = shown(prompt, a=LEAK, b=LEAK + " again", c="oil leaking from main pump")
    assert [row[0] for row in found] == ["a", "b", "c"]


def test_a_line_is_reported_once() -> None:
    assert [row[1] for row in shown(f"{LEAK}\n- {LEAK}\n{LEAK} ", h=LEAK)] == ["line"]


def test_the_line_most_like_the_text_is_shown() -> None:
    for prompt in (f"{LEAK}s!\n- {LEAK}", f"- {LEAK}\n{LEAK}s!"):
        assert shown(prompt, h=LEAK) == [("h", "line", 1.0, f"- {LEAK}")]


def test_every_prompt_with_the_text_is_named() -> None:
    prompts = pl.Series([f"a\n{LEAK}", "clean", None, f"a\n{LEAK}", f"b\n- {LEAK}"])
    found = prompt_leaks(prompts, frame(h=LEAK), threshold=0.8)
    assert found["prompt"].to_list() == [0, 3, 4]
    assert dict(found.schema) == dict(leakage.PROMPT_LEAKS)


@pytest.mark.parametrize("prompts", [[], [None], ["", " \n "], ["clean"]])
def test_clean_prompts_give_an_empty_table_with_its_types(prompts: list[str | None]) -> None:
    for holdout in (frame(h=LEAK), frame(h=None), frame()):
        found = prompt_leaks(pl.Series(prompts, dtype=pl.String), holdout, threshold=0.8)
        assert found.is_empty()
        assert dict(found.schema) == dict(leakage.PROMPT_LEAKS)


def test_an_excerpt_is_bounded() -> None:
    text = " ".join(f"word{i}" for i in range(2000))
    [line] = shown(text, h=text)
    [inside] = shown("some words before " * 400 + text, h=text)
    assert len(str(line[3])) == len(str(inside[3])) == leakage.EXCERPT_CHARS


def test_lines_are_compared_in_slices_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = pl.Series([f"{i}. seat torn\n- oil leak {i}\n{LEAK}" for i in range(20)])
    holdout = frame(h=LEAK, i="oil leak 7", j="seat torn")
    whole = prompt_leaks(prompts, holdout, threshold=0.7)
    monkeypatch.setattr(leakage, "LINES_AT_ONCE", 3)
    assert prompt_leaks(prompts, holdout, threshold=0.7).equals(whole)
    assert whole.height >= 41


words = st.lists(st.sampled_from(["oil", "Leaking", "pump", "main-pump", "é", "."]), max_size=9)


def normal(texts: list[str]) -> list[str]:
    return (
        pl.DataFrame({"t": texts}, {"t": pl.String}).select(normalise(pl.col("t")))["t"].to_list()
    )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(words.map(" ".join), max_size=5),
    st.lists(words.map("  ".join), max_size=5),
)
def test_exactly_the_texts_that_stand_in_a_prompt_are_found(
    prompts: list[str], texts: list[str]
) -> None:
    holdout = frame(**{f"h{i}": text for i, text in enumerate(texts)})
    found = prompt_leaks(pl.Series(prompts, dtype=pl.String), holdout, threshold=1.0)
    inside = {(p, h) for p, h, kind in found.select("prompt", "holdout_id", "kind").rows()
              if kind == "inside"}  # fmt: skip
    lines = {(p, h) for p, h in found.select("prompt", "holdout_id").rows()} - inside
    known = normal(texts)
    expected = {
        (at, f"h{known.index(text)}")
        for at, prompt in enumerate(normal(prompts))
        for text in known
        if len(text) >= leakage.INSIDE_CHARS and f" {text} " in f" {prompt} "
    }
    assert inside == expected - lines


# --- groups


def test_groups_on_both_sides_are_counted() -> None:
    left = pl.DataFrame({"asset": ["b", "a", "a", None, "c"]})
    right = pl.DataFrame({"asset": ["a", "b", "b", None, "d"]})
    found = group_overlap(left, right, group="asset")
    assert found.rows() == [("a", 2, 1), ("b", 1, 2)]
    assert found.columns == ["group", "left_rows", "right_rows"]


def test_no_shared_group_gives_an_empty_table() -> None:
    left, right = pl.DataFrame({"asset": ["a"]}), pl.DataFrame({"asset": ["b"]})
    assert group_overlap(left, right, group="asset").is_empty()


def test_a_side_without_the_group_column_is_refused() -> None:
    with pytest.raises(UsageError, match="'asset'"):
        group_overlap(pl.DataFrame({"asset": ["a"]}), pl.DataFrame({"x": [1]}), group="asset")


ACROSS = "CHANGE OUT RH STICK CYLINDER"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("- L/H BOOM CYL CHANGE OUT\n- RH STICK CYLINDER PIN COMING OUT\n-", False),
        ("1. boom cyl change out\r\n2. rh stick cylinder pin", False),
        ("  * boom cyl change out\n  * rh stick cylinder pin", False),
        ("- boom cyl change out\n  rh stick cylinder pin", True),  # one item of two lines
        ("Write about: change out\nrh stick cylinder, please", True),
        ("- boom, change out \x1e rh stick cylinder pin", True),
        ("- pin: change out rh stick cylinder now\n- another", True),
    ],
)
def test_what_ends_one_item_and_begins_the_next_is_no_text(prompt: str, found: bool) -> None:
    holdout = pl.DataFrame({"record_id": ["h"], "text": [ACROSS]})
    seen = prompt_leaks(pl.Series([prompt]), holdout, threshold=0.9)
    assert seen["kind"].to_list() == (["inside"] if found else [])


def test_a_holdout_text_of_several_lines_is_found_across_items() -> None:
    holdout = pl.DataFrame({"record_id": ["h"], "text": ["- change out the cylinder\n- weld it"]})
    seen = prompt_leaks(
        pl.Series(["Say:\n- change out the cylinder\n- weld it"]), holdout, threshold=1
    )
    assert "inside" in seen["kind"].to_list()
