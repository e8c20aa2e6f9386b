"""The import lane: import_source -> imported_raw -> imported, synthetic rows that exist already."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.loading import load
from synth_assets.assets.source import import_rules
from synth_assets.assets.stages import check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.cells import group_of, trimmed
from synth_assets.errors import shown
from synth_assets.generation import candidate_schema
from synth_assets.lifecycle.imported import ImportRules, as_candidates, import_rows
from synth_assets.lifecycle.parents import IDS, PLACES, HumanRows, Resolved, resolve, whole_cells
from synth_assets.sources import LOAD_ID
from synth_assets.sources.landing import import_name
from synth_assets.spec.load import Dataset
from synth_assets.spec.sources import AnySource
from synth_assets.tasks import Task, task_for


def import_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    """Nothing for a dataset without a synthetic source."""
    return [_imported_raw(dataset), _imported(dataset)] if dataset.spec.synthetic_sources else []


def _imported_raw(dataset: Dataset) -> dg.AssetsDefinition:
    @tables(dataset, ["imported_raw"])
    def imported_raw(workbench: dg.ResourceParam[Workbench]) -> Iterator[Any]:
        with shown_to_user():
            raw, metadata = load(dataset, workbench, "synthetic", into=import_name(dataset.name))
        yield dg.Output(raw, "imported_raw", metadata=metadata)

    return imported_raw


def _imported(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["imported"],
        checks=[
            check(dataset, "imported", "nothing_lost", "Every imported row is there once."),
            *_descent_checks(dataset),
        ],
    )
    def imported(
        imported_raw: pl.DataFrame,
        human_raw: pl.LazyFrame,
        human: pl.DataFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
    ) -> Iterator[Any]:
        places = _places(dataset, task, human_raw)
        people = HumanRows(
            ids=places.drop_nulls("key").select(list(IDS)),
            rows=human,
            holdout=holdout,
            validation=human_train.filter(pl.col("split") == "validation"),
            text=task.text,
            threshold=dataset.spec.validation.decontaminate,
            stratum=task.stratum,
            train=human_train.filter(pl.col("split") == "train"),
            places=places,
            unused_allowed=dataset.spec.validation.derived_from_unused == "allow",
        )
        with shown_to_user():
            parts = [
                _read(imported_raw.filter(_of(source.name)), import_rules(dataset, source), people)
                for source in dataset.spec.synthetic_sources
            ]
        rows, rejects = (
            pl.concat(each) for each in ([p.rows for p, _ in parts], [r for _, r in parts])
        )
        schema = candidate_schema(task)
        del schema["wanted"]
        made = as_candidates(
            _known(_as_answers(rows, task), task, people.rows),
            rejects,
            payload=task.payload,
            schema=pl.Schema(schema),
        )
        loads = imported_raw.select(source="_source", source_row="_row", **{LOAD_ID: LOAD_ID})
        made = made.join(loads, on=["source", "source_row"], how="left", maintain_order="left")
        yield dg.Output(made, "imported", metadata={"problems": _counts(made, "problem")})
        yield evidence.result(
            key(dataset, "imported"),
            "nothing_lost",
            made.clear(),
            passed=made.select("source", "source_row").n_unique() == imported_raw.height,
            source_rows=imported_raw.height,
            imported=made.height,
        )
        yield from _descent_results(dataset, [found for found, _ in parts])

    return imported


def _of(name: str | None) -> pl.Expr:
    """Raw rows of the source of that name: they show it, or it and the file they stand in."""
    return pl.col("_source").str.split("/").list.first() == pl.lit(name)


def _places(dataset: Dataset, task: Task, raw: pl.LazyFrame) -> pl.DataFrame:
    """Human source rows by their places, with their declared ids (see ``HumanRows``)."""
    grouped = dataset.spec.partition.group_by
    parts = [
        raw.filter(_of(source.name))
        .select(
            pl.col("_source").alias("source"),
            pl.col("_row").cast(pl.Int64).alias("source_row"),
            (trimmed(pl.col(source.id_column)) if source.id_column else _NOTHING).alias("key"),
            trimmed(pl.col(task.source_columns()[task.text])).alias("text"),
            (group_of(grouped) if grouped else _NOTHING).alias("group"),
        )
        .with_columns(pl.when(pl.col("key") != "").then("key").alias("key"))
        .collect()
        for source in dataset.spec.human_sources
    ]
    return pl.concat([pl.DataFrame(schema=PLACES), *parts])


_NOTHING = pl.lit(None, pl.String)


def _read(
    raw: pl.DataFrame, rules: ImportRules, people: HumanRows
) -> tuple[Resolved, pl.DataFrame]:
    """Rows of one source with their parents resolved, and what cannot be read."""
    if rules.parents_column:
        raw = raw.with_columns(whole_cells(raw[rules.parents_column], people))
    rows, rejects = import_rows(raw, rules)
    return resolve(rows, people), rejects


def _descent_checks(dataset: Dataset) -> list[dg.AssetCheckSpec]:
    """Of a dataset whose imported rows name parents: whether these are found."""
    if not any(_parents_of(source) for source in dataset.spec.synthetic_sources):
        return []
    found = "Parents that imported rows name are human rows that are known."
    known = "Descent is known: not so many parents are unknown that it tells nothing."
    return [
        check(dataset, "imported", "parents_found", found, blocking=False),
        check(dataset, "imported", "descent_known", known),
    ]


def _parents_of(source: AnySource) -> str:
    return (source.provenance.parents_column if source.provenance else None) or ""


def _descent_results(dataset: Dataset, parts: list[Resolved]) -> Iterator[dg.AssetCheckResult]:
    """Sources in which a larger share of the parents names nobody than is allowed."""
    if not _descent_checks(dataset):
        return
    warned, blocked = [], []
    for source, found in zip(dataset.spec.synthetic_sources, parts, strict=True):
        if source.provenance is None or not found.named:
            continue
        limits, unknown = source.provenance.unknown_parents, int(found.unknown["rows"].sum())
        told = {
            "source": source.name or "",
            "parents": found.named,
            "unknown": unknown,
            "share": round(unknown / found.named, 4),
            "such_as": ", ".join(shown(one[:40]) for one in found.unknown["parent"].head(3)),
        }
        if unknown > limits.warn_above * found.named:
            warned.append(told)
        if unknown > limits.block_above * found.named:
            blocked.append(told)
    for name, these, severity in (
        ("parents_found", warned, dg.AssetCheckSeverity.WARN),
        ("descent_known", blocked, dg.AssetCheckSeverity.ERROR),
    ):
        yield evidence.result(
            key(dataset, "imported"),
            name,
            pl.DataFrame(these),
            severity=severity,
            description="; ".join(_sentence(one) for one in these),
        )


def _sentence(told: dict[str, Any]) -> str:
    return (
        f"{told['unknown']:,} of {told['parents']:,} parents that {told['source']} names are no "
        f"human row ({told['such_as']}), so nobody knows whether a holdout row is among them; name "
        "them by id_column, record_id, SOURCE:ROW or text, or raise provenance.unknown_parents"
    )


def _as_answers(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Payloads as they would have been read out of an answer, white space and all."""
    read = [
        task.read_item(row, stratum=row[task.stratum])
        for row in rows.select(task.payload).iter_rows(named=True)
    ]
    payload = pl.DataFrame(
        [item or {} for item in read], schema=dict.fromkeys(task.payload, pl.String)
    )
    broken = pl.Series([item is None for item in read], dtype=pl.Boolean)
    malformed = pl.when(broken).then(pl.lit("malformed_row"))
    return rows.with_columns(payload.get_columns()).with_columns(
        problem=pl.coalesce("problem", malformed)
    )


def _known(rows: pl.DataFrame, task: Task, human: pl.DataFrame) -> pl.DataFrame:
    """A cell that neither the declaration nor a human row knows is a problem of its rows."""
    known = pl.Series([*(task.strata() or human[task.stratum].unique())], dtype=pl.String)
    unknown = pl.when(~pl.col(task.stratum).is_in(known.implode())).then(
        pl.lit(f"unknown_{task.stratum}")
    )
    return rows.with_columns(problem=pl.coalesce("problem", unknown))


def _counts(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(rows.drop_nulls(column).group_by(column).len().sort(column).iter_rows())
