"""What Dagster is told about an asset's columns and code: where the one and the other come from.

Paths of this machine stand in definitions only, never in a materialisation, a table or a release.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetKey, TableColumnDep, TableColumnLineage

from synth_assets.lifecycle.columns import Names, Parent, column_parents, raw_parents
from synth_assets.spec.load import Dataset
from synth_assets.spec.sources import Role
from synth_assets.tasks import task_for

COLUMN_LINEAGE = "dagster/column_lineage"
SOURCES: dict[Role, str] = {"human": "source", "synthetic": "import_source"}
# Stages that read a file of the dataset's folder besides its declaration.
_READS_PROMPT = frozenset({"plan", "candidates"})
_READS_SEEDS = frozenset({"seeds"})


def names_of(dataset: Dataset) -> Names:
    """What the task and the source of a dataset call their columns."""
    task, declared = task_for(dataset.spec), dataset.spec.task
    cells = {name: getattr(declared, name, None) for name in task.payload}
    known = {name: cell for name, cell in cells.items() if isinstance(cell, str)}
    group = list(dataset.spec.partition.group_by)
    return Names(
        payload=task.payload,
        text=task.text,
        stratum=task.stratum,
        cells=known,
        group=group or [known[task.text]] if task.text in known else group,
        imports=bool(dataset.spec.synthetic_sources),
        generates=dataset.spec.generates,
        fold=dataset.spec.partition.column,
        official=dataset.spec.official,
        keeps_copies=dataset.spec.partition.near_copies == "keep",
    )


def column_lineage(dataset: Dataset, stage: str) -> TableColumnLineage:
    """Every declared column of a stage with the parents' columns it comes from."""
    return _lineage(dataset, column_parents(stage, names_of(dataset)))


def raw_lineage(dataset: Dataset, columns: Sequence[str], role: Role) -> TableColumnLineage:
    """As ``column_lineage``, of a landed stage, whose columns are known once it is landed."""
    return _lineage(dataset, raw_parents(columns, source=SOURCES[role]))


def code_references(
    dataset: Dataset, stage: str, function: Callable[..., Any]
) -> dg.CodeReferencesMetadataValue:
    """The function that makes a stage, the declaration, and what else the stage reads of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.CodeReferencesMetadataValue(
            code_references=list(_references(dataset, stage, function))
        )


def _references(
    dataset: Dataset, stage: str, function: Callable[..., Any]
) -> Iterator[dg.LocalFileCodeReference]:
    code = function.__code__
    yield _file(Path(code.co_filename), code.co_firstlineno, "how it is made")
    yield _file(dataset.file, 1, "what is declared")
    if stage in _READS_PROMPT:
        yield _file(dataset.prompt.file, 1, "the prompt")
    if stage in _READS_SEEDS and dataset.handwritten_seeds:
        seeds = dataset.folder / (dataset.spec.seeds.file or "seeds.jsonl")
        yield _file(seeds, 1, "hand-written seeds")


def _file(path: Path, line: int, label: str) -> dg.LocalFileCodeReference:
    return dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)


def _lineage(dataset: Dataset, parents: dict[str, list[Parent]]) -> TableColumnLineage:
    return TableColumnLineage(
        {
            column: [TableColumnDep(AssetKey([dataset.name, stage]), name) for stage, name in found]
            for column, found in parents.items()
        }
    )
