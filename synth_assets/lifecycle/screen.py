"""Which generated rows are good: one function, used while answers arrive and afterwards.

Rows are judged in the order of the plan (round, cell, call, item), never in the order of arrival,
and a row's verdict depends on earlier rows only. So judging batch by batch gives exactly what
judging everything at once gives, and neither concurrency nor a restart changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from synth_assets.lifecycle.leakage import copies, detail_of, other_label, reason_of
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.similarity import greedy_unique, near_copies
from synth_assets.tasks import Task
from synth_assets.text import FORMS, SameText

ORDER = ("round", "cell", "ordinal", "item")


@dataclass(frozen=True)
class References:
    """Human rows that generated rows must not repeat (record_id + payload)."""

    train: pl.DataFrame
    validation: pl.DataFrame
    holdout: pl.DataFrame


@dataclass(frozen=True)
class ScreenRules:
    """Jaccard thresholds (0..1] of character 5-grams.

    ``same_text``: the form in which rows are compared with each other and with training rows;
    with holdout and validation rows they are compared by their words.
    """

    near_duplicate: float
    decontaminate: float
    same_text: SameText = "signs"


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
    (of an earlier row), surplus (the cell has its rows). ``detail`` names the row that was copied,
    and its label if that is another. Opposites are no copies: see ``similarity``.
    """
    rows = with_record_id(candidates.sort(ORDER), task.payload, kind=task.kind)
    sanity = task.implausible(rows, references.train)
    rows = rows.with_columns(
        reason=pl.coalesce(pl.col("problem"), sanity["reason"]),
        detail=pl.coalesce(pl.col("problem_detail"), sanity["detail"]),
    )
    for name, reference in (("holdout", references.holdout), ("validation", references.validation)):
        rows = _flag_unseen(rows, reference, rules.decontaminate, name, task)
    rows = _flag_repeats_of_human(rows, references.train, rules, task)
    rows = _flag_repeats(rows, _kept(earlier), rules, task)
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
    open_rows = _open(rows)
    found = copies(
        open_rows[task.text],
        reference,
        text=task.text,
        threshold=threshold,
        labels=open_rows[task.stratum],
        stratum=task.stratum,
    )
    return _flag(rows, open_rows, found.with_columns(reason_of(name).alias("found")))


def _flag_repeats_of_human(
    rows: pl.DataFrame, reference: pl.DataFrame, rules: ScreenRules, task: Task
) -> pl.DataFrame:
    open_rows = _open(rows)
    found = near_copies(
        open_rows[task.text],
        reference[task.text],
        threshold=rules.near_duplicate,
        form=FORMS[rules.same_text],
        labels=open_rows[task.stratum],
        reference_labels=reference[task.stratum],
    )
    matched = reference[found["match"]].select("record_id", label=task.stratum)
    return _flag(
        rows, open_rows, _told(found, open_rows, matched, "near_copy_of_human", task.stratum)
    )


def _flag_repeats(
    rows: pl.DataFrame, kept: pl.DataFrame | None, rules: ScreenRules, task: Task
) -> pl.DataFrame:
    open_rows = _open(rows)
    old = open_rows.clear() if kept is None else kept
    found = greedy_unique(
        open_rows[task.text],
        threshold=rules.near_duplicate,
        against=old[task.text],
        form=FORMS[rules.same_text],
        labels=open_rows[task.stratum],
        against_labels=old[task.stratum],
    )
    known = pl.concat(
        side.select(pl.lit(where).alias("where"), "record_id", label=task.stratum).with_row_index(
            "match"
        )
        for where, side in (("self", open_rows), ("against", old))
    )
    matched = found.join(known, on=["where", "match"], how="left", maintain_order="left")
    return _flag(rows, open_rows, _told(found, open_rows, matched, "near_duplicate", task.stratum))


def _open(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_row_index("position").filter(pl.col("reason").is_null())


def _told(
    found: pl.DataFrame, open_rows: pl.DataFrame, matched: pl.DataFrame, reason: str, stratum: str
) -> pl.DataFrame:
    """``found`` as ``copies`` tells it; ``matched``: the copied row of each (record_id, label)."""
    own = open_rows[stratum].gather(found["row"])
    return found.select(
        "row",
        "similarity",
        pl.lit(reason).alias("found"),
        matched["record_id"].alias("holdout_id"),
        other_label(own, matched["record_id"], matched.select("record_id", "label")),
    )


def _flag(rows: pl.DataFrame, open_rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    alike = pl.Series("alike", [f"{one:.3f}" for one in found["similarity"]], dtype=pl.String)
    flags = found.with_columns(alike, open_rows["position"].gather(found["row"])).select(
        "position", "found", why=detail_of("alike")
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
