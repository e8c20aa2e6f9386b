"""The lines of batch files: requests out, results in.

A request goes out under its identity (``custom_id``) and is written from its canonical text, so
that a batch can be submitted by another process than the one that put it together. Canonical text
has its members sorted; the order of a schema's properties, which shapes the answer, is put back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from synth_assets.llm.identity import Kind, Request

URLS: Final[dict[Kind, str]] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
# Everything of a line but its body, generously.
LINE_BYTES: Final = 256
_ANY_HALF: Final = re.compile("[\ud800-\udfff]")
# Those that are no bad byte, which is read as U+DC80 to U+DCFF.
_HALF_EMOJI: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SCHEMAS_IN: Final = ("response_format", "tools", "functions")


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a result file.

    ``status`` is null when the request was never carried out; ``code`` and ``message`` say why
    then. ``body`` is the JSON of the response's body, as the provider wrote it.
    """

    custom_id: str
    status: int | None
    body: bytes
    code: str = ""
    message: str = ""


def request_of(canonical: bytes) -> Request:
    """The request with this canonical text.

    Raises ValueError when it was written under other rules of identity: its id would be another.
    """
    parts: dict[str, Any] = orjson.loads(canonical)
    body = parts["body"]
    orders = iter(parts["property_order"])
    for part in _SCHEMAS_IN:
        _put_in_order(body.get(part), orders)
    request = Request(parts["kind"], parts["endpoint"], body, parts["sample"])
    if request.canonical != canonical:
        raise ValueError("a request that was written by another version of this program")
    return request


def line_bytes(request: Request) -> int:
    """The most bytes that the line of a request takes."""
    return len(request.payload()) + LINE_BYTES


def write_lines(requests: Iterable[bytes], path: Path) -> int:
    """Writes the requests with these canonical texts as a batch's input file; how many."""
    count = 0
    with path.open("wb") as file:
        for canonical in requests:
            request = request_of(canonical)
            line = {
                "custom_id": request.request_id,
                "method": "POST",
                "url": URLS[request.kind],
                "body": request.body,
            }
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_results(path: Path) -> Iterator[Result | None]:
    """The results in a file, one line at a time; None for a line that cannot be read."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _result(line)


def _result(line: bytes) -> Result | None:
    parsed, clean = _parsed(line)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("custom_id"), str):
        return None
    name = parsed["custom_id"]
    response = parsed.get("response")
    if isinstance(response, dict) and type(response.get("status_code")) is int:
        body = response.get("body")
        raw = orjson.dumps(body) if clean else _with_raw_bytes(body, line)
        return Result(name, response["status_code"], raw)
    error = parsed.get("error")
    error = error if isinstance(error, dict) else {}
    code, message = (str(error.get(key) or "") for key in ("code", "message"))
    return Result(name, None, b"", code or "no_response", message)


def _parsed(line: bytes) -> tuple[Any, bool]:
    """The JSON of a line, and whether it was clean UTF-8; bad bytes become lone surrogates."""
    try:
        return orjson.loads(line), True
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line.decode("utf-8", "surrogateescape")), False
    except (ValueError, RecursionError):
        return None, False


def _with_raw_bytes(body: Any, line: bytes) -> bytes:
    """The body with its bad bytes as they were: a paid answer, to be known as malformed.

    Half an emoji, which is escaped in the line, is escaped again.
    """
    written = json.dumps(body, ensure_ascii=False)
    halves = _HALF_EMOJI if _has_bad_bytes(line) else _ANY_HALF
    escaped = halves.sub(lambda half: f"\\u{ord(half[0]):04x}", written)
    return escaped.encode("utf-8", "surrogateescape")


def _has_bad_bytes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def _put_in_order(value: Any, orders: Iterator[list[str]]) -> None:
    """Gives every ``properties`` object below the order it had; walks as the identity does."""
    if isinstance(value, dict):
        for key in sorted(value):
            inner = value[key]
            if key == "properties" and isinstance(inner, dict):
                inner = value[key] = {name: inner[name] for name in next(orders)}
            _put_in_order(inner, orders)
    elif isinstance(value, list):
        for item in value:
            _put_in_order(item, orders)
