"""Rows out of a plain list, as chat models really write it: marks, titles, prose around it.

Where lines have marks, a line without one is no row: a preamble, a heading, a closing offer, the
rule of a table. It is part of the item before it when it is indented below it, or when the item's
sentence goes on. Without any mark, lines are rows only when they are as many as were asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

from synth_assets.llm.list_marks import (
    Number,
    bullet,
    in_sequence,
    is_emphasised,
    is_quoted,
    numbers,
    picture,
    tagged,
    tight_bullet,
    unwrapped,
    without_inner_marks,
)

_FENCE: Final = re.compile(r"(?:`{3,}|~{3,})[\w+-]*")
_TAGS: Final = frozenset({"<ul>", "</ul>", "<ol>", "</ol>"})
_HEADING: Final = re.compile(r"#{1,6}\s+\S.*")
_CELL_END: Final = re.compile(r"(?<!\\)\|")
# What a chat says after a list, also in lower case.
_OFFER: Final = re.compile(
    r"(?:let me know|(?:i )?hope (?:this|these|that)|feel free to|would you like"
    r"|do you (?:want|need) (?:me|more)"
    r"|if you(?:'d| would)? (?:like|need|want) (?:me|more|any|some))\b",
    re.IGNORECASE,
)
# What announces a list of the model's own questions or notes, behind that of the rows.
_CLOSING: Final = re.compile(
    r"\b(?:(?:could|can|would|do) you|let me know|to help me|tell me|notes?|explanations?"
    r"|key (?:features|points|considerations)|disclaimers?|(?:why|how|about) (?:this|these))"
    r"\b.*[:?]",
    re.IGNORECASE,
)
# A line that says something about an item: "Tone: calm".
_ABOUT: Final = re.compile(r"[*_(\[]*(?P<name>[^\W\d_]\w*(?: \w+)?)[*_]*\s?[:\uff1a]")
# A remark on an item: "(angry)", "-> angry".
_REMARK: Final = re.compile(r"\(.*\)[.!]?|\[.*\]|(?:[-=]+>|[\u2190-\u21ff]).*")
_INDEX: Final = re.compile(r"#?\d{1,4}[.):]?|")
# A sentence is not over after one of these.
_GOES_ON: Final = tuple(",;(/&\u2013\u2014-")
# Indented less than this below its item, a line stands on the item's level.
NESTED: Final = 2
# A line that begins with a number goes on with a line that was broken because it was long.
LONG_LINE: Final = 40


@dataclass(frozen=True)
class PlainList:
    """``aside``: lines that are no rows; ``marked``: whether marks told the rows."""

    rows: list[str]
    aside: list[str]
    marked: bool


@dataclass(eq=False)
class _Line:
    text: str
    indent: int
    bullet: str | None = None
    number: Number | None = None
    cut: bool = False
    noise: bool = False

    @property
    def rest(self) -> str:
        if self.bullet is not None:
            return self.bullet
        return self.number.rest if self.number else self.text

    @property
    def is_marked(self) -> bool:
        return self.bullet is not None or self.number is not None

    @property
    def is_title(self) -> bool:
        """Whether what follows says what this line announces."""
        return not self.rest or self.rest.endswith((":", "\uff1a")) or is_emphasised(self.rest)


@dataclass
class _Item:
    first: _Line
    lines: list[str]
    cut: bool = False

    @property
    def label_only(self) -> bool:
        """Whether a label alone begins the item, and its text is on the lines below."""
        return self.first.number is not None and self.first.number.labelled and not self.lines[0]

    @property
    def text(self) -> str:
        inner = [unwrapped(line) if is_emphasised(line) else line for line in self.lines]
        return " ".join(line for line in inner if line)


def read_plain_list(
    text: str, *, cut: bool, rows: int | None = None, continued: str | None = None
) -> PlainList:
    """The rows of a plain list and the lines that are none.

    ``cut``: the text ended at a token limit, so that its last line is not whole (unless a line
    break follows it), nor is the item that it belongs to. ``rows``: how many were asked for; None
    when that says nothing. ``continued``: the answer goes on with a text that ended in this mark
    ("" for none); then its first line is an item, and no line is the rest of another.
    """
    if continued:
        return _continued(text, continued, cut=cut)
    lines = _lines(text, cut=cut)
    _find_numbers(lines, rows)
    if not any(line.is_marked for line in lines):
        _find_pictures(lines, rows)
    members = _members(lines, rows)
    texts = [line for line in lines if line.text and not line.noise]
    table = _table(lines)
    if table is not None and (not members or len(table.rows) == rows):
        return table
    few = rows is not None and 2 * len(members) < rows == len(texts)
    if not members or few:
        within = [] if members else _enclosed(texts, rows)
        if not within:
            return _unmarked(texts, rows)
        return _marked(lines, within, wrapped=False)
    members = _without_questions(lines, members, rows)
    return _marked(lines, members, wrapped=continued is None)


def _without_questions(lines: list[_Line], members: list[_Line], rows: int | None) -> list[_Line]:
    """Without items that a closing question or note announces once all rows were given."""
    if rows is None or not 0 < rows < len(members):
        return members
    first, last = lines.index(members[rows - 1]), lines.index(members[rows])
    between = [line.text for line in lines[first + 1 : last] if line.text]
    return members[:rows] if any(map(_CLOSING.search, between)) else members


def _enclosed(texts: list[_Line], rows: int | None) -> list[_Line]:
    """Lines in quotation marks or between tags, if they are as many as were asked for."""
    whole = [line for line in texts if not line.cut]
    for found in (
        [line for line in whole if tagged(line.text)],
        [line for line in whole if is_quoted(line.text)],
    ):
        if found and len(found) == rows:
            for line in found:
                line.bullet = tagged(line.text) or line.text
            return found
    return []


def _continued(text: str, mark: str, *, cut: bool) -> PlainList:
    lines = _lines(text, cut=cut)
    if not lines[0].text or lines[0].is_marked:
        return read_plain_list(text, cut=cut, continued="")
    given = _lines(f"{mark} {text.lstrip()}", cut=cut)
    _find_numbers(given, None)
    members = _members(given, None)
    if len(members) > 1:
        return _marked(given, members, wrapped=False)
    return _unmarked([line for line in lines if line.text and not line.noise], None)


def _lines(text: str, *, cut: bool) -> list[_Line]:
    raw = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if all(not line.strip() or line.lstrip().startswith(">") for line in raw):
        raw = [line.lstrip().removeprefix(">") for line in raw]
    lines = []
    for line in raw:
        bare = line.strip()
        if _FENCE.fullmatch(bare):
            bare = ""
        shown = line.expandtabs(4)
        made = _Line(bare, len(shown) - len(shown.lstrip()))
        made.noise = _is_rule(bare)
        if bare and not made.noise:
            made.bullet = bullet(bare)
        lines.append(made)
    lines[-1].cut = cut and bool(lines[-1].text)
    if not any(line.bullet is not None for line in lines):
        tight = [(line, tight_bullet(line.text)) for line in lines if not line.noise]
        if sum(rest is not None for _, rest in tight) > 1:
            for made, rest in tight:
                made.bullet = rest
    return lines


def _is_rule(text: str) -> bool:
    signs = set(text) - {" "}
    if len(signs) == 1 and signs <= set("-*_=~\u2013\u2014"):
        return len(text.replace(" ", "")) > 1
    return ("--" in text and signs <= set("|-:+")) or text in _TAGS


def _find_numbers(lines: list[_Line], rows: int | None) -> None:
    """Gives their numbers to the lines that count on from one to the next."""
    series: dict[str, list[tuple[_Line, Number]]] = {}
    for line in lines:
        if line.text and not line.noise and line.bullet is None:
            for number in numbers(line.text):
                series.setdefault(number.series, []).append((line, number))
    counted: list[list[tuple[_Line, Number]]] = []
    for name, found in series.items():
        values = [number.value for _, number in found]
        lettered = name.endswith((":letter", ":roman"))
        places = in_sequence(values, rows=rows, letters=lettered)
        counted.append([found[place] for place in places])
    # The longest first: "i." counts with "h." or with "ii.", whichever there is.
    counted.sort(key=len, reverse=True)
    for line, number in chain.from_iterable(counted):
        alone = rows == 1 and number.labelled and number.rest
        if line.number is None and not alone:
            line.number = number


def _find_pictures(lines: list[_Line], rows: int | None) -> None:
    """Takes a sign for a bullet where as many lines begin with it as rows were asked for."""
    signs: dict[str, list[_Line]] = {}
    for line in lines:
        sign, _ = picture(line.text)
        if sign and not line.noise:
            signs.setdefault(sign, []).append(line)
    found = max(signs.values(), key=len, default=[])
    if len(found) > 1 and len(found) == rows:
        for line in found:
            line.bullet = picture(line.text)[1]


def _members(lines: list[_Line], rows: int | None) -> list[_Line]:
    """The lines that begin an item: those of one level, of one kind where two kinds are nested."""
    marked = [line for line in lines if line.is_marked]
    if not marked:
        return []
    level = min(line.indent for line in marked) + NESTED
    outer = [line for line in marked if line.indent < level]
    inner = [line for line in marked if line.indent >= level]
    if inner:
        return _of_level(lines, outer, inner, rows)
    kinds = [
        [line for line in outer if line.bullet is not None],
        [line for line in outer if line.number is not None],
    ]
    if all(kinds) and len(outer) != rows:
        bullets, counted = kinds
        if all(line.is_title for line in counted):
            return bullets
        return next((kind for kind in kinds if len(kind) == rows), outer)
    return outer


def _of_level(
    lines: list[_Line], outer: list[_Line], inner: list[_Line], rows: int | None
) -> list[_Line]:
    first = next(line for line in lines if line.text)
    if len(outer) == 1 and outer[0] is first and not first.is_title and len(inner) != rows:
        # The answer was stripped, and so was the indentation of its first line only.
        return [*outer, *inner]
    grouped = all(line.rest.endswith((":", "\uff1a")) for line in outer)
    if len(outer) == rows and not (grouped and len(inner) >= len(outer)):
        return outer
    if len(inner) == rows or all(line.is_title for line in outer):
        return inner
    return outer


def _marked(lines: list[_Line], members: list[_Line], *, wrapped: bool) -> PlainList:
    items, aside = _with_their_lines(lines, members, wrapped=wrapped)
    kept = [item for item in items if not item.cut]
    aside += _without_remarks(kept) if wrapped else []
    texts = without_inner_marks([item.text for item in kept if item.text])
    return PlainList([row for text in texts if (row := unwrapped(text))], aside, True)


def _with_their_lines(
    lines: list[_Line], members: list[_Line], *, wrapped: bool
) -> tuple[list[_Item], list[str]]:
    """Items with the lines that are part of them, and the text of lines that are part of none."""
    beginnings = {id(line) for line in members}
    every = wrapped and _all_have_two_lines(lines, beginnings)
    labelled = _below_labels(lines, beginnings)
    items: list[_Item] = []
    aside: list[str] = []
    current: _Item | None = None
    blank, before = False, ""
    for line in lines:
        if not line.text:
            blank = True
            continue
        if id(line) in beginnings:
            current = _Item(line, [line.rest], line.cut)
            items.append(current)
        elif current is not None and (
            id(line) in labelled
            or _goes_on(current, line, before, blank, wrapped=wrapped, every=every)
        ):
            current.lines.append(line.text)
            current.cut |= line.cut
        else:
            current = None
            aside += [] if line.cut else [line.text]
        blank, before = False, line.text
    return items, aside


def _below_labels(lines: list[_Line], beginnings: set[int]) -> set[int]:
    """The lines below labels that are alone on theirs: all up to the next label.

    Below the last one, as many paragraphs as below any other: what follows is said of the list.
    """
    blocks: list[list[list[int]]] = []
    gap = ended = True
    for line in lines:
        if id(line) in beginnings:
            if line.rest or line.number is None or not line.number.labelled:
                return set()
            blocks.append([])
            gap, ended = True, False
        elif line.noise or _HEADING.fullmatch(line.text):
            ended = True
        elif not line.text:
            gap = True
        elif not ended:
            if gap:
                blocks[-1].append([])
            blocks[-1][-1].append(id(line))
            gap = False
    if len(blocks) < 2:
        return set()
    most = max(1, *(len(block) for block in blocks[:-1]))
    kept = [*blocks[:-1], blocks[-1][:most]]
    return {line for block in kept for paragraph in block for line in paragraph}


def _all_have_two_lines(lines: list[_Line], beginnings: set[int]) -> bool:
    """Whether each of several items has a line without a mark right below it."""
    below = [
        following
        for line, following in pairwise([*lines, _Line("", 0)])
        if id(line) in beginnings and line.rest
    ]
    own = [line for line in below if line.text and not line.noise and not line.is_marked]
    plain = [
        line
        for line in own
        if not _OFFER.match(line.text)
        and not _REMARK.fullmatch(line.text)
        and not line.text.endswith(":")
        and not is_emphasised(line.text)
    ]
    return len(beginnings) > 1 and len(plain) == len(below) == len(beginnings)


def _without_remarks(items: list[_Item]) -> list[str]:
    """Takes lines such as "Tone: calm" off items that all have one; the lines taken.

    They are part of the text where all of its first lines have one name as well: "Subject: ...".
    """
    said = [[line for line in item.lines if line] for item in items]
    heads = {_name_of(lines[0]) for lines in said if lines}
    if len(items) < 2 or (len(heads) == 1 and heads != {""}):
        return []
    common = set.intersection(*({_name_of(line) for line in lines[1:]} for lines in said)) - {""}
    aside: list[str] = []
    for item, lines in zip(items, said, strict=True):
        aside += [line for line in lines[1:] if _name_of(line) in common]
        item.lines = [*lines[:1], *(line for line in lines[1:] if _name_of(line) not in common)]
    return aside


def _name_of(line: str) -> str:
    found = _ABOUT.match(line)
    return found["name"].casefold() if found else ""


def _goes_on(
    item: _Item, line: _Line, before: str, blank: bool, *, wrapped: bool, every: bool
) -> bool:
    """Whether a line without a mark is part of the item before it; ``every`` item has such."""
    if line.noise or line.is_marked or _HEADING.fullmatch(line.text):
        return False
    if not any(item.lines):
        # A mark alone on its line; a label may have a blank line below it.
        number = item.first.number
        return not blank or (number is not None and number.labelled)
    if line.indent >= item.first.indent + NESTED:
        return True
    if blank or not wrapped or _OFFER.match(line.text) or _REMARK.fullmatch(line.text):
        return False
    announced = item.first.is_title and (len(item.lines) == 1 or item.label_only)
    return announced or every or _is_wrapped(before, line.text)


def _is_wrapped(before: str, text: str) -> bool:
    """Whether a line goes on with the sentence of the line before it."""
    if text.endswith((":", "\uff1a")) or is_emphasised(text):
        return False
    first = next((char for char in text if char.isalnum()), "")
    if first.islower() or before.endswith(_GOES_ON):
        return True
    return first.isdigit() and len(before) >= LONG_LINE


def _unmarked(texts: list[_Line], rows: int | None) -> PlainList:
    """Lines as they are; without a cut one, and only if they are as many as were asked for."""
    said = [line.text for line in texts if not line.cut]
    announced = bool(said) and said[0].endswith((":", "\uff1a"))
    if rows is not None and (len(said) != rows or announced or len(said) != len(texts)):
        return PlainList([], said, False)
    return PlainList([row for text in said if (row := unwrapped(text))], [], False)


def _table(lines: list[_Line]) -> PlainList | None:
    """The rows of a Markdown table: its one column of text, else the one with the most of it."""
    used = _table_rows(lines)
    cells = [_cells(line.text) for line in used if not line.cut]
    if not cells:
        return None
    columns = [
        [row[at] if at < len(row) else "" for row in cells] for at in range(max(map(len, cells)))
    ]
    worded = [one for one in columns if not all(_INDEX.fullmatch(cell) for cell in one)]
    column: list[str] = max(worded, key=lambda one: sum(map(len, one)), default=[])
    places = {id(line) for line in used}
    aside = [line.text for line in lines if line.text and id(line) not in places and not line.cut]
    return PlainList([row for cell in column if (row := unwrapped(cell))], aside, True)


def _table_rows(lines: list[_Line]) -> list[_Line]:
    """The lines below the rule of a table; those between bars where there is no rule."""
    drawn = [at for at, line in enumerate(lines) if "|" in line.text and not line.noise]
    rules = [at for at, line in enumerate(lines) if line.noise and set(line.text) & {"|", "+"}]
    rule = next((at for at in rules if drawn and at > drawn[0]), None)
    if rule is not None:
        return [lines[at] for at in drawn if at > rule]
    framed = [lines[at] for at in drawn if lines[at].text[0] == lines[at].text[-1] == "|"]
    return framed if len(framed) > 1 else []


def _cells(text: str) -> list[str]:
    inner = text.removeprefix("|").removesuffix("|")
    return [cell.replace("\\|", "|").strip() for cell in _CELL_END.split(inner)]
