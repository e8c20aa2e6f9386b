"""The release: an immutable folder that names everything it was made of."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import RELEASE, STAGES, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import Incomplete
from synth_assets.lifecycle.release import StageVersion, card, manifest
from synth_assets.lifecycle.verdicts import verdict_of
from synth_assets.report.tables import markdown_table
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.status import CheckStatus, check_statuses
from synth_assets.store.content import ContentStore
from synth_assets.store.io_manager import latest_version
from synth_assets.store.releases import ReleaseStore

SHIPPED = ("train", "validation", "eval", "contribution")
PACKAGES = (
    "synth_assets",
    "polars",
    "scikit-learn",
    "openai",
    "dlt",
    "duckdb",
    "pandera",
    "dagster",
)
SCHEMA = {
    "stage": pl.String,
    "data_version": pl.String,
    "code_version": pl.String,
    "rows": pl.Int64,
}


def release_lane(
    dataset: Dataset, checks: Mapping[dg.AssetCheckKey, bool]
) -> list[dg.AssetsDefinition]:
    """``checks``: every check of the dataset, key -> blocking."""
    return [_release(dataset, checks)]


def _release(dataset: Dataset, declared: Mapping[dg.AssetCheckKey, bool]) -> dg.AssetsDefinition:
    @tables(
        dataset, ["release"], only_versions_of=[s for s in RELEASE.parents if s != "contribution"]
    )
    def release(
        context: dg.AssetExecutionContext,
        workbench: dg.ResourceParam[Workbench],
        contribution: pl.DataFrame,
    ) -> Iterator[Any]:
        checks = check_statuses(context.instance, declared)
        with shown_to_user():
            _require(dataset, checks)
        store = ContentStore(workbench.home.store)
        versions = _stage_versions(dataset, context.instance, store)
        files = {
            f"{stage}.parquet": store.path(dataset.name, stage, versions[stage].data_version)
            for stage in SHIPPED
        }
        made = _manifest(dataset, versions, files, checks, verdict_of(contribution))
        folder = ReleaseStore(workbench.home.releases).publish(
            dataset.name, made, files, {"README.md": _card(made, contribution)}
        )
        table = pl.DataFrame([vars(v) for v in versions.values()], schema=SCHEMA)
        yield dg.Output(
            table,
            "release",
            metadata={
                "version": made["version"],
                "folder": dg.MetadataValue.path(str(folder)),
                "verdict": made["contribution"]["verdict"],
                "manifest": dg.MetadataValue.path(str(folder / "manifest.json")),
            },
        )

    return release


def _require(dataset: Dataset, checks: list[CheckStatus]) -> None:
    """Hold the release back when a required check has not passed."""
    for name in dataset.spec.release.require:
        found = [check for check in checks if check.name == name]
        failed = [check for check in found if not check.passed]
        if failed or not found:
            why = "; ".join(f"{c.stage}/{c.name}: {c.description or 'failed'}" for c in failed)
            raise Incomplete(
                f"not released, {name} is required: {why or 'it has not been checked'}",
                where=f"{dataset.name}/release",
                fix="mend what the check shows, or take it out of release.require",
            )


def _stage_versions(
    dataset: Dataset, instance: dg.DagsterInstance, store: ContentStore
) -> dict[str, StageVersion]:
    found = {}
    for stage in (name for name in STAGES if name != RELEASE.name):
        current = latest_version(instance, key(dataset, stage))
        rows = store.scan(dataset.name, stage, current).select(pl.len()).collect().item()
        code = code_version(dataset, STAGES[stage].shaped_by)
        found[stage] = StageVersion(stage, current, code, rows)
    return found


def _manifest(
    dataset: Dataset,
    versions: Mapping[str, StageVersion],
    files: Mapping[str, Path],
    checks: list[CheckStatus],
    contribution: tuple[str, str],
) -> dict[str, Any]:
    generate = dataset.spec.generate
    return manifest(
        dataset=dataset.name,
        description=dataset.spec.description,
        declared=dataset.spec.model_dump(mode="json", by_alias=True),
        prompt=dataset.prompt.text,
        stages=list(versions.values()),
        model={
            "name": generate.model_name,
            "style": generate.style,
            "endpoint": generate.endpoint.name or generate.endpoint.base_url_env,
            **generate.sampling(),
        },
        packages={
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        files={name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        checks={f"{c.stage}/{c.name}": c.passed for c in checks},
        verdict=contribution[0],
        sentence=contribution[1],
    )


def _card(made: Mapping[str, Any], contribution: pl.DataFrame) -> str:
    scores = contribution.drop_nulls("value").filter(pl.col("metric") != "verdict")
    count = pl.col("value").cast(pl.Int64).cast(pl.String)
    score = pl.col("value").round(3).cast(pl.String)
    scores = scores.with_columns(
        value=pl.when(pl.col("metric") == "rows").then(count).otherwise(score)
    )
    arms = scores.filter(pl.col("scope") == "overall").drop("scope", "label", "note")
    labels = scores.filter(pl.col("scope") != "overall").drop("scope", "note")
    return card(made, markdown_table(arms), markdown_table(labels, max_rows=200))
