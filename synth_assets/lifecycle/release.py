"""A release: what it says about itself. Pure text and values; files are the store's work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from synth_assets.report.tables import escape_markdown

MANIFEST_VERSION = 1
VERSION_CHARS = 16
MAX_TEXT_CHARS = 4_000


@dataclass(frozen=True)
class StageVersion:
    """One stage as it stands: content hash, declaration hash, rows."""

    stage: str
    data_version: str
    code_version: str
    rows: int | None


def manifest(
    *,
    dataset: str,
    description: str,
    declared: Mapping[str, Any],
    prompt: str,
    stages: Sequence[StageVersion],
    model: Mapping[str, Any],
    packages: Mapping[str, str],
    files: Mapping[str, str],
    checks: Mapping[str, bool],
    verdict: str,
    sentence: str,
) -> dict[str, Any]:
    """Everything needed to know, and to make again, this version. No times: same input, same bytes.

    ``files``: file name -> sha256 of its bytes. ``version`` is made from all other fields.
    """
    body: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "dataset": dataset,
        "description": description,
        "stages": {
            s.stage: {
                "data_version": s.data_version,
                "code_version": s.code_version,
                "rows": s.rows,
            }
            for s in stages
        },
        "prompt": prompt,
        "declared": dict(declared),
        "model": dict(model),
        "packages": dict(packages),
        "files": dict(files),
        "checks": dict(checks),
        "contribution": {"verdict": verdict, "sentence": sentence},
    }
    return {"version": version_of(body), **body}


def version_of(body: Mapping[str, Any]) -> str:
    """Content hash of a manifest without its ``version``, first 16 hex digits."""
    rest = {key: value for key, value in body.items() if key != "version"}
    data = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:VERSION_CHARS]


def card(manifest: Mapping[str, Any], arms: str, labels: str) -> str:
    """README.md of a release: what it is, how it was made, whether it helped, what it is not.

    ``arms`` and ``labels`` are Markdown tables.
    """
    stages = manifest["stages"]
    source = manifest["declared"]["source"]
    origin = source.get("package") or source.get("path") or source["kind"]
    licence = escape_markdown(source.get("license") or "as declared by the source's owner")
    checks = "\n".join(
        f"- {'passed' if ok else 'NOT PASSED'}: {name}" for name, ok in manifest["checks"].items()
    )
    return f"""# {escape_markdown(manifest["dataset"])} {manifest["version"]}

{escape_markdown(manifest["description"], max_chars=MAX_TEXT_CHARS)}

| split | rows |
|---|---|
| train | {stages["train"]["rows"]} |
| validation (human) | {stages["validation"]["rows"]} |
| eval (human, held out) | {stages["eval"]["rows"]} |

Human rows come from {escape_markdown(str(origin))} ({licence}). Synthetic rows were written by
{escape_markdown(manifest["model"]["name"])}; `origin` tells the two apart in every row.

## Did the synthetic rows help?

{escape_markdown(manifest["contribution"]["sentence"], max_chars=MAX_TEXT_CHARS)}

{arms}

{labels}

## Checks

{checks}

The manifest names every stage's data and code version, the prompt in full, parameters and package
versions.
"""
