"""Human rows -> train, validation and holdout sides, before anything looks at them.

A row's side is decided by a salted hash of its group alone: adding, removing or reordering rows
never moves another row to a different side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import polars as pl

from synth_assets.lifecycle.leakage import copies, detail_of, reason_of
from synth_assets.lifecycle.records import column_digests, unit


@dataclass(frozen=True)
class PartitionRules:
    """Shares of human rows (0..1) and what is removed from the training side."""

    holdout: float
    validation: float
    salt: str
    decontaminate: float
    limit_train: int | None = None
    min_train_per_stratum: int = 0


class Partitioned(NamedTuple):
    """``human_train`` (split train | validation), ``holdout``, and what is used by neither."""

    human_train: pl.DataFrame
    holdout: pl.DataFrame
    set_aside: pl.DataFrame


def partition(
    human: pl.DataFrame, rules: PartitionRules, *, text: str, stratum: str
) -> Partitioned:
    """Split ``human`` (record_id, group, payload...) by hash; keep near-copies off the other side.

    A group hashes to [0, 1): below ``holdout`` it is held out, below ``holdout + validation`` it
    is validation, else training. Rows of the training side that are near-copies of a holdout row
    (Jaccard of character 5-grams >= ``decontaminate``) or contain one, and training rows that do
    so with a validation row, are set aside with a reason: hashing alone would let variants of one
    sentence stand on both sides, and a seed carry a holdout text into a prompt. Short rows of two
    labels that differ in a word are no copies (``leakage``).
    """
    sides = human.with_columns(split=_sides(human["group"], rules)).sort("record_id")
    holdout = sides.filter(pl.col("split") == "holdout")
    train = sides.filter(pl.col("split") == "train")
    validation = sides.filter(pl.col("split") == "validation")
    clean = partial(_without_copies, threshold=rules.decontaminate, text=text, stratum=stratum)
    validation, copies_v = clean(validation, holdout, name="holdout")
    train, copies_h = clean(train, holdout, name="holdout")
    train, copies_t = clean(train, validation, name="validation")
    train, beyond = _limited(train, rules, stratum)
    human_train = pl.concat([train, validation]).sort("record_id")
    set_aside = pl.concat([copies_v, copies_h, copies_t, beyond]).sort("record_id")
    return Partitioned(human_train, holdout, set_aside)


def _sides(groups: pl.Series, rules: PartitionRules) -> pl.Series:
    def side(group: str) -> str:
        position = unit("partition", rules.salt, group)
        if position < rules.holdout:
            return "holdout"
        return "validation" if position < rules.holdout + rules.validation else "train"

    return pl.Series("split", [side(group) for group in groups], dtype=pl.String)


def _without_copies(
    rows: pl.DataFrame,
    reference: pl.DataFrame,
    *,
    threshold: float,
    text: str,
    stratum: str,
    name: str,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    found = copies(
        rows[text], reference, text=text, threshold=threshold, labels=rows[stratum], stratum=stratum
    )
    noted = rows.with_row_index("row").join(found, on="row", how="left", maintain_order="left")
    clean = noted.filter(pl.col("kind").is_null()).select(rows.columns)
    aside = noted.filter(pl.col("kind").is_not_null()).select(
        *rows.columns,
        reason_of(name).alias("reason"),
        detail_of().alias("detail"),
    )
    return clean, aside


def _limited(
    train: pl.DataFrame, rules: PartitionRules, stratum: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The first ``limit_train`` rows in hash order, some of every stratum first."""
    if rules.limit_train is None or train.height <= rules.limit_train:
        return train, train.clear().with_columns(
            reason=pl.lit(None, pl.String), detail=pl.lit(None, pl.String)
        )
    order = column_digests(train, ["record_id"], "limit", rules.salt).alias("order")
    ranked = train.with_columns(order).sort("order")
    first = pl.int_range(pl.len()).over(stratum) < rules.min_train_per_stratum
    chosen = (
        ranked.with_columns(wanted=first)
        .sort("wanted", "order", descending=[True, False])
        .head(rules.limit_train)["record_id"]
    )
    inside = pl.col("record_id").is_in(chosen.implode())
    beyond = train.filter(~inside).with_columns(
        reason=pl.lit("beyond_limit_train"), detail=pl.lit(None, pl.String)
    )
    return train.filter(inside), beyond
