"""Checks that every route makes, responses, and faults on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import orjson
from aiohttp import web

from tests.openai_server import faults
from tests.openai_server.faults import FaultAction, RequestInfo
from tests.openai_server.state import Refused, ServerState

HTML_PAGE = (
    "<html>\n<head><title>{status} Bad Gateway</title></head>\n"
    "<body><center><h1>{status} Bad Gateway</h1></center><hr><center>proxy</center></body></html>\n"
)


def without_key(request: web.Request) -> dict[str, str]:
    hidden = {"authorization", "api-key", "cookie"}
    return {
        name: "***" if name.lower() in hidden else value for name, value in request.headers.items()
    }


def check_key(state: ServerState, request: web.Request) -> None:
    if state.api_key is None:
        return
    if request.headers.get("Authorization", "") != f"Bearer {state.api_key}":
        raise Refused(401, "Incorrect API key provided.", code="invalid_api_key")


def check_body(state: ServerState, info: RequestInfo) -> None:
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
    if body.get("tools") and not state.tools:
        raise Refused(400, "'tools' is not supported with this model.", param="tools")
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


async def struck(
    state: ServerState, request: web.Request, action: FaultAction
) -> web.StreamResponse | None:
    """The response of a fault that comes before any answer is made."""
    if action.kind == "status":
        message = action.message or faults.MESSAGES.get(action.status, "Something went wrong.")
        code = "rate_limit_exceeded" if action.status == 429 else None
        refused = Refused(action.status, message, code=code)
        return error(state, refused, headers=_dated(action.headers))
    if action.kind == "html":
        state.statuses[action.status] += 1
        page = action.message or HTML_PAGE.format(status=action.status)
        return web.Response(text=page, status=action.status, content_type="text/html")
    if action.kind in ("reset", "stall"):
        if action.kind == "stall":
            await asyncio.sleep(action.seconds)
        abort(request)
        return web.Response()
    return None


def _dated(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with a ``date+SECONDS`` made the HTTP date that many seconds from now."""
    return {
        name: formatdate(time.time() + float(value[5:]), usegmt=True)
        if value.startswith("date+")
        else value
        for name, value in headers.items()
    }


async def sent(request: web.Request, raw: bytes, action: FaultAction | None) -> web.StreamResponse:
    """The response with this body, unless ``action`` loses it or lets it drip."""
    if action is not None and action.kind == "lost_answer":
        await asyncio.sleep(action.seconds)
        abort(request)
        return web.Response()
    if action is not None and action.kind == "slow_body":
        return await slowly(request, raw, action.seconds)
    return web.Response(body=raw, content_type="application/json")


async def slowly(request: web.Request, raw: bytes, seconds: float) -> web.StreamResponse:
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


def abort(request: web.Request) -> None:
    """Closes the connection with a reset, as a crashed peer or a balancer would."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # Linger of zero seconds makes the kernel send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def error(
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
    response = json({"error": error}, refused.status)
    response.headers.update(headers or {})
    return response
