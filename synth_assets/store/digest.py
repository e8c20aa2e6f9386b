"""The data version of a table: a hash of its schema and rows, never of file bytes.

The encoding is spelled out here so that it depends on no library's memory layout: per batch of
rows and per column, a null mask, then values (integers and floats little-endian; strings and
binaries as lengths, then bytes; lists as lengths, then their flattened items; structs by field).
Chunking, thread count and Parquet settings do not matter; row order, column order, column types
do. NaN and -0.0 are hashed as they are stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

DIGEST_VERSION = b"synth-table-1"
BATCH_ROWS = 65_536


def frame_digest(frame: pl.DataFrame, *, volatile: Sequence[str] = ()) -> str:
    """sha256 (hex) of ``frame`` without its ``volatile`` columns (load ids, timestamps)."""
    stable = frame.drop(volatile, strict=False)
    return digest_batches(stable.schema, stable.iter_slices(BATCH_ROWS))


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_digest(path: Path, *, volatile: Sequence[str] = ()) -> str:
    """``frame_digest`` of the table in a Parquet file, read in batches.

    Raises what polars raises on a file that is no good Parquet (a panic of its core among it).
    """
    table = pl.scan_parquet(path, glob=False).drop(volatile, strict=False)
    rows = int(table.select(pl.len()).collect().item())
    batches = (table.slice(start, BATCH_ROWS).collect() for start in range(0, rows, BATCH_ROWS))
    return digest_batches(table.collect_schema(), batches)


def digest_batches(schema: pl.Schema, batches: Iterable[pl.DataFrame]) -> str:
    """The same over a stream of frames of one schema, each of ``BATCH_ROWS`` rows but the last."""
    state = hashlib.sha256(DIGEST_VERSION)
    for name, dtype in schema.items():
        _add(state, name.encode())
        _add(state, str(dtype).encode())
    for batch in batches:
        state.update(batch.height.to_bytes(8, "little"))
        for column in batch.get_columns():
            _add_column(state, column)
    return state.hexdigest()


def _add(state: hashlib._Hash, data: bytes) -> None:
    state.update(len(data).to_bytes(8, "little"))
    state.update(data)


def _add_column(state: hashlib._Hash, column: pl.Series) -> None:
    _add(state, column.is_null().cast(pl.UInt8).to_numpy().tobytes())
    dtype = column.dtype
    if isinstance(dtype, pl.List):
        lengths = column.list.len().fill_null(0)
        _add(state, lengths.cast(pl.UInt64).to_numpy().tobytes())
        items = column.filter(lengths > 0).explode()
        _add_column(state, items)
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            _add_column(state, column.struct.field(field.name))
    elif dtype in (pl.String, pl.Categorical) or isinstance(dtype, pl.Enum):
        texts = column.cast(pl.String).fill_null("")
        _add(state, texts.str.len_bytes().cast(pl.UInt64).to_numpy().tobytes())
        _add(state, str(texts.str.join("").item()).encode("utf-8"))
    elif dtype == pl.Binary:
        values = [value or b"" for value in column]
        _add(state, b"".join(len(value).to_bytes(8, "little") + value for value in values))
    elif dtype == pl.Null:
        _add(state, len(column).to_bytes(8, "little"))
    elif dtype.is_float():
        _add(state, column.fill_null(0).to_numpy().astype("<f8").tobytes())
    elif dtype == pl.Boolean:
        _add(state, column.fill_null(False).cast(pl.UInt8).to_numpy().tobytes())
    elif dtype.is_integer() or dtype.is_temporal():
        _add(state, column.to_physical().fill_null(0).cast(pl.Int64).to_numpy().tobytes())
    else:
        raise TypeError(f"no canonical encoding for column {column.name!r} of type {dtype}")
