"""``AsyncOpenAI`` for many calls that differ in their body only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
from openai import AsyncOpenAI
from openai._models import FinalRequestOptions

from synth_assets.llm.transport import PostClient


class LeanOpenAI(AsyncOpenAI):
    """Builds the request of each path once; later ones share all but the body.

    Needs a ``PostClient`` as ``http_client``. The key is fixed for the life of the client.
    """

    def __init__(self, *, http_client: PostClient, **options: Any) -> None:
        super().__init__(http_client=http_client, **options)
        self._posts = http_client
        self._known: dict[str, Callable[[bytes], httpx2.Request]] = {}

    def _build_request(
        self, options: FinalRequestOptions, *, retries_taken: int = 0
    ) -> httpx2.Request:
        body = options.content
        if options.method != "post" or not isinstance(body, bytes):
            return super()._build_request(options, retries_taken=retries_taken)
        make = self._known.get(options.url)
        if make is None:
            template = super()._build_request(options, retries_taken=retries_taken)
            make = self._known[options.url] = self._posts.like(template)
        return make(body)
