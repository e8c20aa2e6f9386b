"""The formats by name: each fills a folder with the splits of one release."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from synth_assets.exports import card, docbin, huggingface, instructions, tabular
from synth_assets.exports.source import Release


@dataclass(frozen=True)
class Options:
    """What a user may ask for; each format reads its own."""

    csv_verbatim: bool = False
    system: str | None = None


@dataclass(frozen=True)
class Job:
    """One format to be written: which splits of which release, into which empty folder."""

    release: Release
    splits: tuple[str, ...]
    folder: Path
    options: Options


@dataclass(frozen=True)
class Format:
    """``write`` returns what a user should know about the export (one sentence each).

    ``options``: what is recorded of the options. ``ready`` raises when the format cannot be
    written on this machine.
    """

    write: Callable[[Job], list[str]]
    options: Callable[[Options], Mapping[str, Any]] = lambda _: {}
    ready: Callable[[], object] = lambda: None


def _parquet(job: Job) -> list[str]:
    for split in job.splits:
        shutil.copyfile(job.release.path(split), job.folder / f"{split}.parquet")
    return []


def _csv(job: Job) -> list[str]:
    for split in job.splits:
        tabular.write_csv(
            job.release.rows(split),
            job.folder / f"{split}.csv",
            verbatim=job.options.csv_verbatim,
        )
    return []


def _csv_options(options: Options) -> Mapping[str, Any]:
    return {"cells": "as they are" if options.csv_verbatim else tabular.CSV_RULE}


def _jsonl(job: Job) -> list[str]:
    for split in job.splits:
        tabular.write_jsonl(job.release.rows(split), job.folder / f"{split}.jsonl")
    return []


def _openai_chat(job: Job) -> list[str]:
    for split in job.splits:
        instructions.write_openai_chat(
            job.release.rows(split),
            job.folder / f"{split}.jsonl",
            task=job.release.task,
            strata=job.release.strata,
            system=job.options.system,
        )
    notes = _lost_weights(job)
    least = instructions.OPENAI_LEAST_EXAMPLES
    if "train" in job.splits and (rows := job.release.count("train")) < least:
        notes.append(f"train has {rows} examples; OpenAI takes no file of fewer than {least}")
    return notes


def _alpaca(job: Job) -> list[str]:
    for split in job.splits:
        instructions.write_alpaca(
            job.release.rows(split),
            job.folder / f"{split}.json",
            task=job.release.task,
            strata=job.release.strata,
        )
    return _lost_weights(job)


def _lost_weights(job: Job) -> list[str]:
    counts = {split: instructions.lost_weights(job.release.rows(split)) for split in job.splits}
    return [
        f"{count} rows of {split} have a weight other than 1, which this format cannot say"
        for split, count in counts.items()
        if count
    ]


def _hf(job: Job) -> list[str]:
    release, task = job.release, job.release.task
    data = job.folder / "data"
    data.mkdir()
    rows = {split: release.rows(split) for split in job.splits}
    schema = huggingface.common_schema(list(rows.values()))
    names = release.strata
    listed = task.stratum in task.payload and 0 < len(names) <= huggingface.MOST_CLASSES
    classes = huggingface.Classes(task.stratum, names) if listed else None
    counts = {
        split: huggingface.write_shards(frame, data, split, schema=schema, classes=classes)
        for split, frame in rows.items()
    }
    composition = _composition(rows)
    by_source = _by_source(rows)
    filled = {split: count for split, count in counts.items() if count}
    empty = [split for split, count in counts.items() if not count]
    head = card.header(
        manifest=release.manifest,
        kind=task.kind,
        rows=filled,
        features=huggingface.card_features(schema, classes),
        synthetic=bool(composition["synthetic"].sum()),
        by_source=by_source,
    )
    body = card.body(
        manifest=release.manifest,
        composition=composition,
        strata=_per_stratum(rows, task.stratum, names, numbered=classes is not None),
        contribution=release.rows("contribution").collect(),
        empty=empty,
        by_source=by_source,
    )
    (job.folder / "README.md").write_text(head + "\n" + body, encoding="utf-8", newline="\n")
    return [f"{split} has no rows and is left out" for split in empty]


def _composition(rows: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    made = pl.col("origin") == "synthetic"
    found = [
        frame.select(
            pl.lit(split).alias("split"),
            (~made).sum().cast(pl.Int64).alias("human"),
            made.sum().cast(pl.Int64).alias("synthetic"),
            pl.len().cast(pl.Int64).alias("rows"),
        ).collect()
        for split, frame in rows.items()
    ]
    return pl.concat(found)


def _by_source(rows: Mapping[str, pl.LazyFrame]) -> dict[str, int]:
    """Rows by the name of their source; behind it may stand the file."""
    found = pl.concat([frame.select("source") for frame in rows.values()]).drop_nulls()
    name = pl.col("source").str.split("/").list.first()
    return dict(found.group_by(name).len().collect().iter_rows())


def _per_stratum(
    rows: Mapping[str, pl.LazyFrame], stratum: str, names: tuple[str, ...], *, numbered: bool
) -> pl.DataFrame:
    """One row per stratum, in order: its name (``numbered``: and class number), then a count for
    each split and origin in it."""
    table = pl.DataFrame({stratum: names}, schema={stratum: pl.String})
    for split, frame in rows.items():
        counts = frame.group_by(stratum, "origin").len().collect()
        for origin in sorted(counts["origin"].unique()):
            one = counts.filter(pl.col("origin") == origin).select(
                stratum, pl.col("len").cast(pl.Int64).alias(f"{split} ({origin})")
            )
            table = table.join(one, on=stratum, how="left", maintain_order="left")
    table = table.with_columns(pl.exclude(stratum).fill_null(0))
    return table.with_row_index("class") if numbered else table


def _spacy(job: Job) -> list[str]:
    task = job.release.task
    for split in job.splits:
        docbin.write_docbins(
            job.release.rows(split),
            job.folder / split,
            text=task.text,
            annotate=docbin.as_cats(task, job.release.strata),
        )
    return []


FORMATS: Mapping[str, Format] = {
    "parquet": Format(_parquet),
    "csv": Format(_csv, _csv_options),
    "jsonl": Format(_jsonl),
    "openai_chat": Format(_openai_chat, lambda options: {"system": options.system}),
    "alpaca": Format(_alpaca),
    "hf": Format(_hf),
    "spacy": Format(_spacy, ready=docbin.require_spacy),
}
