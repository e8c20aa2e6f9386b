"""Batches apart from a run: collect what is finished, list what is open, cancel.

For a sensor that looks now and then, and for commands. Nothing here buys anything: a batch that
was left on its way to the provider is adopted when it arrived there, and never submitted anew.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from synth_assets.errors import EndpointError, UsageError
from synth_assets.llm.attempts import unusable
from synth_assets.llm.batch import book
from synth_assets.llm.batch.book import OpenBatch, open_batches
from synth_assets.llm.batch.keeper import ENDED, Harvest, Keeper
from synth_assets.llm.batch.provider import Connect, Provider, Refused
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.scheduler import Limits


@dataclass
class Collected:
    """What one look at the open batches gave.

    ``answers``: answers put into the ledger, ``refused``: requests refused for good, ``returned``:
    requests that may be asked again, each by dataset. ``states``: batches by (dataset, state)
    after the look; a state is one of those in ``book``, or "dropped". ``problems``: batches
    that could not be looked at, and why.
    """

    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


async def collect_batches(
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    connect: Connect | None = None,
    dataset: str | None = None,
    limits: Limits | None = None,
) -> Collected:
    """Looks once at every open batch of the endpoint; stores what is finished.

    No call is made when none is open. A batch that cannot be looked at does not keep others from
    being collected. Raises LedgerError when answers cannot be kept.
    """
    collected = Collected()

    def count(row: OpenBatch, harvest: Harvest) -> None:
        collected.answers[row.dataset] += harvest.stored
        collected.refused[row.dataset] += harvest.failed
        collected.returned[row.dataset] += harvest.returned

    provider = Provider(endpoint, limits=limits or Limits(), connect=connect)
    keeper = Keeper(ledger, provider, harvested=count)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(provider.close)
        for row in open_batches(ledger, dataset, endpoint=endpoint.identity):
            try:
                await keeper.visit(row.token, submitting=False)
            except EndpointError as error:
                collected.problems.append(f"batch {row.batch_id or row.token}: {error}")
            after = book.batch(ledger, row.token)
            state = after.state if after is not None else "dropped"
            collected.states[row.dataset, state] += 1
    return collected


async def cancel_batch(
    token: str,
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    connect: Connect | None = None,
    limits: Limits | None = None,
) -> str:
    """Asks the provider to stop working on an open batch; the state it is in then, in our words.

    ``submitted`` means that the provider is still at it and that it is to be collected: what was
    answered by then is paid for. A batch that never reached the provider, or that it does not
    know, is given up: its requests may be asked again.

    Raises UsageError when there is no such open batch, EndpointError when the provider refuses.
    """
    row = book.batch(ledger, token)
    if row is None or row.state not in book.OPEN or row.endpoint != endpoint.identity:
        raise UsageError(
            f"no open batch {token} at this endpoint", fix="see which are open, and where"
        )
    provider = Provider(endpoint, limits=limits or Limits(), connect=connect)
    keeper = Keeper(ledger, provider)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(provider.close)
        if row.state != book.SUBMITTED:
            await keeper.visit(token, submitting=False)
        try:
            await _cancelled(token, ledger, provider)
        except Refused as refused:
            raise unusable(provider.endpoint, refused.failure) from None
        row = book.batch(ledger, token)
        if row is not None and row.state == book.SUBMITTED:
            # At the provider still, or ended before it was asked: then this collects it.
            await keeper.visit(token, submitting=False)
    row = book.batch(ledger, token)
    return row.state if row is not None else "dropped"


async def _cancelled(token: str, ledger: Ledger, provider: Provider) -> None:
    """Cancels at the provider, or gives up what is not there."""
    async with book.locked(ledger, token) as mine:
        if not mine:
            raise UsageError(f"another process works on batch {token} now", fix="try again later")
        row = book.batch(ledger, token)
        if row is None or row.state not in book.OPEN:
            return
        batch_id = row.batch_id
        if batch_id is None:
            # Between the last look and our lock it may have been submitted after all.
            found = await provider.find(token, since=row.created_at)
            batch_id = found.id if found is not None else None
        if batch_id is None:
            await book.close(ledger, token, book.CANCELLED, "never reached the provider")
            return
        try:
            found = await provider.retrieve(batch_id)
            if found.status not in ENDED:
                found = await provider.cancel(batch_id)
        except Refused as refused:
            if refused.failure.status != 404:
                raise
            await book.close(ledger, token, book.CANCELLED, "unknown at the provider")
