"""The synthetic lane: plan -> candidates -> synthetic, rejects."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import dagster as dg
import polars as pl

from schemas.synthetic import PROVENANCE, synthetic_rows
from synth_assets.assets import evidence
from synth_assets.assets.allowed import allowed_values
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.model import model_access
from synth_assets.assets.stages import check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.generation import Generated, Progress, generate
from synth_assets.lifecycle.refill import shortfall
from synth_assets.lifecycle.screen import References, ScreenRules, accepted, judge
from synth_assets.llm.sync import run_sync
from synth_assets.report.tables import markdown_table
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for

OBSERVE_EVERY_S = 5.0
POOL = "generation"


def synthetic_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_candidates(dataset), _synthetic(dataset)]


def references(human_train: pl.DataFrame, holdout: pl.DataFrame) -> References:
    """The human sides that generated rows are compared with."""
    return References(
        train=human_train.filter(pl.col("split") == "train"),
        validation=human_train.filter(pl.col("split") == "validation"),
        holdout=holdout,
    )


def screen_rules(dataset: Dataset) -> ScreenRules:
    declared = dataset.spec.validation
    return ScreenRules(declared.near_duplicate, declared.decontaminate)


def _candidates(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(dataset, ["candidates"], pool=POOL)
    def candidates(
        context: dg.AssetExecutionContext,
        workbench: dg.ResourceParam[Workbench],
        plan: pl.DataFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
    ) -> Iterator[Any]:
        observe = _observer(context, dataset, workbench)
        with shown_to_user(), ExitStack() as stack:
            access = stack.enter_context(model_access(dataset, workbench))
            made = run_sync(
                access.with_dialect(
                    lambda dialect: generate(
                        plan,
                        references=references(human_train, holdout),
                        rules=screen_rules(dataset),
                        task=task,
                        dialect=dialect,
                        channel=access.channel,
                        on_progress=observe,
                    )
                )
            )
        missing = shortfall(plan, made.accepted)
        yield dg.Output(
            made.candidates,
            "candidates",
            metadata={
                **_numbers(made),
                "shortfall_cells": missing.height,
                "rejects_by_reason": made.rejects,
            },
        )

    return candidates


def _observer(
    context: dg.AssetExecutionContext, dataset: Dataset, workbench: Workbench
) -> Callable[[Progress], None]:
    """Tells the terminal at once, and Dagster's asset page every few seconds."""
    next_event = time.monotonic() + OBSERVE_EVERY_S
    priced = dataset.spec.generate.prices is not None

    def observe(progress: Progress) -> None:
        nonlocal next_event
        numbers = _progress_numbers(progress, priced=priced)
        workbench.report("candidates", numbers)
        if time.monotonic() >= next_event:
            next_event = time.monotonic() + OBSERVE_EVERY_S
            context.log_event(
                dg.AssetObservation(key(dataset, "candidates"), metadata=dict(numbers))
            )

    return observe


def _progress_numbers(progress: Progress, *, priced: bool) -> dict[str, Any]:
    tallies = progress.tallies
    return {
        "rows_accepted": progress.accepted,
        "rows_wanted": progress.wanted,
        "rounds_judged": progress.rounds,
        "answers": progress.answers,
        "answers_expected": progress.expected,
        "calls_made": tallies.bought,
        "calls_replayed": tallies.replayed,
        "calls_failed": sum(tallies.failed.values()),
        "prompt_tokens": tallies.prompt_tokens,
        "completion_tokens": tallies.completion_tokens,
        "cost_usd": tallies.usd if priced else None,
    }


def _numbers(made: Generated) -> dict[str, Any]:
    tallies = made.tallies
    return {
        "rows_accepted": sum(made.accepted.values()),
        "rounds": made.rounds,
        "calls_made": tallies.bought,
        "calls_replayed": tallies.replayed,
        "completion_tokens": tallies.completion_tokens,
        "cost_usd": round(tallies.usd, 6),
        "seconds": round(tallies.seconds, 3),
    }


def _synthetic(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["synthetic", "rejects"],
        checks=[
            check(dataset, "synthetic", "contract", "Ids unique, payload and provenance present."),
            check(
                dataset,
                "synthetic",
                "exact_counts",
                "As many accepted rows per cell as were wanted.",
                blocking=False,
            ),
        ],
    )
    def synthetic(
        plan: pl.DataFrame,
        candidates: pl.DataFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
    ) -> Iterator[Any]:
        judged = judge(candidates, references(human_train, holdout), screen_rules(dataset), task)
        rows = judged.filter(pl.col("reason").is_null()).select(
            "record_id", pl.lit("synthetic").alias("origin"), *task.payload, *PROVENANCE
        )
        rejects = judged.filter(pl.col("reason").is_not_null())
        reasons = rejects.group_by("reason", "cell").len().sort("reason", "cell")
        yield dg.Output(
            rows.sort("record_id"),
            "synthetic",
            metadata={
                "cells": dict(rows.group_by("cell").len().sort("cell").iter_rows()),
                "acceptance": round(rows.height / max(judged.height, 1), 4),
            },
        )
        yield dg.Output(
            rejects.drop("problem", "problem_detail", "wanted"),
            "rejects",
            metadata={"by_reason_and_cell": dg.MetadataValue.md(markdown_table(reasons))},
        )
        yield evidence.contract(
            key(dataset, "synthetic"), synthetic_rows(task.payload, allowed_values(dataset)), rows
        )
        missing = shortfall(plan, accepted(judged))
        yield evidence.result(
            key(dataset, "synthetic"),
            "exact_counts",
            missing,
            severity=dg.AssetCheckSeverity.WARN,
            description=_shortfall_sentence(missing),
            accepted=rows.height,
        )

    return synthetic


def _shortfall_sentence(missing: pl.DataFrame) -> str:
    """What is missing where, e.g. ``Radiator 12 of 40``."""
    cells = [
        f"{row['cell']} {row['accepted']} of {row['wanted']}"
        for row in missing.iter_rows(named=True)
    ]
    return f"too few rows: {', '.join(cells[:10])}" if cells else ""
