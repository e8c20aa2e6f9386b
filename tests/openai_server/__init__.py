"""A real HTTP server on loopback that speaks the OpenAI protocol, for tests and benchmarks.

    with running_server() as server:
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key="test-key")

    python -m tests.openai_server --port 0 --ready-file ready.json

Answers are a pure function of the request body; see ``grammar``. Faults: see ``faults``.
"""

from __future__ import annotations

from tests.openai_server.app import running_server
from tests.openai_server.faults import FaultAction, FaultHook, RequestInfo, schedule
from tests.openai_server.state import ServerState, identity_of

__all__ = [
    "FaultAction",
    "FaultHook",
    "RequestInfo",
    "ServerState",
    "identity_of",
    "running_server",
    "schedule",
]
