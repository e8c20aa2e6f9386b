"""A call as a person reads it: what the model was shown, what it answered, what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from synth_assets.llm.answers import decoded
from synth_assets.llm.endpoint import host_of
from synth_assets.llm.identity import Kind
from synth_assets.llm.ledger.rows import CallRow, FailureRow


@dataclass(frozen=True)
class Call:
    """One call as it went over the wire. ``messages``: role and text; ``cost_usd`` null: no price.

    ``answer`` is the text in ``response``, which is the body as received.
    """

    request_id: str
    model: str
    endpoint: str
    started_at: str
    latency_ms: float | None
    attempts: int
    status: int | None
    outcome: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    messages: list[dict[str, str]]
    answer: str | None
    response: str
    request: dict[str, Any]


def answered(row: CallRow) -> Call:
    """A call that got an answer."""
    request = orjson.loads(row.request)
    return Call(
        request_id=row.request_id,
        model=row.model,
        endpoint=endpoint_host(row.endpoint),
        started_at=_time(row.started_at),
        latency_ms=row.latency_ms,
        attempts=row.attempts,
        status=row.status,
        outcome=row.outcome,
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        cost_usd=row.cost_usd,
        messages=messages_of(request),
        answer=answer_text(request, row.response),
        response=row.response.decode("utf-8", "replace"),
        request=request,
    )


def given_up(row: FailureRow) -> Call:
    """A call that got none."""
    request = orjson.loads(row.request)
    return Call(
        request_id=row.request_id,
        model=row.model,
        endpoint=endpoint_host(row.endpoint),
        started_at=_time(row.started_at),
        latency_ms=None,
        attempts=row.attempts,
        status=row.status,
        outcome=f"{row.kind}: {row.detail}",
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        cost_usd=None,
        messages=messages_of(request),
        answer=None,
        response=row.body.decode("utf-8", "replace"),
        request=request,
    )


def messages_of(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a canonical request shows the model: role and text, in order."""
    body = request.get("body") or {}
    if "messages" in body:
        return [
            {"role": str(one.get("role")), "text": _text(one.get("content"))}
            for one in body["messages"]
        ]
    return [{"role": "prompt", "text": _text(body.get("prompt"))}]


def answer_text(request: Mapping[str, Any], response: bytes) -> str | None:
    """The text in a response body; None when it holds none."""
    kind: Kind = "completion" if request.get("kind") == "completion" else "chat"
    parts = decoded(kind, response, request.get("body"))
    return parts.text if parts else None


def endpoint_host(identity: str) -> str:
    """Host and port where an endpoint's identity is an address, else its name."""
    return host_of(identity) if "://" in identity else identity


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return orjson.dumps(content).decode() if content is not None else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
