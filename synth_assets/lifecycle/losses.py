"""Which shares of rows are set aside or rejected, and why: said where they are large (pure)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import polars as pl

from synth_assets.errors import shown
from synth_assets.lifecycle.support import Finding

# Shares of rows above which a warning is due: of rows that people or files gave, and of rows that a
# model wrote, which are screened on purpose.
MOST_SET_ASIDE: Final = 0.2
MOST_REJECTED: Final = 0.5
# Of one label, though all labels together may lose little; of a handful of rows nothing is said.
MOST_OF_A_LABEL: Final = 0.8
LEAST_ROWS: Final = 5
MOST_REASONS: Final = 3

SCHEMA: Final = {"label": pl.String, "reason": pl.String, "place": pl.String}


@dataclass(frozen=True)
class Rows:
    """``all_rows``: label, reason (null: kept) and place of each; ``what`` they are, ``done`` what
    happens to those with a reason, ``see`` the table in which they stand.

    ``meant``: reasons that the declaration asks for; such rows count neither as lost nor as rows.
    """

    what: str
    done: str
    see: str
    all_rows: pl.DataFrame
    meant: Collection[str] = ()


def lost_shares(rows: Rows, *, most: float, labels: Collection[str] | None = None) -> list[Finding]:
    """A finding where more than ``most`` (0..1) are lost, and one for each label that loses more
    than ``MOST_OF_A_LABEL``. ``labels``: those to look at one by one (None: all)."""
    counted = rows.all_rows.filter(
        pl.col("reason").is_null() | ~pl.col("reason").is_in(list(rows.meant))
    )
    found = []
    if _share(counted) > most:
        found.append(_finding(rows, counted, ""))
    per = counted.group_by("label").agg(
        pl.len().alias("rows"), pl.col("reason").is_not_null().mean().alias("share")
    )
    heavy = per.filter(
        pl.col("label").is_not_null(),
        pl.col("rows") >= LEAST_ROWS,
        pl.col("share") > MOST_OF_A_LABEL,
    )
    for label in heavy.sort("share", "label", descending=[True, False])["label"]:
        if labels is None or label in labels:
            found.append(_finding(rows, counted.filter(pl.col("label") == label), label))
    return found


def _share(rows: pl.DataFrame) -> float:
    return int(rows["reason"].is_not_null().sum()) / max(rows.height, 1)


def _finding(rows: Rows, counted: pl.DataFrame, label: str) -> Finding:
    lost = counted.filter(pl.col("reason").is_not_null())
    of = f" of {shown(label)}" if label else ""
    told = (
        f"{lost.height:,} of {counted.height:,} {rows.what}{of} ({_share(counted):.0%}) are "
        f"{rows.done}: {_reasons(lost)}"
    )
    return Finding("label_share" if label else "share", label, told, f"see {rows.see}")


def _reasons(lost: pl.DataFrame) -> str:
    """The commonest reasons, each with one row that it was found in."""
    counted = (
        lost.group_by("reason")
        .agg(pl.len(), pl.col("place").first())
        .sort("len", "reason", descending=[True, False])
    )
    told = [
        f"{reason} {count:,} (e.g. {place})"
        for reason, count, place in counted.head(MOST_REASONS).iter_rows()
    ]
    more = counted.tail(-MOST_REASONS)["len"].sum() if counted.height > MOST_REASONS else 0
    return ", ".join(told) + (f", other reasons {more:,}" if more else "")
