"""Where things are: read from the environment once per use, never cached across tests.

``SYNTH_HOME``  everything that is written (default: ``data/`` beside ``pyproject.toml``).
``SYNTH_DEFS``  folders with datasets kept outside the project (separated like ``PATH``).
``SYNTH_CACHE`` fetched artifacts, shared between homes (default: ``<SYNTH_HOME>/cache``).
``SYNTH_REFRESH_INTERVAL_S`` seconds between two looks of the ``refresh`` sensor (default: 30).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent
PROJECT_ROOT = PACKAGE_ROOT.parent
PROJECT_DEFS = PACKAGE_ROOT / "defs"
DEFAULT_DAGSTER_HOME = PROJECT_ROOT / "dagster_home"
REFRESH_INTERVAL_S = 30


@dataclass(frozen=True)
class Home:
    """The folder that holds everything the project writes."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / "ledger.sqlite"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        configured = os.environ.get("SYNTH_CACHE")
        return Path(configured).expanduser().resolve() if configured else self.root / "cache"


def home() -> Home:
    configured = os.environ.get("SYNTH_HOME")
    root = Path(configured).expanduser() if configured else PROJECT_ROOT / "data"
    return Home(root.resolve())


def refresh_interval_s() -> int:
    """Seconds between two looks of the ``refresh`` sensor; what is no number counts as unset."""
    configured = os.environ.get("SYNTH_REFRESH_INTERVAL_S", "")
    return max(int(configured), 1) if configured.isdecimal() else REFRESH_INTERVAL_S


def defs_roots() -> list[Path]:
    """Folders that hold dataset folders: the project's own first, then ``SYNTH_DEFS``."""
    outside = [part for part in os.environ.get("SYNTH_DEFS", "").split(os.pathsep) if part]
    return [PROJECT_DEFS, *(Path(part).expanduser().resolve() for part in outside)]
