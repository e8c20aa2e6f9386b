"""The ``synth`` command. Same words as the docs; ``--json`` where a script would read.

Exit codes: 0 done, 1 failed, 2 bad spec or usage, 3 incomplete (shortfall, budget, blocked by a
check).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from synth_assets.errors import SpecError, Stopped, SynthError, UsageError
from synth_assets.settings import DEFAULT_DAGSTER_HOME, defs_roots, home
from synth_assets.spec.load import Dataset, Discovery, discover

F = TypeVar("F", bound=Callable[..., Any])
STATUS_COLOURS = {"fresh": "green", "stale": "yellow", "missing": "dim", "failed": "red"}


def clean_errors(function: F) -> F:
    """User errors become one message and their exit code; anything else stays a traceback."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SynthError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            stopped = Stopped()
            click.echo(str(stopped), err=True)
            sys.exit(stopped.exit_code)

    return wrapped  # type: ignore[return-value]


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
dataset_argument = click.argument("dataset")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="synth_assets")
def main() -> None:
    """Training datasets out of human and LLM-made data, as a lineage-tracked Dagster project.

    Datasets are folders with a defs.yaml and a prompt, in the project or in SYNTH_DEFS. Everything
    written goes to SYNTH_HOME (default: data/).
    """


@main.command("list")
@as_json
@clean_errors
def list_datasets(as_json: bool) -> None:
    """List the datasets, the broken ones too.

    Example: synth list --json
    """
    found = discover(defs_roots())
    rows = [
        {
            "dataset": d.name,
            "task": d.spec.task.kind,
            "model": d.spec.generate.model_name,
            "folder": str(d.folder),
            "description": d.spec.description,
        }
        for d in found.datasets.values()
    ]
    if as_json:
        broken = [{"dataset": b.name, "folder": str(b.folder)} for b in found.broken]
        click.echo(json.dumps({"datasets": rows, "broken": broken}))
        return
    table = _table("dataset", "task", "model", "description")
    for row in rows:
        table.add_row(*(_plain(row[c]) for c in ("dataset", "task", "model", "description")))
    for b in found.broken:
        table.add_row(_plain(b.name), "[red]broken[/]", "", f"run: synth check {_plain(b.name)}")
    _print(table)


@main.command()
@click.argument("datasets", nargs=-1)
@as_json
@clean_errors
def check(datasets: tuple[str, ...], as_json: bool) -> None:
    """Check specs, prompts and seeds; all datasets when none is named.

    Example: synth check work_orders
    """
    found = discover(defs_roots())
    names = {*found.datasets, *(b.name for b in found.broken)}
    for name in datasets:
        if name not in names:
            raise _no_such_dataset(name, found)
    broken = [b for b in found.broken if not datasets or b.name in datasets]
    fine = [name for name in found.datasets if not datasets or name in datasets]
    if as_json:
        problems = [
            {"dataset": b.name, **vars(problem)} for b in broken for problem in b.error.problems
        ]
        click.echo(json.dumps({"ok": fine, "problems": problems}))
    else:
        for b in broken:
            click.echo(str(b.error), err=True)
        for name in fine:
            click.echo(f"{name}: ok")
    sys.exit(SpecError.exit_code if broken else 0)


@main.command()
@dataset_argument
@as_json
@clean_errors
def status(dataset: str, as_json: bool) -> None:
    """Show how every stage stands: fresh, stale, missing or failed.

    Example: synth status work_orders --json
    """
    with _session(dataset) as session:
        stages = session.statuses()
        if as_json:
            click.echo(
                json.dumps({"dataset": dataset, "stages": [stage.to_dict() for stage in stages]})
            )
            return
        _print(_status_table(stages))


@main.command()
@dataset_argument
@click.option("--force", multiple=True, metavar="STAGE", help="Run this stage whatever it is.")
@click.option("--until", metavar="STAGE", help="Stop once this stage is up to date.")
@click.option("--concurrency", type=click.IntRange(1, 1024), help="Calls in flight at once.")
@as_json
@clean_errors
def run(
    dataset: str, force: tuple[str, ...], until: str | None, concurrency: int | None, as_json: bool
) -> None:
    """Materialise what is out of sync, in process; nothing to do costs seconds and no call.

    Example: synth run work_orders
    """
    from synth_assets.progress import Progress
    from synth_assets.run import run_dataset

    _known_stages([*force, *([until] if until else [])])
    with (
        Progress(quiet=as_json) as progress,
        _session(
            dataset, notify=progress.line, report=progress.report, concurrency=concurrency
        ) as session,
    ):
        summary = run_dataset(session, until=until, force=force, on_wave=progress.wave)
    if as_json:
        click.echo(json.dumps(progress.as_dict(summary)))
    else:
        _print(_summary_table(summary))
        click.echo(progress.sentence(summary))
        if summary.evidence:
            click.echo(summary.evidence)
    for problem in summary.problems:
        click.echo(problem, err=True)
    sys.exit(summary.exit_code)


@main.command()
@dataset_argument
@as_json
@clean_errors
def plan(dataset: str, as_json: bool) -> None:
    """Forecast calls, tokens, cost and time of generation, without a call.

    Brings the free stages up to date first (they ask no model).

    Example: synth plan work_orders --json
    """
    from synth_assets.forecast import forecast
    from synth_assets.run import run_dataset

    with _session(dataset) as session:
        summary = run_dataset(session, until="plan")
        if summary.exit_code:
            for problem in summary.problems:
                click.echo(problem, err=True)
            sys.exit(summary.exit_code)
        found = forecast(session)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    table = _table("label", "rows wanted", "calls expected", "calls allowed")
    for row in found.cells:
        table.add_row(*(_plain(value) for value in row))
    _print(table)
    click.echo(found.sentence())


# --- helpers --------------------------------------------------------------------------------


def _dataset(name: str) -> Dataset:
    found = discover(defs_roots())
    for b in found.broken:
        if b.name == name and name not in found.datasets:
            raise b.error
    if name not in found.datasets:
        raise _no_such_dataset(name, found)
    return found.datasets[name]


def _no_such_dataset(name: str, found: Discovery) -> UsageError:
    names = sorted({*found.datasets, *(b.name for b in found.broken)})
    return UsageError(
        f"no dataset named {name!r}",
        fix=f"one of: {', '.join(names) or 'none found'}; SYNTH_DEFS adds folders",
    )


def _known_stages(stages: list[str]) -> None:
    from synth_assets.assets.stages import STAGES

    for stage in stages:
        if stage not in STAGES:
            raise UsageError(f"no stage named {stage!r}", fix=f"one of: {', '.join(STAGES)}")


class _session:
    """A dataset bound to the Dagster instance of this machine."""

    def __init__(self, name: str, **workbench: Any) -> None:
        self._name, self._workbench = name, workbench

    def __enter__(self) -> Any:
        dataset = _dataset(self._name)
        _quiet()
        import dagster as dg

        from synth_assets.assets.workbench import Workbench
        from synth_assets.run import Session

        os.environ.setdefault("DAGSTER_HOME", str(DEFAULT_DAGSTER_HOME))
        self._instance = dg.DagsterInstance.get()
        bench = Workbench(home(), **{k: v for k, v in self._workbench.items() if v is not None})
        return Session.open(dataset, self._instance, bench)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_instance"):
            self._instance.dispose()


def _quiet() -> None:
    """Dagster's own log of a run goes to its instance, not over the table a person reads."""
    warnings.filterwarnings("ignore", category=Warning, module=r"dagster.*")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)


def _plain(value: object) -> str:
    """Untrusted text for a terminal table: no markup, no control characters."""
    from rich.markup import escape

    text = "" if value is None else str(value)
    return escape("".join(c if c.isprintable() else " " for c in text))


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


def _status_table(stages: list[Any], ran: tuple[str, ...] = ()) -> Any:
    table = _table("stage", "status", "rows", "data version", "materialised (UTC)")
    for s in stages:
        colour = STATUS_COLOURS[s.status]
        table.add_row(
            s.stage + (" *" if s.stage in ran else ""),
            f"[{colour}]{s.status}[/]",
            "" if s.rows is None else f"{s.rows:,}",
            (s.data_version or "")[:12],
            (s.materialized_at or "")[:19].replace("T", " "),
        )
    return table


def _summary_table(summary: Any) -> Any:
    return _status_table(summary.statuses, tuple(summary.ran))
