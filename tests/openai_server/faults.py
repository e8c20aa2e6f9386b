"""Faults on purpose: what may go wrong between a client and a model, scheduled by a seed.

A hook sees each request and says which fault it meets, if any. ``schedule`` draws by
(seed, request identity, attempt of that identity), never by arrival order or time, so that the
same run meets the same faults however it is scheduled, and a retry draws anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tests.openai_server.answers import repeated_first
from tests.openai_server.quirks import QUIRKS

Kind = Literal[
    "status",  # an HTTP error with the OpenAI error body
    "html",  # a proxy's error page
    "reset",  # the connection is reset before any byte of an answer
    "stall",  # nothing for ``seconds``, then a reset
    "slow_body",  # a good answer, its body spread over ``seconds``
    "broken_body",  # HTTP 200 whose JSON body ends in the middle
    "invalid_utf8",  # HTTP 200 whose content holds bytes that are no UTF-8
    "malformed",  # content that is not what was asked for: prose and broken JSON
    "wrong_schema",  # content is JSON of another shape
    "length",  # content cut in the middle, finish_reason "length"
    "empty",  # content is the empty string
    "content_filter",  # no content, finish_reason "content_filter"
    "refusal",  # the model declines
    "duplicates",  # every row the same
    "same_answer",  # the seed is ignored: one prompt, one text, however often it is asked
    "lost_answer",  # carried out and billed; a reset after ``seconds`` instead of the answer
    "unknown_fields",  # a good answer with fields nobody knows
    "wrong_usage",  # a good answer with a missing or absurd usage
    "quirk",  # the rows said as ``message``, a name in ``quirks.QUIRKS``, says them
]


@dataclass(frozen=True)
class RequestInfo:
    """One request as the server saw it.

    ``identity`` is the sha256 of path and canonical JSON body; ``attempt`` counts the requests of
    that identity from 1; ``index`` counts all requests from 0. The key is never kept in
    ``headers``.
    """

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    identity: str
    attempt: int
    index: int


@dataclass(frozen=True)
class FaultAction:
    """What happens to one request instead of a good answer."""

    kind: Kind
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""


FaultHook = Callable[[RequestInfo], FaultAction | None]

MESSAGES = {
    400: "The request is invalid.",
    408: "The request took too long.",
    409: "The request conflicts with another.",
    429: "Rate limit reached for requests. Please slow down.",
    500: "The server had an error while processing your request.",
    502: "Bad gateway.",
    503: "The engine is currently overloaded, please try again later.",
}


def schedule(
    seed: int,
    rates: Mapping[str, float],
    *,
    seconds: float = 0.5,
    retry_after: str = "1",
) -> FaultHook:
    """A hook that meets each request attempt with the given probabilities.

    Names of ``rates``: a status ("429", "503"), "429_retry_after" (the header has the value
    ``retry_after``, seconds or an HTTP date), "429_retry_after_date" (an HTTP date, ``retry_after``
    seconds after the answer), or a kind of fault. ``seconds`` is the length of
    stalls and slow bodies. Raises ValueError for an unknown name or rates that exceed 1.
    """
    actions = {name: _action(name, seconds, retry_after) for name in rates}
    if min(rates.values(), default=0.0) < 0 or sum(rates.values()) > 1 + 1e-9:
        raise ValueError(f"fault rates must be >= 0 and sum to at most 1: {dict(rates)}")
    ordered = sorted(rates)

    def hook(request: RequestInfo) -> FaultAction | None:
        key = f"{seed}|{request.identity}|{request.attempt}".encode()
        draw = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
        for name in ordered:
            draw -= rates[name]
            if draw < 0:
                return actions[name]
        return None

    return hook


def _action(name: str, seconds: float, retry_after: str) -> FaultAction:
    if name == "429_retry_after":
        return FaultAction("status", status=429, headers={"Retry-After": retry_after})
    if name == "429_retry_after_date":
        return FaultAction("status", status=429, headers={"Retry-After": f"date+{retry_after}"})
    if name.isdigit() and 400 <= int(name) <= 599:
        return FaultAction("status", status=int(name))
    if name == "html":
        return FaultAction("html", status=502)
    for kind in get_args(Kind):
        if name == kind and name != "status":
            return FaultAction(kind, seconds=seconds)
    raise ValueError(f"unknown fault {name!r}; known: a status 400-599, {get_args(Kind)}")


def spoil(answer: dict[str, Any], action: FaultAction) -> dict[str, Any]:
    """The answer with its content spoiled as ``action`` says; other kinds leave it alone."""
    edit = _EDITS.get(action.kind)
    if edit:
        for choice in answer["choices"]:
            edit(choice, action)
    if action.kind == "quirk":
        QUIRKS[action.message](answer)
    elif action.kind == "unknown_fields":
        answer |= {"service_tier": "unheard-of", "x_trace": {"hops": [1, 2], "note": None}}
        answer["choices"][0]["x_score"] = 0.5
    elif action.kind == "wrong_usage":
        # Half of the servers that get it wrong omit it; the other half count backwards.
        odd = int(answer["id"][-1], 36) % 2
        answer["usage"] = {"prompt_tokens": -1, "completion_tokens": 10**9} if odd else None
    return answer


def _content(choice: dict[str, Any]) -> str:
    if "message" not in choice:
        return str(choice["text"] or "")
    calls = choice["message"].get("tool_calls")
    text = calls[0]["function"]["arguments"] if calls else choice["message"]["content"]
    return str(text or "")


def _set(choice: dict[str, Any], text: str | None, finish: str | None = None) -> None:
    message = choice.get("message")
    if message is None:
        choice["text"] = text or ""
    elif message.get("tool_calls") and text is not None:
        message["tool_calls"][0]["function"]["arguments"] = text
    else:
        message.pop("tool_calls", None)
        message["content"] = text
    if finish:
        choice["finish_reason"] = finish


def _malformed(choice: dict[str, Any], _: FaultAction) -> None:
    _set(choice, 'Sure! Here is what you asked for:\n{"rows": [{"text": ' + _content(choice)[:20])


def _wrong_schema(choice: dict[str, Any], _: FaultAction) -> None:
    _set(choice, '{"result": {"status": "ok", "value": [1, 2, null]}}')


def _length(choice: dict[str, Any], _: FaultAction) -> None:
    text = _content(choice)
    _set(choice, text[: max(1, len(text) * 3 // 5)], "length")


def _empty(choice: dict[str, Any], _: FaultAction) -> None:
    _set(choice, "")


def _content_filter(choice: dict[str, Any], _: FaultAction) -> None:
    _set(choice, None, "content_filter")


def _refusal(choice: dict[str, Any], action: FaultAction) -> None:
    text = action.message or "I'm sorry, but I can't help with that request."
    if "message" in choice:
        _set(choice, None)
        choice["message"]["refusal"] = text
    else:
        _set(choice, " " + text)


def _duplicates(choice: dict[str, Any], _: FaultAction) -> None:
    _set(choice, repeated_first(_content(choice)))


_EDITS: dict[str, Callable[[dict[str, Any], FaultAction], None]] = {
    "malformed": _malformed,
    "wrong_schema": _wrong_schema,
    "length": _length,
    "empty": _empty,
    "content_filter": _content_filter,
    "refusal": _refusal,
    "duplicates": _duplicates,
}
