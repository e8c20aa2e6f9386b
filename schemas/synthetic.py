"""Synthetic rows that passed screening, each with the call and the seeds it came from."""

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


def synthetic_rows(
    columns: Sequence[str], allowed: Mapping[str, Collection[str]]
) -> pa.DataFrameSchema:
    """Contract of ``synthetic``."""
    return pa.DataFrameSchema(
        {
            "record_id": record_id(),
            "origin": one_of("synthetic"),
            **payload(columns, allowed),
            **{name: pa.Column(kind) for name, kind in PROVENANCE.items()},
        },
        strict=True,
    )
