"""Tables that models see: train, validation, eval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandera.polars as pa
import polars as pl

from schemas import one_of, payload, record_id
from schemas.synthetic import PROVENANCE


def training_rows(
    columns: Sequence[str],
    allowed: Mapping[str, Collection[str]],
    *,
    split: str,
    origins: Sequence[str],
) -> pa.DataFrameSchema:
    """Contract of one split; ``origins`` says whether synthetic rows may stand in it."""
    provenance = (
        {name: pa.Column(kind, nullable=True) for name, kind in PROVENANCE.items()}
        if "synthetic" in origins
        else {}
    )
    return pa.DataFrameSchema(
        {
            "record_id": record_id(),
            "origin": one_of(*origins),
            **payload(columns, allowed),
            "weight": pa.Column(pl.Float64, pa.Check.gt(0)),
            "split": one_of(split),
            "source": pa.Column(pl.String, nullable=True),
            "source_row": pa.Column(pl.Int64, nullable=True),
            **provenance,
        },
        strict=True,
    )
