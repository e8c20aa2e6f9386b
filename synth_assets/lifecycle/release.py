"""A release: what it says about itself. Pure text and values; files are the store's work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import polars as pl

from synth_assets.lifecycle import licenses
from synth_assets.report.tables import escape_markdown, markdown_table

MANIFEST_VERSION = 2
VERSION_CHARS = 16
MAX_TEXT_CHARS = 4_000
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")


@dataclass(frozen=True)
class StageVersion:
    """One stage as it stands: content hash, declaration hash, rows."""

    stage: str
    data_version: str
    code_version: str
    rows: int | None


@dataclass(frozen=True)
class ReleasedFile:
    """One file of a release: the hash of its bytes (hex) and how many there are."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> ReleasedFile:
        return cls(hashlib.sha256(content).hexdigest(), len(content))


def manifest(
    *,
    dataset: str,
    description: str,
    declared: Mapping[str, Any],
    prompt: str,
    stages: Sequence[StageVersion],
    model: Mapping[str, Any],
    packages: Mapping[str, str],
    files: Mapping[str, ReleasedFile],
    checks: Mapping[str, bool],
    verdict: str,
    sentence: str,
    system: str | None = None,
    seeds: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    requests: Mapping[str, Any] | None = None,
    partition: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything needed to know, and to make again, this version.

    No times and no paths of this machine: same content, same bytes. ``version`` is made from all
    other fields, those of ``files`` among them.
    """
    body: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "dataset": dataset,
        "description": description,
        "task": dict(task or {}),
        "source": dict(source or {}),
        "stages": {
            s.stage: {
                "data_version": s.data_version,
                "code_version": s.code_version,
                "rows": s.rows,
            }
            for s in stages
        },
        "counts": dict(counts or {}),
        "partition": dict(partition or {}),
        "prompt": prompt,
        "system": system,
        "seeds": dict(seeds or {}),
        "declared": dict(declared),
        "model": dict(model),
        "requests": dict(requests or {}),
        "packages": dict(packages),
        "files": {
            name: {"sha256": file.sha256, "bytes": file.size} for name, file in files.items()
        },
        "checks": dict(checks),
        "contribution": {
            "verdict": verdict,
            "sentence": sentence,
            "metrics": [dict(metric) for metric in metrics],
        },
    }
    return {"version": version_of(body), **body}


def version_of(body: Mapping[str, Any]) -> str:
    """Content hash of a manifest without its ``version``, first 16 hex digits.

    The order of keys counts: that of declared labels is the order of classes.
    """
    rest = {key: value for key, value in body.items() if key != "version"}
    return hashlib.sha256(orjson.dumps(rest)).hexdigest()[:VERSION_CHARS]


def manifest_bytes(body: Mapping[str, Any]) -> bytes:
    """The one way a manifest is written, so that any change of the file can be seen."""
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def without_user_info(value: Any) -> Any:
    """``value`` (JSON) with user names and passwords in addresses replaced by ``***``."""
    if isinstance(value, str):
        return _USER_INFO.sub("***@", value)
    if isinstance(value, Mapping):
        return {key: without_user_info(inner) for key, inner in value.items()}
    return [without_user_info(inner) for inner in value] if isinstance(value, list) else value


def metrics_of(contribution: pl.DataFrame) -> list[dict[str, Any]]:
    """Overall scores and differences out of ``Contribution.table()``, with 95 % limits.

    One mapping each: arm (or comparison), metric, value, low, high, n (held-out rows).
    """
    overall = (pl.col("scope") == "overall") & ~pl.col("metric").is_in(["verdict", "rows"])
    return (
        contribution.filter(overall).select("arm", "metric", "value", "low", "high", "n").to_dicts()
    )


def seeds_digest(rows: Sequence[Mapping[str, str]]) -> str:
    """sha256 of hand-written seeds, independent of how their file is laid out."""
    return hashlib.sha256(seed_lines(rows)).hexdigest()


def seed_lines(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Hand-written seeds as JSON lines."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(dict(row), option=options) for row in rows)


def card(manifest: Mapping[str, Any], contribution: pl.DataFrame) -> str:
    """README.md of a release: what it is, how it was made, whether it helped, what it is not.

    It does not name the release's version, which is made from the card's own hash too.
    """
    arms, labels = _score_tables(contribution)
    checks = "\n".join(
        f"- {'passed' if ok else 'NOT PASSED'}: {escape_markdown(name)}"
        for name, ok in manifest["checks"].items()
    )
    return f"""# {escape_markdown(manifest["dataset"])}

{escape_markdown(manifest["description"], max_chars=MAX_TEXT_CHARS)}

{_split_table(manifest)}

Human rows come from {_origin(manifest["declared"])}. {_writers(manifest)}
{_mix(manifest)}
{partition_text(manifest)}

## Did the synthetic rows help?

{escape_markdown(manifest["contribution"]["sentence"], max_chars=MAX_TEXT_CHARS)}

{arms}

{labels}

## Checks

{checks}

## What lies beside this file

`manifest.json` names every stage's data and code version, the prompt in full, parameters, package
versions and the sha256 of every file here; its own hash is this release's version and the folder's
name. `synth verify` checks all of it. `defs.yaml` and the prompt are as they were when the release
was made: `synth reproduce` makes it again from them, the ledger and the source.
"""


def _writers(manifest: Mapping[str, Any]) -> str:
    """Who wrote the synthetic rows, as far as the manifest knows."""
    if (name := manifest["model"].get("name")) is not None:
        written = f"Synthetic rows were written by\n{escape_markdown(name)}"
    elif imports(manifest["declared"]):
        written = "Synthetic rows were imported,\nnone were generated: `model` says who wrote each"
    else:
        return "There are no synthetic rows."
    return f"{written}; `origin` tells the two apart in every row."


def imports(declared: Mapping[str, Any]) -> bool:
    """Whether a declaration has a source of synthetic rows."""
    return any(one.get("role") == "synthetic" for one in declared.get("sources") or [])


def partition_text(manifest: Mapping[str, Any]) -> str:
    """What put human rows on their sides and what was removed, in Markdown; "" in old releases."""
    made = manifest.get("partition") or {}
    if not made:
        return ""
    told = [_held_out(made), _tuned_on(made)]
    for side, title in (
        ("holdout", "official test"),
        ("validation", "official validation"),
        ("train", "training"),
    ):
        removed = made["sides"].get(side, {}).get("not_used") or {}
        if removed:
            reasons = ", ".join(f"{escape_markdown(name)} {n:,}" for name, n in removed.items())
            told.append(f"Rows of the {title} split that are not used: {reasons}.")
        elif side == "holdout" and "not_used" in made["sides"].get(side, {}):
            told.append("Every row of the official test split is used.")
    told.append(_too_alike(made))
    return " ".join(told)


def _held_out(made: Mapping[str, Any]) -> str:
    rows = f"({made['sides']['holdout']['rows'] or 0:,} rows)"
    if made["by"] == "column":
        named = _listed(made["holdout"])
        return f"Official test split: column {escape_markdown(made['column'])} = {named} {rows}."
    if made["by"] == "sources":
        return f"Official test split: source {_listed(made['holdout'])} {rows}."
    grouped = f", in groups by {_listed(made['group_by'])}" if made["group_by"] else ""
    return (
        f"Evaluation rows were chosen by salted hash, share {made['holdout']}, salt "
        f"{escape_markdown(made['salt'])}{grouped} {rows}."
    )


def _tuned_on(made: Mapping[str, Any]) -> str:
    rows, validation = made["sides"]["validation"]["rows"] or 0, made["validation"]
    if not validation:
        return "There are no validation rows."
    if isinstance(validation, list):
        what = "column" if made["by"] == "column" else "source"
        name = f" {escape_markdown(made['column'])} =" if made["by"] == "column" else ""
        return f"Validation rows: {what}{name} {_listed(validation)} ({rows:,} rows)."
    of = "human" if made["by"] == "hash" else "training"
    return f"Validation rows: a share of {validation} of the {of} rows by salted hash ({rows:,})."


def _too_alike(made: Mapping[str, Any]) -> str:
    if made["near_copies"] == "keep":
        kept = sum((made.get("kept_despite") or {}).values())
        return (
            "Near-copies on different sides were kept, as declared: "
            f"{kept:,} training and validation rows are like an evaluation or validation row."
        )
    stays = "test" if made["near_copies"] == "drop_train" else "training"
    return f"Of near-copies on different sides, the row of the {stays} side was kept."


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(escape_markdown(str(name)) for name in names)


def _split_table(manifest: Mapping[str, Any]) -> str:
    titles = {
        "train": "train",
        "validation": "validation (human)",
        "eval": "eval (human, held out)",
    }
    splits = manifest["counts"].get("splits", {})
    rows = [
        {
            "split": title,
            "rows": manifest["stages"][split]["rows"],
            "human": splits.get(split, {}).get("human"),
            "synthetic": splits.get(split, {}).get("synthetic"),
            "data version": manifest["stages"][split]["data_version"][:VERSION_CHARS],
        }
        for split, title in titles.items()
    ]
    return markdown_table(pl.DataFrame(rows))


def _origin(declared: Mapping[str, Any]) -> str:
    """Where human rows come from, in words, with what may be done with them."""
    single = declared.get("source")
    several = [s for s in declared.get("sources") or [] if s.get("role") != "synthetic"]
    sources = [single] if single else several
    told = []
    for source in sources:
        name = source.get("package") or source.get("path") or source.get("name") or source["kind"]
        licence = source.get("license") or "as declared by the source's owner"
        told.append(f"{escape_markdown(str(name))} ({escape_markdown(licence)})")
    return ", ".join(told) or "people"


def _mix(manifest: Mapping[str, Any]) -> str:
    """That licences differ, and which rows are under which; nothing where there is one."""
    rows = manifest["counts"].get("sources")
    found = licenses.shares(manifest["declared"].get("sources") or [], rows)
    if not licenses.is_mix(found):
        return ""
    told = escape_markdown(licenses.told(found), max_chars=MAX_TEXT_CHARS)
    return f"\nThe licences are mixed: {told}. `source` says of every row which it is under.\n"


def _score_tables(contribution: pl.DataFrame) -> tuple[str, str]:
    """Arms and comparisons, and labels, as Markdown; counts without decimals."""
    scores = contribution.drop_nulls("value").filter(pl.col("metric") != "verdict")
    count = pl.col("value").cast(pl.Int64, strict=False).cast(pl.String)
    score = pl.col("value").round(3).cast(pl.String)
    scores = scores.with_columns(
        value=pl.when(pl.col("metric") == "rows").then(count).otherwise(score)
    )
    arms = scores.filter(pl.col("scope") == "overall").drop("scope", "label", "note")
    labels = scores.filter(pl.col("scope") != "overall").drop("scope", "note")
    return markdown_table(arms), markdown_table(labels, max_rows=200)
