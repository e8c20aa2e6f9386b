"""Takes secrets out of what a server says, in the spellings that a server may give them.

Servers echo what they were sent: into messages and pages, into URLs, into JSON of their own. What
they say is also cut to a length on its way here, maybe in the middle of a secret.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import quote

MASK: Final = "***"
ELLIPSIS: Final = "..."
# Shorter pieces tell nobody anything, and masking them would spoil ordinary words.
LEAST_CHARS: Final = 4

T = TypeVar("T", str, bytes)


def without(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every secret masked, a secret cut off at its end included."""
    for spelling in _spellings(secrets):
        text = text.replace(spelling, MASK)
    kept = text.removesuffix(ELLIPSIS)
    return _without_cut(kept, _spellings(secrets), MASK) + text[len(kept) :]


def without_bytes(body: bytes, secrets: Iterable[str]) -> bytes:
    """As ``without``, for a raw body; a body that holds no secret comes back as it is."""
    encoded = [spelling.encode() for spelling in _spellings(secrets)]
    for spelling in encoded:
        body = body.replace(spelling, MASK.encode())
    return _without_cut(body, encoded, MASK.encode())


def _without_cut(text: T, spellings: Iterable[T], mask: T) -> T:
    for spelling in spellings:
        tail = text[-len(spelling) :]
        start = tail.find(spelling[:LEAST_CHARS])
        while start >= 0:
            if spelling.startswith(tail[start:]):
                return text[: len(text) - len(tail) + start] + mask
            start = tail.find(spelling[:LEAST_CHARS], start + 1)
    return text


def _spellings(secrets: Iterable[str]) -> list[str]:
    return [one for secret in secrets if len(secret) >= LEAST_CHARS for one in _spelled(secret)]


@lru_cache(maxsize=64)
def _spelled(secret: str) -> tuple[str, ...]:
    """As it is; in a URL, in HTML, in JSON as some write it; in base64 at its three alignments."""
    in_json = json.dumps(secret)[1:-1]
    unicode = {ord(char): f"\\u{ord(char):04x}" for char in "&<>"}
    found = [
        secret,
        quote(secret, safe=""),
        html.escape(secret),
        in_json,
        in_json.replace("/", "\\/"),
        in_json.translate(unicode),
    ]
    for shift in range(3):
        # What stands before and after the secret is in the first and the last four characters.
        code = base64.b64encode(bytes(shift) + secret.encode()).decode()
        inner = code[4 if shift else 0 : len(code) - 4]
        if len(inner) >= 2 * LEAST_CHARS:
            found.append(inner)
    return tuple(dict.fromkeys(found))
