"""How a request ended, as the rows that are kept and the Answer that is passed on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from synth_assets.llm.answers import Answer, Decoded, content_detail
from synth_assets.llm.budget import Prices
from synth_assets.llm.errors import ErrorKind, Failure
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.rows import OK, CallRow, FailureRow


@dataclass(frozen=True, slots=True)
class Bought:
    """A paid answer, good or not. ``started_at`` is Unix seconds."""

    body: bytes
    parts: Decoded
    status: int
    attempts: int
    started_at: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A request that got no answer. ``started_at`` is Unix seconds."""

    failure: Failure
    attempts: int
    started_at: float


def call_row(request: Request, bought: Bought, *, dataset: str, prices: Prices | None) -> CallRow:
    """The ledger's row of a paid answer, at today's prices."""
    parts = bought.parts
    cost = None
    if prices and parts.prompt_tokens is not None and parts.completion_tokens is not None:
        cost = prices.cost(parts.prompt_tokens, parts.completion_tokens)
    return CallRow(
        request_id=request.request_id,
        dataset=dataset,
        endpoint=request.endpoint,
        model=request.model,
        request=request.canonical,
        response=bought.body,
        status=bought.status,
        outcome=OK if parts.error is None else parts.error.value,
        finish_reason=parts.finish_reason,
        prompt_tokens=parts.prompt_tokens,
        completion_tokens=parts.completion_tokens,
        cost_usd=cost,
        prices=prices.as_json() if prices else None,
        attempts=bought.attempts,
        started_at=bought.started_at,
        latency_ms=bought.latency_ms,
    )


def failure_row(request: Request, gave_up: GaveUp, *, dataset: str) -> FailureRow:
    """The ledger's row of a request given up."""
    failure = gave_up.failure
    return FailureRow(
        request_id=request.request_id,
        dataset=dataset,
        endpoint=request.endpoint,
        model=request.model,
        request=request.canonical,
        kind=failure.kind.value,
        status=failure.status,
        detail=failure.detail,
        body=failure.body,
        attempts=gave_up.attempts,
        started_at=gave_up.started_at,
    )


def bought_answer(request: Request, bought: Bought, row: CallRow) -> Answer:
    parts = bought.parts
    return Answer(
        request=request,
        request_id=row.request_id,
        text=parts.text,
        finish_reason=parts.finish_reason,
        prompt_tokens=parts.prompt_tokens,
        completion_tokens=parts.completion_tokens,
        cost_usd=row.cost_usd,
        replayed=False,
        error=parts.error,
        error_detail="" if parts.error is None else content_detail(parts.error),
        raw=bought.body,
        attempts=bought.attempts,
        latency_ms=bought.latency_ms,
        status=bought.status,
    )


def failed_answer(request: Request, gave_up: GaveUp) -> Answer:
    return _empty_answer(
        request,
        error=gave_up.failure.kind,
        detail=gave_up.failure.detail,
        raw=gave_up.failure.body,
        attempts=gave_up.attempts,
        latency_ms=(time.time() - gave_up.started_at) * 1000,
        status=gave_up.failure.status,
    )


def unasked_answer(request: Request) -> Answer:
    """The budget had no room for it."""
    return _empty_answer(request, error=ErrorKind.BUDGET, detail="not asked: the budget is reached")


def twin_answer(answer: Answer, twin: Request) -> Answer:
    """The same answer for the same question asked again in one stream: nothing was paid twice."""
    paid = answer.error is None or answer.finish_reason is not None
    return replace(answer, request=twin, replayed=paid)


def _empty_answer(
    request: Request,
    *,
    error: ErrorKind,
    detail: str,
    raw: bytes = b"",
    attempts: int = 0,
    latency_ms: float = 0.0,
    status: int | None = None,
) -> Answer:
    return Answer(
        request=request,
        request_id=request.request_id,
        text=None,
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        cost_usd=None,
        replayed=False,
        error=error,
        error_detail=detail,
        raw=raw,
        attempts=attempts,
        latency_ms=latency_ms,
        status=status,
    )
