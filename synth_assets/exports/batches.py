"""A table a piece at a time, so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

FIRST_ROWS = 4_096
MOST_ROWS = 65_536
TARGET_BYTES = 32 * 2**20


def batches(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """``rows`` in order, in frames of about ``TARGET_BYTES``; none when there are no rows.

    Slices, not a streaming sink: a slice of a Parquet file is read alone, so that the peak is
    that of one batch.
    """
    offset, size = 0, FIRST_ROWS
    while True:
        batch = rows.slice(offset, size).collect()
        if batch.height:
            yield batch
        if batch.height < size:
            return
        offset += batch.height
        row_bytes = max(1, _value_bytes(batch) // batch.height)
        size = min(MOST_ROWS, max(1, TARGET_BYTES // row_bytes))


def _value_bytes(batch: pl.DataFrame) -> int:
    """What the values take, roughly. Of the values alone, so that batches are the same anywhere."""
    found = 16 * batch.width * batch.height + _text_bytes(batch)
    for column in batch.iter_columns():
        if isinstance(column.dtype, pl.List):
            found += 48 * int(column.list.len().sum())
    return found


def text_bytes(rows: pl.LazyFrame) -> int:
    """UTF-8 bytes of all text columns together: what decides how many shards there are."""
    return sum(map(_text_bytes, batches(rows)))


def _text_bytes(batch: pl.DataFrame) -> int:
    texts = (column for column in batch.iter_columns() if column.dtype == pl.String)
    return sum(int(column.str.len_bytes().sum()) for column in texts)
