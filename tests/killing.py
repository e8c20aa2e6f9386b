"""The ``synth`` command, killed (with its process group) at its N-th change below a folder.

    python -m tests.killing FOLDER N COUNT_FILE synth-words...

Every file opened for writing, renamed, removed or made counts, as Python's audit hook sees it. The
number of changes so far stands in COUNT_FILE, so that with N = 0, which kills nothing, they can be
counted.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_at(folder: str, number: int, told: Path) -> None:
    seen = 0
    count = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in CHANGES and event != "open":
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if not any(str(one).startswith(folder) for one in arguments[:2]):
            return
        seen += 1
        os.pwrite(count, b"%d" % seen, 0)
        if seen == number:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    folder, number, told, *words = sys.argv[1:]
    kill_at(folder, int(number), Path(told))
    sys.argv = ["synth", *words]
    from synth_assets.cli import main

    main()
