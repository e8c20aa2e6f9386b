"""A stream of requests that is walked more than once, in memory that does not grow with it.

Answers of batches come hours after their requests were written. So requests are not kept for
them: the stream is walked again after every collection, and what the ledger has by then is
answered. What is remembered of a request is a few bytes by its place in the stream. A stream that
can be made anew (a function) is; of one that can be read only once, the requests that have no
answer yet are kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from synth_assets.llm.identity import Request

Seat = tuple[int, Request]
_DONE: Final = 255
_MOST_TRIES: Final = 254


class Stream:
    """``requests``: the same requests in the same order each time, when it is a function."""

    def __init__(self, requests: Iterable[Request] | Callable[[], Iterable[Request]]) -> None:
        self._again = requests if callable(requests) else None
        self._left: Iterable[Seat] = () if callable(requests) else enumerate(requests)
        self._tries = bytearray()  # by seat: how often it was submitted, or that it is done
        self._places = array("I")  # by seat: one more than the number of its batch, or zero
        self._tokens: dict[str, int] = {}
        self._names: list[str] = []
        self._done = 0

    @property
    def outstanding(self) -> int:
        """How many requests that were seen have no answer yet."""
        return len(self._tries) - self._done

    def chunks(self, size: int, waits: Callable[[str], bool]) -> Iterator[list[Seat]]:
        """The requests without an answer, but those whose batch ``waits``, ``size`` at a time."""
        source = enumerate(self._again()) if self._again is not None else self._left
        left: list[Seat] = []
        chunk: list[Seat] = []
        for seat in source:
            at = seat[0]
            if at >= len(self._tries):
                self._tries.append(0)
                self._places.append(0)
            token = self.token_at(at)
            if self._tries[at] == _DONE:
                continue
            if token is not None and waits(token):
                left.append(seat)
            else:
                chunk.append(seat)
            if len(chunk) == size:
                yield chunk
                left += self._undone(chunk)
                chunk = []
            if self._again is not None:
                left.clear()
        if chunk:
            yield chunk
            left += self._undone(chunk)
        self._left = left

    def token_at(self, at: int) -> str | None:
        """The batch that a request was last seen in."""
        place = self._places[at]
        return self._names[place - 1] if place else None

    def place(self, at: int, token: str) -> None:
        """The request is in this batch."""
        if token not in self._tokens:
            self._names.append(token)
            self._tokens[token] = len(self._names)
        self._places[at] = self._tokens[token]

    def tries(self, at: int) -> int:
        """How often this run submitted the request."""
        return self._tries[at]

    def tried(self, at: int) -> None:
        self._tries[at] = min(_MOST_TRIES, self._tries[at] + 1)

    def untried(self, token: str) -> None:
        """Takes one try back from every request of a batch of which nothing was carried out."""
        place = self._tokens.get(token)
        for at, found in enumerate(self._places):
            if found == place and 0 < self._tries[at] < _DONE:
                self._tries[at] -= 1

    def done(self, at: int) -> None:
        """The request has its answer."""
        if self._tries[at] != _DONE:
            self._tries[at] = _DONE
            self._done += 1

    def _undone(self, chunk: list[Seat]) -> list[Seat]:
        return [seat for seat in chunk if self._tries[seat[0]] != _DONE]
