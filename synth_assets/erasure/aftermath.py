"""What an erasure will change above generation: which seeds stay, and what must be asked anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
import polars as pl

from synth_assets.assets.human import partition_rules
from synth_assets.assets.planning import choose_seeds, plan_calls, rows_wanted
from synth_assets.assets.source import reading_of
from synth_assets.assets.stages import key
from synth_assets.erasure.impact import read_table
from synth_assets.erasure.labels import HumanLane, new_findings
from synth_assets.erasure.past import is_past
from synth_assets.errors import SynthError
from synth_assets.lifecycle.partition import partition
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.seats import Seats, seats_after
from synth_assets.lifecycle.support import Finding
from synth_assets.lifecycle.tombstones import Tombstones
from synth_assets.settings import Home
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.store.content import ContentStore
from synth_assets.store.erasures import Log
from synth_assets.tasks import task_for

NEEDED = ("human_raw", "human_train", "seeds", "plan", "candidates")


@dataclass(frozen=True)
class Aftermath:
    """``asked_anew``: calls among those made so far whose prompt will be another; label -> calls.

    ``findings``: what labels will lack that they do not lack now. None: not known, because the
    dataset's tables are not all there.
    """

    seats: Sequence[Seats] = ()
    asked_anew: Mapping[str, int] | None = None
    findings: Sequence[Finding] | None = None


def aftermath(
    dataset: Dataset, home: Home, instance: dg.DagsterInstance, stones: Tombstones
) -> Aftermath:
    """The human lane and the plan as they will come out without the rows of ``stones``."""
    if is_past(dataset):  # nothing is made of it any more
        return Aftermath(asked_anew={}, findings=())
    made = _standing(dataset, home, instance)
    seeds_code = made.pop("seeds code", None)
    nothing_asked = None if dataset.spec.generates else dict[str, int]()
    if "human_raw" not in made:
        return Aftermath(asked_anew=nothing_asked)
    raw = read_table(made["human_raw"])  # type: ignore[arg-type]
    try:
        before, after = (_lane(dataset, raw, these) for these in (Tombstones(), stones))
    except SynthError:
        return Aftermath(asked_anew=nothing_asked)
    findings = new_findings(dataset, before, after)
    if not dataset.spec.generates:
        return Aftermath(asked_anew=nothing_asked, findings=findings)
    if not set(NEEDED[:3]) <= made.keys() or seeds_code != code_version(dataset, "seeds"):
        return Aftermath(findings=findings)
    tables = {stage: read_table(path) for stage, path in made.items()}  # type: ignore[arg-type]
    left = after.train
    seats = seats_after(
        tables["seeds"],
        tables["human_train"].filter(pl.col("split") == "train"),
        left,
        stratum=task_for(dataset.spec).stratum,
        code=str(seeds_code),
    )
    if not set(NEEDED) <= tables.keys():
        return Aftermath(seats, findings=findings)
    try:
        chosen = choose_seeds(dataset, left, [*Log(home.root, dataset.name).seats(), *seats])
        plan = plan_calls(dataset, chosen, rows_wanted(dataset, after.sides.human_train))
    except SynthError:
        return Aftermath(seats, findings=findings)
    anew = _asked_anew(tables["plan"], plan, tables["candidates"])
    return Aftermath(seats, anew, findings)


def _lane(dataset: Dataset, raw: pl.DataFrame, stones: Tombstones) -> HumanLane:
    """The human lane without the rows of ``stones``."""
    task = task_for(dataset.spec)
    redacted = next(iter(stones.redact([raw], reading_of(dataset))))
    kept, rejects = task.read_human(redacted)
    rows = with_record_id(kept, task.payload, kind=task.kind).with_columns(origin=pl.lit("human"))
    rules = partition_rules(dataset)
    sides = partition(rows, rules, text=task.text, stratum=task.stratum)
    return HumanLane(rows, rejects, sides)


def _asked_anew(old: pl.DataFrame, new: pl.DataFrame, candidates: pl.DataFrame) -> dict[str, int]:
    """Of the calls made so far: those that are not among the requests made so far."""
    made = candidates.select("cell", "ordinal").unique()
    was = old.join(made, on=("cell", "ordinal"), how="semi").select("cell", "prompt", "sample")
    will = new.join(made, on=("cell", "ordinal"), how="semi")
    other = will.join(was, on=("cell", "prompt", "sample"), how="anti")
    return dict(other.group_by("cell").len().sort("cell").iter_rows())


def _standing(dataset: Dataset, home: Home, instance: dg.DagsterInstance) -> dict[str, object]:
    """Stage -> the stored table that now stands, and what the seeds were declared by."""
    store = ContentStore(home.store)
    found: dict[str, object] = {}
    for record in instance.get_asset_records([key(dataset, stage) for stage in NEEDED]):
        event = record.asset_entry.last_materialization
        made = event.asset_materialization if event else None
        tags = (made.tags if made else None) or {}
        stage, version = record.asset_entry.asset_key.path[-1], tags.get("dagster/data_version")
        if version is None or not (path := store.path(dataset.name, stage, version)).is_file():
            continue
        found[stage] = path
        if stage == "seeds":
            found["seeds code"] = tags.get("dagster/code_version")
    return found
