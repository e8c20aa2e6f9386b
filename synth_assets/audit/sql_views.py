"""What a home's views hold that no stored table does: releases, calls, lineage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson
import polars as pl

from synth_assets.audit.calls import answer_text, messages_of
from synth_assets.errors import SynthError
from synth_assets.llm.ledger import admin as ledger_admin
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.store.releases import ReleaseStore, created

PAGE = 5_000
TEXTS_AT_ONCE = 200
_TIME: Any = pl.Datetime("us", "UTC")
RELEASES = pl.Schema(
    {
        "dataset": pl.String,
        "version": pl.String,
        "current": pl.Boolean,
        "created_at": _TIME,
        "file": pl.String,
        "split": pl.String,
        "rows": pl.Int64,
        "data_version": pl.String,
        "sha256": pl.String,
        "bytes": pl.Int64,
        "model": pl.String,
        "verdict": pl.String,
    }
)
CALLS = pl.Schema(
    {
        "request_id": pl.String,
        "dataset": pl.String,
        "endpoint": pl.String,
        "model": pl.String,
        "status": pl.Int32,
        "outcome": pl.String,
        "finish_reason": pl.String,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "cost_usd": pl.Float64,
        "prices": pl.String,
        "attempts": pl.Int32,
        "started_at": _TIME,
        "latency_ms": pl.Float64,
    }
)
CALL_TEXTS = pl.Schema(
    dict.fromkeys(("request_id", "prompt", "answer", "request", "response"), pl.String)
)
EDGES = ("dataset", "child_stage", "child_id", "kind", "parent_stage", "parent_id")
_SPLITS = ("train", "validation", "eval")


def release_frame(releases: ReleaseStore, datasets: Sequence[str]) -> pl.DataFrame:
    """One row per file of every release (schema ``RELEASES``); ``split`` null: a file of no split.

    Releases whose manifest cannot be read are left out.
    """
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        current = releases.current(dataset)
        for version in releases.versions(dataset):
            try:
                made = releases.manifest(dataset, version)
                files = dict(made["files"])
            except (SynthError, KeyError, TypeError, ValueError):
                continue
            shared = {
                "dataset": dataset,
                "version": version,
                "current": version == current,
                "created_at": _moment(created(releases.folder(dataset, version)) / 1e9),
                "model": (made.get("model") or {}).get("name"),
                "verdict": (made.get("contribution") or {}).get("verdict"),
            }
            rows += [shared | _file(made, name, one) for name, one in files.items()]
    return pl.DataFrame(rows, schema=RELEASES)


def call_frames(ledger: Ledger) -> Iterator[pl.DataFrame]:
    """The ledger's calls without their texts (schema ``CALLS``), the oldest first, in pages."""
    names = ", ".join(CALLS)
    query = (
        f"SELECT {names} FROM calls WHERE (started_at, request_id) > (?, ?) "  # noqa: S608
        "ORDER BY started_at, request_id LIMIT ?"
    )
    after: tuple[Any, ...] = (float("-inf"), "")
    started, raw = list(CALLS).index("started_at"), CALLS | {"started_at": pl.Float64}
    while rows := ledger.query(query, (*after, PAGE)):
        frame = pl.DataFrame(rows, schema=raw, orient="row")
        yield frame.with_columns(
            pl.from_epoch((pl.col("started_at") * 1e6).cast(pl.Int64), time_unit="us")
            .dt.replace_time_zone("UTC")
            .alias("started_at")
        )
        after = (rows[-1][started], rows[-1][0])


def text_frames(ledger: Ledger) -> Iterator[pl.DataFrame]:
    """What calls asked and got (schema ``CALL_TEXTS``): the texts, and both bodies."""
    calls = ledger_admin.calls(ledger)
    while some := list(islice(calls, TEXTS_AT_ONCE)):
        rows = []
        for call in some:
            request = orjson.loads(call.request)
            prompt = "\n\n".join(message["text"] for message in messages_of(request))
            body = call.response.decode("utf-8", "replace")
            answer = answer_text(request, call.response)
            rows.append((call.request_id, prompt, answer, call.request.decode(), body))
        yield pl.DataFrame(rows, schema=CALL_TEXTS, orient="row")


def lineage_query(
    shapes: Mapping[tuple[str, str], AbstractSet[str]],
    *,
    titled: Callable[[str, str], str],
    literal: Callable[[str], str],
) -> str:
    """SQL for one edge per row: child (a stage's row) -> what it was made from.

    ``shapes``: (dataset, stage) -> columns. Ids are those that ``synth trace`` takes. Kinds:
    ``source_row``, ``seed``, ``call`` (parent_stage ``calls``), ``plan``, and ``import`` for rows
    that no call of ours made.
    """
    selects = [
        f"SELECT {literal(dataset)} AS dataset, {literal(stage)} AS child_stage, {child} AS "  # noqa: S608
        f"child_id, {kind} AS kind, {parent_stage} AS parent_stage, {parent} AS parent_id "
        f"FROM {titled(dataset, stage)} WHERE {where}"
        for (dataset, stage), columns in shapes.items()
        if (child := _child(columns)) is not None
        for kind, parent_stage, parent, where in _edges(stage, columns)
    ]
    nothing = ", ".join(f"NULL::VARCHAR AS {name}" for name in EDGES)
    return " UNION ALL ".join([*selects, f"SELECT {nothing} WHERE false"])


_SOURCE_ROW = "source || ':' || source_row"
_PLACE = "cell || '/' || ordinal"


def _child(columns: AbstractSet[str]) -> str | None:
    if "record_id" in columns:
        return "record_id"
    if {"request_id", "item"} <= columns:
        return "request_id || '/' || item"
    if {"cell", "ordinal"} <= columns:
        return _PLACE
    return _SOURCE_ROW if {"source", "source_row"} <= columns else None


def _edges(stage: str, columns: AbstractSet[str]) -> Iterator[tuple[str, str, str, str]]:
    """(kind, parent stage, parent id, condition), each as SQL."""
    if {"source", "source_row"} <= columns:
        yield "'source_row'", "'human_raw'", _SOURCE_ROW, "source_row IS NOT NULL"
    if "request_id" in columns:
        imported = "starts_with(request_id, 'import:')"
        yield (
            f"CASE WHEN {imported} THEN 'import' ELSE 'call' END",
            f"CASE WHEN {imported} THEN NULL ELSE 'calls' END",
            "request_id",
            "request_id IS NOT NULL",
        )
    if "seed_ids" in columns:
        yield "'seed'", "'seeds'", "unnest(seed_ids)", "seed_ids IS NOT NULL"
    if stage != "plan" and {"cell", "ordinal"} <= columns:
        yield "'plan'", "'plan'", _PLACE, "ordinal IS NOT NULL"


def _file(made: Mapping[str, Any], name: str, listed: Mapping[str, Any]) -> dict[str, Any]:
    stage = name.removesuffix(".parquet")
    told = made["stages"].get(stage, {}) if stage != name else {}
    return {
        "file": name,
        "split": stage if stage in _SPLITS and stage != name else None,
        "rows": told.get("rows"),
        "data_version": told.get("data_version"),
        "sha256": listed.get("sha256"),
        "bytes": listed.get("bytes"),
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
