"""A Hugging Face dataset folder: Parquet shards per split, and a card that says how to read them.

The stratum of a classification becomes a ``ClassLabel``, as that library stores it: whole numbers,
whose names are in the card and in the metadata of every shard, so that a shard alone says them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from synth_assets.errors import SynthError
from synth_assets.exports.batches import batches, text_bytes

# Text of one shard, at most, on average: what is in memory at once.
SHARD_BYTES = 32 * 2**20
# More classes than this are no closed set that a reader would want to see listed.
MOST_CLASSES = 1_000
_DTYPES: Mapping[pl.DataType, str] = {
    pl.String(): "string",
    pl.Boolean(): "bool",
    pl.Int8(): "int8",
    pl.Int16(): "int16",
    pl.Int32(): "int32",
    pl.Int64(): "int64",
    pl.UInt32(): "uint32",
    pl.UInt64(): "uint64",
    pl.Float32(): "float32",
    pl.Float64(): "float64",
}


@dataclass(frozen=True)
class Classes:
    """A column whose values are stored as positions in ``names``."""

    column: str
    names: tuple[str, ...]


def common_schema(splits: Sequence[pl.LazyFrame]) -> pl.Schema:
    """Columns of all splits, in the order they are first met."""
    found: dict[str, pl.DataType] = {}
    for rows in splits:
        for name, kind in rows.collect_schema().items():
            found.setdefault(name, kind)
    return pl.Schema(found)


def write_shards(
    rows: pl.LazyFrame,
    folder: Path,
    split: str,
    *,
    schema: pl.Schema,
    classes: Classes | None = None,
) -> int:
    """Write ``<split>-00000-of-00001.parquet`` ... to ``folder``; the number of rows.

    Columns of ``schema`` that ``rows`` has not are null. No rows, no shard: a split without rows
    cannot be loaded.
    """
    columns = set(rows.collect_schema())
    total = int(rows.select(pl.len()).collect().item())
    shards = max(1, -(-text_bytes(rows) // SHARD_BYTES))
    per_shard = max(1, -(-total // shards))
    count = -(-total // per_shard)
    whole = rows.select(
        pl.col(name) if name in columns else pl.lit(None, kind).alias(name)
        for name, kind in schema.items()
    )
    if classes:
        whole = whole.with_columns(_as_positions(classes))
    for place in range(count):
        shard = pl.concat(list(batches(whole.slice(place * per_shard, per_shard))))
        shard.rechunk().write_parquet(
            folder / f"{split}-{place:05}-of-{count:05}.parquet",
            row_group_size=100_000,
            metadata={
                "huggingface": json.dumps({"info": {"features": _features(schema, classes)}})
            },
        )
    return total


def _features(schema: pl.Schema, classes: Classes | None) -> dict[str, Any]:
    """The features as that library writes them into Parquet: its own way, unlike the card's."""
    found: dict[str, Any] = {}
    for name, kind in schema.items():
        if classes and name == classes.column:
            found[name] = {"names": list(classes.names), "_type": "ClassLabel"}
        elif isinstance(kind, pl.List):
            inner = {"dtype": _dtype(name, kind.inner), "_type": "Value"}
            found[name] = {"feature": inner, "_type": "Sequence"}
        else:
            found[name] = {"dtype": _dtype(name, kind), "_type": "Value"}
    return found


def _as_positions(classes: Classes) -> pl.Expr:
    names = pl.Series(classes.names, dtype=pl.String)
    positions = pl.Series(range(len(names)), dtype=pl.Int64)
    return pl.col(classes.column).replace_strict(names, positions, return_dtype=pl.Int64)


def card_features(schema: pl.Schema, classes: Classes | None) -> list[dict[str, Any]]:
    """``dataset_info.features`` of a card.

    Raises:
        SynthError: a column of a type that Hugging Face datasets have no name for.
    """
    found: list[dict[str, Any]] = []
    for name, kind in schema.items():
        if classes and name == classes.column:
            names = {str(place): value for place, value in enumerate(classes.names)}
            found.append({"name": name, "dtype": {"class_label": {"names": names}}})
        elif isinstance(kind, pl.List):
            # "sequence" is read by old and new versions, "list" by new ones only.
            found.append({"name": name, "sequence": _dtype(name, kind.inner)})
        else:
            found.append({"name": name, "dtype": _dtype(name, kind)})
    return found


def _dtype(name: str, kind: Any) -> str:
    try:
        return _DTYPES[kind]
    except KeyError:
        raise SynthError(
            f"the hf format has no type for {kind}", where=name, fix="export parquet instead"
        ) from None
