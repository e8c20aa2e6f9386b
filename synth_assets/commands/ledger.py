"""``synth ledger``: what was asked and paid for, as a table, as JSON, as a file; and pruning it."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from synth_assets.errors import UsageError
from synth_assets.settings import home
from synth_assets.terminal import as_json, clean_errors, plain, plain_lines, print_table, table

if TYPE_CHECKING:
    from synth_assets.llm.ledger.admin import CallFilter
    from synth_assets.llm.ledger.ledger import Ledger
    from synth_assets.llm.ledger.rows import CallRow

F = TypeVar("F", bound=Callable[..., Any])
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
SHORT_ID: Final = 10
MOST_CHARS: Final = 60


def filters(function: F) -> F:
    """The options that say which calls are meant."""
    options = [
        click.option("--dataset", help="Calls that this dataset asked first."),
        click.option("--model", help="Calls to this model."),
        click.option("--outcome", help="ok, or why the answer is not good: length, refused, ..."),
        click.option("--since", metavar="WHEN", help="From: 7d, 12h, 30m ago, or an ISO date."),
    ]
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


@click.group()
def ledger() -> None:
    """Look into the ledger of paid calls, export it, prune it.

    The ledger is the file ledger/ledger.sqlite in SYNTH_HOME, or where SYNTH_LEDGER_URL says.
    """


@ledger.command()
@as_json
@clean_errors
def show(as_json: bool) -> None:
    """Show what was paid, by dataset, endpoint, model and outcome.

    Example: synth ledger show --json
    """
    from synth_assets.llm.ledger.admin import overview, summary

    with _opened() as found:
        rows, facts = summary(found), overview(found)
    if as_json:
        click.echo(json.dumps({**facts._asdict(), "calls": [row._asdict() for row in rows]}))
        return
    made = table(
        *("dataset", "endpoint", "model", "outcome", "calls"),
        *("tokens in", "tokens out", "USD", "first (UTC)", "last (UTC)"),
    )
    for row in rows:
        tokens = (f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}", f"{row.usd:.4f}")
        names = (row.dataset, _cut(row.endpoint), row.model, row.outcome)
        times = (_time(row.first_at), _time(row.last_at))
        made.add_row(*map(plain, names), f"{row.calls:,}", *tokens, *times)
    print_table(made)
    click.echo(
        f"{facts.place} (version {facts.version}, {facts.bytes:,} bytes): {facts.claims:,} claimed "
        f"now, {facts.open_batches:,} open batches, {facts.failures:,} failures kept, "
        f"{facts.unseen:,} attempts never seen, {facts.pruned:,} calls pruned"
    )


@ledger.command()
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@as_json
@clean_errors
def calls(limit: int, as_json: bool, **wanted: str | None) -> None:
    """List calls, the newest first; --json prints one call per line, whole.

    Example: synth ledger calls --dataset work_orders --since 7d --limit 20
    """
    from synth_assets.ledger_export import json_line
    from synth_assets.llm.ledger.admin import calls

    where = _filter(**wanted)
    with _opened() as found:
        stream = calls(found, where, limit=limit, newest_first=True)
        if as_json:
            for call in stream:
                sys.stdout.buffer.write(json_line(call))
            return
        made = _calls_table("started (UTC)", "dataset", "model", "outcome", "tokens", "USD", "s")
        for call in stream:
            tokens = (call.prompt_tokens, call.completion_tokens)
            facts = (
                *(call.dataset, call.model, call.outcome),
                "" if None in tokens else "{}+{}".format(*tokens),
                "" if call.cost_usd is None else f"{call.cost_usd:.4g}",
                f"{call.latency_ms / 1000:.1f}",
            )
            made.add_row(call.request_id[:SHORT_ID], _time(call.started_at), *map(plain, facts))
    print_table(made)


@ledger.command()
@click.argument("request_id")
@click.option("--raw", is_flag=True, help="Print the response body, byte for byte, and no more.")
@as_json
@clean_errors
def call(request_id: str, raw: bool, as_json: bool) -> None:
    """Show one call whole; the first 8 hex digits of its id are enough.

    Example: synth ledger call 3f9a12bc --raw
    """
    from synth_assets.llm.ledger.admin import UnknownCall, full_id

    with _opened() as found:
        name = full_id(found, request_id)
        one, failed = found.call(name), found.failures(name)
    if raw:
        if one is None:
            raise UnknownCall(f"{name} got no answer", fix=f"synth ledger call {name[:SHORT_ID]}")
        sys.stdout.buffer.write(one.response)
    elif as_json:
        import orjson

        from synth_assets.ledger_export import record

        whole = None if one is None else {**record(one), "answer": _answer(one)}
        told = {"call": whole, "failures": [_failure(row) for row in failed]}
        sys.stdout.buffer.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))
    else:
        if one is not None:
            _print_call(one)
        _print_failures(failed)


@ledger.command()
@click.option("--dataset", help="Failures of this dataset.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@as_json
@clean_errors
def failures(dataset: str | None, limit: int, as_json: bool) -> None:
    """List requests that were given up, the newest first.

    Example: synth ledger failures --dataset work_orders --json
    """
    from synth_assets.llm.ledger.admin import failures

    with _opened() as found:
        rows = failures(found, dataset=dataset, limit=limit)
    if as_json:
        click.echo(json.dumps([_failure(row) for row in rows]))
    else:
        _print_failures(rows)


@ledger.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@filters
@click.option("--until", metavar="WHEN", help="Before: 7d, 12h, 30m ago, or an ISO date.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest.")
@as_json
@clean_errors
def export(file: Path, limit: int | None, as_json: bool, **wanted: str | None) -> None:
    """Write calls to FILE (.jsonl, .jsonl.gz or .parquet), the oldest first.

    Example: synth ledger export calls.parquet --dataset work_orders --outcome ok
    """
    from synth_assets.ledger_export import export
    from synth_assets.llm.ledger.admin import calls

    where = _filter(**wanted)
    with _opened() as found:
        count = export(calls(found, where, limit=limit), file)
    told = {"file": str(file), "calls": count, "bytes": file.stat().st_size}
    click.echo(json.dumps(told) if as_json else f"{count:,} calls: {file}")


@ledger.command()
@click.option("--older-than", required=True, metavar="WHEN", help="90d, or an ISO date.")
@click.option("--dataset", help="Only calls that this dataset asked first.")
@click.option("--also-used", is_flag=True, help="Also calls that stored candidates came from.")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would go.")
@as_json
@clean_errors
def prune(older_than: str, dataset: str | None, also_used: bool, yes: bool, as_json: bool) -> None:
    """Delete old calls and failures; what they cost is still counted.

    A deleted call is paid for again if it is asked again, so calls that a stored candidates table
    refers to stay, unless --also-used.

    Example: synth ledger prune --older-than 90d --yes
    """
    from synth_assets.ledger_use import used_requests
    from synth_assets.llm.ledger.admin import prune

    before = moment(older_than)
    with _opened() as found:
        keep = (lambda _: False) if also_used else used_requests(home().store)
        pruned = prune(found, before, dataset=dataset, keep=keep, dry_run=not yes)
        space = found.backend.shrink() if yes and (pruned.calls or pruned.failures) else ""
    if as_json:
        told = {"calls": pruned.calls, "bytes": pruned.bytes, "kept": pruned.kept}
        click.echo(json.dumps({**told, "failures": pruned.failures, "pruned": yes, "space": space}))
        return
    what = (
        f"{pruned.calls:,} calls ({pruned.bytes:,} bytes) and {pruned.failures:,} failures; "
        f"{pruned.kept:,} older calls stay, stored candidates came from them"
    )
    click.echo(f"pruned {what}" if yes else f"would prune {what}\nto do it: add --yes")
    if space:
        click.echo(space)


def moment(text: str) -> float:
    """``7d`` (ago) or an ISO date or time (UTC unless it says), as Unix seconds.

    Raises UsageError.
    """
    if told := re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip()):
        return time.time() - int(told[1]) * _SECONDS[told[2]]
    try:
        given = datetime.fromisoformat(text.strip())
        return (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is no time", fix="30m, 12h, 7d, 4w, 2026-01-31, or 2026-01-31T12:00"
        ) from error


# --- helpers --------------------------------------------------------------------------------


@contextmanager
def _opened() -> Iterator[Ledger]:
    from synth_assets.llm.ledger.ledger import Ledger, ledger_location

    with Ledger.open(ledger_location(home().ledger), create=False) as found:
        yield found


def _filter(
    *,
    dataset: str | None,
    model: str | None,
    outcome: str | None,
    since: str | None,
    until: str | None = None,
) -> CallFilter:
    from synth_assets.llm.ledger.admin import CallFilter

    first, last = (None if text is None else moment(text) for text in (since, until))
    return CallFilter(dataset, model, outcome, first, last)


def _calls_table(*columns: str) -> Any:
    """A table whose ids and times stay whole, however narrow the terminal."""
    made = table("request", *columns)
    for column in made.columns[:2]:
        column.no_wrap = True
    made.columns[0].min_width, made.columns[1].min_width = SHORT_ID, len("2026-01-31 12:00")
    return made


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…"


def _failure(row: Any) -> dict[str, Any]:
    return {
        "request_id": row.request_id,
        "dataset": row.dataset,
        "endpoint": row.endpoint,
        "model": row.model,
        "request": json.loads(row.request),
        "kind": row.kind,
        "status": row.status,
        "detail": row.detail,
        "body": row.body.decode("utf-8", "replace"),
        "attempts": row.attempts,
        "started_at": row.started_at,
    }


def _print_failures(rows: list[Any]) -> None:
    if not rows:
        return
    made = _calls_table("failed (UTC)", "dataset", "model", "kind", "status", "detail")
    for row in rows:
        facts = (row.dataset, row.model, row.kind, row.status, _cut(row.detail))
        made.add_row(row.request_id[:SHORT_ID], _time(row.started_at), *map(plain, facts))
    print_table(made)


def _answer(one: CallRow) -> str | None:
    """The text that the response holds; None when it holds none."""
    from synth_assets.llm.answers import decoded

    asked = json.loads(one.request)
    chat = asked.get("kind") != "completion"
    parts = decoded("chat" if chat else "completion", one.response, asked.get("body"))
    return None if parts is None else parts.text


def _print_call(one: CallRow) -> None:
    cost = "no price" if one.cost_usd is None else f"{one.cost_usd:.6f} USD at {one.prices}"
    facts = {
        "request": one.request_id,
        "dataset": one.dataset,
        "endpoint": one.endpoint,
        "model": one.model,
        "outcome": f"{one.outcome} (HTTP {one.status}, finish reason {one.finish_reason})",
        "tokens": f"{one.prompt_tokens} in, {one.completion_tokens} out",
        "cost": cost,
        "started": f"{_time(one.started_at)} UTC, took {one.latency_ms:,.0f} ms, "
        f"{one.attempts} attempts",
    }
    for name, value in facts.items():
        click.echo(f"{name:<9} {plain_lines(value)}")
    asked = json.dumps(json.loads(one.request), indent=2, ensure_ascii=False)
    click.echo(f"\nasked:\n{plain_lines(asked)}")
    text = _answer(one)
    body = one.response.decode("utf-8", "replace")
    click.echo(f"\nanswer:\n{plain_lines(body if text is None else text)}")
