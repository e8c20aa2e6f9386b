"""Human rows -> train, validation and holdout sides, before anything looks at them.

A row's side is decided by a salted hash of its group alone: adding, removing or reordering rows
never moves another row to a different side. Or the data says it (official folds): then only which
training rows are validation rows may be decided by that hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import polars as pl

from synth_assets.lifecycle.leakage import copies, detail_of, reason_of
from synth_assets.lifecycle.records import column_digests, unit

SIDE = "side"
# Why a row is on its side although it is like one of a side further out, or of its group.
KEPT = "kept_despite"
Giving = Literal["drop_train", "drop_holdout", "keep"]


@dataclass(frozen=True)
class PartitionRules:
    """Shares of human rows (0..1) and what is removed where sides are too alike.

    ``official``: rows have a ``side``; ``holdout`` is then not used, and ``validation`` is a share
    of the training rows. ``near_copies``: which row is set aside of two that are near-copies, or
    of one group, on different sides: the one further from the holdout, the nearer one, or none.
    """

    holdout: float
    validation: float
    salt: str
    decontaminate: float
    limit_train: int | None = None
    min_train_per_stratum: int = 0
    official: bool = False
    near_copies: Giving = "drop_train"


class Partitioned(NamedTuple):
    """``human_train`` (split train | validation), ``holdout``, and what is used by neither.

    With ``near_copies: keep``, ``human_train`` has ``KEPT``, null in rows that are like no other.
    """

    human_train: pl.DataFrame
    holdout: pl.DataFrame
    set_aside: pl.DataFrame


def partition(
    human: pl.DataFrame, rules: PartitionRules, *, text: str, stratum: str
) -> Partitioned:
    """Split ``human`` (record_id, group, payload..., and ``side`` where it is official).

    By shares, a group hashes to [0, 1): below ``holdout`` it is held out, below ``holdout +
    validation`` it is validation, else training. Then sides that are too alike are put apart (see
    ``PartitionRules.near_copies``): a row that is a near-copy of one on another side (Jaccard of
    character 5-grams >= ``decontaminate``) or contains it, or whose group stands there, is set
    aside with a reason: else variants of one sentence would stand on both sides, and a seed carry
    a holdout text into a prompt. Short rows of two labels that differ in a word are no copies
    (``leakage``).
    """
    sides = _with_sides(human, rules).sort("record_id")
    train, validation, holdout = (
        sides.filter(pl.col("split") == name) for name in ("train", "validation", "holdout")
    )
    apart = _Apart(rules, text, stratum)
    if rules.near_copies == "drop_holdout":
        # What is not trained on takes nothing from the test set.
        train, beyond = _limited(train, rules, stratum)
        validation = apart.giving_way(validation, train, "train")
        holdout = apart.giving_way(holdout, validation, "validation")
        holdout = apart.giving_way(holdout, train, "train")
    else:
        validation = apart.unlike(validation, holdout, "holdout")
        train = apart.unlike(train, holdout, "holdout")
        train = apart.unlike(train, validation, "validation")
        train, beyond = _limited(train, rules, stratum)
    human_train = pl.concat([train, validation]).sort("record_id")
    removed = [rows.select(apart.columns(sides)) for rows in (*apart.aside, beyond)]
    return Partitioned(human_train, holdout, pl.concat(removed).sort("record_id"))


def _with_sides(human: pl.DataFrame, rules: PartitionRules) -> pl.DataFrame:
    groups = human["group"]
    if not rules.official:
        return human.with_columns(split=_sides(groups, rules.holdout, rules))
    hashed = _sides(groups, 0.0, rules)
    split = pl.when(pl.col(SIDE) == "train").then(hashed).otherwise(SIDE).alias("split")
    return human.with_columns(split).drop(SIDE)


def _sides(groups: pl.Series, holdout: float, rules: PartitionRules) -> pl.Series:
    def side(group: str) -> str:
        position = unit("partition", rules.salt, group)
        if position < holdout:
            return "holdout"
        return "validation" if position < holdout + rules.validation else "train"

    return pl.Series("split", [side(group) for group in groups], dtype=pl.String)


class _Apart:
    """Puts sides apart, and keeps what was set aside for it, with ``reason`` and ``detail``."""

    def __init__(self, rules: PartitionRules, text: str, stratum: str) -> None:
        self.rules, self.text, self.stratum = rules, text, stratum
        self.aside: list[pl.DataFrame] = []

    @staticmethod
    def columns(sides: pl.DataFrame) -> list[str]:
        """Those of a row that is set aside."""
        return [*sides.columns, "reason", "detail"]

    def unlike(self, rows: pl.DataFrame, reference: pl.DataFrame, name: str) -> pl.DataFrame:
        """``rows`` without those that are like a row of ``reference``; or all, marked, if kept."""
        found = self._copies(rows, reference)
        told = found.select("row", reason_of(name).alias("reason"), detail_of().alias("detail"))
        noted = rows.with_row_index("row").join(told, on="row", how="left", maintain_order="left")
        noted = _of_a_group(noted, reference, name).drop("row")
        if self.rules.near_copies == "keep":
            known = KEPT if KEPT in rows.columns else pl.lit(None, pl.String)
            return noted.with_columns(pl.coalesce(known, "reason").alias(KEPT)).drop(
                "reason", "detail"
            )
        self.aside.append(noted.filter(pl.col("reason").is_not_null()))
        return noted.filter(pl.col("reason").is_null()).select(rows.columns)

    def giving_way(self, rows: pl.DataFrame, stays: pl.DataFrame, name: str) -> pl.DataFrame:
        """``rows`` without those that a row of ``stays`` is like."""
        left = rows.with_columns(reason=pl.lit(None, pl.String), detail=pl.lit(None, pl.String))
        left = self._setting_aside(_of_a_group(left, stays, name))
        # Of each row that stays only the most similar is told, so it is asked until none is left.
        while left.height:
            found = self._copies(stays, left)
            if found.is_empty():
                break
            told = found.select(
                pl.col("holdout_id").alias("record_id"),
                pl.when(pl.col("kind") == "near_copy")
                .then(pl.lit(f"near_copy_of_{name}"))
                .otherwise(pl.lit(f"contained_in_{name}"))
                .alias("reason"),
                pl.format(
                    "{} of {}",
                    pl.col("similarity").round(3),
                    stays["record_id"].gather(found["row"]),
                ).alias("detail"),
            ).unique("record_id", keep="first", maintain_order=True)
            left = self._setting_aside(
                left.drop("reason", "detail").join(
                    told, on="record_id", how="left", maintain_order="left"
                )
            )
        return left.select(rows.columns)

    def _setting_aside(self, noted: pl.DataFrame) -> pl.DataFrame:
        self.aside.append(noted.filter(pl.col("reason").is_not_null()))
        return noted.filter(pl.col("reason").is_null())

    def _copies(self, rows: pl.DataFrame, reference: pl.DataFrame) -> pl.DataFrame:
        return copies(
            rows[self.text],
            reference,
            text=self.text,
            threshold=self.rules.decontaminate,
            labels=rows[self.stratum],
            stratum=self.stratum,
        )


def _of_a_group(noted: pl.DataFrame, reference: pl.DataFrame, name: str) -> pl.DataFrame:
    """``noted`` (reason, detail) with the reason group_in_NAME where the group stands there too.

    Only official folds can part a group.
    """
    known = with_group(reference)["group"].unique()
    shared = pl.col("reason").is_null() & pl.col("group").is_in(known.implode())
    return noted.with_columns(
        reason=pl.when(shared).then(pl.lit(f"group_in_{name}")).otherwise("reason")
    )


def with_group(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows whose group is filled: blank cells are no group that could stand on two sides."""
    return rows.filter(pl.col("group").str.contains(r"[^\s\x1F]"))


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
