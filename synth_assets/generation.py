"""From a plan to candidate rows: rounds of calls, read and judged until every cell has its rows.

The one place where the pure middle (plan, refill, screen, task) meets the model client. Answers
come in any order; rows are put in the plan's order before they are judged, so that the result is a
function of the plan and the answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from synth_assets.lifecycle.refill import CellState, next_round, update
from synth_assets.lifecycle.screen import References, ScreenRules, accepted, judge
from synth_assets.llm.answers import Answer, Tallies
from synth_assets.llm.budget import Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.engine import ask
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.formats import OutputMode, Style, build_body, items_of, kind_of
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger import Ledger
from synth_assets.llm.scheduler import Limits
from synth_assets.tasks import Task

RAW_CHARS = 20_000
# What part of the rows asked for a model's first answers are taken to be worth, before any is seen.
FIRST_YIELD: dict[Style, float] = {"continue": 0.65, "chat": 0.8}
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

    ``endpoint(True)`` is called when there is something to ask that the ledger does not hold, so
    that a replay needs no server; ``endpoint(False)`` only for its identity.
    """

    endpoint: Callable[[bool], Endpoint]
    ledger: Ledger
    limits: Limits
    prices: Prices | None
    dataset: str
    tallies: Tallies = field(default_factory=Tallies)


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
    """``candidates``: every row of every call made, in the plan's order, judged or not."""

    candidates: pl.DataFrame
    accepted: dict[str, int]
    rejects: dict[str, int]
    rounds: int
    tallies: Tallies


def candidate_schema(task: Task) -> dict[str, Any]:
    return {**_FIXED, **dict.fromkeys(task.payload, pl.String)}


def requests_of(
    calls: pl.DataFrame, dialect: Dialect, endpoint: str, task: Task
) -> Iterator[tuple[Request, dict[str, Any]]]:
    """One request per plan row, with that row. ``endpoint``: its identity, not its address."""
    for call in calls.iter_rows(named=True):
        body = build_body(
            style=dialect.style,
            mode=dialect.output,
            model=dialect.model,
            system=call["system"] or "",
            user=call["prompt"],
            schema=task.answer_schema(call["rows"]),
            sampling=dialect.sampling,
            seed=(dialect.seed * 1_000_003 + call["sample"]) % 2**31,
        )
        yield Request(kind_of(dialect.style), endpoint, body, call["sample"]), call


async def generate(
    plan: pl.DataFrame,
    *,
    references: References,
    rules: ScreenRules,
    task: Task,
    dialect: Dialect,
    channel: Channel,
    on_progress: Callable[[Progress], None],
) -> Generated:
    """Ask, read and judge in rounds until every cell is full or its calls are used up.

    Raises:
        EndpointError: when every call fails alike.
        LedgerError: when answers cannot be kept.
    """
    done = Generated(pl.DataFrame(schema=candidate_schema(task)), {}, {}, 0, channel.tallies)
    states: dict[str, CellState] = {}
    judged: pl.DataFrame | None = None
    wanted = int(plan.group_by("cell").agg(pl.col("wanted").first())["wanted"].sum())
    parts: list[pl.DataFrame] = []
    answers = expected = 0
    while True:
        calls = next_round(plan, states, first_yield=FIRST_YIELD[dialect.style])
        if calls.is_empty():
            break
        expected += calls.height
        rows: list[dict[str, Any]] = []
        async for answer, call in _answers(calls, task, dialect, channel):
            rows.extend(read_rows(answer, call, task, dialect, number=done.rounds))
            answers += 1
            on_progress(_progress(done, wanted, answers, expected))
        batch = pl.DataFrame(rows, schema=candidate_schema(task))
        verdicts = judge(batch, references, rules, task, earlier=judged)
        judged = verdicts if judged is None else pl.concat([judged, verdicts])
        parts.append(verdicts.select(list(candidate_schema(task))))
        done.accepted = accepted(judged)
        done.rejects = _reasons(judged)
        done.rounds += 1
        states = update(states, calls, done.accepted)
        on_progress(_progress(done, wanted, answers, expected))
    if parts:
        done.candidates = pl.concat(parts)
    return done


def _progress(done: Generated, wanted: int, answers: int, expected: int) -> Progress:
    accepted_rows = sum(done.accepted.values())
    return Progress(
        wanted, accepted_rows, answers, expected, done.rounds, done.rejects, done.tallies
    )


async def _answers(
    calls: pl.DataFrame, task: Task, dialect: Dialect, channel: Channel
) -> AsyncIterator[tuple[Answer, dict[str, Any]]]:
    identity = channel.endpoint(False).identity
    asked = {r.request_id: (r, call) for r, call in requests_of(calls, dialect, identity, task)}
    held = await channel.ledger.get_many(list(asked))
    stream = ask(
        (request for request, _ in asked.values()),
        endpoint=channel.endpoint(len(held) < len(asked)),
        ledger=channel.ledger,
        limits=channel.limits,
        dataset=channel.dataset,
        prices=channel.prices,
        tallies=channel.tallies,
    )
    async with aclosing(stream) as answers:
        async for answer in answers:
            yield answer, asked[answer.request_id][1]


def read_rows(
    answer: Answer, call: Mapping[str, Any], task: Task, dialect: Dialect, *, number: int
) -> list[dict[str, Any]]:
    """One answer -> candidate rows; what cannot be read is a row with a problem and the raw text.

    Whole rows of an answer that was cut short are kept, the cut one never is.
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
    if answer.text is not None and (answer.ok or answer.error in SALVAGEABLE):
        cut = answer.error is ErrorKind.LENGTH
        items, complete = items_of(answer.text, dialect.output, cut=cut)
        for item in items:
            payload = task.read_item(item, stratum=call["cell"])
            if payload is None:
                rows.append({**shared, "problem": "malformed_row", "raw": _raw(str(item))})
            else:
                rows.append({**shared, **payload})
        if not complete and not problem:
            problem, detail = "malformed", "the answer is not the list that was asked for"
    if problem and (answer.error is not ErrorKind.LENGTH or not rows):
        raw = _raw(answer.text or answer.raw.decode("utf-8", "backslashreplace"))
        rows.append({**shared, "problem": problem, "problem_detail": detail, "raw": raw})
    return [{**row, "item": item} for item, row in enumerate(rows)]


def _raw(text: str) -> str:
    return text[:RAW_CHARS]


def _reasons(judged: pl.DataFrame) -> dict[str, int]:
    counted = judged.drop_nulls("reason").group_by("reason").len().sort("len", "reason")
    return dict(reversed(counted.rows()))
