"""The HTTP application: routes, checks, recording, and the place where faults strike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from aiohttp import web

from tests.openai_server import answers, batches, replies, wire
from tests.openai_server.state import STATE, Refused, ServerState

MAX_BODY_BYTES = 64 * 1024**2


def make_app(state: ServerState) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[STATE] = state
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _generate)
    app.router.add_post("/v1/completions", _generate)
    batches.add_routes(app)
    app.router.add_get("/__stats", _stats)
    app.router.add_post("/__reset", _reset)
    return app


async def _models(request: web.Request) -> web.Response:
    state = request.app[STATE]
    try:
        wire.check_key(state, request)
    except Refused as refused:
        return wire.error(state, refused)
    data = [
        {"id": name, "object": "model", "created": answers.CREATED, "owned_by": "tests"}
        for name in state.models
    ]
    return wire.json({"object": "list", "data": data})


async def _stats(request: web.Request) -> web.Response:
    state = request.app[STATE]
    stats = state.stats()
    if "identities" in request.query:
        stats["successes_by_identity"] = dict(state.successes_by_identity)
        stats["answers_by_identity"] = dict(state.answers_by_identity)
    return wire.json(stats)


async def _reset(request: web.Request) -> web.Response:
    request.app[STATE].reset()
    return wire.json({"ok": True})


async def _generate(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    state.in_flight += 1
    state.max_in_flight = max(state.max_in_flight, state.in_flight)
    try:
        return await _answered(state, request)
    except Refused as refused:
        return wire.error(state, refused)
    finally:
        state.in_flight -= 1


async def _answered(state: ServerState, request: web.Request) -> web.StreamResponse:
    raw = await request.read()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        state.request_count += 1
        raise Refused(400, f"We could not parse the JSON body of your request: {error}") from None
    info = replies.recorded(state, request.path, body, wire.without_key(request))
    wire.check_key(state, request)
    wire.check_body(state, info)
    if state.latency_s:
        await asyncio.sleep(state.latency_s)
    action = state.fault(info) if state.fault else None
    if action is not None:
        state.count_fault(action)
        early = await wire.struck(state, request, action)
        if early is not None:
            return early
    made = replies.made(state, info, action)
    state.statuses[200] += 1
    return await wire.sent(request, made, action)


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
