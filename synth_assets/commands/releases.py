"""Commands about releases: list them, compare two, roll back to one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from synth_assets.errors import SynthError, UsageError, shown
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import discover
from synth_assets.terminal import as_json, clean_errors, plain, plain_lines, print_table, table

dataset_argument = click.argument("dataset")


@click.command()
@click.argument("dataset", required=False)
@as_json
@clean_errors
def releases(dataset: str | None, as_json: bool) -> None:
    """List releases with their rows, verdict, model, time and size, the newest first.

    Example: synth releases work_orders
    """
    from synth_assets.store.releases import ReleaseStore

    store = ReleaseStore(home().releases)
    names = store.datasets()
    if dataset is not None and dataset not in names:
        if dataset not in discover(defs_roots()).datasets:
            raise _nothing_released(dataset, names)
        names = []
    rows = [
        row
        for name in ([dataset] if dataset in names else names)
        for row in (
            *(_described(store, name, version) for version in reversed(store.versions(str(name)))),
            *(_erased(store, str(name))),
        )
    ]
    if as_json:
        click.echo(json.dumps({"releases": rows}))
        return
    if not rows:
        click.echo("nothing has been released yet")
        return
    for name in dict.fromkeys(row["dataset"] for row in rows):
        click.echo(plain_lines(name))
        _print_releases([row for row in rows if row["dataset"] == name])
    click.echo(
        "rows: train/validation/eval; human: share of train; blend - human: macro-F1, 95 % interval"
    )


@click.command()
@dataset_argument
@click.argument("a")
@click.argument("b")
@click.option("--rows", type=click.IntRange(0, 10_000), default=0, help="Show this many rows each.")
@as_json
@clean_errors
def diff(dataset: str, a: str, b: str, rows: int, as_json: bool) -> None:
    """Compare two releases: rows, prompts, parameters, model, packages, versions, scores.

    A and B are the beginning of a version, `current`, or `previous` (made before the current one).

    Example: synth diff work_orders previous current --rows 5
    """
    from synth_assets.commands.differences import print_difference
    from synth_assets.lifecycle.difference import manifest_difference, row_difference
    from synth_assets.store.releases import ReleaseStore

    store = store_of(dataset)
    versions = [store.find(dataset, which) for which in (a, b)]
    made = [_whole_manifest(store, dataset, version) for version in versions]
    sides = [ReleaseStore.splits(store.folder(dataset, version)) for version in versions]
    found = row_difference(
        *sides,
        payload=tuple(made[1]["task"]["payload"]),
        stratum=made[1]["task"]["stratum"],
        shown=rows,
    )
    told = {
        "dataset": dataset,
        "old": versions[0],
        "new": versions[1],
        "rows": found.to_dict(),
        **manifest_difference(*made),
    }
    if as_json:
        click.echo(json.dumps(told))
    else:
        print_difference(told, stratum=made[1]["task"]["stratum"])


@click.command()
@dataset_argument
@click.argument("version")
@as_json
@clean_errors
def rollback(dataset: str, version: str, as_json: bool) -> None:
    """Make an older release the current one, after verifying it.

    VERSION is the beginning of a version, or `previous`.

    Example: synth rollback work_orders previous
    """
    store = store_of(dataset)
    target, before = store.find(dataset, version), store.current(dataset)
    _whole_manifest(store, dataset, target)
    store.make_current(dataset, target)
    if as_json:
        click.echo(json.dumps({"dataset": dataset, "current": target, "before": before}))
    else:
        click.echo(f"{dataset}: current is {target} (was {before or 'none'})")


COMMANDS = (releases, diff, rollback)


# --- helpers --------------------------------------------------------------------------------


def _nothing_released(dataset: str, names: list[str]) -> UsageError:
    known = ", ".join(names)
    return UsageError(
        f"nothing is released of {shown(dataset)}",
        fix=f"one of: {known}" if known else "release something first: synth run DATASET",
    )


def store_of(dataset: str) -> Any:
    """The release store, once the dataset is known to have something in it."""
    from synth_assets.store.releases import ReleaseStore

    store = ReleaseStore(home().releases)
    names = store.datasets()
    if dataset not in names:
        raise _nothing_released(dataset, names)
    return store


def _whole_manifest(store: Any, dataset: str, version: str) -> dict[str, Any]:
    """The manifest of a release that has been verified.

    Raises:
        SynthError: it is damaged.
    """
    from synth_assets.store.verify import verify_release

    problems = verify_release(store.folder(dataset, version))
    if problems:
        several = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SynthError(
            f"the release {version} is damaged: {problems[0]}{several}",
            fix=f"synth verify {dataset} lists everything",
        )
    return dict(store.manifest(dataset, version))


def _described(store: Any, dataset: str, version: str) -> dict[str, Any]:
    """One line of `synth releases`; what cannot be read is None."""
    from synth_assets.store.garbage import size_of
    from synth_assets.store.releases import created

    folder = store.folder(dataset, version)
    row: dict[str, Any] = {
        "dataset": dataset,
        "version": version,
        "current": store.current(dataset) == version,
        "created": datetime.fromtimestamp(created(folder) / 1e9, UTC).isoformat(timespec="seconds"),
        "bytes": size_of(folder),
    }
    try:
        made = store.manifest(dataset, version)
        splits = made["counts"]["splits"]
        train = splits["train"]
        metrics = made["contribution"]["metrics"]
        difference = [
            m for m in metrics if (m["arm"], m["metric"]) == ("blend - human", "macro_f1")
        ]
        facts: dict[str, Any] = {
            "rows": {split: sum(per.values()) for split, per in splits.items()},
            "human_share": round(train.get("human", 0) / max(sum(train.values()), 1), 4),
            "verdict": made["contribution"]["verdict"],
            "difference": {part: difference[0][part] for part in ("value", "low", "high")}
            if difference
            else None,
            "model": made["model"]["name"],
            "damaged": False,
        }
    except (SynthError, KeyError, TypeError, AttributeError):
        names = ("rows", "human_share", "verdict", "difference", "model")
        facts = dict.fromkeys(names) | {"damaged": True}
    return row | facts


def _erased(store: Any, dataset: str) -> list[dict[str, Any]]:
    """One line for each release that was withdrawn, the one withdrawn last first."""
    from synth_assets.store.withdrawn import withdrawn

    there = store.versions(dataset)
    nothing = dict.fromkeys(("rows", "human_share", "verdict", "difference", "model", "created"))
    return [
        {
            "dataset": dataset,
            "version": version,
            "current": False,
            "bytes": 0,
            **nothing,
            "damaged": False,
            "erased": {name: stone.get(name) for name in ("erased_at", "reason", "rows")},
        }
        for version, stone in reversed(withdrawn(store.root, dataset).items())
        if version not in there
    ]


def _print_releases(rows: list[dict[str, Any]]) -> None:
    """One dataset's releases, two lines each, in 80 columns."""
    made = table("version", "created (UTC)", "rows", "human", "blend - human")
    for row in rows:
        made.add_row(*("\n".join(plain(line) for line in cell) for cell in _release_cells(row)))
    print_table(made)


def _release_cells(row: dict[str, Any]) -> list[list[str]]:
    """Every cell as its lines."""
    if row.get("erased"):
        at = str(row["erased"]["erased_at"] or "")[:16].replace("T", " ")
        return [[row["version"]], [at], [], [], ["erased", row["erased"]["reason"] or ""]]
    rows, difference = row["rows"] or {}, row["difference"] or {}
    value = difference.get("value")
    verdict = "cannot be read" if row["damaged"] else row["verdict"].replace("_", " ")
    scored = [verdict]
    if value is not None:
        interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
        scored = [f"{value:+.3f} {verdict}", interval]
    share = "" if row["human_share"] is None else f"{row['human_share']:.0%}"
    return [
        [row["version"], *(["current"] if row["current"] else [])],
        [row["created"][:16].replace("T", " "), row["model"] or ""],
        ["/".join(f"{rows[split]:,}" for split in _SPLITS if split in rows), _size(row["bytes"])],
        [share],
        scored,
    ]


_SPLITS = ("train", "validation", "eval")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
