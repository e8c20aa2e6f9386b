"""Releases for tests: published as the graph publishes them, with texts that mean harm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from schemas.synthetic import PROVENANCE
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.release import ReleasedFile, StageVersion, manifest
from synth_assets.spec.model import DatasetSpec
from synth_assets.store.digest import file_sha256, frame_digest
from synth_assets.store.releases import ReleaseStore

HOSTILE = (
    "two\nlines",
    "windows\r\nline",
    "lone\rcarriage return",
    "\rleading carriage return",
    "quotes \" and ' and `",
    "comma, semicolon; tab\t, pipe |",
    "nul \0 inside",
    "bell \a escape \x1b[31m delete \x7f",
    "emoji 😀 family 👩‍👩‍👧",
    "right to left \u202eevil\u202c עברית العربية",
    "line separator \u2028 paragraph \u2029 next \x85 end",
    "\ufeffbyte order mark",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://example.com","x")',
    "+1 + 1",
    "-2",
    "@SUM(A1)",
    "\t=1",
    "＝1＋1",
    "'already quoted",
    "''twice",
    "---\nlicense: x\n---\n",
    "--- # not a document\n...\n",
    "</td></tr><script>alert(1)</script>",
    "| a | b |\n|---|---|",
    "[link](javascript:alert(1)) ![x](y)",
    "```\nfence\n```",
    '{"messages": []}',
    '], "output": "x"}',
    "\\ backslash \\n \\u0000 \\",
    "null",
    "NaN",
    "true",
    " padded ",
    "x" * 300_000,
)
LABELS = {
    "billing": "money",
    "no": "a word that YAML takes for false",
    "12": "a number",
    "---\nlicense: mit": "a header's end",
    "=1+1": "a formula",
    "a | b </td>": "a table's end",
    "über 😀 \u202e": "not ASCII",
    "\"quoted': {x}": "YAML's marks",
}
ATTRIBUTES: dict[str, Any] = {
    "description": "Tickets\n---\nlicense: x\n| a |</td><b>",
    "task": {"kind": "classification", "text": "body", "label": "topic", "labels": LABELS},
    "source": {
        "kind": "package",
        "package": "example==1.0",
        "sha256": "0" * 64,
        "member": "data.csv",
        "license": "Public domain\n---\nlicense: x</td>|",
    },
    "generate": {"model": "model|`x`\n", "target": {"per_label": 2}},
}
PROMPT = "Write {{ rows }} rows.\n```\n# not a heading\n---\nlicense: x\n````\n\0"
CONTRIBUTION = pl.DataFrame(
    {
        "scope": ["overall", "overall", "overall", "label"],
        "label": [None, None, None, "a | b </td>"],
        "arm": ["blend - human", "human", "blend", "blend"],
        "metric": ["verdict", "rows", "macro_f1", "f1"],
        "value": [None, 10.0, 0.75, 0.5],
        "low": [None, None, 0.7, None],
        "high": [None, None, 0.8, None],
        "n": [43, 10, 43, 5],
        "note": ["it | helps", "", "", ""],
    }
)


def rows(count: int = 0, *, split: str = "train", synthetic: bool = True) -> pl.DataFrame:
    """Every hostile text once, then ``count`` plain ones; with ``synthetic``, every other made."""
    texts = [*HOSTILE, *(f"{split} ticket number {place}" for place in range(count))]
    labels = [list(LABELS)[place % len(LABELS)] for place in range(len(texts))]
    human = pl.Series([not synthetic or place % 2 == 0 for place in range(len(texts))])
    table = pl.DataFrame({"text": texts, "label": labels, "human": human})
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    mine = pl.when("human")
    table = table.select(
        mine.then(pl.lit("human")).otherwise(pl.lit("synthetic")).alias("origin"),
        "text",
        "label",
        pl.lit(1.0).alias("weight"),
        pl.lit(split).alias("split"),
        mine.then(pl.lit("=human.csv")).alias("source"),
        mine.then(place + 1).alias("source_row"),
        mine.then(None).otherwise(pl.format("{}", place)).alias("request_id"),
        mine.then(None).otherwise(place % 8).cast(pl.Int32).alias("item"),
        mine.then(None)
        .otherwise(pl.concat_list(pl.lit('seed "1"'), pl.lit("=2\n")))
        .alias("seed_ids"),
        *(
            mine.then(None).otherwise(pl.lit("p")).alias(name)
            for name in ("prompt_version", "model")
        ),
        mine.then(None).otherwise("label").alias("cell"),
        mine.then(None).otherwise(pl.lit('{"tone":"angry"}')).alias("attributes"),
    )
    if not synthetic:
        table = table.drop(PROVENANCE)
    return with_record_id(table, ["text", "label", "split"], kind="test")


def publish(
    root: Path,
    tables: Mapping[str, pl.DataFrame] | None = None,
    *,
    dataset: str = "tickets",
    attributes: Mapping[str, Any] = ATTRIBUTES,
    description: str | None = None,
) -> Path:
    """A release below ``root``, made current; its folder. ``tables``: split -> rows."""
    found = {
        "train": rows(20),
        "validation": rows(split="validation", synthetic=False),
        "eval": rows(5, split="eval", synthetic=False),
        "contribution": CONTRIBUTION,
        **(tables or {}),
    }
    work = root.parent / "unpublished" / dataset
    work.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.parquet": work / f"{name}.parquet" for name in found}
    for name, frame in found.items():
        frame.write_parquet(files[f"{name}.parquet"])
    spec = DatasetSpec.model_validate(attributes)
    texts = {"README.md": "a card"}
    listed = {
        **{
            name: ReleasedFile(file_sha256(path), path.stat().st_size)
            for name, path in files.items()
        },
        **{name: ReleasedFile.of(text.encode()) for name, text in texts.items()},
    }
    made = manifest(
        dataset=dataset,
        description=spec.description if description is None else description,
        declared=spec.model_dump(mode="json", by_alias=True),
        prompt=PROMPT,
        stages=[
            StageVersion(name, frame_digest(frame), "0", frame.height)
            for name, frame in found.items()
        ],
        model={"name": spec.generate.model_name, "style": "chat", "temperature": 1.0},
        packages={},
        files=listed,
        checks={"train/no_leakage": True, "eval/contract": False},
        verdict="helps",
        sentence="The blend helps | a lot\n---\n</td>",
    )
    return ReleaseStore(root).publish(dataset, made, files, texts)
