"""The plan lane: human_train -> seeds -> plan. Nothing is paid for here, all of it is checked."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.checks import leak_check
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import SpecError, SynthError
from synth_assets.lifecycle.diversity import select_diverse
from synth_assets.lifecycle.leakage import leaks, prompt_leaks
from synth_assets.lifecycle.plan import PlanRules, balance_to_largest, fill_share, make_plan
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.seats import Seats, seated
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.spec.model import AtLeastTarget, BalanceTarget, CountsTarget
from synth_assets.spec.prompt import PromptError, Trial
from synth_assets.store.erasures import Log
from synth_assets.tasks import task_for


def plan_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_seeds(dataset), _plan(dataset)]


def plan_checks(dataset: Dataset) -> list[dg.AssetChecksDefinition]:
    """No holdout or validation row in a seed or a prompt: checked before anything is paid for."""
    task, threshold = task_for(dataset.spec), dataset.spec.validation.decontaminate

    def in_seeds(seeds: pl.DataFrame, unseen: pl.DataFrame) -> pl.DataFrame:
        return leaks(seeds, unseen, text=task.text, threshold=threshold, stratum=task.stratum)

    def in_prompts(plan: pl.DataFrame, unseen: pl.DataFrame) -> pl.DataFrame:
        return prompt_leaks(
            plan["prompt"],
            unseen,
            text=task.text,
            threshold=threshold,
            labels=plan["cell"],
            stratum=task.stratum,
        )

    return [
        leak_check(dataset, "seeds", "No unseen row, nor a near-copy, is a seed.", in_seeds),
        leak_check(dataset, "plan", "No prompt shows an unseen row or a near-copy.", in_prompts),
    ]


def _seeds(dataset: Dataset) -> dg.AssetsDefinition:
    task = task_for(dataset.spec)

    @tables(
        dataset,
        ["seeds"],
        checks=[
            check(dataset, "seeds", "label_support", "Every label has a seed.", blocking=False),
        ],
    )
    def seeds(workbench: dg.ResourceParam[Workbench], human_train: pl.DataFrame) -> Iterator[Any]:
        train = human_train.filter(pl.col("split") == "train")
        with shown_to_user():
            seats = Log(workbench.home.root, dataset.name).seats()
        chosen = choose_seeds(dataset, train, seats)
        yield dg.Output(chosen, "seeds", metadata={"labels": _per_stratum(chosen, task.stratum)})
        missing = train.select(pl.col(task.stratum).unique().sort()).join(
            chosen, on=task.stratum, how="anti"
        )
        yield evidence.result(
            key(dataset, "seeds"), "label_support", missing, severity=dg.AssetCheckSeverity.WARN
        )

    return seeds


def choose_seeds(
    dataset: Dataset, train: pl.DataFrame, seats: Sequence[Seats] = ()
) -> pl.DataFrame:
    """Seeds from human training rows and from hand: record_id, origin, payload, seed_rank.

    ``seats``: where seeds stay because of erasures; may add the column ``slot``.
    """
    chosen = _chosen(dataset, train)
    if not seats:
        return chosen
    stratum, code = task_for(dataset.spec).stratum, code_version(dataset, "seeds")
    return seated(chosen, train, seats, stratum=stratum, code=code)


def _chosen(dataset: Dataset, train: pl.DataFrame) -> pl.DataFrame:
    task, spec = task_for(dataset.spec), dataset.spec
    from_data = select_diverse(
        train,
        text=task.text,
        stratum=task.stratum,
        per_stratum=spec.seeds.per_label,
        seed=spec.random_seed,
        strategy=spec.seeds.strategy,
    ).select("record_id", "origin", *task.payload, "seed_rank")
    if not dataset.handwritten_seeds:
        return from_data.sort(task.stratum, "seed_rank", "record_id")
    written = pl.DataFrame(
        list(dataset.handwritten_seeds), schema=dict.fromkeys(task.payload, pl.String)
    )
    by_hand = (
        with_record_id(written, task.payload, kind=task.kind)
        .unique("record_id", keep="first", maintain_order=True)
        .join(from_data, on="record_id", how="anti", maintain_order="left")
        .with_columns(
            origin=pl.lit("handwritten"), seed_rank=pl.lit(-1, from_data["seed_rank"].dtype)
        )
    )
    both = pl.concat([by_hand.select(from_data.columns), from_data])
    return both.sort(task.stratum, "seed_rank", "record_id")


def _plan(dataset: Dataset) -> dg.AssetsDefinition:
    @tables(dataset, ["plan"])
    def plan(seeds: pl.DataFrame, human_train: pl.DataFrame) -> Iterator[Any]:
        with shown_to_user():
            wanted = rows_wanted(dataset, human_train)
            calls = plan_calls(dataset, seeds, wanted)
        yield dg.Output(
            calls,
            "plan",
            metadata={
                "rows_wanted": sum(wanted.values()),
                "wanted": dict(sorted(wanted.items())),
                "calls_allowed": calls.height,
                "template_version": dataset.prompt.version,
                "first_prompt": dg.MetadataValue.md(_fenced(calls["prompt"][0]))
                if calls.height
                else "none: nothing is wanted",
            },
        )

    return plan


def rows_wanted(dataset: Dataset, human_train: pl.DataFrame) -> dict[str, int]:
    """Synthetic rows wanted per stratum, by the declared target.

    Raises:
        SynthError: when the target names a stratum that neither data nor declaration knows.
    """
    task, target = task_for(dataset.spec), dataset.spec.generate.target
    train = human_train.filter(pl.col("split") == "train")
    counts = dict.fromkeys(task.strata() or {}, 0)
    counts |= dict(train.group_by(task.stratum).len().sort(task.stratum).iter_rows())
    if isinstance(target, BalanceTarget):
        return balance_to_largest(counts)
    if isinstance(target, AtLeastTarget):
        return {name: max(0, target.at_least - count) for name, count in counts.items()}
    if isinstance(target, CountsTarget):
        per = target.per_label
        if isinstance(per, int):
            return dict.fromkeys(counts, per)
        unknown = sorted(set(per) - set(counts))
        if unknown:
            raise SynthError(
                f"generate.target.per_label names labels that the human data lacks: {unknown}",
                where=str(dataset.file),
                fix=f"use some of: {', '.join(sorted(counts))}",
            )
        return dict(per)
    return fill_share(counts, target.synthetic_share)


def plan_calls(dataset: Dataset, seeds: pl.DataFrame, wanted: Mapping[str, int]) -> pl.DataFrame:
    """The plan's table for the declared prompt and attributes.

    Raises:
        SpecError: a prompt that cannot be rendered for some call, or is empty.
    """
    task, spec = task_for(dataset.spec), dataset.spec
    strata = sorted(wanted)

    def render(
        stratum: str,
        examples: Sequence[Mapping[str, str]],
        rows: int,
        attributes: Mapping[str, str],
    ) -> str:
        variables = task.prompt_variables(
            stratum=stratum, examples=examples, rows=rows, attributes=attributes, strata=strata
        )
        try:
            return dataset.prompt.render(Trial(task.told(stratum, len(examples)), variables))
        except PromptError as error:
            raise SpecError(dataset.name, [error.problem]) from None

    rules = PlanRules(
        rows_per_call=spec.generate.rows_per_call,
        seeds_per_call=spec.generate.seeds_per_call,
        candidate_limit=spec.generate.candidate_limit,
        attributes=spec.generate.attributes,
        seed=spec.random_seed,
    )
    return make_plan(
        wanted,
        seeds,
        rules,
        stratum=task.stratum,
        render=render,
        system=spec.generate.system,
    )


def _per_stratum(rows: pl.DataFrame, stratum: str) -> dict[str, int]:
    return dict(rows.group_by(stratum).len().sort(stratum).iter_rows())


def _fenced(prompt: str) -> str:
    # Untrusted text must not close the fence it stands in.
    return "````text\n" + prompt.replace("````", "'''' ") + "\n````"
