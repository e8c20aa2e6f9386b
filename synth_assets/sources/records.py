"""Records out of one file: CSV, JSON lines or Parquet, each kept with the reason it is unusable.

What is wrong with a whole file (a column that is missing, another encoding) raises
``SourceError``; a record that is wrong alone is a row with a problem.

Limits: CSV quotes follow RFC 4180 strictly. After a broken quote, reading goes on at the next
line, so the rest of a many-line cell may be read as records of its own. JSON numbers keep their
text, nested values become compact JSON.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import itertools
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources import MAX_RAW_CHARS, RESERVED, SERVICE_COLUMNS
from synth_assets.sources.contract import Tally, changed_type

MAX_CELL_CHARS = 64 * 2**20
MAX_COLUMNS = 4_096
# A batch ends early at this size, so that large cells do not add up to all of memory.
MAX_BATCH_CHARS = 64 * 2**20
# The encoding of a whole file is judged on its first lines, up to so many lines or characters.
SAMPLE_LINES, SAMPLE_CHARS = 1_000, 8 * 2**20

Reader = Callable[[str, Path, "FileFormat", "Needed", int], Iterator[pl.DataFrame]]

_SURROGATES = "synth_assets.surrogates"
_NOT_TEXT = re.compile("[\ud800-\udfff\0]")
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class FileFormat:
    """How the files of one source are written; a byte order mark overrules ``encoding``.

    Raises ``SourceError`` on an unknown encoding or a delimiter that is not one character.
    """

    format: Literal["csv", "jsonl", "parquet"]
    encoding: str = "utf-8"
    delimiter: str = ","

    def __post_init__(self) -> None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding)
        except LookupError as error:
            raise SourceError(
                f"unknown text encoding {shown(self.encoding)}",
                where="source.encoding",
                fix="a name Python knows: utf-8, utf-16, latin-1, cp1252, shift_jis, ...",
            ) from error
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0 ':
            raise SourceError(
                f"a delimiter is one character, not {shown(self.delimiter)}",
                where="source.delimiter",
                fix='for example "," or ";" or "\\t"',
            )


@dataclass(frozen=True)
class Needed:
    """Columns that must be there, and those in which a list or an object is wrong."""

    columns: Sequence[str] = ()
    scalar: frozenset[str] = frozenset()


def check_columns(columns: Sequence[str], required: Sequence[str], where: str) -> None:
    """Raise ``SourceError`` for column names that are unusable, or not the ones needed."""
    if len(columns) > MAX_COLUMNS:
        raise SourceError(
            f"more than {MAX_COLUMNS} columns",
            where=where,
            fix="keys that are data: make them rows",
        )
    if "" in columns:
        raise SourceError(
            f"column {columns.index('') + 1} has no name",
            where=where,
            fix="name it, or leave it out (pandas: to_csv(..., index=False))",
        )
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise SourceError(
            f"two columns are named {shown(twice[0])}", where=where, fix="rename one of them"
        )
    if taken := [name for name in columns if name in RESERVED]:
        raise SourceError(
            f"the column name {shown(taken[0])} is reserved", where=where, fix="rename the column"
        )
    for name in required:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            close = close or [found for found in columns if found.lower() == name.lower()]
            fix = f"did you mean {shown(close[0])}?" if close else "name one of the columns found"
            if len(columns) == 1 and (other := [d for d in ";\t|," if d in columns[0]]):
                fix = f"another delimiter? source.delimiter: {json.dumps(other[0])}"
            found = ", ".join(shown(column) for column in columns[:30])
            raise SourceError(f"no column {shown(name)}; found {found}", where=where, fix=fix)


# --- text ---


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    """As ``surrogateescape``, but for bytes below 0x80 too, which UTF-16 may find undecodable."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in bad), error.end


codecs.register_error(_SURROGATES, _as_surrogates)


def _not_text(text: str) -> str | None:
    """Why ``text`` cannot travel as text, if it cannot."""
    if not text.isascii():
        try:
            text.encode()  # many times faster than a search, and nearly always fine
        except UnicodeEncodeError:
            return "undecodable"
    return "nul_character" if "\0" in text else None


def _escaped(record: str) -> str:
    text = record[:MAX_RAW_CHARS].rstrip("\r\n")
    return _NOT_TEXT.sub(lambda m: f"\\x{ord(m[0]) & 0xFF:02x}", text)[:MAX_RAW_CHARS]


def _binary(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _text(name: str, path: Path, fmt: FileFormat) -> Iterator[IO[str]]:
    """The file's lines with their ends (LF, CRLF, CR); ``SourceError`` on the wrong encoding."""
    with _binary(path) as file:
        head = file.peek(4)[:4]
    encoding = next((codec for bom, codec in _BOMS if head.startswith(bom)), fmt.encoding)

    def decoded(file: Any) -> io.TextIOWrapper:
        # No newline translation: a CRLF inside a quoted cell belongs to the cell.
        return io.TextIOWrapper(file, encoding, _SURROGATES, newline="")

    with _binary(path) as file:
        _check_encoding(name, encoding, decoded(file), header=fmt.format == "csv")
    with _binary(path) as file:
        yield decoded(file)


def _check_encoding(name: str, encoding: str, lines: IO[str], *, header: bool) -> None:
    """Raise ``SourceError`` when the header, or most of the first lines, are not text."""
    found: list[str | None] = []
    chars = 0
    for line in itertools.islice(lines, SAMPLE_LINES):
        found.append(_not_text(line))
        chars += len(line)
        if chars > SAMPLE_CHARS:
            break
    rows = found[1:] if header else found
    wrong = next((p for p in found if p and rows.count(p) * 2 > len(rows)), None)
    wrong = (found[0] if header and found else None) or wrong
    if wrong:
        nul = wrong == "nul_character"
        other = "utf-16-le" if nul else "utf-8" if encoding == "utf-16" else "latin-1"
        raise SourceError(
            f"this is not {encoding} text ({'NUL characters' if nul else 'undecodable bytes'})",
            where=f"{name}:{found.index(wrong) + 1}",
            fix=f"source.encoding: {other} (or what it was written in)",
        )


def _raw_frame(
    columns: Sequence[pl.Series],
    source: str,
    first_row: int,
    bad: dict[int, tuple[str, str]],
    n: int,
) -> pl.DataFrame:
    """Source columns and service columns; ``bad`` is (problem, raw) by place, ``n`` the height."""
    fine = (None, None)
    found: list[tuple[str | None, str | None]] = [bad.get(i, fine) for i in range(n)]
    service = [
        pl.repeat(source, n, dtype=pl.String, eager=True),
        pl.int_range(first_row, first_row + n, dtype=pl.Int64, eager=True),
        pl.Series([problem for problem, _ in found], dtype=pl.String),
        pl.Series([raw for _, raw in found], dtype=pl.String),
    ]
    named = [series.alias(name) for name, series in zip(SERVICE_COLUMNS, service, strict=True)]
    return pl.DataFrame([*columns, *named])


@dataclass
class _Batch:
    """Text records on their way into one frame."""

    source: str
    size: int
    first_row: int = 1
    records: list[Any] = field(default_factory=list)
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    chars: int = 0

    def add(self, cells: Any, problem: str | None, raw: str) -> bool:
        """Whether the batch is now full."""
        if problem:
            self.bad[len(self.records)] = (problem, _escaped(raw))
        self.records.append(cells)
        self.chars += len(raw)
        return len(self.records) >= self.size or self.chars >= MAX_BATCH_CHARS

    def take(self, columns: Sequence[str], values: Iterable[Sequence[str | None]]) -> pl.DataFrame:
        """The frame of what was added (``values`` by column); the batch is empty again."""
        series = [pl.Series(c, v, pl.String) for c, v in zip(columns, values, strict=True)]
        n = len(self.records)
        frame = _raw_frame(series, self.source, self.first_row, self.bad, n)
        self.first_row += n
        self.records, self.bad, self.chars = [], {}, 0
        return frame


# --- CSV ---


class _Lines:
    """The lines of a file, remembering those of the current record."""

    def __init__(self, stream: IO[str]) -> None:
        self._next = stream.__next__
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._next()
        self.taken.append(line)
        return line

    def keep_first(self) -> None:
        """Give all but the first line of the current record back, to be read again."""
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _csv_records(lines: _Lines, delimiter: str) -> Iterator[tuple[list[str], str | None, str]]:
    """(cells, problem, the record as written); blank lines are no records.

    A stray quote would swallow all lines up to the next one, or to the end of the file. So a record
    that ends in an error is cut back to its first line. Lines are read again at most a few times:
    between a stray quote and its error there is no other quote that could open a record.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))  # of the whole process
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], "malformed_quotes"
            if len(lines.taken) > 1 or "unexpected end" in str(error):
                problem = "unterminated_quote"
            elif "field limit" in str(error):
                problem = "cell_too_large"
            lines.keep_first()
        if cells or problem:
            record = lines.taken[0] if len(lines.taken) == 1 else "".join(lines.taken)
            yield cells, _not_text(record) or problem, record


def _csv_frames(
    name: str, path: Path, fmt: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    with _text(name, path, fmt) as stream:
        records = _csv_records(_Lines(stream), fmt.delimiter)
        header, problem, _ = next(records, ([], None, ""))
        if problem:
            raise SourceError(
                f"the header is unusable: {problem}", where=f"{name}:1", fix="mend it"
            )
        if not header:
            return
        check_columns(header, needed.columns, f"{name}:1")
        batch, nothing = _Batch(name, size), [None] * len(header)
        for cells, found, record in records:
            problem = found or (None if len(cells) == len(header) else "wrong_field_count")
            if batch.add(nothing if problem else cells, problem, record):
                yield batch.take(header, zip(*batch.records, strict=True))
        if batch.records:
            yield batch.take(header, zip(*batch.records, strict=True))


# --- JSON lines ---


class _Number(str):
    """A JSON number as it was written: an id of 20 digits must not become a float."""


class _DuplicateKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)


def exact_json(text: str) -> Any:
    """A JSON value in which every number is its own text. Raises ``ValueError``."""
    try:
        return _JSON.decode(text)
    except _DuplicateKey:
        raise ValueError("an object has the same key twice") from None


def _json_text(value: Any) -> str | None:
    """A top-level string as it is, anything else as compact JSON, null as null."""
    return value if type(value) is str or value is None else compact_json(value)


def compact_json(value: Any) -> str:
    """A value of ``exact_json`` as compact JSON on one line, numbers as they were written."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{compact_json(k)}:{compact_json(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(compact_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _json_cells(line: str, scalar: frozenset[str], tally: Tally) -> tuple[Any, str | None]:
    """(cells by key, problem) of one line; what ``scalar`` columns hold is counted."""
    if problem := _not_text(line):
        return {}, problem
    try:
        found = _JSON.decode(line)
        if not isinstance(found, dict):
            return {}, "not_an_object"
        nested = tally.add(found, scalar)
        cells = {key: _json_text(value) for key, value in found.items()}
    except _DuplicateKey:
        return {}, "duplicate_key"
    except (ValueError, RecursionError):
        return {}, "malformed_json"
    if "\\u" in line:  # an escape may spell what no text may hold
        problem = next(filter(None, map(_not_text, (*cells, *filter(None, cells.values())))), None)
    if problem:
        return {}, problem
    return cells, "empty_key" if "" in cells else "wrong_type" if nested else None


def _jsonl_frames(
    name: str, path: Path, fmt: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    columns: dict[str, None] = {}
    batch, tally = _Batch(name, size), Tally()

    def frame() -> pl.DataFrame:
        return batch.take(list(columns), [[row.get(c) for row in batch.records] for c in columns])

    with _text(name, path, fmt) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip(" \t\r\n"):
                continue
            cells, problem = _json_cells(line, needed.scalar, tally)
            if problem in {None, "wrong_type"} and not cells.keys() <= columns.keys():
                columns.update(dict.fromkeys(cells))
                check_columns(list(columns), (), f"{name}:{number}")
            if batch.add({} if problem else cells, problem, line):
                yield frame()
        if batch.records:
            yield frame()
    if columns:  # only now are all keys known
        check_columns(list(columns), needed.columns, name)
        tally.verdict(name, {})


# --- Parquet ---


def _parquet_frames(
    name: str, path: Path, _: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise SourceError("not a Parquet file", where=name, fix="source.format: csv or jsonl?")
    try:
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        check_columns(schema.names(), needed.columns, name)
        for column, kind in schema.items():
            if column in needed.scalar and kind.is_nested():
                raise changed_type(name, column, "text", str(kind))
        first_row = 1
        for frame in scan.collect_batches(chunk_size=size, maintain_order=True):
            yield _parquet_text(frame, name, first_row)
            first_row += frame.height
    except pl.exceptions.PolarsError as error:
        problem = f"damaged Parquet: {shown(str(error))}"
        raise SourceError(problem, where=name, fix="fetch or write it again") from error


def _parquet_text(frame: pl.DataFrame, name: str, first_row: int) -> pl.DataFrame:
    texts = [_column_text(column) for column in frame.iter_columns()]
    bad: dict[int, tuple[str, str]] = {}
    for column, text in zip(frame.iter_columns(), texts, strict=True):
        nul = text.str.contains("\0", literal=True).fill_null(False)
        for problem, mask in (
            ("nul_character", nul),
            ("undecodable", text.is_null() & column.is_not_null()),
        ):
            for place in mask.arg_true():
                record = json.dumps(frame.row(place, named=True), default=str)
                bad[place] = (problem, _escaped(record))
    if bad:
        texts = [text.scatter(sorted(bad), None) for text in texts]
    return _raw_frame(texts, name, first_row, bad, frame.height)


def _column_text(column: pl.Series) -> pl.Series:
    """Any column as String: nested as compact JSON, binary as UTF-8 (null where it is not)."""
    name, kind = column.name, column.dtype
    if kind.is_nested():
        value = pl.col(name)
        encoded = pl.struct(value.alias("v")).struct.json_encode()
        inner = encoded.str.slice(len('{"v":')).str.head(-1)
        text = column.to_frame().select(pl.when(value.is_not_null()).then(inner).alias(name))
        return text.to_series()
    if kind == pl.Binary:
        return pl.Series(name, [_utf8(value) for value in column], pl.String)
    if kind == pl.Duration:
        return column.dt.to_string("iso")
    return column.cast(pl.String)


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


READERS: dict[str, Reader] = {
    "csv": _csv_frames,
    "jsonl": _jsonl_frames,
    "parquet": _parquet_frames,
}
"""(display name, path, format, columns needed, batch rows) -> raw frames, by format."""
