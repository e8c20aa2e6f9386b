"""Classification: one text, one label out of a closed set."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from synth_assets.cells import group_of, tidied, tidy, trimmed
from synth_assets.errors import shown
from synth_assets.tasks import Trouble
from synth_assets.tasks.official import SIDE, Official, conflicting_and_repeated
from synth_assets.text import FORMS, SameText, normalise

if TYPE_CHECKING:
    from synth_assets.spec.model import DatasetSpec

MAX_SHOWN_CHARS = 2_000


@dataclass(frozen=True)
class Classification:
    text_column: str
    label_column: str
    group_by: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    drop_labels: tuple[str, ...] = ()
    min_rows_per_label: int = 1
    min_chars: int = 1
    max_chars: int = 20_000
    length_slack: float = 2.0
    same_text: SameText = "signs"
    official: Official | None = None
    kind: str = "classification"
    payload: tuple[str, ...] = field(default=("text", "label"))
    text: str = "text"
    stratum: str = "label"

    @classmethod
    def from_spec(cls, spec: DatasetSpec) -> Classification:
        return cls(
            text_column=spec.task.text,
            label_column=spec.task.label,
            group_by=tuple(spec.partition.group_by),
            labels=spec.task.label_descriptions() or None,
            drop_labels=tuple(spec.human.drop_labels),
            min_rows_per_label=spec.human.min_rows_per_label,
            min_chars=spec.validation.min_chars,
            max_chars=spec.validation.max_chars,
            length_slack=spec.validation.length_quantile_slack,
            same_text=spec.validation.same_text,
            official=Official.from_spec(spec),
        )

    # --- human rows -------------------------------------------------------------------------

    def required_columns(self) -> list[str]:
        fold = [self.official.column] if self.official and self.official.column else []
        return [*self.source_columns().values(), *self.group_by, *fold]

    def source_columns(self) -> dict[str, str]:
        return {"text": self.text_column, "label": self.label_column}

    def strata(self) -> dict[str, str] | None:
        return dict(self.labels) if self.labels is not None else None

    def read_human(self, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Raw rows (all String, ``_source``, ``_row``, ``_problem``, ``_raw``) -> (rows, rejects).

        A row is set aside for the first reason that applies: a reader's problem, missing_fold,
        other_fold (official folds only, as all reasons that name a side), missing_text,
        too_short, too_long, missing_label, dropped_label, unknown_label, rare_label,
        conflicting_labels (one text, in the form of ``same_text``, under several labels: none is
        kept), duplicate (the first row of the source is kept), duplicate_of_ and conflicts_with_
        SIDE. Nothing is dropped: rows + rejects = raw. Labels are tidied (``cells.tidy``). A row
        whose group cells say nothing is grouped by its words, whatever the form of texts. With
        official folds, both have a column ``side``.
        """
        rows = (
            raw.sort("_source", "_row")
            .select(
                pl.col("_source").alias("source"),
                pl.col("_row").cast(pl.Int64).alias("source_row"),
                trimmed(pl.col(self.text_column)).alias("text"),
                tidied(pl.col(self.label_column)).alias("label"),
                group_of(self.group_by).alias("group")
                if self.group_by
                else pl.lit(None, pl.String).alias("group"),
                pl.coalesce("_problem", self.official.reason()).alias("reason")
                if self.official
                else pl.col("_problem").alias("reason"),
                pl.col("_raw").alias("raw"),
                *([self.official.side().alias(SIDE)] if self.official else []),
            )
            .with_columns(
                normalise(pl.col("text")).alias("normal"),
                FORMS[self.same_text](pl.col("text")).alias("same"),
            )
            .with_columns(detail=pl.lit(None, pl.String))
        )
        found = rows["label"].drop_nulls().unique().to_list()
        dropped = [v for v in found if any(fnmatch.fnmatchcase(v, p) for p in self.drop_labels)]
        rows = rows.with_columns(reason=pl.coalesce("reason", self._cell_reason(dropped)))
        rows = self._rare(rows)
        rows = conflicting_and_repeated(rows, self.official.first if self.official else ())
        side = [SIDE] if self.official else []
        kept = rows.filter(pl.col("reason").is_null()).select(
            "text",
            "label",
            "source",
            "source_row",
            pl.coalesce("group", "normal").alias("group"),
            *side,
        )
        rejects = rows.filter(pl.col("reason").is_not_null()).select(
            "source",
            "source_row",
            pl.coalesce("text", "raw").str.slice(0, MAX_SHOWN_CHARS).alias("text"),
            pl.col("label").str.slice(0, MAX_SHOWN_CHARS),
            "reason",
            "detail",
            *side,
        )
        return kept, rejects

    def _cell_reason(self, dropped: list[str]) -> pl.Expr:
        text, label = pl.col("text"), pl.col("label")
        chain = (
            pl.when(text.is_null() | (text == ""))
            .then(pl.lit("missing_text"))
            .when(text.str.len_chars() < self.min_chars)
            .then(pl.lit("too_short"))
            .when(text.str.len_chars() > self.max_chars)
            .then(pl.lit("too_long"))
            .when(label.is_null() | (label == ""))
            .then(pl.lit("missing_label"))
        )
        if dropped:
            chain = chain.when(label.is_in(dropped)).then(pl.lit("dropped_label"))
        if self.labels is not None:
            chain = chain.when(~label.is_in(list(self.labels))).then(pl.lit("unknown_label"))
        return chain.otherwise(pl.lit(None, pl.String))

    def _rare(self, rows: pl.DataFrame) -> pl.DataFrame:
        supported = pl.col("reason").is_null().sum().over("label")
        rare = pl.col("reason").is_null() & (supported < self.min_rows_per_label)
        return rows.with_columns(
            reason=pl.when(rare).then(pl.lit("rare_label")).otherwise("reason")
        )

    # --- prompts ----------------------------------------------------------------------------

    def trials(
        self, *, rows: int, seeds_per_call: int, attributes: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        strata = list(self.labels or ("label", "another"))
        first = {name: values[0] for name, values in attributes.items()}
        counts = sorted({0, min(1, seeds_per_call), seeds_per_call})
        whole = [(label, count, first, "") for label in strata for count in counts]
        whole += [
            (strata[0], seeds_per_call, first | {name: value}, f", {name} {shown(value)}")
            for name, values in attributes.items()
            for value in values[1:]
        ]
        for label, count, chosen, more in whole:
            examples = [{"text": f"an example {n}", "label": label} for n in range(count)]
            yield (
                self.told(label, count) + more,
                self.prompt_variables(
                    stratum=label, examples=examples, rows=rows, attributes=chosen, strata=strata
                ),
            )

    def told(self, stratum: str, examples: int) -> str:
        return f"label {shown(stratum)} with {examples} example{'s' * (examples != 1)}"

    def prompt_variables(
        self,
        *,
        stratum: str,
        examples: Sequence[Mapping[str, str]],
        rows: int,
        attributes: Mapping[str, str],
        strata: Sequence[str],
    ) -> dict[str, Any]:
        return {
            "label": stratum,
            "label_description": (self.labels or {}).get(stratum, ""),
            "labels": list(strata),
            "examples": [example["text"] for example in examples],
            "rows": rows,
            "attributes": attributes,
        }

    def seed_problem(self, value: object) -> Trouble | None:
        if not isinstance(value, dict):
            return Trouble(
                "", "a seed is an object", shown(value), 'write {"text": ..., "label": ...}'
            )
        for key in value.keys() - set(self.payload):
            return Trouble(str(key), "unknown key", shown(value[key]), "keys are text and label")
        for key in self.payload:
            cell = value.get(key)
            if not isinstance(cell, str) or not tidy(cell):
                return Trouble(key, "a text is missing here", shown(cell), f"write {key!r}")
        if self.labels is not None and tidy(value["label"]) not in self.labels:
            return Trouble(
                "label",
                "unknown label",
                shown(value["label"]),
                f"use one of: {', '.join(self.labels)}",
            )
        return None

    def seed(self, value: Mapping[str, str]) -> dict[str, str]:
        return {"text": value["text"], "label": tidy(value["label"])}

    # --- examples ---------------------------------------------------------------------------

    def as_instructions(self, rows: pl.DataFrame, *, strata: Sequence[str]) -> pl.DataFrame:
        labels = "\n".join(f"- {label}" for label in strata)
        instruction = (
            "Which of these labels fits the text below? "
            f"Answer with that label only, as it is written here.\n{labels}"
        )
        return rows.select(
            pl.lit(instruction).alias("instruction"),
            pl.col("text").alias("input"),
            pl.col("label").alias("output"),
        )

    # --- answers ----------------------------------------------------------------------------

    def answer_schema(self, rows: int) -> dict[str, Any]:
        item = {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": {
                "rows": {"type": "array", "items": item, "minItems": rows, "maxItems": rows}
            },
            "required": ["rows"],
            "additionalProperties": False,
        }

    def read_item(self, item: object, *, stratum: str) -> dict[str, str] | None:
        text = item
        if isinstance(item, dict):
            # Asked for one text an item, some models give its member another name.
            texts = [value for value in item.values() if isinstance(value, str)]
            text = item["text"] if "text" in item else texts[0] if len(texts) == 1 else None
        if not isinstance(text, str):
            return None
        return {"text": " ".join(text.split()), "label": stratum}

    def implausible(self, rows: pl.DataFrame, human: pl.DataFrame) -> pl.DataFrame:
        """Label and length sanity of generated rows.

        Reasons: blank, no_words (fewer than ``min_chars`` letters), control_characters,
        unknown_label, too_short / too_long against the human 1 % / 99 % length quantiles times
        the slack and against ``min_chars`` / ``max_chars``.
        """
        low, high = self._length_bounds(human)
        text = pl.col("text")
        length = text.str.len_chars()
        reason = (
            pl.when(text.is_null() | (text.str.strip_chars() == ""))
            .then(pl.lit("blank"))
            .when(text.str.contains(r"\p{Cc}"))
            .then(pl.lit("control_characters"))
            .when(text.str.count_matches(r"\p{L}") < self.min_chars)
            .then(pl.lit("no_words"))
            .when(length < low)
            .then(pl.lit("too_short"))
            .when(length > high)
            .then(pl.lit("too_long"))
        )
        if self.labels is not None:
            reason = reason.when(~pl.col("label").is_in(list(self.labels))).then(
                pl.lit("unknown_label")
            )
        return rows.select(
            reason.otherwise(pl.lit(None, pl.String)).alias("reason"),
            pl.format(
                "{} characters, human rows have {} to {}", length, pl.lit(low), pl.lit(high)
            ).alias("detail"),
        ).with_columns(
            detail=pl.when(pl.col("reason").is_in(["too_short", "too_long"])).then("detail")
        )

    def _length_bounds(self, human: pl.DataFrame) -> tuple[int, int]:
        lengths = human["text"].str.len_chars()
        if lengths.is_empty():
            return self.min_chars, self.max_chars
        low = float(lengths.quantile(0.01) or 0) / self.length_slack
        high = float(lengths.quantile(0.99) or 0) * self.length_slack
        return max(self.min_chars, int(low)), min(self.max_chars, int(high) + 1)
