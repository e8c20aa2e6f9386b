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

# What a gain may be instead of the synthetic rows' doing, and the arm that shows it.
EXPLANATIONS: Mapping[str, str] = {
    "volume": "human_upsampled",
    "class balance": "human_balanced",
}
_CONTROLS: Mapping[str, str] = {
    "volume": "human rows upweighted to the blend's total weight",
    "class balance": "human rows with each label weighted as in the blend",
}


def verdict(differences: pl.DataFrame, *, discordant: int | None) -> Verdict:
    """Whether the interval of macro-F1, blend - human, lies wholly on one side of 0.

    Above 0 it *helps* only when the blend also beats every control (``explanations``).
    ``differences`` as in ``Contribution``; ``discordant`` counts the held-out rows that exactly
    one of the two arms gets right (None: an arm could not be scored).
    """
    found = _difference(differences, "blend - human")
    if found is None or discordant is None:
        return "not_measurable"
    _, low, high = found
    if discordant < MIN_DISCORDANT or low <= 0 <= high:
        return "no_measurable_difference"
    if high < 0:
        return "hurts"
    return "no_measurable_difference" if explanations(differences) else "helps"


def explanations(differences: pl.DataFrame) -> list[str]:
    """What may explain a gain of the blend over the human rows: keys of ``EXPLANATIONS``.

    Empty when there is no measurable gain, or when the blend measurably beats every control.
    """
    gain = _difference(differences, "blend - human")
    if gain is None or gain[1] <= 0:
        return []
    controls = {
        what: _difference(differences, f"blend - {arm}") for what, arm in EXPLANATIONS.items()
    }
    return [what for what, control in controls.items() if control is None or control[1] <= 0]


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
    """Plain words with numbers: the finding, the controls, and every caution that applies.

    Frames as in ``Contribution``; ``unable`` says why the human or blend arm has no score,
    ``cautions`` are sentences of the caller's.
    """
    if found == "not_measurable":
        reasons = "; ".join(f"{arm} arm: {why}" for arm, why in unable.items())
        return f"Not measurable: {reasons}."
    parts = [
        _finding(found, arms, differences, holdout_rows),
        _too_alike(discordant),
        _controls(found, differences),
        _worse(labels),
        _few(labels, holdout_rows),
        _unscored(labels),
        *cautions,
    ]
    return " ".join(part for part in parts if part)


def _difference(differences: pl.DataFrame, name: str) -> tuple[float, float, float] | None:
    """Value and limits; None where it was not measured."""
    chosen = differences.filter(comparison=name, metric="macro_f1")
    if chosen.is_empty():
        return None
    value, low, high = chosen.select("value", "low", "high").row(0)
    return None if value is None else (value, low, high)


def _spelled(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"


def _finding(
    found: Verdict, arms: pl.DataFrame, differences: pl.DataFrame, holdout_rows: int
) -> str:
    score = dict(arms.select("arm", "macro_f1").iter_rows())
    difference = _difference(differences, "blend - human")
    assert difference is not None, "a measurable verdict has a difference"
    return (
        f"{headline(found, differences)}: macro-F1 {score['blend']:.3f} against "
        f"{score['human']:.3f} for the human rows alone, {_spelled(difference)}, "
        f"on {holdout_rows:,} held-out human rows."
    )


def headline(found: Verdict, differences: pl.DataFrame) -> str:
    """The verdict in a few words; of a gain that a control explains, by what."""
    said: Mapping[Verdict, str] = {
        "helps": "The blend helps",
        "hurts": "The blend hurts",
        "not_measurable": "Not measurable",
    }
    explained = explanations(differences)
    if found == "no_measurable_difference" and explained:
        return f"No measurable gain beyond {' and '.join(explained)}"
    return said.get(found, "No measurable difference")


def _too_alike(discordant: int | None) -> str:
    if discordant is None or discordant >= MIN_DISCORDANT:
        return ""
    return (
        f"Only {discordant} of them are right in one arm and wrong in the other: fewer than "
        f"{MIN_DISCORDANT} cannot carry a verdict."
    )


def _controls(found: Verdict, differences: pl.DataFrame) -> str:
    known = {
        what: control
        for what, arm in EXPLANATIONS.items()
        if (control := _difference(differences, f"blend - {arm}")) is not None
    }
    if not known:
        return ""
    against = [f"against {_CONTROLS[what]}: {_spelled(known[what])}" for what in known]
    told = "; ".join(against)
    told = told[0].upper() + told[1:]
    if found == "helps":
        return f"{told}. So neither more weight nor class balance explains the gain."
    explained = explanations(differences)
    return " ".join([f"{told}.", *(_EXPLAINED[what] for what in explained)])


_EXPLAINED: Mapping[str, str] = {
    "volume": "The gain may be volume alone: more weight on the human rows gives it, too.",
    "class balance": "The gain may be the balance of the classes alone: class weights on the "
    "human rows give it without a synthetic row (blend.class_weights).",
}


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
