"""Calls of a ledger as a file, streamed: JSON lines (plain or gzip) or Parquet, whole or none.

The response is kept verbatim: as text where it is UTF-8 (else, in JSON lines, as base64 under
``response_base64``), as bytes in Parquet. The request is the canonical JSON that its id is a hash
of.
"""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from synth_assets.errors import UsageError
from synth_assets.llm.ledger.rows import CallRow
from synth_assets.store.content import write_atomically

SCHEMA: Final = pl.Schema(
    {
        "request_id": pl.String,
        "dataset": pl.String,
        "endpoint": pl.String,
        "model": pl.String,
        "request": pl.String,
        "response": pl.Binary,
        "status": pl.Int32,
        "outcome": pl.String,
        "finish_reason": pl.String,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "cost_usd": pl.Float64,
        "prices": pl.String,
        "attempts": pl.Int32,
        "started_at": pl.Float64,
        "latency_ms": pl.Float64,
    }
)
ROWS_AT_ONCE: Final = 500
ROW_GROUP: Final = 5_000
_NAMES: Final = tuple(field.name for field in fields(CallRow))


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


def export(calls: Iterable[CallRow], path: Path) -> int:
    """Writes ``calls`` to ``path``, by its ending; how many there were.

    Raises UsageError for another ending; whatever ``calls`` raises, leaving no file.
    """
    name = path.name.lower()
    endings: dict[str, Callable[[Iterator[CallRow], Path], None]] = {
        ".jsonl": _write_lines,
        ".jsonl.gz": _write_gzip,
        ".parquet": _write_parquet,
    }
    write = next((write for ending, write in endings.items() if name.endswith(ending)), None)
    if write is None:
        raise UsageError(f"cannot export to {path.name!r}", fix=f"end it in {', '.join(endings)}")
    count = 0

    def counted() -> Iterator[CallRow]:
        nonlocal count
        for call in calls:
            count += 1
            yield call

    write_atomically(path, lambda temporary: write(counted(), temporary))
    return count


def record(call: CallRow) -> dict[str, Any]:
    """A call as JSON; the request and the prices as JSON inside it."""
    made: dict[str, Any] = {name: getattr(call, name) for name in _NAMES}
    made["request"] = orjson.Fragment(call.request)
    made["prices"] = None if call.prices is None else orjson.Fragment(call.prices)
    try:
        made["response"] = call.response.decode()
    except UnicodeDecodeError:
        made["response"] = None
        made["response_base64"] = b64encode(call.response).decode()
    return made


def json_line(call: CallRow) -> bytes:
    return orjson.dumps(record(call), option=orjson.OPT_APPEND_NEWLINE)


def _write_lines(calls: Iterator[CallRow], path: Path) -> None:
    with path.open("wb") as file:
        _lines_into(file, calls)


def _write_gzip(calls: Iterator[CallRow], path: Path) -> None:
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        _lines_into(file, calls)


def _lines_into(file: _Sink, calls: Iterator[CallRow]) -> None:
    for call in calls:
        file.write(json_line(call))


def _write_parquet(calls: Iterator[CallRow], path: Path) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        while some := list(islice(calls, ROWS_AT_ONCE)):
            yield _frame(some)

    stream_parquet(frames(), SCHEMA, path)


def stream_parquet(frames: Iterator[pl.DataFrame], schema: pl.Schema, path: Path) -> None:
    """Writes frames as they come; what they raise passes through, as it is."""
    failed: list[Exception] = []

    def passed_on(*_: object) -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except Exception as error:
            # polars would wrap it in an error of its own.
            failed.append(error)
            raise

    try:
        # An open file: polars opens a path when it gets to it, and after a failure that can be
        # later than the moment its temporary file was taken away.
        with path.open("wb") as file:
            register_io_source(passed_on, schema=schema).sink_parquet(
                file, row_group_size=ROW_GROUP
            )
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def _frame(calls: list[CallRow]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {
        name: [getattr(call, name) for call in calls] for name in _NAMES
    }
    columns["request"] = [request.decode() for request in columns["request"]]
    return pl.DataFrame(columns, schema=SCHEMA)
