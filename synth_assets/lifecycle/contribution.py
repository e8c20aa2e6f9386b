"""What a measurement found, as frames for people and as one tidy frame for storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import polars as pl

from synth_assets.lifecycle import verdicts
from synth_assets.lifecycle.verdicts import Verdict

ArmName: TypeAlias = Literal["human", "human_upsampled", "human_balanced", "synthetic", "blend"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)
METRICS = ("accuracy", "macro_f1")

_TABLE_SCHEMA: pl.Schema = pl.Schema(
    {
        "scope": pl.String(),
        "label": pl.String(),
        "arm": pl.String(),
        "metric": pl.String(),
        "value": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "n": pl.Int64(),
        "note": pl.String(),
    }
)


@dataclass(frozen=True)
class Contribution:
    """The evidence about one blend. Floats are rounded to 6 decimals, limits are 95 %.

    - ``arms``, one row per arm: arm, rows (Int64, training rows), accuracy, accuracy_low,
      accuracy_high, macro_f1, macro_f1_low, macro_f1_high (Float64, null when not measurable),
      note (String, empty when there is nothing to say).
    - ``differences``: comparison ("blend - human" ...), metric (accuracy | macro_f1), value, low,
      high. Empty scores are null.
    - ``labels``, sorted by label: label, human_rows, synthetic_rows, holdout_rows (Int64),
      f1_<arm>, delta, delta_low, delta_high (Float64; delta is blend - human). Null without
      held-out rows.
    - ``verdict`` on macro-F1 of blend - human, and ``sentence``, which says it with its cautions.
      The sentence quotes labels: untrusted text, one line, bounded.
    """

    arms: pl.DataFrame
    differences: pl.DataFrame
    labels: pl.DataFrame
    verdict: Verdict
    sentence: str
    holdout_rows: int

    def table(self) -> pl.DataFrame:
        """Everything as one tidy frame in a fixed order; ``verdict_of`` reads the verdict back.

        scope ("overall" | "label"), label (null when overall), arm (an arm or a comparison),
        metric, value, low, high (Float64), n (Int64, held-out rows behind the value; training
        rows where metric is "rows"), note (String).
        """
        parts = [_verdict_row(self), _arm_rows(self), _difference_rows(self), _label_rows(self)]
        columns = [pl.col(name).cast(kind) for name, kind in _TABLE_SCHEMA.items()]
        return pl.concat([part.select(columns) for part in parts])


def _verdict_row(found: Contribution) -> pl.DataFrame:
    row = _blank(scope="overall", arm="blend - human", metric="verdict", note=found.sentence)
    value = verdicts.AS_NUMBER[found.verdict]
    return pl.DataFrame([row | {"value": value, "n": found.holdout_rows}], schema=_TABLE_SCHEMA)


def _blank(**given: str) -> dict[str, object]:
    return dict.fromkeys(_TABLE_SCHEMA, None) | {"note": ""} | given


def _arm_rows(found: Contribution) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for arm in found.arms.iter_rows(named=True):
        base = _blank(scope="overall", arm=arm["arm"], note=arm["note"])
        rows.append(base | {"metric": "rows", "value": float(arm["rows"]), "n": arm["rows"]})
        for metric in METRICS:
            ends = {end: arm[f"{metric}_{end}"] for end in ("low", "high")}
            scores = {"metric": metric, "value": arm[metric], "n": found.holdout_rows}
            rows.append(base | scores | ends)
    return pl.DataFrame(rows, schema=_TABLE_SCHEMA)


def _difference_rows(found: Contribution) -> pl.DataFrame:
    return found.differences.with_columns(
        scope=pl.lit("overall"),
        label=pl.lit(None, dtype=pl.String),
        arm="comparison",
        n=pl.lit(found.holdout_rows),
        note=pl.lit(""),
    )


def _label_rows(found: Contribution) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for one in found.labels.iter_rows(named=True):
        base = _blank(scope="label", label=one["label"]) | {"n": one["holdout_rows"]}
        for arm, column in (("human", "human_rows"), ("synthetic", "synthetic_rows")):
            count = {"value": float(one[column]), "n": one[column]}
            rows.append(base | {"arm": arm, "metric": "rows"} | count)
        rows.extend(base | {"arm": arm, "metric": "f1", "value": one[f"f1_{arm}"]} for arm in ARMS)
        ends = {"value": one["delta"], "low": one["delta_low"], "high": one["delta_high"]}
        rows.append(base | {"arm": "blend - human", "metric": "f1"} | ends)
    return pl.DataFrame(rows, schema=_TABLE_SCHEMA)
