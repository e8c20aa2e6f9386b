"""Any table as a file or a stream: CSV, JSON, JSON lines, Parquet; a piece at a time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import polars as pl

from synth_assets.exports.batches import batches
from synth_assets.exports.tabular import write_csv, write_jsonl


def write_table(rows: pl.LazyFrame, form: str, target: Path | BinaryIO) -> None:
    """Write ``rows`` as csv (cells ``guarded``), json (an array), jsonl or parquet.

    Bytes are text in the first three: UTF-8 where they are, else hex.
    """
    if not isinstance(target, Path):
        with tempfile.TemporaryDirectory(prefix="synth-table-") as folder:
            path = Path(folder) / "table"
            write_table(rows, form, path)
            with path.open("rb") as written:
                shutil.copyfileobj(written, target)
        return
    if form == "parquet":
        rows.sink_parquet(target)
        return
    schema = rows.collect_schema()
    plain = rows.with_columns(
        pl.coalesce(pl.col(name).cast(pl.String, strict=False), pl.col(name).bin.encode("hex"))
        for name, kind in schema.items()
        if kind == pl.Binary
    )
    if form == "csv":
        write_csv(plain, target)
    elif form == "jsonl":
        write_jsonl(plain, target)
    else:
        _write_json(plain, target)


def _write_json(rows: pl.LazyFrame, path: Path) -> None:
    with path.open("wb") as out:
        mark = b"["
        for batch in batches(rows):
            for line in batch.write_ndjson().encode().splitlines():
                out.write(mark + b"\n" + line)
                mark = b","
        out.write(b"[]\n" if mark == b"[" else b"\n]\n")
