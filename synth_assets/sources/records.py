"""What readers of all formats share, and the reader of CSV.

What is wrong with a whole file (a column that is missing, another encoding) raises
``SourceError``; a record that is wrong alone is a row with a problem. Only cells that something
reads can cost a row: others that cannot be kept are left empty, and ``Remarks`` counts them.

Limits: CSV quotes follow RFC 4180 strictly. After a broken quote, reading goes on at the next
line, so the rest of a many-line cell may be read as records of its own.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources import MAX_RAW_CHARS, RESERVED, SERVICE_COLUMNS

MAX_CELL_CHARS = 64 * 2**20
MAX_COLUMNS = 4_096
# A batch ends early at this size, so that large cells do not add up to all of memory.
MAX_BATCH_CHARS = 64 * 2**20
# The encoding of a whole file is judged on its first lines, up to so many lines or characters.
SAMPLE_LINES, SAMPLE_CHARS = 1_000, 8 * 2**20
# Why a cell is kept without what no text can hold.
BYTES = "bytes"

FormatName = Literal["csv", "json", "jsonl", "parquet", "excel"]
Reader = Callable[[str, Path, "FileFormat", "Needed", int], Iterator[pl.DataFrame]]

_SURROGATES = "synth_assets.surrogates"
_NOT_TEXT = re.compile("[\ud800-\udfff\0]")
_C1 = re.compile("[\x80-\x84\x86-\x9f]")
# What a file begins with that is no text, whatever its name says.
_MAGIC = (
    (b"PAR1", "a Parquet file", "source.format: parquet"),
    (b"PK\x03\x04", "a workbook or a zip archive", "source.format: excel, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Office file", "source.format: excel, or save it as CSV"),
    (b"%PDF", "a PDF", "save the rows as CSV"),
    (b"\x28\xb5\x2f\xfd", "packed as zst", "unpack it"),
    (b"\xfd7zXZ\0", "packed as xz", "unpack it"),
    (b"BZh", "packed as bz2", "unpack it"),
    (b"\x1f\x8b", "packed as gzip", "name it .gz, or unpack it"),
)
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

    format: FormatName
    encoding: str = "utf-8"
    delimiter: str = ","

    def __post_init__(self) -> None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding)
        except LookupError as error:
            raise SourceError(
                f"unknown text encoding {shown(self.encoding)}",
                where="source.encoding",
                fix="a name Python knows: utf-8, utf-16, cp1252, shift_jis, ...",
            ) from error
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0 ':
            raise SourceError(
                f"a delimiter is one character, not {shown(self.delimiter)}",
                where="source.delimiter",
                fix='for example "," or ";" or "\\t"',
            )


@dataclass
class Remarks:
    """What a reading left out without losing a row, and what else a user should know of it.

    ``cells``: (column, reason) -> cells left empty; ``columns``: (column, reason), not landed.
    """

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    columns: dict[tuple[str, str], None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def clear(self) -> None:
        for kept in (self.cells, self.columns, self.notes):
            kept.clear()

    def told(self) -> list[str]:
        """One sentence each."""
        left = [
            f"column {shown(column)}, which nothing reads: {count} cells "
            + ("without the bytes in them" if reason == BYTES else f"left empty ({reason})")
            for (column, reason), count in sorted(self.cells.items())
        ]
        gone = [f"column {shown(column)} is left out: {why}" for column, why in self.columns]
        return [*self.notes, *gone, *left]


@dataclass(frozen=True)
class Needed:
    """``columns`` must be there, and only they can cost a row (none named: all of them can).

    In ``scalar`` ones a list or an object is wrong. ``classes``: whole numbers of a column stand
    for these names, as a card beside the file says; those of ``numbers`` are never translated.
    ``every_name``: columns with unusable names end the load whether something reads them or not.
    """

    columns: Sequence[str] = ()
    scalar: frozenset[str] = frozenset()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    numbers: frozenset[str] = frozenset()
    every_name: bool = False
    remarks: Remarks = field(default_factory=Remarks)

    def reads(self, column: str) -> bool:
        """Whether an unusable cell of ``column`` makes its row unusable."""
        return not self.columns or column in self.columns or column in self.scalar

    @property
    def some(self) -> bool:
        """Whether there may be columns that nothing reads."""
        return bool(self.columns)

    def landed(self, columns: Sequence[str], where: str) -> list[int]:
        """Places of the columns to land: unread ones with a name that cannot stand are left out.

        Raises ``SourceError`` as ``check_columns`` does, of those that remain.
        """
        strict = self.every_name or not self.some
        places: list[int] = []
        for place, name in enumerate(columns):
            why = "" if strict or self.reads(name) else _unusable(name, columns[:place])
            if why:
                self.remarks.columns[name or f"no. {place + 1}", why] = None
            else:
                places.append(place)
        check_columns([columns[place] for place in places], self.columns, where)
        return places


def _unusable(name: str, before: Sequence[str]) -> str:
    """Why a column cannot be landed under its name, if it cannot."""
    if not name:
        return "it has no name"
    if name in RESERVED:
        return "its name is reserved"
    return "another one has the same name" if name in before else ""


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


def not_text(text: str) -> str | None:
    """Why ``text`` cannot travel as text, if it cannot."""
    if not text.isascii():
        try:
            text.encode()  # many times faster than a search, and nearly always fine
        except UnicodeEncodeError:
            return "undecodable"
    return "nul_character" if "\0" in text else None


def escaped(record: str) -> str:
    text = record[:MAX_RAW_CHARS].rstrip("\r\n")
    return _NOT_TEXT.sub(lambda m: f"\\x{ord(m[0]) & 0xFF:02x}", text)[:MAX_RAW_CHARS]


def _binary(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


Judge = Callable[[list[str]], list[str | None]]
"""The first lines of a file -> what is wrong with each record in them, if anything is."""


@contextmanager
def open_text(
    name: str,
    path: Path,
    fmt: FileFormat,
    needed: Needed,
    judge: Judge | None = None,
) -> Iterator[IO[str]]:
    """The file's lines with their ends (LF, CRLF, CR); ``SourceError`` on the wrong encoding.

    The encoding is wrong when the header of a CSV file, or most of the first lines, are not text;
    where lines are not, ``judge`` decides by what is read of them. Without a judge nothing is
    decided here.
    """
    with _binary(path) as file:
        head = file.peek(8)[:8]
    for magic, what, fix in _MAGIC:
        if head.startswith(magic):
            raise SourceError(f"this is {what}, not {fmt.format}", where=name, fix=fix)
    encoding = next((codec for bom, codec in _BOMS if head.startswith(bom)), fmt.encoding)

    def decoded(file: Any) -> io.TextIOWrapper:
        # No newline translation: a CRLF inside a quoted cell belongs to the cell.
        return io.TextIOWrapper(file, encoding, _SURROGATES, newline="")

    if judge:
        with _binary(path) as file:
            lines = _first_lines(decoded(file))
        if wrong := _wrong_encoding(lines, judge, needed, header=fmt.format == "csv"):
            raise other_encoding(name, path, encoding, *wrong)
        if codecs.lookup(encoding).name == "iso8859-1" and any(map(_C1.search, lines)):
            needed.remarks.notes[
                f"{name}: control characters of latin-1 stand in it; written on Windows? Then "
                "source.encoding: cp1252"
            ] = None
    with _binary(path) as file:
        yield decoded(file)


def _first_lines(lines: IO[str]) -> list[str]:
    found: list[str] = []
    chars = 0
    for line in itertools.islice(lines, SAMPLE_LINES):
        found.append(line)
        chars += len(line)
        if chars > SAMPLE_CHARS:
            break
    return found


def _wrong_encoding(
    lines: list[str], judge: Judge, needed: Needed, *, header: bool
) -> tuple[str, int] | None:
    """(problem, line) when the header, or most of the first lines, are not text."""
    found = [not_text(line) for line in lines]
    if header and found and found[0]:
        return found[0], 1
    first, rows = (2, found[1:]) if header else (1, found)
    wrong = next((p for p in rows if p and rows.count(p) * 2 > len(rows)), None)
    if not wrong:
        return None
    place = first + rows.index(wrong)
    if needed.some:
        judged = judge(lines)
        if judged.count(wrong) * 2 <= len(judged):
            return None
    return wrong, place


def other_encoding(name: str, path: Path, encoding: str, problem: str, line: int) -> SourceError:
    """What is said of a file that is not ``encoding`` text: what its bytes look like instead."""
    with _binary(path) as file:
        sample = file.read(SAMPLE_CHARS)
    if problem == "nul_character" or sample.count(0) * 4 > len(sample):
        # ASCII as UTF-16: every other byte is NUL, the first of each pair in big-endian order.
        big = sample[0::2].count(0) > sample[1::2].count(0)
        guess: str | None = "utf-16-be" if big else "utf-16-le"
    else:
        guess = next((e for e in ("utf-8", "cp1252") if e != encoding and _is(sample, e)), None)
    what = "NUL characters" if problem == "nul_character" else "undecodable bytes"
    return SourceError(
        f"this is not {encoding} text ({what})",
        where=f"{name}:{line}",
        fix=f"source.encoding: {guess} (or what it was written in)"
        if guess
        else "source.encoding: what it was written in (shift_jis, gb18030, cp1251, ...)",
    )


def _is(sample: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)  # may end within a character
    except UnicodeDecodeError:
        return False
    return True


def raw_frame(
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
class Batch:
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
            self.bad[len(self.records)] = (problem, escaped(raw))
        self.records.append(cells)
        self.chars += len(raw)
        return len(self.records) >= self.size or self.chars >= MAX_BATCH_CHARS

    def take(self, columns: Sequence[str], values: Iterable[Sequence[str | None]]) -> pl.DataFrame:
        """The frame of what was added (``values`` by column); the batch is empty again."""
        series = [pl.Series(c, v, pl.String) for c, v in zip(columns, values, strict=True)]
        n = len(self.records)
        frame = raw_frame(series, self.source, self.first_row, self.bad, n)
        self.first_row += n
        self.records, self.bad, self.chars = [], {}, 0
        return frame


# --- CSV ---


class _Lines:
    """The lines of a file, remembering those of the current record."""

    def __init__(self, stream: Iterator[str]) -> None:
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
            yield cells, problem, record


def _csv_problems(lines: list[str], needed: Needed, delimiter: str) -> list[str | None]:
    """What is wrong with the records in ``lines`` (the first is the header), as far as read."""
    records = _csv_records(_Lines(iter(lines)), delimiter)
    header, _, _ = next(records, ([], None, ""))
    return [_csv_row(header, *record, needed, Counter())[1] for record in records]


def _csv_row(
    header: Sequence[str],
    cells: list[str],
    problem: str | None,
    record: str,
    needed: Needed,
    left: Counter[tuple[str, str]],
) -> tuple[Sequence[str | None], str | None]:
    """(cells, problem): cells that nothing reads and that are not text are empty, and counted."""
    text = not_text(record)
    if not problem and len(cells) != len(header):
        problem = "wrong_field_count"
    if problem or not text:
        return cells, text or problem
    flaws = {place: why for place, cell in enumerate(cells) if (why := not_text(cell))}
    for place, why in flaws.items():
        if needed.reads(header[place]):
            return cells, why
    for place, why in flaws.items():
        left[header[place], why] += 1
    return [None if place in flaws else cell for place, cell in enumerate(cells)], None


def csv_frames(
    name: str, path: Path, fmt: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    def judge(lines: list[str]) -> list[str | None]:
        return _csv_problems(lines, needed, fmt.delimiter)

    with open_text(name, path, fmt, needed, judge) as stream:
        records = _csv_records(_Lines(stream), fmt.delimiter)
        header, problem, written = next(records, ([], None, ""))
        problem = not_text(written) or problem
        if problem:
            raise SourceError(
                f"the header is unusable: {problem}", where=f"{name}:1", fix="mend it"
            )
        if not header:
            return
        places = needed.landed(header, f"{name}:1")
        landed = [header[place] for place in places]
        batch, nothing, width = Batch(name, size), [None] * len(header), len(header)

        def frame() -> pl.DataFrame:
            columns = list(zip(*batch.records, strict=True))
            return batch.take(landed, [columns[place] for place in places])

        left = needed.remarks.cells
        for cells, found, record in records:
            row: Sequence[str | None] = cells
            # Most records are fine, and this loop is what a large file costs.
            if found or len(cells) != width or not_text(record):
                row, found = _csv_row(header, cells, found, record, needed, left)
            if batch.add(nothing if found else row, found, record):
                yield frame()
        if batch.records:
            yield frame()
