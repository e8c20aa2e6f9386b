"""The stages of a dataset: names, order, parents, and how an asset of one is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.store.io_manager import IO_MANAGER_KEY


@dataclass(frozen=True)
class Stage:
    """One asset of the graph. ``shaped_by``: its entry in the fingerprint tables."""

    name: str
    lane: str
    shaped_by: str
    parents: tuple[str, ...]
    description: str


_HUMAN = ("human_train", "holdout")
_TABLES = (
    Stage("human_raw", "human", "human_raw", ("source",), "Source rows as found, landed by dlt."),
    Stage("human", "human", "human", ("human_raw",), "Usable human rows, each text once."),
    Stage("human_rejects", "human", "human", ("human_raw",), "Source rows not used, with reasons."),
    Stage("human_train", "human", "partition", ("human",), "Human rows to learn from."),
    Stage("holdout", "human", "partition", ("human",), "Human rows that only measure."),
    Stage("set_aside", "human", "partition", ("human",), "Human rows on neither side, and why."),
    Stage("seeds", "plan", "seeds", ("human_train",), "Examples that prompts show."),
    Stage("plan", "plan", "plan", ("seeds", "human_train"), "Every call that may be made."),
    Stage("candidates", "synthetic", "candidates", ("plan", *_HUMAN), "What the model wrote."),
    Stage(
        "synthetic", "synthetic", "synthetic", ("plan", "candidates", *_HUMAN), "Rows that passed."
    ),
    Stage(
        "rejects", "synthetic", "synthetic", ("plan", "candidates", *_HUMAN), "Rows that did not."
    ),
    Stage(
        "blend", "product", "blend", ("human_train", "synthetic"), "Human + synthetic, weighted."
    ),
    Stage("train", "product", "split", ("blend",), "What a model trains on."),
    Stage("validation", "product", "split", ("blend",), "Human rows to tune on."),
    Stage("eval", "product", "eval", ("holdout",), "Human rows to be judged by."),
    Stage("contribution", "evidence", "contribution", ("train", "eval"), "Did it help?"),
)
# The leaves of the graph: whatever changes above changes one of them, or nothing that matters.
RELEASE = Stage(
    "release",
    "release",
    "release",
    ("train", "validation", "eval", "contribution", "rejects", "human_rejects", "set_aside"),
    "An immutable version: tables, manifest, card.",
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in (*_TABLES, RELEASE)}
SOURCE = "source"


def key(dataset: Dataset, stage: str) -> dg.AssetKey:
    return dg.AssetKey([dataset.name, stage])


def step_name(dataset: Dataset, stage: str) -> str:
    """The step that makes ``stage``: named after the first of the stages it writes."""
    declared = STAGES[stage]
    first = next(
        s.name
        for s in STAGES.values()
        if (s.shaped_by, s.parents) == (declared.shaped_by, declared.parents)
    )
    return f"{dataset.name}__{first}"


def out(dataset: Dataset, stage: str) -> dg.AssetOut:
    """One table of a ``multi_asset``."""
    declared = STAGES[stage]
    return dg.AssetOut(
        key=key(dataset, stage),
        description=declared.description,
        io_manager_key=IO_MANAGER_KEY,
        group_name=dataset.name,
        code_version=code_version(dataset, declared.shaped_by),
        owners=dataset.spec.owners,
        tags={"synth/lane": declared.lane},
        kinds={"polars", "parquet"},
    )


def tables(
    dataset: Dataset,
    stages: Sequence[str],
    *,
    checks: Sequence[dg.AssetCheckSpec] = (),
    only_versions_of: Sequence[str] = (),
    pool: str | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """A decorator: the function's arguments are named after the stage's parents.

    Every stage it makes has the same parents, so a function that writes two tables is one step.
    Parents in ``only_versions_of`` are depended on, but their tables are not loaded.
    """
    names = STAGES[stages[0]].parents
    unloaded = {SOURCE, *only_versions_of}
    return dg.multi_asset(
        name=step_name(dataset, stages[0]),
        outs={stage: out(dataset, stage) for stage in stages},
        ins={name: dg.AssetIn(key=key(dataset, name)) for name in names if name not in unloaded},
        deps=[key(dataset, name) for name in names if name in unloaded],
        check_specs=list(checks),
        group_name=None,
        can_subset=False,
        pool=pool,
        op_tags={"synth/dataset": dataset.name},
    )


def check(
    dataset: Dataset, stage: str, name: str, description: str, *, blocking: bool = True
) -> dg.AssetCheckSpec:
    """A check that the stage's own step evaluates; a blocking one holds everything downstream."""
    return dg.AssetCheckSpec(
        name=name, asset=key(dataset, stage), description=description, blocking=blocking
    )
