"""``synth impact`` and ``synth erase``: what descends from a person's rows, and its deletion."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from synth_assets.commands.upkeep import OpenInstance
from synth_assets.errors import Incomplete, UsageError
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import dataset_named, discover
from synth_assets.terminal import (
    as_json,
    clean_errors,
    plain,
    plain_lines,
    print_table,
    print_warnings,
    table,
)

F = TypeVar("F", bound=Callable[..., Any])
KEPT_ELSEWHERE = (
    "Not deleted, because it is not here or cannot be known: exports written with --out, ledgers "
    "exported, homes made by synth reproduce, backups, models trained on a release, and what the "
    "model's provider keeps of requests."
)
NO_FOLDER_LINE = "which no folder declares (a former name; SYNTH_DEFS adds folders)"
OWN_SOURCE = (
    "The source itself is yours: take the rows out of it, too. Until then they are left out of "
    "every load."
)


def selected(function: F) -> F:
    """The options that say whose data is meant."""
    for option in (
        click.option("--group", multiple=True, metavar="VALUE", help="Of partition.group_by; once "
                     "for each of its columns."),
        click.option("--text-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="Rows that say what this file says."),
        click.option("--record", metavar="RECORD_ID", help="A human record, or its beginning."),
        click.option("--source-row", metavar="SOURCE:ROW", help="A row as it landed."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command()
@click.argument("dataset")
@selected
@as_json
@clean_errors
def impact(dataset: str, as_json: bool, **words: Any) -> None:
    """Show what descends from a row of the source: rows, prompts, calls, releases, exports.

    Every kept version counts, not only what now stands. DATASET may be a name without a folder:
    what a dataset was called before it was renamed. What such names hold is shown in any case.

    Example: synth impact work_orders --source-row human.csv:12
    """
    from synth_assets.erasure.erase import outlook
    from synth_assets.erasure.impact import impact as find
    from synth_assets.erasure.select import Selector, select

    named, declared, past = _named(dataset)
    with OpenInstance() as instance:
        selector = Selector(**_words(words))
        known = select(named, home(), instance, selector)
        # Before it is widened by what descends: the marks are those of the rows themselves.
        findings = outlook(named, home(), instance, known, selector).findings
        found = find(named, declared, home(), instance, known.copy())
        others = [find(one, declared, home(), instance, known.copy()) for one in past]
    kept = [_told(one, declared, named.name) for one in others if not one.nothing]
    told = _told(found, declared) | {"past_names": kept, "warnings": _lines(findings)}
    if as_json:
        click.echo(json.dumps(told))
        return
    _show(told)
    _warn(told["warnings"])
    for one in told["past_names"]:
        click.echo(f"{plain_lines(one['dataset'])}, {NO_FOLDER_LINE}:")
        _show(one)


@click.command()
@click.argument("dataset")
@selected
@click.option("--reason", default="", metavar="TEXT", help="Kept with the record of the erasure.")
@click.option("--yes", is_flag=True, help="Delete. Without it, only say what would go.")
@click.option("--no-rebuild", is_flag=True, help="Do not make the stages again afterwards.")
@as_json
@clean_errors
def erase(
    dataset: str, reason: str, yes: bool, no_rebuild: bool, as_json: bool, **words: Any
) -> None:
    """Delete a row of the source, and all that was made from it, for good; then build again.

    Without --yes it says what would be deleted and how many calls would be asked anew. Tables,
    calls, releases, exports, what has landed, and Dagster's records go; a mark without any text
    keeps the row out of later loads. An erasure that was cut short is finished first; with --yes
    and nothing selected, that is all. What names without a folder hold of the row goes, too;
    DATASET may be such a name.

    Example: synth erase work_orders --source-row human.csv:12 --reason "request 17" --yes
    """
    from synth_assets.erasure.erase import is_pending
    from synth_assets.erasure.past import is_past

    given = _words(words)
    named, declared, past = _named(dataset)
    waiting = is_pending(home(), dataset)
    if waiting and not yes:
        raise Incomplete(
            "an erasure of it is not finished", where=dataset, fix=f"synth erase {dataset} --yes"
        )
    if not waiting and not any(given.values()):
        raise UsageError(
            "say whose data is meant",
            fix="one of --source-row SOURCE:ROW, --record ID, --text-file FILE, --group VALUE",
        )
    with OpenInstance() as instance:
        told = _erased(named, declared, past, instance, given, reason, yes=yes, say=not as_json)
    code = 0
    if yes and not no_rebuild and not is_past(named):
        rebuilt, code = _rebuilt(named, say=not as_json)
        told["rebuilt"] = rebuilt
    if as_json:
        click.echo(json.dumps(told))
    elif not yes:
        click.echo("nothing was deleted; with --yes it is")
    sys.exit(code)


COMMANDS = (impact, erase)


# --- helpers --------------------------------------------------------------------------------


def _words(words: dict[str, Any]) -> dict[str, Any]:
    return {**words, "group": tuple(words["group"])}


def _named(name: str) -> tuple[Any, dict[str, Any], list[Any]]:
    """The dataset of that name, all of which anything is known, and past names but for itself.

    Raises:
        SynthError: there is none, or it is broken.
    """
    from synth_assets.erasure.past import past_datasets

    found = discover(defs_roots())
    past = past_datasets(home(), found)
    named = past[name] if name in past else dataset_named(name, defs_roots())
    return named, {**found.datasets, **past}, [one for one in past.values() if one.name != name]


def _erased(
    dataset: Any,
    declared: dict[str, Any],
    past: list[Any],
    instance: Any,
    given: dict[str, Any],
    reason: str,
    *,
    yes: bool,
    say: bool,
) -> dict[str, Any]:
    """Finishes what is left of an erasure, then looks, and deletes if it is to.

    Past names come first: once the row is gone from the dataset itself, nobody could say again
    whose data is meant.
    """
    from synth_assets.erasure.erase import alone, finish
    from synth_assets.erasure.select import NothingLeft, Selector, select

    where = home()
    told: dict[str, Any] = {"dataset": dataset.name, "erased": False, "finished": None}
    notify = _to_stderr if say else _silent
    if not yes:
        known = select(dataset, where, instance, Selector(**given))
        words = (past, declared, instance, known, given)
        others = _of_past_names(*words, say=say, covered=dataset.name)
        needed = not others["past_names"]
        own, _ = _seen(dataset, declared, instance, known.copy(), given, say=say, needed=needed)
        return told | own | others
    with alone(where, instance, dataset.name, notify):
        told["finished"] = finish(dataset, declared, where, instance)
        if told["finished"] and say:
            click.echo(f"finished the erasure of {told['finished']['at']}")
        if not any(given.values()):
            return told
        try:
            known = select(dataset, where, instance, Selector(**given))
            looked = (past, declared, instance, known, given, reason)
            others = _of_past_names(*looked, say=say, covered=dataset.name)
            # Where only a past name held it, the mark that keeps it away is still to be written.
            needed = not others["past_names"]
            own_words = (dataset, declared, instance, known.copy(), given, reason)
            return told | _deleted(*own_words, say=say, needed=needed) | others
        except NothingLeft as nothing:
            if say:
                click.echo(str(nothing.problem))
            return told | {"already": nothing.problem}


def _of_past_names(
    past: list[Any],
    declared: Any,
    instance: Any,
    known: Any,
    given: dict[str, Any],
    reason: str | None = None,
    *,
    say: bool,
    covered: str,
) -> dict[str, Any]:
    """What names without a folder hold of it; with a ``reason`` that is deleted."""
    from synth_assets.erasure.erase import alone, finish
    from synth_assets.erasure.impact import impact as find

    told = []
    for one in past:
        if reason is not None:
            with alone(home(), instance, one.name, _to_stderr if say else _silent):
                finish(one, declared, home(), instance)
        if find(one, declared, home(), instance, known.copy()).nothing:
            continue
        if say:
            click.echo(f"{plain_lines(one.name)}, {NO_FOLDER_LINE}:")
        if reason is None:
            words = (one, declared, instance, known.copy(), given)
            told.append(_seen(*words, say=say, covered=covered)[0])
            continue
        with alone(home(), instance, one.name, _to_stderr if say else _silent):
            done = (one, declared, instance, known.copy(), given, reason)
            told.append(_deleted(*done, say=say, covered=covered))
    return {"past_names": told}


def _deleted(
    dataset: Any,
    declared: Any,
    instance: Any,
    known: Any,
    given: Any,
    reason: str,
    *,
    say: bool,
    needed: bool = True,
    covered: str = "",
) -> dict[str, Any]:
    from synth_assets.erasure.erase import erase as delete

    told, seen = _seen(
        dataset, declared, instance, known, given, say=say, needed=needed, covered=covered
    )
    told["removed"] = delete(seen, dataset, declared, home(), instance, reason=reason)["removed"]
    told["erased"] = True
    if say:
        click.echo("deleted")
        for line in (*_others(told), OWN_SOURCE, KEPT_ELSEWHERE):
            click.echo(line)
    return told


def _seen(
    dataset: Any,
    declared: Any,
    instance: Any,
    known: Any,
    given: Any,
    *,
    say: bool,
    needed: bool = True,
    covered: str = "",
) -> tuple[dict[str, Any], Any]:
    from synth_assets.erasure.erase import prospect
    from synth_assets.erasure.select import NothingLeft, Selector, tombstoned
    from synth_assets.store.erasures import Log

    seen = prospect(dataset, declared, home(), instance, known, Selector(**given))
    if seen.impact.nothing and needed:
        if tombstoned(known, Log(home().root, dataset.name).tombstones()):
            raise NothingLeft("it was erased before", where=dataset.name)
        raise UsageError("nothing of it is here", where=dataset.name, fix="check what was selected")
    anew = seen.after.asked_anew
    told: dict[str, Any] = {"impact": _told(seen.impact, declared, covered), "asked_anew": anew}
    told["warnings"] = _lines(seen.after.findings)
    if say:
        _show(told["impact"])
        click.echo(_anew(anew))
        _warn(told["warnings"])
    return told, seen


def _anew(asked: Any) -> str:
    if asked is None:
        return "how many calls will be asked anew is not known: not all of its tables are there"
    per = ", ".join(f"{plain(label)} {count:,}" for label, count in asked.items())
    return f"calls to be asked anew: {sum(asked.values()):,}" + (f" ({per})" if per else "")


def _lines(findings: Any) -> list[str] | None:
    """None: not known."""
    from synth_assets.lifecycle.support import lines_of

    return None if findings is None else lines_of(findings)


def _warn(lines: list[str] | None) -> None:
    if lines is None:
        click.echo("what its labels will lack is not known: not all of its tables are there")
    print_warnings(lines or [], "after the erasure")


def _told(found: Any, declared: dict[str, Any], covered: str = "") -> dict[str, Any]:
    from synth_assets.erasure.erase import counts_of
    from synth_assets.erasure.past import is_past

    # What is left as it is: not what is ``covered`` too, past names, and names of the ledger only.
    others = {
        name: stages
        for name, stages in found.others.items()
        if name != covered and (not is_past(declared[name]) if name in declared else stages)
    }
    return {
        "dataset": found.dataset,
        "stages": found.stages(),
        "calls": sorted(found.calls),
        "counts": counts_of(found),
        "releases": [one.to_dict() for one in found.releases],
        "exports": [str(path) for path in found.exports],
        "other_datasets": others,
    }


def _show(told: dict[str, Any]) -> None:
    made = table("stage", "rows now", "tables", "rows at most")
    for stage in told["stages"]:
        counts = (stage[name] for name in ("rows", "tables", "most_rows"))
        made.add_row(plain(stage["stage"]), *(f"{count:,}" for count in counts))
    print_table(made)
    counts = told["counts"]
    click.echo(f"calls in the ledger: {counts['calls']:,}; failures: {counts['failures']:,}")
    for one in told["releases"]:
        rows = ", ".join(f"{split} {count:,}" for split, count in one["rows"].items())
        rows = rows or ", ".join(one["files"]) or "damaged: what it holds is not known"
        current = " (current)" if one["current"] else ""
        click.echo(f"release {one['version']}{current}: {rows}")
    for path in told["exports"]:
        click.echo(f"export {path}")
    for line in _others(told):
        click.echo(line)


def _others(told: dict[str, Any]) -> list[str]:
    found = told.get("other_datasets") or told.get("impact", {}).get("other_datasets", {})
    return [
        f"also in {name} ({', '.join(f'{s} {n:,}' for s, n in stages.items()) or 'calls'}), "
        f"which is left as it is: synth impact {name} --text-file FILE"
        for name, stages in found.items()
    ]


def _rebuilt(dataset: Any, *, say: bool) -> tuple[dict[str, Any], int]:
    """The dataset made again without what was erased, as ``synth run`` makes it."""
    from synth_assets.assets.workbench import Workbench
    from synth_assets.progress import Progress
    from synth_assets.run import Session, run_dataset

    with Progress(quiet=not say) as progress, OpenInstance() as instance:
        bench = Workbench(home(), notify=progress.line, report=progress.report)
        session = Session.open(dataset, instance, bench)
        summary = run_dataset(session, on_wave=progress.wave)
    if say:
        click.echo(progress.sentence(summary))
        print_warnings(summary.warnings)
    for problem in summary.problems:
        click.echo(problem, err=True)
    return dict(progress.as_dict(summary)), summary.exit_code


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


def _silent(_: str) -> None:
    return None
