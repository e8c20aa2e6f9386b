"""The synthetic lane: plan (+ imported) -> candidates -> synthetic, rejects."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import polars as pl

from schemas.synthetic import IMPORTED_FROM, PROVENANCE, synthetic_rows
from synth_assets.assets import evidence
from synth_assets.assets.allowed import allowed_values
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.model import model_access
from synth_assets.assets.screening import (
    every_row_wanted,
    import_candidates,
    judged_imports,
    references,
    screen_rules,
)
from synth_assets.assets.stages import FEW_LOST, check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.forecast import (
    Forecast,
    forecast_error,
    forecast_of,
    last_generation,
    spent_of,
)
from synth_assets.generation import (
    Channel,
    Dialect,
    Generated,
    Progress,
    candidate_schema,
    generate,
    outline,
)
from synth_assets.lifecycle.imported import is_imported
from synth_assets.lifecycle.losses import MOST_REJECTED, Rows, lost_shares
from synth_assets.lifecycle.refill import remaining, shortfall
from synth_assets.lifecycle.screen import accepted, judge
from synth_assets.lifecycle.support import Finding
from synth_assets.llm.answers import Tallies
from synth_assets.llm.batch.batch import BatchPending
from synth_assets.llm.budget import Budget
from synth_assets.llm.formats import UNMARKED_LINES
from synth_assets.llm.sync import run_sync
from synth_assets.report.tables import markdown_table
from synth_assets.spec.load import Dataset
from synth_assets.store.content import ContentStore
from synth_assets.tasks import task_for

OBSERVE_EVERY_S = 5.0
POOL = "generation"
COMPLETE = "complete"
CONTRACT = "Ids unique, payload and provenance present."


def synthetic_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    """Without generation only imported rows are judged; where there are none, nothing is."""
    if dataset.spec.generates:
        return [_candidates(dataset), _synthetic(dataset)]
    return [_imported_alone(dataset)] if dataset.spec.synthetic_sources else []


def _candidates(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["candidates"],
        pool=POOL,
        # A run may leave while a batch is at the provider: then there is no table yet.
        required=False,
        checks=[
            check(
                dataset,
                "candidates",
                COMPLETE,
                "Every call that was needed is answered: no budget reached, no batch open.",
                blocking=False,
            )
        ],
    )
    def candidates(
        context: dg.AssetExecutionContext,
        workbench: dg.ResourceParam[Workbench],
        plan: pl.LazyFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
        **optional: pl.DataFrame,
    ) -> Iterator[Any]:
        asked, store = _Asked(), ContentStore(workbench.home.store)
        sides, given = references(human_train, holdout), None
        if (imported := optional.get("imported")) is not None:
            given = judged_imports(dataset, imported, outline(plan), sides)
            asked.given = accepted(given)
        if not remaining(outline(plan), asked.given)["wanted"].sum():
            # No model is needed, and none has to be there.
            none = pl.DataFrame(schema=candidate_schema(task))
            yield from _made(dataset, Generated(none, asked.given), asked)
            return
        observe = _observer(context, dataset, workbench, asked)
        with shown_to_user(), model_access(dataset, workbench) as access:

            async def work(dialect: Dialect, channel: Channel) -> Generated:
                asked.budget, asked.priced = channel.budget, channel.prices is not None
                asked.forecast = forecast_of(
                    plan,
                    dataset=dataset,
                    dialect=dialect,
                    channel=channel,
                    human=human_train,
                    last=last_generation(plan, dataset, store, context.instance, asked.given),
                    cache=workbench.home.cache,
                    given=asked.given,
                )
                asked.before = replace(channel.tallies)
                return await generate(
                    plan,
                    references=sides,
                    rules=screen_rules(dataset),
                    task=task,
                    dialect=dialect,
                    channel=channel,
                    on_progress=observe,
                    given=given,
                )

            try:
                made = run_sync(access.with_channel(work))
            except BatchPending as pending:
                context.log_event(
                    dg.AssetObservation(
                        key(dataset, "candidates"), metadata={"waiting_for": pending.problem}
                    )
                )
                yield evidence.result(
                    key(dataset, "candidates"),
                    COMPLETE,
                    pl.DataFrame(),
                    passed=False,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=str(pending),
                )
                return
        yield from _made(dataset, made, asked)

    return candidates


@dataclass
class _Asked:
    """What the step learns before it asks; ``given``: rows accepted already, per cell."""

    given: dict[str, int] = field(default_factory=dict)
    forecast: Forecast | None = None
    before: Tallies | None = None
    budget: Budget | None = None
    priced: bool = False


def _made(dataset: Dataset, made: Generated, asked: _Asked) -> Iterator[Any]:
    """The table, and whether it is all that was needed."""
    yield dg.Output(made.candidates, "candidates", metadata=_numbers(made, asked))
    yield evidence.result(
        key(dataset, "candidates"),
        COMPLETE,
        made.shortfall if made.unasked else pl.DataFrame(),
        passed=not made.unasked,
        severity=dg.AssetCheckSeverity.WARN,
        description=_budget_sentence(dataset, made, asked.budget) if made.unasked else "",
        unasked=made.unasked,
    )


def _budget_sentence(dataset: Dataset, made: Generated, budget: Budget | None) -> str:
    """Which cap was reached, and how to go on."""
    if budget is None:
        return ""
    spent, caps = budget.spent, budget.caps
    capped = {"usd": (spent.usd, caps.usd), "tokens": (spent.tokens, caps.tokens)}
    capped["calls"] = (spent.calls, caps.calls)
    told = ", ".join(
        f"{round(used, 6):,} of {cap:,} {name}"
        for name, (used, cap) in capped.items()
        if cap is not None
    )
    wanted = sum(made.accepted.values()) + int(
        (made.shortfall["wanted"] - made.shortfall["accepted"]).sum() or 0
    )
    return (
        f"the budget is reached ({told} spent; the next call could cost more than is left): "
        f"{sum(made.accepted.values()):,} of {wanted:,} rows\n"
        f"  fix: raise generate.budget in {dataset.file} and run again; nothing bought is bought "
        "again"
    )


def _observer(
    context: dg.AssetExecutionContext, dataset: Dataset, workbench: Workbench, asked: _Asked
) -> Callable[[Progress], None]:
    """Tells the terminal at once, and Dagster's asset page every few seconds."""
    next_event = time.monotonic() + OBSERVE_EVERY_S

    def observe(progress: Progress) -> None:
        nonlocal next_event
        due = time.monotonic() >= next_event
        if not due and not workbench.listens:
            return
        numbers = _progress_numbers(progress, priced=asked.priced)
        workbench.report("candidates", numbers)
        if due:
            next_event = time.monotonic() + OBSERVE_EVERY_S
            known = {name: value for name, value in numbers.items() if value is not None}
            context.log_event(dg.AssetObservation(key(dataset, "candidates"), metadata=known))

    return observe


def _progress_numbers(progress: Progress, *, priced: bool) -> dict[str, Any]:
    tallies = progress.tallies
    per_second = tallies.bought / tallies.seconds if tallies.bought else None
    return {
        "rows_accepted": progress.accepted,
        "rows_wanted": progress.wanted,
        "rounds_judged": progress.rounds,
        "rejects_by_reason": dict(progress.rejects),
        "answers": progress.answers,
        "answers_expected": progress.expected,
        "answers_per_s": round(per_second, 2) if per_second else None,
        "seconds_left": round((progress.expected - progress.answers) / per_second, 1)
        if per_second
        else None,
        "calls_made": tallies.bought,
        "calls_replayed": tallies.replayed,
        # An answer that was cut or refused is no failed call: its rows are judged, or rejects.
        "calls_failed": sum(n for kind, n in tallies.failed.items() if not kind.is_content),
        "prompt_tokens": tallies.prompt_tokens,
        "completion_tokens": tallies.completion_tokens,
        "cost_usd": round(tallies.usd, 6) if priced else None,
    }


def _numbers(made: Generated, asked: _Asked) -> dict[str, Any]:
    """Metadata of the table: what was made, what it cost, and how far the forecast was off."""
    tallies = made.tallies
    return {
        "rows_accepted": sum(made.accepted.values()),
        "rows_imported": sum(asked.given.values()),
        "rounds": made.rounds,
        "calls_made": tallies.bought,
        "calls_replayed": tallies.replayed,
        "calls_unasked": made.unasked,
        "prompt_tokens": tallies.prompt_tokens,
        "completion_tokens": tallies.completion_tokens,
        **({"cost_usd": round(tallies.usd, 6)} if asked.priced else {}),
        "seconds": round(tallies.seconds, 3),
        "shortfall_cells": made.shortfall.height,
        "rejects_by_reason": made.rejects,
        **_forecast_and_error(made, asked),
    }


def _forecast_and_error(made: Generated, asked: _Asked) -> dict[str, Any]:
    """What was forecast before the first call, and by how many percent each figure was off.

    Nothing when the generation was cut short, or nothing was asked: there is no error to speak of.
    """
    if asked.forecast is None or asked.before is None:
        return {}
    told = {"forecast": asked.forecast.to_dict()}
    spent, before = spent_of(made.tallies, priced=asked.priced), asked.before
    probed = spent_of(before, priced=asked.priced)
    for name in ("calls", "prompt_tokens", "completion_tokens", "usd"):
        used, earlier = spent[name], probed[name]
        spent[name] = used - earlier if used is not None and earlier is not None else None
    if made.unasked or made.tallies.bought == before.bought:
        return told
    off = forecast_error(asked.forecast.estimate, spent)
    return told | {
        f"forecast_{name}_off_percent": round(percent, 1)
        for name, percent in off.items()
        if percent is not None
    }


def _synthetic(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["synthetic", "rejects"],
        checks=[
            check(dataset, "synthetic", "contract", CONTRACT),
            check(
                dataset,
                "synthetic",
                "exact_counts",
                "As many accepted rows per cell as were wanted.",
                blocking=False,
            ),
            _few_lost_check(dataset),
        ],
    )
    def synthetic(
        plan: pl.LazyFrame,
        candidates: pl.DataFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
        **optional: pl.DataFrame,
    ) -> Iterator[Any]:
        calls, found_in = outline(plan), []
        if (imported := optional.get("imported")) is not None:
            candidates = pl.concat([import_candidates(dataset, imported, calls), candidates])
            found_in = list(IMPORTED_FROM)
        judged = judge(candidates, references(human_train, holdout), screen_rules(dataset), task)
        if imported is not None:
            judged = _with_origins(judged, imported)
        yield from _judged(dataset, judged, found_in)
        accepted_rows = judged.filter(pl.col("reason").is_null()).height
        missing = shortfall(calls, judged)
        yield evidence.result(
            key(dataset, "synthetic"),
            "exact_counts",
            missing,
            severity=dg.AssetCheckSeverity.WARN,
            description=_shortfall_sentence(missing),
            accepted=accepted_rows,
        )
        yield _few_lost(dataset, judged, human_train)

    return synthetic


def _offered(judged: pl.DataFrame) -> int:
    """Rows that were judged; lines of an answer that were never rows do not count."""
    return judged.filter(pl.col("problem").ne_missing(UNMARKED_LINES)).height


def _few_lost_check(dataset: Dataset) -> dg.AssetCheckSpec:
    described = f"At most {MOST_REJECTED:.0%} of generated and of imported rows are rejected."
    return check(dataset, "rejects", FEW_LOST, described, blocking=False)


def _few_lost(
    dataset: Dataset, judged: pl.DataFrame, human_train: pl.DataFrame
) -> dg.AssetCheckResult:
    learnt = human_train.filter(pl.col("split") == "train")[task_for(dataset.spec).stratum]
    return evidence.warnings(key(dataset, "rejects"), FEW_LOST, rejected_shares(judged, learnt))


def rejected_shares(judged: pl.DataFrame, learnt: pl.Series) -> list[Finding]:
    """Large shares of generated or imported rows that are rejected.

    ``judged``: see ``judge``; ``learnt``: labels of human training rows. Surplus rows are good ones
    of a label that has enough; those of a label that nobody may generate are lost.
    """
    judged = judged.filter(pl.col("problem").ne_missing(UNMARKED_LINES))  # never rows
    nobody = (pl.col("reason") == "surplus") & ~pl.col("cell").is_in(learnt.unique().implode())
    places = judged.select(
        pl.col("cell").alias("label"),
        pl.when(nobody).then(pl.lit("surplus (no human row)")).otherwise("reason").alias("reason"),
        pl.format("{}/{}", pl.col("request_id").str.slice(0, 12), "item").alias("place"),
        is_imported().alias("imported"),
    )
    found = []
    for what, rows in (
        ("generated rows", places.filter(~pl.col("imported"))),
        ("imported rows", places.filter(pl.col("imported"))),
    ):
        found += lost_shares(
            Rows(what, "rejected", "rejects", rows.drop("imported"), ("surplus",)),
            most=MOST_REJECTED,
        )
    return found


def _imported_alone(dataset: Dataset) -> dg.AssetsDefinition:
    """``synthetic`` where nothing is generated: every imported row that is good."""
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["synthetic", "rejects"],
        checks=[check(dataset, "synthetic", "contract", CONTRACT), _few_lost_check(dataset)],
    )
    def synthetic(
        imported: pl.DataFrame, human_train: pl.DataFrame, holdout: pl.DataFrame
    ) -> Iterator[Any]:
        rows = import_candidates(dataset, imported, every_row_wanted(imported))
        judged = judge(rows, references(human_train, holdout), screen_rules(dataset), task)
        yield from _judged(dataset, _with_origins(judged, imported), list(IMPORTED_FROM))
        yield _few_lost(dataset, judged, human_train)

    return synthetic


def _with_origins(judged: pl.DataFrame, imported: pl.DataFrame) -> pl.DataFrame:
    """With where an imported row stands in its source."""
    origins = imported.select("request_id", "item", *IMPORTED_FROM)
    return judged.join(origins, on=["request_id", "item"], how="left", maintain_order="left")


def _judged(dataset: Dataset, judged: pl.DataFrame, found_in: list[str]) -> Iterator[Any]:
    """``synthetic`` and ``rejects`` with the contract of the former."""
    task = task_for(dataset.spec)
    rows = judged.filter(pl.col("reason").is_null()).select(
        "record_id", pl.lit("synthetic").alias("origin"), *task.payload, *PROVENANCE, *found_in
    )
    rejects = judged.filter(pl.col("reason").is_not_null())
    reasons = rejects.group_by("reason", "cell").len().sort("reason", "cell")
    yield dg.Output(
        rows.sort("record_id"),
        "synthetic",
        metadata={
            "cells": dict(rows.group_by("cell").len().sort("cell").iter_rows()),
            "acceptance": round(rows.height / max(_offered(judged), 1), 4),
            "imported": rows.filter(is_imported()).height,
        },
    )
    yield dg.Output(
        rejects.drop("problem", "problem_detail", "wanted"),
        "rejects",
        metadata={"by_reason_and_cell": dg.MetadataValue.md(markdown_table(reasons))},
    )
    yield evidence.contract(
        key(dataset, "synthetic"),
        synthetic_rows(task.payload, allowed_values(dataset), imported=bool(found_in)),
        rows,
    )


def _shortfall_sentence(missing: pl.DataFrame) -> str:
    """What is missing where and why, e.g. ``Radiator 12 of 40 (near_duplicate 20)``."""
    cells = [
        f"{row['cell']} {row['accepted']} of {row['wanted']}"
        + (f" ({row['rejects']})" if row["rejects"] else "")
        for row in missing.iter_rows(named=True)
    ]
    return f"too few rows: {', '.join(cells[:10])}" if cells else ""
