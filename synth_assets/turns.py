"""One run of a dataset at a time: who comes second waits, then finds what is left to do.

Locks are files; the system lets go of them with the process, so a run that was killed holds
nobody up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from filelock import FileLock, Timeout


class Turn:
    """A dataset's lock, taken when it is first needed and held until the block ends."""

    def __init__(self, home: Path, dataset: str, *, notify: Callable[[str], None]) -> None:
        self._path = home / "locks" / f"{dataset}.lock"
        self._dataset = dataset
        self._notify = notify
        self._lock = FileLock(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def take(self) -> bool:
        """Returns once the turn is ours; True when another run had to end before."""
        if self._lock.is_locked:
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            self._notify(f"waiting: another run of {self._dataset} is under way")
            self._lock.acquire()
            return True
        return False


LEFT_BEHIND_S = 60.0


@contextmanager
def present(home: Path, dataset: str) -> Iterator[None]:
    """Tells other processes that this one is running the dataset; any number may at once.

    Unlike a turn it is there from the beginning, and nobody waits for it: automation leaves the
    dataset alone meanwhile, also between two waves.
    """
    folder = home / "locks" / f"{dataset}.present"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{uuid4().hex[:8]}.lock"
    with FileLock(path):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows unlinks no open file; the next look does
                path.unlink()


def anybody_present(home: Path, dataset: str) -> bool:
    """Whether a process on this machine is running the dataset (see :func:`present`)."""
    for path in (home / "locks" / f"{dataset}.present").glob("*.lock"):
        try:
            with FileLock(path, blocking=False):
                _forget(path)
        except Timeout:
            return True
        except OSError:  # it went away meanwhile
            continue
    return False


def _forget(path: Path) -> None:
    """Removes what a killed process left; not at once, its owner may be about to lock it."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
            path.unlink()
