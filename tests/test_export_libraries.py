"""The libraries that exports are for read them: in an environment of their own.

`datasets` and spaCy bring pandas, pyarrow and 130 MB of wheels. With them installed every start of
the project takes longer, and nothing would notice if it came to depend on them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READERS = ("tests/test_export_hf.py", "tests/test_export_spacy.py", "tests/test_export.py")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what this one has, and the libraries."""
    folder = tmp_path_factory.mktemp("formats")
    venv.create(folder, symlinks=os.name == "posix")
    python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    lock = ["--only-binary", ":all:", "-r", str(ROOT / "requirements-formats.lock")]
    subprocess.run([*pip, *lock], check=True, timeout=240)
    return python


@pytest.mark.slow
def test_the_libraries_get_on_with_what_the_project_pins(python: Path) -> None:
    check = [sys.executable, "-m", "pip", "--python", str(python), "check"]
    ran = subprocess.run(check, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.slow
def test_datasets_and_spacy_read_what_is_written(python: Path) -> None:
    ran = subprocess.run(
        [str(python), "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *READERS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-5_000:]
    assert "skipped" not in ran.stdout
