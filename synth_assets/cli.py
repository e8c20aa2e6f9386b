"""The ``synth`` command. Same words as the docs; ``--json`` where a script would read.

Exit codes: 0 done, 1 failed, 2 bad spec or usage, 3 incomplete (shortfall, budget, blocked by a
check).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import click

from synth_assets.commands.batches import batches
from synth_assets.commands.erase import COMMANDS as ERASE_COMMANDS
from synth_assets.commands.export import export
from synth_assets.commands.ledger import ledger
from synth_assets.commands.lineage import COMMANDS as LINEAGE_COMMANDS
from synth_assets.commands.releases import COMMANDS as RELEASE_COMMANDS
from synth_assets.commands.upkeep import COMMANDS as UPKEEP_COMMANDS
from synth_assets.errors import SpecError, UsageError
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import Dataset, dataset_named, discover, no_such_dataset
from synth_assets.terminal import as_json, clean_errors
from synth_assets.terminal import plain as _plain
from synth_assets.terminal import print_table as _print
from synth_assets.terminal import print_warnings as _print_warnings
from synth_assets.terminal import table as _table

STATUS_COLOURS = {"fresh": "green", "stale": "yellow", "missing": "dim", "failed": "red"}


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
            "model": d.spec.generation.model_name if d.spec.generates else None,
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
        table.add_row(*(_plain(row[c] or "") for c in ("dataset", "task", "model", "description")))
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
            raise no_such_dataset(name, found)
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
    """Show how every stage stands (fresh, stale, missing or failed) and what automation does.

    Example: synth status work_orders --json
    """
    with _session(dataset) as session:
        from synth_assets.refresh.told import told
        from synth_assets.status import warnings_of

        stages, refresh = session.statuses(), told(session)
        found = warnings_of(session.checks())
    if as_json:
        rows = [stage.to_dict() for stage in stages]
        told_all = {"dataset": dataset, "stages": rows, "refresh": refresh.to_dict()}
        click.echo(json.dumps({**told_all, "warnings": found}))
        return
    _print(_status_table(stages))
    _print_warnings(found)
    click.echo(refresh.sentence())


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
    from synth_assets.audit.events import reported
    from synth_assets.erasure.erase import finish_first
    from synth_assets.progress import Progress
    from synth_assets.run import run_dataset

    with (
        Progress(quiet=as_json) as progress,
        _session(
            dataset, notify=progress.line, report=progress.report, concurrency=concurrency
        ) as session,
        reported(session.instance, dataset, progress.line if not as_json else _warn),
    ):
        _known_stages(session.dataset, [*force, *([until] if until else [])])
        finish_first(session, discover(defs_roots()).datasets)
        summary = run_dataset(session, until=until, force=force, on_wave=progress.wave)
    if as_json:
        click.echo(json.dumps(progress.as_dict(summary)))
    else:
        _print(_summary_table(summary))
        click.echo(progress.sentence(summary))
        if summary.evidence:
            click.echo(summary.evidence)
        # What the contribution is worth has just been said.
        _print_warnings([w for w in summary.warnings if not w.startswith("contribution/")])
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
    from synth_assets.assets.stages import free_stages
    from synth_assets.forecast import forecast
    from synth_assets.run import run_dataset

    with _session(dataset) as session:
        generates = session.dataset.spec.generates
        summary = run_dataset(session, until=free_stages(session.dataset))
        if summary.exit_code:
            if not as_json:
                _print_warnings(summary.warnings)
            for problem in summary.problems:
                click.echo(problem, err=True)
            sys.exit(summary.exit_code)
        found = forecast(session)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "warnings": summary.warnings}))
        return
    if not generates:
        click.echo(f"{dataset}: nothing to generate; no model is asked, synth run makes the rest")
    else:
        table = _table("label", "rows wanted", "calls expected", "calls allowed")
        for row in found.cells:
            table.add_row(*(_plain(value) for value in row))
        _print(table)
        click.echo(found.sentence())
    _print_warnings(summary.warnings)


for _command in (
    *(ledger, batches, export),
    *RELEASE_COMMANDS,
    *UPKEEP_COMMANDS,
    *LINEAGE_COMMANDS,
    *ERASE_COMMANDS,
):
    main.add_command(_command)


# --- helpers --------------------------------------------------------------------------------


def _known_stages(dataset: Dataset, stages: list[str]) -> None:
    from synth_assets.assets.stages import stages_of

    known = stages_of(dataset)
    for stage in stages:
        if stage not in known:
            raise UsageError(f"no stage named {stage!r}", fix=f"one of: {', '.join(known)}")


class _session:
    """A dataset bound to the Dagster instance of this machine."""

    def __init__(self, name: str, **workbench: Any) -> None:
        self._name, self._workbench = name, workbench

    def __enter__(self) -> Any:
        dataset = dataset_named(self._name, defs_roots())
        _quiet()
        from synth_assets.assets.workbench import Workbench
        from synth_assets.instance import open_instance
        from synth_assets.run import Session

        self._instance = open_instance()
        bench = Workbench(home(), **{k: v for k, v in self._workbench.items() if v is not None})
        return Session.open(dataset, self._instance, bench)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_instance"):
            self._instance.dispose()


def _warn(text: str) -> None:
    click.echo(text, err=True)


def _quiet() -> None:
    """Dagster's own log of a run goes to its instance, not over the table a person reads."""
    warnings.filterwarnings("ignore", category=Warning, module=r"dagster.*")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)


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
