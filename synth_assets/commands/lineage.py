"""Commands that look into what was made: the history of a row, and SQL over everything."""

from __future__ import annotations

from typing import Any

import click

from synth_assets.commands.sql import sql
from synth_assets.settings import home
from synth_assets.terminal import as_json, clean_errors, opened_instance, print_table


@click.command()
@click.argument("dataset")
@click.argument("record_id")
@as_json
@clean_errors
def trace(dataset: str, record_id: str, as_json: bool) -> None:
    """Show what a row was made from, and what came of it.

    RECORD_ID may be the beginning of one. Or name a source row as SOURCE:ROW, an entry of the plan
    as CELL/ORDINAL, a call by its REQUEST_ID, one of its rows as REQUEST_ID/ITEM. What is not in
    the tables as they stand is looked for in releases, then in older tables.

    Example: synth trace work_orders 3f9a12bc
    """
    import orjson

    from synth_assets.audit.rows import auditor

    with opened_instance() as instance, auditor(home(), instance, dataset) as audits:
        found = audits.trace(record_id)
    if as_json:
        click.echo(orjson.dumps(found.to_dict()))
        return
    from synth_assets.audit.tree import audit_tree

    print_table(audit_tree(found))


COMMANDS: tuple[Any, ...] = (trace, sql)
