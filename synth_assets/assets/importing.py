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
from synth_assets.generation import candidate_schema
from synth_assets.lifecycle.imported import ImportRules, as_candidates, import_rows
from synth_assets.lifecycle.parents import IDS, HumanRows, resolve_parents, whole_cells
from synth_assets.sources import LOAD_ID
from synth_assets.sources.landing import import_name
from synth_assets.spec.load import Dataset
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
        checks=[check(dataset, "imported", "nothing_lost", "Every imported row is there once.")],
    )
    def imported(
        imported_raw: pl.DataFrame,
        human_raw: pl.LazyFrame,
        human: pl.DataFrame,
        human_train: pl.DataFrame,
        holdout: pl.DataFrame,
    ) -> Iterator[Any]:
        people = HumanRows(
            ids=_ids(dataset, task, human_raw),
            rows=human,
            holdout=holdout,
            validation=human_train.filter(pl.col("split") == "validation"),
            text=task.text,
            threshold=dataset.spec.validation.decontaminate,
            stratum=task.stratum,
        )
        with shown_to_user():
            parts = [
                _read(imported_raw.filter(_of(source.name)), import_rules(dataset, source), people)
                for source in dataset.spec.synthetic_sources
            ]
        rows, rejects = (pl.concat(each) for each in zip(*parts, strict=True))
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

    return imported


def _of(name: str | None) -> pl.Expr:
    """Raw rows of the source of that name: they show it, or it and the file they stand in."""
    return pl.col("_source").str.split("/").list.first() == pl.lit(name)


def _ids(dataset: Dataset, task: Task, raw: pl.LazyFrame) -> pl.DataFrame:
    """Human source rows by their declared ids (see ``HumanRows``)."""
    group: pl.Expr = pl.lit(None, pl.String)
    if grouped := dataset.spec.partition.group_by:  # as ``read_human`` makes it of them
        group = pl.concat_list(pl.col(name).fill_null("") for name in grouped).list.join("\x1f")
    text = pl.col(task.source_columns()[task.text]).str.strip_chars()
    parts = [
        raw.filter(_of(source.name), pl.col(source.id_column).is_not_null())
        .select(
            pl.col(source.id_column).str.strip_chars().alias("key"),
            text.alias("text"),
            group.alias("group"),
        )
        .collect()
        for source in dataset.spec.human_sources
        if source.id_column is not None
    ]
    return pl.concat([pl.DataFrame(schema=IDS), *parts])


def _read(
    raw: pl.DataFrame, rules: ImportRules, people: HumanRows
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of one source with their parents resolved, and what cannot be read."""
    if rules.parents_column:
        raw = raw.with_columns(whole_cells(raw[rules.parents_column], people))
    rows, rejects = import_rows(raw, rules)
    return resolve_parents(rows, people), rejects


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
