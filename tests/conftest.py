"""Shared fixtures: an empty home, a private Dagster instance, datasets written on the fly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# A shell that starts the suite in the background has it ignored, and so would every child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.datasets import DatasetFolder


@pytest.fixture
def synth_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``SYNTH_HOME``, ``DAGSTER_HOME`` and ``SYNTH_DEFS`` in a folder of the test's own."""
    home, dagster_home, defs = tmp_path / "home", tmp_path / "dagster", tmp_path / "defs"
    for folder in (home, dagster_home, defs):
        folder.mkdir()
    (dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("SYNTH_HOME", str(home))
    monkeypatch.setenv("DAGSTER_HOME", str(dagster_home))
    monkeypatch.setenv("SYNTH_DEFS", str(defs))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "SYNTH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def tickets(synth_home: Path) -> DatasetFolder:
    """A small dataset of support tickets, outside the project."""
    folder = DatasetFolder(synth_home.parent / "defs" / "tickets")
    folder.write()
    return folder
