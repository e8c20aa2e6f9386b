"""What labels will lack once rows are erased: what the checks find, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from synth_assets.assets.planning import choose_seeds, plan_findings
from synth_assets.errors import SynthError, shown
from synth_assets.lifecycle.partition import Partitioned
from synth_assets.lifecycle.support import Finding, counts_by_side, of_sides, of_source
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for

# Said better by the label's own sentence where it loses its last training row.
_SAID = frozenset({"no_row", "none_used", "no_train"})


@dataclass(frozen=True)
class HumanLane:
    """Usable rows, those set aside with reasons, and the sides."""

    human: pl.DataFrame
    rejects: pl.DataFrame
    sides: Partitioned

    @property
    def train(self) -> pl.DataFrame:
        return self.sides.human_train.filter(pl.col("split") == "train")


def new_findings(dataset: Dataset, before: HumanLane, after: HumanLane) -> list[Finding]:
    """What is found ``after`` and not ``before``; a last training row that goes comes first."""
    stratum = task_for(dataset.spec).stratum
    labels = before.human[stratum].unique().sort().to_list()
    if gone := _nothing_left(after):
        return [gone]
    lost = _lost(before, after, stratum)
    said = {finding.label for finding in lost}
    known = {(one.kind, one.label) for one in _findings(dataset, before, labels)}
    return lost + [
        one
        for one in _findings(dataset, after, labels)
        if (one.kind, one.label) not in known and not (one.label in said and one.kind in _SAID)
    ]


def _nothing_left(after: HumanLane) -> Finding | None:
    for name, rows in (
        ("usable", after.human),
        ("training", after.train),
        ("holdout", after.sides.holdout),
    ):
        if rows.is_empty():
            told = f"no {name} human row is left: the next run stops there"
            return Finding("stops", "", told, "more human rows")
    return None


def _lost(before: HumanLane, after: HumanLane, stratum: str) -> list[Finding]:
    had, has = (set(lane.train[stratum]) for lane in (before, after))
    left = counts_by_side(
        after.human, *after.sides, stratum=stratum, labels=sorted(had - has)
    ).filter(pl.col("label").is_in(sorted(had - has)))
    return [
        Finding(
            "last_training_row",
            row["label"],
            f"{shown(row['label'])} loses its last training row ({_rest(row)})",
            "more human rows of it",
        )
        for row in left.iter_rows(named=True)
    ]


def _rest(row: Mapping[str, int]) -> str:
    if not row["human"]:
        return "no human row of it is left"
    return f"{row['human']} human left, {row['holdout']} of them held out"


def _findings(dataset: Dataset, lane: HumanLane, labels: list[str]) -> list[Finding]:
    """All that the checks of the human lane and of the plan, if there is one, would find."""
    task = task_for(dataset.spec)
    used = dict(lane.human.group_by(task.stratum).len().iter_rows())
    found = of_source(task.strata(), used, lane.rejects)
    found += of_sides(counts_by_side(lane.human, *lane.sides, stratum=task.stratum, labels=labels))
    if not dataset.spec.generates:
        return found
    # How many seeds a label has does not depend on which they are.
    seeds = dataset.spec.seeds.model_copy(update={"strategy": "random"})
    quick = replace(dataset, spec=dataset.spec.model_copy(update={"seeds": seeds}))
    try:
        chosen = choose_seeds(quick, lane.train)
        return found + plan_findings(quick, chosen, lane.sides.human_train)
    except SynthError as error:
        return [*found, Finding("stops", "", f"the next run stops: {error.problem}", error.fix)]
