"""One answer to one request, live or out of a batch: recorded, made, spoiled, counted."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from tests.openai_server import answers, faults, quirks
from tests.openai_server.faults import FaultAction, RequestInfo
from tests.openai_server.state import ServerState, identity_of

# Faults that leave the answer as good as it was.
HARMLESS = frozenset({"slow_body", "unknown_fields", "wrong_usage", "same_answer", "quirk"})
_CONTENT_MARKS = (b'"arguments":"', b'"content":"', b'"text":"')


def recorded(
    state: ServerState, path: str, body: object, headers: Mapping[str, str]
) -> RequestInfo:
    """Counts a request by its identity; live and batched ones share the counters."""
    identity = identity_of(path, body)
    state.attempts_by_identity[identity] += 1
    info = RequestInfo(
        path=path,
        body=body if isinstance(body, dict) else {},
        headers=dict(headers),
        identity=identity,
        attempt=state.attempts_by_identity[identity],
        index=state.request_count,
    )
    state.request_count += 1
    if state.record:
        state.requests.append(info)
    return info


def made(state: ServerState, info: RequestInfo, action: FaultAction | None) -> bytes:
    """The raw body of the answer as it is sent, spoiled as ``action`` says, and counted."""
    kind = action.kind if action else None
    make = answers.chat if info.path.endswith("/chat/completions") else answers.completion
    same = kind == "same_answer"
    answer = make(
        info.body,
        identity=info.identity,
        seeded_by="0" * 64 if same else info.identity,
        default_rows=state.default_rows,
    )
    raw = quirks.on_the_wire(orjson.dumps(faults.spoil(answer, action) if action else answer))
    if kind == "invalid_utf8":
        raw = _with_bad_bytes(raw)
    if kind not in ("broken_body", "lost_answer"):
        state.answers_by_identity[info.identity] += 1
    if kind is None or kind in HARMLESS:
        state.successes_by_identity[info.identity] += 1
    if kind == "lost_answer":
        state.lost_by_identity[info.identity] += 1
    return raw[: len(raw) * 2 // 3] if kind == "broken_body" else raw


def _with_bad_bytes(raw: bytes) -> bytes:
    start = raw.index(b'"choices"') + len(b'"choices"')
    mark = next(mark for mark in _CONTENT_MARKS if mark in raw[start:])
    at = raw.index(mark, start) + len(mark)
    return raw[:at] + b"\xff\xfe\xc3" + raw[at:]
