"""What a release says it was made of, gathered from Dagster's records, tables and ledger."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import orjson
import polars as pl

from synth_assets.assets.human import partition_rules
from synth_assets.assets.source import source_versions
from synth_assets.assets.stages import RELEASE, STAGES, key, made_from, sources_of, stages_of
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import Incomplete, SynthError
from synth_assets.lifecycle.partition import KEPT
from synth_assets.lifecycle.release import StageVersion
from synth_assets.llm.endpoint import host_of
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset, load_dataset
from synth_assets.store.content import ContentStore

SPLITS = ("train", "validation", "eval")
# Where the ledger is, when it is not in the home.
LEDGER_URL_ENV = "SYNTH_LEDGER_URL"
_VERSION, _CODE, _INPUT = (
    "dagster/data_version",
    "dagster/code_version",
    "dagster/input_data_version",
)


@dataclass(frozen=True)
class Standing:
    """A dataset's tables as they stand: what each is, and how to read it."""

    dataset: Dataset
    store: ContentStore
    versions: Mapping[str, StageVersion]
    source_versions: Mapping[str, str]

    def rows(self, stage: str) -> int | None:
        """How many rows a stage has; 0 for one that the dataset does not have."""
        return self.versions[stage].rows if stage in self.versions else 0

    def scan(self, stage: str) -> pl.LazyFrame:
        return self.store.scan(self.dataset.name, stage, self.versions[stage].data_version)


def standing(dataset: Dataset, instance: dg.DagsterInstance, workbench: Workbench) -> Standing:
    """Every stage but the release, each made from the others as they stand.

    Raises:
        Incomplete: a stage is missing, or was made by another declaration or from other tables
            than now stand: what a release said of it would not be true.
    """
    _unchanged(dataset)
    store = ContentStore(workbench.home.store)
    stages, sources = stages_of(dataset), sources_of(dataset)
    tags = {stage: _tags(dataset, instance, stage) for stage in stages if stage != RELEASE.name}
    found = {}
    for stage, made in tags.items():
        declared = code_version(dataset, STAGES[stage].shaped_by)
        if made.get(_CODE) != declared:
            raise _not_in_step(dataset, f"{stage} was made by another declaration than now stands")
        for parent in made_from(dataset, stage):
            seen = made.get(f"{_INPUT}/{dataset.name}/{parent}")
            if parent not in sources and seen != tags[parent].get(_VERSION):
                raise _not_in_step(
                    dataset, f"{stage} was made from another {parent} than now stands"
                )
        rows = store.scan(dataset.name, stage, made[_VERSION]).select(pl.len()).collect().item()
        found[stage] = StageVersion(stage, made[_VERSION], declared, int(rows))
    landed = {
        name: tags[stage].get(f"{_INPUT}/{dataset.name}/{name}", "")
        for name, stage in zip(sources, ("human_raw", "imported_raw"), strict=False)
    }
    # Else Dagster's own word for a source that was not looked at before it was read.
    known = all(len(version) == hashlib.sha256().digest_size * 2 for version in landed.values())
    versions = landed if known else source_versions(dataset, workbench.home)
    return Standing(dataset, store, found, versions)


def counts(now: Standing) -> dict[str, Any]:
    """Rows per split and origin, and what was accepted and set aside, by reason.

    Of several sources: rows per source, too, since what may be done with them can differ.
    """
    several: dict[str, Any] = {}
    if now.dataset.spec.source is None:
        name = pl.col("source").str.split("/").list.first()
        rows = pl.concat([now.scan(split).select(source=name) for split in SPLITS]).drop_nulls()
        several["sources"] = _per(rows, "source")
    return {
        **several,
        "splits": {split: _per(now.scan(split), "origin") for split in SPLITS},
        "candidates": now.rows("candidates"),
        "accepted": now.rows("synthetic"),
        "rejected": _per(now.scan("rejects"), "reason") if "rejects" in now.versions else {},
        "human_rejected": _per(now.scan("human_rejects"), "reason"),
        "set_aside": _per(now.scan("set_aside"), "reason"),
    }


def partition_of(now: Standing) -> dict[str, Any]:
    """What put human rows on their sides, and what became of each side's rows.

    ``source_rows`` of a side and why they were ``not_used`` are known of official folds only.
    """
    spec = now.dataset.spec
    declared, official = spec.partition, spec.official
    train, side = now.scan("human_train"), "split"
    per_side = _per(train, side) | {"holdout": now.rows("holdout")}
    sides: dict[str, dict[str, Any]] = {
        name: {"rows": per_side.get(name, 0)} for name in ("train", "validation", "holdout")
    }
    if official:
        for name, removed in _removed(now).items():
            sides[name]["not_used"] = removed
    found: dict[str, Any] = {
        "by": "column" if declared.column else "sources" if official else "hash",
        "column": declared.column,
        "holdout": declared.holdout,
        "validation": partition_rules(now.dataset).validation or None,
        "salt": declared.salt,
        "group_by": declared.group_by,
        "near_copies": declared.near_copies,
        "sides": sides,
    }
    if declared.column:
        found["validation"] = declared.validation
    elif official:
        named = {
            side: [source.name for source in spec.human_sources if source.split == side]
            for side in ("holdout", "validation")
        }
        found |= {side: names for side, names in named.items() if names}
    if declared.near_copies == "keep":
        found["kept_despite"] = _per(train.drop_nulls(KEPT), KEPT)
    return found


def _removed(now: Standing) -> dict[str, dict[str, int]]:
    """Side -> reason -> rows of the official fold that are not used.

    What a hash made validation rows of the training fold counts there.
    """
    parts = [
        now.scan("human_rejects").select(side="side", reason="reason"),
        now.scan("set_aside").select(side="split", reason="reason"),
    ]
    counted = pl.concat(parts).drop_nulls().group_by("side", "reason").len().sort("side", "reason")
    found: dict[str, dict[str, int]] = {side: {} for side in ("train", "validation", "holdout")}
    for side, reason, rows in counted.collect(engine="streaming").iter_rows():
        found[side][reason] = rows
    return found


def request_ids(now: Standing) -> list[str]:
    """Every call whose answer is among the candidates, sorted."""
    if "candidates" not in now.versions:
        return []
    ids = now.scan("candidates").select(pl.col("request_id").unique()).drop_nulls()
    return ids.collect(engine="streaming")["request_id"].sort().to_list()


def requests_of(ids: list[str]) -> dict[str, Any]:
    """How many calls, and the sha256 over their sorted ids, one a line."""
    lines = "".join(f"{one}\n" for one in ids).encode()
    return {"count": len(ids), "sha256": hashlib.sha256(lines).hexdigest()}


def model_of(dataset: Dataset, workbench: Workbench, ids: list[str]) -> dict[str, Any]:
    """The model as declared, and as the ledger says that it was asked. Never a key.

    ``identity`` is the sha256 of the endpoint's identity, which may be a whole address;
    ``output_mode`` what of ``output`` the endpoint turned out to understand. Only the ``name``,
    None, where nothing is generated.
    """
    if not dataset.spec.generates:
        return {"name": None}
    generate = dataset.spec.generation
    location = os.environ.get(LEDGER_URL_ENV, "").strip() or workbench.home.ledger
    with Ledger.open(location) as ledger:
        call = ledger.call(ids[0]) if ids else None
    identity = call.endpoint if call else None
    return {
        "name": generate.model_name,
        "asked_as": call.model if call else None,
        "style": generate.style,
        "output": generate.output,
        "output_mode": _mode(orjson.loads(call.request)["body"]) if call else None,
        "endpoint": {
            "name": generate.endpoint.name,
            "host": _host(dataset, identity),
            "identity": identity and hashlib.sha256(identity.encode()).hexdigest(),
        },
        "sampling": generate.sampling(),
    }


def _mode(body: Mapping[str, Any]) -> str:
    """How an answer was asked for, read off a request."""
    if "tools" in body or "functions" in body:
        return "tool"
    return str((body.get("response_format") or {}).get("type") or "list")


def _host(dataset: Dataset, identity: str | None) -> str | None:
    """The endpoint's host and port: as asked, else as declared or in the environment."""
    if dataset.spec.generation.model_name.startswith("embedded/"):
        return None
    declared = dataset.spec.generation.endpoint
    address = declared.base_url or os.environ.get(declared.base_url_env, "")
    if identity and "://" in identity:
        address = identity
    return host_of(address) if address else None


def _unchanged(dataset: Dataset) -> None:
    """What is released beside the tables must be what they were made with.

    Raises:
        Incomplete: the dataset's files are others than when this process read them.
    """
    found = load_dataset(dataset.folder)
    same = found is not None and (
        (found.spec, found.prompt.text, found.handwritten_seeds)
        == (dataset.spec, dataset.prompt.text, dataset.handwritten_seeds)
    )
    if not same:
        raise Incomplete(
            "not released: the dataset's files changed after they were read",
            where=str(dataset.folder),
            fix="reload the definitions, or run again",
        )


def _tags(dataset: Dataset, instance: dg.DagsterInstance, stage: str) -> Mapping[str, str]:
    event = instance.get_latest_materialization_event(key(dataset, stage))
    made = event.asset_materialization if event else None
    if made is None or _VERSION not in (made.tags or {}):
        raise _not_in_step(dataset, f"{stage} has not been made")
    return made.tags or {}


def _not_in_step(dataset: Dataset, problem: str) -> SynthError:
    return Incomplete(
        f"not released: {problem}",
        where=f"{dataset.name}/{RELEASE.name}",
        fix=f"synth run {dataset.name}",
    )


def _per(rows: pl.LazyFrame, column: str) -> dict[str, int]:
    counted = rows.group_by(column).len().sort(column).collect(engine="streaming")
    return {str(name): int(count) for name, count in counted.iter_rows()}
