"""How many tokens a text is, for the model that will read it, without a call to that model.

===================  ==========================================================================
counter              for which models
===================  ==========================================================================
``MeasuredRatio``    any with enough calls in the ledger: characters per token as they were billed
``OpenAITokens``     OpenAI's names; the ranks come with a package, nothing is fetched
``LlamaTokens``      the embedded server's; asks the running server, whose file has its tokenizer
``assumed()``        any other: 4 characters a token
===================  ==========================================================================
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

from synth_assets.errors import EndpointError

CHARS_PER_TOKEN: Final = 4.0
# What a chat template puts around each message, where no tokenizer or measurement includes it.
TOKENS_PER_MESSAGE: Final = 4

# Ordered: the newer families' names begin like the older ones'.
_ENCODINGS: Final = (
    (re.compile(r"gpt-oss"), "o200k_harmony"),
    (re.compile(r"(chat)?gpt-?4o|gpt-4\.[1-9]|gpt-[5-9]|o[1-9](-|$)|codex"), "o200k_base"),
    (re.compile(r"gpt-4|gpt-3\.?5|text-embedding-"), "cl100k_base"),
)
_OWNER = re.compile(r"^(openai/|azure/|ft:)+")
_TIMEOUT_S = 30.0


class TokenCounter(Protocol):
    """Counts tokens of texts. ``method`` says how, for a person."""

    @property
    def method(self) -> str: ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, in order."""


@dataclass(frozen=True)
class MeasuredRatio:
    """Tokens from characters, by a ratio that was measured or is assumed."""

    chars_per_token: float
    method: str

    def count(self, texts: Sequence[str]) -> list[int]:
        return [round(len(text) / self.chars_per_token) for text in texts]


def assumed() -> MeasuredRatio:
    """The counter of last resort."""
    return MeasuredRatio(CHARS_PER_TOKEN, f"characters / {CHARS_PER_TOKEN:.0f} (no tokenizer here)")


@dataclass(frozen=True)
class OpenAITokens:
    """Exact counts in one of OpenAI's encodings."""

    encoding: str

    @property
    def method(self) -> str:
        return f"tokenizer {self.encoding}"

    def count(self, texts: Sequence[str]) -> list[int]:
        import toktok  # type: ignore[import-untyped]

        return list(toktok.batch_count(texts, self.encoding))


def openai_tokens(model: str) -> OpenAITokens | None:
    """The counter of a model by its name ("gpt-4o-mini", "openai/o3"); None for other families.

    None as well where the tokenizer's package has no build for the platform.
    """
    name = _OWNER.sub("", model.lower())
    encoding = next((encoding for known, encoding in _ENCODINGS if known.match(name)), None)
    if encoding is None:
        return None
    try:
        import toktok  # noqa: F401
    except ImportError:
        return None
    return OpenAITokens(encoding)


@dataclass(frozen=True)
class LlamaTokens:
    """Exact counts by a running llama.cpp server at ``base_url`` (which ends in /v1).

    A text is counted as a prompt of its own, with the mark that the model puts before it. ``count``
    raises EndpointError when the server does not answer.
    """

    base_url: str
    method: str = "the model's own tokenizer"

    def count(self, texts: Sequence[str]) -> list[int]:
        parts = urlsplit(self.base_url)
        path = parts.path.removesuffix("/v1") + "/tokenize"
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, _TIMEOUT_S)
        try:
            return [self._count(connection, path, text) for text in texts]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise EndpointError(
                f"the model server does not count tokens: {error}",
                where=parts.netloc,
                fix="see the server's log",
            ) from error
        finally:
            connection.close()

    def _count(self, connection: http.client.HTTPConnection, path: str, text: str) -> int:
        body = orjson.dumps({"content": text, "add_special": True})
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return len(orjson.loads(connection.getresponse().read())["tokens"])


def prompt_texts(body: Mapping[str, Any]) -> list[str]:
    """What a model reads of a request: its messages' texts, or its prompt."""
    if "messages" not in body:
        return [str(body.get("prompt", ""))]
    return [_content(message.get("content")) for message in body["messages"]]


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
