"""Landing the sources of one role: what ``human_raw`` and ``imported_raw`` have in common."""

from __future__ import annotations

from itertools import chain
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets.references import COLUMN_LINEAGE, raw_lineage
from synth_assets.assets.source import drop_copies, look
from synth_assets.assets.workbench import Workbench
from synth_assets.sources.landing import land, read_landed
from synth_assets.spec.load import Dataset
from synth_assets.spec.sources import Role


def load(
    dataset: Dataset, workbench: Workbench, role: Role, *, into: str
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The raw frame of all sources of one role, landed under the name ``into``; its metadata.

    Raises:
        SourceError: what has landed before stays.
    """
    seen, version = look(dataset, workbench.home, role)
    warnings = [source.warning for source in seen if source.warning]
    for warning in warnings:
        workbench.notify(f"{dataset.name}: {warning}")
    landed = land(
        chain.from_iterable(source.frames() for source in seen),
        dataset=into,
        home=workbench.home.root,
        source_version=version,
    )
    left_out = [said for source in seen for said in source.remarks.told()]
    for said in left_out:
        workbench.notify(f"{dataset.name}: {said}")
    drop_copies(dataset, workbench.home, seen)
    raw = read_landed(landed)
    return raw, {
        "landed_in": dg.MetadataValue.path(str(landed.database)),
        "load_id": landed.load_id,
        "files": sum(len(source.files) for source in seen),
        "how_read": [source.told for source in seen if source.told],
        "warnings": [*warnings, *left_out],
        COLUMN_LINEAGE: raw_lineage(dataset, raw.columns, role),
        **{f"problem/{name}": count for name, count in landed.problems.items()},
    }
