"""How many calls a plan will take, round by round, before any is made.

The rounds are those of ``refill``, played with the yield of the last generation in place of
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from synth_assets.lifecycle.refill import CellState, next_round, update

# What of a plan is needed here: no prompt.
PLAN_COLUMNS = ("cell", "ordinal", "wanted", "rows")
SURPLUS = "surplus"


@dataclass(frozen=True)
class LastTime:
    """What the last generation made of its calls, per cell.

    ``good``: rows accepted, and those that would have been but for a full cell. ``rounds``: calls
    per round. ``same_plan``: it was made from the plan at hand, and ran to its end.
    """

    calls: Mapping[str, int]
    good: Mapping[str, int]
    rounds: tuple[int, ...]
    same_plan: bool


@dataclass(frozen=True)
class Expected:
    """``stops``: expected calls per cell (a prefix of the cell's calls in the plan); ``rounds``:
    expected calls per round. Both sum to the same."""

    rounds: tuple[int, ...]
    stops: Mapping[str, int]
    how: str


def last_time(
    plan: pl.LazyFrame, candidates: pl.LazyFrame, synthetic: pl.LazyFrame, rejects: pl.LazyFrame
) -> LastTime | None:
    """Read from the tables of the last generation; None when they tell nothing about the plan.

    ``plan``: cell, ordinal, wanted, rows, prompt_version. ``candidates``: round, cell, ordinal,
    wanted, prompt_version, request_id. ``synthetic``: cell, request_id. ``rejects``: cell, reason.
    """
    rows = candidates.select(
        "round", "cell", "ordinal", "wanted", "prompt_version", "request_id"
    ).collect()
    good = synthetic.select("cell", "request_id").collect()
    refused = rejects.select("cell", "reason").collect()
    if rows.is_empty():
        return None
    calls = _counts(rows.group_by("cell").agg(pl.col("ordinal").max() + 1))
    made = rows.unique(["cell", "ordinal"])
    rounds = [count for _, count in sorted(made.group_by("round").len().iter_rows())]
    # A call without a single row left no trace but the gap in the numbers.
    rounds[0] += sum(calls.values()) - made.height
    same = _is_of(plan, made)
    strangers = good.join(rows, on="request_id", how="anti")
    if good.height + refused.height != rows.height or strangers.height:
        # Not judged yet: what was good is not known, what was asked is.
        return LastTime(calls, {}, tuple(rounds), same_plan=True) if same else None
    fine = pl.concat([good["cell"], refused.filter(pl.col("reason") == SURPLUS)["cell"]])
    done = LastTime(calls, _counts(fine.value_counts()), tuple(rounds), same_plan=False)
    return replace(done, same_plan=same and _is_complete(plan, done))


def expected(plan: pl.DataFrame, last: LastTime | None, *, first_yield: float) -> Expected:
    """The calls that generation will take; ``plan``: ``PLAN_COLUMNS``, every cell in order.

    Without a ``last`` time each cell yields ``first_yield`` of what it is asked for, which is what
    the first round is planned with.
    """
    if last is not None and last.same_plan:
        return Expected(last.rounds, last.calls, "as many as the last time, with the same plan")
    overall, how = first_yield, f"the first round, at {first_yield:.0%} good rows"
    rates: dict[str, float] = {}
    if last is not None and last.calls:
        overall, rates = _rates(plan, last)
        how = f"all rounds, at the {overall:.0%} good rows of the last generation"
    rounds, stops = _played(plan, rates, overall, first_yield)
    return Expected(tuple(rounds), stops, how)


def _played(
    plan: pl.DataFrame, rates: Mapping[str, float], overall: float, first_yield: float
) -> tuple[list[int], dict[str, int]]:
    states: dict[str, CellState] = {}
    wanted = _counts(plan.group_by("cell").agg(pl.col("wanted").first()))
    rounds: list[int] = []
    while not (calls := next_round(plan, states, first_yield=first_yield)).is_empty():
        rounds.append(calls.height)
        states = update(states, calls, {})
        states = {
            cell: CellState(
                state.calls,
                state.asked,
                min(wanted[cell], round(state.asked * rates.get(cell, overall))),
            )
            for cell, state in states.items()
        }
    return rounds, {cell: state.calls for cell, state in states.items()}


def _rates(plan: pl.DataFrame, last: LastTime) -> tuple[float, dict[str, float]]:
    """Good rows per row asked, overall and per cell.

    A cell's own rate is drawn to the overall one with the weight of a single call: few calls say
    little.
    """
    rows = float(plan["rows"].mean() or 1)  # type: ignore[arg-type]
    overall = min(1.0, sum(last.good.values()) / (sum(last.calls.values()) * rows))
    return overall, {
        cell: min(1.0, (last.good.get(cell, 0) + overall * rows) / ((calls + 1) * rows))
        for cell, calls in last.calls.items()
    }


def _is_of(plan: pl.LazyFrame, made: pl.DataFrame) -> bool:
    """Whether every call made is one of the plan's, prompt and count of rows included."""
    same = ["cell", "ordinal", "wanted", "prompt_version"]
    return made.lazy().join(plan.select(same), on=same, how="anti").collect().is_empty()


def _is_complete(plan: pl.LazyFrame, last: LastTime) -> bool:
    """Whether each cell had its rows, or all its calls."""
    cells = plan.group_by("cell").agg(pl.col("wanted").first(), pl.len()).collect()
    return all(
        last.good.get(cell, 0) >= wanted or last.calls.get(cell, 0) >= allowed
        for cell, wanted, allowed in cells.iter_rows()
    )


def _counts(pairs: pl.DataFrame) -> dict[str, int]:
    return dict(pairs.iter_rows())
