"""Files and batches: upload lines, have them answered later, fetch two files of answers.

A batch goes validating, in_progress, finalizing, completed within ``batch_seconds`` of its
creation (or failed, expired, cancelled); the option may change while it runs. Its lines are
answered at its end, by the same function as live requests and counted in the same counters.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import BodyPartReader, web

from tests.openai_server import faults, replies, wire
from tests.openai_server.faults import RequestInfo
from tests.openai_server.state import STATE, Refused, ServerState

Json = dict[str, Any]
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
TERMINAL = ("completed", "failed", "expired", "cancelled")
TICK_S = 0.01
LINES_PER_TICK = 200
WINDOW_S = 24 * 3600
STATUS_OF_FAULT = {"html": 502, "reset": 500, "stall": 500, "lost_answer": 500}


@dataclass
class File:
    id: str
    name: str
    purpose: str
    content: bytes
    created_at: int = field(default_factory=lambda: int(time.time()))

    def as_json(self) -> Json:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class Batch:
    shown: Json
    lines: list[Json]
    began: float = field(default_factory=time.monotonic)

    @property
    def status(self) -> str:
        return str(self.shown["status"])

    def enter(self, status: str) -> None:
        if self.status != status:
            self.shown["status"] = status
            self.shown[f"{status}_at"] = int(time.time())


@dataclass
class Shelf:
    """What a provider keeps: files and batches by id, oldest first."""

    files: dict[str, File] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def add(self, name: str, purpose: str, content: bytes) -> File:
        file = File(f"file-{len(self.files):08d}", name, purpose, content)
        self.files[file.id] = file
        return file


SHELF = web.AppKey("shelf", Shelf)
Handler = Callable[[web.Request], Awaitable[bytes]]


def add_routes(app: web.Application) -> None:
    app[SHELF] = Shelf()
    app.on_cleanup.append(_end)
    for method, path, handler in (
        ("POST", "/v1/files", _upload),
        ("GET", "/v1/files", _list_files),
        ("GET", "/v1/files/{id}", _show_file),
        ("GET", "/v1/files/{id}/content", _content),
        ("DELETE", "/v1/files/{id}", _delete_file),
        ("POST", "/v1/batches", _create),
        ("GET", "/v1/batches", _list_batches),
        ("GET", "/v1/batches/{id}", _show_batch),
        ("POST", "/v1/batches/{id}/cancel", _cancel),
    ):
        app.router.add_route(method, path, _guarded(f"{method} {path}", handler))


async def _end(app: web.Application) -> None:
    for task in app[SHELF].tasks:
        task.cancel()


def _guarded(name: str, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler behind the key check, a counter and the faults of the batch routes."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        state = request.app[STATE]
        state.api_calls[name] += 1
        info = RequestInfo(name, {}, {}, name, state.api_calls[name], state.api_calls.total() - 1)
        action = state.batch_api_fault(info) if state.batch_api_fault else None
        try:
            wire.check_key(state, request)
            if action is not None:
                state.count_fault(action)
                early = await wire.struck(state, request, action)
                if early is not None:
                    return early
            raw = await handler(request)
        except Refused as refused:
            return wire.error(state, refused)
        if action is not None and action.kind == "broken_body":
            raw = raw[: len(raw) * 2 // 3]
        return await wire.sent(request, raw, action)

    return guarded


# -- files ---------------------------------------------------------------------------------------


async def _upload(request: web.Request) -> bytes:
    purpose, name, content = "", "", None
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        if part.name == "purpose":
            purpose = await part.text()
        elif part.name == "file":
            name, content = part.filename or "", bytes(await part.read())
    if content is None or not purpose:
        raise Refused(400, "'file' and 'purpose' are required.", param="file")
    return orjson.dumps(request.app[SHELF].add(name, purpose, content).as_json())


async def _list_files(request: web.Request) -> bytes:
    return _page(request, [file.as_json() for file in request.app[SHELF].files.values()])


async def _show_file(request: web.Request) -> bytes:
    return orjson.dumps(_file(request).as_json())


async def _content(request: web.Request) -> bytes:
    return _file(request).content


async def _delete_file(request: web.Request) -> bytes:
    file = request.app[SHELF].files.pop(_file(request).id)
    return orjson.dumps({"id": file.id, "object": "file", "deleted": True})


def _file(request: web.Request) -> File:
    found = request.app[SHELF].files.get(request.match_info["id"])
    if found is None:
        raise Refused(404, f"No such File object: {request.match_info['id']}", param="id")
    return found


# -- batches -------------------------------------------------------------------------------------


async def _create(request: web.Request) -> bytes:
    state, shelf = request.app[STATE], request.app[SHELF]
    asked = orjson.loads(await request.read())
    file = shelf.files.get(asked.get("input_file_id", ""))
    if file is None:
        raise Refused(400, "No such File object.", param="input_file_id")
    if asked.get("endpoint") not in ENDPOINTS or asked.get("completion_window") != "24h":
        raise Refused(400, "Invalid 'endpoint' or 'completion_window'.", param="endpoint")
    metadata = asked.get("metadata") or {}
    state.batches_by_token[metadata.get("synth_batch", "")] += 1
    batch = _new_batch(shelf, asked, metadata)
    problems = _validated(state, shelf, batch, file.content, asked["endpoint"])
    shelf.batches[batch.shown["id"]] = batch
    task = asyncio.create_task(_worked_off(state, shelf, batch, problems))
    shelf.tasks.add(task)
    task.add_done_callback(shelf.tasks.discard)
    return orjson.dumps(batch.shown)


def _new_batch(shelf: Shelf, asked: Json, metadata: Json) -> Batch:
    now = int(time.time())
    stamps = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
    shown: Json = {
        "id": f"batch_{len(shelf.batches):08d}",
        "object": "batch",
        "endpoint": asked["endpoint"],
        "errors": None,
        "input_file_id": asked["input_file_id"],
        "completion_window": asked["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + WINDOW_S,
        **{f"{stamp}_at": None for stamp in (*stamps, "cancelled")},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": metadata,
    }
    return Batch(shown, [])


def _validated(
    state: ServerState, shelf: Shelf, batch: Batch, content: bytes, endpoint: str
) -> list[Json]:
    """Reads the lines into ``batch``; what is wrong with them."""
    problems: list[Json] = []
    seen: set[str] = set()

    def wrong(code: str, message: str, line: int | None = None) -> None:
        problems.append({"code": code, "line": line, "message": message, "param": None})

    for number, raw in enumerate(content.splitlines(), 1):
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            wrong("invalid_json_line", "This line is not parseable as valid JSON.", number)
            continue
        if line.get("url") != endpoint or line.get("method") != "POST":
            wrong("mismatched_url", "The URL does not match the batch's endpoint.", number)
        if line.get("custom_id") in seen:
            wrong("duplicate_custom_id", "The custom_id of this line is not unique.", number)
        seen.add(line.get("custom_id"))
        batch.lines.append(line)
    if len({line.get("body", {}).get("model") for line in batch.lines}) > 1:
        wrong("mismatched_model", "All lines of a batch must name the same model.")
    if not batch.lines:
        wrong("empty_file", "The input file is empty.")
    if len(batch.lines) > state.batch_max_lines:
        wrong("too_many_tasks", f"More than {state.batch_max_lines} requests in one batch.")
    waiting = sum(len(b.lines) for b in shelf.batches.values() if b.status not in TERMINAL)
    most = state.batch_enqueued_lines
    if most is not None and waiting + len(batch.lines) > most:
        wrong("token_limit_exceeded", "Enqueued token limit reached for this model.")
    return problems


async def _list_batches(request: web.Request) -> bytes:
    return _page(request, [batch.shown for batch in request.app[SHELF].batches.values()])


async def _show_batch(request: web.Request) -> bytes:
    return orjson.dumps(_batch(request).shown)


async def _cancel(request: web.Request) -> bytes:
    batch = _batch(request)
    if batch.status not in TERMINAL:
        batch.enter("cancelling")
    return orjson.dumps(batch.shown)


def _batch(request: web.Request) -> Batch:
    found = request.app[SHELF].batches.get(request.match_info["id"])
    if found is None:
        raise Refused(404, f"No batch found with id '{request.match_info['id']}'.", param="id")
    return found


def _page(request: web.Request, items: list[Json]) -> bytes:
    """One page, newest first, after the object that ``after`` names."""
    newest = items[::-1]
    after, limit = request.query.get("after"), int(request.query.get("limit", "20"))
    if after is not None:
        at = next((at for at, item in enumerate(newest) if item["id"] == after), None)
        if at is None:
            raise Refused(404, f"No such object: {after}", param="after")
        newest = newest[at + 1 :]
    shown = newest[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    return orjson.dumps({"object": "list", "data": shown, "has_more": len(newest) > limit, **ends})


# -- working a batch off -------------------------------------------------------------------------


async def _worked_off(state: ServerState, shelf: Shelf, batch: Batch, problems: list[Json]) -> None:
    if problems:
        batch.shown["errors"] = {"object": "list", "data": problems}
        batch.enter("failed")
        return
    batch.shown["request_counts"]["total"] = len(batch.lines)
    while batch.status != "cancelling":
        share = (time.monotonic() - batch.began) / max(state.batch_seconds, 1e-9)
        if share >= 1:
            break
        if share > 0.1:
            batch.enter("in_progress" if share < 0.9 else "finalizing")
        await asyncio.sleep(TICK_S)
    end, share, code = "completed", 1.0, ""
    if batch.status == "cancelling":
        end, share, code = "cancelled", state.batch_cancel_share, "batch_cancelled"
    elif state.batch_expire_share is not None:
        end, share, code = "expired", 1.0 - state.batch_expire_share, "batch_expired"
    files = await _files_of(state, batch, share=share, code=code)
    for name, content in zip(("output", "error"), files, strict=True):
        if content:
            file = shelf.add(f"{batch.shown['id']}_{name}.jsonl", "batch_output", content)
            batch.shown[f"{name}_file_id"] = file.id
    batch.enter(end)


async def _files_of(
    state: ServerState, batch: Batch, *, share: float, code: str
) -> tuple[bytes, bytes]:
    """The contents of the output and the error file."""
    output: list[bytes] = []
    errors: list[bytes] = []
    counts = batch.shown["request_counts"]
    for number, line in enumerate(batch.lines):
        if number % LINES_PER_TICK == 0:
            await asyncio.sleep(0)
        if _draw(line["custom_id"]) >= share:
            message = f"This request could not be executed: {code}."
            errors.append(_line(line, None, {"code": code, "message": message}))
            continue
        good, raw = _answered(state, line)
        (output if good else errors).append(raw)
        counts["completed" if good else "failed"] += 1
    if state.batch_noise and output:
        unknown = _line({"custom_id": "nobody"}, b"{}", None)
        # Both files end without a line break, as a file cut short would.
        output += [b"not json at all\n", b"\n", unknown, output[0], output[0][:40]]
        errors += [b'{"custom_id": 7}\n', output[0], b"[]"]
    return b"".join(output), b"".join(errors)


def _answered(state: ServerState, line: Json) -> tuple[bool, bytes]:
    """Whether the line belongs into the output file, and the line."""
    info = replies.recorded(state, line["url"], line.get("body"), {})
    try:
        wire.check_body(state, info)
    except Refused as refused:
        return False, _refusal(line, refused)
    action = state.batch_faults(info) if state.batch_faults else None
    if action is not None:
        state.count_fault(action)
        if action.kind == "status" or action.kind in STATUS_OF_FAULT:
            status = STATUS_OF_FAULT.get(action.kind, action.status)
            message = action.message or faults.MESSAGES.get(status, "Something went wrong.")
            return False, _refusal(line, Refused(status, message))
    raw = _line(line, replies.made(state, info, action), None)
    return True, raw


def _refusal(line: Json, refused: Refused) -> bytes:
    body = {"error": {"message": refused.message, "type": "", "param": None, "code": refused.code}}
    return _line(line, orjson.dumps(body), None, status=refused.status)


def _line(line: Json, body: bytes | None, error: Json | None, *, status: int = 200) -> bytes:
    """A line of a result file; the body as it is, broken or not."""
    name = orjson.dumps(line["custom_id"])
    short = hashlib.sha256(name).hexdigest()[:20]
    response = (
        b"null"
        if body is None
        else b'{"status_code":%d,"request_id":"req_%s","body":%b}' % (status, short.encode(), body)
    )
    return b'{"id":"batch_req_%s","custom_id":%b,"response":%b,"error":%b}\n' % (
        short.encode(),
        name,
        response,
        orjson.dumps(error),
    )


def _draw(name: str) -> float:
    """A number in [0, 1) that depends on the line alone."""
    return int.from_bytes(hashlib.sha256(f"share|{name}".encode()).digest()[:8], "big") / 2**64
