"""From a plan to candidate rows: rounds of calls, read and judged until every cell has its rows.

The one place where the pure middle (plan, refill, screen, task) meets the model client. Answers
come in any order; rows are put in the plan's order before they are judged, so that the result is a
function of the plan and the answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from synth_assets.lifecycle.imported import is_imported
from synth_assets.lifecycle.refill import CellState, next_round, remaining, shortfall, update
from synth_assets.lifecycle.screen import References, ScreenRules, accepted, judge
from synth_assets.llm.answers import Answer, Tallies
from synth_assets.llm.batch.batch import BatchSettings, ask_in_batches
from synth_assets.llm.budget import Budget, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.engine import ask
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.formats import (
    OutputMode,
    Style,
    asked_for,
    build_body,
    items_of,
    kind_of,
)
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.scheduler import Limits
from synth_assets.tasks import Task

RAW_CHARS = 20_000
PLAN_SLICE = 2_048
SLAB_ROWS = 4_096
# What part of the rows asked for a model's first answers are taken to be worth, before any is seen.
FIRST_YIELD: dict[Style, float] = {"continue": 0.65, "chat": 0.8}
DAMAGED = "\N{REPLACEMENT CHARACTER}"
# Content errors whose text may still hold whole rows.
SALVAGEABLE = frozenset({ErrorKind.LENGTH, ErrorKind.MALFORMED})

_FIXED = {
    "round": pl.Int32,
    "cell": pl.String,
    "ordinal": pl.Int32,
    "item": pl.Int32,
    "wanted": pl.Int32,
    "problem": pl.String,
    "problem_detail": pl.String,
    "raw": pl.String,
    "request_id": pl.String,
    "seed_ids": pl.List(pl.String),
    "prompt_version": pl.String,
    "model": pl.String,
    "attributes": pl.String,
}


@dataclass(frozen=True)
class Dialect:
    """How calls are written: everything here is part of every request's identity."""

    model: str
    style: Style
    output: OutputMode
    sampling: Mapping[str, float | int]
    seed: int


@dataclass(frozen=True)
class Channel:
    """Whom calls go to and where answers are kept; nothing here changes what an answer says.

    ``known`` has the identity of the endpoint; ``connect`` is called when there is something to
    ask that the ledger does not hold, so that a replay needs no server. With ``batches`` calls go
    through the endpoint's batch API.
    """

    known: Endpoint
    connect: Callable[[], Endpoint]
    ledger: Ledger
    limits: Limits
    prices: Prices | None
    dataset: str
    budget: Budget | None = None
    batches: BatchSettings | None = None
    tallies: Tallies = field(default_factory=Tallies)

    def answers(self, requests: Callable[[], Iterable[Request]]) -> AsyncGenerator[Answer, None]:
        """One Answer per request; ``requests`` gives the same stream whenever it is called."""
        if self.batches is not None:
            return ask_in_batches(
                requests,
                endpoint=self.known,
                connect=self.connect,
                ledger=self.ledger,
                limits=self.limits,
                dataset=self.dataset,
                prices=self.prices,
                budget=self.budget,
                tallies=self.tallies,
                settings=self.batches,
            )
        return ask(
            requests(),
            endpoint=self.known,
            connect=self.connect,
            ledger=self.ledger,
            limits=self.limits,
            dataset=self.dataset,
            prices=self.prices,
            budget=self.budget,
            tallies=self.tallies,
        )


@dataclass(frozen=True)
class Progress:
    """How far generation is; ``tallies`` are the engine's.

    Rows are judged when a round is complete, so ``accepted`` moves in steps; ``answers`` out of
    ``expected`` calls (this round's and all before it) moves with every answer.
    """

    wanted: int
    accepted: int
    answers: int
    expected: int
    rounds: int
    rejects: Mapping[str, int]
    tallies: Tallies


@dataclass
class Generated:
    """``candidates``: every row of every call made, in the plan's order, judged or not.

    ``accepted``: rows per cell, those given beforehand included; ``rejects`` are of calls only.
    ``unasked``: calls of the last round for which the budget had no room; there is no row of them.
    ``shortfall``: cells with fewer rows than wanted, and the reasons of their rejects.
    """

    candidates: pl.DataFrame
    accepted: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    unasked: int = 0
    shortfall: pl.DataFrame = field(default_factory=pl.DataFrame)
    tallies: Tallies = field(default_factory=Tallies)


def candidate_schema(task: Task) -> dict[str, Any]:
    return {**_FIXED, **dict.fromkeys(task.payload, pl.String)}


def outline(plan: pl.LazyFrame) -> pl.DataFrame:
    """The plan without its texts: cell, ordinal, wanted, rows. What rounds are decided from."""
    return plan.select("cell", "ordinal", "wanted", "rows").collect()


def requests_of(
    plan: pl.LazyFrame, calls: pl.DataFrame, dialect: Dialect, endpoint: str, task: Task
) -> Iterator[Request]:
    """One request per call, in the plan's order; its ``tag`` is the call's row without the texts.

    ``calls`` (cell, ordinal) picks rows of ``plan``, which is read a slice at a time: prompts are
    held while they are on their way, not before. ``endpoint``: its identity, not its address.
    """
    wanted = calls.select("cell", "ordinal").lazy()
    height = plan.select(pl.len()).collect().item()
    for start in range(0, height, PLAN_SLICE):
        chunk = plan.slice(start, PLAN_SLICE)
        picked = chunk.join(wanted, on=("cell", "ordinal"), how="semi", maintain_order="left")
        for call in picked.collect().iter_rows(named=True):
            yield request_of(call, dialect, endpoint, task)


def request_of(call: dict[str, Any], dialect: Dialect, endpoint: str, task: Task) -> Request:
    """The request of one plan row; the row becomes its tag, without the texts."""
    body = build_body(
        style=dialect.style,
        mode=dialect.output,
        model=dialect.model,
        system=call.pop("system") or "",
        user=call.pop("prompt"),
        schema=task.answer_schema(call["rows"]),
        sampling=dialect.sampling,
        seed=(dialect.seed * 1_000_003 + call["sample"]) % 2**31,
    )
    return Request(kind_of(dialect.style), endpoint, body, call["sample"], call)


async def generate(
    plan: pl.LazyFrame,
    *,
    references: References,
    rules: ScreenRules,
    task: Task,
    dialect: Dialect,
    channel: Channel,
    on_progress: Callable[[Progress], None],
    given: pl.DataFrame | None = None,
) -> Generated:
    """Ask, read and judge in rounds until every cell is full or its calls are used up.

    ``given``: judged rows that are there already. Those accepted are not asked for, and what
    repeats one of them is rejected.

    A reached budget ends it after the round in which it was reached: what was bought is judged
    and returned, ``unasked`` says that it is not all.

    Raises:
        EndpointError: when every call fails alike.
        LedgerError: when answers cannot be kept.
        BatchPending: when calls wait in a batch at the provider.
    """
    drawn, there = outline(plan), accepted(given)
    missing = remaining(drawn, there)
    done = Generated(pl.DataFrame(schema=candidate_schema(task)), there, tallies=channel.tallies)
    states: dict[str, CellState] = {}
    judged = given
    wanted = int(drawn.group_by("cell").agg(pl.col("wanted").first())["wanted"].sum())
    answers = expected = 0
    while not done.unasked:
        calls = next_round(missing, states, first_yield=FIRST_YIELD[dialect.style])
        if calls.is_empty():
            break
        expected += calls.height
        batch = _Rows(candidate_schema(task))
        stream = channel.answers(
            partial(requests_of, plan, calls, dialect, channel.known.identity, task)
        )
        async with aclosing(stream):
            async for answer in stream:
                if answer.error is ErrorKind.BUDGET:
                    done.unasked += 1
                else:
                    batch.add(read_rows(answer, answer.request.tag, task, dialect, done.rounds))
                answers += 1
                on_progress(_progress(done, wanted, answers, expected))
        verdicts = judge(batch.frame(), references, rules, task, earlier=judged)
        judged = verdicts if judged is None else pl.concat([judged, verdicts])
        done.accepted = accepted(judged)
        done.rejects = _reasons(judged.filter(~is_imported()))
        done.rounds += 1
        made = {cell: count - there.get(cell, 0) for cell, count in done.accepted.items()}
        states = update(states, calls, made)
        on_progress(_progress(done, wanted, answers, expected))
    if judged is not None:
        done.candidates = judged.filter(~is_imported()).select(list(candidate_schema(task)))
    done.shortfall = shortfall(drawn, judged)
    return done


class _Rows:
    """Rows gathered as columns, a slab at a time: Python objects are many times their size."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._loose: list[dict[str, Any]] = []
        self._slabs: list[pl.DataFrame] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._loose += rows
        if len(self._loose) >= SLAB_ROWS:
            self._pack()

    def frame(self) -> pl.DataFrame:
        self._pack()
        return pl.concat(self._slabs)

    def _pack(self) -> None:
        self._slabs.append(pl.DataFrame(self._loose, schema=self._schema))
        self._loose = []


def _progress(done: Generated, wanted: int, answers: int, expected: int) -> Progress:
    accepted_rows = sum(done.accepted.values())
    return Progress(
        wanted, accepted_rows, answers, expected, done.rounds, done.rejects, done.tallies
    )


def read_rows(
    answer: Answer, call: Mapping[str, Any], task: Task, dialect: Dialect, number: int
) -> list[dict[str, Any]]:
    """One answer -> candidate rows; what is no row is one with a problem and the raw text.

    What of an answer is set aside beside good rows (lines without a mark) is one row, the last.
    Whole rows of an answer that was cut short are kept, the cut one never is. ``number`` is the
    round's.
    """
    shared = {
        "round": number,
        **{name: call[name] for name in ("cell", "ordinal", "wanted", "seed_ids")},
        **{name: call[name] for name in ("prompt_version", "attributes")},
        "request_id": answer.request_id,
        "model": dialect.model,
    }
    rows: list[dict[str, Any]] = []
    problem, detail = (answer.error.value, answer.error_detail) if answer.error else ("", "")
    raw = answer.text or answer.raw.decode("utf-8", "backslashreplace")
    if answer.text is not None and (answer.ok or answer.error in SALVAGEABLE):
        cut = answer.error is ErrorKind.LENGTH
        asked = asked_for(answer.request, task.answer_schema(call["rows"]), call["rows"])
        read = items_of(answer.text, dialect.output, cut=cut, asked=asked)
        rows = [_row(item, task, call["cell"]) for item in read.items]
        if not problem or (cut and rows):
            problem, detail, raw = read.problem, read.detail, read.aside or raw
    if problem:
        rows.append({"problem": problem, "problem_detail": detail, "raw": _raw(raw)})
    return [{**shared, **row, "item": item} for item, row in enumerate(rows)]


def _row(item: object, task: Task, stratum: str) -> dict[str, Any]:
    """The payload of one item, or what is wrong with it."""
    payload = task.read_item(item, stratum=stratum)
    if payload is None:
        return {"problem": "malformed_row", "raw": _raw(str(item))}
    if any(DAMAGED in cell for cell in payload.values()):
        detail = "letters of it are lost: bytes that are no UTF-8"
        return {"problem": "damaged_characters", "problem_detail": detail, "raw": _raw(str(item))}
    return payload


def _raw(text: str) -> str:
    return text[:RAW_CHARS]


def _reasons(judged: pl.DataFrame) -> dict[str, int]:
    counted = judged.drop_nulls("reason").group_by("reason").len().sort("len", "reason")
    return dict(reversed(counted.rows()))
