"""Which reader a file gets: as declared, else by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from synth_assets.errors import SourceError, shown
from synth_assets.sources.excel import excel_frames
from synth_assets.sources.json_records import json_frames, jsonl_frames
from synth_assets.sources.parquet import parquet_frames
from synth_assets.sources.records import FormatName, Reader, csv_frames

READERS: dict[FormatName, Reader] = {
    "csv": csv_frames,
    "json": json_frames,
    "jsonl": jsonl_frames,
    "parquet": parquet_frames,
    "excel": excel_frames,
}
"""(display name, path, format, what is needed, batch rows) -> raw frames, by format."""

_BY_SUFFIX: dict[str, FormatName] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "excel"),
}
TAB_SUFFIXES = frozenset({".tsv", ".tab"})
_PACKED = frozenset({".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz", ".rar", ".lz4"})
_OTHERS = frozenset(
    {
        *(".arrow", ".feather", ".ipc", ".avro", ".orc", ".pkl", ".pickle", ".npy", ".npz"),
        *(".h5", ".hdf5", ".sav", ".dta", ".rds", ".rdata", ".db", ".sqlite", ".sqlite3"),
        *(".duckdb", ".doc", ".docx", ".pdf", ".rtf", ".odt", ".xml", ".html", ".htm"),
        *(".yaml", ".yml", ".toml"),
    }
)
_READ = "csv (tsv too), json, jsonl, parquet and excel (xlsx, xls, ods)"


def suffix_of(name: str) -> str:
    """The lower-case ending of a file's name, without ``.gz``."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def format_of(pattern: str, names: Sequence[str]) -> FormatName:
    """The format that the ending of ``pattern`` or, where it has none, of all ``names`` says.

    CSV where it says nothing. Raises ``SourceError``: a format that is not read, or several.
    """
    found = {_known(suffix_of(pattern), pattern)}
    if found == {None}:
        found = {_known(suffix_of(name), name) for name in names}
    if len(found) > 1:
        kinds = ", ".join(sorted(each or "others" for each in found))
        raise SourceError(
            f"{shown(pattern)} names files of several formats ({kinds})",
            where="source.path",
            fix="one source for each format, or source.format",
        )
    return next(iter(found), None) or "csv"


def _known(suffix: str, name: str) -> FormatName | None:
    if suffix in _PACKED:
        raise SourceError(
            f"{shown(name)} is packed as {suffix[1:]}",
            where="source.path",
            fix="unpack it, or gzip",
        )
    if suffix in _OTHERS:
        raise SourceError(
            f"{shown(name)}: files named {suffix} are not read",
            where="source.path",
            fix=f"save it as one of {_READ}; source.format says what a file is if not its name",
        )
    return _BY_SUFFIX.get(suffix)
