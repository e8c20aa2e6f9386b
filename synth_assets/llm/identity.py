"""Request identity: when two requests are the same request, so that it is paid for once.

The identity of a request is the sha256 of its canonical form: one JSON object holding

===============  ==============================================================================
ingredient       why it is in
===============  ==============================================================================
version          the rules below may change; identities made under other rules must not collide
kind             a chat and a completion with the same text are different questions
endpoint         two servers under one model name answer differently
body             the whole JSON that is sent: model, messages or prompt, system text, sampling
                 parameters, stop words, response format, tools, seed, whatever comes later
sample           asking the same text again, on purpose, is a new request
property_order   providers write the members of a structured answer in the order of the schema,
                 so ``reasoning`` before ``answer`` is another request than the reverse
===============  ==============================================================================

Left out, because the answer does not depend on it: the API key and headers, timeouts, retries,
concurrency, rate limits, budget and prices, the dataset that asks, the time, the order of members
anywhere else, and how a number is spelled (``1``, ``1.0``, ``1e0``; ``-0.0`` and ``0``). Text is
compared as the bytes that are sent: no Unicode normalisation, no trimming.

Limitations, said aloud: the provider may change the model behind an unchanged name, and we cannot
see it (name a dated model, or declare another endpoint identity); a ``seed`` makes most servers
repeatable, none promises it; a provider's default for a parameter that is not sent may change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import orjson

IDENTITY_VERSION = 1

# Integers beyond this have no exact float, so 2.0**60 and 2**60 may be different numbers on the
# way through another JSON reader; floats of that size keep their own spelling.
_EXACT_FLOAT = 2**53
_WHOLE_FLOAT = re.compile(rb"[:,\[]-?\d+\.0[,}\]]")
# Members in alphabetical order, written by hand: this runs for every replayed answer.
_INGREDIENTS = b'{"body":%b,"endpoint":%b,"kind":"%b","property_order":%b,"sample":%d,"version":%d}'
_ORDERED_PARTS = ("response_format", "tools", "functions")

Kind = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One question to a model, complete: nothing that shapes the answer lies elsewhere.

    ``endpoint`` is the endpoint's *identity* (``Endpoint.identity``), which need not be its URL.
    ``body`` is the complete JSON body. ``sample`` counts re-asks of the same body; where a server
    takes a ``seed``, put another one in the body as well, else it may repeat itself.
    ``tag`` is the caller's own note (a plan cell, a row number): carried along, never part of the
    identity, never stored.

    Raises ValueError when the id is taken of a body that is not JSON (lone surrogates, integers
    beyond 64 bits, member names that are no strings). NaN goes over the wire as ``null`` and
    counts as such.
    """

    kind: Kind
    endpoint: str
    body: Mapping[str, Any]
    sample: int = 0
    tag: Any = None
    _id: str = field(default="", init=False, repr=False)

    @property
    def canonical(self) -> bytes:
        """The canonical JSON whose sha256 is ``request_id``."""
        return canonical_request(self.kind, self.endpoint, self.body, self.sample)

    @property
    def request_id(self) -> str:
        """sha256 of ``canonical``, 64 hex digits: the key of the ledger."""
        if not self._id:
            object.__setattr__(self, "_id", hashlib.sha256(self.canonical).hexdigest())
        return self._id

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    def payload(self) -> bytes:
        """The body as it goes over the wire, members in the caller's order."""
        return orjson.dumps(dict(self.body))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.request_id == other.request_id

    def __hash__(self) -> int:
        return hash(self.request_id)


def canonical_request(kind: Kind, endpoint: str, body: Mapping[str, Any], sample: int) -> bytes:
    """Canonical JSON of the ingredients; equal bytes if and only if the same request.

    Raises ValueError when the body is not JSON.
    """
    try:
        return _INGREDIENTS % (
            _canonical_json(body),
            orjson.dumps(endpoint),
            kind.encode(),
            _property_order(orjson.dumps([body.get(part) for part in _ORDERED_PARTS])),
            sample,
            IDENTITY_VERSION,
        )
    except TypeError as error:
        raise ValueError(f"a request body must be plain JSON: {error}") from error


def _canonical_json(body: Mapping[str, Any]) -> bytes:
    """The body with sorted members and every number in one spelling."""
    shallow = {key: _plain_number(value) for key, value in body.items()}
    canonical = orjson.dumps(shallow, option=orjson.OPT_SORT_KEYS)
    if b".0" in canonical and _WHOLE_FLOAT.search(canonical):
        # Rare: a whole float deep inside, or text that looks like one.
        canonical = orjson.dumps(_plain_numbers(shallow), option=orjson.OPT_SORT_KEYS)
    return canonical


def _plain_number(value: Any) -> Any:
    whole = type(value) is float and value.is_integer() and abs(value) <= _EXACT_FLOAT
    return int(value) if whole else value


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(item) for item in value]
    return _plain_number(value)


@lru_cache(maxsize=256)
def _property_order(parts: bytes) -> bytes:
    """The member names of every ``properties`` object of the schemas in ``parts``, in order."""
    return orjson.dumps(list(_properties_under(orjson.loads(parts))))


def _properties_under(value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        for key in sorted(value):
            inner = value[key]
            if key == "properties" and isinstance(inner, dict):
                yield list(inner)
            yield from _properties_under(inner)
    elif isinstance(value, list):
        for item in value:
            yield from _properties_under(item)
