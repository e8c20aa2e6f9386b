"""What differs between two releases: their rows, and what they say about themselves. Pure.

A row is the same row in both when its ``record_id`` is, which is the hash of its payload. It is
*changed* when anything else about it differs: its split, weight, origin or provenance.

Rows are compared by joins over scans in which every field is a 64-bit hash, so that the texts of a
large table are never in memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

SPLITS = ("train", "validation", "eval")
ID = "record_id"
_MISSING = "(none)"


@dataclass(frozen=True)
class RowDifference:
    """``counts``: change (added | removed | changed), split, origin, stratum column, rows.

    ``fields``: how many of the changed rows differ in each field. ``examples``: change -> rows
    (by id, the first few); a changed row has its fields as ``[old, new]``.
    """

    counts: pl.DataFrame
    fields: dict[str, int]
    examples: dict[str, list[dict[str, Any]]]

    def totals(self) -> dict[str, int]:
        found = dict(self.counts.group_by("change").agg(pl.col("rows").sum()).iter_rows())
        return {change: found.get(change, 0) for change in ("added", "removed", "changed")}

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.totals(),
            "counts": self.counts.to_dicts(),
            "changed_fields": self.fields,
            "examples": self.examples,
        }


def row_difference(
    old: Mapping[str, pl.LazyFrame],
    new: Mapping[str, pl.LazyFrame],
    *,
    payload: tuple[str, ...],
    stratum: str,
    shown: int = 0,
) -> RowDifference:
    """Compare all splits of two releases. ``old`` and ``new``: split -> its rows.

    ``shown``: how many rows of each change to give as examples.
    """
    before, after = _stacked(old), _stacked(new)
    columns = {**before.collect_schema(), **after.collect_schema()}
    fields = [name for name in columns if name not in {ID, *payload}]
    told = ["split", "origin", stratum]
    added = after.join(before.select(ID), on=ID, how="anti")
    removed = before.join(after.select(ID), on=ID, how="anti")
    changed = _changed(before, after, fields, told)
    marks = [pl.col(_mark(name)).sum() for name in fields]
    counts = {
        "added": added.group_by(told).agg(rows=pl.len()),
        "removed": removed.group_by(told).agg(rows=pl.len()),
        "changed": changed.group_by(told).agg(*marks, rows=pl.len()),
    }
    # One after the other: each holds the ids of one release.
    tables = {change: rows.collect(engine="streaming") for change, rows in counts.items()}
    sums = tables["changed"].select(_mark(name) for name in fields).sum().row(0)
    listed = [
        rows.select(pl.lit(change).alias("change"), *told, pl.col("rows").cast(pl.Int64))
        for change, rows in tables.items()
    ]
    examples: dict[str, list[dict[str, Any]]] = {}
    if shown:
        examples = {
            "added": _first(added, shown),
            "removed": _first(removed, shown),
            "changed": _both(before, after, changed, [*payload, *fields], shown),
        }
    return RowDifference(
        pl.concat(listed).sort("change", *told, nulls_last=True),
        {name: int(count) for name, count in zip(fields, sums, strict=True) if count},
        examples,
    )


def value_differences(old: Any, new: Any, prefix: str = "") -> list[dict[str, Any]]:
    """Values (JSON) that differ, each as dotted path, old, new; absent counts as null."""
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        left, right = (value if isinstance(value, Mapping) else {} for value in (old, new))
        found = []
        for key in sorted({*left, *right}):
            path = f"{prefix}.{key}" if prefix else str(key)
            found += value_differences(left.get(key), right.get(key), path)
        return found
    return [] if old == new else [{"path": prefix, "old": old, "new": new}]


def text_difference(old: str, new: str, name: str) -> str:
    """A unified diff; empty when the texts are the same."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
    )
    return "\n".join(lines)


def manifest_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What two manifests say differently.

    prompt and system (unified diffs), parameters, model and packages (path, old, new), stages
    whose versions differ, and every metric of both with its interval.
    """
    declared = [
        change
        for change in value_differences(old.get("declared"), new.get("declared"))
        if not change["path"].startswith(("generate.model", "generate.system"))
    ]
    return {
        "prompt": text_difference(old["prompt"], new["prompt"], "prompt"),
        "system": text_difference(old.get("system") or "", new.get("system") or "", "system"),
        "declared": declared,
        "model": value_differences(old.get("model"), new.get("model")),
        "packages": value_differences(old.get("packages"), new.get("packages")),
        "source": value_differences(old.get("source"), new.get("source")),
        "handwritten_seeds": value_differences(old.get("seeds"), new.get("seeds")),
        "stages": list(_stages(old["stages"], new["stages"])),
        "verdict": {"old": old["contribution"]["verdict"], "new": new["contribution"]["verdict"]},
        "metrics": _metrics(old, new),
    }


def _stages(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for stage in [*old, *(stage for stage in new if stage not in old)]:
        left, right = old.get(stage) or {}, new.get(stage) or {}
        if left != right:
            yield {"stage": stage, "old": dict(left) or None, "new": dict(right) or None}


def _metrics(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    both = [
        {(one["arm"], one["metric"]): one for one in made["contribution"].get("metrics", [])}
        for made in (old, new)
    ]
    return [
        {"arm": arm, "metric": metric}
        | {
            name: {
                part: found.get((arm, metric), {}).get(part) for part in ("value", "low", "high")
            }
            for name, found in zip(("old", "new"), both, strict=True)
        }
        for arm, metric in dict.fromkeys([*both[0], *both[1]])
    ]


def _stacked(splits: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    rows = [
        frame.with_columns(split=pl.lit(split, pl.String))
        for split, frame in splits.items()
        if split in SPLITS
    ]
    return pl.concat(rows, how="diagonal_relaxed")


def _changed(
    before: pl.LazyFrame, after: pl.LazyFrame, fields: list[str], told: list[str]
) -> pl.LazyFrame:
    """Rows of both that differ: record_id, what ``told`` they have now, and a mark per field."""
    left, right = _hashed(before, fields), _hashed(after, fields, told)
    marks = [pl.col(name).ne(pl.col(_new(name))).alias(_mark(name)) for name in fields]
    both = right.rename({name: _new(name) for name in fields}).join(left, on=ID, how="inner")
    told_now = [pl.col(_told(name)).alias(name) for name in told]
    return both.select(ID, *told_now, *marks).filter(
        pl.any_horizontal(*(pl.col(_mark(name)) for name in fields))
    )


def _hashed(rows: pl.LazyFrame, fields: list[str], told: Sequence[str] = ()) -> pl.LazyFrame:
    schema = rows.collect_schema()
    return rows.select(
        ID,
        *(_text(name, schema).hash(0).alias(name) for name in fields),
        *(pl.col(name).alias(_told(name)) for name in told),
    )


def _text(name: str, schema: pl.Schema) -> pl.Expr:
    """A field as text, the same for the same value whatever its type in either release."""
    if name not in schema:
        return pl.lit(_MISSING)
    column, kind = pl.col(name), schema[name]
    if isinstance(kind, pl.List):
        column = column.list.eval(pl.element().cast(pl.String)).list.join("\x1f")
    return column.cast(pl.String).fill_null(_MISSING)


def _mark(name: str) -> str:
    return f"differs {name}"


def _new(name: str) -> str:
    return f"new {name}"


def _told(name: str) -> str:
    return f"told {name}"


def _first(rows: pl.LazyFrame, count: int) -> list[dict[str, Any]]:
    return rows.sort(ID).head(count).collect(engine="streaming").to_dicts()


def _both(
    before: pl.LazyFrame, after: pl.LazyFrame, ids: pl.LazyFrame, columns: list[str], count: int
) -> list[dict[str, Any]]:
    """The first changed rows: what is the same once, what differs as [old, new]."""
    chosen = ids.sort(ID).head(count).collect(engine="streaming")[ID].to_list()
    left, right = (
        {
            row[ID]: row
            for row in rows.filter(pl.col(ID).is_in(chosen))
            .collect(engine="streaming")
            .iter_rows(named=True)
        }
        for rows in (before, after)
    )
    made = []
    for one in chosen:
        row: dict[str, Any] = {ID: one}
        for name in columns:
            old, new = left[one].get(name), right[one].get(name)
            row[name] = new if old == new else [old, new]
        made.append(row)
    return made
