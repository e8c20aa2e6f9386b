"""The provider's side of batches: upload, create, look up, fetch; with retries, without secrets.

Creating is the one call that must not happen twice: after a failure that leaves it open whether
it happened, the provider is asked for a batch with our token in its metadata.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from synth_assets.errors import EndpointError
from synth_assets.llm.attempts import FIRST_TRIES, unusable
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import (
    CallFailed,
    ErrorKind,
    Failure,
    failure_of_exception,
    not_an_answer,
)
from synth_assets.llm.scheduler import Limits, backoff_s

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI
    from openai.types import Batch

T = TypeVar("T")
Connect = Callable[[], Endpoint]

METADATA_KEY: Final = "synth_batch"
LIST_PAGE: Final = 100
# How far the provider's clock may be behind ours.
CLOCKS_APART_S: Final = 24 * 3600.0
# What a server answers to an upload when it has no such thing.
_NO_BATCHES: Final = frozenset({404, 405, 501})


class Unavailable(EndpointError):
    """The provider does not answer now; it may later."""


class Refused(Exception):
    """The provider said no for good; carries the Failure. Never leaves the batch modules."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.detail)


class Provider:
    """Calls to the Batch API of one endpoint; connects at the first of them.

    ``connect``: gives the endpoint to talk to (same identity), called once, in a thread. Every
    method raises Refused for a final no, Unavailable when an endpoint that did answer stops, and
    EndpointError when it cannot be reached at all. ``reached``: it has answered.
    """

    def __init__(self, endpoint: Endpoint, *, limits: Limits, connect: Connect | None) -> None:
        self.endpoint = endpoint
        self._limits = limits
        self._connect = connect
        self._openai: AsyncOpenAI | None = None
        self.reached = False
        # Jitter only.
        self._rng = random.Random()  # noqa: S311

    def refusal(self, refused: Refused) -> EndpointError:
        """What a user is told when a batch could not be submitted."""
        if refused.failure.status not in _NO_BATCHES:
            return unusable(self.endpoint, refused.failure)
        return EndpointError(
            f"the endpoint has no batch API ({refused.failure.detail})",
            where=self.endpoint.host,
            fix="ask without batches",
        )

    async def close(self) -> None:
        if self._openai is not None:
            await self._openai.close()
            self._openai = None

    async def upload(self, path: Path) -> str:
        """The id of the input file that was made of ``path``."""
        from openai.types import FileObject

        client = await self._client()

        async def upload() -> str:
            with path.open("rb") as file:
                named = (path.name, file, "application/jsonl")
                made = await client.files.create(file=named, purpose="batch")
            return _expected(made, FileObject).id

        return await self._retried(upload)

    async def create(
        self, token: str, *, file_id: str, url: str, window: str, since: float
    ) -> Batch:
        """The batch of ``file_id``, made once; ``since`` (Unix seconds) is before its creation."""
        from openai.types import Batch

        client = await self._client()

        async def create() -> Batch:
            made = await client.batches.create(
                completion_window=cast(Literal["24h"], window),
                endpoint=cast(Literal["/v1/chat/completions"], url),
                input_file_id=file_id,
                metadata={METADATA_KEY: token},
            )
            return _expected(made, Batch)

        return await self._retried(create, done=lambda: self.find(token, since=since))

    async def find(self, token: str, *, since: float) -> Batch | None:
        """The batch with this token; ``since`` (Unix seconds) bounds how far back to look."""
        client = await self._client()
        after: str | None = None
        while True:
            last = {"after": after} if after is not None else {}

            async def page(last: dict[str, Any] = last) -> list[Batch]:
                # A page at a time: a retry must not begin the whole list again.
                found = await client.batches.list(limit=LIST_PAGE, **last)
                return list(found.data)

            batches = await self._retried(page)
            for batch in batches:
                if (batch.metadata or {}).get(METADATA_KEY) == token:
                    return batch
            # Some servers know one page only.
            last_page = len(batches) < LIST_PAGE or batches[-1].id == after
            if last_page or batches[-1].created_at < since - CLOCKS_APART_S:
                return None
            after = batches[-1].id

    async def retrieve(self, batch_id: str) -> Batch:
        """The batch as it stands."""
        from openai.types import Batch

        client = await self._client()

        async def retrieve() -> Batch:
            return _expected(await client.batches.retrieve(batch_id), Batch)

        return await self._retried(retrieve)

    async def cancel(self, batch_id: str) -> Batch:
        """Asks the provider to stop working on a batch."""
        from openai.types import Batch

        client = await self._client()

        async def cancel() -> Batch:
            return _expected(await client.batches.cancel(batch_id), Batch)

        return await self._retried(cancel)

    async def download(self, file_id: str, path: Path) -> None:
        """Streams a result file into ``path``."""
        client = await self._client()

        async def download() -> None:
            async with client.files.with_streaming_response.content(file_id) as response:
                with path.open("wb") as file:
                    async for piece in response.iter_bytes():
                        file.write(piece)

        await self._retried(download)

    # -- below -------------------------------------------------------------------------------

    async def _client(self) -> AsyncOpenAI:
        if self._openai is None:
            if self._connect is not None:
                self.endpoint = await asyncio.to_thread(self._connect)
            # Imported here: the client takes most of a second to load, and replays need none.
            import httpx2
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            timeout = httpx2.Timeout(
                self._limits.timeout_s, connect=self._limits.connect_timeout_s, pool=None
            )
            self._openai = AsyncOpenAI(
                base_url=self.endpoint.base_url,
                api_key=self.endpoint.api_key.get_secret_value(),
                default_headers=dict(self.endpoint.headers),
                timeout=timeout,
                max_retries=0,
                # A redirect would carry prompts to a host nobody named.
                http_client=DefaultAsyncHttpxClient(
                    timeout=timeout,
                    follow_redirects=False,
                    event_hooks={"request": [_without_telltale]},
                ),
            )
        return self._openai

    async def _retried(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        done: Callable[[], Awaitable[T | None]] | None = None,
    ) -> T:
        """The call's result; ``done`` finds out, after a failure, whether it happened after all."""
        began = time.monotonic()
        failures = throttles = 0
        while True:
            try:
                result = await call()
            except CallFailed as failed:
                failure = failed.failure
            except _expected_errors() as error:
                failure = failure_of_exception(error, now_s=time.time())
            else:
                self.reached = True
                return result
            failure = replace(failure, detail=self.endpoint.scrubbed(failure.detail))
            self.reached = self.reached or failure.status is not None
            if failure.kind is ErrorKind.PERMANENT:
                raise Refused(failure)
            throttled = failure.kind is ErrorKind.THROTTLED
            throttles += throttled
            failures += not throttled
            wait = backoff_s(throttles if throttled else failures, rng=self._rng)
            if failure.retry_after_s is not None:
                wait = failure.retry_after_s if throttled else max(wait, failure.retry_after_s)
            patience = self._limits.patience_s
            most = self._limits.max_attempts
            if failure.unreached and not self.reached:
                most = min(most, FIRST_TRIES)
            if failures >= most or wait > patience or time.monotonic() - began > patience:
                known = unusable(self.endpoint, failure, why="did not answer for too long")
                kind = Unavailable if self.reached else EndpointError
                raise kind(known.problem, where=known.where, fix=known.fix)
            await asyncio.sleep(wait)
            found = await done() if done is not None else None
            if found is not None:
                return found


def _expected(answer: object, kind: type[T]) -> T:
    """The client hands on whatever a server says; a web page is no batch."""
    if not isinstance(answer, kind) or not getattr(answer, "id", None):
        raise CallFailed(not_an_answer(str(answer)[:80].encode()))
    return answer


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a call may raise: of the client, of its transport, and for bodies that are no JSON."""
    import httpx2
    from openai import OpenAIError

    return (OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError, OSError)


async def _without_telltale(request: httpx2.Request) -> None:
    """The client describes the machine it runs on in every call: nobody's business."""
    for name in [name for name in request.headers if name.lower().startswith("x-stainless")]:
        del request.headers[name]
