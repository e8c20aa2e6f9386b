"""Which calls come next: rounds until every cell has its rows or its limit is reached.

A round is decided from finished rounds only, so the set of calls ever made is a function of the
plan and the answers, not of timing: a restart or another concurrency asks for the same calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import polars as pl

from synth_assets.lifecycle.imported import is_imported

LEAST_YIELD = 0.1
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class CellState:
    """One cell after some rounds: calls made, rows asked for, rows accepted."""

    calls: int = 0
    asked: int = 0
    accepted: int = 0


def next_round(
    plan: pl.DataFrame, states: Mapping[str, CellState], *, first_yield: float
) -> pl.DataFrame:
    """The plan rows to ask next (empty: done or limits reached).

    Per cell: enough further calls, in plan order, for the rows still missing at the yield seen so
    far (accepted / asked, at least ``LEAST_YIELD``; ``first_yield`` before anything was asked).
    """
    overall = _yield(states.values(), first_yield)
    budgets = [
        (cell, state.calls, state.calls + _calls_needed(wanted, rows, state, overall))
        for cell, wanted, rows in plan.group_by("cell", maintain_order=True)
        .agg(pl.col("wanted").first(), pl.col("rows").first())
        .iter_rows()
        for state in [states.get(cell, CellState())]
    ]
    bounds = pl.DataFrame(
        budgets, schema={"cell": pl.String, "start": pl.Int64, "stop": pl.Int64}, orient="row"
    )
    return (
        plan.join(bounds, on="cell", how="left", maintain_order="left")
        .filter(pl.col("ordinal").is_between("start", "stop", closed="left"))
        .drop("start", "stop")
    )


def _calls_needed(wanted: int, rows: int, state: CellState, overall: float) -> int:
    missing = wanted - state.accepted
    if missing <= 0:
        return 0
    share = _yield([state], overall)
    return math.ceil(missing / (rows * share) - 1e-9)


def _yield(states: Iterable[CellState], fallback: float) -> float:
    asked = accepted = 0
    for state in states:
        asked += state.asked
        accepted += state.accepted
    return max(accepted / asked, LEAST_YIELD) if asked else fallback


def remaining(calls: Frame, given: Mapping[str, int]) -> Frame:
    """``calls`` (cell, wanted, ...), with ``wanted`` less by the rows ``given`` per cell."""
    there = pl.col("cell").replace_strict(dict(given), default=0, return_dtype=pl.Int32)
    return calls.with_columns((pl.col("wanted") - there).clip(lower_bound=0).alias("wanted"))


def update(
    states: Mapping[str, CellState], asked: pl.DataFrame, accepted: Mapping[str, int]
) -> dict[str, CellState]:
    """States after a round: ``asked`` are its plan rows, ``accepted`` the totals so far."""
    updated = dict(states)
    for cell, calls, rows in (
        asked.group_by("cell", maintain_order=True).agg(pl.len(), pl.col("rows").sum()).iter_rows()
    ):
        old = updated.get(cell, CellState())
        updated[cell] = CellState(old.calls + calls, old.asked + rows, accepted.get(cell, 0))
    return updated


def shortfall(plan: pl.DataFrame, judged: pl.DataFrame | None) -> pl.DataFrame:
    """Cells with fewer accepted rows than wanted, and why.

    ``plan``: cell, wanted per call; ``judged``: cell, request_id, reason (null: accepted).
    Returns cell, wanted, accepted, calls_made, calls_allowed, rejects ("near_duplicate 12, ...",
    most frequent first).
    """
    cells = plan.group_by("cell", maintain_order=True).agg(
        pl.col("wanted").first(), pl.len().alias("calls_allowed")
    )
    if judged is None:
        judged = pl.DataFrame(
            schema={"cell": pl.String, "request_id": pl.String, "reason": pl.String}
        )
    found = judged.group_by("cell").agg(
        pl.col("reason").is_null().sum().alias("accepted"),
        pl.col("request_id").filter(~is_imported()).n_unique().alias("calls_made"),
    )
    counted = judged.drop_nulls("reason").group_by("cell", "reason").len()
    reasons = (
        counted.sort("len", "reason", descending=[True, False])
        .group_by("cell", maintain_order=True)
        .agg(pl.format("{} {}", "reason", "len").str.join(", ").alias("rejects"))
    )
    return (
        cells.join(found, on="cell", how="left", maintain_order="left")
        .join(reasons, on="cell", how="left", maintain_order="left")
        .with_columns(
            pl.col("accepted", "calls_made").fill_null(0), pl.col("rejects").fill_null("")
        )
        .filter(pl.col("accepted") < pl.col("wanted"))
        .select("cell", "wanted", "accepted", "calls_made", "calls_allowed", "rejects")
    )
