"""Whether a home is what it says it is, judged without a line of the project's own code.

Hashes of files are plain sha256; a table's version is hashed from its rows by the encoding that
``store/digest.py`` describes, written down here a second time.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import orjson
import polars as pl

BATCH = 65_536


def wrong_with(home: Path) -> list[str]:
    """Everything in releases and store that is not what its name or its manifest says."""
    return [*_releases(home / "releases"), *_tables(home / "store")]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _releases(root: Path) -> list[str]:
    wrong = []
    for dataset in _folders(root):
        versions = [p for p in _folders(dataset) if re.fullmatch("[0-9a-f]{16}", p.name)]
        for folder in versions:
            wrong += [f"{folder}: {what}" for what in _release(folder)]
        pointer = dataset / "current"
        told = pointer.read_text() if pointer.exists() else ""
        if versions and told not in {f"{folder.name}\n" for folder in versions}:
            wrong.append(f"{pointer}: {told!r}")
    return wrong


def _release(folder: Path) -> list[str]:
    try:
        made: dict[str, Any] = orjson.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        return [f"no manifest: {error}"]
    body = {key: value for key, value in made.items() if key != "version"}
    version = hashlib.sha256(orjson.dumps(body)).hexdigest()[:16]
    wrong = [] if version == made["version"] == folder.name else [f"is version {version}"]
    present = {path.name for path in folder.iterdir()} - {"manifest.json"}
    wrong += [f"{name}: missing or not listed" for name in present ^ set(made["files"])]
    for name in present & set(made["files"]):
        if sha256(folder / name) != made["files"][name]["sha256"]:
            wrong.append(f"{name}: other bytes")
        stage = made["stages"].get(name.removesuffix(".parquet"))
        if name.endswith(".parquet") and rows_digest(folder / name) != stage["data_version"]:
            wrong.append(f"{name}: other rows")
    return wrong


def _tables(root: Path) -> list[str]:
    wrong = []
    for path in (p for dataset in _folders(root) for p in sorted(dataset.glob("*/[!.]*"))):
        if path.suffix == ".parquet":
            if rows_digest(path) != path.stem:
                wrong.append(f"{path}: other rows")
        elif path.suffix == ".sha256":
            table = path.with_suffix(".parquet")
            if not table.exists():
                wrong.append(f"{path}: of no table")
            elif path.read_text() != f"{sha256(table)}  {table.name}\n":
                wrong.append(f"{path}: of other bytes")
        else:
            wrong.append(f"{path}: what is it?")
    return wrong


def _folders(root: Path) -> list[Path]:
    found = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def rows_digest(path: Path) -> str:
    """The version that the rows of a Parquet file have; "" for what is no Parquet file."""
    try:
        frame = pl.read_parquet(path).drop("_load_id", strict=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return ""
    state = hashlib.sha256(b"synth-table-1")
    for name, kind in frame.schema.items():
        for part in (name.encode(), str(kind).encode()):
            state.update(struct.pack("<Q", len(part)) + part)
    for start in range(0, frame.height, BATCH):
        batch = frame.slice(start, BATCH)
        state.update(struct.pack("<Q", batch.height))
        for name, kind in batch.schema.items():
            for part in _parts(batch[name].to_list(), kind):
                state.update(struct.pack("<Q", len(part)) + part)
    return state.hexdigest()


def _parts(values: list[Any], kind: Any) -> list[bytes]:
    """A column as the byte strings that are hashed, each after its length."""
    nulls = bytes(value is None for value in values)
    if isinstance(kind, pl.List):
        lists = [value or [] for value in values]
        flat = [item for one in lists for item in one]
        return [nulls, _packed("Q", [len(one) for one in lists]), *_parts(flat, kind.inner)]
    if kind == pl.String:
        texts = [(value or "").encode() for value in values]
        return [nulls, _packed("Q", [len(text) for text in texts]), b"".join(texts)]
    if kind.is_float():
        return [nulls, _packed("d", [0.0 if value is None else value for value in values])]
    if kind == pl.Boolean:
        return [nulls, bytes(bool(value) for value in values)]
    if kind.is_integer():
        return [nulls, _packed("q", [value or 0 for value in values])]
    raise TypeError(f"no column of a dataset is {kind}")


def _packed(code: str, values: list[Any]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)
