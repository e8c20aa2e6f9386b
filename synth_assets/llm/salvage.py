"""Rows out of JSON that a model wrote, also where it was cut short or wrapped in prose.

Everything here reads untrusted text: nothing is evaluated, depth and number size are bounded by
the JSON reader, and what cannot be a row of sound text is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Set
from itertools import islice
from typing import Any, Final, NamedTuple, NoReturn

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
# In prose a bracket may be a citation, [1], and a brace a placeholder: not these.
_OPENING: Final = re.compile(r"\{\s*\"|\[\s*[{\[\"]")
_MARK: Final = re.compile(r"\[[A-Z_]+\]")
# Not JSON, and what models write for an apostrophe.
_ESCAPED_APOSTROPHE: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\'")
# Members that hold the arguments of a call.
_ARGUMENTS: Final = frozenset({"arguments", "parameters"})
_SCHEMA: Final = frozenset({"type", "properties"})
MOST_STARTS: Final = 20
# How deep in other objects the key asked for is looked for.
MOST_LEVELS: Final = 3
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def salvage_json_list(
    text: str, *, key: str = "", fields: Set[str] = frozenset()
) -> tuple[list[Any], bool]:
    """The complete items of the JSON list in ``text``, and whether the list itself is complete.

    The list may be the whole document or a member of an object, at once or after some prose or a
    code fence. The member called ``key`` wins, wherever it is; then a list of objects with these
    ``fields``; then the first list. An object that has the ``fields`` itself is an item, and so are
    those that follow it. Several documents with ``key`` count all; JSON inside a string is read
    where there is no other.

    An item that is cut short, or that follows something that is no JSON, is not returned; so any
    prefix of a document yields a prefix of its items. In a document that is cut short before
    ``key``, another list is no answer. No list at all: no items, not complete.
    """
    text = _ESCAPED_APOSTROPHE.sub(r"\1'", text)
    if text.lstrip()[:1] == '"' and (inner := _in_string(text, "")):
        return salvage_json_list(inner, key=key, fields=fields)
    best: list[_Found] = []
    examined = 0
    for start in _starts(text):
        if start < examined:
            continue
        found, examined = _in_document(text, start, key.casefold(), fields)
        if found is None or (best and found.rank > best[0].rank):
            continue
        if not best or found.rank < best[0].rank:
            best = [found]
        elif found.rank == _BY_KEY:
            best.append(found)
    if not best:
        inner = _in_string(text, key.casefold())
        return salvage_json_list(inner, key=key, fields=fields) if inner else ([], False)
    if best[0].rank == _ALONE:
        return _objects(text, best[0].at, fields)
    lists = [_items(text, found.at) for found in best]
    return [item for items, _ in lists for item in items], all(whole for _, whole in lists)


def _in_string(text: str, key: str) -> str:
    """JSON that is written as a string: the document, the rows, or the arguments of a call."""
    start = _skip(text, 0)
    inner, _ = _value(text, start)
    if isinstance(inner, dict):
        named = {str(name).casefold(): value for name, value in inner.items()}
        inner = next((named[name] for name in (key, *sorted(_ARGUMENTS)) if name in named), "")
    # What it holds is shorter, so this comes to an end.
    return inner if isinstance(inner, str) and inner.lstrip()[:1] in ("{", "[") else ""


class _Found(NamedTuple):
    """Where a list's items begin, or an object; the lower the ``rank``, the surer."""

    rank: int
    at: int


_BY_KEY, _BY_FIELDS, _FIRST, _ALONE = range(4)


def _starts(text: str) -> list[int]:
    """Where a document may begin: at once, or else wherever prose gives way to JSON."""
    first = _skip(text, 0)
    later = [match.start() for match in islice(_OPENING.finditer(text, first), MOST_STARTS)]
    if text[first : first + 1] in ("{", "[") and not _MARK.match(text, first):
        return [first, *later]
    return later


def _in_document(text: str, start: int, key: str, fields: Set[str]) -> tuple[_Found | None, int]:
    """The rows of the document that begins at ``start``, and where the document ends."""
    if text[start] == "{":
        return _in_object(text, start, key, fields, MOST_LEVELS)
    first = _skip(text, start + 1)
    if text[first : first + 1] == "{":
        # A list of calls, or of documents.
        inner, end = _in_object(text, first, key, fields, MOST_LEVELS)
        if inner is not None and inner.rank == _BY_KEY:
            return inner, end
    _, end = _value(text, start)
    rank = _BY_FIELDS if _holds_objects(text, start, fields) else _FIRST
    return _Found(rank, start + 1), end


def _in_object(
    text: str, start: int, key: str, fields: Set[str], levels: int
) -> tuple[_Found | None, int]:
    members, end, closed = _members(text, start)
    lists = [(name, at) for name, at in members if text[at : at + 1] == "["]
    objects = [(name, at) for name, at in members if text[at : at + 1] == "{"]
    for name, at in lists:
        if name.casefold() == key:
            return _Found(_BY_KEY, at + 1), end
    for name, at in objects if levels else ():
        inner, _ = _in_object(text, at, key, fields, levels - 1)
        if inner and (inner.rank == _BY_KEY or (inner.rank == _ALONE and name.casefold() == key)):
            return inner, end
    for _, at in lists:
        if _holds_objects(text, at, fields):
            return _Found(_BY_FIELDS, at + 1), end
    if lists and (closed or not key) and not _SCHEMA.issubset(dict(members)):
        return _Found(_FIRST, lists[0][1] + 1), end
    if closed and fields and fields <= {name for name, _ in members}:
        return _Found(_ALONE, start), end
    return None, end


def _members(text: str, start: int) -> tuple[list[tuple[str, int]], int, bool]:
    """Names and positions of an object's values; its end, and whether it has one."""
    members: list[tuple[str, int]] = []
    at = _skip(text, start + 1)
    while True:
        name, at = _value(text, at)
        at = _skip(text, at)
        if not isinstance(name, str) or text[at : at + 1] != ":":
            return members, len(text), False
        at = _skip(text, at + 1)
        members.append((name, at))
        value, at = _value(text, at)
        at = _skip(text, at)
        if value is _NOTHING or text[at : at + 1] not in (",", "}"):
            return members, len(text), False
        if text[at] == "}":
            return members, at + 1, True
        at = _skip(text, at + 1)


def _holds_objects(text: str, start: int, fields: Set[str]) -> bool:
    """Whether the first item of a list is an object with these fields."""
    value, _ = _value(text, _skip(text, start + 1))
    return bool(fields) and isinstance(value, dict) and fields <= value.keys()


def _objects(text: str, at: int, fields: Set[str]) -> tuple[list[Any], bool]:
    """Objects one after the other, as far as they can be read and have the fields."""
    items: list[Any] = []
    while text[at : at + 1] == "{":
        value, at = _value(text, at)
        if not isinstance(value, dict) or not fields <= value.keys():
            return items, False
        items.append(_sound(value))
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at : at + 1] == "," else at
    return items, True


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
    """The value without lone surrogates: halves of an emoji, which no file can hold."""
    if isinstance(value, str):
        return without_halves(value)
    if isinstance(value, list):
        return [_sound(item) for item in value]
    if isinstance(value, dict):
        return {_sound(key): _sound(item) for key, item in value.items()}
    return value


def without_halves(text: str) -> str:
    """The text without lone surrogates."""
    return text if text.isascii() else _LONE_SURROGATE.sub("", text)
