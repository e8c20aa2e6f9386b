"""HTTP with bounded retries, and errors that name no secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from synth_assets.errors import SourceError

if TYPE_CHECKING:
    import requests

RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
RETRIES, BACKOFF_S, LONGEST_WAIT_S = 5, 0.5, 60
TIMEOUT_S = 60.0
# A body that breaks off is asked for so many times; the session itself only repeats what failed
# before the body began.
BODY_TRIES = 3
CHUNK = 1 << 20


def session(retries: int = RETRIES) -> requests.Session:
    """A session that asks again after 408, 429 (as ``Retry-After`` says, at most a minute), 5xx
    and broken connections, ``retries`` times in all; then the last answer stands."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=retries,
        connect=min(retries, 2),  # nobody there is seldom a passing trouble
        redirect=False,
        status_forcelist=RETRIED_STATUS,
        backoff_factor=BACKOFF_S,
        backoff_max=LONGEST_WAIT_S,
        retry_after_max=LONGEST_WAIT_S,
        raise_on_status=False,
    )
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    return made


def environment(name: str, where: str, what: str) -> str:
    """The value of a variable that must be set. Raises ``SourceError``."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise SourceError(f"{name} is not set", where=where, fix=f"export {name}: {what}")
    return value


def without_secrets(url: str) -> str:
    """A URL without user, password and query, which may all be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """``text`` in which no secret stands, nor the user part of any URL."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def refused(response: requests.Response, where: str, secret_env: str) -> SourceError:
    """What an answer that is not a success means. ``secret_env``: where the key comes from."""
    status = response.status_code
    fix = "try again later" if status >= 500 or status == 429 else "check the address"
    if status in (401, 403):
        fix = f"check {secret_env}" if secret_env else "it wants a key: declare where it comes from"
    elif response.is_redirect:
        target = without_secrets(response.headers.get("location", ""))
        fix = f"it has moved to {target}: write that address"
    return SourceError(f"the server answers {status} {response.reason}", where=where, fix=fix)


def unreachable(error: Exception, where: str) -> SourceError:
    """A request that got no answer; the library's words may hold the whole URL, so ours do not."""
    kind = type(error).__name__
    return SourceError(
        f"no usable answer ({kind})", where=where, fix="check the address and the network"
    )


def same_origin(url: str, base: str) -> bool:
    """Whether two URLs lead to one server: a key that is meant for one goes to no other."""
    return _origin(url) == _origin(base)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def download(
    client: requests.Session,
    url: str,
    stream: IO[bytes],
    *,
    where: str,
    known: Mapping[str, str],
    key: str = "",
    key_env: str = "",
) -> dict[str, str] | None:
    """Write what ``url`` holds; its validators, to be ``known`` next time (None: still the same).

    ``key`` is sent as a bearer token; a redirect to another host does not get it. Only validators
    that cannot miss a change count: a strong ETag, or a date of change at least a minute before
    the answer. Raises ``SourceError``.
    """
    import requests

    asked = {"Accept-Encoding": "identity"}
    if known.get("etag"):
        asked["If-None-Match"] = known["etag"]
    elif known.get("modified"):
        asked["If-Modified-Since"] = known["modified"]
    for left in reversed(range(BODY_TRIES)):
        stream.seek(0)
        stream.truncate()
        try:
            with client.get(
                url, headers=asked, stream=True, timeout=TIMEOUT_S, auth=_bearer(key)
            ) as response:
                if response.status_code == 304 and known:
                    return None
                if response.status_code != 200:
                    raise refused(response, where, key_env)
                for chunk in response.iter_content(CHUNK):
                    stream.write(chunk)
                return _validators(response.headers)
        except requests.exceptions.ChunkedEncodingError as error:
            if not left:
                raise unreachable(error, where) from None
        except requests.RequestException as error:
            raise unreachable(error, where) from None
    raise AssertionError("the last try ends the loop")


def get_json(client: requests.Session, url: str, *, where: str, key: str, key_env: str) -> Any:
    """The JSON value at ``url``. Raises ``SourceError``."""
    import requests

    try:
        response = client.get(url, timeout=TIMEOUT_S, auth=_bearer(key))
    except requests.RequestException as error:
        raise unreachable(error, where) from None
    if response.status_code != 200:
        raise refused(response, where, key_env)
    try:
        return response.json()
    except ValueError:
        raise not_json(where) from None


def not_json(where: str) -> SourceError:
    return SourceError(
        "the answer is not JSON", where=where, fix="check the address: is it the API's?"
    )


def _bearer(key: str) -> Any:
    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign


def _validators(headers: Mapping[str, str]) -> dict[str, str]:
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if etag and not etag.startswith("W/"):
        return {"etag": etag}
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(modified)
    except (KeyError, ValueError, TypeError):
        return {}
    return {"modified": modified} if age.total_seconds() >= 60 else {}
