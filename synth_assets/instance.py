"""The Dagster instance of this machine, opened by one process at a time.

Dagster makes the tables of a new instance without a lock. Of two processes that do so at once,
one fails, or both succeed and the tables are left with two heads that no process can open again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from synth_assets.settings import DEFAULT_DAGSTER_HOME

if TYPE_CHECKING:
    import dagster as dg

LOCK = ".opening.lock"


def open_instance() -> dg.DagsterInstance:
    """The instance in ``DAGSTER_HOME`` (set to the project's own where it is not)."""
    import dagster as dg
    from filelock import FileLock

    folder = Path(os.environ.setdefault("DAGSTER_HOME", str(DEFAULT_DAGSTER_HOME))).expanduser()
    if not folder.is_dir():
        return dg.DagsterInstance.get()  # which says what is wrong with it
    with FileLock(folder / LOCK):
        return dg.DagsterInstance.get()
