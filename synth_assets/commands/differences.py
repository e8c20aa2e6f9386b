"""The difference of two releases, for a person at a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from synth_assets.terminal import plain, plain_lines, print_table, table

MOST_CHARS = 100


def print_difference(found: Mapping[str, Any], *, stratum: str) -> None:
    """``found``: what ``synth diff --json`` gives; ``stratum``: the column that labels rows."""
    click.echo(f"{found['dataset']}: {found['old']} -> {found['new']}")
    _rows(found["rows"], stratum)
    for name in ("prompt", "system"):
        if found[name]:
            click.echo(f"\n{plain_lines(found[name])}")
    for title, name in (
        ("declared", "declared"),
        ("model", "model"),
        ("packages", "packages"),
        ("source", "source"),
        ("hand-written seeds", "handwritten_seeds"),
    ):
        _values(title, found[name])
    _stages(found["stages"])
    _metrics(found)


def _rows(rows: Mapping[str, Any], stratum: str) -> None:
    totals = ", ".join(f"{rows[change]:,} {change}" for change in ("added", "removed", "changed"))
    click.echo(f"\nrows: {totals}")
    if rows["counts"]:
        made = table("change", "split", "origin", stratum, "rows")
        for row in rows["counts"]:
            cells = [row[name] for name in ("change", "split", "origin", stratum)]
            made.add_row(*(plain(cell) for cell in cells), f"{row['rows']:,}")
        print_table(made)
    if rows["changed_fields"]:
        told = ", ".join(f"{name} {count:,}" for name, count in rows["changed_fields"].items())
        click.echo(f"changed in: {plain_lines(told)}")
    for change, examples in rows["examples"].items():
        for example in examples:
            click.echo(f"{change} {plain_lines(_one_line(example))}")


def _one_line(row: Mapping[str, Any]) -> str:
    """A row with what says something: [old, new] where it changed."""
    told = {name: value for name, value in row.items() if value is not None}
    return ", ".join(f"{name}={_short(value)}" for name, value in told.items())


def _values(title: str, changes: Sequence[Mapping[str, Any]]) -> None:
    if changes:
        click.echo(f"\n{title}")
    for change in changes:
        old, new = _short(change["old"]), _short(change["new"])
        click.echo(plain_lines(f"  {change['path']}: {old} -> {new}"))


def _stages(stages: Sequence[Mapping[str, Any]]) -> None:
    if not stages:
        return
    click.echo()
    made = table("stage", "data version", "code version", "rows")
    for one in stages:
        pairs = [
            [(one[side] or {}).get(name) for side in ("old", "new")]
            for name in ("data_version", "code_version", "rows")
        ]
        made.add_row(plain(one["stage"]), *(plain(_pair(old, new)) for old, new in pairs))
    print_table(made)


def _pair(old: object, new: object) -> str:
    before, after = ("none" if value is None else str(value)[:12] for value in (old, new))
    return before if old == new else f"{before} -> {after}"


def _metrics(found: Mapping[str, Any]) -> None:
    click.echo()
    made = table("scored", "metric", "old", "new")
    for one in found["metrics"]:
        sides = [_score(one[side]) for side in ("old", "new")]
        made.add_row(plain(one["arm"]), plain(one["metric"]), *sides)
    print_table(made)
    verdicts = [str(found["verdict"][side]).replace("_", " ") for side in ("old", "new")]
    click.echo(f"verdict: {plain_lines(' -> '.join(dict.fromkeys(verdicts)))}")


def _score(score: Mapping[str, float | None]) -> str:
    value, low, high = (score[part] for part in ("value", "low", "high"))
    if value is None:
        return ""
    return (
        f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARS else line[: MOST_CHARS - 3] + "..."
