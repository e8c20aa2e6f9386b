"""What generated and imported rows are judged by, alike."""

from __future__ import annotations

import polars as pl

from synth_assets.generation import candidate_schema
from synth_assets.lifecycle.screen import References, ScreenRules, judge
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for


def references(human_train: pl.DataFrame, holdout: pl.DataFrame) -> References:
    """The human sides that rows are compared with."""
    return References(
        train=human_train.filter(pl.col("split") == "train"),
        validation=human_train.filter(pl.col("split") == "validation"),
        holdout=holdout,
    )


def screen_rules(dataset: Dataset) -> ScreenRules:
    declared = dataset.spec.validation
    return ScreenRules(declared.near_duplicate, declared.decontaminate, declared.same_text)


def import_candidates(
    dataset: Dataset, imported: pl.DataFrame, calls: pl.DataFrame
) -> pl.DataFrame:
    """Imported rows as candidates; ``calls`` (cell, wanted) says how many rows a cell needs."""
    wanted = dict(calls.select("cell", "wanted").unique().iter_rows())
    schema = candidate_schema(task_for(dataset.spec))
    return imported.with_columns(
        pl.col("cell").replace_strict(wanted, default=0, return_dtype=pl.Int32).alias("wanted"),
        # A detail without a problem is a note on descent, nothing that is wrong with the row.
        pl.when(pl.col("problem").is_not_null()).then("problem_detail").alias("problem_detail"),
    ).select(list(schema))


def every_row_wanted(imported: pl.DataFrame) -> pl.DataFrame:
    """As many rows of each cell as there are (cell, wanted): where none can be surplus."""
    return imported.group_by("cell").agg(wanted=pl.len().cast(pl.Int32))


def judged_imports(
    dataset: Dataset, imported: pl.DataFrame, calls: pl.DataFrame, sides: References
) -> pl.DataFrame:
    """What ``judge`` says of imported rows, before any call is made."""
    rows = import_candidates(dataset, imported, calls)
    return judge(rows, sides, screen_rules(dataset), task_for(dataset.spec))
