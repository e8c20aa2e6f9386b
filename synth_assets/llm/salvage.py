"""Rows out of a model's text, also where it was cut short or wrapped in prose.

Everything here reads untrusted text: nothing is evaluated, depth and number size are bounded by
the JSON reader, and what cannot be a row of sound text is left out.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any, Final, NoReturn

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_MARKER: Final = re.compile(r"^\s*(?:[-*\u2022\u2013]\s+|\(?\d{1,4}[.):]\s+)")
_BARE_MARKER: Final = re.compile(r"^\s*(?:[-*\u2022\u2013]|\(?\d{1,4}[.):])\s*$")
# In prose a bracket may be a citation, [1], and a brace a placeholder: not these.
_OPENING: Final = re.compile(r"\{\s*\"|\[\s*[{\[\"]")
MOST_STARTS: Final = 20
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def salvage_json_list(text: str) -> tuple[list[Any], bool]:
    """The complete items of the JSON list in ``text``, and whether the list itself is complete.

    The list may be the whole document, the first member of an object that is a list
    (``{"rows": [...]}``), or either of them after some prose or a code fence. An item that is cut
    short, or that follows something that is no JSON, is not returned; so any prefix of a document
    yields a prefix of its items. No list at all: no items, not complete.
    """
    for start in _starts(text):
        opened = _list_start(text, start)
        if opened is not None:
            return _items(text, opened)
    return [], False


def parse_plain_list(text: str, cut: bool) -> list[str]:
    """The lines of a plain list without bullets and numbers; blank ones are left out.

    ``cut``: the text ended at a token limit, so its last line is not taken for whole (unless a
    line break follows it).
    """
    lines = text.split("\n")
    if cut:
        lines.pop()
    rows = (_MARKER.sub("", line).strip() for line in lines if not _BARE_MARKER.match(line))
    return [row for row in rows if row]


def _starts(text: str) -> list[int]:
    """Where a document may begin: at once, or else wherever prose gives way to JSON."""
    first = _skip(text, 0)
    if text[first : first + 1] in ("{", "["):
        return [first]
    return [match.start() for match in islice(_OPENING.finditer(text), MOST_STARTS)]


def _list_start(text: str, start: int) -> int | None:
    """The position after the bracket that opens the list of rows; None when there is none."""
    if text[start] == "[":
        return start + 1
    at = start + 1
    while True:
        at = _skip(text, at)
        key, at = _value(text, at)
        if not isinstance(key, str) or text[_skip(text, at) : _skip(text, at) + 1] != ":":
            return None
        at = _skip(text, _skip(text, at) + 1)
        if text[at : at + 1] == "[":
            return at + 1
        _, at = _value(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            return None
        at += 1


def _items(text: str, start: int) -> tuple[list[Any], bool]:
    items: list[Any] = []
    at = _skip(text, start)
    if text[at : at + 1] == "]":
        return items, True
    while True:
        value, end = _value(text, _skip(text, at))
        end = _skip(text, end)
        follows = text[end : end + 1]
        # A number or word at the very end may be cut short itself: only what follows tells.
        if value is _NOTHING or follows not in (",", "]"):
            closed = isinstance(value, dict | list | str) and follows == ""
            return ([*items, _sound(value)] if closed else items), False
        items.append(_sound(value))
        if follows == "]":
            return items, True
        at = end + 1


class _Nothing:
    """No value could be read."""


_NOTHING: Final = _Nothing()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Not strict: models put raw line breaks into strings.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, strict=False)


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a position and the position after it; ``_NOTHING`` when there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return _NOTHING, len(text)


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _sound(value: Any) -> Any:
    """The value with lone surrogates, which no file can hold, replaced."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_sound(item) for item in value]
    if isinstance(value, dict):
        return {_sound(key): _sound(item) for key, item in value.items()}
    return value
