"""What columns hold: a changed source ends the load, a bad row is set aside with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.errors import SourceError
from synth_assets.sources.contract import Contract
from synth_assets.sources.files import read_batches
from synth_assets.sources.records import FileFormat


def read(folder: Path, contract: Contract, content: str | pl.DataFrame, name: str) -> pl.DataFrame:
    path = folder / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        content.write_parquet(path)
    kind: Any = {"csv": "csv", "json": "jsonl", "parq": "parquet"}[path.suffix[1:5]]
    frames = read_batches(
        [(name, path)],
        FileFormat(kind),
        required_columns=contract.needed,
        scalar_columns=contract.scalar,
        batch_rows=2,
    )
    return pl.concat(list(contract.apply(frames)), how="diagonal")


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def problems(frame: pl.DataFrame) -> list[str | None]:
    return frame["_problem"].to_list()


TEXT = Contract(required=("text",))


def test_a_list_or_an_object_where_text_belongs_sets_its_row_aside(tmp_path: Path) -> None:
    content = lines({"text": "a"}, {"text": {"de": "b"}}, {"text": "c"}, {"text": ["d"]})
    content += lines({"text": "e"}, {"text": None}, {"text": 7, "more": {"x": 1}})
    frame = read(tmp_path, TEXT, content, "a.jsonl")
    wrong = "wrong_type"
    assert problems(frame) == [None, wrong, None, wrong, None, None, None]
    assert frame["text"].to_list() == ["a", None, "c", None, "e", None, "7"]
    assert frame["_raw"][1] == '{"text": {"de": "b"}}'
    assert frame["more"][6] == '{"x":1}'


def test_text_that_became_an_object_is_a_changed_source(tmp_path: Path) -> None:
    content = lines({"text": {"de": "a"}}, {"text": {"de": "b"}}, {"text": "c"})
    with pytest.raises(SourceError) as caught:
        read(tmp_path, TEXT, content, "a.jsonl")
    told = str(caught.value)
    assert told.startswith(
        "a.jsonl: column 'text' changed its type: expected text, found struct in 2 of 3 cells"
    )
    assert "fix: " in told


def test_a_nested_parquet_column_is_a_changed_source(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": [{"de": "a"}], "label": ["A"]})
    with pytest.raises(SourceError, match=r"a\.parquet: column 'text' .* found Struct"):
        read(tmp_path, TEXT, frame, "a.parquet")
    assert read(tmp_path, Contract(("label",)), frame, "a.parquet").height == 1


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("integer", ["7", "-3", "+0", "007", " 5 "], ["1.5", "x", "1e3"]),
        ("number", ["7", "-3.5", ".5", "5.", "1e-3"], ["1,5", "NaN", "x"]),
        ("boolean", ["true", "False", "0", "1"], ["yes", "2"]),
        (
            "timestamp",
            ["2024-02-29", "2024-02-29 10:00", "2024-02-29T10:00:00.123Z", "2024-01-01 1"[:10]],
            ["29.02.2024", "2024-2-9", "10:00"],
        ),
        ("text", ["anything", "7"], []),
        ("json", ["{", "7"], []),
    ],
)
def test_cells_are_judged_by_their_declared_type(
    tmp_path: Path, kind: Any, good: list[str], bad: list[str]
) -> None:
    contract = Contract(("text",), {"c": kind})
    fill = [good[0]] * (len(bad) + 1)
    cells = [*good, *fill, *bad, ""]
    content = "text;c\n" + "".join(f'x;"{cell}"\n' for cell in cells)
    path = tmp_path / "a.csv"
    path.write_text(content)
    frames = read_batches(
        [("a.csv", path)], FileFormat("csv", delimiter=";"), required_columns=contract.needed
    )
    frame = pl.concat(list(contract.apply(frames)))
    wrong = [None] * (len(good) + len(fill)) + ["wrong_type"] * len(bad) + [None]
    assert problems(frame) == wrong
    kept = [None if problem else cell for cell, problem in zip(cells, wrong, strict=True)]
    assert frame["c"].to_list() == kept
    assert frame["text"].null_count() == len(bad)
    if bad:
        first = frame.filter(frame["_problem"].is_not_null())["_raw"][0]
        assert json.loads(first) == {"text": "x", "c": bad[0]}


def test_most_cells_of_another_type_are_a_changed_source(tmp_path: Path) -> None:
    contract = Contract(("text",), {"age": "integer"})
    with pytest.raises(SourceError) as caught:
        read(tmp_path, contract, "text,age\na,1\nb,old\nc,young\n", "a.csv")
    assert "a.csv: column 'age' changed its type: expected integer" in str(caught.value)
    assert "found text such as 'old' in 2 of 3 cells" in str(caught.value)


def test_a_declared_column_that_is_gone_is_named(tmp_path: Path) -> None:
    contract = Contract(("text",), {"age": "integer"})
    with pytest.raises(SourceError, match=r"a\.csv:1: no column 'age'; found 'text', 'aged'"):
        read(tmp_path, contract, "text,aged\na,1\n", "a.csv")


def test_unexpected_columns_are_kept_dropped_or_refused(tmp_path: Path) -> None:
    content = "text,label,extra\na,A,x\n"

    def columns(extra: Any) -> list[str]:
        return read(tmp_path, Contract(("text", "label"), extra=extra), content, "a.csv").columns

    assert columns("evolve")[:3] == ["text", "label", "extra"]
    assert columns("discard")[:3] == ["text", "label", "_source"]
    with pytest.raises(SourceError) as caught:
        columns("freeze")
    assert "a.csv: unexpected column 'extra'; expected only 'text', 'label'" in str(caught.value)
    assert "extra_columns" in str(caught.value)
