"""The one client: ``openai.AsyncOpenAI``, driven at the level that costs least.

Asking for the bare response skips the walk over parameter type hints and the building of answer
models; address, headers and key are worked out once per path, since only the body changes; the
layer below is ``transport``. Together these are four fifths of a ``.create`` call's CPU time. What
a request looks like, the key handling and the errors stay the client's own. It retries nothing:
the engine does, with the ledger and the budget in view.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import CallFailed, failure_of_exception
from synth_assets.llm.identity import Kind

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI
    from openai._models import FinalRequestOptions

# The client describes the machine it runs on in every call: nobody's business, and 8 % of the CPU.
_TELLTALE: Final = tuple(
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
)
_TELLTALE_PER_CALL: Final = ("x-stainless-retry-count", "x-stainless-read-timeout")
PATHS: Final[dict[Kind, str]] = {"chat": "/chat/completions", "completion": "/completions"}


@dataclass(frozen=True, slots=True)
class Reply:
    """A response with status 2xx: the raw body and how long it took."""

    status: int
    body: bytes
    latency_ms: float


class Client:
    """Calls to one endpoint. Use as an async context manager, inside one event loop.

    ``timeout_s`` bounds a whole call, a body that drips included; ``connect_timeout_s`` bounds
    the connection. ``connections`` is the most at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        connections: int = 64,
    ) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._connections = connections
        self._openai: AsyncOpenAI | None = None
        self._response_type: type[httpx2.Response] | None = None
        self._options: dict[Kind, FinalRequestOptions] = {}

    async def __aenter__(self) -> Self:
        # Imported here: the client takes most of a second to load, and replays need none.
        import httpx2
        from openai import Omit
        from openai._models import FinalRequestOptions

        from synth_assets.llm.openai_client import LeanOpenAI
        from synth_assets.llm.transport import PostClient

        self._response_type = httpx2.Response
        self._options = {
            kind: FinalRequestOptions.construct(
                method="post",
                url=path,
                # A redirect would carry prompts to a host nobody named.
                follow_redirects=False,
                security={"bearer_auth": True},
                headers={name: Omit() for name in _TELLTALE_PER_CALL},
                # Nothing is sent of it; without one the client draws a random one per call.
                idempotency_key="unused",
            )
            for kind, path in PATHS.items()
        }
        # Omit is understood at run time; the client's annotation does not say so.
        headers = {name: Omit() for name in _TELLTALE} | dict(self._endpoint.headers)
        self._openai = LeanOpenAI(
            base_url=self._endpoint.base_url,
            api_key=self._endpoint.api_key.get_secret_value(),
            default_headers=cast(Any, headers),
            max_retries=0,
            http_client=PostClient(
                connections=self._connections,
                timeout_s=self._timeout_s,
                connect_timeout_s=self._connect_timeout_s,
                loopback=self._endpoint.on_this_machine,
            ),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._openai is not None:
            await self._openai.close()
            self._openai = None

    async def call(self, kind: Kind, payload: bytes) -> Reply:
        """One attempt. Raises CallFailed for whatever is not a 2xx response in time."""
        if self._openai is None or self._response_type is None:
            raise RuntimeError("the client is used outside its context")
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._openai.request(
                    self._response_type,
                    self._options[kind].model_copy(update={"content": payload}),
                )
        except Exception as error:
            raise CallFailed(failure_of_exception(error, now_s=time.time())) from error
        elapsed_ms = (time.perf_counter() - started) * 1000
        return Reply(response.status_code, response.content, elapsed_ms)
