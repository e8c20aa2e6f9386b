"""Where a model answers, and as whom we ask. The key lives here and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic import SecretStr

from synth_assets.errors import EndpointError, shown
from synth_assets.llm import scrub

DEFAULT_BASE_URL_ENV = "OPENAI_BASE_URL"
DEFAULT_API_KEY_ENV = "OPENAI_API_KEY"
# The client insists on a key; local servers do not.
NO_KEY = "no-key-needed"

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint and the model asked there.

    ``identity`` enters the request identity; it defaults to the normalised ``base_url``. Declare a
    name instead where the URL changes while the answers stay (a local server on a free port, a
    load balancer). ``headers`` are sent with every call and treated as secrets, like the key.
    Raises EndpointError when ``base_url`` or the key cannot be used.
    """

    base_url: str
    model: str
    api_key: SecretStr = field(repr=False)
    identity: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    base_url_env: str = DEFAULT_BASE_URL_ENV
    api_key_env: str = DEFAULT_API_KEY_ENV

    def __post_init__(self) -> None:
        url = normalised_url(self.base_url, env=self.base_url_env)
        object.__setattr__(self, "base_url", url)
        object.__setattr__(self, "identity", self.identity or url)
        _check_key(self.api_key, env=self.api_key_env)

    @classmethod
    def from_env(
        cls,
        *,
        model: str,
        base_url_env: str = DEFAULT_BASE_URL_ENV,
        api_key_env: str = DEFAULT_API_KEY_ENV,
        identity: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """The endpoint named by two environment variables.

        A loopback address needs no key. Raises EndpointError when a variable is unset or unusable.
        """
        env = os.environ if environ is None else environ
        base_url = env.get(base_url_env, "").strip()
        if not base_url:
            raise EndpointError(
                f"{base_url_env} is not set, so there is no address to ask model {shown(model)} at",
                fix=f"export {base_url_env}=<address of an OpenAI-compatible server, ending in /v1>"
                f" and {api_key_env}=<its key>, or use the embedded model",
            )
        key = env.get(api_key_env, "").strip()
        if not key and not is_loopback(base_url):
            raise EndpointError(
                f"{api_key_env} is not set, and {host_of(base_url)} is not this machine",
                fix=f"export {api_key_env}=<the key of that endpoint>",
            )
        return cls(
            base_url=base_url,
            model=model,
            api_key=SecretStr(key or NO_KEY),
            identity=identity,
            base_url_env=base_url_env,
            api_key_env=api_key_env,
        )

    @property
    def host(self) -> str:
        """Host and port: what a message or a release may show."""
        return host_of(self.base_url)

    @property
    def on_this_machine(self) -> bool:
        return is_loopback(self.base_url)

    def scrubbed(self, text: str) -> str:
        """The text without the key, whatever a server echoed into it."""
        return scrub.without(text, self._secrets())

    def scrubbed_bytes(self, body: bytes) -> bytes:
        """A raw body without the key; bodies of good answers never hold it and stay verbatim."""
        return scrub.without_bytes(body, self._secrets())

    def _secrets(self) -> list[str]:
        key = self.api_key.get_secret_value()
        return [secret for secret in (key, *self.headers.values()) if secret != NO_KEY]


def is_loopback(url: str) -> bool:
    """Whether the address is on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def host_of(url: str) -> str:
    """Host and port of a URL; never user names, paths or queries."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "?") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "?"


def normalised_url(url: str, *, env: str = DEFAULT_BASE_URL_ENV) -> str:
    """One spelling per address: lower-case scheme and host, no default port, no final slash.

    Raises EndpointError for what is no http(s) URL or carries a password or a query.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.hostname:
        raise EndpointError(
            "the address of the endpoint is not an http(s) URL",
            where=env,
            fix=f"{env} looks like https://host/v1",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise EndpointError(
            f"the address of {parts.hostname} carries a user name, a query or a fragment",
            where=env,
            fix="give the bare address; the key goes into its own variable",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    scheme = parts.scheme.lower()
    shown_port = f":{port}" if port and port != _DEFAULT_PORTS[scheme] else ""
    return f"{scheme}://{host}{shown_port}{parts.path.rstrip('/')}"


def _check_key(key: SecretStr, *, env: str) -> None:
    """Headers take visible ASCII only: say so here, without showing the key."""
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise EndpointError(
            "the key is empty or holds blanks or characters outside ASCII",
            where=env,
            fix="copy the key again, in one line without quotes",
        )
