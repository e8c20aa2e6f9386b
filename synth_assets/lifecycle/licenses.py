"""What may be done with the rows of several sources: one licence, or a mix that is told as one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Words that name no other licence, whether they are there or not.
_FILLERS = frozenset({"the", "licence", "license", "licensed", "under", "version"})


@dataclass(frozen=True)
class Share:
    """One licence ("" : none declared), the sources under it, and their rows, where counted."""

    license: str
    sources: tuple[str, ...]
    rows: int | None = None

    def told(self) -> str:
        """Such as ``CC0-1.0: desk, phone, 120 rows``."""
        counted = [] if self.rows is None else [f"{self.rows} rows"]
        return f"{self.license or 'none declared'}: {', '.join([*self.sources, *counted])}"


def shares(
    sources: Sequence[Mapping[str, Any]], rows: Mapping[str, int] | None = None
) -> list[Share]:
    """Declared sources (and rows by their names) by licence, in the order of declaration.

    Two spellings of one licence (case, blanks for hyphens, "the ... License") are one.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for source in sources:
        text = str(source.get("license") or "").strip()
        kept = found.setdefault(_plainest(text), (text, []))
        kept[1].append(str(source.get("name") or source.get("kind") or "source"))
    return [
        Share(text, tuple(names), None if rows is None else sum(rows.get(n, 0) for n in names))
        for text, names in found.values()
    ]


def same(text: str) -> str:
    """A licence's text in the form in which two are compared."""
    return "-".join(text.strip().lower().split())


def _plainest(text: str) -> str:
    """What is compared of a licence's text: its words and numbers, without those that say none."""
    apart = re.sub(r"(?<=[a-z])v?(?=\d)", "-", text.lower())  # apache2.0, v2
    words = re.findall(r"\d+(?:\.\d+)*|[^\W\d_]+|\+", apart)
    kept = [re.sub(r"^(\d+)(\.0)+$", r"\1", word) for word in words if word not in _FILLERS]
    return "-".join(word for word in kept if word != "v") or same(text)


def is_mix(found: Sequence[Share]) -> bool:
    """Whether rows differ in what may be done with them, or in whether that is known."""
    return len(found) > 1


def told(found: Sequence[Share]) -> str:
    """All shares in one line."""
    return "; ".join(share.told() for share in found)
