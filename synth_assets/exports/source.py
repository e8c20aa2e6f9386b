"""What an export is made of: one release, whole and unchanged, or one clear error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from pydantic import ValidationError

from synth_assets.cells import tidy
from synth_assets.errors import SynthError, UsageError, shown
from synth_assets.lifecycle.release import MANIFEST_VERSION, version_of
from synth_assets.spec.model import DatasetSpec
from synth_assets.store.releases import CURRENT, ERASED, MANIFEST
from synth_assets.store.verify import verify_release
from synth_assets.tasks import Task, task_for

SPLITS = ("train", "validation", "eval")
LATEST_STORED = "latest-stored"
MOST_SHOWN = 10
# Names become parts of paths: no separator, no leading dot, nothing that climbs.
_DATASET = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class NothingReleased(SynthError):
    """A dataset that has no release, or does not exist."""


@dataclass(frozen=True)
class Release:
    """A release folder whose manifest and files have been verified."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def dataset(self) -> str:
        return str(self.manifest["dataset"])

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    def path(self, split: str) -> Path:
        """The release's own Parquet file of a split (or of ``contribution``)."""
        return self.folder / f"{split}.parquet"

    def rows(self, split: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.path(split))

    def count(self, split: str) -> int:
        return int(self.rows(split).select(pl.len()).collect().item())

    @cached_property
    def task(self) -> Task:
        """The task as declared when the release was made, whatever the YAML says now.

        Raises:
            SynthError: when this version of the project cannot read that declaration.
        """
        try:
            spec = DatasetSpec.model_validate_json(orjson.dumps(self.manifest["declared"]))
        except (KeyError, ValidationError) as error:
            raise SynthError(
                "the release was declared in a way this version of synth_assets does not know",
                where=str(self.folder / MANIFEST),
                fix=f"release it again (synth run {self.dataset} --force release), "
                "or export parquet, csv or jsonl",
            ) from error
        return task_for(spec)

    @cached_property
    def strata(self) -> tuple[str, ...]:
        """Every stratum: as declared, then what else the rows hold (of all splits, sorted).

        Rows of older releases may spell a declared one with other blanks: theirs stands in its
        place, so that it is one class with one number.
        """
        declared = tuple(self.task.strata() or {})
        column = self.task.stratum
        found = pl.concat([self.rows(split).select(column) for split in SPLITS])
        names = found.unique().drop_nulls().collect()[column].sort().to_list()
        theirs = {tidy(name): name for name in reversed(names)}
        spelt = tuple(n if n in names else theirs.get(n, n) for n in declared)
        return spelt + tuple(name for name in names if name not in spelt)


def open_release(root: Path, dataset: str, which: str = CURRENT) -> Release:
    """One release of ``dataset`` below ``root``: a version, ``current`` or ``latest-stored``.

    The manifest must hash to the release's name and every file to what the manifest says.

    Raises:
        UsageError: no such release, or a name that is none.
        NothingReleased: there is no release.
        SynthError: the release is not what it was.
    """
    if not _DATASET.fullmatch(dataset):
        raise UsageError(f"{shown(dataset)} cannot be a dataset's name", fix="see: synth list")
    version = _version(root / dataset, dataset, which)
    folder = root / dataset / version
    release = Release(folder, _manifest(folder, dataset, version))
    for problem in verify_release(folder):
        raise _damaged(
            Path(problem.file), f"expected {problem.expected}, found {problem.found}", dataset
        )
    for split in (*SPLITS, "contribution"):
        if release.path(split).name not in release.manifest["files"]:
            raise _damaged(release.path(split), "the manifest does not name this file", dataset)
    return release


def _version(folder: Path, dataset: str, which: str) -> str:
    stored = sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST}"))
    if not stored:
        raise NothingReleased(
            "nothing has been released yet", where=dataset, fix=f"run: synth run {dataset}"
        )
    if which == LATEST_STORED:
        return max(stored, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name)).name
    version = which
    if which == CURRENT:
        pointer = folder / CURRENT
        if not pointer.is_file():
            raise SynthError(
                "no release is current",
                where=str(pointer),
                fix=f"run: synth run {dataset}; or name one: --release {stored[-1].name}",
            )
        version = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not _VERSION.fullmatch(version) or folder / version not in stored:
        if _VERSION.fullmatch(version) and (folder / ERASED / f"{version}.json").is_file():
            raise UsageError(
                f"the release {version} was erased: a row that it held had to be deleted",
                where=dataset,
                fix="see: synth releases",
            )
        names = ", ".join(path.name for path in stored[:MOST_SHOWN])
        raise UsageError(
            f"no release {shown(version)}",
            where=dataset,
            fix=f"one of: {CURRENT}, {LATEST_STORED}, {names}"
            + (", ..." if len(stored) > MOST_SHOWN else ""),
        )
    return version


def _manifest(folder: Path, dataset: str, version: str) -> Mapping[str, Any]:
    path = folder / MANIFEST
    try:
        found = orjson.loads(path.read_bytes())
        names = found["dataset"], found["version"]
        known = found["manifest_version"] == MANIFEST_VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "the manifest cannot be read", dataset) from error
    if not known:
        raise SynthError(
            f"a manifest of version {shown(found['manifest_version'])}, not {MANIFEST_VERSION}",
            where=str(path),
            fix="export it with the version of synth_assets that released it",
        )
    if names != (dataset, version) or version_of(found) != version:
        raise _damaged(path, "the manifest is not the one this release is named after", dataset)
    return dict(found)


def _damaged(path: Path, problem: str, dataset: str) -> SynthError:
    return SynthError(
        problem,
        where=str(path),
        fix=f"move the release's folder away and make it again: "
        f"synth run {dataset} --force release",
    )
