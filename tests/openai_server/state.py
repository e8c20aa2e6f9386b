"""Options and counters of one server, and what several of its modules share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.openai_server.faults import FaultAction, FaultHook, RequestInfo
from tests.openai_server.grammar import DEFAULT_ROWS


class Refused(Exception):
    """A request answered with an OpenAI error body."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass
class ServerState:
    """Options and counters of one server; shared with the thread of the test that started it."""

    models: Sequence[str] = ("test-model",)
    api_key: str | None = "test-key"
    structured: bool = True
    json_mode: bool = True
    latency_s: float = 0.0
    default_rows: int = DEFAULT_ROWS
    tools: bool = True
    fault: FaultHook | None = None
    record: bool = True
    # Batches: how long one takes, which share of it is unanswered when it expires (None: it does
    # not), which share is done when it is cancelled, what strikes its lines, lines that no client
    # expects in its files, and what strikes the calls to /v1/files and /v1/batches themselves.
    batch_seconds: float = 0.0
    batch_expire_share: float | None = None
    batch_cancel_share: float = 0.0
    batch_faults: FaultHook | None = None
    batch_noise: bool = False
    batch_max_lines: int = 50_000
    batch_enqueued_lines: int | None = None
    batch_api_fault: FaultHook | None = None
    base_url: str = ""
    requests: list[RequestInfo] = field(default_factory=list)
    attempts_by_identity: Counter[str] = field(default_factory=Counter)
    answers_by_identity: Counter[str] = field(default_factory=Counter)
    successes_by_identity: Counter[str] = field(default_factory=Counter)
    lost_by_identity: Counter[str] = field(default_factory=Counter)
    batches_by_token: Counter[str] = field(default_factory=Counter)
    api_calls: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    request_count: int = 0
    in_flight: int = 0
    max_in_flight: int = 0

    def reset(self) -> None:
        """Forget what was recorded and counted; options stay."""
        self.requests.clear()
        for counter in (
            self.attempts_by_identity,
            self.answers_by_identity,
            self.successes_by_identity,
            self.lost_by_identity,
            self.batches_by_token,
            self.api_calls,
            self.statuses,
            self.faults,
        ):
            counter.clear()
        self.request_count = self.max_in_flight = 0

    def count_fault(self, action: FaultAction) -> None:
        self.faults[f"{action.status}" if action.kind == "status" else action.kind] += 1

    def stats(self) -> dict[str, Any]:
        """The counters as JSON.

        ``successes``: good answers; ``answers``: those and the answers spoiled in content, which
        a provider would bill as well. ``repeated_successes``: good answers given again. ``lost``:
        answers made and never sent. ``batches``: batches created, by ``synth_batch`` metadata.
        """
        return {
            "requests": self.request_count,
            "identities": len(self.attempts_by_identity),
            "successes": self.successes_by_identity.total(),
            "repeated_successes": self.successes_by_identity.total()
            - len(self.successes_by_identity),
            "answers": self.answers_by_identity.total(),
            "lost": self.lost_by_identity.total(),
            "batches": dict(sorted(self.batches_by_token.items())),
            "api_calls": dict(sorted(self.api_calls.items())),
            "by_status": {str(status): n for status, n in sorted(self.statuses.items())},
            "by_fault": dict(sorted(self.faults.items())),
            "max_in_flight": self.max_in_flight,
        }


STATE = web.AppKey("state", ServerState)


def identity_of(path: str, body: object) -> str:
    """sha256 of the path and the canonical JSON body; 1.0 and 1 are one number."""
    canonical = orjson.dumps(_plain_numbers(body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(path.encode() + b"\n" + canonical).hexdigest()


def _plain_numbers(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
