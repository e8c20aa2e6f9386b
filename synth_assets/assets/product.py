"""The product lane: human_train + synthetic -> blend -> train, validation; holdout -> eval."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from schemas.synthetic import PROVENANCE
from schemas.training import training_rows
from synth_assets.assets import evidence
from synth_assets.assets.allowed import allowed_values
from synth_assets.assets.checks import leak_check
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import check, key, tables
from synth_assets.lifecycle.blend import as_eval, blend, split_rows
from synth_assets.lifecycle.leakage import leaks
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for


def product_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_blend(dataset), _splits(dataset), _eval(dataset)]


def product_checks(dataset: Dataset) -> list[dg.AssetChecksDefinition]:
    """No holdout row, nor a near-copy, in what models see."""
    task, threshold = task_for(dataset.spec), dataset.spec.validation.decontaminate

    def found(rows: pl.DataFrame, unseen: pl.DataFrame) -> pl.DataFrame:
        held_out = unseen.filter(pl.col("split") == "holdout")
        return leaks(rows, held_out, text=task.text, threshold=threshold, stratum=task.stratum)

    return [
        leak_check(dataset, split, "No holdout row, nor a near-copy.", found, but_kept=True)
        for split in ("train", "validation")
    ]


def _blend(dataset: Dataset) -> dg.AssetsDefinition:
    task, spec = task_for(dataset.spec), dataset.spec

    @tables(dataset, ["blend"])
    def blended(human_train: pl.DataFrame, **optional: pl.DataFrame) -> Iterator[Any]:
        text = {name: pl.String() for name in ("record_id", *task.payload)}
        none = pl.DataFrame(schema={**text, **PROVENANCE})  # of a dataset of human rows only
        with shown_to_user():
            rows = blend(
                human_train,
                optional.get("synthetic", none),
                payload=task.payload,
                stratum=task.stratum,
                synthetic_share=spec.blend.synthetic_share,
                human_weight=spec.blend.weights.human,
                synthetic_weight=spec.blend.weights.synthetic,
                seed=spec.random_seed,
                balance_classes=spec.blend.class_weights == "balanced",
            )
        train = rows.filter(pl.col("split") == "train")
        made = train.filter(pl.col("origin") == "synthetic").height
        yield dg.Output(
            rows,
            "blend",
            metadata={
                "synthetic_share": round(made / max(train.height, 1), 4),
                "human_rows": train.height - made,
                "synthetic_rows": made,
            },
        )

    return blended


def _splits(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)
    origins = {"train": ["human", "synthetic"], "validation": ["human"]}

    @tables(
        dataset,
        ["train", "validation"],
        checks=[
            check(dataset, split, "contract", "Schema, ids, payload, weights, split.")
            for split in origins
        ],
    )
    def splits(blend: pl.DataFrame) -> Iterator[Any]:
        found: list[dg.AssetCheckResult] = []
        for split, allowed_origins in origins.items():
            rows = split_rows(blend, split)
            if split == "validation":  # human rows only: provenance of generated rows is empty
                rows = rows.drop(PROVENANCE)
            yield dg.Output(
                rows,
                split,
                metadata={
                    "labels": dict(rows.group_by(task.stratum).len().sort(task.stratum).iter_rows())
                },
            )
            schema = training_rows(
                task.payload, allowed_values(dataset), split=split, origins=allowed_origins
            )
            found.append(evidence.contract(key(dataset, split), schema, rows))
        yield from found

    return splits


def _eval(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["eval"],
        checks=[check(dataset, "eval", "contract", "Human rows only, weight 1.")],
    )
    def eval_rows(holdout: pl.DataFrame) -> Iterator[Any]:
        rows = as_eval(holdout, payload=task.payload)
        yield dg.Output(rows, "eval")
        schema = training_rows(
            task.payload, allowed_values(dataset), split="eval", origins=["human"]
        )
        yield evidence.contract(key(dataset, "eval"), schema, rows)

    return eval_rows
