"""The shape of a dataset's YAML: strict, typed, every key documented.

Strict means: unknown keys are refused and no value is converted (``"3"`` is not ``3``). What a
key does is its ``description``; the JSON schema that editors and ``dg`` use is made from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from synth_assets.cells import tidy
from synth_assets.errors import UsageError
from synth_assets.spec.base import Name, Number, Strict, fail
from synth_assets.spec.partition import Partition, Share
from synth_assets.spec.refresh import Refresh
from synth_assets.spec.sources import AnySource, Role
from synth_assets.text import SameText

# What Dagster accepts; it would refuse anything else for the whole code location.
Owner = Annotated[
    str,
    Field(pattern=r"^(team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})$"),
]


def _distinct(names: list[str]) -> None:
    """Refuse names that are blank, or that are one label as labels are compared."""
    first: dict[str, str] = {}
    for name in names:
        if not tidy(name):
            raise fail("labels", "label names are unique and not blank", value=name)
        if tidy(name) not in first:
            first[tidy(name)] = name
            continue
        same = first[tidy(name)]
        raise fail(
            "labels",
            "label names are unique and not blank"
            if name == same
            else "two names of one label: blanks and Unicode form make no difference",
            value=name if name == same else f"{same!a} and {name!a}",
            fix="keep one of the two",
        )


class ClassificationTask(Strict):
    """One text, one label out of a closed set."""

    kind: Literal["classification"]
    text: Name = Field(description="Source column that holds the text.")
    label: Name = Field(description="Source column that holds the label.")
    labels: dict[str, str] | list[str] | None = Field(
        default=None,
        description="The closed label set, best with a line of description each. Rows with other "
        "labels are set aside. Left out: every label found in the source.",
    )

    def label_descriptions(self) -> dict[str, str]:
        if isinstance(self.labels, list):
            return dict.fromkeys(self.labels, "")
        return dict(self.labels or {})

    @field_validator("labels")
    @classmethod
    def _labels_as_they_are_compared(
        cls, labels: dict[str, str] | list[str] | None
    ) -> dict[str, str] | list[str] | None:
        if labels is None:
            return None
        _distinct(list(labels))
        if isinstance(labels, list):
            return [tidy(name) for name in labels]
        return {tidy(name): text for name, text in labels.items()}

    @model_validator(mode="after")
    def _labels_make_sense(self) -> Self:
        if self.text == self.label:
            raise fail("same_column", "text and label are the same column", key="label")
        if self.labels is not None and len(self.labels) < 2:
            raise fail("labels", "a classification needs at least two labels", key="labels")
        return self


class Human(Strict):
    drop_labels: list[str] = Field(
        default_factory=list,
        description="Glob patterns of label values that are not used (set aside, counted).",
    )
    min_rows_per_label: Annotated[int, Field(ge=1)] = 1

    @field_validator("drop_labels")
    @classmethod
    def _patterns_as_labels_are_compared(cls, patterns: list[str]) -> list[str]:
        return [tidy(pattern) for pattern in patterns]

    limit_train: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Use at most this many human training rows."
    )
    min_train_per_label: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="With limit_train: take at least this many of every label first "
        "(what a team would label on purpose), the rest in the natural proportions.",
    )


class Seeds(Strict):
    per_label: Annotated[int, Field(ge=1)] = 12
    strategy: Literal["diverse", "random"] = "diverse"
    file: str | None = Field(
        default=None,
        description="Hand-written seeds (JSON lines with the task's keys). Left out: seeds.jsonl "
        "beside the YAML, when it exists.",
    )


class Endpoint(Strict):
    """Where the model is served. Keys only ever come from the environment."""

    base_url: str | None = None
    base_url_env: str = "OPENAI_BASE_URL"
    api_key_env: str = "OPENAI_API_KEY"
    name: str | None = Field(
        default=None,
        description="Stands for the address in request identities, so that a moved gateway does "
        "not buy everything again. Left out: the base URL itself.",
    )


class BalanceTarget(Strict):
    balance: Literal["to_largest"]


class CountsTarget(Strict):
    per_label: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]]

    @field_validator("per_label")
    @classmethod
    def _labels_as_they_are_compared(cls, rows: int | dict[str, int]) -> int | dict[str, int]:
        if isinstance(rows, int):
            return rows
        _distinct(list(rows))
        return {tidy(label): count for label, count in rows.items()}


class AtLeastTarget(Strict):
    at_least: Annotated[int, Field(ge=1)]


class ShareTarget(Strict):
    synthetic_share: Share


class AllTarget(Strict):
    """Every accepted imported row; nothing is generated."""

    all: Literal[True]


def _target_kind(value: object) -> str | None:
    keys = value.keys() if isinstance(value, dict) else vars(value).keys()
    return next(
        (
            key
            for key in ("balance", "per_label", "at_least", "synthetic_share", "all")
            if key in keys
        ),
        None,
    )


Target = Annotated[
    Annotated[BalanceTarget, Tag("balance")]
    | Annotated[CountsTarget, Tag("per_label")]
    | Annotated[AtLeastTarget, Tag("at_least")]
    | Annotated[ShareTarget, Tag("synthetic_share")]
    | Annotated[AllTarget, Tag("all")],
    Discriminator(
        _target_kind,
        custom_error_type="target",
        custom_error_message="say how many rows are wanted: balance: to_largest, "
        "at_least: N (lifts every label to N rows), per_label: N (or a count per label), "
        "synthetic_share: 0.75, or all: true (every accepted imported row, nothing generated)",
    ),
]


class Prices(Strict):
    input_per_million: Annotated[Number, Field(ge=0)]
    output_per_million: Annotated[Number, Field(ge=0)]


class Budget(Strict):
    """The most this dataset's generation may ever cost, over all runs; any of the three."""

    usd: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="US dollars; needs a price: declared, or known of the model."
    )
    tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Prompt and completion tokens together."
    )
    calls: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _caps_something(self) -> Self:
        if self.usd is None and self.tokens is None and self.calls is None:
            raise fail(
                "budget",
                "a budget caps usd, tokens or calls",
                fix="give one of them, or leave generate.budget out",
            )
        return self


class Batches(Strict):
    """How the batch API is used (``mode: batch``)."""

    wait_s: Annotated[Number, Field(ge=0)] = Field(
        default=600.0,
        description="How long a run waits for its batches before it leaves; a later run, or the "
        "batch sensor, collects them. 0: submit and leave.",
    )
    poll_s: Annotated[Number, Field(gt=0, le=120)] = Field(
        default=5.0, description="Between the first looks at a batch; later ones come slower."
    )
    max_requests: Annotated[int, Field(ge=1, le=50_000)] = Field(
        default=50_000, description="Requests per batch."
    )
    discount: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.5, description="What a batched token costs of a live one's price."
    )


class Generate(Strict):
    prompt: str = "prompt.md.j2"
    system: str | None = Field(default=None, description="System message for chat models.")
    model_name: Name = Field(
        default="",
        alias="model",
        description="`embedded/NAME`, or the server's name. Only with `target: {all: true}`, where "
        "nothing is generated, it may be left out.",
    )
    endpoint: Endpoint = Field(default_factory=Endpoint)
    style: Literal["continue", "chat"] = "chat"
    output: Literal["auto", "json_schema", "json_object", "tool", "list"] = "auto"
    target: Target
    labels_without_human_rows: Literal["leave_out", "generate"] = Field(
        default="leave_out",
        description="Whether calls are paid for a label without a human training row, by which "
        "nobody could measure what comes of it (hand-written seeds are no such rows). `leave_out`: "
        "none are made, and a warning says so.",
    )
    attributes: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict, description="Values crossed over the calls of each label."
    )
    rows_per_call: Annotated[int, Field(ge=1, le=200)] = 8
    seeds_per_call: Annotated[int, Field(ge=0, le=200)] = 6
    candidate_limit: Annotated[Number, Field(ge=1)] = Field(
        default=4.0, description="At most this many rows are asked for per row wanted."
    )
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    requests_per_min: Annotated[int, Field(ge=1)] | None = None
    tokens_per_min: Annotated[int, Field(ge=1)] | None = None
    timeout_s: Annotated[Number, Field(gt=0)] = 120.0
    prices: Prices | None = Field(
        default=None, description="USD. Left out: as known for the model at its provider."
    )
    budget: Budget | None = None
    mode: Literal["live", "batch"] = Field(
        default="live", description="`batch`: the endpoint's batch API, at half the price."
    )
    batches: Batches = Field(default_factory=Batches)

    @model_validator(mode="after")
    def _a_model_is_named(self) -> Self:
        if not self.model_name and not isinstance(self.target, AllTarget):
            raise fail("missing", "this key is missing", key="model", fix="add `model:`")
        return self

    @model_validator(mode="after")
    def _the_embedded_server_has_no_batches(self) -> Self:
        if self.mode == "batch" and self.model_name.startswith("embedded/"):
            raise fail(
                "mode",
                "the embedded server has no batch API",
                key="mode",
                value=self.mode,
                fix="leave generate.mode out, or name a model of an endpoint that has one",
            )
        return self

    @model_validator(mode="after")
    def _base_models_write_lists(self) -> Self:
        if self.style == "continue" and self.output not in {"auto", "list"}:
            raise fail(
                "output",
                "a model that continues a text writes plain lists",
                key="output",
                value=self.output,
                fix="leave generate.output out, or use style: chat",
            )
        return self

    def sampling(self) -> dict[str, float | int]:
        """Sampling parameters as they go into the request body."""
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "max_tokens": self.max_tokens,
        }
        return {key: value for key, value in values.items() if value is not None}


class Validate(Strict):
    near_duplicate: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.8, description="Jaccard similarity of character 5-grams from which a row repeats."
    )
    decontaminate: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.6, description="The same against holdout and validation rows; stricter."
    )
    same_text: SameText = Field(
        default="signs",
        description="When two texts are one: `signs` if words and signs are the same (C++ is not "
        "C#, `:)` is not `:(`), `words` if the words are, `exact` if every character is. Decides "
        "duplicates, contradictions and what a synthetic row repeats; never leaks.",
    )
    derived_from_unused: Literal["reject", "allow"] = Field(
        default="reject",
        description="A synthetic row made of a human row that training does not use (beyond "
        "human.limit_train, set aside, or a reject): its contribution would be that row's. With "
        "`allow` such rows count, and the contribution's sentence says how many there are.",
    )
    min_chars: Annotated[int, Field(ge=1)] = 3
    max_chars: Annotated[int, Field(ge=1)] = 20_000
    length_quantile_slack: Annotated[Number, Field(ge=1)] = Field(
        default=2.0,
        description="A synthetic text may be this many times longer (shorter) than the human "
        "99 % (1 %) quantile.",
    )

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.min_chars > self.max_chars:
            raise fail("lengths", "min_chars is larger than max_chars", key="min_chars")
        return self


class Weights(Strict):
    human: Annotated[Number, Field(gt=0)] = 1.0
    synthetic: Annotated[Number, Field(gt=0)] = 1.0


class Blend(Strict):
    synthetic_share: Share | None = Field(
        default=None, description="Cap on the synthetic rows' share of the training set."
    )
    weights: Weights = Field(default_factory=Weights)
    class_weights: Literal["balanced"] | None = Field(
        default=None,
        description="balanced: the weights of training rows are scaled so that every label has "
        "the same total.",
    )


class Measure(Strict):
    student: Literal["tfidf_logreg", "tfidf_nb"] = "tfidf_logreg"
    repeats: Annotated[int, Field(ge=2, le=1000)] = 20


Requirement = Literal["no_leakage", "exact_counts", "label_support", "contribution_not_negative"]


def _always_required() -> list[Requirement]:
    return ["no_leakage"]


class Release(Strict):
    require: list[Requirement] = Field(default_factory=_always_required)


class DatasetSpec(Strict):
    """One dataset: what it is about, where human data comes from, what to generate, and why."""

    description: str = ""
    owners: list[Owner] = Field(default_factory=list)
    random_seed: Annotated[int, Field(ge=0)] = 0
    task: ClassificationTask
    source: AnySource | None = Field(
        default=None, discriminator="kind", description="Where human data comes from."
    )
    sources: list[Annotated[AnySource, Field(discriminator="kind")]] = Field(
        default_factory=list, description="Instead of `source`: several, each with a name."
    )
    partition: Partition = Field(default_factory=Partition)
    human: Human = Field(default_factory=Human)
    seeds: Seeds = Field(default_factory=Seeds)
    generate: Generate | None = Field(
        default=None,
        description="Left out: nothing is generated, no model and no prompt is needed, and every "
        "accepted imported row counts.",
    )
    validation: Validate = Field(default_factory=Validate, alias="validate")
    blend: Blend = Field(default_factory=Blend)
    measure: Measure = Field(default_factory=Measure)
    release: Release = Field(default_factory=Release)
    refresh: Refresh = Field(default_factory=Refresh)

    @property
    def human_sources(self) -> tuple[AnySource, ...]:
        """Every source of human rows, in the order declared."""
        return self.sources_of("human")

    @property
    def synthetic_sources(self) -> tuple[AnySource, ...]:
        """Every source of synthetic rows that exist already, in the order declared."""
        return self.sources_of("synthetic")

    @property
    def all_sources(self) -> tuple[AnySource, ...]:
        """Every source, in the order declared."""
        return (self.source,) if self.source is not None else tuple(self.sources)

    def sources_of(self, role: Role) -> tuple[AnySource, ...]:
        return tuple(source for source in self.all_sources if source.role == role)

    @property
    def generates(self) -> bool:
        """Whether a model may be asked for rows at all."""
        return self.generate is not None and not isinstance(self.generate.target, AllTarget)

    @property
    def generation(self) -> Generate:
        """``generate`` of a dataset that generates. Raises ``UsageError`` for another one."""
        if self.generate is None or not self.generates:
            raise UsageError(
                "this dataset generates nothing",
                fix="declare `generate` with a model, a prompt and a target",
            )
        return self.generate

    @property
    def official_sources(self) -> bool:
        """Whether the human sources say which side their rows are on."""
        return any(source.split for source in self.human_sources)

    @property
    def official(self) -> bool:
        """Whether the data comes with its own test set: a column of folds, or a source."""
        return self.partition.column is not None or self.official_sources

    @model_validator(mode="after")
    def _one_source_or_several_with_names(self) -> Self:
        if (self.source is None) == (not self.sources):
            raise fail(
                "source",
                "say where human data comes from: either source or sources",
                key="sources" if self.source else "source",
                value="both" if self.source else "neither",
                fix="keep one of the two" if self.source else "add `source:` with a kind",
            )
        names = [source.name for source in self.sources]
        for place, name in enumerate(names):
            if name is None or names.count(name) > 1:
                raise fail(
                    "source_name",
                    "each of several sources has a name of its own",
                    key=f"sources.{place}.name",
                    value=name or "none",
                    fix="add `name:`, unlike the others'",
                )
        if not self.human_sources:
            raise fail(
                "no_human_source",
                "every source is synthetic: seeds, holdout and measure need human rows",
                key="source.role" if self.source else "sources",
                value="role: synthetic",
                fix="add a source of human rows to `sources`",
            )
        return self

    @model_validator(mode="after")
    def _targets_name_known_labels(self) -> Self:
        known = self.task.label_descriptions()
        target = self.generate.target if self.generate else None
        if known and isinstance(target, CountsTarget) and isinstance(target.per_label, dict):
            for label in target.per_label:
                if label not in known:
                    raise fail(
                        "unknown_label",
                        "this label is not among task.labels",
                        key=f"generate.target.per_label.{label}",
                        value=label,
                        fix=f"use one of: {', '.join(known)}",
                    )
        return self

    @model_validator(mode="after")
    def _sources_say_their_side_together(self) -> Self:
        if not self.official_sources:
            return self
        several = self.source is None
        for place, source in enumerate(self.all_sources):
            if source.role == "human" and source.split is None:
                raise fail(
                    "split",
                    "one human source says which side its rows are on, so each must",
                    key=f"sources.{place}.split" if several else "source.split",
                    value="none",
                    fix="add split: train, validation or holdout",
                )
        if not any(source.split == "holdout" for source in self.human_sources):
            raise fail(
                "split",
                "no human source is the holdout",
                key="sources" if several else "source.split",
                value=", ".join(str(source.split) for source in self.human_sources),
                fix="give the source of the test rows split: holdout, or leave every split out",
            )
        if not any(source.split == "train" for source in self.human_sources):
            raise fail(
                "split",
                "no human source is left to train on",
                key="sources" if several else "source.split",
                value=", ".join(str(source.split) for source in self.human_sources),
                fix="add the source of the training rows with split: train",
            )
        self._nothing_else_decides_the_sides()
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        part = self.partition
        # Of sources that say their side, no share is held out.
        if not self.official_sources and part.holdout_share + part.validation_share >= 1:
            raise fail(
                "impossible_share",
                "holdout + validation leave nothing to train on",
                key="partition.holdout",
                value=f"{part.holdout} + {part.validation}",
                fix="make the two shares add up to less than 1",
            )
        return self

    @model_serializer(mode="wrap")
    def _without_shares_that_decide_nothing(
        self, written: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """As declared: where sources say the sides, defaults of `partition` are not spelled out.

        So what is written of a declaration can be read as one.
        """
        found: dict[str, Any] = written(self)
        if self.official_sources and isinstance(part := found.get("partition"), dict):
            decided = {source.split for source in self.human_sources} & {"holdout", "validation"}
            unsaid = decided - self.partition.model_fields_set
            found["partition"] = {key: value for key, value in part.items() if key not in unsaid}
        return found

    def _nothing_else_decides_the_sides(self) -> None:
        """Raises where `partition` decides what `split` of a source has decided."""
        declared = self.partition.model_fields_set
        sides = {source.split for source in self.human_sources}
        for key in ("column", "holdout", "validation"):
            decided = key != "validation" or "validation" in sides
            if key in declared and decided and getattr(self.partition, key) is not None:
                raise fail(
                    "split",
                    "`split` of the sources decides this already",
                    key=f"partition.{key}",
                    value=getattr(self.partition, key),
                    fix=f"leave partition.{key} out, or `split` of every source",
                )

    @model_validator(mode="after")
    def _what_is_not_generated_is_not_promised(self) -> Self:
        if self.generates:
            return self
        if self.generate is not None and not self.synthetic_sources:
            raise fail(
                "target",
                "there is no source of synthetic rows, so that this is every row of none",
                key="generate.target.all",
                value=True,
                fix="add a source with role: synthetic, or leave `generate` out (human rows only)",
            )
        if "exact_counts" in self.release.require:
            raise fail(
                "exact_counts",
                "nothing is generated, so that there are no counts to reach",
                key="release.require",
                value="exact_counts",
                fix="take it out of release.require, or declare `generate` with a target",
            )
        return self
