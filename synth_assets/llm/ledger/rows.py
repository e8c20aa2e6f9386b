"""What the ledger keeps, as plain records, and the checksum that tells a damaged row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from synth_assets.errors import SynthError

OK = "ok"


class LedgerError(SynthError):
    """The ledger cannot be opened or written: nothing may be asked without it."""


class NoLedger(LedgerError):
    """There is nothing to look at yet."""

    def __init__(self, place: str) -> None:
        super().__init__(
            "there is no ledger yet", where=place, fix="it is made by the first: synth run DATASET"
        )


@dataclass(frozen=True, slots=True)
class CallRow:
    """One paid response, complete.

    ``request`` is the canonical JSON whose sha256 is ``request_id``; ``response`` the body
    verbatim. ``outcome`` is "ok" or the value of a content ErrorKind: an answer that was paid and
    is not good is kept, so that it is never bought again, and never passed on as good.
    ``started_at`` is Unix seconds; tokens are null when the server did not say (or said nonsense),
    ``cost_usd`` when there was no price; ``prices`` is JSON, as they were at the time of the call.
    """

    request_id: str
    dataset: str
    endpoint: str
    model: str
    request: bytes
    response: bytes
    status: int
    outcome: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    prices: str | None
    attempts: int
    started_at: float
    latency_ms: float


class StoredAnswer(NamedTuple):
    """The part of a CallRow that a replay needs."""

    request_id: str
    response: bytes
    status: int
    outcome: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    attempts: int
    latency_ms: float
    checksum: bytes

    @property
    def intact(self) -> bool:
        return self.checksum == checksum(*self[:-1])


@dataclass(frozen=True, slots=True)
class FailureRow:
    """A request that got no paid answer. Kept to be looked at, never replayed."""

    request_id: str
    dataset: str
    endpoint: str
    model: str
    request: bytes
    kind: str
    status: int | None
    detail: str
    body: bytes
    attempts: int
    started_at: float


@dataclass(frozen=True, slots=True)
class UnseenRow:
    """An attempt that may have been billed and whose answer was never seen, at its worst case.

    ``tokens`` and ``usd`` are null where there was no such limit to reckon with.
    """

    request_id: str
    dataset: str
    tokens: int | None
    usd: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What a claimed request may cost now that it is on its way; no dataset: nothing any more."""

    request_id: str
    dataset: str | None
    tokens: int | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class Owner:
    """A process (and ledger object) that holds claims. ``born`` tells reused process ids apart."""

    token: str
    host: str
    pid: int
    born: str


@dataclass(frozen=True, slots=True)
class Claims:
    """The fate of ids asked for: ours to ask, answered meanwhile, or another's to ask."""

    granted: frozenset[str]
    answered: frozenset[str]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class Spent:
    """What was paid: calls that got an answer, tokens of both kinds, US dollars."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Committed:
    """What a budget must count: paid, possibly paid, and promised to open batches.

    Tokens of both kinds together, US dollars. A call that reported neither counts as a call only.
    """

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


# One statement with ``?`` marks and its parameters.
Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one transaction writes; claims are decided last, so they see the rest.

    ``owner`` beats with it, and must be there for ``claims`` and ``marks``. ``sweep`` looks for
    owners that are gone.
    """

    marks: Sequence[Mark] = ()
    calls: Sequence[CallRow] = ()
    failures: Sequence[FailureRow] = ()
    unseen: Sequence[UnseenRow] = ()
    releases: Sequence[str] = ()
    capabilities: Sequence[tuple[str, str, str]] = ()
    statements: Sequence[Statement] = ()
    claims: Sequence[str] = ()
    owner: Owner | None = None
    sweep: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """``kept`` tells for each call of the batch whether it is the one stored: first come."""

    kept: Sequence[bool]
    claims: Claims


def storable(text: str) -> str:
    """``text`` as any database keeps it: what is no character, and NUL, as an escape."""
    if text.isascii():
        return text.replace("\0", "\\x00") if "\0" in text else text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def checksum(
    request_id: str,
    response: bytes,
    status: int,
    outcome: str,
    finish_reason: str | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cost_usd: float | None,
    attempts: int,
    latency_ms: float,
) -> bytes:
    """Ties everything that a replay uses to its request: 16 bytes of sha256."""
    facts = (status, outcome, finish_reason, prompt_tokens, completion_tokens, cost_usd)
    digest = hashlib.sha256(f"{request_id} {facts} {attempts} {latency_ms!r}".encode())
    digest.update(response)
    return digest.digest()[:16]
