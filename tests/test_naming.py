"""Spellings of references: what names the same row is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_assets.lifecycle.naming import (
    canonical,
    cut,
    is_cut_off,
    names_nobody,
    place_in,
    read_list,
    source_names,
)

SPELLINGS = [
    "61", "61.0", "61.", "61.00", "0061", "#61", "# 61", "No. 61", "nr 61", "№61", "id:61", "ID 61",
    "'61'", '"61"', "[61]", '["61"]', "(61)", "<61>", "`61`", "„61“", "６１", "٦١", "+61", "6.1e1",
    " 61 ", "\u00a061\u202f", "\ufeff61", "6\u200b1", "\t61\n", "row 61", "Row: 61.0",
    "line #61", "Record 61", "index=61",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_is_the_same_in_every_spelling(spelling: str) -> None:
    assert canonical(spelling) == "61"


@pytest.mark.parametrize(
    ("spelling", "other"),
    [
        ("T-9", "t-9"),
        ("T-9", "T\u20119"),
        ("T-9", "T\u22129"),
        ("T-9", "#T-9"),
        ("1234", "1,234"),
        ("1234567", "1\u202f234\u202f567.0"),
        ("1234567", "1’234’567"),
        ("Straße 5", "STRASSE  5"),
        ("caf\u00e9", "cafe\u0301"),
        ("0", "-0.0"),
        ("12345678901234567890", "12345678901234567890.0"),
        ("61.5", "061.50"),
        ("1e+16", "10000000000000000.0"),
    ],
)
def test_other_ids_are_the_same_in_other_spellings(spelling: str, other: str) -> None:
    assert canonical(spelling) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("61", "-61"),
        ("61", "610"),
        ("61.5", "61"),
        ("t-61", "61"),
        ("a1", "a01"),
        ("#", ""),
        ("rows 61", "61"),
        ("row t-61", "61"),
    ],
)
def test_what_differs_by_more_than_its_spelling_stays_apart(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@given(st.text(max_size=40))
def test_the_form_of_a_form_is_itself(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@given(st.integers(-(10**20), 10**20), st.integers(0, 3), st.sampled_from(["", ".", ".0", ".000"]))
def test_every_whole_number_has_one_form(number: int, zeros: int, end: str) -> None:
    sign = "-" if number < 0 else ""
    assert canonical(f"{sign}{'0' * zeros}{abs(number)}{end}") == str(number)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60))
def test_whatever_stands_in_a_cell_is_read_or_refused(cell: str) -> None:
    try:
        found = read_list(cell)
    except ValueError:
        return
    assert found is None or all(isinstance(one, str) and one for one in found)
    assert all(cut(cell, lambda _: False))


@pytest.mark.parametrize(
    "nothing",
    ["", " ", "nan", "NaN", "None", "null", "<NA>", "N/A", "[]", "[null]", "['nan']", "-"],
)
def test_missing_values_name_nobody(nothing: str) -> None:
    assert names_nobody(nothing) or read_list(nothing) == []


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ('["61", 5, 7.0]', ["61", "5", "7.0"]),
        ("['61', 'x']", ["61", "x"]),
        ("(61, 62)", ["61", "62"]),
        ("{62, 61}", ["61", "62"]),
        ('"[61, 62]"', ["61", "62"]),
        ('[["61"], null, ""]', ["61"]),
        ("[NaN, 61.0]", ["61.0"]),
        ("[URGENT] the pump leaks", None),
        ("array([61, 62])", ["61", "62"]),
        ("np.array(['61', 'x'], dtype='<U2')", ["61", "x"]),
        ("array(['61', 'x'], dtype=object)", ["61", "x"]),
        ("frozenset({61, 62})", ["61", "62"]),
        ("set()", []),
        ("array([], dtype=int64)", []),
        ("list(of all pumps) leaks", None),
        ("array(61)", None),
        ("[61 62]", None),
        ("['61' '62']", None),
        ("61, 62", None),
        ('he said "no"', None),
    ],
)
def test_lists_are_read_as_programs_write_them(cell: str, found: list[str] | None) -> None:
    assert read_list(cell) == found


@pytest.mark.parametrize("cell", ["[true]", '[{"id": 61}]', "[[[[[61]]]]]"])
def test_a_list_of_what_is_no_reference_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="texts and numbers"):
        read_list(cell)


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("61, 62", ["61", "62"]),
        ("61;62", ["61", "62"]),
        ("61 | 62", ["61", "62"]),
        ("61\n62", ["61", "62"]),
        ("61 62", ["61", "62"]),
        ("[61 62]", ["61", "62"]),
        ("array([61 62])", ["61", "62"]),
        ("nan, 61", ["61"]),
        ("a; b, c d", ["a; b", "c d"]),
    ],
)
def test_cells_are_cut_where_what_is_between_is_known(cell: str, found: list[str]) -> None:
    known = {"61", "62"}
    assert cut(cell, lambda one: canonical(one) in known) == found


def test_a_list_without_an_end_is_told_from_a_text() -> None:
    assert is_cut_off("[61, 62")
    assert not is_cut_off("[URGENT] the pump leaks")


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("human.csv:61", ("human.csv", "61")),
        ("Human.CSV : 0061", ("human.csv", "61")),
        ("./data\\human.csv#61.0", ("data/human.csv", "61")),
        ("desk/61", ("desk", "61")),
        ("61", None),
    ],
)
def test_a_place_is_a_source_and_a_row(reference: str, place: tuple[str, str] | None) -> None:
    assert place_in(reference) == place


def test_a_source_is_known_by_its_own_name_and_by_its_file_s() -> None:
    assert source_names("desk/data/Human.csv.gz") >= {
        "desk", "human.csv.gz", "human.csv", "human", "data/human.csv.gz", "desk/data/human.csv.gz",
    }  # fmt: skip
