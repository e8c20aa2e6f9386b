"""Tables and pictures: what text can do to them (nothing), and how large they may get."""

from __future__ import annotations

import re
import urllib.parse
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.lifecycle.contribution import ARMS, Contribution
from synth_assets.lifecycle.verdicts import AS_NUMBER, Verdict
from synth_assets.report.picture import (
    INLINE_LIMIT,
    MAX_LABELS,
    contribution_markdown,
    contribution_svg,
)
from synth_assets.report.tables import MAX_CELL_CHARS, escape_markdown, markdown_table

SVG = "{http://www.w3.org/2000/svg}"
NASTY = [
    "a | b",
    "line\nbreak\r\nand\u2028more",
    "`code` ```fence```",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[link](javascript:alert(1))",
    "![img](https://example.com/x.png)",
    "**bold** __under__ ~~gone~~ $math$",
    "trailing backslash \\",
    "\\| escaped before",
    "&lt;b&gt; &#124;",
    "quote \" and ' and ]]>",
    "nul \0 and bell \a and \x1b[31m",
    "right-to-left \u202e override",
    "",
    "x" * 10_000,
    "😀 emoji",
]


def found(
    *,
    labels: list[str] | None = None,
    verdict: Verdict = "helps",
    score: float | None = 0.5,
    rows: int = 100,
) -> Contribution:
    names = ["a", "b"] if labels is None else labels
    low, high = (None, None) if score is None else (score - 0.1, score + 0.1)
    arms = pl.DataFrame(
        [
            {
                "arm": arm,
                "rows": rows,
                "accuracy": score,
                "accuracy_low": low,
                "accuracy_high": high,
                "macro_f1": score,
                "macro_f1_low": low,
                "macro_f1_high": high,
                "note": "",
            }
            for arm in ARMS
        ],
        infer_schema_length=None,
    )
    differences = pl.DataFrame(
        {
            "comparison": ["blend - human", "blend - human_upsampled", "blend - human_balanced"],
            "metric": ["macro_f1"] * 3,
            "value": pl.Series([score] * 3, dtype=pl.Float64),
            # A control that explains a gain makes the longest line.
            "low": pl.Series([low, *([None if low is None else -0.1] * 2)], dtype=pl.Float64),
            "high": pl.Series([high] * 3, dtype=pl.Float64),
        }
    )
    change = [None if score is None else (place % 19 - 9) / 10 for place in range(len(names))]
    deltas = pl.Series(change, dtype=pl.Float64)
    table = pl.DataFrame(
        {
            "label": pl.Series(names, dtype=pl.String),
            "human_rows": [1] * len(names),
            "synthetic_rows": [2] * len(names),
            "holdout_rows": [3] * len(names),
            "delta": deltas,
            "delta_low": deltas - 0.05,
            "delta_high": deltas + 0.05,
        }
    )
    return Contribution(arms, differences, table, verdict, "A sentence.", rows)


def picture_of(markdown: str) -> ElementTree.Element:
    address = re.search(r"\(data:image/svg\+xml,([^()\s<>#]*)\)$", markdown)
    assert address, "the picture is not one well-formed Markdown image"
    return ElementTree.fromstring(urllib.parse.unquote(address[1]))  # noqa: S314


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_stays_in_its_cell(text: str) -> None:
    table = markdown_table(pl.DataFrame({"text": [text], "n": [1]}))
    assert len(table.split("\n")) == 3
    assert [len(cells(line)) for line in table.split("\n")] == [2, 2, 2]
    assert all(line.isprintable() or "\u200b" in line for line in table.split("\n"))


@pytest.mark.parametrize("text", NASTY)
def test_a_nasty_column_name_stays_in_its_cell(text: str) -> None:
    table = markdown_table(pl.DataFrame({text: [1], "n": [1]}))
    assert [len(cells(line)) for line in table.split("\n")] == [2, 2, 2]


@given(st.text())
def test_no_markup_survives_an_escape(text: str) -> None:
    escaped = escape_markdown(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]()|!~$]", escaped)
    assert "<" not in escaped
    assert ">" not in escaped
    assert "\n" not in escaped
    assert not re.search(r"&(?!amp;|lt;|gt;)", escaped)


@pytest.mark.parametrize("text", ["see https://example.com now", "www.example.com", "a@b.example"])
def test_a_bare_address_does_not_become_a_link(text: str) -> None:
    assert not re.search(r"https?://|www\.|\w@\w", escape_markdown(text))


def test_ordinary_text_is_left_alone() -> None:
    assert escape_markdown("Hydraulic System, 3.5 t; ok?") == "Hydraulic System, 3.5 t; ok?"


def test_a_long_cell_is_cut_with_a_mark() -> None:
    escaped = escape_markdown("x" * 10_000)
    assert len(escaped) == MAX_CELL_CHARS
    assert escaped.endswith("…")


def test_a_cut_never_leaves_half_an_escape() -> None:
    assert escape_markdown("|" * 10, max_chars=5) == "\\|" * 4 + "…"


def test_text_in_invisible_characters_does_not_hide_what_follows() -> None:
    assert escape_markdown("\u200b" * 10_000 + "end").endswith("…")


def test_numbers_are_right_aligned_and_rounded() -> None:
    table = markdown_table(pl.DataFrame({"a": ["x"], "b": [0.12345], "c": [1234]}), digits=2)
    assert table.split("\n")[1:] == ["| --- | ---: | ---: |", "| x | 0.12 | 1,234 |"]


def test_rows_not_shown_are_counted() -> None:
    table = markdown_table(pl.DataFrame({"a": range(60)}), max_rows=50)
    assert table.endswith("… and 10 more rows")
    assert len(table.split("\n")) == 2 + 50 + 2


def test_nulls_lists_and_booleans_are_readable() -> None:
    frame = pl.DataFrame(
        {"a": [None], "b": [["x|", "y"]], "c": [True]}, schema_overrides={"a": pl.String}
    )
    assert markdown_table(frame).split("\n")[2] == "|  | x\\|, y | yes |"


def test_an_empty_table_says_so() -> None:
    assert markdown_table(pl.DataFrame({"a": []})).endswith("(no rows)")


@pytest.mark.parametrize("verdict", list(AS_NUMBER))
@pytest.mark.parametrize("score", [None, 0.0, 0.5, 0.999999, 1.0])
@pytest.mark.parametrize("rows", [0, 9_999, 123_456_789])
def test_the_inline_picture_fits_into_what_dagster_shows(
    verdict: Verdict, score: float | None, rows: int
) -> None:
    markdown = contribution_markdown(found(verdict=verdict, score=score, rows=rows))
    assert len(markdown) < INLINE_LIMIT
    assert len(markdown.encode()) < INLINE_LIMIT
    assert picture_of(markdown).tag == f"{SVG}svg"


def test_the_inline_picture_names_every_arm_and_n() -> None:
    texts = [
        text.text or "" for text in picture_of(contribution_markdown(found())).iter(f"{SVG}text")
    ]
    for name in ("human 100", "upweighted 100", "synthetic 100", "blend 100"):
        assert name in texts
    assert any("n=100" in text for text in texts)


def test_the_inline_picture_puts_dots_where_the_scores_are() -> None:
    picture = picture_of(contribution_markdown(found(score=0.5)))
    (dots,) = [path for path in picture.iter(f"{SVG}path") if path.get("stroke-width") == "7"]
    (axis, *_) = re.findall(r"M(\d+),8V\d+h(\d+)", ElementTree.tostring(picture, "unicode"))
    left, width = map(int, axis)
    assert {int(x) for x in re.findall(r"M(\d+),", dots.get("d", ""))} == {left + width // 2}


def test_nasty_labels_cannot_break_the_large_picture() -> None:
    svg = contribution_svg(found(labels=NASTY))
    root = ElementTree.fromstring(svg)  # noqa: S314
    kinds = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert kinds == {"svg", "title", "rect", "g", "path", "circle", "text"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_label_leaves_the_large_picture_well_formed(labels: list[str]) -> None:
    assert ElementTree.fromstring(contribution_svg(found(labels=labels))).tag == f"{SVG}svg"  # noqa: S314


def test_more_labels_than_fit_are_counted() -> None:
    svg = contribution_svg(found(labels=[f"label {place}" for place in range(MAX_LABELS + 7)]))
    assert "7 labels in the middle not shown" in svg
    # one for each score of each arm, one for each label shown
    assert svg.count("<circle") == 2 * len(ARMS) + MAX_LABELS


def test_a_contribution_without_scores_still_has_a_picture() -> None:
    svg = contribution_svg(found(verdict="not_measurable", score=None))
    assert "<circle" not in svg
    assert "Not measurable" in svg
