"""Releases that were withdrawn because of an erasure: what is left of each says so, and no more.

``<releases>/<dataset>/erased/<version>.json``, with a hash of itself, which the record of erasures
holds too: a release that merely vanished has no such file, and a file that somebody else wrote is
in no record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from synth_assets.store.content import write_atomically
from synth_assets.store.erasures import Log
from synth_assets.store.releases import ERASED, ReleaseStore
from synth_assets.store.verify import Problem


def path_of(releases: Path, dataset: str, version: str) -> Path:
    return releases / dataset / ERASED / f"{version}.json"


def tombstone(
    *, dataset: str, version: str, erasure: str, at: str, reason: str, rows: Mapping[str, int]
) -> dict[str, Any]:
    """What is left of a release. ``rows``: how many were erased from it, by split."""
    body = {
        "tombstone_version": 1,
        "dataset": dataset,
        "version": version,
        "erasure": erasure,
        "erased_at": at,
        "reason": reason,
        "rows": dict(rows),
    }
    return {**body, "sha256": digest_of(body)}


def digest_of(body: Mapping[str, Any]) -> str:
    """The hash of a tombstone without its ``sha256``."""
    rest = {key: value for key, value in body.items() if key != "sha256"}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()


def write(releases: Path, stone: Mapping[str, Any]) -> None:
    path = path_of(releases, stone["dataset"], stone["version"])
    content = orjson.dumps(stone, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def withdrawn(releases: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """Version -> tombstone, as they are found, the oldest erasure first."""
    found = {}
    for version in ReleaseStore(releases).withdrawn(dataset):
        try:
            stone = orjson.loads(path_of(releases, dataset, version).read_bytes())
        except (OSError, ValueError):
            stone = None
        found[version] = stone if isinstance(stone, dict) else {}
    return dict(sorted(found.items(), key=lambda one: str(one[1].get("erased_at"))))


def verify_erasures(home: Path, releases: Path, dataset: str) -> list[Problem]:
    """What is wrong with the record of a dataset's erasures, and what is left to be done of one."""
    log = Log(home, dataset)
    if problem := log.problem():
        return [Problem(str(log.path), "the record as it was written", problem)]
    problems = [
        Problem(
            str(log.path),
            f"the erasure of {line['at']} finished",
            f"it is not: synth erase {dataset} --yes",
        )
        for line in log.unfinished()
    ]
    if log.pending_path.exists() and not problems:
        what = f"the work of an erasure that is not finished: synth erase {dataset} --yes"
        problems.append(Problem(str(log.pending_path), "nothing", what))
    return [*problems, *_about_tombstones(releases, log)]


def erased_tables(home: Path, dataset: str) -> set[tuple[str, str, str]]:
    """Tables that are gone because they were erased; none, when the record is not whole."""
    log = Log(home, dataset)
    return set() if log.problem() else log.erased_tables()


def _about_tombstones(releases: Path, log: Log) -> list[Problem]:
    """Tombstones that no erasure left, those that are gone, and releases that are still there."""
    recorded, open_work = log.withdrawn(), {str(line["id"]) for line in log.unfinished()}
    stones = withdrawn(releases, log.dataset)
    present = ReleaseStore(releases).versions(log.dataset)
    problems = []
    for version, stone in stones.items():
        path, digest = str(path_of(releases, log.dataset, version)), digest_of(stone)
        under_way = stone.get("erasure") in open_work
        if (stone.get("sha256"), stone.get("version")) != (digest, version):
            problems.append(Problem(path, "a tombstone as it was written", "another content"))
        elif recorded.get(version) != digest and not under_way:
            problems.append(Problem(path, "a release that an erasure withdrew", "no record of it"))
        elif version in present and not under_way:
            there = str(releases / log.dataset / version)
            problems.append(Problem(there, "nothing: it was withdrawn", "a release"))
    for version in sorted(recorded.keys() - stones.keys()):
        path = str(path_of(releases, log.dataset, version))
        problems.append(Problem(path, "the tombstone of a withdrawn release", "nothing"))
    return problems
