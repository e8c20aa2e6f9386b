"""A stream of requests that grows while it is asked: for refills that depend on answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from synth_assets.llm.identity import Request


class Feed:
    """Put requests in as they become known, close it when no more will come.

    Within one event loop. ``ask`` ends when the feed is closed and everything is answered.
    """

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._waiting = deque(requests)
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, *requests: Request) -> None:
        """Adds requests. Raises ValueError after ``close``."""
        if self._closed:
            raise ValueError("the feed is closed")
        self._waiting.extend(requests)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    async def take(self, most: int) -> list[Request]:
        """Between one and ``most`` requests; none when closed and empty."""
        while not self._waiting and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
