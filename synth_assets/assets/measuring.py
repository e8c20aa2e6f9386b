"""The evidence lane: train + eval (+ groups) -> contribution. Did the synthetic rows help?"""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import check, key, tables
from synth_assets.lifecycle.draws import clustered
from synth_assets.lifecycle.leakage import leaks
from synth_assets.lifecycle.measure import Contribution, measure
from synth_assets.lifecycle.partition import with_group
from synth_assets.lifecycle.unused import (
    caution,
    lines_of,
    made_of_unused,
    says_unused,
    unused_rows,
)
from synth_assets.report.picture import contribution_markdown
from synth_assets.report.tables import markdown_table
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for

HUMAN_ONLY = "Not measurable: there are no synthetic rows, the dataset has human rows only."


def evidence_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_contribution(dataset)]


def _contribution(dataset: Dataset) -> dg.AssetsDefinition:
    task, spec = task_for(dataset.spec), dataset.spec

    @tables(
        dataset,
        ["contribution"],
        checks=[
            check(
                dataset,
                "contribution",
                "contribution_not_negative",
                "The blend is not measurably worse than human rows alone.",
                blocking=False,
            )
        ],
    )
    def contribution(
        train: pl.DataFrame, eval: pl.DataFrame, human: pl.DataFrame, **optional: pl.DataFrame
    ) -> Iterator[Any]:
        groups = human if spec.partition.group_by else None
        trained = clustered(train, groups)
        cautions = _cautions(dataset, train, eval, human, optional)
        with shown_to_user():
            found = measure(
                _of(trained, "human", spec.blend.weights.human),
                _of(trained, "synthetic", spec.blend.weights.synthetic),
                trained,
                clustered(eval, groups),
                text=task.text,
                label=task.stratum,
                student=spec.measure.student,
                repeats=spec.measure.repeats,
                seed=spec.random_seed,
                first_of_each=spec.human.min_train_per_label if spec.human.limit_train else 0,
                cautions=cautions,
            )
            if not spec.generates and not spec.synthetic_sources:
                sentence = " ".join([HUMAN_ONLY, *filter(None, cautions)])
                found = replace(found, verdict="not_measurable", sentence=sentence)
        yield dg.Output(found.table(), "contribution", metadata=_metadata(found))
        yield evidence.result(
            key(dataset, "contribution"),
            "contribution_not_negative",
            found.table().clear(),
            passed=found.verdict != "hurts",
            severity=dg.AssetCheckSeverity.WARN,
            description=found.sentence,
            verdict=found.verdict,
        )

    return contribution


def _of(train: pl.DataFrame, origin: str, weight: float) -> pl.DataFrame:
    """Rows of one origin, each with the weight that it has on its own, without class weights."""
    return train.filter(pl.col("origin") == origin).with_columns(weight=pl.lit(float(weight)))


def _cautions(
    dataset: Dataset,
    train: pl.DataFrame,
    held_out: pl.DataFrame,
    human: pl.DataFrame,
    optional: Mapping[str, pl.DataFrame],
) -> list[str]:
    """What the declaration allows that weakens the verdict: see ``partition.near_copies``,
    ``validate.derived_from_unused``. ``human``: every usable human row, with its group."""
    kept: list[str] = []
    if dataset.spec.partition.near_copies == "keep":
        of_people = train.filter(pl.col("origin") == "human")
        kept = _kept(dataset, *(_grouped(rows, human) for rows in (of_people, held_out)))
    return kept + _of_unused(dataset, train, optional)


def _grouped(rows: pl.DataFrame, human: pl.DataFrame) -> pl.DataFrame:
    groups = human.select("record_id", "group")
    return rows.join(groups, on="record_id", how="left", maintain_order="left")


def _of_unused(
    dataset: Dataset, train: pl.DataFrame, optional: Mapping[str, pl.DataFrame]
) -> list[str]:
    """How many rows are made of unused human rows, where the dataset allows such rows."""
    if "set_aside" not in optional:
        return []
    human, made = (train.filter(pl.col("origin") == o) for o in ("human", "synthetic"))
    text, threshold = task_for(dataset.spec).text, dataset.spec.validation.decontaminate
    unused = unused_rows(optional["set_aside"], optional["human_rejects"], text=text)
    seeds = optional.get("seeds", human.clear()).filter(pl.col("origin") == "handwritten")
    generate = dataset.spec.generate
    lines = lines_of(dataset.prompt.text, generate.system) if generate else []
    said = [
        says_unused(texts, unused, human, text=text, threshold=threshold)
        for texts in (seeds[text].to_list(), lines)
    ]
    shown = seeds["record_id"].gather(said[0]["row"]).to_list()
    count = made_of_unused(made, optional.get("imported"), shown, always=not said[1].is_empty())
    return [caution(count, made.height)]


def _kept(dataset: Dataset, human: pl.DataFrame, held_out: pl.DataFrame) -> list[str]:
    """The caution about training rows that are like held-out rows, or of their groups, by
    declaration: those that ``partition`` would have set aside."""
    task, threshold = task_for(dataset.spec), dataset.spec.validation.decontaminate
    like = leaks(human, held_out, text=task.text, threshold=threshold, stratum=task.stratum)
    groups = with_group(held_out)["group"].unique()
    shared = human.filter(
        pl.col("group").is_in(groups.implode()),
        ~pl.col("record_id").is_in(like["record_id"].implode()),
    ).height
    if not (count := like.height + shared):
        return []
    of_groups = f", {shared:,} of them only of the same group," if shared else ""
    return [
        f"Caution: {count:,} human training rows are near-copies of held-out rows{of_groups} and "
        "were kept (partition.near_copies: keep), so that the scores are too good."
    ]


def _metadata(found: Contribution) -> dict[str, Any]:
    """A picture, tables, the verdict, and one plain number per arm for the Plots tab."""
    scores = {
        f"macro_f1/{row['arm']}": row["macro_f1"]
        for row in found.arms.iter_rows(named=True)
        if row["macro_f1"] is not None
    }
    return {
        "picture": dg.MetadataValue.md(contribution_markdown(found)),
        "verdict": found.verdict,
        "sentence": found.sentence,
        "arms": dg.MetadataValue.md(markdown_table(found.arms)),
        "differences": dg.MetadataValue.md(markdown_table(found.differences)),
        "labels": dg.MetadataValue.md(markdown_table(found.labels)),
        **scores,
    }
