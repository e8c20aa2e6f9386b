"""Files of a source, streamed as raw frames in which no row is lost silently.

A file that is wrong as a whole (missing column, another encoding, not Parquet) raises
``SourceError``; a record that is wrong alone is kept, with its reason. Cells are exact: nothing is
trimmed, folded or parsed, and an empty CSV cell is an empty string, not null. CSV and JSON named
``*.gz`` are unpacked.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources.parquet import class_names
from synth_assets.sources.readers import READERS
from synth_assets.sources.records import FileFormat, Needed, Remarks


def expand(pattern: str, *, base: Path) -> list[tuple[str, Path]]:
    """(display name, path) of the files that ``pattern`` (``*``, ``?``, ``**``) names, sorted.

    Relative patterns start at ``base``. Display names are relative, hence the same in another
    checkout: to ``base`` for a file under it, else to the pattern's fixed folder. Hidden files
    match only a pattern that says so. Raises ``SourceError`` when no file matches.
    """
    base = Path(os.path.normpath(base.absolute()))
    wanted = Path(pattern).expanduser()
    whole = Path(os.path.normpath(base / wanted))
    if whole.is_file():  # a name such as "data[1].csv" is first of all itself
        fixed, hits = whole.parent, [whole]
    else:
        magic = next((i for i, part in enumerate(wanted.parts) if glob.has_magic(part)), None)
        fixed = Path(os.path.normpath(base.joinpath(*wanted.parts[:magic])))
        hits = list(_matches(fixed, wanted.parts[magic:])) if magic is not None else []
    if not hits:
        folder = " (a folder: add /*.csv)" if whole.is_dir() else ""
        raise SourceError(
            f"no file matches {shown(pattern)}{folder}",
            where="source.path",
            fix=f"check the path; relative paths start at {base}",
        )

    def display(path: Path) -> str:
        name = path.relative_to(base if path.is_relative_to(base) else fixed).as_posix()
        return os.fsencode(name).decode("utf-8", "backslashreplace")

    return sorted((display(path), path) for path in hits)


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    hidden = any(part.startswith(".") for part in parts)
    every = "*" if parts[-1] == "**" else ""  # pathlib reads a last "**" as folders only
    for path in folder.glob(str(Path(*parts) / every)):
        seen = path.relative_to(folder).parts
        if path.is_file() and (hidden or not any(part.startswith(".") for part in seen)):
            yield path


def fingerprint(
    paths: Sequence[tuple[str, Path]],
    fmt: FileFormat,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """SHA-256 (hex) of what the files say: names, bytes, and how the bytes are to be read.

    Independent of the order of ``paths``, of where the files lie and of their times. ``classes``
    are the names that a card gives to the numbers of columns. Raises ``SourceError`` when a file
    cannot be read.
    """
    reading: dict[str, list[Any]] = {
        "csv": [fmt.encoding, fmt.delimiter],
        "json": [fmt.encoding],
        "jsonl": [fmt.encoding],
    }
    how = reading.get(fmt.format, [])
    if fmt.format == "parquet":
        # Files without classes have the version that they always had.
        named = [[name, found] for name, path in sorted(paths) if (found := class_names(path))]
        how = [part for part in (dict(classes or {}), named) if part]
    digests = []
    for name, path in sorted(paths):
        with _readable(name), path.open("rb") as file:
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    identity = json.dumps([1, fmt.format, how, digests])
    return hashlib.sha256(identity.encode()).hexdigest()


def read_batches(
    paths: Sequence[tuple[str, Path]],
    fmt: FileFormat,
    *,
    required_columns: Sequence[str],
    scalar_columns: Collection[str] = (),
    classes: Mapping[str, Sequence[str]] | None = None,
    number_columns: Collection[str] = (),
    every_name: bool = False,
    remarks: Remarks | None = None,
    batch_rows: int = 20_000,
) -> Iterator[pl.DataFrame]:
    """Raw frames (without ``_load_id``) of at most ``batch_rows`` rows: file by file, in order.

    ``paths`` are (display name, path). Frames differ in columns where files do, or where a later
    JSON object brings new keys. Memory is bound by one batch. A list or an object in one of
    ``scalar_columns`` makes its row a problem row (``wrong_type``).

    Only a cell of a required or scalar column makes its row a problem row (where none is named,
    any does). Others that cannot be kept are empty, and columns without a usable name are not
    there: ``remarks`` says so. With ``every_name`` such a name is an error. ``classes``: see
    ``Needed``; numbers of ``number_columns`` stay numbers whatever the file calls them.

    Raises ``SourceError``: a file that is missing, unreadable, in another encoding or format; a
    file lacking a required column, or with lists or objects in most cells of a scalar one;
    unusable column names; no usable row in all the files. Frames stream, so an error may come
    after good frames: rely on them only when all have arrived.
    """
    names = [name for name, _ in paths]
    if len(set(names)) != len(names):
        raise ValueError("display names must be unique: _source and _row identify a row")
    reader = READERS[fmt.format]
    needed = Needed(
        required_columns,
        frozenset(scalar_columns),
        classes or {},
        frozenset(number_columns),
        every_name,
        Remarks() if remarks is None else remarks,
    )
    good, problems = 0, Counter[str]()
    for name, path in paths:
        with _readable(name):
            for frame in reader(name, path, fmt, needed, batch_rows):
                found = frame.get_column("_problem").drop_nulls().to_list()
                problems.update(found)
                good += frame.height - len(found)
                yield frame
    if not good:
        reasons = ", ".join(f"{count} {reason}" for reason, count in problems.most_common())
        raise SourceError(
            f"no usable row ({reasons})" if reasons else "no rows",
            where=", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
            fix="source.format: json, if it is an array or objects over several lines"
            if fmt.format == "jsonl" and "malformed_json" in problems
            else f"check that it holds rows, as {fmt.format} (source.format, source.delimiter)",
        )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what the operating system or gzip says about a file into one message."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"damaged gzip: {error}", where=name, fix="fetch it again") from error
    except OSError as error:
        raise SourceError(
            f"cannot be read: {error.strerror or error}", where=name, fix="check source.path"
        ) from error
