"""The verdict on a blend, and the sentence that says it without hiding what weakens it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import polars as pl

Verdict: TypeAlias = Literal["helps", "hurts", "no_measurable_difference", "not_measurable"]
AS_NUMBER: Mapping[Verdict, float | None] = {
    "helps": 1.0,
    "no_measurable_difference": 0.0,
    "hurts": -1.0,
    "not_measurable": None,
}

# Rows right in one arm only. Even if all favour one arm, the two-sided sign test needs six to
# pass 5 % (2 * 0.5^6 = .031; five give .0625). F1 of a rare label is blind to this: one row of one
# changes it from 0 to 1 in every draw.
MIN_DISCORDANT = 6
FEW_HOLDOUT_ROWS = 30
FEW_LABEL_ROWS = 5
MAX_NAMED = 3
MAX_LABEL_CHARS = 40


def verdict(differences: pl.DataFrame, *, discordant: int | None) -> Verdict:
    """Whether the interval of macro-F1, blend - human, lies wholly on one side of 0.

    ``differences`` as in ``Contribution``; ``discordant`` counts the held-out rows that exactly
    one of the two arms gets right (None: an arm could not be scored).
    """
    found = _difference(differences, "blend - human")
    if found is None or discordant is None:
        return "not_measurable"
    _, low, high = found
    if discordant < MIN_DISCORDANT or low <= 0 <= high:
        return "no_measurable_difference"
    return "helps" if low > 0 else "hurts"


def verdict_of(table: pl.DataFrame) -> tuple[Verdict, str]:
    """The verdict and its sentence, read back from ``Contribution.table()``."""
    row = table.row(by_predicate=pl.col("metric") == "verdict", named=True)
    named = {number: name for name, number in AS_NUMBER.items()}
    return named[row["value"]], str(row["note"])


def sentence(
    found: Verdict,
    *,
    arms: pl.DataFrame,
    differences: pl.DataFrame,
    labels: pl.DataFrame,
    discordant: int | None,
    unable: Mapping[str, str],
    holdout_rows: int,
    cautions: Sequence[str] = (),
) -> str:
    """Plain words with numbers: the finding, the volume control, and every caution that applies.

    Frames as in ``Contribution``; ``unable`` says why the human or blend arm has no score,
    ``cautions`` are sentences of the caller's.
    """
    if found == "not_measurable":
        reasons = "; ".join(f"{arm} arm: {why}" for arm, why in unable.items())
        return f"Not measurable: {reasons}."
    parts = [
        _finding(found, arms, differences, holdout_rows),
        _too_alike(discordant),
        _volume(found, differences),
        _worse(labels),
        _few(labels, holdout_rows),
        _unscored(labels),
        *cautions,
    ]
    return " ".join(part for part in parts if part)


def _difference(differences: pl.DataFrame, name: str) -> tuple[float, float, float] | None:
    chosen = differences.filter(comparison=name, metric="macro_f1")
    value, low, high = chosen.select("value", "low", "high").row(0)
    return None if value is None else (value, low, high)


def _spelled(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"


def _finding(
    found: Verdict, arms: pl.DataFrame, differences: pl.DataFrame, holdout_rows: int
) -> str:
    said = {"helps": "The blend helps", "hurts": "The blend hurts"}
    opening = said.get(found, "No measurable difference")
    score = dict(arms.select("arm", "macro_f1").iter_rows())
    difference = _difference(differences, "blend - human")
    assert difference is not None, "a measurable verdict has a difference"
    return (
        f"{opening}: macro-F1 {score['blend']:.3f} against {score['human']:.3f} for the human rows "
        f"alone, {_spelled(difference)}, on {holdout_rows:,} held-out human rows."
    )


def _too_alike(discordant: int | None) -> str:
    if discordant is None or discordant >= MIN_DISCORDANT:
        return ""
    return (
        f"Only {discordant} of them are right in one arm and wrong in the other: fewer than "
        f"{MIN_DISCORDANT} cannot carry a verdict."
    )


def _volume(found: Verdict, differences: pl.DataFrame) -> str:
    control = _difference(differences, "blend - human_upsampled")
    if control is None:
        return ""
    against = f"Against human rows upweighted to the blend's total weight: {_spelled(control)}"
    if found != "helps":
        return f"{against}."
    if control[1] > 0:
        return f"{against}, so more weight alone does not explain the gain."
    return f"{against}, so the gain may be volume alone."


def _worse(labels: pl.DataFrame) -> str:
    judged = labels.filter(pl.col("delta").is_not_null())
    worse = judged.filter(pl.col("delta_high") < 0).sort("delta", "label")
    if worse.is_empty():
        return ""
    named = [
        f"{_plain(row['label'])} {row['delta']:+.3f} "
        f"({row['delta_low']:+.3f} to {row['delta_high']:+.3f})"
        for row in worse.head(MAX_NAMED).iter_rows(named=True)
    ]
    chance = 0.025 * judged.height
    return (
        f"Caution: {worse.height} of {judged.height} labels got worse in F1 "
        f"(about {chance:.1f} would by chance): {_list(named, worse.height)}."
    )


def _few(labels: pl.DataFrame, holdout_rows: int) -> str:
    parts = []
    if holdout_rows < FEW_HOLDOUT_ROWS:
        parts.append(f"Caution: fewer than {FEW_HOLDOUT_ROWS} held-out rows say little.")
    few = labels.filter(pl.col("holdout_rows").is_between(1, FEW_LABEL_ROWS - 1))
    if few.height:
        ranked = few.sort("holdout_rows", "label").head(MAX_NAMED)
        named = [f"{_plain(name)} {n}" for name, n in ranked["label", "holdout_rows"].iter_rows()]
        parts.append(
            f"Caution: {few.height} labels have fewer than {FEW_LABEL_ROWS} held-out rows, so that "
            f"their F1 hangs on single rows: {_list(named, few.height)}."
        )
    return " ".join(parts)


def _unscored(labels: pl.DataFrame) -> str:
    missing = labels.filter(pl.col("holdout_rows") == 0)["label"].to_list()
    if not missing:
        return ""
    named = [_plain(name) for name in missing[:MAX_NAMED]]
    return f"Not scored, for want of held-out rows: {_list(named, len(missing))}."


def _list(named: Sequence[str], total: int) -> str:
    more = total - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _plain(label: str) -> str:
    kept = "".join(" " if unicodedata.category(one)[0] == "C" else one for one in label)
    return kept if len(kept) <= MAX_LABEL_CHARS else kept[:MAX_LABEL_CHARS] + "…"
