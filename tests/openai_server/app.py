"""The HTTP application: routes, checks, recording, and the place where faults strike."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.openai_server import answers, faults
from tests.openai_server.faults import FaultAction, FaultHook, RequestInfo
from tests.openai_server.grammar import DEFAULT_ROWS

MAX_BODY_BYTES = 64 * 1024**2
HTML_PAGE = (
    "<html>\n<head><title>{status} Bad Gateway</title></head>\n"
    "<body><center><h1>{status} Bad Gateway</h1></center><hr><center>proxy</center></body></html>\n"
)


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
    fault: FaultHook | None = None
    record: bool = True
    base_url: str = ""
    requests: list[RequestInfo] = field(default_factory=list)
    attempts_by_identity: Counter[str] = field(default_factory=Counter)
    answers_by_identity: Counter[str] = field(default_factory=Counter)
    successes_by_identity: Counter[str] = field(default_factory=Counter)
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
            self.statuses,
            self.faults,
        ):
            counter.clear()
        self.request_count = self.max_in_flight = 0

    def stats(self) -> dict[str, Any]:
        """The counters as JSON.

        ``successes``: good answers; ``answers``: those and the answers spoiled in content, which
        a provider would bill as well. ``repeated_successes``: good answers given again.
        """
        return {
            "requests": self.request_count,
            "identities": len(self.attempts_by_identity),
            "successes": self.successes_by_identity.total(),
            "repeated_successes": self.successes_by_identity.total()
            - len(self.successes_by_identity),
            "answers": self.answers_by_identity.total(),
            "by_status": {str(status): n for status, n in sorted(self.statuses.items())},
            "by_fault": dict(sorted(self.faults.items())),
            "max_in_flight": self.max_in_flight,
        }


STATE = web.AppKey("state", ServerState)


def identity_of(path: str, body: object) -> str:
    """sha256 of the path and the canonical JSON body."""
    canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(path.encode() + b"\n" + canonical).hexdigest()


def make_app(state: ServerState) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[STATE] = state
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _generate)
    app.router.add_post("/v1/completions", _generate)
    app.router.add_get("/__stats", _stats)
    app.router.add_post("/__reset", _reset)
    return app


async def _models(request: web.Request) -> web.Response:
    state = request.app[STATE]
    try:
        _check_key(state, request)
    except Refused as refused:
        return _error(state, refused)
    data = [
        {"id": name, "object": "model", "created": answers.CREATED, "owned_by": "tests"}
        for name in state.models
    ]
    return _json({"object": "list", "data": data})


async def _stats(request: web.Request) -> web.Response:
    state = request.app[STATE]
    stats = state.stats()
    if "identities" in request.query:
        stats["successes_by_identity"] = dict(state.successes_by_identity)
        stats["answers_by_identity"] = dict(state.answers_by_identity)
    return _json(stats)


async def _reset(request: web.Request) -> web.Response:
    request.app[STATE].reset()
    return _json({"ok": True})


async def _generate(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    state.in_flight += 1
    state.max_in_flight = max(state.max_in_flight, state.in_flight)
    try:
        return await _answered(state, request)
    except Refused as refused:
        return _error(state, refused)
    finally:
        state.in_flight -= 1


async def _answered(state: ServerState, request: web.Request) -> web.StreamResponse:
    info = await _recorded(state, request)
    _check_key(state, request)
    _check_body(state, info)
    if state.latency_s:
        await asyncio.sleep(state.latency_s)
    action = state.fault(info) if state.fault else None
    if action is not None:
        state.faults[f"{action.status}" if action.kind == "status" else action.kind] += 1
        early = await _struck(state, request, action)
        if early is not None:
            return early
    make = answers.chat if info.path.endswith("/chat/completions") else answers.completion
    answer = make(info.body, identity=info.identity, default_rows=state.default_rows)
    return await _sent(state, request, info, answer, action)


async def _recorded(state: ServerState, request: web.Request) -> RequestInfo:
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        state.request_count += 1
        raise Refused(400, f"We could not parse the JSON body of your request: {error}") from None
    identity = identity_of(request.path, body)
    state.attempts_by_identity[identity] += 1
    info = RequestInfo(
        path=request.path,
        body=body if isinstance(body, dict) else {},
        headers=_without_key(request),
        identity=identity,
        attempt=state.attempts_by_identity[identity],
        index=state.request_count,
    )
    state.request_count += 1
    if state.record:
        state.requests.append(info)
    return info


def _without_key(request: web.Request) -> dict[str, str]:
    hidden = {"authorization", "api-key", "cookie"}
    return {
        name: "***" if name.lower() in hidden else value for name, value in request.headers.items()
    }


def _check_key(state: ServerState, request: web.Request) -> None:
    if state.api_key is None:
        return
    if request.headers.get("Authorization", "") != f"Bearer {state.api_key}":
        raise Refused(401, "Incorrect API key provided.", code="invalid_api_key")


def _check_body(state: ServerState, info: RequestInfo) -> None:
    body = info.body
    if body.get("model") not in state.models:
        name = body.get("model")
        raise Refused(
            404, f"The model `{name}` does not exist.", param="model", code="model_not_found"
        )
    if body.get("stream"):
        raise Refused(400, "Streaming is not supported.", param="stream")
    if info.path.endswith("/chat/completions"):
        _check_chat(state, body)
        return
    prompt = body.get("prompt")
    one = isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)
    if not (isinstance(prompt, str) or one):
        raise Refused(400, "'prompt' must be one string.", param="prompt")
    if body.get("n") not in (None, 1):
        raise Refused(400, "Only n=1 is supported.", param="n")


def _check_chat(state: ServerState, body: dict[str, Any]) -> None:
    messages = body.get("messages")
    good = isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)
    if not good:
        raise Refused(400, "'messages' must be a list of messages.", param="messages")
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    known = {"text": True, "json_object": state.json_mode, "json_schema": state.structured}
    if wanted is not None and not known.get(str(kind), False):
        raise Refused(
            400,
            f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this "
            "model.",
            param="response_format",
        )


async def _struck(
    state: ServerState, request: web.Request, action: FaultAction
) -> web.StreamResponse | None:
    """The response of a fault that comes before any answer is made."""
    if action.kind == "status":
        message = action.message or faults.MESSAGES.get(action.status, "Something went wrong.")
        code = "rate_limit_exceeded" if action.status == 429 else None
        return _error(state, Refused(action.status, message, code=code), headers=action.headers)
    if action.kind == "html":
        state.statuses[action.status] += 1
        page = action.message or HTML_PAGE.format(status=action.status)
        return web.Response(text=page, status=action.status, content_type="text/html")
    if action.kind in ("reset", "stall"):
        if action.kind == "stall":
            await asyncio.sleep(action.seconds)
        _abort(request)
        return web.Response()
    return None


async def _sent(
    state: ServerState,
    request: web.Request,
    info: RequestInfo,
    answer: dict[str, Any],
    action: FaultAction | None,
) -> web.StreamResponse:
    kind = action.kind if action else None
    raw = orjson.dumps(faults.spoil(answer, action) if action else answer)
    if kind == "invalid_utf8":
        at = raw.index(b'"choices"') + len(b'"choices"')
        at = raw.index(b'"content":"' if b'"content":"' in raw else b'"text":"', at)
        at = raw.index(b':"', at) + 2
        raw = raw[:at] + b"\xff\xfe\xc3" + raw[at:]
    state.statuses[200] += 1
    if kind != "broken_body":
        state.answers_by_identity[info.identity] += 1
    if kind in (None, "slow_body", "unknown_fields", "wrong_usage"):
        state.successes_by_identity[info.identity] += 1
    if kind == "broken_body":
        raw = raw[: len(raw) * 2 // 3]
    if action is not None and kind == "slow_body":
        return await _slowly(request, raw, action.seconds)
    return web.Response(body=raw, content_type="application/json")


async def _slowly(request: web.Request, raw: bytes, seconds: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(raw)
    await response.prepare(request)
    pieces = 8
    size = max(1, -(-len(raw) // pieces))
    for at in range(0, len(raw), size):
        await asyncio.sleep(seconds / pieces)
        await response.write(raw[at : at + size])
    await response.write_eof()
    return response


def _abort(request: web.Request) -> None:
    """Closes the connection with a reset, as a crashed peer or a balancer would."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # Linger of zero seconds makes the kernel send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _error(
    state: ServerState, refused: Refused, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    state.statuses[refused.status] += 1
    kind = "invalid_request_error" if refused.status < 429 else "server_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    error = {
        "message": refused.message,
        "type": kind,
        "param": refused.param,
        "code": refused.code,
    }
    response = _json({"error": error}, refused.status)
    response.headers.update(headers or {})
    return response


async def serve(
    state: ServerState, *, port: int, stop: asyncio.Event, ready: asyncio.Future[int] | None = None
) -> None:
    """Serves on 127.0.0.1 until ``stop`` is set; ``ready`` receives the port."""
    runner = web.AppRunner(make_app(state), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        bound = int(runner.addresses[0][1])
        state.base_url = f"http://127.0.0.1:{bound}/v1"
        if ready is not None:
            ready.set_result(bound)
        await stop.wait()
    finally:
        await runner.cleanup()


@contextmanager
def running_server(**options: Any) -> Iterator[ServerState]:
    """A server in a thread of this process; options are the first fields of ServerState."""
    state = ServerState(**options)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready: asyncio.Future[int] = loop.create_future()
    up = threading.Event()
    ready.add_done_callback(lambda _: up.set())
    failed: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(serve(state, port=0, stop=stop, ready=ready))
        except BaseException as error:
            failed.append(error)
            up.set()
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="openai-test-server", daemon=True)
    thread.start()
    try:
        if not up.wait(30) or failed:
            raise RuntimeError(f"the test server did not start: {failed}")
        yield state
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
