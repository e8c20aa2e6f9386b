"""Tables on disk by content: ``<root>/<dataset>/<stage>/<data version>.parquet``.

A file that exists is complete and never changes: it is written beside its place, flushed to the
disk and renamed. Two writers of one content make the same file; the last rename wins harmlessly.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from synth_assets.errors import SynthError
from synth_assets.store.digest import frame_digest


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
        if not path.exists():
            write_atomically(path, lambda temporary: frame.write_parquet(temporary))
        return StoredTable(path, version, frame.height, path.stat().st_size)

    def path(self, dataset: str, stage: str, data_version: str) -> Path:
        return self.root / dataset / stage / f"{data_version}.parquet"

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
        return pl.scan_parquet(path)


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
