"""What lies in a home that nothing needs any more, and how to be rid of it.

Needed are the tables that a release or the latest materialisation of a stage refers to. The ledger
and releases are never looked at. Temporary files count once they are an hour old: the process that
wrote them was killed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from synth_assets.settings import Home
from synth_assets.sources.landing import import_name
from synth_assets.store.content import CHECKSUM, TABLE, WRITING_LOCK, ContentStore, checksum_path
from synth_assets.store.releases import CURRENT, ReleaseStore

LEFT_AFTER_S = 3600.0
# The names under which landing works, and the lock it holds meanwhile.
_LANDING_WORK, _LANDING_LOCK = (".load-*", ".spill-*"), "lock"

Kind = Literal["table", "temporary", "landing", "release"]
TableName = tuple[str, str, str]


@dataclass(frozen=True)
class Garbage:
    """One file or folder that may go. ``bytes``: of all that is in it."""

    path: Path
    kind: Kind
    dataset: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def find_garbage(
    home: Home,
    dataset: str,
    *,
    needed: Collection[TableName],
    keep_last: int = 0,
    now: float | None = None,
) -> list[Garbage]:
    """What of one dataset may go, tables first. ``needed``: (dataset, stage, data version).

    ``keep_last``: keep that many of the newest tables of every stage besides.
    """
    moment = time.time() if now is None else now
    places = [home.releases / dataset, *_folders(home.store / dataset)]
    return [
        *_tables(home, dataset, needed, keep_last),
        *(
            Garbage(path, "temporary", dataset, size_of(path))
            for folder in places
            for path in _hidden(folder)
            if _left(path, moment)
        ),
        *(
            Garbage(path, "landing", dataset, size_of(path))
            for folder in _landings(home, dataset)
            for pattern in _LANDING_WORK
            for path in sorted(folder.glob(pattern))
            if _left(path, moment)
        ),
    ]


def abandoned_landing(home: Home, dataset: str) -> list[Garbage]:
    """What a dataset that is declared nowhere has landed, and the snapshots it landed from."""
    folders = [*_landings(home, dataset), home.root / "snapshots" / dataset]
    folders = [folder for folder in folders if folder.is_dir()]
    return [Garbage(folder, "landing", dataset, size_of(folder)) for folder in folders]


def abandoned_releases(home: Home, dataset: str) -> list[Garbage]:
    """The releases of a dataset that is declared nowhere, without what is left of erased ones."""
    store = ReleaseStore(home.releases)
    found = [store.folder(dataset, version) for version in store.versions(dataset)]
    pointer = home.releases / dataset / CURRENT
    found += [pointer] if pointer.exists() else []
    return [Garbage(path, "release", dataset, size_of(path)) for path in found]


def _landings(home: Home, dataset: str) -> list[Path]:
    """Where it lands human rows, and where those it imports."""
    return [home.root / "landing" / name for name in (dataset, import_name(dataset))]


def remove(home: Home, found: Iterable[Garbage], *, listed_at: float) -> list[Garbage]:
    """Delete what was found; what could go. Nothing that came into use after ``listed_at`` does.

    Raises:
        OSError: when something cannot be deleted.
    """
    gone = []
    store = ContentStore(home.store)
    for one in found:
        if one.kind == "table":
            with store.writing(one.dataset):  # a `put` now is before or after, never between
                if one.path.is_file() and one.path.stat().st_mtime <= listed_at:
                    # In this order a kill between leaves a table that the next look mends.
                    checksum_path(one.path).unlink(missing_ok=True)
                    one.path.unlink(missing_ok=True)
                    gone.append(one)
        elif one.kind in ("temporary", "release") or _nobody_lands(home, one.dataset):
            _delete(one.path)
            gone.append(one)
    return gone


def size_of(path: Path) -> int:
    """Bytes in a file, or in everything below a folder."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _tables(
    home: Home, dataset: str, needed: Collection[TableName], keep_last: int
) -> Iterator[Garbage]:
    for folder in _folders(home.store / dataset):
        tables = sorted(folder.glob(f"[!.]*{TABLE}"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        for path in tables[: len(tables) - keep_last] if keep_last else tables:
            if (dataset, folder.name, path.name.removesuffix(TABLE)) not in needed:
                size = size_of(path) + size_of(checksum_path(path))
                yield Garbage(path, "table", dataset, size)
        for path in sorted(folder.glob(f"[!.]*{CHECKSUM}")):
            table = path.with_suffix(TABLE)
            if not table.exists() and (dataset, folder.name, path.stem) not in needed:
                yield Garbage(path, "table", dataset, size_of(path))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _hidden(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.name.startswith(".") and p.name != WRITING_LOCK)
    return sorted(found)


def _left(path: Path, now: float) -> bool:
    """Whether nothing in it has been written for an hour."""
    inside = path.rglob("*") if path.is_dir() else ()
    try:
        newest = max(p.lstat().st_mtime for p in (path, *inside))
    except FileNotFoundError:  # it was just finished
        return False
    return bool(now - newest > LEFT_AFTER_S)


def _nobody_lands(home: Home, dataset: str) -> bool:
    folders = [folder for folder in _landings(home, dataset) if folder.is_dir()]
    try:
        with ExitStack() as stack:
            for folder in folders:
                stack.enter_context(FileLock(folder / _LANDING_LOCK).acquire(blocking=False))
            return True
    except Timeout:
        return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
