"""A model's thinking, taken off its answer before anything is read.

Servers that do not know a model's own marks hand its thinking over as part of the text:

===================  ========================================================================
marks                whose
===================  ========================================================================
``<think>``          DeepSeek-R1, Qwen3, QwQ, Phi, Granite and others; where the prompt's
                     template has the opening mark already, only the closing one is there
``[THINK]``          Magistral
``<|channel|>``      gpt-oss (harmony); ``analysis...assistantfinal...`` with its marks lost
``<|..._thought|>``  OpenThinker, Sky-T1; then ``<|begin_of_solution|>``
others               ``<thinking>``, ``<reasoning>``, Seed, Kimi, Command A, Gemma, ERNIE, ...
===================  ========================================================================

A row may speak of such marks. So a mark counts only where a model puts it: an opening one at the
start of a line, or after prose when its closing one is on a later line; a closing one alone on its
line, or in a line without a list mark where it is not set apart as a word. Inside a JSON document
none counts.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

_NAMES: Final = (
    r"(?:\w{1,20}[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad"
    r"|chain[_-]of[_-]thought|cot|inner[_-]monologue)"
)
_PAIRS: Final = (
    (rf"<({_NAMES})(?:\s[^<>\n]{{0,200}})?>", rf"</({_NAMES})\s*>"),
    (r"\[(THINK)\]", r"\[/(THINK)\]"),
    (r"\u25c1(think)\u25b7", r"\u25c1/(think)\u25b7"),
    (r"<\|begin_of_(thought)\|>", r"<\|end_of_(thought)\|>"),
    (r"<\|START_(THINKING)\|>", r"<\|END_(THINKING)\|>"),
    (r"<\|(think)(?:ing)?\|>", r"<\|/(think)(?:ing)?\|>"),
    (r"<\|(inner)_prefix\|>", r"<\|(inner)_suffix\|>"),
    (r"<\|(channel)>\s*(?:thought|analysis)\b", r"<(channel)\|>"),
    (r"<(unused)94>\s*thought\b", r"<(unused)95>"),
    (r"<(details)\s[^<>\n]{0,200}reasoning[^<>\n]{0,200}>", r"</(details)\s*>"),
)
_OPENING: Final = re.compile("|".join(opening for opening, _ in _PAIRS), re.IGNORECASE)
_CLOSING: Final = re.compile("|".join(closing for _, closing in _PAIRS), re.IGNORECASE)
_WRAPPED: Final = re.compile(
    r"\s*(?:<(answer|response|output|final|final_answer|solution)>"
    r"|<\|begin_of_(solution|box)\|>|<\|START_(RESPONSE|TEXT)\|>)",
    re.IGNORECASE,
)
# What ends a turn; a server that does not know the mark leaves it in the text.
_END_MARK: Final = re.compile(
    r"(?:<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|return|call|user|assistant"
    r"|end_of_turn|eos|END_OF_TURN_TOKEN)\|>|<end_of_turn>|<eos>|</s>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>)\s*\Z"
)
MOST_END_MARKS: Final = 4
# A turn that ends, and what a model makes up of the next one.
_NEXT_TURN: Final = re.compile(
    r"(?:<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|end_of_turn|eos|END_OF_TURN_TOKEN)\|>"
    r"|<end_of_turn>|<eos>|</s>|<\uff5cend\u2581of\u2581sentence\uff5c>)\s*"
    r"(?:<\|(?:im_start|start|start_header_id|START_OF_TURN_TOKEN|user|assistant|system)\|>"
    r"|<start_of_turn>|<s>|\[INST\]|<\uff5c(?:User|Assistant)\uff5c>"
    r"|(?:Human|User|Assistant|System|Question):)"
)
_LIST_MARK: Final = re.compile(r"[ \t>]*(?:[-*+\u2022\u2013\u2014]|\(?\d{1,4}[.):])[ \t]")
_HEADER: Final = re.compile(
    r"(?:<\|start\|>\w*)?<\|channel\|>\s*(\w+)([^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_NO_HEADER: Final = re.compile(r"\s*(?:<\|start\|>)?(?:assistant)?(?:<\|message\|>)?\s*")
_TURN_END: Final = re.compile(r"<\|(?:end|return|call|start)\|>")
_HARMONY_LOST: Final = re.compile(
    r"\s*(?:analysis(?=\S).*?)?assistant\s*final(?=\W|[A-Z])", re.DOTALL
)
_HARMONY_OPEN: Final = re.compile(r"\s*analysis[A-Z][\w']*\s")
_GRANITE: Final = re.compile(
    r"\s*here(?:'s| is) my thought process:(.*?\shere(?:'s| is) my response:)?",
    re.DOTALL | re.IGNORECASE,
)
_DOCUMENT: Final = re.compile(r'\s*(\{\s*["}]|\[\s*[\[{"\]])')
# A document or an item that begins after a mark on its line.
_BEGINS: Final = re.compile(r'\s*(?:\{\s*"|\[\s*[{"]|(?:[-*\u2022]|\d{1,3}[.)])\s+\S)')
_DECODER: Final = json.JSONDecoder(strict=False)
# No answer has more; a text made of marks would take minutes.
MOST_MARKS: Final = 1_000
# How far a mark's line is looked at.
LONGEST_LINE: Final = 5_000
_QUOTES: Final = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"


class Said(NamedTuple):
    """``text``: the answer proper. ``unclosed``: thinking that no mark ends, "" mostly."""

    text: str
    unclosed: str


def without_thinking(text: str) -> Said:
    """What a model says, without what it thinks, marks around the answer and marks of its end.

    Where thinking begins and does not end, all after it may be thinking: it is ``unclosed``.
    """
    said = _of_harmony(text) or _of_granite(text) or _between_marks(text)
    return Said(_unwrapped(_without_end_marks(said.text)), said.unclosed)


def _between_marks(text: str) -> Said:
    marks = _Marks(text)
    kept: list[str] = []
    at = 0
    opening, stray = marks.opening(0), marks.stray(0)
    while True:
        if opening is not None and opening.start() < at:
            opening = marks.opening(at)
        if stray is not None and stray.start() < at:
            stray = marks.stray(at)
        if stray is not None and (opening is None or stray.start() < opening.start()):
            # The template opened it: all that was said before was thought.
            kept, at = [], stray.end()
            continue
        if opening is None:
            return Said(_joined([*kept, text[at:]]), "")
        kept.append(text[at : opening.start()])
        closing = marks.closing_of(opening)
        if closing is None:
            return Said(_joined(kept), text[opening.start() :])
        at = closing.end()


def _joined(parts: list[str]) -> str:
    """What was said before and after thinking, which may be all that stood between two words."""
    said = ""
    for part in filter(None, parts):
        apart = not said or said[-1].isspace() or part[0].isspace()
        said += part if apart else f"\n{part}"
    return said


class _Marks:
    """The marks of a text, found once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._openings = _unquoted(_OPENING, text)
        self._closings = _unquoted(_CLOSING, text)
        self._named: dict[str, list[re.Match[str]]] = {}
        for mark in self._closings:
            self._named.setdefault(_name(mark), []).append(mark)

    def opening(self, at: int) -> re.Match[str] | None:
        """The first mark from ``at`` on where thinking begins."""
        end = _document_end(self._text, at)
        for mark in _from(self._openings, at + (end or 0)):
            before = _line_before(self._text, mark)
            if _LIST_MARK.match(before):
                continue
            closing = self.closing_of(mark)
            if not self._text[at : mark.start()].strip():
                return mark
            if not before.strip(" \t\r>"):
                # Without an end it may be the first word of a line.
                if closing is not None or self._text[mark.end() : mark.end() + 1] != " ":
                    return mark
            elif closing is None or end is not None:
                continue
            elif _rest_of_line(self._text, mark.end(), closing.start())[1]:
                return mark
        return None

    def closing_of(self, opening: re.Match[str]) -> re.Match[str] | None:
        """The mark that ends what ``opening`` began; models mix up the names at times."""
        named = self._named.get(_name(opening), [])
        found = next(_from(named, opening.end()), None)
        return found or next(_from(self._closings, opening.end()), None)

    def stray(self, at: int) -> re.Match[str] | None:
        """The first mark from ``at`` on that ends thinking, whether or not it was opened."""
        end = _document_end(self._text, at)
        for mark in _from(self._closings, at + (end or 0)):
            before = _line_before(self._text, mark)
            after, _ = _rest_of_line(self._text, mark.end())
            if not before.strip() and not after.strip():
                return mark
            if end is None and _ends(before, after):
                return mark
        return None


def _from(marks: list[re.Match[str]], at: int) -> Iterator[re.Match[str]]:
    first = bisect_left(marks, at, key=lambda mark: mark.start())
    return (marks[index] for index in range(first, len(marks)))


def _unquoted(marks: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The marks in a text that do not stand in quotes."""
    found = islice(marks.finditer(text), MOST_MARKS)
    return [mark for mark in found if not _mentioned(text, mark)]


def _mentioned(text: str, mark: re.Match[str]) -> bool:
    before, after = text[max(0, mark.start() - 1) : mark.start()], text[mark.end() : mark.end() + 1]
    return before != "" and before in _QUOTES and after != "" and after in _QUOTES


def _ends(before: str, after: str) -> bool:
    """Whether a closing mark inside a line ends thinking, or is a word of the line."""
    if not before.strip() or _BEGINS.match(after):
        return True
    if _LIST_MARK.match(before):
        return not after.strip() and not before[-1:].isspace()
    return not (before[-1:].isspace() and after[:1].isspace() and after.strip())


def _name(mark: re.Match[str]) -> str:
    return next(group for group in mark.groups() if group is not None).lower()


def _line_before(text: str, mark: re.Match[str]) -> str:
    return text[max(0, mark.start() - LONGEST_LINE) : mark.start()].rpartition("\n")[2]


def _rest_of_line(text: str, at: int, end: int | None = None) -> tuple[str, str]:
    """What follows on the line, and its line break if there is one before ``end``."""
    most = at + LONGEST_LINE
    return text[at : most if end is None else min(end, most)].partition("\n")[:2]


def _document_end(text: str, at: int) -> int | None:
    """The length of the JSON document that begins at ``at``; 0 when it does not end."""
    found = _DOCUMENT.match(text, at)
    if found is None:
        return None
    try:
        return _DECODER.raw_decode(text, found.start(1))[1] - at
    except (ValueError, RecursionError):
        return 0


def _of_harmony(text: str) -> Said | None:
    """The final channel of gpt-oss, else its calls of functions; None for other texts."""
    headers = [match for match in _HEADER.finditer(text) if _is_header(text, match)]
    if not headers:
        lost = _HARMONY_LOST.match(text)
        if lost:
            return Said(text[lost.end() :], "")
        return Said("", text) if _HARMONY_OPEN.match(text) else None
    final: list[str] = []
    called: list[str] = []
    other = rest = ""
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        body = text[header.end() : following.start() if following else len(text)]
        ended = _TURN_END.search(body)
        rest = _NO_HEADER.sub("", body[ended.end() :], count=1) if ended and not following else rest
        body = body[: ended.start()] if ended else body
        if header[1] == "final":
            final.append(body)
        elif "functions." in header[2]:
            called.append(body)
        else:
            other = "" if ended or following else text[header.start() :]
    # What follows the thinking without a channel is the answer as well.
    return Said("\n".join(final or called) or rest, other)


def _of_granite(text: str) -> Said | None:
    """Granite 3.2 says in words where its thinking begins and ends."""
    found = _GRANITE.match(text)
    if found is None:
        return None
    return Said(text[found.end() :], "") if found[1] else Said("", text)


def _is_header(text: str, match: re.Match[str]) -> bool:
    before = _line_before(text, match).rstrip()
    return not before or before.endswith("|>")


def _without_end_marks(text: str) -> str:
    turn = _NEXT_TURN.search(text)
    text = text[: turn.start()] if turn and text[: turn.start()].strip() else text
    for _ in range(MOST_END_MARKS):
        found = _END_MARK.search(text, max(0, len(text) - 100))
        if found is None:
            break
        text = text[: found.start()]
    return text


def _unwrapped(text: str) -> str:
    """The text without marks that stand around the whole answer."""
    opened = _WRAPPED.match(text)
    if opened is None:
        return text
    name = next(group for group in opened.groups() if group is not None)
    closing = rf"</{name}\s*>|<\|end_of_{name}\|>|<\|END_{name}\|>"
    closed = list(re.finditer(closing, text, re.IGNORECASE))
    inner = text[opened.end() : closed[-1].start()] if closed else text[opened.end() :]
    return f"{inner}\n{text[closed[-1].end() :]}" if closed else inner
