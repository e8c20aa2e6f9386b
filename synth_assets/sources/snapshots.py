"""Local copies of what lies elsewhere, named by their content.

A source that is not a local file is first written into one. Its version is the hash of that file,
and the same file is what lands, so the two cannot disagree. Layout of one *shelf*:

    <shelf>/<sha256 of the copy>/<file name>
    <shelf>/state.json      the newest copy, and facts (an ETag, a cursor) to be compared next time

Files appear by an atomic rename, ``state.json`` last, under a lock per shelf: a process that is
killed leaves the former copy. A copy that no longer hashes to its name counts as absent.

Records that come in no dependable order (rows of a query, items of an API) are sorted by their
text, so that the same records are the same content.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl
from filelock import FileLock, Timeout

from synth_assets.errors import SourceError
from synth_assets.sources.artifacts import file_sha256

KEPT = 2  # the newest copy, and the one before it, which another process may be reading
WAIT_S = 600.0
_PART = ".part"


@dataclass(frozen=True)
class Copy:
    """One copy on a shelf; ``facts`` are JSON values."""

    path: Path
    sha256: str
    facts: dict[str, Any]


class Shelf:
    """The copies of one remote thing, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self, where: str) -> Iterator[None]:
        """One process at a time. Raises ``SourceError`` when the wait is too long, or no room."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock", timeout=WAIT_S):
                yield
        except Timeout:
            raise SourceError(
                f"another process has been reading it for {WAIT_S:g} s",
                where=where,
                fix="wait until it ends, or stop it, then run again",
            ) from None

    def newest(self) -> Copy | None:
        """The newest copy, if it is whole."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            path = self.folder / state["sha256"] / state["file"]
            good = path.is_file() and file_sha256(path) == state["sha256"]
            return Copy(path, state["sha256"], state["facts"]) if good else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # nothing yet, or damaged: it is fetched again

    def put(self, write: Callable[[IO[bytes]], dict[str, Any]], *, file: str, where: str) -> Copy:
        """Keep what ``write`` writes; it returns the facts. Whatever it raises passes through."""
        part = self.folder / _PART
        try:
            with part.open("wb") as stream:
                facts = write(stream)
            sha256 = file_sha256(part)
            target = self.folder / sha256 / file
            target.parent.mkdir(exist_ok=True)
            part.replace(target)
            self._name(sha256, file, facts)
        except OSError as error:
            raise SourceError(
                f"the copy cannot be written: {error.strerror or error}",
                where=where,
                fix="free some space, or set SYNTH_HOME (SYNTH_CACHE) to a folder that can be "
                "written",
            ) from error
        finally:
            part.unlink(missing_ok=True)
        self._discard_old(sha256)
        return Copy(target, sha256, facts)

    def note(self, copy: Copy, facts: dict[str, Any]) -> Copy:
        """The same copy with other facts."""
        self._name(copy.sha256, copy.path.name, facts)
        return Copy(copy.path, copy.sha256, facts)

    def _name(self, sha256: str, file: str, facts: dict[str, Any]) -> None:
        new = self.folder / "state.json.part"
        state = {"sha256": sha256, "file": file, "facts": facts}
        new.write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
        new.replace(self.folder / "state.json")

    def _discard_old(self, newest: str) -> None:
        copies = [p for p in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}", p.name)]
        copies.sort(key=lambda path: (path.name == newest, path.stat().st_mtime_ns), reverse=True)
        for path in copies[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def write_sorted(stream: IO[bytes], batches: Iterable[list[str]]) -> int:
    """Write lines (without line ends) sorted by their UTF-8 bytes; how many there were."""
    parts = [pl.Series("line", lines, dtype=pl.String) for lines in batches]
    if not parts:
        return 0
    lines = pl.concat(parts, rechunk=False).sort()
    for part in lines.to_frame().iter_slices(50_000):
        stream.write(("\n".join(part["line"]) + "\n").encode())
    return lines.len()
