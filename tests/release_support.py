"""A home with two releases, and how tests damage it. The fixtures are in ``release_fixtures``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-planted-Pq27bd81"
SEED = {"text": "the voice menu sends me round in circles", "label": "login"}


@dataclass(frozen=True)
class Place:
    """A home with its Dagster instance and its dataset ``tickets``, below one folder.

    The first release was made by a named endpoint, the second by an address, with another prompt
    and other parameters.
    """

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def dataset(self) -> Path:
        return self.root / "defs" / "tickets"

    @property
    def releases(self) -> Path:
        return self.home / "releases" / "tickets"

    @property
    def current(self) -> str:
        return (self.releases / "current").read_text().strip()

    @property
    def versions(self) -> tuple[str, str]:
        """The first and the second release."""
        folders = [p for p in self.releases.iterdir() if (p / "manifest.json").is_file()]
        first, second = sorted(folders, key=lambda p: (p / "manifest.json").stat().st_mtime_ns)
        return first.name, second.name

    def manifest(self, version: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.releases / version / "manifest.json").read_text())
        return found

    def table(self, stage: str, version: str) -> Path:
        """The stored table of a stage that a release was made of."""
        data_version = self.manifest(version)["stages"][stage]["data_version"]
        return self.home / "store" / "tickets" / stage / f"{data_version}.parquet"

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Let commands work here, with no model in reach."""
        patch.setenv("SYNTH_HOME", str(self.home))
        patch.setenv("DAGSTER_HOME", str(self.root / "dagster"))
        patch.setenv("SYNTH_DEFS", str(self.root / "defs"))
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "SYNTH_CACHE"):
            patch.delenv(name, raising=False)


def flipped(path: Path, at: int, *, mask: int = 0xFF) -> bytes:
    """Flip bits of one byte of a file, read-only or not; what was there before."""
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[at] ^= mask
    path.chmod(0o644)
    path.write_bytes(bytes(damaged))
    return before
