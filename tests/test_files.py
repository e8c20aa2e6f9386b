"""Reading human data: no row is lost, no cell is changed, and what is wrong is said."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from synth_assets.errors import SourceError
from synth_assets.sources import PROBLEMS, SERVICE_COLUMNS
from synth_assets.sources.files import expand, fingerprint, read_batches
from synth_assets.sources.records import FileFormat

CSV, JSONL, PARQUET = FileFormat("csv"), FileFormat("jsonl"), FileFormat("parquet")
FINE = "text,label\none,A\ntwo,B\n"
# Any text a UTF-8 CSV cell can hold; a NUL is a problem of its own.
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(
    folder: Path,
    content: bytes | str,
    fmt: FileFormat = CSV,
    *,
    required: Sequence[str] = (),
    name: str = "data.txt",
    batch_rows: int = 20_000,
) -> pl.DataFrame:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    batches = read_batches([(name, path)], fmt, required_columns=required, batch_rows=batch_rows)
    return pl.concat(list(batches), how="diagonal")


def refused(folder: Path, content: bytes | str, fmt: FileFormat = CSV, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, content, fmt, **options)
    return str(caught.value)


def problems(frame: pl.DataFrame) -> dict[int, str]:
    found = frame.filter(pl.col("_problem").is_not_null())
    return dict(found.select("_row", "_problem").iter_rows())


def texts(frame: pl.DataFrame) -> list[str | None]:
    return frame.get_column("text").to_list()


# --- CSV that is fine ---


@quick
@given(
    rows=st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=12),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    batch_rows=st.integers(1, 5),
)
@example(rows=[['"', "\r\n", "\n\n"]], delimiter=",", ending="\r\n", batch_rows=1)
@example(rows=[["\x85", "\u2028", "\x1c"]], delimiter=",", ending="\n", batch_rows=1)
def test_every_cell_comes_back_as_written(
    tmp_path: Path, rows: list[list[str]], delimiter: str, ending: str, batch_rows: int
) -> None:
    text = io.StringIO(newline="")
    # Before Python 3.13 the writer forgets to quote a line end other than its own.
    bare = any(end in cell for row in rows for cell in row for end in "\r\n")
    writer = csv.writer(
        text,
        delimiter=delimiter,
        lineterminator=ending,
        quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL,
    )
    writer.writerows([["a", "b", "c"], *rows])
    fmt = FileFormat("csv", delimiter=delimiter)
    frame = read(tmp_path, text.getvalue(), fmt, batch_rows=batch_rows)
    assert problems(frame) == {}
    assert frame.select("a", "b", "c").rows() == [tuple(row) for row in rows]
    assert frame["_row"].to_list() == list(range(1, len(rows) + 1))


def test_a_raw_frame_is_text_with_service_columns_last(tmp_path: Path) -> None:
    frame = read(tmp_path, FINE)
    assert frame.schema == {
        "text": pl.String,
        "label": pl.String,
        "_source": pl.String,
        "_row": pl.Int64,
        "_problem": pl.String,
        "_raw": pl.String,
    }
    assert tuple(frame.columns[-4:]) == SERVICE_COLUMNS
    assert frame["_source"].unique().to_list() == ["data.txt"]


def test_batches_hold_at_most_the_rows_asked_for_and_count_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x\n" * 7)
    batches = list(read_batches([("a.csv", path)], CSV, required_columns=[], batch_rows=3))
    assert [batch.height for batch in batches] == [3, 3, 1]
    assert pl.concat(batches)["_row"].to_list() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_overrules_the_encoding(tmp_path: Path, encoding: str) -> None:
    frame = read(tmp_path, "text,label\ngrün 😀,A\n".encode(encoding), required=["text"])
    assert texts(frame) == ["grün 😀"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_a_declared_encoding_is_used(tmp_path: Path, encoding: str) -> None:
    content = "text,label\ngrün,A\nblau,B\n".encode(encoding)
    assert texts(read(tmp_path, content, FileFormat("csv", encoding))) == ["grün", "blau"]


def test_a_cell_of_ten_megabytes_loads_whole(tmp_path: Path) -> None:
    cell = "ab😀\n" * 2_000_000
    frame = read(tmp_path, f'text,label\n"{cell}",A\nsmall,B\n')
    assert texts(frame) == [cell, "small"]


def test_blank_duplicate_and_conflicting_rows_are_all_kept(tmp_path: Path) -> None:
    frame = read(tmp_path, "text,label\n,A\n   ,A\nsame,A\nsame,A\nsame,B\n")
    assert texts(frame) == ["", "   ", "same", "same", "same"]


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    frame = read(tmp_path, "\ntext,label\n\none,A\n\n\ntwo,B\n\n")
    assert frame.select("text", "_row").rows() == [("one", 1), ("two", 2)]


def test_a_gzip_file_is_unpacked(tmp_path: Path) -> None:
    frame = read(tmp_path, gzip.compress(FINE.encode()), name="data.csv.gz")
    assert texts(frame) == ["one", "two"]


# --- CSV with bad records ---


def test_undecodable_bytes_keep_the_row_escaped_and_its_neighbours(tmp_path: Path) -> None:
    frame = read(tmp_path, b"text,label\none,A\ntw\xff\xfeo,B\n\xc3\xbc,C\n")
    assert problems(frame) == {2: "undecodable"}
    assert texts(frame) == ["one", None, "ü"]
    assert frame.row(1, named=True)["label"] is None
    assert frame.row(1, named=True)["_raw"] == r"tw\xff\xfeo,B"


def test_a_nul_is_a_problem_of_its_row_only(tmp_path: Path) -> None:
    frame = read(tmp_path, "text,label\none,A\nt\0wo,B\nthree,C\n")
    assert problems(frame) == {2: "nul_character"}
    assert frame.row(1, named=True)["_raw"] == r"t\x00wo,B"


def test_too_few_and_too_many_fields_are_kept_with_a_reason(tmp_path: Path) -> None:
    frame = read(tmp_path, 'text,label\nalone\none,A\na,b,c\n"x\ny",B,C\n')
    assert problems(frame) == dict.fromkeys((1, 3, 4), "wrong_field_count")
    assert frame["_raw"].to_list() == ["alone", None, "a,b,c", '"x\ny",B,C']


def test_text_after_a_closing_quote_is_not_silently_joined(tmp_path: Path) -> None:
    frame = read(tmp_path, 'text,label\n"the "big" one",A\ntwo,B\n')
    assert problems(frame) == {1: "malformed_quotes"}
    assert texts(frame) == [None, "two"]


def test_a_quote_inside_an_unquoted_cell_is_a_character(tmp_path: Path) -> None:
    assert texts(read(tmp_path, 'text,label\n5" pipe,A\n')) == ['5" pipe']


@pytest.mark.parametrize("rest", ["", '"fine, quoted",E\nlast,F\n'])
def test_an_unterminated_quote_costs_one_row_not_the_rest(tmp_path: Path, rest: str) -> None:
    frame = read(tmp_path, f'text,label\none,A\n"two,B\nthree,C\nfour,D\n{rest}')
    assert problems(frame) == {2: "unterminated_quote"}
    expected = ["one", None, "three", "four", *(["fine, quoted", "last"] if rest else [])]
    assert texts(frame) == expected


def test_many_stray_quotes_cost_one_row_each(tmp_path: Path) -> None:
    lines = ['"stray,A' if i % 100 == 0 else f'"fine {i}",B' for i in range(20_000)]
    frame = read(tmp_path, "text,label\n" + "\n".join(lines) + "\n")
    assert frame.height == 20_000
    assert set(problems(frame).values()) == {"unterminated_quote"}
    assert len(problems(frame)) == 200


def test_a_cell_above_the_limit_is_a_problem_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth_assets.sources.records.MAX_CELL_CHARS", 50)
    before = csv.field_size_limit(50)
    try:
        frame = read(tmp_path, f"text,label\n{'x' * 60},A\ntwo,B\n")
    finally:
        csv.field_size_limit(before)
    assert problems(frame) == {1: "cell_too_large"}


def test_a_raw_record_is_cut_at_two_thousand_characters(tmp_path: Path) -> None:
    frame = read(tmp_path, "text,label\none,A\n" + "\0x" * 9_000 + "\n")
    assert frame["_raw"].str.len_chars().to_list() == [None, 2_000]


@quick
@given(body=st.binary(max_size=200), fmt=st.sampled_from([CSV, JSONL]))
@example(body=b'"', fmt=CSV)
@example(body=b"\xff\n\xff", fmt=CSV)
@example(body=b'{"\\ud800": 1}', fmt=JSONL)
def test_any_bytes_give_sound_frames_or_one_clear_error(
    tmp_path: Path, body: bytes, fmt: FileFormat
) -> None:
    head = b"text,label\n" if fmt is CSV else b'{"text": "a"}\n'
    try:
        frame = read(tmp_path, head + body, fmt)
    except SourceError:
        return
    bad = frame["_problem"].is_not_null()
    assert frame["_row"].to_list() == list(range(1, frame.height + 1))
    assert (frame["_raw"].is_not_null() == bad).all()
    assert set(frame["_problem"].drop_nulls()) <= set(PROBLEMS)
    assert frame.filter(bad).select(pl.col("text").is_null().all()).item()


# --- CSV that is wrong as a whole ---


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", "\ufeff"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    assert "data.txt: no rows" in refused(tmp_path, content)


def test_an_empty_file_beside_a_full_one_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text(FINE)
    paths = expand("*.csv", base=tmp_path)
    assert [f.height for f in read_batches(paths, CSV, required_columns=["text"])] == [2]


def test_rows_that_are_all_unusable_are_refused_with_the_counts(tmp_path: Path) -> None:
    assert "no usable row (2 wrong_field_count)" in refused(tmp_path, "text,label\na\nb\n")


def test_a_missing_column_names_file_columns_and_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, "Text,label\na,A\n", required=["label", "text"])
    assert "data.txt:1: no column 'text'; found 'Text', 'label'" in message
    assert "did you mean 'Text'?" in message


def test_a_wrong_delimiter_is_recognised(tmp_path: Path) -> None:
    message = refused(tmp_path, "text;label\na;A\n", required=["text"])
    assert 'source.delimiter: ";"' in message


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("text,text", "two columns are named 'text'"),
        (",text", "column 1 has no name"),
        ("text,_row", "the column name '_row' is reserved"),
        ("text,_load_id", "the column name '_load_id' is reserved"),
        ('"te"xt,label', "the header is unusable: malformed_quotes"),
    ],
)
def test_an_unusable_header_names_file_and_line(tmp_path: Path, header: str, told: str) -> None:
    message = refused(tmp_path, f"{header}\na,A\n")
    assert f"data.txt:1: {told}" in message
    assert "fix: " in message


def test_a_wrong_encoding_names_the_first_bad_line_and_the_fix(tmp_path: Path) -> None:
    content = "text,label\nfine,A\ngrün,A\nrötlich,B\nschön,C\n".encode("latin-1")
    message = refused(tmp_path, content)
    assert "data.txt:3: this is not utf-8 text" in message
    assert "source.encoding: cp1252" in message


def test_a_header_in_another_encoding_is_refused(tmp_path: Path) -> None:
    assert "data.txt:1: " in refused(tmp_path, "größe,label\na,A\nb,B\nc,C\n".encode("latin-1"))


@pytest.mark.parametrize("fmt", [CSV, JSONL])
def test_utf_16_without_a_mark_is_recognised(tmp_path: Path, fmt: FileFormat) -> None:
    content = FINE if fmt is CSV else '{"text": "a"}\n{"text": "b"}\n'
    assert "source.encoding: utf-16-le" in refused(tmp_path, content.encode("utf-16-le"), fmt)


def test_an_unknown_encoding_or_delimiter_is_refused_when_declared() -> None:
    with pytest.raises(SourceError, match="unknown text encoding 'utf8000'"):
        FileFormat("csv", "utf8000")
    with pytest.raises(SourceError, match="a delimiter is one character"):
        FileFormat("csv", delimiter=", ")


def test_a_damaged_gzip_is_refused_not_cut_short(tmp_path: Path) -> None:
    packed = gzip.compress(("text,label\n" + "one,A\n" * 5_000).encode())
    assert "damaged gzip" in refused(tmp_path, packed[:-20], name="d.csv.gz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.csv: cannot be read"):
        list(read_batches([("gone.csv", tmp_path / "gone.csv")], CSV, required_columns=[]))


# --- JSON lines ---

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | CELL
)
VALUE = st.recursive(
    SCALAR, lambda v: st.lists(v, max_size=3) | st.dictionaries(CELL, v, max_size=3), max_leaves=6
)
KEY = CELL.filter(lambda key: key != "" and not key.startswith("_"))


@quick
@given(
    rows=st.lists(st.dictionaries(KEY, VALUE, min_size=1, max_size=4), min_size=1, max_size=8),
    ascii_only=st.booleans(),
    batch_rows=st.integers(1, 4),
)
def test_every_json_value_comes_back(
    tmp_path: Path, rows: list[dict[str, Any]], ascii_only: bool, batch_rows: int
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    frame = read(tmp_path, "\n".join(lines), JSONL, batch_rows=batch_rows)
    assert problems(frame) == {}
    for row, cells in zip(rows, frame.iter_rows(named=True), strict=True):
        for key, value in row.items():
            is_text = value is None or isinstance(value, str)
            assert (cells[key] if is_text else json.loads(cells[key])) == value


def test_numbers_keep_their_text_and_nesting_is_compact_json(tmp_path: Path) -> None:
    line = '{"id": 12345678901234567890123, "x": 1.50, "y": true, "n": {"a": [1.0, null, "é"]}}'
    row = read(tmp_path, line, JSONL).row(0, named=True)
    assert (row["id"], row["x"], row["y"]) == ("12345678901234567890123", "1.50", "true")
    assert row["n"] == '{"a":[1.0,null,"é"]}'


def test_late_keys_become_columns_and_are_null_before(tmp_path: Path) -> None:
    frame = read(tmp_path, '{"text":"a"}\n{"text":"b","more":"x"}\n', JSONL, batch_rows=1)
    assert frame["more"].to_list() == [None, "x"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "malformed_json"),
        (b'{"text": NaN}', "malformed_json"),
        (b'{"text": ' + b"[" * 100_000, "malformed_json"),
        (b"[1, 2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"text": "x", "text": "y"}', "duplicate_key"),
        (b'{"text": {"a": 1, "a": 2}}', "duplicate_key"),
        (b'{"": "x"}', "empty_key"),
        (b'{"text": "\xff"}', "undecodable"),
        (b'{"text": "\\ud83d"}', "undecodable"),
        (b'{"text": "a\\u0000b"}', "nul_character"),
        (b'{"a\\u0000": "b"}', "nul_character"),
        (b'{"text": "a\0b"}', "nul_character"),
    ],
)
def test_a_bad_json_line_is_kept_with_its_reason(tmp_path: Path, line: bytes, problem: str) -> None:
    frame = read(tmp_path, b'{"text": "fine"}\n\n' + line + b'\n{"text": "\\u0041"}\n', JSONL)
    assert problems(frame) == {2: problem}
    assert texts(frame) == ["fine", None, "A"]
    assert frame.columns == ["text", *SERVICE_COLUMNS]


def test_a_key_that_no_row_has_is_a_missing_column(tmp_path: Path) -> None:
    message = refused(tmp_path, '{"txt": "a"}\n{"lab": "b"}\n', JSONL, required=["text"])
    assert "data.txt: no column 'text'; found 'txt', 'lab'" in message


def test_a_reserved_key_names_the_line(tmp_path: Path) -> None:
    message = refused(tmp_path, '{"text": "a"}\n{"_raw": "b"}\n', JSONL)
    assert "data.txt:2: the column name '_raw' is reserved" in message


def test_keys_that_are_data_are_refused(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({f"user {i}": 1}) for i in range(5_000))
    assert "more than 4096 columns" in refused(tmp_path, lines, JSONL)


def test_a_json_array_is_no_usable_row(tmp_path: Path) -> None:
    assert "no usable row" in refused(tmp_path, '[\n{"text": "a"},\n{"text": "b"},\n]\n', JSONL)


# --- Parquet ---


def as_parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, row_group_size=2)
    return buffer.getvalue()


def test_parquet_columns_become_text(tmp_path: Path) -> None:
    source = pl.DataFrame(
        {
            "text": ["a😀", None],
            "whole": [7, None],
            "real": [1.5, None],
            "yes": [True, None],
            "day": [date(2024, 2, 29), None],
            "long": [timedelta(hours=1), None],
            "list": [["x", 'y"'], None],
            "record": [{"a": 1, "b": [None, 2.5]}, None],
            "bytes": ["ü".encode(), None],
            "nothing": [None, None],
        },
        schema_overrides={"record": pl.Struct({"a": pl.Int8, "b": pl.List(pl.Float64)})},
    )
    frame = read(tmp_path, as_parquet(source), PARQUET, required=["text"])
    assert set(frame.drop("_row").dtypes) == {pl.String}
    assert frame.row(0)[:10] == (
        *("a😀", "7", "1.5", "true", "2024-02-29", "PT1H"),
        *('["x","y\\""]', '{"a":1,"b":[null,2.5]}', "ü", None),
    )
    assert frame.row(1)[:8] == (None,) * 8


def test_parquet_rows_count_on_over_row_groups(tmp_path: Path) -> None:
    content = as_parquet(pl.DataFrame({"text": [f"t{i}" for i in range(7)]}))
    frame = read(tmp_path, content, PARQUET, batch_rows=3)
    assert frame.select("text", "_row").rows() == [(f"t{i}", i + 1) for i in range(7)]


def test_bad_parquet_cells_make_problem_rows(tmp_path: Path) -> None:
    source = pl.DataFrame({"text": ["fine", "n\0l", "c"], "bytes": [b"a", b"b", b"\xff"]})
    frame = read(tmp_path, as_parquet(source), PARQUET)
    assert problems(frame) == {2: "nul_character", 3: "undecodable"}
    assert texts(frame) == ["fine", None, None]
    assert frame["_raw"].is_not_null().to_list() == [False, True, True]


@pytest.mark.parametrize("content", [b"", b"text,label\na,A\n", b"PAR1 but no more PAR1"])
def test_what_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "Parquet" in refused(tmp_path, content, PARQUET)


def test_parquet_without_rows_or_column_is_refused(tmp_path: Path) -> None:
    empty = as_parquet(pl.DataFrame({"text": []}, schema={"text": pl.String}))
    assert "no rows" in refused(tmp_path, empty, PARQUET, required=["text"])
    assert "no column 'label'" in refused(tmp_path, empty, PARQUET, required=["label"])


# --- which files, and which content ---


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "sub/c.csv", "sub/.hidden.csv", "data[1].csv", "sub/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FINE)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.csv", ["a.csv"]),
        ("*.csv", ["a.csv", "b.csv", "data[1].csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "data[1].csv", "sub/c.csv"]),
        ("sub/**", ["sub/c.csv", "sub/d.txt"]),
        ("sub/.*.csv", ["sub/.hidden.csv"]),
        ("data[1].csv", ["data[1].csv"]),
        ("./sub/../[ab].csv", ["a.csv", "b.csv"]),
    ],
)
def test_patterns_give_sorted_relative_names(tree: Path, pattern: str, names: list[str]) -> None:
    found = expand(pattern, base=tree)
    assert [name for name, _ in found] == names
    assert all(path.is_file() for _, path in found)


def test_a_file_outside_the_base_is_named_without_its_place(tree: Path) -> None:
    base = tree / "elsewhere"
    assert expand(f"{tree}/sub/*.csv", base=base) == [("c.csv", tree / "sub/c.csv")]
    assert expand("../*/c.csv", base=base) == [("sub/c.csv", tree / "sub/c.csv")]


@pytest.mark.parametrize("pattern", ["nothing.csv", "*.parquet", "sub"])
def test_no_match_is_an_error_with_the_fix(tree: Path, pattern: str) -> None:
    with pytest.raises(SourceError, match=r"no file matches .*(?s:.*)fix: check the path"):
        expand(pattern, base=tree)


def test_a_fingerprint_follows_content_and_name_only(tree: Path, tmp_path: Path) -> None:
    paths = expand("*.csv", base=tree)
    before = fingerprint(paths, CSV)
    assert fingerprint(paths[::-1], CSV) == before
    (tree / "a.csv").touch()
    assert fingerprint(paths, CSV) == before
    assert fingerprint([("other", path) for _, path in paths], CSV) != before
    (tree / "a.csv").write_text(FINE + "three,C\n")
    assert fingerprint(paths, CSV) != before


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("csv", (True, True)), ("jsonl", (True, False)), ("parquet", (False,) * 2)],
)
def test_a_fingerprint_holds_what_shapes_the_reading(
    tree: Path, kind: Literal["csv", "jsonl", "parquet"], changes: tuple[bool, bool]
) -> None:
    paths = expand("a.csv", base=tree)
    plain = fingerprint(paths, FileFormat(kind))
    others = (FileFormat(kind, "latin-1"), FileFormat(kind, delimiter=";"))
    assert tuple(fingerprint(paths, other) != plain for other in others) == changes
