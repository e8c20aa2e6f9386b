"""Records out of JSON: one object a line, an array of objects, or one object that holds them.

Numbers keep their text, nested values become compact JSON. A line that is wrong costs itself only.
In an array nothing tells where a broken element ends, so there it ends the load.

An array is read element by element. A single object is held whole (at most ``MAX_VALUE_CHARS``):
it is the only row, or the rows are the one list of objects in it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources import RESERVED
from synth_assets.sources.contract import Tally
from synth_assets.sources.records import (
    SAMPLE_LINES,
    Batch,
    FileFormat,
    Needed,
    check_columns,
    not_text,
    open_text,
    other_encoding,
)

CHUNK_CHARS = 1 << 20
MAX_VALUE_CHARS = 256 * 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_FIX = "write an array of objects, or one object a line (source.format: jsonl)"


class _Number(str):
    """A JSON number as it was written: an id of 20 digits must not become a float."""


class _Flaw(str):
    """Stands where a value cannot be kept; the text is why."""


class _DuplicateKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _marked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = _Flaw("duplicate_key") if key in found else value
    return found


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)
# As the strict one, but what is wrong with a value is told at its place.
_MARKING = json.JSONDecoder(
    object_pairs_hook=_marked_object,
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=lambda name: _Flaw("malformed_json"),
    strict=False,
)
_ENDS = json.JSONDecoder(strict=False)  # finds where a value ends


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


Cells = dict[str, str | None]


def _json_cells(text: str, needed: Needed, tally: Tally) -> tuple[Cells, str | None]:
    """(cells by key, problem) of one record; what scalar columns hold is counted."""
    problem = not_text(text)
    if not problem:
        cells, problem = _strict_cells(text, needed, tally)
        if problem in {None, "wrong_type", "not_an_object"}:
            return cells, problem
    if not needed.some:
        return {}, problem
    return _forgiving_cells(text, problem, needed, tally)


def _strict_cells(text: str, needed: Needed, tally: Tally) -> tuple[Cells, str | None]:
    try:
        found = _JSON.decode(text)
        if not isinstance(found, dict):
            return {}, "not_an_object"
        cells = {key: _json_text(value) for key, value in found.items()}
    except _DuplicateKey:
        return {}, "duplicate_key"
    except (ValueError, RecursionError):
        return {}, "malformed_json"
    if "\\u" in text:  # an escape may spell what no text may hold
        problem = next(filter(None, map(not_text, (*cells, *filter(None, cells.values())))), None)
        if problem:
            return {}, problem
    if "" in cells:
        return cells, "empty_key"
    return cells, "wrong_type" if tally.add(found, needed.scalar) else None


def _forgiving_cells(
    text: str, problem: str | None, needed: Needed, tally: Tally
) -> tuple[Cells, str | None]:
    """As ``_json_cells``, of a record with a ``problem``: if nothing reads it, it costs nothing."""
    try:
        found = _MARKING.decode(text)
    except (ValueError, RecursionError):
        return {}, problem
    if not isinstance(found, dict):
        return {}, problem
    keys = {key: not_text(key) or ("" if key else "empty_key") for key in found}
    flaws = {key: why for key, value in found.items() if (why := keys[key] or _flaw(value))}
    for key, why in flaws.items():
        if needed.reads(key):
            return {}, why
    nested = tally.add(found, needed.scalar)
    for key, why in flaws.items():
        if keys[key]:
            del found[key]
            needed.remarks.columns[key or "(no name)", why] = None
        else:
            found[key] = None
            needed.remarks.cells[key, why] += 1
    return {key: _json_text(v) for key, v in found.items()}, "wrong_type" if nested else None


def _flaw(value: Any) -> str | None:
    """Why a value of ``_MARKING`` cannot be kept, if it cannot."""
    if isinstance(value, _Flaw):
        return str(value)
    if isinstance(value, str):
        return not_text(value)
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, list):
        inner = value
    return next(filter(None, map(_flaw, inner)), None)


# --- one object a line ---


def jsonl_frames(
    name: str, path: Path, fmt: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    def judge(lines: list[str]) -> list[str | None]:
        aside = Needed(needed.columns, needed.scalar)
        return [_json_cells(line, aside, Tally())[1] for line in lines if line.strip(" \t\r\n")]

    with open_text(name, path, fmt, needed, judge) as stream:
        lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip(" \t\r\n"))
        yield from _frames(name, lines, needed, size)


def _frames(
    name: str, records: Iterator[tuple[int, str]], needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    """Frames of records, each with the line it begins on."""
    columns: dict[str, None] = {}
    batch, tally = Batch(name, size), Tally()

    def frame() -> pl.DataFrame:
        return batch.take(list(columns), [[row.get(c) for row in batch.records] for c in columns])

    for number, record in records:
        cells, problem = _json_cells(record, needed, tally)
        if problem in {None, "wrong_type"} and not cells.keys() <= columns.keys():
            _without_reserved(cells, needed)
            columns.update(dict.fromkeys(cells))
            check_columns(list(columns), (), f"{name}:{number}")
        if batch.add({} if problem else cells, problem, record):
            yield frame()
    if batch.records:
        yield frame()
    if columns:  # only now are all keys known
        check_columns(list(columns), needed.columns, name)
        tally.verdict(name, {})


def _without_reserved(cells: Cells, needed: Needed) -> None:
    if needed.some and not needed.every_name:
        for key in RESERVED & cells.keys():
            if not needed.reads(key):
                del cells[key]
                needed.remarks.columns[key, "its name is reserved"] = None


# --- a document ---


def json_frames(
    name: str, path: Path, fmt: FileFormat, needed: Needed, size: int
) -> Iterator[pl.DataFrame]:
    """An array of objects, an object that holds one, or objects one after another."""
    with open_text(name, path, fmt, needed) as stream:
        first = stream.readline(CHUNK_CHARS)
        while first and not first.strip(" \t\r\n"):
            first = stream.readline(CHUNK_CHARS)
        by_line = first.lstrip().startswith("{") and first.endswith(("\n", "\r")) and _whole(first)
        more = by_line and any(line.strip() for line in stream)
    if more:
        yield from jsonl_frames(name, path, fmt, needed, size)
        return
    with open_text(name, path, fmt, needed) as stream:
        records = _Document(name, stream, path, fmt.encoding).records(needed)
        yield from _frames(name, _in_encoding(name, path, fmt, needed, records), needed, size)


def _whole(line: str) -> bool:
    try:
        return isinstance(_ENDS.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def _in_encoding(
    name: str,
    path: Path,
    fmt: FileFormat,
    needed: Needed,
    records: Iterator[tuple[int, str]],
) -> Iterator[tuple[int, str]]:
    """The records; ``SourceError`` when most of the first ones are not text where they are read."""
    first = list(itertools.islice(records, SAMPLE_LINES))
    bad = [number for number, text in first if not_text(text)]
    if len(bad) * 2 > len(first):
        aside = Needed(needed.columns, needed.scalar)
        wrong = [n for n, t in first if _json_cells(t, aside, Tally())[1] == "undecodable"]
        if len(wrong) * 2 > len(first):
            raise other_encoding(name, path, fmt.encoding, "undecodable", wrong[0])
    yield from first
    yield from records


class _Document:
    """JSON values of a stream, one at a time, as they are written."""

    def __init__(self, name: str, stream: IO[str], path: Path, encoding: str) -> None:
        self.name, self.stream, self.path, self.encoding = name, stream, path, encoding
        self.text, self.place, self.ended = "", 0, False
        self.line, self.counted = 1, 0  # lines are counted up to here

    def records(self, needed: Needed) -> Iterator[tuple[int, str]]:
        """(line, text) of every record. Raises ``SourceError``: no records, broken JSON."""
        first = self.peek()
        if first == "[":
            yield from self.elements()
        elif first == "{":
            start = self.line_here(), self.value()
            if self.peek():
                yield start
                while self.peek():
                    yield self.line_here(), self.value()
            else:
                yield from _inside(self.name, start, needed)
        elif first:
            raise self.broken("neither an array nor an object")

    def elements(self) -> Iterator[tuple[int, str]]:
        self.place += 1
        while (found := self.peek()) != "]":
            if not found:
                raise self.broken("the array is not closed: the file is cut off")
            yield self.line_here(), self.value()
            after = self.peek()
            if after == ",":
                self.place += 1
            elif after and after != "]":
                raise self.broken("no comma between two elements")
        self.place += 1
        if self.peek():
            raise self.broken("something follows the array")

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.place)
            self.place = found.end() if found else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def more(self) -> bool:
        self.line_here()
        self.text, self.place, self.counted = self.text[self.place :], 0, 0
        if len(self.text) > MAX_VALUE_CHARS:
            raise self.broken(f"one value is longer than {MAX_VALUE_CHARS:,} characters")
        # As much again as is held: a value is begun anew only when its text has doubled.
        chunk = self.stream.read(max(CHUNK_CHARS, len(self.text)))
        self.text += chunk
        self.ended = not chunk
        return not self.ended

    def value(self) -> str:
        while True:
            try:
                end = _ENDS.raw_decode(self.text, self.place)[1]
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            except ValueError as error:
                if self.more():
                    continue
                raise self.broken(str(error).partition(": line")[0]) from None
            if end == len(self.text) and self.text[end - 1] not in '"]}' and not self.ended:
                self.more()  # a number or a word may go on
                continue
            found, self.place = self.text[self.place : end], end
            return found

    def line_here(self) -> int:
        self.line += self.text.count("\n", self.counted, self.place)
        self.counted = self.place
        return self.line

    def broken(self, what: str) -> SourceError:
        if wrong := not_text(self.text):
            line = self.line_here()
            return other_encoding(self.name, self.path, self.encoding, wrong, line)
        return SourceError(
            f"not a JSON array of records: {what}",
            where=f"{self.name}:{self.line_here()}",
            fix=_FIX,
        )


def _inside(name: str, start: tuple[int, str], needed: Needed) -> Iterator[tuple[int, str]]:
    """The records in one object: itself, or the elements of the only list of objects in it."""
    line, text = start
    found = _MARKING.decode(text)
    lists = [k for k, v in found.items() if isinstance(v, list) and any(_is_object(e) for e in v)]
    named = [key for key in needed.columns if key in found]
    nested = [key for key in named if isinstance(found[key], list | dict)]
    if named and not nested and len(named) == len(set(needed.columns)):
        yield start
    elif len(lists) == 1 and not named:
        needed.remarks.notes[f"{name}: the rows are the list {shown(lists[0])} in it"] = None
        for element in found[lists[0]]:
            yield line, _written(element)
    elif named or lists:
        keys = ", ".join(map(shown, (nested or lists or named)[:10]))
        what = "columns" if nested else "several lists" if lists else "a part of a record"
        raise SourceError(
            f"one object that holds {what}, not rows ({keys})",
            where=name,
            fix='rows as an array of objects: [{"text": ...}, ...] '
            "(pandas: to_json(orient='records'))",
        )
    else:
        yield start


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _written(value: Any) -> str:
    """A value of ``_MARKING`` as JSON, with its flaws: what they cost is decided by who reads."""
    if isinstance(value, _Flaw):
        return "NaN"
    if isinstance(value, dict):
        return (
            "{"
            + ",".join(
                f"{json.dumps(k, ensure_ascii=False)}:{_written(v)}" for k, v in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return compact_json(value)
