"""The human lane: source -> human_raw -> human -> human_train, holdout."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from schemas.human import human_rows
from synth_assets.assets import evidence
from synth_assets.assets.allowed import allowed_values
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.loading import load
from synth_assets.assets.stages import FEW_LOST, check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import SourceError
from synth_assets.lifecycle.leakage import group_overlap, leaks
from synth_assets.lifecycle.losses import MOST_SET_ASIDE, Rows, lost_shares
from synth_assets.lifecycle.partition import (
    KEPT,
    SIDE,
    Partitioned,
    PartitionRules,
    partition,
    with_group,
)
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.support import (
    LEAST_HOLDOUT,
    LEAST_TRAIN,
    MOST_SENTENCES,
    Finding,
    counts_by_side,
    of_sides,
    of_source,
)
from synth_assets.report.tables import markdown_table
from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for
from synth_assets.tasks.official import Official

# What the declaration asks to be set aside, or a person did: nothing that goes wrong unseen.
ASKED_FOR = ("dropped_label", "erased", "beyond_limit_train", "other_fold")
OFFICIAL = "official_rows"


def human_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_human_raw(dataset), _human(dataset), _sides(dataset)]


def _human_raw(dataset: Dataset) -> dg.AssetsDefinition:
    @tables(dataset, ["human_raw"])
    def human_raw(workbench: dg.ResourceParam[Workbench]) -> Iterator[Any]:
        with shown_to_user():
            raw, metadata = load(dataset, workbench, "human", into=dataset.name)
        yield dg.Output(raw, "human_raw", metadata=metadata)

    return human_raw


def _human(dataset: Dataset) -> dg.AssetsDefinition:
    task, official = task_for(dataset.spec), dataset.spec.official

    @tables(
        dataset,
        ["human", "human_rejects"],
        checks=[
            check(dataset, "human", "contract", "Ids unique, payload present, labels known."),
            check(dataset, "human", "nothing_lost", "Every source row is used or set aside."),
            check(
                dataset,
                "human",
                "label_support",
                "Every declared label has usable rows; none is misspelt.",
                blocking=False,
            ),
            check(
                dataset,
                "human_rejects",
                FEW_LOST,
                f"At most {MOST_SET_ASIDE:.0%} of the source's rows are set aside.",
                blocking=False,
            ),
            *_official_check(dataset, "human"),
        ],
    )
    def human(human_raw: pl.DataFrame) -> Iterator[Any]:
        kept, rejects = task.read_human(human_raw)
        reasons = _counts(rejects, "reason")
        with shown_to_user():
            _folds_exist(dataset, human_raw)
            if kept.is_empty():
                told = [f.sentence for f in of_source(task.strata(), {}, rejects)]
                raise SourceError(
                    f"no usable row among {human_raw.height}: {reasons or 'the source is empty'}"
                    + "".join(f"; {one}" for one in told[:MOST_SENTENCES]),
                    where=f"{dataset.name}/human",
                    fix="check task.text, task.label, task.labels and the rejects' reasons",
                )
        rows = with_record_id(kept, task.payload, kind=task.kind).with_columns(
            origin=pl.lit("human")
        )
        labels = _counts(rows, task.stratum)
        sides = {"sides": _counts(rows, SIDE)} if official else {}
        yield dg.Output(rows, "human", metadata={"labels": labels, **sides})
        by_side = {
            f"reasons/{side}": _counts(rejects.filter(pl.col(SIDE) == side), "reason")
            for side in (_counts(rejects.drop_nulls(SIDE), SIDE) if official else ())
        }
        yield dg.Output(rejects, "human_rejects", metadata={"reasons": reasons, **by_side})
        yield evidence.contract(
            key(dataset, "human"),
            human_rows(task.payload, allowed_values(dataset), official=official),
            rows,
        )
        if official:
            removed = rejects.filter(pl.col(SIDE) == "holdout")
            used = rows.filter(pl.col(SIDE) == "holdout").height
            yield _official_rows(dataset, "human", removed, used)
        yield evidence.result(
            key(dataset, "human"),
            "nothing_lost",
            rejects.clear(),
            passed=rows.height + rejects.height == human_raw.height,
            source_rows=human_raw.height,
            used=rows.height,
            set_aside=rejects.height,
        )
        yield evidence.warnings(
            key(dataset, "human"), "label_support", of_source(task.strata(), labels, rejects)
        )
        lost = _share_of_source(rows, rejects, task.stratum)
        yield evidence.warnings(key(dataset, "human_rejects"), FEW_LOST, lost)

    return human


def _share_of_source(rows: pl.DataFrame, rejects: pl.DataFrame, stratum: str) -> list[Finding]:
    found = Rows(
        "source rows",
        "set aside",
        "human_rejects",
        pl.concat([_places(rows, stratum), _places(rejects, "label")]),
        ASKED_FOR,
    )
    return lost_shares(found, most=MOST_SET_ASIDE, labels=rows[stratum].unique().to_list())


def _places(rows: pl.DataFrame, stratum: str) -> pl.DataFrame:
    """label, reason (null where there is none) and place in the source."""
    reason = pl.col("reason") if "reason" in rows.columns else pl.lit(None, pl.String)
    return rows.select(
        pl.col(stratum).alias("label"),
        reason.alias("reason"),
        pl.format("{}:{}", "source", "source_row").alias("place"),
    )


def partition_rules(dataset: Dataset) -> PartitionRules:
    spec = dataset.spec
    named = any(source.split == "validation" for source in spec.human_sources)
    return PartitionRules(
        holdout=spec.partition.holdout_share,
        validation=0.0 if named else spec.partition.validation_share,
        salt=spec.partition.salt,
        decontaminate=spec.validation.decontaminate,
        limit_train=spec.human.limit_train,
        min_train_per_stratum=spec.human.min_train_per_label,
        official=spec.official,
        near_copies=spec.partition.near_copies,
    )


def _sides(dataset: Dataset) -> dg.AssetsDefinition:
    task, rules = task_for(dataset.spec), partition_rules(dataset)
    allowed, keeps = allowed_values(dataset), rules.near_copies == "keep"

    @tables(
        dataset,
        ["human_train", "holdout", "set_aside"],
        checks=[
            check(dataset, "human_train", "contract", "Schema of the training side."),
            check(dataset, "holdout", "contract", "Schema of the holdout side."),
            check(dataset, "human_train", "no_leakage", "No holdout row, group or near-copy."),
            check(
                dataset,
                "human_train",
                "label_support",
                f"At least {LEAST_TRAIN} training and {LEAST_HOLDOUT} holdout rows per label.",
                blocking=False,
            ),
            check(
                dataset,
                "set_aside",
                FEW_LOST,
                f"At most {MOST_SET_ASIDE:.0%} of the usable rows are on neither side.",
                blocking=False,
            ),
            *_official_check(dataset, "holdout"),
        ],
    )
    def sides(human: pl.DataFrame) -> Iterator[Any]:
        parts = partition(human, rules, text=task.text, stratum=task.stratum)
        train = parts.human_train.filter(pl.col("split") == "train")
        with shown_to_user():
            _both_sides_exist(dataset, train, parts.holdout)
        yield dg.Output(
            parts.human_train,
            "human_train",
            metadata={
                "labels": _counts(train, task.stratum),
                "train_rows": train.height,
                "validation_rows": parts.human_train.height - train.height,
                **(
                    {KEPT: _counts(parts.human_train.drop_nulls(KEPT), KEPT)}
                    if rules.near_copies == "keep"
                    else {}
                ),
            },
        )
        yield dg.Output(
            parts.holdout, "holdout", metadata={"labels": _counts(parts.holdout, task.stratum)}
        )
        yield dg.Output(
            parts.set_aside, "set_aside", metadata={"reasons": _counts(parts.set_aside, "reason")}
        )
        if rules.official:
            removed = parts.set_aside.filter(pl.col("split") == "holdout")
            yield _official_rows(dataset, "holdout", removed, parts.holdout.height)
        yield evidence.contract(
            key(dataset, "human_train"),
            human_rows(task.payload, allowed, ["train", "validation"], keeps_copies=keeps),
            parts.human_train,
        )
        yield evidence.contract(
            key(dataset, "holdout"), human_rows(task.payload, allowed, ["holdout"]), parts.holdout
        )
        watched = parts.human_train.filter(pl.col(KEPT).is_null()) if keeps else parts.human_train
        kept = parts.human_train.height - watched.height
        found = leaks(
            watched,
            parts.holdout,
            text=task.text,
            threshold=rules.decontaminate,
            stratum=task.stratum,
        )
        shared = group_overlap(with_group(watched), with_group(parts.holdout), group="group")
        yield evidence.result(
            key(dataset, "human_train"),
            "no_leakage",
            found if shared.is_empty() else shared,
            passed=found.is_empty() and shared.is_empty(),
            near_copies=found.height,
            shared_groups=shared.height,
            description=kept_sentence(kept) if found.is_empty() and shared.is_empty() else "",
            kept_by_declaration=kept,
        )
        counts = counts_by_side(human, *parts, stratum=task.stratum)
        yield evidence.warnings(
            key(dataset, "human_train"),
            "label_support",
            of_sides(counts),
            rows_by_label=dg.MetadataValue.md(markdown_table(counts)),
        )
        lost = _share_of_sides(parts, task.stratum)
        yield evidence.warnings(key(dataset, "set_aside"), FEW_LOST, lost)

    return sides


def _share_of_sides(parts: Partitioned, stratum: str) -> list[Finding]:
    tables = (parts.human_train, parts.holdout, parts.set_aside)
    found = Rows(
        "usable rows",
        "set aside",
        "set_aside",
        pl.concat([_places(rows, stratum) for rows in tables]),
        ASKED_FOR,
    )
    return lost_shares(found, most=MOST_SET_ASIDE)


def _both_sides_exist(dataset: Dataset, train: pl.DataFrame, holdout: pl.DataFrame) -> None:
    for name, rows in (("training", train), ("holdout", holdout)):
        if rows.is_empty():
            raise SourceError(
                f"no human row falls on the {name} side",
                where=f"{dataset.name}/human_train",
                fix="look at the reasons in human_rejects and set_aside, and at what names the side"
                if dataset.spec.official
                else "more rows, other shares in `partition`, or another `partition.salt`",
            )


def _folds_exist(dataset: Dataset, raw: pl.DataFrame) -> None:
    """Raises ``SourceError`` for a declared fold that no row is of."""
    official = Official.from_spec(dataset.spec)
    if official is not None and (missing := official.no_such_value(raw)) is not None:
        side, problem, fix = missing
        raise SourceError(problem, where=f"{dataset.file}: partition.{side}", fix=fix)


def _official_check(dataset: Dataset, stage: str) -> list[dg.AssetCheckSpec]:
    described = "Every row of the official test set is used."
    declared = dataset.spec.official
    return [check(dataset, stage, OFFICIAL, described, blocking=False)] if declared else []


def _official_rows(
    dataset: Dataset, stage: str, removed: pl.DataFrame, used: int
) -> dg.AssetCheckResult:
    """Says that, and why, rows of the official test set are not used."""
    reasons = ", ".join(f"{name} {rows:,}" for name, rows in _counts(removed, "reason").items())
    return evidence.result(
        key(dataset, stage),
        OFFICIAL,
        removed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{removed.height:,} of {removed.height + used:,} rows of the official test "
        f"set are not used: {reasons}"
        if removed.height
        else "",
        used=used,
    )


def kept_sentence(rows: int) -> str:
    """What has to be known of rows that are kept by declaration; "" when there are none."""
    if not rows:
        return ""
    return (
        f"{rows:,} rows that are like an unseen row, or of its group, are kept: "
        "partition.near_copies is keep"
    )


def _counts(rows: pl.DataFrame, column: str) -> dict[str, int]:
    """Rows per value, most frequent first."""
    counted = rows.group_by(column).len().sort("len", column, descending=[True, False])
    return dict(counted.iter_rows())
