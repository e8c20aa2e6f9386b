"""Rows that look like the examples in a prompt, without knowing any dataset.

The server reads list items out of the prompt and recombines them: the beginning of one example,
the end of another, a word swapped, numbers redrawn, a small modifier added. So rows carry the
vocabulary of the label that was asked for, most are new, and about one in twelve is an exact copy
of an example or of an earlier row, which gives screening something to find.

Everything is a pure function of the prompt and a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

DEFAULT_ROWS = 8
MAX_ROWS = 2_000
COPY_OF_EXAMPLE = 0.05
COPY_OF_ROW = 0.08  # cumulative: 3 % repeat a row of the same answer
NEAR_COPY = 0.7  # character-trigram Jaccard above which a draw is tried again
TRIES = 6

MODIFIERS = (
    "again", "today", "since yesterday", "this morning", "for now", "as before", "twice",
    "at times", "all day", "on both sides", "left side", "right side", "after restart",
    "second time", "as reported", "please check", "urgent", "when cold", "under load",
    "overnight", "once more", "near the end", "before noon", "last week", "without warning",
    "intermittent", "not sure why", "as noted", "so far", "in part", "at start", "every hour",
)  # fmt: skip
OPENERS = ("again", "still", "now", "also", "today", "check", "urgent", "second", "old", "new")
FALLBACK = ("an item of the list", "another item of it", "one more of them", "a further item")

_ITEM = re.compile(r"^\s*(?:[-*]|\d{1,4}[.)])\s+(\S.*?)\s*$")
_HEADING = re.compile(r"\b(?:examples?|samples?|real|written|seeds?|existing|known)\b", re.I)
_NOUN = (
    r"(?:rows?|examples?|items?|texts?|lines?|entries|records?|messages?|sentences?|questions?"
    r"|orders?|requests?|queries|samples?|instructions?)"
)
_COUNT = re.compile(rf"\b(\d{{1,4}})\s+(?:[\w'-]+\s+){{0,4}}?{_NOUN}\b", re.I)
_ORDER = re.compile(
    rf"\b(?:write|generate|give|produce|create|return|list|exactly|make|compose)\b"
    rf"(?:\s+[\w'-]+){{0,3}}?\s+(\d{{1,4}})\s+(?:[\w'-]+\s+){{0,4}}?{_NOUN}\b",
    re.I,
)
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Prompt:
    """What the grammar takes from a prompt: example rows, and how many rows are asked for."""

    examples: tuple[str, ...]
    rows: int | None


def read_prompt(text: str) -> Prompt:
    """The example rows of a prompt and the number of rows it asks for (None: not said)."""
    return Prompt(examples=_examples(text), rows=_rows_asked(text))


def rows(prompt: Prompt, *, seed: int) -> Iterator[str]:
    """An endless, reproducible sequence of rows in the manner of the prompt's examples."""
    rng = random.Random(seed)
    examples = prompt.examples
    written: list[str] = []
    while True:
        draw = rng.random()
        if draw < COPY_OF_EXAMPLE:
            row = rng.choice(examples)
        elif draw < COPY_OF_ROW and written:
            row = rng.choice(written)
        else:
            row = _new_row(rng, examples)
        written.append(row)
        yield row


def _rows_asked(text: str) -> int | None:
    found = _ORDER.search(text) or _COUNT.search(text)
    return min(int(found[1]), MAX_ROWS) if found else None


def _examples(text: str) -> tuple[str, ...]:
    """List items under a heading that speaks of examples; else the longest list; else words.

    A prompt may also hold a list of rules: those must not become rows.
    """
    lists: list[tuple[str, list[str]]] = []
    heading, open_list = "", False
    for line in text.splitlines():
        item = _ITEM.match(line)
        if item:
            if not open_list:
                lists.append((heading, []))
            lists[-1][1].append(item[1].strip("\"'") or item[1])
            open_list = True
        elif line.strip():
            heading, open_list = line, False
    under_heading = [row for head, items in lists if _HEADING.search(head) for row in items]
    longest = max((items for _, items in lists), key=len, default=[])
    found = tuple(dict.fromkeys(under_heading or longest))
    return found or _from_words(text)


def _from_words(text: str) -> tuple[str, ...]:
    words = list(dict.fromkeys(_WORD.findall(text)))[:60]
    made = tuple(" ".join(words[at : at + 4]) for at in range(0, len(words) - 3, 3))
    return made if len(made) > 1 else FALLBACK


def _new_row(rng: random.Random, examples: tuple[str, ...]) -> str:
    row = ""
    for _ in range(TRIES):
        first, second = rng.choice(examples), rng.choice(examples)
        row = _recombined(rng, first.split(), second.split())
        if not (_alike(row, first) or _alike(row, second)):
            break
    return row


def _recombined(rng: random.Random, first: list[str], second: list[str]) -> str:
    head = first[: _cut(rng, len(first))]
    tail = second[-_cut(rng, len(second)) :]
    words = head + tail
    if len(words) > 2 and rng.random() < 0.4:
        here, there = rng.sample(range(len(words)), 2)
        words[here], words[there] = words[there], words[here]
    kind = rng.random()
    if kind < 0.3:
        words = [rng.choice(OPENERS), *words]
    if 0.15 < kind < 0.85:
        words = [*words, rng.choice(MODIFIERS)]
    return _DIGITS.sub(lambda found: _other_number(rng, found[0]), " ".join(words))


def _cut(rng: random.Random, length: int) -> int:
    """About half of a row's words, at least one."""
    return max(1, min(length, round(length * rng.uniform(0.35, 0.65))))


def _other_number(rng: random.Random, digits: str) -> str:
    if rng.random() < 0.3:
        return digits
    low = 10 ** (len(digits) - 1) if len(digits) > 1 else 0
    return str(rng.randrange(low, 10 ** len(digits)))


def _alike(row: str, other: str) -> bool:
    left, right = _trigrams(row), _trigrams(other)
    return len(left & right) >= NEAR_COPY * len(left | right)


def _trigrams(text: str) -> set[str]:
    text = f"  {text.casefold()} "
    return {text[at : at + 3] for at in range(len(text) - 2)}
