"""Which generated rows are good: one function, used while answers arrive and afterwards.

Rows are judged in the order of the plan (round, cell, call, item), never in the order of arrival,
and a row's verdict depends on earlier rows only. So judging batch by batch gives exactly what
judging everything at once gives, and neither concurrency nor a restart changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from synth_assets.lifecycle.leakage import copies, reason_of
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.similarity import greedy_unique, near_copies
from synth_assets.tasks import Task

ORDER = ("round", "cell", "ordinal", "item")


@dataclass(frozen=True)
class References:
    """Human rows that generated rows must not repeat (record_id + payload)."""

    train: pl.DataFrame
    validation: pl.DataFrame
    holdout: pl.DataFrame


@dataclass(frozen=True)
class ScreenRules:
    """Jaccard thresholds (0..1] of character 5-grams."""

    near_duplicate: float
    decontaminate: float


def judge(
    candidates: pl.DataFrame,
    references: References,
    rules: ScreenRules,
    task: Task,
    *,
    earlier: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """``candidates`` in plan order with ``reason`` and ``detail`` (null: accepted).

    ``earlier``: what this function returned for earlier batches. Reasons, first that applies: the
    answer's own problem (malformed, truncated, ...), the task's sanity rules,
    near_copy_of_ or contains_holdout, the same of validation, near_copy_of_human, near_duplicate
    (of an earlier row), surplus (the cell has its rows).
    """
    rows = with_record_id(candidates.sort(ORDER), task.payload, kind=task.kind)
    sanity = task.implausible(rows, references.train)
    rows = rows.with_columns(
        reason=pl.coalesce(pl.col("problem"), sanity["reason"]),
        detail=pl.coalesce(pl.col("problem_detail"), sanity["detail"]),
    )
    for name, reference in (("holdout", references.holdout), ("validation", references.validation)):
        rows = _flag_unseen(rows, reference, rules.decontaminate, name, task)
    rows = _flag_repeats_of_human(rows, references.train, rules.near_duplicate, task)
    kept = _kept(earlier)
    rows = _flag_repeats(rows, kept, rules.near_duplicate, task)
    return _flag_surplus(rows, accepted(earlier))


def accepted(judged: pl.DataFrame | None) -> dict[str, int]:
    """Accepted rows per cell."""
    if judged is None:
        return {}
    counts = judged.filter(pl.col("reason").is_null()).group_by("cell").len()
    return dict(counts.iter_rows())


def _kept(judged: pl.DataFrame | None) -> pl.DataFrame | None:
    if judged is None:
        return None
    return judged.filter(pl.col("reason").is_null() | (pl.col("reason") == "surplus"))


def _flag_unseen(
    rows: pl.DataFrame, reference: pl.DataFrame, threshold: float, name: str, task: Task
) -> pl.DataFrame:
    """Near-copies of rows that must stay unseen, and texts that contain one."""
    open_rows = rows.with_row_index("position").filter(pl.col("reason").is_null())
    found = copies(open_rows[task.text], reference, text=task.text, threshold=threshold)
    reasons = found.select(reason_of(name)).to_series()
    return _flag(rows, open_rows, found, found["holdout_id"], reasons)


def _flag_repeats_of_human(
    rows: pl.DataFrame, reference: pl.DataFrame, threshold: float, task: Task
) -> pl.DataFrame:
    open_rows = rows.with_row_index("position").filter(pl.col("reason").is_null())
    found = near_copies(open_rows[task.text], reference[task.text], threshold=threshold)
    matches = reference["record_id"].gather(found["match"])
    return _flag(rows, open_rows, found, matches, _same(found, "near_copy_of_human"))


def _flag_repeats(
    rows: pl.DataFrame, kept: pl.DataFrame | None, threshold: float, task: Task
) -> pl.DataFrame:
    open_rows = rows.with_row_index("position").filter(pl.col("reason").is_null())
    against = kept[task.text] if kept is not None and kept.height else None
    repeats = greedy_unique(open_rows[task.text], threshold=threshold, against=against)
    own = open_rows["record_id"]
    old = kept["record_id"] if kept is not None else own.clear()
    matches = pl.Series(
        "match",
        [
            (own if where == "self" else old)[match]
            for match, where in repeats.select("match", "where").iter_rows()
        ],
        dtype=pl.String,
    )
    return _flag(rows, open_rows, repeats, matches, _same(repeats, "near_duplicate"))


def _same(found: pl.DataFrame, reason: str) -> pl.Series:
    return pl.Series("found", [reason] * found.height, dtype=pl.String)


def _flag(
    rows: pl.DataFrame,
    open_rows: pl.DataFrame,
    found: pl.DataFrame,
    matches: pl.Series,
    reasons: pl.Series,
) -> pl.DataFrame:
    flags = pl.DataFrame(
        {
            "position": open_rows["position"].gather(found["row"]),
            "found": reasons,
            "why": [
                f"{similarity:.3f} of {match}"
                for similarity, match in zip(found["similarity"], matches, strict=True)
            ],
        },
        schema_overrides={"position": pl.UInt32, "why": pl.String},
    )
    return (
        rows.with_row_index("position")
        .join(flags, on="position", how="left", maintain_order="left")
        .with_columns(reason=pl.coalesce("reason", "found"), detail=pl.coalesce("detail", "why"))
        .drop("position", "found", "why")
    )


def _flag_surplus(rows: pl.DataFrame, already: dict[str, int]) -> pl.DataFrame:
    fine = pl.col("reason").is_null()
    before = pl.col("cell").replace_strict(already, default=0, return_dtype=pl.Int64)
    place = fine.cum_sum().over("cell") + before
    return rows.with_columns(
        reason=pl.when(fine & (place > pl.col("wanted")))
        .then(pl.lit("surplus"))
        .otherwise("reason")
    )
