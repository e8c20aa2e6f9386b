"""The HTTP client under the openai client: POST bytes, get bytes, through aiohttp.

The openai client builds every request, puts the key and headers on it and judges the response;
what is replaced here is the layer below, whose generality (redirects, cookies, auth flows, streamed
bodies, header and URL objects made anew for each call) is most of a call's CPU time. Requests that
differ in their body only share everything else.

Redirects are not followed: they would carry prompts to a host nobody named. Proxies of the
environment are used, except for this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

# aiohttp writes these itself.
_ITS_OWN: Final = frozenset({"host", "content-length", "connection", "transfer-encoding"})
_ERROR: Final = 300


@dataclass(frozen=True, slots=True)
class _Wire:
    """What requests to one address with one set of headers have in common, in aiohttp's terms."""

    url: URL
    headers: CIMultiDict[str]


class _Post(httpx2.Request):
    """A request whose parts, but for the body, are shared with the others to its address."""

    def __init__(self, template: httpx2.Request, wire: _Wire, body: bytes) -> None:
        self.__dict__.update(template.__dict__)
        self.wire = wire
        self._content = body


class _Good(httpx2.Response):
    """A response that is read already; nothing is decoded before it is asked for."""

    def __init__(
        self, status: int, headers: Mapping[str, str], body: bytes, request: httpx2.Request
    ) -> None:
        super().__init__(status, headers=list(headers.items()), stream=_READ, request=request)
        self._content = body
        self.is_closed = self.is_stream_consumed = True


class PostClient(httpx2.AsyncClient):
    """An httpx2 client for POST requests with a body of bytes, at the cost of aiohttp's own.

    ``loopback``: the endpoint is on this machine, so no proxy is asked. Anything but a POST of
    bytes goes the ordinary way (over the same connections). Use it inside one event loop.
    """

    def __init__(
        self,
        *,
        connections: int,
        timeout_s: float,
        connect_timeout_s: float,
        keepalive_s: float = 30.0,
        loopback: bool = False,
    ) -> None:
        self._connections = connections
        self._keepalive_s = keepalive_s
        self._loopback = loopback
        self._times = aiohttp.ClientTimeout(sock_connect=connect_timeout_s, sock_read=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        timeout = httpx2.Timeout(timeout_s, connect=connect_timeout_s, pool=None)
        super().__init__(transport=_Elsewhere(self), timeout=timeout, follow_redirects=False)

    def like(self, template: httpx2.Request) -> Callable[[bytes], httpx2.Request]:
        """Requests that differ from ``template`` in their body only."""
        pairs = [(k, v) for k, v in template.headers.multi_items() if k.lower() not in _ITS_OWN]
        wire = _Wire(URL(str(template.url), encoded=True), CIMultiDict(pairs))
        return partial(_Post, template, wire)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not isinstance(request, _Post) or options.get("stream"):
            return await super().send(request, **options)
        return await self.exchanged(request, request.wire, request.content)

    async def exchanged(self, request: httpx2.Request, wire: _Wire, body: bytes) -> httpx2.Response:
        """One request and its whole response."""
        async with self._opened().request(
            request.method,
            wire.url,
            headers=wire.headers,
            data=body or None,
            allow_redirects=False,
            timeout=self._times,
        ) as response:
            content = await response.read()
        if response.status < _ERROR:
            return _Good(response.status, response.headers, content, request)
        # aiohttp has decoded the content already.
        headers = [(k, v) for k, v in response.headers.items() if k.lower() != "content-encoding"]
        return httpx2.Response(response.status, headers=headers, content=content, request=request)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            secure = httpx2.create_ssl_context() if not self._loopback else True
            connector = aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=self._keepalive_s, ssl=secure
            )
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=not self._loopback, auto_decompress=True
            )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        await super().aclose()


class _Elsewhere(httpx2.AsyncBaseTransport):
    """Whatever is no plain POST, over the same session."""

    def __init__(self, client: PostClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        pairs = [(k, v) for k, v in request.headers.multi_items() if k.lower() not in _ITS_OWN]
        wire = _Wire(URL(str(request.url), encoded=True), CIMultiDict(pairs))
        response = await self._client.exchanged(request, wire, body)
        headers = [(k, v) for k, v in response.headers.multi_items() if k != "content-encoding"]
        return httpx2.Response(response.status_code, headers=headers, content=response.content)


class _Read(httpx2.AsyncByteStream):
    """The stream of a response that has been read."""


_READ: Final = _Read()
