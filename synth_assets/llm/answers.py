"""What comes back: a raw body read once into an Answer, and the tallies of a run."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, NoReturn

import orjson

from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.identity import Kind, Request
from synth_assets.llm.ledger.rows import OK, StoredAnswer
from synth_assets.llm.salvage import without_halves

# Between the arguments of several calls in one text (RFC 7464); no JSON has it outside a string.
CALL_SEPARATOR: Final = "\x1e"
# Names of endings, in lower case.
_ENDINGS: Final[dict[str, ErrorKind]] = {
    **dict.fromkeys(
        (
            "length",
            "max_tokens",
            "max_token",
            "max_output_tokens",
            "max_completion_tokens",
            "max_new_tokens",
            "max_tokens_reached",
            "max_length",
            "model_length",
            "token_limit",
            "token_limit_reached",
            "context_length",
            "context_length_exceeded",
            "context_window_exceeded",
            "model_context_window_exceeded",
            "limit",
            "truncated",
            "incomplete",
        ),
        ErrorKind.LENGTH,
    ),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "safety",
            "blocklist",
            "prohibited_content",
            "recitation",
            "spii",
            "sensitive",
            "guardrail_intervened",
        ),
        ErrorKind.CONTENT_FILTER,
    ),
    "refusal": ErrorKind.REFUSED,
}
# What other names of a limit have in common: "length_limit", "max_tokens_exceeded".
_LIMITED: Final = re.compile(
    r"length|truncat|max_(?:\w+_)?tokens?|token_limit|(?:output|context|token)s?_(?:\w+_)?limit"
    r"|limit_reached|num_predict|context_window"
)
_UNTOLD: Final = frozenset({"", "null", "none", "unknown", "unspecified"})
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_THINKING_PART: Final = re.compile(r"think|reason|thought|analysis", re.IGNORECASE)
# The first bytes of a character beyond the first plane without its last: an emoji cut in two, or
# either half of one that was written as two surrogates.
_HALF_EMOJI: Final = re.compile(
    rb"(?:\xf0[\x90-\xbf]|[\xf1-\xf3][\x80-\xbf]|\xf4[\x80-\x8f])[\x80-\xbf]?(?![\x80-\xbf])"
    rb"|\xed[\xa0-\xbf][\x80-\xbf]"
)
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


def decoded(kind: Kind, body: bytes, asked: Mapping[str, Any] | None = None) -> Decoded | None:
    """Reads a response body; None when it is no answer of the protocol.

    ``asked`` is the body of the request: it tells whether a function was to be called, and where
    the answer had to end. Only the first choice counts. The text of several calls of a function is
    that of each, ``CALL_SEPARATOR`` between them. A text that is not UTF-8 is read with replacement
    characters and marked malformed; half an emoji is left out.
    """
    asked = asked or {}
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
        text = _message_text(message, forced_function(asked))
        refusal = _text_of(message.get("refusal")) or ""
    given = choice.get("finish_reason")
    finish = given if isinstance(given, str) else None
    usage = parsed.get("usage")
    prompt_tokens, completion_tokens = _usage(usage)
    ending = ending_of(finish)
    if ending is None and _used_up(usage, asked):
        ending = ErrorKind.LENGTH
    error = _content_error(text, ending, refused=bool(refusal), clean=clean)
    return Decoded(text or refusal or text, finish, prompt_tokens, completion_tokens, error)


def replayed(request: Request, stored: StoredAnswer) -> Answer | None:
    """The Answer that a stored row holds; None when it cannot be read any more.

    What was an error when it was stored stays one. What was none is read by the rules of today,
    which know more names for an answer that was cut.
    """
    parts = decoded(request.kind, stored.response, request.body)
    if parts is None:
        return None
    error = parts.error if stored.outcome == OK else ErrorKind(stored.outcome)
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


def ending_of(finish: str | None) -> ErrorKind | Literal["whole"] | None:
    """What a finish reason says, however it is spelled; None when it says nothing.

    ``MAX_TOKENS``, ``FINISH_REASON_MAX_TOKENS``, ``FinishReason.MAX_TOKENS`` and ``maxTokens`` are
    one name.
    """
    name = (finish or "").strip().rpartition(".")[2]
    name = _CAMEL.sub("_", name).lower().replace("-", "_").replace(" ", "_")
    name = name.removeprefix("finish_reason_")
    if name in _UNTOLD:
        return None
    return _ENDINGS.get(name, ErrorKind.LENGTH if _LIMITED.search(name) else "whole")


def _parsed(body: bytes) -> tuple[Any, bool]:
    """The JSON in ``body``, without halves of emoji, and whether it was clean UTF-8."""
    try:
        return orjson.loads(body), True
    except orjson.JSONDecodeError:
        pass
    text, clean = _as_text(body)
    try:
        # Unlike orjson it reads "\ud83d", the half of an emoji that was cut in two.
        return _mended(json.loads(text, parse_constant=_refuse)), clean
    except (ValueError, RecursionError):
        return None, clean


def _as_text(body: bytes) -> tuple[str, bool]:
    """The text of a body, and whether no letter of it is lost."""
    whole = _HALF_EMOJI.sub(b"", body)
    try:
        return whole.decode(), True
    except UnicodeDecodeError:
        return whole.decode("utf-8", "replace"), False


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return without_halves(value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _content_error(
    text: str | None,
    ending: ErrorKind | Literal["whole"] | None,
    *,
    refused: bool,
    clean: bool,
) -> ErrorKind | None:
    if ending is ErrorKind.CONTENT_FILTER:
        return ErrorKind.CONTENT_FILTER
    if refused or ending is ErrorKind.REFUSED:
        return ErrorKind.REFUSED
    if ending is ErrorKind.LENGTH:
        return ErrorKind.LENGTH
    if text is None or not text.strip():
        return ErrorKind.EMPTY
    return None if clean else ErrorKind.MALFORMED


def _used_up(usage: Any, asked: Mapping[str, Any]) -> bool:
    """Whether as many tokens were written as were allowed."""
    limits = [asked.get(name) for name in _LIMITS]
    known = [limit for limit in limits if type(limit) is int and limit > 0]
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return bool(known) and isinstance(count, int | float) and count >= min(known)


def forced_function(asked: Mapping[str, Any]) -> str:
    """The name of the function that a request has the model call; "" for none."""
    choice = asked.get("tool_choice")
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _message_text(message: dict[str, Any], function: str) -> str | None:
    """What a message says: the arguments of its calls where a function was asked for."""
    content = _text_of(message.get("content"))
    arguments = _arguments(message, function)
    called = CALL_SEPARATOR.join(arguments) if arguments else None
    if function:
        return called if called is not None and called.strip() else content
    return content or called


def _text_of(content: Any) -> str | None:
    """Text given plainly, or as a list of parts, of which thinking is none."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None
    return "".join(filter(None, map(_part_text, content)))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or (isinstance(kind, str) and _THINKING_PART.search(kind)):
        return ""
    text = part.get("text")
    if isinstance(text, dict):
        text = text.get("value")
    return text if isinstance(text, str) and not part.get("thought") else ""


def _arguments(message: dict[str, Any], function: str) -> list[str]:
    """The arguments of every call of a function, which hold the rows in tool mode.

    Without ``function``, those of the first call. A call that names none counts as well.
    """
    calls = message.get("tool_calls")
    found = calls if isinstance(calls, list) else [calls]
    calls = [call for call in found if isinstance(call, dict)]
    # Some servers leave out the level between.
    functions = [call.get("function", call) for call in calls]
    functions.append(message.get("function_call"))
    given = [one for one in functions if isinstance(one, dict)]
    if function:
        given = [one for one in given if _is_named(one.get("name"), function)]
    texts = [_argument_text(one.get("arguments", one.get("parameters"))) for one in given]
    known = [text for text in texts if text]
    return known if function else known[:1]


def _is_named(name: Any, function: str) -> bool:
    """Whether a call's name is the function's; some servers write ``functions.rows:0``."""
    if not isinstance(name, str) or not name.strip():
        return True
    last = name.strip().rpartition(".")[2].partition(":")[0]
    return last.casefold() == function.casefold()


def _argument_text(arguments: Any) -> str:
    if isinstance(arguments, dict | list):
        # Some servers parse them already.
        return orjson.dumps(arguments).decode()
    return arguments if isinstance(arguments, str) else ""


def _usage(usage: Any) -> tuple[int | None, int | None]:
    """Prompt and completion tokens; both null when either is nonsense."""
    if not isinstance(usage, dict):
        return None, None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        return counts
    return None, None
