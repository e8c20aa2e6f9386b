"""Synthetic rows that passed screening, each with the call and the seeds it came from.

An imported row has ``import:SOURCE`` for a call and its parents for seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandera.polars as pa
import polars as pl

from schemas import one_of, payload, record_id

PROVENANCE: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "item": pl.Int32(),
    "seed_ids": pl.List(pl.String),
    "prompt_version": pl.String(),
    "model": pl.String(),
    "cell": pl.String(),
    "attributes": pl.String(),
}
# Where an imported row stands: as human rows say it, and the load that brought it.
IMPORTED_FROM: dict[str, pl.DataType] = {
    "source": pl.String(),
    "source_row": pl.Int64(),
    "_load_id": pl.String(),
}


def synthetic_rows(
    columns: Sequence[str], allowed: Mapping[str, Collection[str]], *, imported: bool = False
) -> pa.DataFrameSchema:
    """Contract of ``synthetic``; ``imported``: of a dataset that has a synthetic source."""
    found_in = IMPORTED_FROM if imported else {}
    return pa.DataFrameSchema(
        {
            "record_id": record_id(),
            "origin": one_of("synthetic"),
            **payload(columns, allowed),
            **{name: pa.Column(kind) for name, kind in PROVENANCE.items()},
            **{name: pa.Column(kind, nullable=True) for name, kind in found_in.items()},
        },
        strict=True,
    )
