"""Whether files have changed, by their stat alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# A file written so recently may be written again within the resolution of its time stamp.
SETTLED_AFTER_S = 2.0


@dataclass(frozen=True)
class Seen:
    """Stats of some files. ``mark``: a hash of them; ``newest``: the latest change, epoch s."""

    mark: str
    newest: float

    def settled(self, at: float) -> bool:
        """Whether another change after ``at`` cannot leave the mark as it is."""
        return at - self.newest > SETTLED_AFTER_S


def stats(paths: Iterable[Path]) -> Seen:
    """Size, inode and times of each file; that one is absent is part of it."""
    found: list[list[str | int]] = []
    newest = 0.0
    for path in sorted(set(paths)):
        try:
            stat = path.stat()
        except OSError:
            found.append([os.fspath(path)])
            continue
        times = (stat.st_mtime_ns, stat.st_ctime_ns)
        found.append([os.fspath(path), stat.st_size, stat.st_ino, *times])
        newest = max(newest, max(times) / 1e9)
    return Seen(hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16], newest)
