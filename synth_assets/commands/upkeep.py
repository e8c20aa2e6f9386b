"""Commands that look after a home: verify it, clear it up, make a release of it again."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from synth_assets.commands.releases import store_of
from synth_assets.errors import Incomplete, SynthError, UsageError, shown
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import discover
from synth_assets.terminal import as_json, clean_errors, plain, plain_lines, print_table, table


@click.command()
@click.argument("dataset", required=False)
@click.option("--release", metavar="VERSION", help="Only this release (or `current`).")
@click.option("--store/--no-store", default=True, help="The stored tables too (default).")
@click.option("--ledger/--no-ledger", default=None, help="The ledger's answers too (default).")
@as_json
@clean_errors
def verify(
    dataset: str | None, release: str | None, store: bool, ledger: bool | None, as_json: bool
) -> None:
    """Compute every hash again: releases, their files and rows, stored tables, paid answers.

    With DATASET, answers are those that it was the first to ask for; with --release, none.

    Ends with 1 and a line per file that is not what it should be.

    Example: synth verify work_orders
    """
    from synth_assets.upkeep.home import verify_answers, verify_home

    if release is not None and dataset is None:
        raise UsageError("--release needs a dataset", fix="synth verify DATASET --release VERSION")
    declared = discover(defs_roots()).datasets
    with OpenInstance(wanted=store) as instance:
        found = verify_home(
            home(), declared=declared, instance=instance, dataset=dataset, release=release
        )
    if ledger if ledger is not None else release is None:
        verify_answers(home(), found, dataset=dataset)
    if as_json:
        told = {
            "releases": found.releases,
            "tables": found.tables,
            "calls": found.calls,
            "healed": found.healed,
            "problems": [problem.to_dict() for problem in found.problems],
        }
        click.echo(json.dumps(told))
    else:
        for path in found.healed:
            click.echo(f"{path}: checksum added, the rows are right")
        for problem in found.problems:
            click.echo(plain_lines(str(problem)))
        wrong = f"{len(found.problems)} problems" if found.problems else "all good"
        click.echo(
            f"{found.releases} releases, {found.tables} stored tables, {found.calls:,} paid "
            f"answers: {wrong}"
        )
    sys.exit(SynthError.exit_code if found.problems else 0)


@click.command()
@click.argument("dataset", required=False)
@click.option("--yes", is_flag=True, help="Delete. Without it, only list.")
@click.option(
    "--keep-last",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Keep the newest N tables of every stage besides.",
)
@click.option("--orphans", is_flag=True, help="Datasets that are declared nowhere too.")
@click.option(
    "--releases", is_flag=True, help="With --orphans: their releases, and Dagster's records, too."
)
@as_json
@clean_errors
def gc(
    dataset: str | None, yes: bool, keep_last: int, orphans: bool, releases: bool, as_json: bool
) -> None:
    """List (with --yes delete) stored tables and temporary files that nothing needs.

    What a release or the latest materialisation of a stage refers to stays; so do releases and the
    ledger, from which every table can be made again without a call. A dataset that was renamed is
    declared nowhere under its former name: --orphans, with --releases when all of it is to go.

    Example: synth gc work_orders --keep-last 3
    """
    from synth_assets.erasure.dagster_records import forget
    from synth_assets.upkeep.home import collect_garbage

    if releases and not orphans:
        raise UsageError("--releases is about datasets declared nowhere", fix="add --orphans")
    with OpenInstance() as instance:
        found = collect_garbage(
            home(),
            discover(defs_roots()),
            instance,
            dataset=dataset,
            delete=yes,
            keep_last=keep_last,
            orphans=orphans,
            releases=releases,
        )
        for name in found.freed if yes else ():
            forget(instance, name)
    listed = found.removed if yes else found.found
    total = sum(one.bytes for one in listed)
    if as_json:
        told = {
            "deleted": yes,
            "bytes": total,
            "items": [one.to_dict() for one in listed],
            "refused": found.refused,
            "skipped": found.skipped,
        }
        click.echo(json.dumps(told))
    else:
        made = table("dataset", "what", "bytes", "where")
        root = home().root
        for one in listed:
            where = one.path.relative_to(root) if one.path.is_relative_to(root) else one.path
            made.add_row(plain(one.dataset), one.kind, f"{one.bytes:,}", plain(where))
        if listed:
            print_table(made)
        done = "deleted" if yes else "would go, with --yes"
        click.echo(f"{len(listed)} files and folders, {total:,} bytes: {done}")
    for name, why in (found.refused | found.skipped).items():
        click.echo(f"{plain_lines(name)}: left alone, {plain_lines(why)}", err=True)
    sys.exit(Incomplete.exit_code if found.refused else 0)


@click.command()
@click.argument("release")
@click.option("--into", required=True, type=click.Path(path_type=Path), help="An empty folder.")
@click.option("--dataset", help="Whose release it is, when the version is not enough.")
@click.option(
    "--source-folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where relative source paths start. Left out: the dataset's own folder.",
)
@as_json
@clean_errors
def reproduce(
    release: str, into: Path, dataset: str | None, source_folder: Path | None, as_json: bool
) -> None:
    """Make a release again from its own files, the ledger and the source, and compare all hashes.

    RELEASE is a release's folder or the beginning of its version. No call is made: what the ledger
    does not hold is missing from the result. Ends with 1 when a stage differs.

    Example: synth reproduce 3f2a --into /tmp/again
    """
    folder = _release_folder(release, dataset)
    _quiet()
    from synth_assets.store.releases import read_manifest
    from synth_assets.upkeep.reproduce import reproduce as make_again

    name = str(read_manifest(folder).get("dataset"))
    found = make_again(
        folder,
        into=into,
        home=home(),
        source_folder=(source_folder or _dataset_folder(name)),
        notify=(lambda line: None) if as_json else click.echo,
    )
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        made = table("stage", "released", "made again", "")
        for stage in found.stages:
            again = (stage.reproduced or "not made")[:16]
            same = "same" if stage.same else "[red]DIFFERS[/]"
            made.add_row(plain(stage.stage), stage.released[:16], again, same)
        print_table(made)
        alike = sum(stage.same for stage in found.stages)
        click.echo(
            f"{alike} of {len(found.stages)} stages the same, {found.calls_tried} calls tried"
        )
    if not found.same:
        for problem in found.problems:
            click.echo(plain_lines(problem), err=True)
    sys.exit(0 if found.same else SynthError.exit_code)


COMMANDS = (verify, gc, reproduce)


# --- helpers --------------------------------------------------------------------------------


def _release_folder(release: str, dataset: str | None) -> Path:
    """The folder that ``release`` names, or the one release whose version begins so."""
    from synth_assets.store.releases import MANIFEST, ReleaseStore

    if (Path(release) / MANIFEST).is_file():
        return Path(release).resolve()
    store = ReleaseStore(home().releases)
    if dataset is not None:
        return store_of(dataset).folder(dataset, store.find(dataset, release))  # type: ignore[no-any-return]
    found = [
        store.folder(name, version)
        for name in store.datasets()
        for version in store.versions(name)
        if release and version.startswith(release)
    ]
    for name in store.datasets() if release and not found else ():
        if any(version.startswith(release) for version in store.withdrawn(name)):
            store.find(name, release)  # which says that it was erased
    if len(found) != 1:
        raise UsageError(
            f"{len(found) or 'no'} releases begin with {shown(release)}",
            fix="give a release's folder, more of its version, or --dataset (synth releases)",
        )
    return found[0]


def _dataset_folder(name: str) -> Path | None:
    """Where the dataset is declared now, even if its declaration is broken."""
    found = discover(defs_roots())
    folders = {b.name: b.folder for b in found.broken} | {
        d.name: d.folder for d in found.datasets.values()
    }
    return folders.get(name)


class OpenInstance:
    """The Dagster instance of this machine, for the length of a block (None if not ``wanted``)."""

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._instance: Any = None

    def __enter__(self) -> Any:
        if self._wanted:
            _quiet()
            from synth_assets.instance import open_instance

            self._instance = open_instance()
        return self._instance

    def __exit__(self, *_: object) -> None:
        if self._instance is not None:
            self._instance.dispose()


def _quiet() -> None:
    """Dagster's own log of a run goes to its instance, not over what a person reads."""
    warnings.filterwarnings("ignore", category=Warning, module=r"dagster.*")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
