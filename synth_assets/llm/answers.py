"""What comes back: a raw body read once into an Answer, and the tallies of a run."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.identity import Kind, Request
from synth_assets.llm.ledger.rows import OK, StoredAnswer

# Counts beyond this are nonsense that some servers report; no context window is near it.
MOST_TOKENS: Final = 10**8


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's end: a good text, or the reason why there is none.

    ``error`` is None for a good answer. For a content error ``text`` may hold what there is (a
    list cut short), to be salvaged and never to be taken as whole. ``raw`` is the body verbatim,
    ``latency_ms`` that of the last attempt, ``cost_usd`` null without prices or usage.
    ``replayed`` answers cost nothing now: they were in the ledger or were asked by another.
    """

    request: Request
    request_id: str
    text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    replayed: bool
    error: ErrorKind | None
    error_detail: str
    raw: bytes
    attempts: int
    latency_ms: float
    status: int | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


class Decoded(NamedTuple):
    """The parts of a response body that we use; ``error`` is a content error or None."""

    text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error: ErrorKind | None


@dataclass
class Tallies:
    """Counts of a run, kept up to date while it runs.

    ``calls`` counts HTTP attempts; ``bought`` paid answers, good or not; ``replayed`` those that
    cost nothing; ``failed`` ends without a good answer by kind, replayed ones included.
    """

    calls: int = 0
    bought: int = 0
    replayed: int = 0
    retried: int = 0
    throttled: int = 0
    failed: Counter[ErrorKind] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    concurrency: int = 0
    stopped: bool = False
    started_at: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at

    def count(self, answer: Answer) -> None:
        """Adds one finished request."""
        if answer.error is not None:
            self.failed[answer.error] += 1
        if answer.replayed:
            self.replayed += 1
        elif answer.error is None or answer.error.is_content:
            self.bought += 1
            self.prompt_tokens += answer.prompt_tokens or 0
            self.completion_tokens += answer.completion_tokens or 0
            self.usd += answer.cost_usd or 0.0


def decoded(kind: Kind, body: bytes) -> Decoded | None:
    """Reads a response body; None when it is no answer of the protocol.

    Only the first choice counts. A text that is not UTF-8 is read with replacement characters and
    marked malformed.
    """
    parsed, clean = _parsed(body)
    if not isinstance(parsed, dict):
        return None
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    refusal = ""
    if kind == "completion":
        text = _text_of(choice.get("text"))
    else:
        message = choice.get("message")
        if not isinstance(message, dict):
            return None
        text = _text_of(message.get("content")) or _tool_arguments(message)
        refusal = _text_of(message.get("refusal")) or ""
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else None
    prompt_tokens, completion_tokens = _usage(parsed.get("usage"))
    error = _content_error(text, finish, refused=bool(refusal), clean=clean)
    return Decoded(text or refusal or text, finish, prompt_tokens, completion_tokens, error)


def replayed(request: Request, stored: StoredAnswer) -> Answer | None:
    """The Answer that a stored row holds; None when it cannot be read any more."""
    parts = decoded(request.kind, stored.response)
    if parts is None:
        return None
    error = None if stored.outcome == OK else ErrorKind(stored.outcome)
    return Answer(
        request,
        stored.request_id,
        parts.text,
        stored.finish_reason,
        stored.prompt_tokens,
        stored.completion_tokens,
        stored.cost_usd,
        True,
        error,
        "" if error is None else content_detail(error),
        stored.response,
        stored.attempts,
        stored.latency_ms,
        stored.status,
    )


def content_detail(error: ErrorKind) -> str:
    """What a content error means, for a person."""
    return {
        ErrorKind.LENGTH: "cut at the token limit",
        ErrorKind.CONTENT_FILTER: "stopped by the provider's content filter",
        ErrorKind.REFUSED: "the model declined",
        ErrorKind.EMPTY: "the answer is empty",
        ErrorKind.MALFORMED: "the answer is not UTF-8",
    }[error]


def _parsed(body: bytes) -> tuple[Any, bool]:
    """The JSON in ``body`` and whether it was clean UTF-8."""
    try:
        return orjson.loads(body), True
    except orjson.JSONDecodeError:
        pass
    try:
        body.decode()
    except UnicodeDecodeError:
        try:
            return orjson.loads(body.decode("utf-8", "replace")), False
        except orjson.JSONDecodeError:
            return None, False
    return None, True


def _content_error(
    text: str | None, finish: str | None, *, refused: bool, clean: bool
) -> ErrorKind | None:
    if finish == "content_filter":
        return ErrorKind.CONTENT_FILTER
    if refused:
        return ErrorKind.REFUSED
    if finish == "length":
        return ErrorKind.LENGTH
    if text is None or not text.strip():
        return ErrorKind.EMPTY
    return None if clean else ErrorKind.MALFORMED


def _text_of(content: Any) -> str | None:
    """Text given plainly, or as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _tool_arguments(message: dict[str, Any]) -> str | None:
    """The arguments of the first tool call, which hold the rows in tool mode."""
    calls = message.get("tool_calls")
    first = calls[0] if isinstance(calls, list) and calls else None
    function = first.get("function") if isinstance(first, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        # Some servers parse them already.
        return orjson.dumps(arguments).decode()
    return arguments if isinstance(arguments, str) else None


def _usage(usage: Any) -> tuple[int | None, int | None]:
    """Prompt and completion tokens; both null when either is nonsense."""
    if not isinstance(usage, dict):
        return None, None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        return counts
    return None, None
