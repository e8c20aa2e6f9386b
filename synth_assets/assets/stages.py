"""The stages of a dataset: names, order, parents, and how an asset of one is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from synth_assets.assets.references import COLUMN_LINEAGE, code_references, column_lineage
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.spec.refresh import duration
from synth_assets.store.io_manager import IO_MANAGER_KEY


@dataclass(frozen=True)
class Stage:
    """One asset of the graph. ``shaped_by``: its entry in the fingerprint tables; ``source``:
    what the parent ``source`` stands for."""

    name: str
    lane: str
    shaped_by: str
    parents: tuple[str, ...]
    description: str
    source: str = "source"


# The check that no large share of rows went where nobody looks.
FEW_LOST = "few_lost"
SOURCE, IMPORT_SOURCE = "source", "import_source"
_HUMAN = ("human_train", "holdout")
_JUDGED = ("plan", "imported", "candidates", *_HUMAN)
# Only a dataset with a synthetic source has these; for others they are nobody's parents either.
_IMPORTING = frozenset({"imported_raw", "imported"})
# And these only one that generates; one that does neither has no synthetic rows at all.
_GENERATING = frozenset({"seeds", "plan", "candidates"})
_SYNTHETIC = frozenset({"synthetic", "rejects"})
_TABLES = (
    Stage("human_raw", "human", "human_raw", ("source",), "Source rows as found, landed by dlt."),
    Stage("human", "human", "human", ("human_raw",), "Usable human rows, each text once."),
    Stage("human_rejects", "human", "human", ("human_raw",), "Source rows not used, with reasons."),
    Stage("human_train", "human", "partition", ("human",), "Human rows to learn from."),
    Stage("holdout", "human", "partition", ("human",), "Human rows that only measure."),
    Stage("set_aside", "human", "partition", ("human",), "Human rows on neither side, and why."),
    Stage(
        "imported_raw",
        "synthetic",
        "imported_raw",
        ("source",),
        "Synthetic rows from elsewhere as found, landed by dlt.",
        source=IMPORT_SOURCE,
    ),
    Stage(
        "imported",
        "synthetic",
        "imported",
        ("imported_raw", "human_raw", "human", *_HUMAN),
        "Synthetic rows from elsewhere, to be judged, with their parents.",
    ),
    Stage("seeds", "plan", "seeds", ("human_train",), "Examples that prompts show."),
    Stage("plan", "plan", "plan", ("seeds", "human_train"), "Every call that may be made."),
    Stage(
        "candidates",
        "synthetic",
        "candidates",
        ("plan", "imported", *_HUMAN),
        "What the model wrote.",
    ),
    Stage("synthetic", "synthetic", "synthetic", _JUDGED, "Rows that passed."),
    Stage("rejects", "synthetic", "synthetic", _JUDGED, "Rows that did not."),
    Stage(
        "blend", "product", "blend", ("human_train", "synthetic"), "Human + synthetic, weighted."
    ),
    Stage("train", "product", "split", ("blend",), "What a model trains on."),
    Stage("validation", "product", "split", ("blend",), "Human rows to tune on."),
    Stage("eval", "product", "eval", ("holdout",), "Human rows to be judged by."),
    Stage("contribution", "evidence", "contribution", ("train", "eval", "human"), "Did it help?"),
)
# The leaves of the graph: whatever changes above changes one of them, or nothing that matters.
RELEASE = Stage(
    "release",
    "release",
    "release",
    ("train", "validation", "eval", "contribution", "rejects", "human_rejects", "set_aside"),
    "An immutable version: tables, manifest, card.",
)
# What the contribution of a dataset that allows rows made of unused human rows is counted from too.
_COUNTED = ("human_rejects", "set_aside", "imported", "seeds")
STAGES: dict[str, Stage] = {stage.name: stage for stage in (*_TABLES, RELEASE)}
COMMON_STAGES = {name: stage for name, stage in STAGES.items() if name not in _IMPORTING}


def stages_of(dataset: Dataset) -> dict[str, Stage]:
    """The stages that ``dataset`` has, in order of the graph."""
    spec = dataset.spec
    absent = set() if spec.synthetic_sources else set(_IMPORTING)
    if not spec.generates:
        absent |= _GENERATING if spec.synthetic_sources else _GENERATING | _SYNTHETIC
    return {name: stage for name, stage in STAGES.items() if name not in absent}


def sources_of(dataset: Dataset) -> list[str]:
    """The observed assets of ``dataset``: its human sources and, if any, its synthetic ones."""
    return [SOURCE, IMPORT_SOURCE] if dataset.spec.synthetic_sources else [SOURCE]


def free_stages(dataset: Dataset) -> list[str]:
    """The last stages before a model is asked; where none is, those that tell of the labels."""
    last = "plan" if dataset.spec.generates else "human_train"
    return [name for name in (last, "imported") if name in stages_of(dataset)]


def parents_of(dataset: Dataset, stage: str) -> list[str]:
    """``source`` and the stages that ``stage`` of ``dataset`` is made from."""
    present = {SOURCE, *stages_of(dataset)}
    allowed = stage == "contribution" and dataset.spec.validation.derived_from_unused == "allow"
    parents = (*STAGES[stage].parents, *(_COUNTED if allowed else ()))
    return [parent for parent in parents if parent in present]


def made_from(dataset: Dataset, stage: str) -> list[str]:
    """Names of the assets that ``stage`` is made from; a source by its own name."""
    own = {SOURCE: STAGES[stage].source}
    return [own.get(parent, parent) for parent in parents_of(dataset, stage)]


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


def out(
    dataset: Dataset,
    stage: str,
    *,
    required: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> dg.AssetOut:
    """One table of a ``multi_asset``; one that is not ``required`` may stay away."""
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
        is_required=required,
        freshness_policy=_freshness(dataset) if stage == RELEASE.name else None,
        metadata=metadata,
    )


def _freshness(dataset: Dataset) -> dg.FreshnessPolicy | None:
    """How old a release may become before Dagster calls it overdue."""
    declared = dataset.spec.refresh.fresh_within
    return dg.FreshnessPolicy.time_window(duration(declared)) if declared else None


def tables(
    dataset: Dataset,
    stages: Sequence[str],
    *,
    checks: Sequence[dg.AssetCheckSpec] = (),
    only_versions_of: Sequence[str] = (),
    pool: str | None = None,
    required: bool = True,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """A decorator: the function's arguments are named after the stage's parents.

    Every stage it makes has the same parents, so a function that writes two tables is one step.
    Parents in ``only_versions_of`` are depended on, but their tables are not loaded.
    """
    names = parents_of(dataset, stages[0])
    unloaded = {SOURCE, *only_versions_of}
    source = {SOURCE: STAGES[stages[0]].source}

    def declare(function: Callable[..., Any]) -> dg.AssetsDefinition:
        described = {stage: _described(dataset, stage, function) for stage in stages}
        return dg.multi_asset(
            name=step_name(dataset, stages[0]),
            outs={
                stage: out(dataset, stage, required=required, metadata=described[stage])
                for stage in stages
            },
            ins={n: dg.AssetIn(key=key(dataset, n)) for n in names if n not in unloaded},
            deps=[key(dataset, source.get(name, name)) for name in names if name in unloaded],
            check_specs=list(checks),
            group_name=None,
            can_subset=False,
            pool=pool,
            op_tags={"synth/dataset": dataset.name},
        )(function)

    return declare


def _described(dataset: Dataset, stage: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Where the stage's columns come from, and the files that its code and declaration are in."""
    return {
        COLUMN_LINEAGE: column_lineage(dataset, stage),
        "dagster/code_references": code_references(dataset, stage, function),
    }


def check(
    dataset: Dataset, stage: str, name: str, description: str, *, blocking: bool = True
) -> dg.AssetCheckSpec:
    """A check that the stage's own step evaluates; a blocking one holds everything downstream."""
    return dg.AssetCheckSpec(
        name=name, asset=key(dataset, stage), description=description, blocking=blocking
    )
