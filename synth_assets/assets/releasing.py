"""The release: an immutable folder that names everything it was made of."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

import platform
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets import provenance
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.provenance import Standing
from synth_assets.assets.stages import RELEASE, SOURCE, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import Incomplete, SynthError
from synth_assets.lifecycle.release import (
    ReleasedFile,
    card,
    manifest,
    metrics_of,
    seed_lines,
    seeds_digest,
    without_user_info,
)
from synth_assets.lifecycle.verdicts import verdict_of
from synth_assets.spec.load import Dataset
from synth_assets.status import CheckStatus, check_statuses
from synth_assets.store.content import read_checksum
from synth_assets.store.digest import file_sha256
from synth_assets.store.releases import ReleaseStore
from synth_assets.tasks import task_for

SHIPPED = ("train", "validation", "eval", "contribution")
# What a release is made again from, under these names whatever the originals are called.
DEFS, PROMPT, SEEDS, CARD = "defs.yaml", "prompt.md.j2", "seeds.jsonl", "README.md"
PACKAGES = (
    "synth_assets",
    "polars",
    "numpy",
    "scipy",
    "scikit-learn",
    "openai",
    "dlt",
    "duckdb",
    "jinja2",
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
            _require(dataset, declared, checks)
            now = provenance.standing(dataset, context.instance, workbench)
            facts = _facts(now, workbench, checks, contribution)
            files = {f"{stage}.parquet": _path(now, stage) for stage in SHIPPED}
            texts = _texts(dataset) | {CARD: card(manifest(**facts, files={}), contribution)}
            listed = {name: _listed(path) for name, path in files.items()}
            listed |= {name: ReleasedFile.of(text.encode()) for name, text in texts.items()}
            made = manifest(**facts, files=listed)
            folder = ReleaseStore(workbench.home.releases).publish(dataset.name, made, files, texts)
        table = pl.DataFrame([vars(v) for v in now.versions.values()], schema=SCHEMA)
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


def _require(
    dataset: Dataset, declared: Collection[dg.AssetCheckKey], checks: list[CheckStatus]
) -> None:
    """Hold the release back unless every check of a required name has passed on what now stands.

    ``declared``: all checks of the dataset; ``checks``: those with a verdict that still counts.

    Raises:
        Incomplete: one has not, or there is none of that name.
    """
    verdicts = {(check.stage, check.name): check for check in checks}
    for name in dataset.spec.release.require:
        stages = sorted(key.asset_key.path[-1] for key in declared if key.name == name)
        told = [_why_not(verdicts.get((stage, name)), f"{stage}/{name}") for stage in stages]
        reasons = [why for why in told if why] if stages else ["there is no such check"]
        if reasons:
            raise Incomplete(
                f"not released, {name} is required: {'; '.join(reasons)}",
                where=f"{dataset.name}/release",
                fix="mend what the check shows, or take it out of release.require",
            )


def _why_not(check: CheckStatus | None, name: str) -> str:
    """Why a required check does not let a release through; empty when it does."""
    if check is None:
        return f"{name} has not been checked on what now stands"
    return "" if check.passed else f"{name}: {check.description or 'failed'}"


def _facts(
    now: Standing, workbench: Workbench, checks: list[CheckStatus], contribution: pl.DataFrame
) -> dict[str, Any]:
    """Everything in the manifest but its files."""
    dataset, task = now.dataset, task_for(now.dataset.spec)
    verdict, sentence = verdict_of(contribution)
    asked = provenance.request_ids(now)
    seeds = dataset.handwritten_seeds
    return {
        "dataset": dataset.name,
        "description": dataset.spec.description,
        "task": {
            "kind": task.kind,
            "payload": list(task.payload),
            "text": task.text,
            "stratum": task.stratum,
        },
        "source": {
            "version": now.source_versions[SOURCE],
            **{name: v for name, v in now.source_versions.items() if name != SOURCE},
        },
        "stages": list(now.versions.values()),
        "counts": provenance.counts(now),
        "partition": provenance.partition_of(now),
        "prompt": dataset.prompt.text,
        "system": dataset.spec.generation.system if dataset.spec.generates else None,
        "seeds": {"handwritten": len(seeds), "sha256": seeds_digest(seeds) if seeds else None},
        "declared": without_user_info(dataset.spec.model_dump(mode="json", by_alias=True)),
        "model": provenance.model_of(dataset, workbench, asked),
        "requests": provenance.requests_of(asked),
        "packages": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "checks": {f"{c.stage}/{c.name}": c.passed for c in checks},
        "verdict": verdict,
        "sentence": sentence,
        "metrics": metrics_of(contribution),
    }


def _texts(dataset: Dataset) -> dict[str, str]:
    """The declaration, without passwords, and what it reads."""
    declaration = without_user_info(dataset.file.read_text(encoding="utf-8-sig"))
    texts = {DEFS: declaration}
    if dataset.spec.generates:
        texts[PROMPT] = dataset.prompt.text
    if dataset.handwritten_seeds:
        texts[SEEDS] = seed_lines(dataset.handwritten_seeds).decode()
    return texts


def _path(now: Standing, stage: str) -> Path:
    return now.store.path(now.dataset.name, stage, now.versions[stage].data_version)


def _listed(path: Path) -> ReleasedFile:
    """A stored table as it is to be released.

    Raises:
        SynthError: when its bytes are not those that were written.
    """
    kept, found = read_checksum(path), file_sha256(path)
    if kept is not None and kept != found:
        raise SynthError(
            "the stored table is damaged",
            where=str(path),
            fix=f"make it again: synth run {path.parents[1].name} --force {path.parent.name}",
        )
    return ReleasedFile(found, path.stat().st_size)
