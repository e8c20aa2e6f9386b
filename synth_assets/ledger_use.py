"""Which calls of the ledger stored tables still refer to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from synth_assets.errors import SynthError

# Enough of an id to tell calls apart; two that share it are at worst both kept.
_DIGITS: Final = 16


def used_requests(store: Path) -> Callable[[str], bool]:
    """Tells of a request id whether any version of any ``candidates`` table refers to it.

    Holds eight bytes per request. Raises SynthError when a table cannot be read: nothing may be
    thought unused because of that.
    """
    found = np.empty(0, dtype=np.uint64)
    for path in sorted(store.glob("*/candidates/*.parquet")):
        found = np.union1d(found, _used_in(path))

    def is_used(request_id: str) -> bool:
        key = np.uint64(int(request_id[:_DIGITS], 16))
        at = int(np.searchsorted(found, key))
        return at < len(found) and bool(found[at] == key)

    return is_used


def _used_in(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    key = pl.col("request_id").str.slice(0, _DIGITS).str.to_integer(base=16, dtype=pl.UInt64)
    try:
        frame = pl.scan_parquet(path).select(key.unique()).drop_nulls().collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SynthError(
            f"cannot tell which calls this table uses: {error}",
            where=str(path),
            fix="remove the file if it is broken, or prune with --also-used",
        ) from error
    return frame["request_id"].to_numpy()
