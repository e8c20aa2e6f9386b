"""A chat completion server that is never the limit: one canned answer after a timer.

Runs in a process of its own: ``python -m benchmarks.generation.server LATENCY_MS`` prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, cast

import uvloop

CONTENT: Final = json.dumps(
    {"rows": [{"text": f"a short row of text, number {n}"} for n in range(8)]}
)
BODY: Final = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CONTENT, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 90, "total_tokens": 150},
    }
).encode()
RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
_LENGTH: Final = b"content-length:"


class _Answering(asyncio.Protocol):
    """One connection: requests one after the other, each answered after the latency."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(_LENGTH)
            size = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            asyncio.get_running_loop().call_later(self._latency_s, self._answer)

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(RESPONSE)


async def serve(latency_s: float) -> None:
    """Prints the port and serves until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(latency_s), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1]) / 1000))
