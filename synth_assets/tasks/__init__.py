"""What differs between kinds of task, behind one protocol.

Stages never ask which task they serve: they call these methods and name no column of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

if TYPE_CHECKING:
    from synth_assets.spec.model import DatasetSpec


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one hand-written row."""

    key: str
    problem: str
    value: str = ""
    fix: str = ""


class Task(Protocol):
    """One kind of task.

    ``payload`` are the columns that make up an example, ``text`` the one that similarity and
    diversity look at, ``stratum`` the one whose values are balanced (all String).
    """

    @property
    def kind(self) -> str: ...

    @property
    def payload(self) -> tuple[str, ...]: ...

    @property
    def text(self) -> str: ...

    @property
    def stratum(self) -> str: ...

    def required_columns(self) -> list[str]:
        """Source columns without which nothing can be read."""

    def source_columns(self) -> dict[str, str]:
        """Payload column -> the source column it is read from."""

    def strata(self) -> dict[str, str] | None:
        """Declared strata with descriptions; None when they come from the data."""

    def read_human(self, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Raw rows -> (payload + source + source_row + group_key columns, rejects with reasons)."""

    def trials(
        self, *, rows: int, seeds_per_call: int, attributes: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Template variables to try a prompt on, each with a word for what they stand for.

        Every declared stratum with no example, with one and with as many as a call may show, and
        every value of every attribute.
        """

    def told(self, stratum: str, examples: int) -> str:
        """What a prompt is for, in words: ``label 'a' with 2 examples``."""

    def prompt_variables(
        self,
        *,
        stratum: str,
        examples: Sequence[Mapping[str, str]],
        rows: int,
        attributes: Mapping[str, str],
        strata: Sequence[str],
    ) -> dict[str, Any]:
        """The template variables of one call."""

    def seed_problem(self, value: object) -> Trouble | None:
        """What is wrong with a hand-written seed, if anything."""

    def seed(self, value: Mapping[str, str]) -> dict[str, str]:
        """A hand-written seed with nothing wrong: its payload columns, the stratum tidied."""

    def answer_schema(self, rows: int) -> dict[str, Any]:
        """JSON schema of a structured answer; its ``rows`` array holds the items."""

    def read_item(self, item: object, *, stratum: str) -> dict[str, str] | None:
        """One item of an answer (an object, or a line of a plain list) -> payload, or None."""

    def as_instructions(self, rows: pl.DataFrame, *, strata: Sequence[str]) -> pl.DataFrame:
        """Rows with payload columns -> ``instruction``, ``input``, ``output`` (String), in order.

        What a language model would be asked (``input`` may be empty), and its right answer.
        """

    def implausible(self, rows: pl.DataFrame, human: pl.DataFrame) -> pl.DataFrame:
        """Generated rows -> columns ``reason``, ``detail`` (null where nothing is wrong)."""


def task_for(spec: DatasetSpec) -> Task:
    """The task a spec declares."""
    from synth_assets.tasks.classification import Classification

    return Classification.from_spec(spec)
