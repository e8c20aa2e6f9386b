"""What may be done with the rows of several sources: one licence, or a mix that is told as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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

    Two spellings of one licence (case, blanks for hyphens) are one.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for source in sources:
        text = str(source.get("license") or "").strip()
        kept = found.setdefault(same(text), (text, []))
        kept[1].append(str(source.get("name") or source.get("kind") or "source"))
    return [
        Share(text, tuple(names), None if rows is None else sum(rows.get(n, 0) for n in names))
        for text, names in found.values()
    ]


def same(text: str) -> str:
    """A licence's text in the form in which two are compared."""
    return "-".join(text.strip().lower().split())


def is_mix(found: Sequence[Share]) -> bool:
    """Whether rows differ in what may be done with them, or in whether that is known."""
    return len(found) > 1


def told(found: Sequence[Share]) -> str:
    """All shares in one line."""
    return "; ".join(share.told() for share in found)
