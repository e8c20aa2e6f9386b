"""What the ledger tells about a model before it is asked again: its tokens and its pace."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from synth_assets.llm.answers import decoded
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.tokens import MeasuredRatio, prompt_texts

RECENT: Final = 500
# Fewer calls than this say too little about a model's tokens, or about its pace.
ENOUGH_FOR_TOKENS: Final = 20
ENOUGH_FOR_PACE: Final = 5

_SELECT = (
    "SELECT request, response, prompt_tokens, completion_tokens, started_at, latency_ms FROM calls "
    "WHERE endpoint = ? AND model = ? AND prompt_tokens IS NOT NULL "
    "AND completion_tokens IS NOT NULL"
)
_LATEST = " ORDER BY started_at DESC LIMIT ?"


@dataclass(frozen=True, slots=True)
class PastCall:
    """One paid call. Characters are those of what was read and written; ``started_at`` is Unix
    seconds, ``seconds`` how long the answer took (0: not known), ``rows`` the rows asked for where
    the request says so."""

    prompt_chars: int
    prompt_tokens: int
    completion_chars: int
    completion_tokens: int
    started_at: float
    seconds: float
    rows: int | None


@dataclass(frozen=True)
class Pace:
    """How fast a model answered.

    ``latency_s`` and ``tokens`` are a call's median seconds and median completion tokens;
    ``per_second`` is answered calls per second of the time in which any was under way.
    """

    latency_s: float
    tokens: float
    per_second: float
    calls: int


def past_calls(
    ledger: Ledger, endpoint: str, model: str, *, dataset: str | None = None
) -> list[PastCall]:
    """The latest calls (at most ``RECENT``) of a model at an endpoint identity; of a dataset, or
    of all. Raises LedgerError."""
    parameters: tuple[Any, ...] = (endpoint, model)
    statement = _SELECT
    if dataset is not None:
        statement += " AND dataset = ?"
        parameters += (dataset,)
    rows = ledger.query(statement + _LATEST, (*parameters, RECENT))
    return list(_read(rows))


def prompt_ratio(calls: Sequence[PastCall], whose: str) -> MeasuredRatio | None:
    """Characters per prompt token, chat template included; None when that is not known."""
    chars, tokens = sum(c.prompt_chars for c in calls), sum(c.prompt_tokens for c in calls)
    return _ratio(chars, tokens, len(calls), whose)


def completion_ratio(calls: Sequence[PastCall], whose: str) -> MeasuredRatio | None:
    """Characters per completion token; None when that is not known."""
    chars, tokens = sum(c.completion_chars for c in calls), sum(c.completion_tokens for c in calls)
    return _ratio(chars, tokens, len(calls), whose)


def tokens_per_row(calls: Sequence[PastCall], rows_per_call: int) -> float | None:
    """Completion tokens per row asked for; None when too few calls are known.

    ``rows_per_call`` is taken where a request does not say how many rows it asks for.
    """
    if len(calls) < ENOUGH_FOR_PACE:
        return None
    rows = sum(call.rows or rows_per_call for call in calls)
    return sum(call.completion_tokens for call in calls) / rows


def pace(calls: Sequence[PastCall]) -> Pace | None:
    """None when too few calls are known."""
    timed = [call for call in calls if call.seconds > 0]
    if len(timed) < ENOUGH_FOR_PACE:
        return None
    return Pace(
        latency_s=statistics.median(call.seconds for call in timed),
        tokens=statistics.median(call.completion_tokens for call in timed),
        per_second=len(timed) / _busy_s(timed),
        calls=len(timed),
    )


def _ratio(chars: int, tokens: int, calls: int, whose: str) -> MeasuredRatio | None:
    if calls < ENOUGH_FOR_TOKENS or not chars or not tokens:
        return None
    ratio = chars / tokens
    return MeasuredRatio(ratio, f"{ratio:.2f} characters a token in the last {calls} calls {whose}")


def _busy_s(calls: Iterable[PastCall]) -> float:
    """Seconds in which at least one of the calls was under way."""
    busy, end = 0.0, float("-inf")
    for start, seconds in sorted((call.started_at, call.seconds) for call in calls):
        busy += max(0.0, start + seconds - max(start, end))
        end = max(end, start + seconds)
    return busy


def _read(rows: Iterable[Sequence[Any]]) -> Iterator[PastCall]:
    for request, response, prompt_tokens, completion_tokens, started_at, latency_ms in rows:
        asked = orjson.loads(request)
        parts = decoded(asked["kind"], bytes(response), asked["body"])
        if parts is None:
            continue
        texts = prompt_texts(asked["body"])
        yield PastCall(
            prompt_chars=sum(map(len, texts)),
            prompt_tokens=prompt_tokens,
            completion_chars=len(parts.text or ""),
            completion_tokens=completion_tokens,
            started_at=started_at,
            seconds=latency_ms / 1000,
            rows=rows_asked(asked["body"]),
        )


def rows_asked(body: Mapping[str, Any]) -> int | None:
    """The rows that a structured request asks for: the ``minItems`` of its list."""
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    for tool in body.get("tools") or ():
        schema = schema or tool.get("function", {}).get("parameters")
    lists = ((schema or {}).get("properties") or {}).values()
    least = next((each["minItems"] for each in lists if "minItems" in each), None)
    return least if isinstance(least, int) else None
