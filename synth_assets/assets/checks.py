"""Checks that compare a stage with rows it must never have seen.

They are steps of their own, so that the graph stays honest: no stage before generation depends on
the holdout, only its check does.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Callable

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.human import kept_sentence
from synth_assets.assets.stages import key
from synth_assets.lifecycle.partition import KEPT
from synth_assets.spec.load import Dataset
from synth_assets.store.digest import frame_digest

Compare = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]


def leak_check(
    dataset: Dataset,
    stage: str,
    description: str,
    compare: Compare,
    *,
    but_kept: bool = False,
) -> dg.AssetChecksDefinition:
    """Blocking check ``no_leakage``: ``compare(rows, holdout + validation rows)`` is empty.

    ``but_kept``: human rows that ``partition.near_copies: keep`` keeps are not compared.
    """

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
        validation = human_train.filter(pl.col("split") == "validation").select(holdout.columns)
        kept = rows.clear()
        if but_kept and KEPT in human_train.columns:
            known = human_train.drop_nulls(KEPT)["record_id"]
            kept = rows.filter(pl.col("record_id").is_in(known.implode()), origin="human")
            rows = rows.join(kept, on="record_id", how="anti", maintain_order="left")
        found = compare(rows, pl.concat([holdout, validation]))
        return evidence.result(
            key(dataset, stage),
            "no_leakage",
            found,
            description=kept_sentence(kept.height) if found.is_empty() else "",
            rows=rows.height,
            kept_by_declaration=kept.height,
            # The verdict lapses when one of them changes, though the stage itself may not.
            compared_with={
                "holdout": frame_digest(holdout),
                "human_train": frame_digest(human_train),
            },
        )

    return no_leakage
