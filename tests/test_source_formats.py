"""What a file may hold beside what is read, and the formats of files: no row is lost to either."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.errors import SourceError
from synth_assets.exports.huggingface import Classes, card_features, write_shards
from synth_assets.sources import cards, json_records
from synth_assets.sources.files import fingerprint, read_batches
from synth_assets.sources.parquet import class_names
from synth_assets.sources.readers import format_of, suffix_of
from synth_assets.sources.records import FileFormat, FormatName, Remarks
from tests.releases import rows as released_rows

READ = ("text", "label")


def read(
    folder: Path,
    content: bytes | str,
    kind: FormatName = "csv",
    *,
    required: Sequence[str] = READ,
    name: str = "data",
    encoding: str = "utf-8",
    **options: Any,
) -> tuple[pl.DataFrame, list[str]]:
    """The raw frame, and what is told of it."""
    path, remarks = folder / name, Remarks()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    batches = read_batches(
        [(name, path)],
        FileFormat(kind, encoding),
        required_columns=required,
        scalar_columns=required,
        remarks=remarks,
        **options,
    )
    return pl.concat(list(batches), how="diagonal"), remarks.told()


def refused(folder: Path, content: bytes | str, kind: FormatName = "csv", **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, content, kind, **options)
    return str(caught.value)


def problems(frame: pl.DataFrame) -> list[str | None]:
    return frame["_problem"].to_list()


def parquet(frame: pl.DataFrame, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, **options)
    return buffer.getvalue()


# --- columns that nothing reads ---


def test_cells_of_csv_that_nothing_reads_cost_no_row(tmp_path: Path) -> None:
    content = b"text,note,label\none,\xff,A\ntwo,n\0l,B\nth\0ree,x,C\n\xff,y,D\nfive,z,E\n"
    frame, told = read(tmp_path, content)
    assert problems(frame) == [None, None, "nul_character", "undecodable", None]
    assert frame["text"].to_list() == ["one", "two", None, None, "five"]
    assert frame["note"].to_list() == [None, None, None, None, "z"]
    assert told == [
        "column 'note', which nothing reads: 1 cells left empty (nul_character)",
        "column 'note', which nothing reads: 1 cells left empty (undecodable)",
    ]


def test_a_csv_column_of_bytes_is_no_wrong_encoding(tmp_path: Path) -> None:
    content = b"text,blob,label\n" + b"fine,\xff\xfe\0,A\n" * 9
    frame, told = read(tmp_path, content)
    assert frame["text"].to_list() == ["fine"] * 9
    assert "'blob', which nothing reads: 9 cells" in told[0]
    wrong = b"text,blob,label\n" + "gr\xfcn,x,A\n".encode("latin-1") * 9
    assert "source.encoding: cp1252" in refused(tmp_path, wrong)


@pytest.mark.parametrize(
    ("header", "left_out"),
    [
        (",text,label", "column 'no. 1' is left out: it has no name"),
        ("_row,text,label", "column '_row' is left out: its name is reserved"),
        ("text,label,x,x", "column 'x' is left out: another one has the same name"),
    ],
)
def test_a_column_whose_name_cannot_stand_is_left_out_unless_it_is_read(
    tmp_path: Path, header: str, left_out: str
) -> None:
    content = f"{header}\n" + ",".join("abcd"[: header.count(",") + 1]) + "\n"
    frame, told = read(tmp_path, content)
    assert problems(frame) == [None]
    assert told == [left_out]
    assert frame["_row"].to_list() == [1]
    refused(tmp_path, content, every_name=True)  # extra_columns: freeze
    assert "two columns are named 'text'" in refused(tmp_path, "text,label,text\na,b,c\n")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (b'"x": NaN', "malformed_json"),
        (b'"x": [1.5, -Infinity]', "malformed_json"),
        (b'"x": {"deep": NaN}', "malformed_json"),
        (b'"x": "\xff"', "undecodable"),
        (b'"x": "\\ud83d"', "undecodable"),
        (b'"x": "a\\u0000b"', "nul_character"),
        (b'"x": "a\0b"', "nul_character"),
        (b'"x": {"a": 1, "a": 2}', "duplicate_key"),
        (b'"x": 1, "x": 2', "duplicate_key"),
    ],
)
def test_values_of_json_that_nothing_reads_cost_no_row(
    tmp_path: Path, kind: Any, cell: bytes, why: str
) -> None:
    ends = (b"[", b",\n", b"]") if kind == "json" else (b"", b"\n", b"")
    fine = b'{"text": "one", "label": "A", "x": 7}'
    flawed = b'{"text": "two", "label": "B", ' + cell + b"}"
    read_too = flawed.replace(b'"text": "two"', b'"y": "two"').replace(b'"x"', b'"text"')
    content = ends[0] + ends[1].join([fine, flawed, fine, fine, read_too]) + ends[2]
    frame, told = read(tmp_path, content, kind)
    assert problems(frame) == [None, None, None, None, why]
    assert frame["text"].to_list() == ["one", "two", "one", "one", None]
    assert frame["x"].to_list() == ["7", None, "7", "7", None]
    assert told == [f"column 'x', which nothing reads: 1 cells left empty ({why})"]
    whole, _ = read(tmp_path, content, kind, required=())  # nothing named: everything is read
    assert problems(whole) == [None, why, None, None, why]


@pytest.mark.parametrize("key", ['""', '"_source"', '"a\\u0000"'])
def test_keys_of_json_that_cannot_stand_are_left_out(tmp_path: Path, key: str) -> None:
    lines = f'{{"text": "one", "label": "A", {key}: 1}}\n' * 2
    frame, told = read(tmp_path, lines, "jsonl")
    assert problems(frame) == [None, None]
    assert len(told) == 1
    assert "is left out" in told[0]


def test_a_line_that_is_no_json_is_a_problem_whatever_is_read(tmp_path: Path) -> None:
    frame, _ = read(tmp_path, '{"text": "a", "label": "A"}\n{"text": \n[1]\n7\nnull\n', "jsonl")
    assert problems(frame) == [None, "malformed_json", *["not_an_object"] * 3]


LEAVES: dict[str, pl.Series] = {
    "bytes": pl.Series([b"\x89PNG\0\xff", None]),
    "text": pl.Series(["n\0l", None]),
    "float": pl.Series([float("nan"), None]),
    "duration": pl.Series([timedelta(days=1), None]),
    "decimal": pl.Series([Decimal("1.50"), None]),
    "date": pl.Series([date(2024, 2, 29), None]),
    "time": pl.Series([time(1, 2), None]),
    "moment": pl.Series([datetime(2024, 1, 1), None]),
    "zoned": pl.Series([datetime(2024, 1, 1), None]).dt.replace_time_zone("Europe/Paris"),
    "category": pl.Series(["a", None], dtype=pl.Categorical),
    "enum": pl.Series(["a", None], dtype=pl.Enum(["a"])),
    "nothing": pl.Series([None, None]),
    "wide": pl.Series([2**90, None], dtype=pl.Int128),
    "small": pl.Series([1, None], dtype=pl.UInt8),
    "boolean": pl.Series([True, None]),
}
NESTINGS: dict[str, Any] = {
    "itself": lambda x: x,
    "struct": lambda x: pl.struct(x, pl.lit("a.png").alias("path")),
    "list": lambda x: pl.concat_list(x),
    "array": lambda x: pl.concat_list(x).list.to_array(1),
    "deep": lambda x: pl.concat_list(pl.struct(pl.concat_list(pl.struct(x)).alias("l"))),
}


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("nesting", NESTINGS)
def test_no_type_of_parquet_costs_a_row_or_panics(tmp_path: Path, leaf: str, nesting: str) -> None:
    cells = LEAVES[leaf].alias("x").to_frame().select(NESTINGS[nesting](pl.col("x")).alias("x"))
    named = pl.DataFrame({"text": ["one", "two"], "label": ["A", "B"]})
    frame, told = read(tmp_path, parquet(named.with_columns(cells["x"])), "parquet")
    assert problems(frame) == [None, None]
    assert frame["text"].to_list() == ["one", "two"]
    kept = frame["x"][0]
    if leaf == "bytes":
        assert len(told) == 1
        assert "PNG" not in str(kept)
    if nesting != "itself":
        json.loads(kept)
        assert nesting != "struct" or json.loads(kept)["path"] == "a.png"


def test_images_are_left_out_and_their_paths_stay(tmp_path: Path) -> None:
    image = [
        {"bytes": b"\xff\xd8" * 50_000, "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        None,
    ]
    frame = pl.DataFrame({"text": ["a", "b", "c"], "label": ["A", "B", "C"], "image": image})
    found, told = read(tmp_path, parquet(frame), "parquet")
    assert found["image"].to_list() == [
        *('{"bytes":null,"path":"a.png"}', '{"bytes":null,"path":"b.png"}', None)
    ]
    assert told == ["column 'image', which nothing reads: 2 cells without the bytes in them"]


def test_cells_of_parquet_that_are_read_still_cost_their_row(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"text": ["n\0l", "two", "three"], "label": [b"A", b"\xff", b"C"], "x": [b"\xff"] * 3}
    )
    found, told = read(tmp_path, parquet(frame), "parquet")
    assert problems(found) == ["nul_character", "undecodable", None]
    assert told == ["column 'x', which nothing reads: 3 cells left empty (undecodable)"]


# --- encodings ---


@pytest.mark.parametrize(
    ("encoding", "text", "told"),
    [
        ("cp1252", "gr\xfcn", "cp1252"),
        ("cp1252", "\u201egr\xfcn\u201c \u2013 10 \u20ac", "cp1252"),
        ("latin-1", "gr\xfcn", "cp1252"),  # the same bytes
        ("utf-16-le", "gr\xfcn", "utf-16-le"),
        ("utf-16-be", "gr\xfcn", "utf-16-be"),
        ("shift_jis", "\u53f0\u5e2b\u30fc\u30bd", "what it was written in"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_wrong_encoding_is_told_by_what_the_bytes_look_like(
    tmp_path: Path, kind: Any, encoding: str, text: str, told: str
) -> None:
    records = [{"text": f"{text} {n}", "label": "A"} for n in range(9)]
    written = {
        "csv": "text,label\n" + "".join(f"{r['text']},A\n" for r in records),
        "jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records),
        "json": json.dumps(records, ensure_ascii=False, indent=1),
    }[kind]
    message = refused(tmp_path, written.encode(encoding), kind)
    assert f"source.encoding: {told}" in message
    assert "latin-1" not in message
    if told.startswith(("cp", "utf")):
        found, _ = read(tmp_path, written.encode(encoding), kind, encoding=told)
        assert found["text"][0] == f"{text} 0"


def test_a_byte_order_mark_overrules_what_is_declared(tmp_path: Path) -> None:
    content = "text,label\ngr\xfcn,A\n"
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        assert (
            read(tmp_path, content.encode(encoding), encoding="cp1252")[0]["text"][0] == "gr\xfcn"
        )


def test_a_windows_file_that_is_declared_as_latin_1_is_told(tmp_path: Path) -> None:
    content = "text,label\n\u201egr\xfcn\u201c,A\n".encode("cp1252")
    _, told = read(tmp_path, content, encoding="latin-1")
    assert "source.encoding: cp1252" in told[0]
    assert read(tmp_path, "text,label\ngr\xfcn,A\n".encode("cp1252"), encoding="latin-1")[1] == []


# --- JSON documents ---

ROWS = [{"text": "one", "label": "A"}, {"text": "tw\u00f6\n[{,", "label": "B"}]


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\ufeff\n " + json.dumps(ROWS) + "\n\n",
        "\n".join(map(json.dumps, ROWS)),
        "\n\n".join(map(json.dumps, ROWS)) + "\n",
        "".join(json.dumps(row, indent=1) + "\n" for row in ROWS),
        json.dumps({"version": 1, "data": ROWS, "none": []}),
        json.dumps({"meta": {"n": 2}, "rows": ROWS}, indent=3),
        json.dumps(ROWS)[:-1] + ",\n]",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_json_document_gives_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, packed: bool, chunk: int
) -> None:
    monkeypatch.setattr(json_records, "CHUNK_CHARS", chunk)
    body = gzip.compress(written.encode()) if packed else written.encode()
    frame, _ = read(tmp_path, body, "json", name="d.json.gz" if packed else "d.json", batch_rows=1)
    assert frame.select("text", "label").to_dicts() == ROWS
    assert problems(frame) == [None, None]
    assert frame["_row"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"text": {"0": "a"}, "label": {"0": "A"}}', "holds columns, not rows ('text', 'label')"),
        ('{"text": ["a"], "label": ["A"]}', "holds columns, not rows"),
        ('{"a": [{"text": "x"}], "b": [{"text": "y"}]}', "several lists"),
        ('{"text": "a"}', "a part of a record"),
        ('{"x": 1}', "no column 'text'; found 'x'"),
        ('[{"text": "a", "label": "A"},', "d.json:1: not a JSON array of records: the array"),
        ('[{"text": "a", "label": "A"}\n{"text"', "no comma"),
        ('[{"text": "a", "label": "A"},\n{"text"]', "d.json:2: not a JSON array"),
        ('[{"text": "a", "label": "A"}] []', "something follows"),
        ("[" + '[{"a":' * 30_000, "nested too deeply"),
        ('"text"', "neither an array nor an object"),
        ("[]", "no rows"),
        ("", "no rows"),
        ("[1, null]", "no usable row (2 not_an_object)"),
    ],
)
def test_a_json_document_without_records_is_one_clear_error(
    tmp_path: Path, written: str, told: str
) -> None:
    message = refused(tmp_path, written, "json", name="d.json")
    assert told in message
    assert "d.json" in message


def test_one_object_may_be_one_row(tmp_path: Path) -> None:
    frame, _ = read(tmp_path, json.dumps(ROWS[0] | {"tags": [{"x": 1}]}, indent=1), "json")
    assert frame.select("text", "label").rows() == [("one", "A")]


def test_a_json_array_is_read_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "CHUNK_CHARS", 4_000)
    monkeypatch.setattr(json_records, "MAX_VALUE_CHARS", 10_000)
    many = [{"text": f"row {n}", "label": "A", "n": n * 10**18} for n in range(3_000)]
    frame, _ = read(tmp_path, json.dumps(many), "json")
    assert frame["n"].to_list() == [str(row["n"]) for row in many]
    told = refused(tmp_path, json.dumps([{"text": "x" * 40_000, "label": "A"}]), "json")
    assert "one value is longer than 10,000 characters" in told


# --- workbooks ---


def workbook(*sheets: Sequence[Sequence[Any]]) -> bytes:
    """An .xlsx with inline texts and numbers, by hand: no library here writes one."""

    def cell(value: Any) -> str:
        if value is None:
            return "<c/>"
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    main = "http://schemas.openxmlformats.org"
    names = range(1, len(sheets) + 1)
    listed = "".join(f'<sheet name="S{n}" sheetId="{n}" r:id="r{n}"/>' for n in names)
    related = "".join(
        f'<Relationship Id="r{n}" Target="worksheets/s{n}.xml" '
        f'Type="{main}/officeDocument/2006/relationships/worksheet"/>'
        for n in names
    )
    kinds = "".join(
        f'<Override PartName="/xl/worksheets/s{n}.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>'
        for n in names
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{main}/package/2006/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/xl/workbook.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
        f"{kinds}</Types>",
        "_rels/.rels": f'<Relationships xmlns="{main}/package/2006/relationships">'
        '<Relationship Id="r" Target="xl/workbook.xml" '
        f'Type="{main}/officeDocument/2006/relationships/officeDocument"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}/spreadsheetml/2006/main" '
        f'xmlns:r="{main}/officeDocument/2006/relationships"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{main}/package/2006/relationships">'
        f"{related}</Relationships>",
    }
    for number, table in zip(names, sheets, strict=True):
        body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in table)
        parts[f"xl/worksheets/s{number}.xml"] = (
            f'<worksheet xmlns="{main}/spreadsheetml/2006/main"><sheetData>{body}</sheetData>'
            "</worksheet>"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in parts.items():
            packed.writestr(name, '<?xml version="1.0" encoding="UTF-8"?>' + text)
    return buffer.getvalue()


TABLE = [["text", "label", "n"], ["gr\u00fcn", "A", 7], [None, None, None], ["007", "B", 1.5]]


def test_a_workbook_gives_the_rows_of_its_first_sheet(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    frame, told = read(tmp_path, workbook(TABLE, [["other"]], []), "excel", batch_rows=1)
    assert frame.select("text", "label", "n").rows() == [
        ("gr\u00fcn", "A", "7"),
        ("007", "B", "1.5"),
    ]
    assert frame["_row"].to_list() == [1, 2]
    assert told == ["data: only the first sheet, 'S1', is read; not: 'S2'"]
    assert "no column 'label'" in refused(tmp_path, workbook([["text"], ["a"]]), "excel")
    assert "no rows" in refused(tmp_path, workbook([]), "excel")
    assert "save the sheet as CSV" in refused(tmp_path, b"no workbook", "excel")


def test_without_its_library_a_workbook_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    message = refused(tmp_path, workbook(TABLE), "excel", name="a.xlsx")
    assert "a.xlsx" in message
    assert "synth_assets[excel]" in message
    assert "save the sheet as CSV" in message


def test_a_file_that_is_something_else_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    table = parquet(pl.DataFrame({"text": ["a"]}))
    for content, told in ((workbook(TABLE), "excel"), (table, "parquet"), (b"%PDF-1.7\n", "CSV")):
        for kind in ("csv", "jsonl", "json"):
            assert told in refused(tmp_path, content, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b"text,label\na,A\n"), "packed as gzip"),
        (b"BZh91AY&SY\xff", "packed as bz2"),
        (b"\x28\xb5\x2f\xfd\x20", "packed as zst"),
        (b"\xfd7zXZ\0\0", "packed as xz"),
    ],
)
def test_a_packed_file_without_its_ending_is_no_question_of_encoding(
    tmp_path: Path, content: bytes, told: str
) -> None:
    message = refused(tmp_path, content)
    assert told in message
    assert "encoding" not in message


def test_an_array_in_a_file_of_lines_names_its_format(tmp_path: Path) -> None:
    for content in (json.dumps(ROWS, indent=1), json.dumps(ROWS)[:-1]):
        assert "source.format: json, if" in refused(tmp_path, content, "jsonl", name="a.jsonl")


# --- which format ---


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        ("a.csv", ["a.csv"], "csv"),
        ("a.CSV.gz", ["a.CSV.gz"], "csv"),
        ("a.tsv", ["a.tsv"], "csv"),
        ("a.txt", ["a.txt"], "csv"),
        ("a", ["a"], "csv"),
        ("v1.2/a", ["v1.2/a"], "csv"),
        ("a.json", ["a.json"], "json"),
        ("a.json.gz", ["a.json.gz"], "json"),
        ("*.NDJSON", ["a.NDJSON"], "jsonl"),
        ("data/*", ["data/a.parquet", "data/b.parq"], "parquet"),
        ("data/**", ["data/a.jsonl"], "jsonl"),
        ("a.xlsx", ["a.xlsx"], "excel"),
        ("a.xls", ["a.xls"], "excel"),
        ("a.ods", ["a.ods"], "excel"),
    ],
)
def test_a_name_says_the_format(pattern: str, names: list[str], expected: str) -> None:
    assert format_of(pattern, names) == expected


@pytest.mark.parametrize(
    ("pattern", "names", "told"),
    [
        ("a.docx", ["a.docx"], "files named .docx are not read"),
        ("a.feather", ["a.feather"], "jsonl, parquet and excel"),
        ("a.csv.zip", ["a.csv.zip"], "packed as zip"),
        ("a.jsonl.zst", ["a.jsonl.zst"], "packed as zst"),
        ("data/*", ["data/a.csv", "data/b.parquet"], "several formats (csv, parquet)"),
    ],
)
def test_a_name_of_another_format_is_refused(pattern: str, names: list[str], told: str) -> None:
    with pytest.raises(SourceError) as caught:
        format_of(pattern, names)
    assert told in str(caught.value)
    assert suffix_of("A.TSV.gz") == ".tsv"


# --- classes of Hugging Face datasets ---

NAMES = ["neg", "pos"]
VALUE = {"dtype": "string", "_type": "Value"}
LABEL = {"names": NAMES, "_type": "ClassLabel"}


def with_features(**features: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {"text": VALUE, **features}}})}


def numbers(labels: Sequence[int | None], **more: Any) -> pl.DataFrame:
    return pl.DataFrame({"text": ["t"] * len(labels), "label": labels, **more})


@pytest.mark.parametrize("kind", [pl.Int64, pl.Int8, pl.UInt16, pl.Float64, pl.Float32])
def test_class_labels_of_parquet_become_names(tmp_path: Path, kind: Any) -> None:
    frame = numbers([0, 1, None, 7]).cast({"label": kind})
    found, _ = read(tmp_path, parquet(frame, metadata=with_features(label=LABEL)), "parquet")
    assert found["label"].to_list() == ["neg", "pos", None, None]
    assert problems(found) == [None, None, None, "unknown_class"]
    assert json.loads(found["_raw"][3])["label"] == 7


def test_a_number_that_is_none_is_no_cell_where_it_is_read(tmp_path: Path) -> None:
    nan = float("nan")
    frame = numbers([0, 1, 0, 1]).with_columns(label=pl.Series([0.0, nan, -1.0, 1.5]))
    found, _ = read(tmp_path, parquet(frame, metadata=with_features(label=LABEL)), "parquet")
    assert found["label"].to_list() == ["neg", None, None, None]
    assert problems(found) == [None, None, None, "unknown_class"]
    found, _ = read(tmp_path, parquet(frame.with_columns(x=pl.lit(nan))), "parquet")
    assert found["label"].to_list() == ["0.0", None, "-1.0", "1.5"]
    assert found["x"][0] == "NaN", "a column that nothing reads stays as it is"


def test_minus_one_is_no_label_and_others_are_only_counted_where_nothing_reads(
    tmp_path: Path,
) -> None:
    lists = pl.Series([[0, 1], [], None, [1, 9]])
    frame = numbers([-1, 0, 1, -1], tags=lists, other=[5, 0, -1, 1])
    old = [{"names": NAMES, "_type": "ClassLabel"}]
    body = parquet(frame, metadata=with_features(label=LABEL, tags=old, other=LABEL))
    found, told = read(tmp_path, body, "parquet")
    assert found["label"].to_list() == [None, "neg", "pos", None]
    assert problems(found) == [None] * 4
    assert found["tags"].to_list() == ['["neg","pos"]', "[]", None, None]
    assert found["other"].to_list() == [None, "neg", None, "pos"]
    assert [line.partition(":")[2] for line in told] == [" 1 cells left empty (unknown_class)"] * 2


def test_numbers_stay_where_they_are_declared_or_nothing_names_them(tmp_path: Path) -> None:
    body = parquet(numbers([0, 1]), metadata=with_features(label=LABEL))
    found, _ = read(tmp_path, body, "parquet", number_columns=["label"])
    assert found["label"].to_list() == ["0", "1"]
    names = numbers([0, 1]).with_columns(label=pl.Series(NAMES))
    found, _ = read(tmp_path, parquet(names, metadata=with_features(label=LABEL)), "parquet")
    assert found["label"].to_list() == NAMES
    for broken in ("{", "[]", '{"info": 1}', '{"info": {"features": {"label": {"names": 3}}}}'):
        found, _ = read(
            tmp_path, parquet(numbers([0, 1]), metadata={"huggingface": broken}), "parquet"
        )
        assert found["label"].to_list() == ["0", "1"]


def test_the_names_of_classes_are_part_of_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(numbers([0, 1])))
    files, form = [("a.parquet", path)], FileFormat("parquet")
    plain = fingerprint(files, form)
    assert fingerprint(files, form, {}) == plain
    versions = {plain, *(fingerprint(files, form, {"label": n}) for n in (NAMES, NAMES[::-1]))}
    assert len(versions) == 3


CARD = """---
license: mit
dataset_info:
{infos}
---
# Card
dataset_info: nothing
"""


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        (
            ["{features: [{name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}]}"],
            NAMES,
        ),
        (["{features: [{name: label, dtype: {class_label: {names: [neg, pos]}}}]}"], NAMES),
        (["{features: [{name: label, sequence: {class_label: {names: [neg, pos]}}}]}"], NAMES),
        (["{features: [{name: label, dtype: int64}]}"], None),
        (["{features: [{name: label, dtype: {class_label: {names: {'1': pos}}}}]}"], None),
        (["3"], None),
        (["[a"], None),
    ],
)
def test_a_card_beside_the_file_names_the_classes(
    tmp_path: Path, infos: list[str], expected: list[str] | None
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "README.md").write_text(CARD.format(infos="".join(f"  {i}\n" for i in infos)))
    wanted = {"label": expected} if expected else {}
    assert cards.beside(data / "a.parquet") == cards.beside(tmp_path / "a.parquet") == wanted


def test_configurations_that_differ_name_nothing(tmp_path: Path) -> None:
    one = "- {features: [{name: label, dtype: {class_label: {names: [a, b]}}}]}"
    other = one.replace("[a, b]", "[b, a]")
    for infos, expected in (([one, one], {"label": ["a", "b"]}), ([one, other], {})):
        (tmp_path / "README.md").write_text(CARD.format(infos="\n".join(infos)))
        assert cards.class_names(tmp_path / "README.md") == expected


def test_our_own_export_is_read_back_with_names(tmp_path: Path) -> None:
    """By the card for what older versions wrote, by the shard's own metadata for one alone."""
    table = released_rows(20)
    names = tuple(table["label"].unique().sort())
    write_shards(
        table.lazy(), tmp_path, "train", schema=table.schema, classes=Classes("label", names)
    )
    (shard,) = tmp_path.glob("*.parquet")
    assert class_names(shard) == {"label": list(names)}
    stored = pl.read_parquet(shard)
    assert stored["label"].dtype.is_integer()
    found, _ = read(tmp_path, shard.read_bytes(), "parquet")
    kept = table["text"].str.contains("\0", literal=True).not_()
    assert found.filter(kept)["label"].to_list() == table.filter(kept)["label"].to_list()
    features: Mapping[str, Any] = {f["name"]: f for f in card_features(table.schema, None)}
    assert features.keys() == set(table.columns)
    bare, _ = read(tmp_path, parquet(stored), "parquet", classes={"label": list(names)})
    assert bare["label"].to_list() == found["label"].to_list()
