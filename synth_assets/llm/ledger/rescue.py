"""Repairing a damaged ledger file: every readable row moves to a new file, the old one is kept.

Other processes may have the file open. They notice after their next commit that the file was
replaced (its inode changed) and write that batch again; opening waits for a running repair.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock

from synth_assets.llm.ledger.rows import StoredAnswer

log = logging.getLogger(__name__)

TABLES = ("calls", "failures", "capabilities", "unseen", "pruned", "batches", "batch_requests")
_SUFFIXES = ("", "-wal", "-shm")
_PAGE_OF_ROWS = 500
_LAST_ROWID = 2**62


def opening_lock(path: Path) -> FileLock:
    """Held while a ledger is opened or repaired."""
    return FileLock(f"{path}.lock")


def rescued(path: Path, *, create: Callable[[Path], sqlite3.Connection]) -> None:
    """Replaces the damaged file by a sound one with its readable rows.

    ``create`` makes an empty ledger. The damaged file stays beside it as ``*.damaged-<time>``.
    Does nothing when another process has repaired it first.
    """
    with opening_lock(path):
        if _is_sound(path):
            return
        fresh = path.with_name(f"{path.name}.rescue")
        for suffix in _SUFFIXES:
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        target = create(fresh)
        copied = dict.fromkeys(TABLES, 0)
        source: sqlite3.Connection | None = None
        try:
            with contextlib.suppress(sqlite3.DatabaseError):
                source = sqlite3.connect(path, timeout=5.0, isolation_level=None)
                # Else SQLite refuses a file that is shorter than its header says.
                source.execute("PRAGMA writable_schema=ON")
                with contextlib.suppress(sqlite3.DatabaseError):
                    # Nobody may commit between our copying and the swap.
                    source.execute("BEGIN IMMEDIATE")
                copied = {table: _copied(source, target, table) for table in TABLES}
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            target.close()
            aside = _swapped(path, fresh)
        finally:
            if source is not None:
                source.close()
        log.warning("ledger: %s repaired, rows kept: %s; damaged file: %s", path, copied, aside)


def _is_sound(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError:
        return False


def _swapped(path: Path, fresh: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    fresh.replace(path)
    for suffix in _SUFFIXES[1:]:
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    return aside


def _copied(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> int:
    columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})")]
    insert = (
        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) "
        f"VALUES ({', '.join('?' * len(columns))})"
    )
    count = 0
    target.execute("BEGIN")
    for row in _readable_rows(source, table, columns):
        if table != "calls" or _is_intact(dict(zip(columns, row, strict=True))):
            count += target.execute(insert, row).rowcount
    target.execute("COMMIT")
    return count


def _is_intact(call: dict[str, Any]) -> bool:
    try:
        return StoredAnswer(*(call[name] for name in StoredAnswer._fields)).intact
    except TypeError:
        return False


def _readable_rows(
    source: sqlite3.Connection, table: str, columns: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Rows in rowid order; where pages are broken, the next readable rowid is searched."""
    select = (
        f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED "
        "WHERE rowid >= ? ORDER BY rowid LIMIT ?"
    )
    start, limit = 0, _PAGE_OF_ROWS
    while True:
        rows = _page(source, select, start, limit)
        if rows is None and limit > 1:
            limit = max(1, limit // 8)
        elif rows is None:
            following = _next_readable(source, select, start)
            if following is None:
                return
            start = following
        elif not rows:
            return
        else:
            for row in rows:
                yield row[1:]
            start, limit = rows[-1][0] + 1, _PAGE_OF_ROWS


def _page(
    source: sqlite3.Connection, select: str, start: int, limit: int
) -> list[tuple[Any, ...]] | None:
    """Some rows from a rowid on; None when they cannot be read, or are not what they seem."""
    try:
        rows = source.execute(select, (start, limit)).fetchall()
    except sqlite3.DatabaseError:
        return None
    # A page that was half overwritten may hand out cells of anywhere: those go backwards.
    rowids = [start - 1, *(row[0] for row in rows)]
    sound = all(before < after for before, after in pairwise(rowids))
    return rows if sound else None


def _next_readable(source: sqlite3.Connection, select: str, broken: int) -> int | None:
    """The least rowid after ``broken`` from which a row can be read: doubling, then bisection."""

    def reads(rowid: int) -> bool:
        return _page(source, select, rowid, 1) is not None

    step = 1
    while not reads(broken + step):
        step *= 2
        if step > _LAST_ROWID:
            return None
    low, high = broken + step // 2, broken + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reads(middle) else (middle, high)
    return high
