"""An export appears whole, under its name, or not at all; what is replaced is ours and unchanged.

``<out>/<format>/`` holds the files and ``export.json``: release, rows per split, sha256 per file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from synth_assets.errors import SynthError, UsageError, shown
from synth_assets.exports.formats import FORMATS, Job, Options
from synth_assets.exports.source import Release
from synth_assets.store.content import sync_folder
from synth_assets.store.digest import file_sha256

RECORD = "export.json"
EXPORT_VERSION = 1
# What the bytes of a format depend on, besides the release.
_MADE_WITH: Mapping[str, Sequence[str]] = {
    "csv": ["polars"],
    "jsonl": ["polars"],
    "openai_chat": ["polars"],
    "alpaca": ["polars"],
    "hf": ["polars"],
    "spacy": ["spacy"],
}


@dataclass(frozen=True)
class Exported:
    """One export as it stands on disk; ``record`` is its ``export.json``."""

    folder: Path
    record: Mapping[str, Any]


def export(
    release: Release, name: str, out: Path, *, splits: Sequence[str], options: Options
) -> Exported:
    """Write ``release`` in the format ``name`` to ``out/name``, replacing an earlier export there.

    Raises:
        UsageError: what stands there is not an unchanged export of this dataset.
        SynthError: the format cannot be written here, or the disk refuses.
    """
    target, form = out / name, FORMATS[name]
    form.ready()
    try:
        _require_replaceable(target, release.dataset, name)
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out, prefix=f".{name}.", suffix=".tmp"))
        try:
            job = Job(release, tuple(splits), work, options)
            notes = form.write(job)
            record = _record(job, name, notes)
            (work / RECORD).write_bytes(
                orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            )
            _settle(work)
            _place(work, target, release.dataset, name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise SynthError(
            f"cannot write the export: {error.strerror or error}",
            where=str(error.filename or target),
            fix="make room or name another folder with --out",
        ) from error
    return Exported(target, record)


def _record(job: Job, name: str, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "export_version": EXPORT_VERSION,
        "dataset": job.release.dataset,
        "release": job.release.version,
        "format": name,
        "options": dict(FORMATS[name].options(job.options)),
        "rows": {split: job.release.count(split) for split in job.splits},
        "files": {file: file_sha256(job.folder / file) for file in _files(job.folder)},
        "notes": list(notes),
        "made_with": {
            package: found
            for package in ("synth_assets", *_MADE_WITH.get(name, ()))
            if (found := _version(package))
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _files(folder: Path) -> list[str]:
    """Every file below ``folder`` but the record, as POSIX paths, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != RECORD)


def _settle(work: Path) -> None:
    """Flush everything below ``work`` to the disk, and open it to other readers."""
    for path in sorted(work.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(work)
    work.chmod(0o755)


def _place(work: Path, target: Path, dataset: str, name: str) -> None:
    """Make ``work`` the folder ``target``, whole; what stood there is put back if that fails."""
    if not target.exists():
        work.rename(target)
        sync_folder(target.parent)
        return
    _require_replaceable(target, dataset, name)  # again: writing may have taken long
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}.", suffix=".old"))
    target.rename(aside / name)
    try:
        work.rename(target)
    except BaseException:
        (aside / name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)


def _require_replaceable(target: Path, dataset: str, name: str) -> None:
    """Refuse to replace what cannot be made again from a release.

    Raises:
        UsageError: ``target`` holds anything but an unchanged export of this dataset and format.
    """
    if not (target.exists() or target.is_symlink()):
        return
    why = _why_not_ours(target, dataset, name)
    if why:
        raise UsageError(
            f"this folder is in the way: {why}",
            where=str(target),
            fix="move it away, or name another folder with --out",
        )


def _why_not_ours(target: Path, dataset: str, name: str) -> str | None:
    if target.is_symlink() or not target.is_dir():
        return "it is not a folder"
    if not any(target.iterdir()):
        return None
    try:
        record = orjson.loads((target / RECORD).read_bytes())
        found, expected = (record["dataset"], record["format"]), dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"it holds no {RECORD} that can be read"
    if found != (dataset, name):
        return f"it is an export of {shown(found[0])} as {shown(found[1])}"
    there = _files(target)
    if more := sorted(set(there) - set(expected)):
        return f"it holds a file that the export did not write, {shown(more[0])}"
    changed = [file for file in there if file_sha256(target / file) != expected[file]]
    return f"{shown(changed[0])} was changed after it was exported" if changed else None
