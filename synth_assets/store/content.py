"""Tables on disk by content: ``<root>/<dataset>/<stage>/<data version>.parquet``.

A file that exists is complete and never changes: it is written beside its place, flushed to the
disk and renamed. Beside each lies ``<data version>.sha256`` with the hash of the file's *bytes*
(in the format of ``sha256sum``): the data version is a hash of rows, which a flipped byte in
Parquet's padding or metadata may leave as they are.

The table comes first, its checksum second. A kill between the two leaves a table without one; the
next ``put`` of the content writes both anew, and ``synth verify`` adds the checksum once the rows
have proved to be right. A table that no longer fits its checksum is replaced by the next ``put``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from filelock import FileLock

from synth_assets.errors import SynthError
from synth_assets.store.digest import file_sha256, frame_digest

TABLE, CHECKSUM = ".parquet", ".sha256"
WRITING_LOCK = ".writing.lock"


@dataclass(frozen=True)
class StoredTable:
    """One version of one stage's table."""

    path: Path
    data_version: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class ContentStore:
    root: Path

    def put(
        self, dataset: str, stage: str, frame: pl.DataFrame, *, volatile: Sequence[str] = ()
    ) -> StoredTable:
        """Store ``frame``; its ``volatile`` columns are kept in the file but not in the version."""
        version = frame_digest(frame, volatile=volatile)
        path = self.path(dataset, stage, version)
        with self.writing(dataset):
            if _intact(path):
                os.utime(path)  # in use again: garbage that was listed before is none now
            else:
                checksum_path(path).unlink(missing_ok=True)
                write_atomically(path, lambda temporary: frame.write_parquet(temporary))
                write_checksum(path)
        return StoredTable(path, version, frame.height, path.stat().st_size)

    def path(self, dataset: str, stage: str, data_version: str) -> Path:
        return self.root / dataset / stage / f"{data_version}{TABLE}"

    def scan(self, dataset: str, stage: str, data_version: str) -> pl.LazyFrame:
        """One version of a table, lazily.

        Raises:
            SynthError: when the file is gone.
        """
        path = self.path(dataset, stage, data_version)
        if not path.exists():
            raise SynthError(
                f"the stored table {dataset}/{stage} is gone",
                where=str(path),
                fix=f"materialise it again: synth run {dataset} --force {stage}",
            )
        return pl.scan_parquet(path, glob=False)

    @contextmanager
    def writing(self, dataset: str) -> Iterator[None]:
        """Alone in changing the dataset's tables, over all processes."""
        lock = self.root / dataset / WRITING_LOCK
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield


def checksum_path(table: Path) -> Path:
    return table.with_suffix(CHECKSUM)


def read_checksum(table: Path) -> str | None:
    """The sha256 that the table's bytes had when they were written; None when none is kept.

    Whatever is not exactly one line about this table is returned as it is: no hash equals it.
    """
    try:
        text = checksum_path(table).read_bytes().decode("utf-8", "backslashreplace")
    except FileNotFoundError:
        return None
    digest, _, rest = text.partition("  ")
    return digest if rest == f"{table.name}\n" else text


def write_checksum(table: Path) -> None:
    """Keep the sha256 of the table's bytes as they are now beside it."""
    line = f"{file_sha256(table)}  {table.name}\n"
    write_atomically(checksum_path(table), lambda temporary: temporary.write_bytes(line.encode()))


def _intact(table: Path) -> bool:
    kept = read_checksum(table)
    return kept is not None and table.is_file() and file_sha256(table) == kept


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then make it ``path`` in one durable step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut (no-op where folders cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
