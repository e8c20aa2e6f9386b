"""Releases on disk: immutable folders named by their content, and which one is current.

``<root>/<dataset>/<version>/`` appears complete, by one rename, or not at all. Its files are
read-only; ``<root>/<dataset>/current`` holds the version that is in use.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from synth_assets.errors import SynthError, UsageError, shown
from synth_assets.lifecycle.release import VERSION_CHARS, manifest_bytes
from synth_assets.store.content import sync_folder, write_atomically
from synth_assets.store.digest import file_sha256

MANIFEST = "manifest.json"
CURRENT, PREVIOUS = "current", "previous"
# What is left of releases that were withdrawn.
ERASED = "erased"
READ_ONLY = 0o444
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_CHARS}}}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ReleaseStore:
    root: Path

    def publish(
        self,
        dataset: str,
        manifest: Mapping[str, Any],
        tables: Mapping[str, Path],
        texts: Mapping[str, str],
    ) -> Path:
        """Write the release (tables copied from the store) and make it current.

        A version that exists already and is whole is left untouched: its name says that it is the
        same. One that was damaged is put in order.

        Raises:
            SynthError: a file that is not what the manifest says of it.
        """
        folder = self.folder(dataset, str(manifest["version"]))
        if not _whole(folder, manifest):
            self._build(folder, manifest, tables, texts)
        self.make_current(dataset, folder.name)
        return folder

    def make_current(self, dataset: str, version: str) -> None:
        """Point ``current`` to a version, in one durable step."""
        pointer = self.root / dataset / CURRENT
        write_atomically(pointer, lambda path: path.write_bytes(f"{version}\n".encode()))

    def folder(self, dataset: str, version: str) -> Path:
        return self.root / dataset / version

    def current(self, dataset: str) -> str | None:
        """The version in use; None when there is none (or the pointer names none)."""
        try:
            found = (self.root / dataset / CURRENT).read_bytes().decode("utf-8", "replace").strip()
        except OSError:
            return None
        return found if _VERSION.fullmatch(found) else None

    def datasets(self) -> list[str]:
        """Datasets that have something released, or had, sorted."""
        return sorted(
            p.name for p in _folders(self.root) if self.versions(p.name) or self.withdrawn(p.name)
        )

    def versions(self, dataset: str) -> list[str]:
        """Every released version, the oldest first (by the time its manifest was written)."""
        found = [p for p in _folders(self.root / dataset) if _VERSION.fullmatch(p.name)]
        return [p.name for p in sorted(found, key=lambda p: (created(p), p.name))]

    def find(self, dataset: str, which: str) -> str:
        """The version that ``which`` means: a prefix of one, ``current``, or ``previous``.

        ``previous`` is the newest of the releases made before the current one.

        Raises:
            UsageError: none such, or a prefix of several.
        """
        versions, now = self.versions(dataset), self.current(dataset)
        if which == CURRENT:
            found = [v for v in versions if v == now]
        elif which == PREVIOUS:
            found = versions[: versions.index(now)][-1:] if now in versions else []
        else:
            found = [v for v in versions if which and v.startswith(which)]
        if len(found) == 1:
            return found[0]
        gone = [v for v in self.withdrawn(dataset) if which and v.startswith(which)]
        if gone and not found:
            raise UsageError(
                f"the release {gone[0]} of {shown(dataset)} was erased: a row that it held had to "
                "be deleted",
                fix=f"one of: {', '.join([*versions[-10:], CURRENT, PREVIOUS])}"
                if versions
                else f"synth run {dataset} releases what is left",
            )
        several = f"{shown(which)} is the beginning of {len(found)} releases"
        raise UsageError(
            several if len(found) > 1 else f"no release {shown(which)} of {shown(dataset)}",
            fix=f"one of: {', '.join([*versions[-10:], CURRENT, PREVIOUS])}"
            if versions
            else f"release something first: synth run {dataset}",
        )

    def withdrawn(self, dataset: str) -> list[str]:
        """Versions of which only a tombstone is left, sorted."""
        found = (self.root / dataset / ERASED).glob("*.json")
        return sorted(path.stem for path in found if _VERSION.fullmatch(path.stem))

    def withdraw(self, dataset: str, version: str) -> None:
        """Delete a release; ``current`` moves to the newest that is left, or to none."""
        folder = self.folder(dataset, version)
        if self.current(dataset) == version:
            left = [one for one in self.versions(dataset) if one not in self.withdrawn(dataset)]
            if left:
                self.make_current(dataset, left[-1])
            else:
                (self.root / dataset / CURRENT).unlink(missing_ok=True)
        if folder.is_dir():
            aside = folder.with_name(f".{version}.{ERASED}")
            folder.rename(aside)
            sync_folder(folder.parent)
            shutil.rmtree(aside)

    def manifest(self, dataset: str, version: str) -> dict[str, Any]:
        """What a release says about itself.

        Raises:
            SynthError: when it cannot be read.
        """
        return read_manifest(self.folder(dataset, version))

    @staticmethod
    def splits(folder: Path) -> dict[str, pl.LazyFrame]:
        """The rows of a release: split -> scan of its own file."""
        paths = {split: folder / f"{split}.parquet" for split in ("train", "validation", "eval")}
        return {split: pl.scan_parquet(path, glob=False) for split, path in paths.items()}

    def _build(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        tables: Mapping[str, Path],
        texts: Mapping[str, str],
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for name, path in tables.items():
                _copy(path, work / name, str(manifest["files"].get(name, {}).get("sha256")))
            for name, text in texts.items():
                (work / name).write_bytes(text.encode("utf-8"))
            (work / MANIFEST).write_bytes(manifest_bytes(manifest))
            for file in work.iterdir():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
                file.chmod(READ_ONLY)
            sync_folder(work)
            work.chmod(0o755)
            _put_in_place(work, folder, manifest)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a release's folder, unverified.

    Raises:
        SynthError: when it cannot be read or is no JSON object.
    """
    path = folder / MANIFEST
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SynthError(f"the manifest cannot be read: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise SynthError("the manifest is no JSON object", where=str(path))
    return found


def created(folder: Path) -> int:
    """When a release was written (its manifest's time), in nanoseconds."""
    try:
        return (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _whole(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the folder holds exactly the files of ``manifest``, byte for byte."""
    files = manifest["files"]
    try:
        return (
            (folder / MANIFEST).read_bytes() == manifest_bytes(manifest)
            and {path.name for path in folder.iterdir()} == {MANIFEST, *files}
            and all(file_sha256(folder / name) == one["sha256"] for name, one in files.items())
        )
    except OSError:
        return False


def _copy(source: Path, target: Path, expected: str) -> None:
    """Copy a file and hash what was copied.

    Raises:
        SynthError: when that is not ``expected``.
    """
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            writing.write(chunk)
    if digest.hexdigest() != expected:
        raise SynthError(
            f"not the file that is to be released: sha256 {digest.hexdigest()[:12]}, not "
            f"{expected[:12]}",
            where=str(source),
            fix="synth verify says what is damaged",
        )


def _put_in_place(work: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    aside = work.with_name(f"{work.name}.damaged")
    if folder.exists() and not _whole(folder, manifest):
        folder.rename(aside)
    try:
        work.rename(folder)
    except OSError:
        if not _whole(folder, manifest):  # else another writer was first with the same content
            raise
    shutil.rmtree(aside, ignore_errors=True)
