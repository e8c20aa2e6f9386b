"""CSV, JSON lines and Parquet hold every cell of a release, and a spreadsheet runs none of them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from synth_assets.exports import batches as pieces
from synth_assets.exports.tabular import GUARDED, guarded, unguarded, write_csv, write_jsonl
from tests.releases import rows

BEGINNINGS = st.sampled_from([*GUARDED, "''", " ", '"', ""])


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        csv.field_size_limit(2**30)
        return list(csv.DictReader(file, strict=True))


def restored(cell: str) -> str:
    """The rule as the docs give it."""
    return cell.removeprefix("'")


@given(st.lists(st.builds(str.__add__, BEGINNINGS, st.text(max_size=6)), max_size=20))
def test_a_guarded_text_begins_no_formula_and_comes_back(texts: list[str]) -> None:
    frame = pl.DataFrame({"a": texts}, schema={"a": pl.String}).select(
        "a", safe=guarded(pl.col("a")), back=unguarded(guarded(pl.col("a")))
    )
    assert not [cell for cell in frame["safe"] if re.match(r"[=+\-@\t\r\n＝＋－＠]", cell)]
    assert frame["back"].to_list() == texts
    assert [restored(cell) for cell in frame["safe"]] == texts


def test_ordinary_text_is_written_as_it_is(tmp_path: Path) -> None:
    texts = ["plain", "1 = 1", "a-b", "it's", "é", "日本", " =1"]
    write_csv(pl.LazyFrame({"text": texts}), tmp_path / "a.csv")
    assert [row["text"] for row in cells(tmp_path / "a.csv")] == texts


def test_every_hostile_cell_comes_back_from_csv_by_the_rule(tmp_path: Path) -> None:
    table = rows(3)
    write_csv(table.lazy(), tmp_path / "a.csv")
    found = cells(tmp_path / "a.csv")
    assert list(found[0]) == table.columns
    for row, expected in zip(found, table.iter_rows(named=True), strict=True):
        for name in ("text", "label", "source", "record_id", "attributes"):
            assert restored(row[name]) == (expected[name] or ""), name
        assert not any(re.match(r"[=+\-@\t\r\n]", cell) for cell in row.values())
        assert json.loads(row["seed_ids"] or "null") == expected["seed_ids"]


def test_verbatim_csv_has_the_cells_as_they_are(tmp_path: Path) -> None:
    table = rows()
    write_csv(table.lazy(), tmp_path / "a.csv", verbatim=True)
    assert [row["text"] for row in cells(tmp_path / "a.csv")] == table["text"].to_list()


def test_polars_reads_the_csv_back_and_tells_null_from_empty(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": ["x", "", None, "=1\n"], "n": [1, None, 3, 4]})
    write_csv(table.lazy(), tmp_path / "a.csv", verbatim=True)
    assert_frame_equal(pl.read_csv(tmp_path / "a.csv"), table)


def test_a_table_without_rows_is_a_header(tmp_path: Path) -> None:
    write_csv(rows().head(0).lazy(), tmp_path / "a.csv")
    write_jsonl(rows().head(0).lazy(), tmp_path / "a.jsonl")
    assert cells(tmp_path / "a.csv") == []
    assert (tmp_path / "a.csv").read_text().count("\n") == 1
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_json_lines_are_one_object_a_line_with_lists_as_lists(tmp_path: Path) -> None:
    table = rows(3)
    write_jsonl(table.lazy(), tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == table.to_dicts()


@pytest.mark.parametrize("height", [0, 1, 2, 3, 4, 5, 8, 9])
def test_batches_are_the_table_cut_at_any_size(
    monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    monkeypatch.setattr(pieces, "FIRST_ROWS", 2)
    monkeypatch.setattr(pieces, "MOST_ROWS", 3)
    table = pl.DataFrame(
        {"a": range(height), "b": ["x"] * height}, schema_overrides={"b": pl.String}
    )
    found = list(pieces.batches(table.lazy()))
    assert all(1 <= batch.height <= 3 for batch in found)
    assert pl.concat([table.head(0), *found]).equals(table)


def test_long_texts_make_short_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "FIRST_ROWS", 4)
    monkeypatch.setattr(pieces, "TARGET_BYTES", 10_000)
    table = pl.LazyFrame({"text": ["x" * 5_000] * 10})
    assert [batch.height for batch in pieces.batches(table)] == [4, 1, 1, 1, 1, 1, 1]
