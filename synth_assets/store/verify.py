"""Is everything still what it was? Every hash of releases and stored tables, computed again.

Nothing here trusts a file before its bytes have proved right: a Parquet file is only opened once
its checksum fits (or when it has none), so that damage is a finding and never a crash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from synth_assets.errors import shown
from synth_assets.lifecycle.release import MANIFEST_VERSION, manifest_bytes, version_of
from synth_assets.store.content import (
    CHECKSUM,
    TABLE,
    ContentStore,
    checksum_path,
    read_checksum,
    write_checksum,
)
from synth_assets.store.digest import file_sha256, stored_digest
from synth_assets.store.io_manager import VOLATILE
from synth_assets.store.releases import CURRENT, MANIFEST, ReleaseStore

_DATA_VERSION = re.compile(r"[0-9a-f]{64}")
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)


@dataclass(frozen=True)
class Problem:
    """One file that is not what it should be."""

    file: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: expected {self.expected}, found {self.found}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class StoreFindings:
    """``healed``: tables whose checksum a kill had kept from being written, and now have one."""

    tables: int = 0
    problems: list[Problem] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)


def verify_release(folder: Path) -> list[Problem]:
    """Everything in a release's folder that is not as it was released (nothing: it is whole)."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        made = orjson.loads(content)
    except (OSError, ValueError) as error:
        return [Problem(str(path), "a manifest", _said(error))]
    if not isinstance(made, dict) or made.get("manifest_version") != MANIFEST_VERSION:
        kind = made.get("manifest_version") if isinstance(made, dict) else "no object"
        return [Problem(str(path), f"a manifest of version {MANIFEST_VERSION}", shown(kind))]
    problems = list(_about_manifest(path, content, made))
    files = made.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, dict) for one in files.values()):
        return [*problems, Problem(str(path), "a list of files", shown(files))]
    present = {p.name: p for p in sorted(folder.iterdir())}
    for name in sorted(files.keys() - present.keys()):
        problems.append(Problem(str(folder / name), "this file", "nothing"))
    for name, file in present.items():
        if name in files:
            problems += _about_file(file, files[name], _row_version(made, name))
        elif name != MANIFEST:
            problems.append(Problem(str(file), "nothing", "a file that was not released"))
    return problems


def verify_pointer(releases: ReleaseStore, dataset: str) -> list[Problem]:
    """Whether ``current`` names a release that is there."""
    pointer = releases.root / dataset / CURRENT
    versions = releases.versions(dataset)
    if not versions and not pointer.exists():
        return []
    try:
        content = pointer.read_bytes()
    except OSError as error:
        return [Problem(str(pointer), "the version in use", _said(error))]
    if content not in {f"{version}\n".encode() for version in versions}:
        return [Problem(str(pointer), "one of the versions here", shown(content[:40]))]
    return []


def verify_store(store: ContentStore, datasets: Iterable[str] | None = None) -> StoreFindings:
    """Every table of ``datasets`` (None: all) against its checksum and its name.

    A table without a checksum whose rows are right gets one.
    """
    findings = StoreFindings()
    names = _names(store.root) if datasets is None else sorted(set(datasets))
    for dataset in names:
        for stage in _names(store.root / dataset):
            for path in sorted((store.root / dataset / stage).iterdir()):
                if not path.name.startswith("."):  # what is being written, or was when killed
                    _about_stored(path, findings)
    return findings


def missing_tables(
    store: ContentStore, needed: Mapping[tuple[str, str, str], str]
) -> list[Problem]:
    """Tables that are referred to and not there.

    ``needed``: (dataset, stage, data version) -> by whom.
    """
    return [
        Problem(str(path), f"the table of {dataset}/{stage} that {who} refers to", "nothing")
        for (dataset, stage, version), who in sorted(needed.items())
        if not (path := store.path(dataset, stage, version)).is_file()
    ]


def tables_of_releases(
    releases: ReleaseStore, datasets: Iterable[str]
) -> dict[tuple[str, str, str], str]:
    """(dataset, stage, data version) -> the release that was made of it. Damaged ones give none."""
    found = {}
    for dataset in datasets:
        for version in releases.versions(dataset):
            try:
                made = orjson.loads((releases.folder(dataset, version) / MANIFEST).read_bytes())
                stages = {stage: one["data_version"] for stage, one in made["stages"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            for stage, data_version in stages.items():
                found[dataset, stage, str(data_version)] = f"release {version}"
    return found


def _about_manifest(path: Path, content: bytes, made: Mapping[str, Any]) -> Iterator[Problem]:
    folder, version = path.parent.name, version_of(made)
    if made.get("version") != version:
        yield Problem(str(path), f"version {version} (of its content)", shown(made.get("version")))
    if folder != version:
        yield Problem(str(path), f"content of version {folder}", f"content of version {version}")
    if content != manifest_bytes(made):
        yield Problem(str(path), "the manifest as it was written", "other bytes")


def _about_file(path: Path, listed: Mapping[str, Any], rows: str | None) -> Iterator[Problem]:
    try:
        size, digest = path.stat().st_size, file_sha256(path)
    except OSError as error:
        yield Problem(str(path), "a file", _said(error))
        return
    if size != listed.get("bytes"):
        yield Problem(str(path), f"{listed.get('bytes')} bytes", f"{size} bytes")
    elif digest != listed.get("sha256"):
        yield Problem(str(path), f"sha256 {listed.get('sha256')}", digest)
    elif rows is not None:
        yield from _about_rows(path, rows)


def _row_version(made: Mapping[str, Any], name: str) -> str | None:
    """The data version that a released table must have; None for what is no table."""
    stages, stage = made.get("stages"), name.removesuffix(TABLE)
    if stage == name or not isinstance(stages, dict) or not isinstance(stages.get(stage), dict):
        return None
    return str(stages[stage].get("data_version"))


def _about_stored(path: Path, findings: StoreFindings) -> None:
    """What is wrong with one file of a stage's folder."""
    version = path.name.removesuffix(TABLE).removesuffix(CHECKSUM)
    if path.suffix not in (TABLE, CHECKSUM) or not _DATA_VERSION.fullmatch(version):
        findings.problems.append(Problem(str(path), "nothing", "a file that is no table's"))
        return
    if path.suffix == CHECKSUM:
        if not path.with_suffix(TABLE).is_file():
            findings.problems.append(
                Problem(str(path.with_suffix(TABLE)), "the table of this checksum", "nothing")
            )
        return
    findings.tables += 1
    try:
        kept, digest = read_checksum(path), file_sha256(path)
    except OSError as error:
        findings.problems.append(Problem(str(path), "a table", _said(error)))
        return
    if kept is not None and kept != digest:
        findings.problems.append(Problem(str(path), f"sha256 {shown(kept)}", digest))
        return
    wrong = list(_about_rows(path, version))
    findings.problems += wrong
    if kept is None and not wrong:
        findings.healed += _healed(path)


def _about_rows(path: Path, version: str) -> Iterator[Problem]:
    try:
        found = stored_digest(path, volatile=VOLATILE)
    except _UNREADABLE as error:
        yield Problem(str(path), "a Parquet file", _said(error))
        return
    if found != version:
        yield Problem(str(path), f"rows of data version {version}", found)


def _healed(path: Path) -> list[str]:
    dataset = path.parents[1]
    try:
        with ContentStore(dataset.parent).writing(dataset.name):
            write_checksum(path)
    except OSError:  # a store that may only be read
        return []
    return [str(checksum_path(path))]


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _said(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "nothing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shown(str(error).partition("\n")[0])
