"""Human and synthetic rows -> one weighted training table."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from synth_assets.lifecycle.records import column_digests


def blend(
    human_train: pl.DataFrame,
    synthetic: pl.DataFrame,
    *,
    payload: Sequence[str],
    stratum: str,
    synthetic_share: float | None,
    human_weight: float,
    synthetic_weight: float,
    seed: int,
    balance_classes: bool = False,
) -> pl.DataFrame:
    """Stack human rows (split train | validation) and synthetic rows (split train).

    ``synthetic_share`` (0..1) caps the synthetic rows' share of the training split: rows are then
    taken in turn from every stratum, in hash order, so that a cap never silences a rare one.
    ``balance_classes``: weights of training rows are scaled so that every stratum has the same
    total, and all of them together the total they had.
    Result: record_id, origin, payload, weight, split and the provenance of both origins, sorted
    by split, origin and record_id.
    """
    train = human_train.filter(pl.col("split") == "train")
    if synthetic_share is not None:
        most = int(train.height * synthetic_share / (1 - synthetic_share) + 1e-9)
        synthetic = _in_turn(synthetic, stratum, seed).head(most)
    human = human_train.select(
        "record_id",
        pl.lit("human").alias("origin"),
        *payload,
        pl.lit(human_weight, pl.Float64).alias("weight"),
        "split",
        "source",
        "source_row",
    )
    made = synthetic.select(
        "record_id",
        pl.lit("synthetic").alias("origin"),
        *payload,
        pl.lit(synthetic_weight, pl.Float64).alias("weight"),
        pl.lit("train").alias("split"),
        "request_id",
        "item",
        "seed_ids",
        "prompt_version",
        "model",
        "cell",
        "attributes",
        # Of imported rows, where there are any.
        *(name for name in ("source", "source_row") if name in synthetic.columns),
    )
    both = pl.concat([human, made], how="diagonal").sort("split", "origin", "record_id")
    return _balanced(both, stratum) if balance_classes else both


def _balanced(rows: pl.DataFrame, stratum: str) -> pl.DataFrame:
    trains = pl.col("split") == "train"
    of_all = pl.col("weight").filter(trains).sum()
    of_stratum = pl.col("weight").filter(trains).sum().over(stratum)
    strata = pl.col(stratum).filter(trains).n_unique()
    # Rounded: the order in which a column is summed would show in the last digit.
    scaled = (pl.col("weight") * of_all / (strata * of_stratum)).round_sig_figs(12)
    return rows.with_columns(weight=pl.when(trains).then(scaled).otherwise("weight"))


def _in_turn(rows: pl.DataFrame, stratum: str, seed: int) -> pl.DataFrame:
    order = column_digests(rows, ["record_id"], "blend", str(seed)).alias("order")
    return (
        rows.with_columns(order)
        .sort("order")
        .with_columns(turn=pl.int_range(pl.len()).over(stratum))
        .sort("turn", "order")
        .drop("turn", "order")
    )


def split_rows(blended: pl.DataFrame, split: str) -> pl.DataFrame:
    """The rows of one split; validation holds human rows only."""
    return blended.filter(pl.col("split") == split)


def as_eval(holdout: pl.DataFrame, *, payload: Sequence[str]) -> pl.DataFrame:
    """The holdout in the shape of the training table; weight 1, split ``eval``."""
    return holdout.select(
        "record_id",
        pl.lit("human").alias("origin"),
        *payload,
        pl.lit(1.0).alias("weight"),
        pl.lit("eval").alias("split"),
        "source",
        "source_row",
    ).sort("record_id")
