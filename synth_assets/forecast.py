"""What generation will cost, before a single call.

The first round is known exactly, later rounds are expected from the yield that refilling assumes;
calls that the ledger already holds are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from synth_assets.assets.model import model_access
from synth_assets.assets.stages import key
from synth_assets.generation import FIRST_YIELD, requests_of
from synth_assets.lifecycle.refill import next_round
from synth_assets.llm.sync import run_sync
from synth_assets.run import Session
from synth_assets.store.content import ContentStore
from synth_assets.store.io_manager import latest_version
from synth_assets.tasks import task_for

CHARS_PER_TOKEN = 4.0
# What a generated row and its share of the list around it take, in tokens, beside its text.
TOKENS_AROUND_ROW = 6.0


@dataclass(frozen=True)
class Forecast:
    """Expected calls and tokens; ``usd`` is None without ``generate.prices``."""

    calls: int
    cached_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float | None
    cells: list[tuple[str, int, int, int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cells"}

    def sentence(self) -> str:
        cost = f", {self.usd:.4f} USD" if self.usd is not None else ""
        return (
            f"expected: {self.calls} calls ({self.cached_calls} of them already in the ledger), "
            f"about {self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written{cost}"
        )


def forecast(session: Session) -> Forecast:
    """The forecast for the plan as it now stands (``plan`` must be materialised).

    Tokens are counted as characters / 4 where no tokenizer of the model is at hand.
    """
    dataset, workbench = session.dataset, session.workbench
    task, store = task_for(dataset.spec), ContentStore(workbench.home.store)

    def table(stage: str) -> pl.DataFrame:
        current = latest_version(session.instance, key(dataset, stage))
        return store.scan(dataset.name, stage, current).collect()

    plan, human = table("plan"), table("human_train")
    calls = next_round(plan, {}, first_yield=FIRST_YIELD[dataset.spec.generate.style])
    with model_access(dataset, workbench) as access:

        async def ids(dialect: Any) -> list[str]:
            requests = requests_of(calls, dialect, access.channel.endpoint(False).identity, task)
            return [request.request_id for request, _ in requests]

        wanted = list(run_sync(access.with_dialect(ids, may_ask=False)))
        held = access.channel.ledger.answers(wanted)
    fresh = calls.filter(~pl.Series([name in held for name in wanted], dtype=pl.Boolean))
    prompt_tokens = round(sum(fresh["prompt"].str.len_chars()) / CHARS_PER_TOKEN)
    row_tokens = (_mean_chars(human[task.text]) / CHARS_PER_TOKEN) + TOKENS_AROUND_ROW
    completion = min(
        round(sum(fresh["rows"]) * row_tokens),
        fresh.height * dataset.spec.generate.max_tokens,
    )
    prices = dataset.spec.generate.prices
    usd = None
    if prices is not None:
        spent = prompt_tokens * prices.input_per_million + completion * prices.output_per_million
        usd = round(spent / 1e6, 6)
    return Forecast(
        calls=calls.height,
        cached_calls=len(held),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion,
        usd=usd,
        seconds=None,
        cells=list(_cells(plan, calls)),
    )


def _mean_chars(texts: pl.Series) -> float:
    mean = texts.str.len_chars().mean()
    return float(mean) if mean is not None else 0.0  # type: ignore[arg-type]


def _cells(plan: pl.DataFrame, calls: pl.DataFrame) -> Iterator[tuple[str, int, int, int]]:
    expected = dict(calls.group_by("cell").len().iter_rows())
    for cell, wanted, allowed in (
        plan.group_by("cell", maintain_order=True)
        .agg(pl.col("wanted").first(), pl.len())
        .iter_rows()
    ):
        yield cell, wanted, expected.get(cell, 0), allowed
