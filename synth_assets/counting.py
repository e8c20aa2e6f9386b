"""How many tokens a dataset's calls will read and write: which counter speaks, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import polars as pl

from synth_assets.generation import Dialect
from synth_assets.llm.ledger.history import PastCall, completion_ratio, prompt_ratio, tokens_per_row
from synth_assets.llm.tokens import (
    TOKENS_PER_MESSAGE,
    TokenCounter,
    assumed,
    openai_tokens,
    prompt_texts,
)
from synth_assets.tasks import Task

SAMPLE: Final = 400


@dataclass(frozen=True)
class Counters:
    """``per_message``: tokens that the chat template adds, where the counter leaves them out."""

    prompts: TokenCounter
    answers: TokenCounter
    per_message: int


def counters(
    dialect: Dialect,
    *,
    of_dataset: Sequence[PastCall],
    of_model: Sequence[PastCall],
    tokenizer: Callable[[], TokenCounter | None],
) -> Counters:
    """The best counters that there are.

    For prompts: what this dataset's calls measured; for chats, what the model's calls measured,
    since it includes the chat template; a tokenizer; a base model's measured ratio; an assumption.
    ``tokenizer`` is called only where it is needed (it may have to start a server).
    """
    chat = dialect.style == "chat"
    billed = prompt_ratio(of_model, "of this model")
    measured = prompt_ratio(of_dataset, "of this dataset") or (billed if chat else None)
    exact: TokenCounter | None = openai_tokens(dialect.model)
    if measured is None and exact is None:
        exact = tokenizer()
    written = completion_ratio(of_model, "of this model")
    return Counters(
        prompts=measured or exact or billed or assumed(),
        answers=exact or written or assumed(),
        per_message=TOKENS_PER_MESSAGE if chat and measured is None else 0,
    )


@dataclass
class PromptSample:
    """Prompts of many calls: totals of all, texts of at most ``SAMPLE``, evenly spread.

    The choice depends on the order of the calls only.
    """

    calls: int = 0
    chars: int = 0
    messages: int = 0
    _kept: list[list[str]] = field(default_factory=list)
    _every: int = 1

    def add(self, body: Mapping[str, Any]) -> None:
        texts = prompt_texts(body)
        if self.calls % self._every == 0:
            if len(self._kept) == SAMPLE:
                self._kept, self._every = self._kept[::2], self._every * 2
            if self.calls % self._every == 0:
                self._kept.append(texts)
        self.calls += 1
        self.chars += sum(map(len, texts))
        self.messages += len(texts) if "messages" in body else 0

    def tokens(self, counting: Counters) -> tuple[int, str]:
        """Tokens of all prompts, from those of the sample by characters; and how."""
        if not self.calls:
            return 0, "nothing is to be asked"
        texts = [text for each in self._kept for text in each]
        chars = sum(map(len, texts))
        counted = sum(counting.prompts.count(texts)) * (self.chars / chars if chars else 0.0)
        how = counting.prompts.method
        if len(self._kept) < self.calls:
            how += f", on {len(self._kept)} of {self.calls} prompts"
        return round(counted + counting.per_message * self.messages), how


def answer_tokens(
    asked: Mapping[int, int],
    human: pl.DataFrame,
    *,
    task: Task,
    dialect: Dialect,
    of_dataset: Sequence[PastCall],
    counting: Counters,
) -> tuple[int, str]:
    """Completion tokens of all calls, and how they were found.

    ``asked``: number of calls by the rows they ask for. From this dataset's earlier calls; else
    from human rows, written as an answer is; a base model, which has no end, writes to its limit.
    """
    if not asked:
        return 0, "nothing is to be asked"
    most = dialect.sampling.get("max_tokens")
    usual = max(asked, key=lambda rows: asked[rows])
    each = tokens_per_row(of_dataset, usual)
    how = f"{each:.1f} a row in the last {len(of_dataset)} calls of this dataset" if each else ""
    if each is None and dialect.style == "continue" and most is not None:
        each, how = float(most), "a base model writes until its limit"
    elif each is None:
        each = _human_tokens_per_row(human, usual, task, dialect, counting.answers)
        how = f"{each:.1f} a row, as human rows have ({counting.answers.method})"
    total = sum(calls * _capped(rows * each, most) for rows, calls in asked.items())
    return round(total), how


def _capped(tokens: float, most: float | None) -> float:
    return tokens if most is None else min(tokens, most)


def _human_tokens_per_row(
    human: pl.DataFrame, rows: int, task: Task, dialect: Dialect, counter: TokenCounter
) -> float:
    """Mean tokens per row of answers made of human rows, ``rows`` to an answer."""
    columns = [name for name in task.payload if name in human.columns]
    chosen = human.select(columns).gather_every(max(1, human.height // SAMPLE)).head(SAMPLE)
    if chosen.is_empty():
        return 0.0
    examples = chosen.to_dicts()
    answers = [
        _answer(examples[at : at + rows], rows, task, dialect)
        for at in range(0, len(examples), rows)
    ]
    return sum(counter.count(answers)) / len(examples)


def _answer(examples: Sequence[Mapping[str, Any]], rows: int, task: Task, dialect: Dialect) -> str:
    if dialect.output == "list":
        return "\n".join(f"- {example[task.text]}" for example in examples)
    name, described = next(iter(task.answer_schema(rows)["properties"].items()))
    members = (described.get("items") or {}).get("properties") or {task.text: {}}
    items = [{member: example.get(member, "") for member in members} for example in examples]
    return orjson.dumps({name: items}).decode()
