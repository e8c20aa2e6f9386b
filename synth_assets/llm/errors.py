"""What can go wrong with a call, as one small enum: the only place that reads HTTP statuses.

=============  ===========================================================  ====================
kind           what                                                         what the engine does
=============  ===========================================================  ====================
permanent      400, 401, 403, 404, 422, other 4xx, redirects, used-up       one attempt
               quota (a 429 that says ``insufficient_quota``)
throttled      429                                                          waits, never gives up
                                                                            while others succeed
transient      408, 409, 5xx, timeouts, resets, unreachable hosts           backoff with jitter
malformed      HTTP 200 that is no answer of the protocol (a web page,      backoff, few attempts
               a body cut short), or an answer whose text is not UTF-8
length,        a paid answer that is no good answer: cut short, filtered,   kept with its raw
content_       declined, empty                                              body; a re-ask is a new
filter,                                                                     sample
refused, empty
budget         not asked: the budget has no room left                       nothing
=============  ===========================================================  ====================
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final

import orjson

MAX_DETAIL_CHARS = 300
MAX_KEPT_BYTES = 64 * 1024
QUOTA_CODES: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
)
# Statuses that speak of the endpoint, the key or the model rather than of one request.
_ENDPOINT_STATUSES = frozenset({401, 403, 404, 405, 407})
_TRANSIENT_STATUSES = frozenset({408, 409, 425})
_CONGESTED_STATUSES = frozenset({408, 429, 502, 503, 504, 529})
_UNREACHABLE_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
    }
)


class ErrorKind(StrEnum):
    """Why a request has no good answer."""

    PERMANENT = "permanent"
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    MALFORMED = "malformed"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    REFUSED = "refused"
    EMPTY = "empty"
    BUDGET = "budget"

    @property
    def is_content(self) -> bool:
        """The model answered and was paid, but the answer is not good: ask a new sample."""
        return self in _CONTENT


_CONTENT = frozenset(
    {
        ErrorKind.MALFORMED,
        ErrorKind.LENGTH,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.REFUSED,
        ErrorKind.EMPTY,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt.

    ``detail`` is one bounded line without secrets; ``whole_endpoint``: every request would meet
    it (key, model, address); ``congested``: fewer calls at once would help; ``unreached``: the
    request never arrived, so it cannot have been billed; ``retry_after_s``: what the server asks.
    """

    kind: ErrorKind
    detail: str
    status: int | None = None
    code: str = ""
    retry_after_s: float | None = None
    body: bytes = b""
    whole_endpoint: bool = False
    congested: bool = False
    unreached: bool = False
    may_be_billed: bool = False

    @property
    def signature(self) -> tuple[ErrorKind, int | None, str]:
        """Equal for failures that look alike."""
        return (self.kind, self.status, self.code)


class CallFailed(Exception):
    """Carries a Failure out of the client; never leaves the engine."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.detail)


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, now_s: float
) -> Failure:
    """The failure that an HTTP status means. ``now_s`` is Unix time, for dates in Retry-After."""
    message, code, kind_name = _error_fields(body)
    quota = bool({code, kind_name} & QUOTA_CODES)
    if status == 429 and not quota:
        kind = ErrorKind.THROTTLED
    elif status >= 500 or status in _TRANSIENT_STATUSES:
        kind = ErrorKind.TRANSIENT
    else:
        kind = ErrorKind.PERMANENT
    return Failure(
        kind=kind,
        detail=one_line(f"HTTP {status}: {message or _default_message(status, headers)}"),
        status=status,
        code=code,
        retry_after_s=retry_after_seconds(headers, now_s=now_s),
        body=body[:MAX_KEPT_BYTES],
        whole_endpoint=quota or status in _ENDPOINT_STATUSES or 300 <= status < 400,
        congested=status in _CONGESTED_STATUSES and not quota,
        # A gateway that gave up waiting says nothing about the server behind it.
        may_be_billed=status in (408, 504),
    )


def failure_of_exception(error: BaseException, *, now_s: float) -> Failure:
    """The failure that an exception of the client means; the cause chain tells more than its type.

    The client's aiohttp transport reports a refused connection as a timeout, so the chain of
    causes decides between *unreachable*, *timeout* and *reset*.
    """
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None)
    if response is not None and isinstance(status, int):
        body = response.content if response.is_stream_consumed else b""
        return failure_of_status(status, response.headers, body, now_s=now_s)
    chain = list(_causes(error))
    if any(_is_certificate_problem(cause) for cause in chain):
        return Failure(
            ErrorKind.PERMANENT,
            one_line(f"TLS: {chain[-1]}"),
            code="tls",
            whole_endpoint=True,
            unreached=True,
        )
    unreachable = next((cause for cause in reversed(chain) if _is_unreachable(cause)), None)
    if unreachable is not None:
        why = _why_unreachable(unreachable)
        return Failure(ErrorKind.TRANSIENT, why, code="unreachable", unreached=True)
    if any(_is_timeout(cause) for cause in chain):
        return Failure(
            ErrorKind.TRANSIENT, "timed out", code="timeout", congested=True, may_be_billed=True
        )
    what = type(chain[-1]).__name__
    detail = one_line(f"connection lost ({what})")
    return Failure(ErrorKind.TRANSIENT, detail, code="reset", may_be_billed=True)


def not_an_answer(body: bytes) -> Failure:
    """HTTP 200 without an answer of the protocol in it."""
    start = one_line(body[:80].decode("utf-8", "replace"))
    return Failure(
        ErrorKind.MALFORMED,
        f"HTTP 200, but not an answer of the OpenAI protocol: {start!r}",
        status=200,
        code="not_an_answer",
        body=body[:MAX_KEPT_BYTES],
        may_be_billed=True,
    )


def retry_after_seconds(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After`` (seconds or an HTTP date).

    RFC 9110, section 10.2.3. None when absent or unreadable; never negative.
    """
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    value = headers.get("retry-after")
    if value is None:
        value = headers.get("Retry-After")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError, OSError):
        return None


def one_line(text: str) -> str:
    """Printable, bounded, on one line: for messages and logs."""
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= MAX_DETAIL_CHARS else text[:MAX_DETAIL_CHARS] + "..."


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", text):
        return None
    return float(text)


def _error_fields(body: bytes) -> tuple[str, str, str]:
    """Message, code and type of an OpenAI-style error body; "" where there is none."""
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", "", ""
    if not isinstance(parsed, dict):
        return "", "", ""
    error = parsed.get("error", parsed)
    if isinstance(error, str):
        return error, "", ""
    if not isinstance(error, dict):
        return "", "", ""
    found = (error.get(key) for key in ("message", "code", "type"))
    message, code, kind = (str(value) if value is not None else "" for value in found)
    # FastAPI servers say ``detail`` where others say ``message``.
    return message or str(parsed.get("detail") or ""), code, kind


def _default_message(status: int, headers: Mapping[str, str]) -> str:
    if 300 <= status < 400:
        return f"redirected to {one_line(headers.get('location') or 'nowhere')}"
    return "no message"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_unreachable(error: BaseException) -> bool:
    names = _type_names(error)
    if names & {"gaierror", "ClientConnectorDNSError", "ConnectionTimeoutError"}:
        return True
    if "ConnectTimeout" in names:
        # aiohttp's lost connections arrive dressed as connect timeouts: those are resets.
        return not type(error.__cause__).__module__.startswith("aiohttp")
    return isinstance(error, OSError) and error.errno in _UNREACHABLE_ERRNOS


def _why_unreachable(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in _UNREACHABLE_ERRNOS:
        return f"cannot connect: {os.strerror(error.errno)}"
    if "gaierror" in _type_names(error) or "ClientConnectorDNSError" in _type_names(error):
        return "cannot connect: the name of the host is unknown"
    return "cannot connect: no answer in time"


def _is_certificate_problem(error: BaseException) -> bool:
    names = {"SSLCertVerificationError", "ClientConnectorCertificateError"}
    return bool(_type_names(error) & names)


def _is_timeout(error: BaseException) -> bool:
    names = _type_names(error)
    return isinstance(error, TimeoutError) or bool(names & {"ReadTimeout", "WriteTimeout"})


def _type_names(error: BaseException) -> set[str]:
    """Names, not classes: the client has two transports and either may be missing."""
    return {base.__name__ for base in type(error).__mro__}
