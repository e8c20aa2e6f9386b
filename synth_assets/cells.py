"""What stands in a cell, as it is compared: labels, groups, and whether anything stands there.

Two cells that look the same to a person are the same here: Unicode form, blanks at the ends, no-
break spaces and characters without a width make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import polars as pl

GROUP_MARK: Final = "\x1f"
# Literal characters and ranges, because the two regex engines do not share escapes or ``\s``.
_SPACES: Final = "\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Of no width and no meaning inside a word; joiners and direction marks mean something there.
_EMPTY: Final = "\xad\u200b\u2060\ufeff"
_INVISIBLE: Final = f"{_EMPTY}\u200c-\u200f\u202a-\u202e\u2061-\u2064\u2066-\u2069"
_ENDS: Final = f"^[{_SPACES}{_INVISIBLE}]+|[{_SPACES}{_INVISIBLE}]+$"
# How programs write a missing value as text.
_MISSING: Final = ("", "nan", "none", "null", "<na>", "nat")


def trimmed(cells: pl.Expr) -> pl.Expr:
    """Cells without blanks and invisible characters at their ends; "" where nothing else is."""
    return cells.str.replace_all(_ENDS, "")


def tidied(cells: pl.Expr) -> pl.Expr:
    """Labels as they are compared; see ``tidy``. String in, String out; null stays null."""
    seen = cells.str.replace_all(f"[{_EMPTY}]", "").str.normalize("NFC")
    return trimmed(seen).str.replace_all(f"[{_SPACES}]+", " ")


def tidy(label: str) -> str:
    """A label as it is compared: NFC, trimmed, each run of blanks of any kind one plain space."""
    seen = unicodedata.normalize("NFC", re.sub(f"[{_EMPTY}]", "", label))
    return re.sub(f"[{_SPACES}]+", " ", re.sub(_ENDS, "", seen))


def filled(cells: pl.Expr) -> pl.Expr:
    """Cells as labels are compared; "" where nothing stands, or a missing value as text (nan)."""
    seen = tidied(cells).fill_null("")
    return pl.when(seen.str.to_lowercase().is_in(_MISSING)).then(pl.lit("")).otherwise(seen)


def group_of(columns: Sequence[str]) -> pl.Expr:
    """The group of a row: what its cells in ``columns`` say, joined; null where they say nothing.

    A cell that is blank, or holds a missing value written as text (``nan``), says nothing. Of
    several columns, those that say something make the group.
    """
    said = [filled(pl.col(name)) for name in columns]
    joined = pl.concat_list(said).list.join(GROUP_MARK)
    return pl.when(pl.any_horizontal(one != "" for one in said)).then(joined)


def group_named(values: Sequence[str]) -> str:
    """The group that ``group_of`` makes of rows with these cells; "" where they say nothing."""
    said = ["" if tidy(one).lower() in _MISSING else tidy(one) for one in values]
    return GROUP_MARK.join(said) if any(said) else ""
