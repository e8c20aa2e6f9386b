"""Checks that compare a stage with rows it must never have seen.

They are steps of their own, so that the graph stays honest: no stage before generation depends on
the holdout, only its check does.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Callable

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.stages import key
from synth_assets.spec.load import Dataset
from synth_assets.store.digest import frame_digest

Compare = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]


def leak_check(
    dataset: Dataset, stage: str, description: str, compare: Compare
) -> dg.AssetChecksDefinition:
    """Blocking check ``no_leakage``: ``compare(rows, holdout + validation rows)`` is empty."""

    @dg.asset_check(
        asset=key(dataset, stage),
        name="no_leakage",
        description=description,
        blocking=True,
        additional_ins={
            "holdout": dg.AssetIn(key=key(dataset, "holdout")),
            "human_train": dg.AssetIn(key=key(dataset, "human_train")),
        },
        op_tags={"synth/dataset": dataset.name},
    )
    def no_leakage(
        rows: pl.DataFrame, holdout: pl.DataFrame, human_train: pl.DataFrame
    ) -> dg.AssetCheckResult:
        unseen = pl.concat([holdout, human_train.filter(pl.col("split") == "validation")])
        found = compare(rows, unseen)
        return evidence.result(
            key(dataset, stage),
            "no_leakage",
            found,
            rows=rows.height,
            # The verdict lapses when one of them changes, though the stage itself may not.
            compared_with={
                "holdout": frame_digest(holdout),
                "human_train": frame_digest(human_train),
            },
        )

    return no_leakage
