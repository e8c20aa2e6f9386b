"""The plan lane: human_train -> seeds -> plan. Nothing is paid for here, all of it is checked."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.assets import evidence
from synth_assets.assets.checks import leak_check
from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import check, key, tables
from synth_assets.assets.workbench import Workbench
from synth_assets.errors import SpecError, SynthError, shown
from synth_assets.lifecycle.diversity import select_diverse
from synth_assets.lifecycle.leakage import leaks, prompt_leaks
from synth_assets.lifecycle.partition import KEPT
from synth_assets.lifecycle.plan import PlanRules, balance_to_largest, fill_share, make_plan
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.seats import Seats, seated
from synth_assets.lifecycle.support import Finding, Names, meant, of_plan
from synth_assets.lifecycle.unused import lines_of, says_unused, unused_rows
from synth_assets.spec.fingerprint import code_version
from synth_assets.spec.load import Dataset
from synth_assets.spec.model import AtLeastTarget, BalanceTarget, CountsTarget, ShareTarget
from synth_assets.spec.prompt import PromptError, Trial
from synth_assets.store.digest import frame_digest
from synth_assets.store.erasures import Log
from synth_assets.tasks import task_for


def plan_lane(dataset: Dataset) -> list[dg.AssetsDefinition]:
    return [_seeds(dataset), _plan(dataset)] if dataset.spec.generates else []


def plan_checks(dataset: Dataset) -> list[dg.AssetChecksDefinition]:
    """No holdout or validation row in a seed or a prompt: checked before anything is paid for."""
    if not dataset.spec.generates:
        return []
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
        *_unused_check(dataset),
    ]


def _unused_check(dataset: Dataset) -> list[dg.AssetChecksDefinition]:
    """What is written by hand shows no human row that training does not use, unless it may.

    Only where a limit or folds leave rows out. What else is set aside is like an unseen row, which
    ``no_leakage`` looks for. A file of seeds decides nothing here: with the checks that a dataset
    has, the code location would have to be loaded again.
    """
    spec, task = dataset.spec, task_for(dataset.spec)
    limited = spec.human.limit_train is not None or spec.official
    if spec.validation.derived_from_unused == "allow" or not limited:
        return []
    others = ("seeds", "human_train", "set_aside", "human_rejects")

    @dg.asset_check(
        asset=key(dataset, "plan"),
        name="no_unused",
        description="No prompt shows a human row that training does not use.",
        blocking=True,
        additional_ins={name: dg.AssetIn(key=key(dataset, name)) for name in others},
        op_tags={"synth/dataset": dataset.name},
    )
    def no_unused(
        plan: pl.LazyFrame,
        seeds: pl.DataFrame,
        human_train: pl.DataFrame,
        set_aside: pl.DataFrame,
        human_rejects: pl.DataFrame,
    ) -> dg.AssetCheckResult:
        train = human_train.filter(pl.col("split") == "train")
        written = seeds.filter(pl.col("origin") == "handwritten")[task.text].to_list()
        found = says_unused(
            [*written, *lines_of(dataset.prompt.text, spec.generation.system)],
            unused_rows(set_aside, human_rejects, text=task.text),
            train,
            text=task.text,
            threshold=spec.validation.decontaminate,
        )
        read = (seeds, human_train, set_aside, human_rejects)
        return evidence.result(
            key(dataset, "plan"),
            "no_unused",
            found.drop("row"),
            description="" if found.is_empty() else _shows_unused(dataset, found),
            compared_with={name: frame_digest(t) for name, t in zip(others, read, strict=True)},
        )

    return [no_unused]


def _shows_unused(dataset: Dataset, found: pl.DataFrame) -> str:
    return (
        f"{found.height} hand-written seeds or lines of the prompt say a human row that training "
        f"does not use, such as {shown(found['excerpt'][0])}; take it out, or declare "
        "validate.derived_from_unused: allow"
    )


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

    A row that is kept though it is like an unseen one (``kept_despite``) is no seed.
    ``seats``: where seeds stay because of erasures; may add the column ``slot``.
    """
    if KEPT in train.columns:
        train = train.filter(pl.col(KEPT).is_null())
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
    @tables(
        dataset,
        ["plan"],
        checks=[
            check(
                dataset,
                "plan",
                "label_support",
                "No label is left out, made from one seed, or without human rows.",
                blocking=False,
            )
        ],
    )
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
        weak = plan_findings(dataset, seeds, human_train)
        yield evidence.warnings(key(dataset, "plan"), "label_support", weak)

    return plan


def plan_findings(
    dataset: Dataset, seeds: pl.DataFrame, human_train: pl.DataFrame
) -> list[Finding]:
    """What is weak in the plan that ``rows_wanted`` asks for. Raises as ``rows_wanted``."""
    stratum, counts = task_for(dataset.spec).stratum, _train_counts(dataset, human_train)
    if_all = _by_target(dataset, counts, counts)
    left_out = [name for name in _left_out(dataset, counts) if if_all.get(name)]
    # Where prompts show no seeds by declaration, one more of them would change nothing.
    shows = dataset.spec.generation.seeds_per_call > 0
    per = _per_stratum(seeds, stratum) if shows else {}
    return of_plan(rows_wanted(dataset, human_train), left_out, counts, per)


def rows_wanted(dataset: Dataset, human_train: pl.DataFrame) -> dict[str, int]:
    """Synthetic rows wanted per stratum, by the declared target.

    None of a stratum without human training rows, unless the declaration allows it; what a share
    would have given it goes to the others.

    Raises:
        SynthError: when the target names a stratum that neither data nor declaration knows.
    """
    counts = _train_counts(dataset, human_train)
    left_out = _left_out(dataset, counts)
    generated = {name: count for name, count in counts.items() if name not in left_out}
    wanted = _by_target(dataset, generated, counts)
    # A label without calls stays among those that prompts name.
    return {
        name: 0 if name in left_out else wanted[name]
        for name in _by_target(dataset, counts, counts)
    }


def _train_counts(dataset: Dataset, human_train: pl.DataFrame) -> dict[str, int]:
    """Human training rows per stratum, of declared ones without any, too."""
    task = task_for(dataset.spec)
    train = human_train.filter(pl.col("split") == "train")
    return dict.fromkeys(task.strata() or {}, 0) | _per_stratum(train, task.stratum)


def _left_out(dataset: Dataset, counts: Mapping[str, int]) -> set[str]:
    """Strata without human training rows, where the declaration does not allow generating them."""
    if dataset.spec.generation.labels_without_human_rows == "generate":
        return set()
    return {name for name, count in counts.items() if not count}


def _by_target(
    dataset: Dataset, counts: Mapping[str, int], known: Collection[str]
) -> dict[str, int]:
    """Rows wanted of the strata in ``counts``; a target may name any that is ``known``."""
    target = dataset.spec.generation.target
    if isinstance(target, BalanceTarget):
        return balance_to_largest(counts)
    if isinstance(target, AtLeastTarget):
        return {name: max(0, target.at_least - count) for name, count in counts.items()}
    if isinstance(target, CountsTarget):
        per = target.per_label
        if isinstance(per, int):
            return dict.fromkeys(counts, per)
        unknown = sorted(set(per) - set(known))
        if unknown:
            raise SynthError(
                "generate.target.per_label names labels that the human data lacks: "
                f"{unknown}{_meant(unknown[0], known)}",
                where=str(dataset.file),
                fix=f"use some of: {', '.join(sorted(known))}",
            )
        return dict(per)
    if isinstance(target, ShareTarget):
        return fill_share(counts, target.synthetic_share)
    return dict.fromkeys(counts, 0)


def _meant(label: str, known: Collection[str]) -> str:
    like = meant(label, Names.of(dict.fromkeys(known, 0)))
    return f" (did you mean {shown(like)}?)" if like is not None else ""


def plan_calls(dataset: Dataset, seeds: pl.DataFrame, wanted: Mapping[str, int]) -> pl.DataFrame:
    """The plan's table for the declared prompt and attributes.

    Raises:
        SpecError: a prompt that cannot be rendered for some call, or is empty.
    """
    task, spec = task_for(dataset.spec), dataset.spec
    generate, strata = spec.generation, sorted(wanted)

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
        rows_per_call=generate.rows_per_call,
        seeds_per_call=generate.seeds_per_call,
        candidate_limit=generate.candidate_limit,
        attributes=generate.attributes,
        seed=spec.random_seed,
    )
    return make_plan(
        wanted,
        seeds,
        rules,
        stratum=task.stratum,
        render=render,
        system=generate.system,
    )


def _per_stratum(rows: pl.DataFrame, stratum: str) -> dict[str, int]:
    return dict(rows.group_by(stratum).len().sort(stratum).iter_rows())


def _fenced(prompt: str) -> str:
    # Untrusted text must not close the fence it stands in.
    return "````text\n" + prompt.replace("````", "'''' ") + "\n````"
