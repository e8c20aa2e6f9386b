"""Small wheels made by hand, and a pip whose whole world is one folder of them."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from synth_assets.sources.artifacts import PackageArtifact, file_sha256


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> PackageArtifact:
    """A minimal wheel whose package fails loudly if any of its code is run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    content = {
        f"{name}/__init__.py": b"raise SystemExit('package code was run')\n",
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        "Requires-Python: <3.0\nRequires-Dist: no-such-dependency\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = [f"{each},sha256={urlsafe(data)},{len(data)}" for each, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in content.items():
            archive.writestr(zipfile.ZipInfo(each), data)
    return PackageArtifact(f"{name}==1.0", file_sha256(path))


def urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def seeded(artifact: PackageArtifact, links: Path, cache: Path) -> None:
    """Puts a wheel into the cache without asking pip."""
    folder = cache / "artifacts" / artifact.sha256
    folder.mkdir(parents=True)
    name = artifact.requirement.replace("==", "-") + "-py3-none-any.whl"
    (folder / name).write_bytes((links / name).read_bytes())


def only_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points pip at ``folder`` and at nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder
