"""Human rows: read, deduplicated, and (from ``human_train`` and ``holdout`` on) on a side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandera.polars as pa
import polars as pl

from schemas import one_of, payload, record_id


def human_rows(
    columns: Sequence[str],
    allowed: Mapping[str, Collection[str]],
    splits: Sequence[str] = (),
    *,
    official: bool = False,
    keeps_copies: bool = False,
) -> pa.DataFrameSchema:
    """Contract of ``human``; with ``splits``, of ``human_train`` or ``holdout``.

    ``official``: the rows of ``human`` say their side; ``keeps_copies``: those of ``human_train``
    why they are there although they are like an unseen row (null: they are not).
    """
    side = {"side": one_of("train", "validation", "holdout")} if official and not splits else {}
    kept = {"kept_despite": pa.Column(pl.String, nullable=True)} if keeps_copies else {}
    split = {"split": one_of(*splits)} if splits else {}
    return pa.DataFrameSchema(
        {
            "record_id": record_id(),
            "origin": one_of("human"),
            **payload(columns, allowed),
            "source": pa.Column(pl.String),
            "source_row": pa.Column(pl.Int64, pa.Check.ge(1)),
            "group": pa.Column(pl.String),
            **side,
            **split,
            **kept,
        },
        strict=True,
    )
