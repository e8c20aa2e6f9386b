"""Releases on disk: immutable folders named by their content, and which one is current.

``<root>/<dataset>/<version>/`` appears complete, by one rename, or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from synth_assets.store.content import sync_folder, write_atomically

MANIFEST = "manifest.json"
CURRENT = "current"


@dataclass(frozen=True)
class ReleaseStore:
    root: Path

    def publish(
        self,
        dataset: str,
        manifest: Mapping[str, Any],
        tables: Mapping[str, Path],
        texts: Mapping[str, str],
    ) -> Path:
        """Write the release (files linked or copied from the store) and make it current.

        A version that exists already is left untouched: its name says that it is the same.
        """
        folder = self.root / dataset / str(manifest["version"])
        if not folder.exists():
            self._build(folder, manifest, tables, texts)
        write_atomically(folder.parent / CURRENT, lambda path: path.write_text(folder.name + "\n"))
        return folder

    def _build(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        tables: Mapping[str, Path],
        texts: Mapping[str, str],
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for name, path in tables.items():
                shutil.copyfile(path, work / name)
            for name, text in texts.items():
                (work / name).write_text(text, encoding="utf-8")
            (work / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
            for file in work.iterdir():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
            sync_folder(work)
            work.chmod(0o755)
            try:
                work.rename(folder)
            except OSError:
                if not folder.exists():  # another writer was first with the same content
                    raise
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
