"""A dataset's budget, spent by one process at a time.

A cap holds only if everybody who spends under it sees what the others have spent. So a process
that generates under a budget holds a claim on it in the ledger; a second one waits, and then finds
most answers bought. What a killed process may have left unanswered at the provider counts in full.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from synth_assets.llm.batch.book import PREPARING, open_batches
from synth_assets.llm.budget import Budget, Caps, Prices
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import Spent

_WAIT_S: Final = 0.25


@asynccontextmanager
async def allowance(
    caps: Caps | None,
    *,
    prices: Prices | None,
    ledger: Ledger,
    dataset: str,
    on_wait: Callable[[str], None],
    but_open_batches: bool = False,
) -> AsyncIterator[Budget | None]:
    """The dataset's budget with everything ever spent under its name; None without ``caps``.

    ``on_wait`` is told once when another process is spending it. ``but_open_batches``: whoever
    asks in batches counts the open ones himself. Raises UsageError when ``caps``
    are in US dollars and there are no ``prices``.
    """
    if caps is None:
        yield None
        return
    name = f"budget:{dataset}"
    told = False
    while not (await ledger.claim([name])).granted:
        if not told:
            on_wait(f"another run is generating {dataset} under its budget: waiting for it")
            told = True
        await asyncio.sleep(_WAIT_S)
    try:
        spent = await asyncio.to_thread(ledger.committed, dataset)
        before = Spent(calls=spent.calls, prompt_tokens=spent.tokens, usd=spent.usd)
        if but_open_batches:
            before = _without_open_batches(before, ledger, dataset)
        yield Budget(caps, prices=prices, before=before)
    finally:
        await ledger.release([name])


def _without_open_batches(spent: Spent, ledger: Ledger, dataset: str) -> Spent:
    counted = [row for row in open_batches(ledger, dataset) if row.state != PREPARING]
    return Spent(
        calls=spent.calls - sum(row.requests for row in counted),
        prompt_tokens=spent.prompt_tokens - sum(row.tokens or 0 for row in counted),
        usd=spent.usd - sum(row.usd or 0.0 for row in counted),
    )
