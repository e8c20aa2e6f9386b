"""The marks that begin the items of a plain list, and those that stand around a whole item.

A bullet is one wherever it stands. A number is one only in sequence with others, because an item
may begin with a number of its own: "1. FC Köln", "2 pumps".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple

_DASHES: Final = "-\u2010\u2013\u2014\u2015\u2212"
_BULLET: Final = re.compile(
    rf"(?:[{_DASHES}*+\u00b7]\s+|[\u2022\u2023\u2043\u25e6\u25aa\u25ab\u25a0\u25a1\u25c6\u25c7\u25cf\u25cb\u25b8\u25ba"
    rf"\u27a4\u30fb\uff65]\s*"
    rf"|<li>\s*)(?P<rest>\S.*)"
)
_BARE_BULLET: Final = re.compile(rf"[{_DASHES}*+\u00b7\u2022\u25e6\u25aa\u25cf\u30fb]")
_TAGGED: Final = re.compile(
    r"<(?P<tag>[A-Za-z]\w{0,30})(?: [^<>]{0,200})?>(?P<inner>.+)</(?P=tag)>"
)
# Arrows, ticks and pictures, which are bullets where every item has the same one.
_PICTURE: Final = re.compile(
    r"(?P<sign>[\u2190-\u21ff\u25a0-\u25ff\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]\ufe0f?)"
    r"\s+(?P<rest>\S.*)"
)
_TIGHT_BULLET: Final = re.compile(rf"[{_DASHES}](?P<rest>[^\W\d_\s].*)")
_BOX: Final = re.compile(r"(?:\[[ xX]\]|[\u2610\u2611\u2612\u2705\u2714]\ufe0f?)\s+(?=\S)")
_NUMBER: Final = re.compile(
    r"(?P<head>\#{1,6}\s+)?(?P<before>\*{1,3}|_{2,3})?"
    r"(?P<word>(?:[^\W\d_\u2460-\u2473][\w'\u2019-]{0,30}[ ]){1,3}\#?|\#|\u2116[ ]?)?"
    r"(?P<open>[(\[])?(?P<value>\d{1,4}|[\u2460-\u2473]|[ivxIVX]{2,6}(?![^\W\d_])|[A-Za-z])"
    r"(?:/\d{1,4})?(?P<key>\ufe0f?\u20e3)?"
    r"(?P<sep>\\?[.):\]\u3001\uff0e\uff1a\uff09]{1,2}|[ ][-\u2013\u2014:](?=[ ]))?"
    r"(?P<after>\*{1,3}|_{2,3})?(?P<more>[:.]|[ ]?[-\u2013\u2014](?=[ ]))?(?P<gap>\s*)(?P<rest>.*)"
)
_ROMAN: Final = {"i": 1, "v": 5, "x": 10}
_WITHOUT_GAP: Final = frozenset("\u3001\uff0e\uff1a\uff09")
# Opening mark -> the mark that closes it.
_QUOTES: Final = {
    '"': '"',
    "'": "'",
    "\u201c": "\u201d",
    "\u201e": "\u201c\u201d",
    "\u2018": "\u2019",
    "\u201a": "\u2018\u2019",
    "\u00ab": "\u00bb",
    "\u00bb": "\u00ab",
    "\u2039": "\u203a",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
    "\u201d": "\u201d",
}
# A number like this at the start of a list is a year.
FIRST_YEAR: Final = 1_000
MOST_WRAPPERS: Final = 4
_EMPHASIS: Final = ("***", "___", "**", "__", "~~", "*", "_", "``", "`")


class Number(NamedTuple):
    """A number at the start of a line; ``series``: what others in its sequence have in common.

    ``labelled``: it has a word or a heading's mark before it ("Ticket 1:", "### 1.").
    """

    series: str
    value: int
    rest: str
    labelled: bool


def bullet(line: str) -> str | None:
    """What follows the bullet of a line; "" for a bullet alone, None for a line without one."""
    if _BARE_BULLET.fullmatch(line):
        return ""
    found = _BULLET.fullmatch(line)
    return found["rest"].removesuffix("</li>").rstrip() if found else None


def tight_bullet(line: str) -> str | None:
    """What follows a dash without a space; None for a line without one."""
    found = _TIGHT_BULLET.fullmatch(line)
    return found["rest"] if found else None


def picture(line: str) -> tuple[str, str]:
    """The arrow, tick or picture that begins a line, and what follows; "" twice for none."""
    found = _PICTURE.fullmatch(line)
    return (found["sign"], found["rest"]) if found else ("", "")


def is_quoted(line: str) -> bool:
    """Whether the whole line, with or without emphasis, stands in quotation marks."""
    bare = _without_emphasis(line)
    return bare[:1] in _QUOTES and bare[:1] != "'" and _without_quotes(bare) != bare


def tagged(line: str) -> str:
    """What stands between two tags around the whole line, as in <item>...</item>; "" for none."""
    found = _TAGGED.fullmatch(line)
    return found["inner"].strip() if found else ""


def numbers(line: str) -> list[Number]:
    """The ways to read the start of a line as a number: "i." is a letter or a Roman one."""
    found = _NUMBER.fullmatch(line)
    if found is None or not _is_mark(found):
        return []
    word = " ".join((found["word"] or "").lower().strip(" #").split())
    head = "#" if found["head"] else ""
    rest, before, after = found["rest"], found["before"], found["after"]
    if before and before != after:
        # The emphasis is that of the text, not of the number.
        rest = before + (after or "") + found["gap"] + rest if after else before + rest
    elif after and not before:
        rest = after + found["gap"] + rest
    labelled = bool(word or head)
    return [
        Number(f"{head}{word}:{style}", value, rest, labelled)
        for style, value in _values(found["value"])
    ]


def open_mark(text: str) -> str:
    """The mark that a text ends in, for an item that is to follow; "" for none."""
    last = text.rpartition("\n")[2].strip()
    if bullet(last) == "" or any(not number.rest for number in numbers(last)):
        return last
    return ""


def _is_mark(found: re.Match[str]) -> bool:
    sep, value, rest = (found["sep"] or found["more"] or ""), found["value"], found["rest"]
    if value.isalpha() and not value.isdigit():
        if not sep or (not found["word"] and sep[0] not in ").]"):
            return False
    elif not sep:
        alone = bool(found["word"] or found["head"]) and not rest
        bold = found["before"] is not None and found["before"] == found["after"]
        marked = found["key"] or not value.isdecimal() or found["word"] in ("#", "\u2116 ")
        return bool(alone or bold or marked)
    if found["open"] and sep[0] not in ")]":
        return False
    if found["gap"] or not rest or sep[-1] in _WITHOUT_GAP or found["after"]:
        return True
    return sep[-1] in ".)]" and not rest[0].isdigit()


def _values(written: str) -> list[tuple[str, int]]:
    if not written.isalpha() or written.isdigit():
        return [
            ("number", int(unicodedata.numeric(written) if len(written) == 1 else int(written)))
        ]
    lower, found = written.lower(), []
    if len(lower) == 1:
        found.append(("letter", ord(lower) - ord("a") + 1))
    if all(letter in _ROMAN for letter in lower):
        worth = [_ROMAN[letter] for letter in lower]
        pairs = zip(worth, [*worth[1:], 0], strict=True)
        found.append(("roman", sum(-one if one < after else one for one, after in pairs)))
    return found


def in_sequence(values: Sequence[int], *, rows: int | None, letters: bool = False) -> list[int]:
    """Which of these numbers, by their place, count on from one to the next.

    A count may begin anew at one. As many numbers as ``rows``, or numbers that are all alike, as
    Markdown allows, count as well. One alone is a mark only where one row was asked for. Years are
    no marks, nor are ``letters`` that do not begin with the first: "J. Smith".
    """
    if values[0] >= FIRST_YEAR or (letters and 1 not in values):
        return []
    if len(values) == 1:
        return [0] if rows == 1 and values[0] == 1 else []
    everywhere = len(values) == rows and values[0] in (0, 1)
    if len(values) > 2 and (everywhere or len(set(values)) == 1):
        return list(range(len(values)))
    starts = {0, values.index(1)} if 1 in values else {0}
    starts -= {0} if letters and values[0] != 1 else set()
    found = max((_counting_on(values, start) for start in sorted(starts)), key=len)
    return found if len(found) > 1 else []


def _counting_on(values: Sequence[int], start: int) -> list[int]:
    found = [start]
    for place in range(start + 1, len(values)):
        last, value = values[found[-1]], values[place]
        if value == last + 1 or (value == 1 and last > 1):
            found.append(place)
    return found


def without_inner_marks(items: list[str]) -> list[str]:
    """Items without a second mark, where every one has it: a box, a bullet, a number from 1 on."""
    if all(_BOX.match(item) for item in items):
        items = [_BOX.sub("", item, count=1) for item in items]
    if len(items) < 2:
        return items
    rests = [bullet(item) for item in items]
    if all(rests):
        return [rest or "" for rest in rests]
    inner = [next(iter(numbers(item)), None) for item in items]
    counted = [one.value for one in inner if one is not None and one.series == ":number"]
    if counted == list(range(1, len(items) + 1)):
        return [one.rest for one in inner if one is not None]
    return items


def unwrapped(item: str) -> str:
    """An item without quotes and emphasis around the whole of it; those inside stay."""
    for _ in range(MOST_WRAPPERS):
        inner = _without_quotes(_without_emphasis(item.strip())).strip()
        if inner == item:
            break
        item = inner
    return item


def is_emphasised(line: str) -> bool:
    """Whether the whole line is bold or italic: a title, mostly."""
    return line.startswith(("*", "_")) and _without_emphasis(line) != line


def _without_emphasis(item: str) -> str:
    for mark in _EMPHASIS:
        if len(item) <= 2 * len(mark) or not (item.startswith(mark) and item.endswith(mark)):
            continue
        inner = item[len(mark) : -len(mark)]
        # "**a** and **b**" is not emphasised as a whole, nor is "* a *".
        if mark[0] * len(mark) not in inner and inner == inner.strip():
            return inner
    return item


def _without_quotes(item: str) -> str:
    body = item.removesuffix(",") if item[-2:-1] in "\"'\u201d" else item
    closing = _QUOTES.get(body[:1], "")
    if len(body) < 3 or body[-1] not in closing:
        return item
    inner = body[1:-1]
    if body[0] == body[-1]:
        return _unescaped(inner, body[0]) if _is_one_quotation(inner, body[0]) else item
    depth = 0
    for at, char in enumerate(body):
        depth += char == body[0]
        depth -= char in closing and not _is_apostrophe(body, at)
        if depth == 0:
            return inner if at == len(body) - 1 else item
    return item


def _unescaped(inner: str, mark: str) -> str:
    return inner.replace("\\" + mark, mark)


def _is_one_quotation(inner: str, mark: str) -> bool:
    """Whether the first mark inside opens a quotation of its own, or there is none.

    In '"a" and "b"' the first mark inside closes what the outer one opened.
    """
    for at, char in enumerate(inner):
        if char != mark or inner[at - 1 : at] == "\\" or _is_apostrophe(inner, at):
            continue
        return at == 0 or (not inner[at - 1].isalnum() and inner[at + 1 : at + 2].isalnum())
    return True


def _is_apostrophe(text: str, at: int) -> bool:
    around = text[at - 1 : at] + text[at + 1 : at + 2]
    return text[at] in "'\u2019\u2018" and len(around) == 2 and around.isalnum()
