"""``synth batches``: what lies at a provider, and what to do about it."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from synth_assets.errors import UsageError
from synth_assets.terminal import as_json, clean_errors, plain, print_table, table


@click.group()
def batches() -> None:
    """Batches at the provider (generate.mode: batch)."""


@batches.command("list")
@click.argument("dataset", required=False)
@as_json
@clean_errors
def list_batches(dataset: str | None, as_json: bool) -> None:
    """Batches that still hold requests, oldest first.

    Example: synth batches list --json
    """
    from synth_assets.llm.batch.book import open_batches
    from synth_assets.llm.ledger.ledger import Ledger
    from synth_assets.llm.ledger.location import ledger_location
    from synth_assets.settings import home

    with Ledger.open(ledger_location(home().ledger)) as ledger:
        rows = open_batches(ledger, dataset)
    if as_json:
        shown = [
            {
                "token": row.token,
                "dataset": row.dataset,
                "batch_id": row.batch_id,
                "model": row.model,
                "state": row.state,
                "requests": row.requests,
                "created_at": row.created_at,
                "detail": row.detail,
            }
            for row in rows
        ]
        click.echo(json.dumps({"batches": shown}))
        return
    made = table("dataset", "batch", "model", "state", "requests", "submitted (UTC)", "detail")
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row.created_at))
        cells = (row.dataset, row.batch_id or row.token, row.model, row.state)
        made.add_row(*map(plain, cells), f"{row.requests:,}", when, plain(row.detail))
    print_table(made)


@batches.command()
@click.argument("dataset")
@clean_errors
def collect(dataset: str) -> None:
    """Keep what finished batches answered; asks for nothing new.

    Example: synth batches collect tickets
    """
    from synth_assets.assets.batches import collected, summary

    found = collected(*_at(dataset))
    if found is None:
        click.echo(f"{dataset}: no batch is open")
        return
    click.echo(f"{dataset}: {summary(found)}")
    if found.problems:
        raise SystemExit(1)


@batches.command()
@click.argument("dataset")
@clean_errors
def cancel(dataset: str) -> None:
    """Ask the provider to stop; what it has answered by then is paid for and kept.

    Example: synth batches cancel tickets
    """
    from synth_assets.assets.batches import cancelled

    states = cancelled(*_at(dataset))
    if not states:
        raise UsageError(f"{dataset} has no open batch", fix="synth batches list shows which have")
    for token, state in states.items():
        click.echo(f"{dataset}: batch {token[:12]} {state}")


def _at(name: str) -> tuple[Any, Any]:
    """The dataset, and where its things are."""
    from synth_assets.assets.workbench import Workbench
    from synth_assets.settings import defs_roots, home
    from synth_assets.spec.load import dataset_named

    return dataset_named(name, defs_roots()), Workbench(home())
