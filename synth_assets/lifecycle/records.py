"""Record identity: what makes two rows the same row, on any machine, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

ID_CHARS = 32


def digest(*parts: str) -> str:
    """sha256 (hex) of parts, each length-prefixed so that no two part lists collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def unit(*parts: str) -> float:
    """A number in [0, 1), uniform over keys and the same everywhere (53 bits of sha256)."""
    return int(digest(*parts)[:14], 16) / 16**14 if parts else 0.0


def column_digests(frame: pl.DataFrame, columns: Sequence[str], *salt: str) -> pl.Series:
    """One sha256 per row over ``columns`` (String, not null), salted."""
    rows = frame.select(columns).iter_rows()
    return pl.Series("digest", [digest(*salt, *row) for row in rows], dtype=pl.String)


def with_record_id(frame: pl.DataFrame, payload: Sequence[str], *, kind: str) -> pl.DataFrame:
    """``frame`` with ``record_id`` first: 128 bits of the content hash of the payload columns.

    Null payload cells (malformed answers) hash as empty; such rows never leave the rejects.
    """
    filled = frame.select(pl.col(payload).fill_null(""))
    ids = column_digests(filled, payload, kind).str.slice(0, ID_CHARS).alias("record_id")
    return frame.select(ids, pl.all().exclude("record_id"))
