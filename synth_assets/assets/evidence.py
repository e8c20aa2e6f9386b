"""Check results: a table of what is wrong, never more than a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pandera.polars as pa
import polars as pl

from schemas import violations
from synth_assets.errors import shown
from synth_assets.lifecycle.support import Finding, frame_of, lines_of
from synth_assets.report.tables import markdown_table

SHOWN_ROWS = 20


def result(
    key: dg.AssetKey,
    name: str,
    found: pl.DataFrame,
    *,
    passed: bool | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    description: str = "",
    **numbers: Any,
) -> dg.AssetCheckResult:
    """A check over a table of findings: passes when it is empty (or as ``passed`` says)."""
    ok = found.is_empty() if passed is None else passed
    metadata: dict[str, Any] = {"findings": found.height, **numbers}
    if found.height:
        metadata["table"] = dg.MetadataValue.md(markdown_table(found.head(SHOWN_ROWS)))
    return dg.AssetCheckResult(
        passed=ok,
        asset_key=key,
        check_name=name,
        severity=severity,
        metadata=metadata,
        description=description or (None if ok else _first(found)),
    )


def warnings(
    key: dg.AssetKey, name: str, findings: Sequence[Finding], **numbers: Any
) -> dg.AssetCheckResult:
    """A check that blocks nothing: fails when there are findings, and says each on a line."""
    return result(
        key,
        name,
        frame_of(findings),
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join(lines_of(findings)),
        **numbers,
    )


def _first(found: pl.DataFrame) -> str:
    """How many findings and the first of them, for a line in a terminal."""
    if found.is_empty():
        return "failed"
    row = ", ".join(f"{name}={shown(value)}" for name, value in found.row(0, named=True).items())
    return f"{found.height} findings, the first: {row}"


def contract(
    key: dg.AssetKey, schema: pa.DataFrameSchema, frame: pl.DataFrame
) -> dg.AssetCheckResult:
    """The ``contract`` check of a table, with Pandera's failure cases."""
    return result(key, "contract", violations(schema, frame))
