"""Records of a JSON API, page by page, with dlt's REST client, into a snapshot.

dlt's client and paginators do the asking (single page, page number, offset, cursor, link header,
link in the answer). What is added here: a page without the records it should hold is an error, not
an empty page; numbers keep their text; the key goes to the declared server only; pages that go in
circles end. Any error ends the load as a whole.

The snapshot holds every record as one line of JSON, sorted by its text, because an API promises
no order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from synth_assets.errors import SourceError, shown
from synth_assets.sources import http
from synth_assets.sources.json_records import compact_json, exact_json
from synth_assets.sources.snapshots import Copy, Shelf, write_sorted

if TYPE_CHECKING:
    import requests

PageKind = Literal["single", "page_number", "offset", "cursor", "link_header", "json_link"]


@dataclass(frozen=True)
class RestList:
    """``records`` is a JSON path ("" : the answer itself); ``paging`` are dlt's own arguments.

    ``auth_header`` with ``auth_env``: the header that carries the key, and the variable it is in;
    in ``Authorization`` it is sent as a bearer token.
    """

    base_url: str
    path: str
    records: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    pages: PageKind = "single"
    paging: Mapping[str, Any] = field(default_factory=dict)
    auth_header: str = ""
    auth_env: str = ""
    retries: int = http.RETRIES
    timeout_s: float = http.TIMEOUT_S
    max_pages: int = 10_000

    @property
    def name(self) -> str:
        return self.path.strip("/") or "records"

    @property
    def where(self) -> str:
        return http.without_secrets(f"{self.base_url.rstrip('/')}/{self.path.lstrip('/')}")


def fetch(
    source: RestList, *, folder: Path, conceal: Callable[[str], str] = str
) -> tuple[Copy, str]:
    """Every record as it is now, as JSON lines; a sentence about how they were read.

    What ``conceal`` makes of a line is kept of it. Raises ``SourceError``: no answer after the
    retries, a refusal, a page that is not JSON or lacks its records, too many pages, no
    records at all.
    """
    shelf = Shelf(folder)
    with shelf.locked(source.where), http.session(source.retries) as client:
        pages = 0

        def batches() -> Iterator[list[str]]:
            nonlocal pages
            for lines in _pages(source, client):
                pages += 1
                yield [conceal(line) for line in lines]

        def write(stream: IO[bytes]) -> dict[str, Any]:
            written = write_sorted(stream, batches())
            if not written:
                raise SourceError(
                    "no records", where=source.where, fix="check path, records and params"
                )
            return {"rows": written}

        copy = shelf.put(write, file="data", where=source.where)
        return copy, f"{source.name}: {copy.facts['rows']} records on {pages} pages"


def _pages(source: RestList, client: requests.Session) -> Iterator[list[str]]:
    """The lines of each page."""
    import requests
    from dlt.common.configuration.specs import RuntimeConfiguration
    from dlt.sources.helpers.rest_client.client import RESTClient

    secret = ""
    if source.auth_env:
        secret = http.environment(source.auth_env, source.where, "the key of the API")

    class Strict(RESTClient):
        page = 0

        def _send_request(self, request: requests.Request, **options: Any) -> requests.Response:
            if not http.same_origin(str(request.url), source.base_url):
                raise SourceError(
                    f"the next page lies elsewhere: {http.without_secrets(str(request.url))}",
                    where=source.where,
                    fix="write that address as base_url, if it is to be trusted",
                )
            self.page += 1
            for _ in range(http.BODY_TRIES - 1):
                with suppress(requests.exceptions.ChunkedEncodingError):  # broke off half-way
                    return super()._send_request(request, **options)
            return super()._send_request(request, **options)

        def extract_response(self, response: requests.Response, path: Any) -> list[Any]:
            where = f"{source.where}, page {self.page}"
            if response.status_code != 200:
                raise http.refused(response, where, source.auth_env)
            try:
                value = exact_json(response.content.decode("utf-8-sig"))
                response.json()  # what the paginators read
            except (ValueError, RecursionError):
                raise http.not_json(where) from None
            return _records(value, source.records, where)

    rest = Strict(
        source.base_url,
        headers={"Accept": "application/json"},
        auth=_auth(source.auth_header, secret),
        paginator=_paginator(source),
        session=client,
        config=RuntimeConfiguration(),
    )
    seen: set[str] = set()
    try:
        found = rest.paginate(
            source.path,
            params=dict(source.params),
            data_selector=source.records or "$",
            hooks={"response": []},
            timeout=source.timeout_s,
            allow_redirects=False,
        )
        for number, page in enumerate(found, 1):
            yield [line(record) for record in page]
            following = json.dumps([page.request.url, page.request.params], default=str)
            if page.paginator.has_next_page and (following in seen or number >= source.max_pages):
                circle = following in seen
                raise SourceError(
                    "the pages go in circles" if circle else f"more than {number} pages",
                    where=f"{source.where}, page {number}",
                    fix="check pagination" if circle else "raise max_pages, or ask for larger ones",
                )
            seen.add(following)
    except requests.RequestException as error:
        raise http.unreachable(error, f"{source.where}, page {rest.page}") from None
    except ValueError as error:  # a paginator that finds no total, no next link
        told = http.scrubbed(str(error), [secret])
        raise SourceError(
            f"the answer does not hold what pagination needs: {shown(told)}",
            where=f"{source.where}, page {rest.page}",
            fix="check the paths in pagination",
        ) from None


def line(record: Any) -> str:
    """One record as compact JSON on one line."""
    text = compact_json(record)
    try:
        text.encode()
    except UnicodeEncodeError:  # half an emoji; the reader says so
        return json.dumps(record, separators=(",", ":"), default=str)
    return text


def _records(value: Any, path: str, where: str) -> list[Any]:
    from dlt.common import jsonpath

    found = jsonpath.find_values(path, value) if path else [value]
    records = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if not found or found == [None]:
        keys = ", ".join(map(shown, value)) if isinstance(value, dict) else type(value).__name__
        raise SourceError(
            f"no records at {shown(path)}; found {keys[:300]}",
            where=where,
            fix="`records` is the JSON path of the list, such as data.items",
        )
    return list(records)


def _auth(header: str, secret: str) -> Any:
    from requests.auth import AuthBase

    class Key(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if secret:
                bearer = header.lower() == "authorization"
                request.headers[header] = f"Bearer {secret}" if bearer else secret
            return request

    return Key()


def _paginator(source: RestList) -> Any:
    from dlt.sources.helpers.rest_client import paginators as dlt_pages

    made = {
        "single": dlt_pages.SinglePagePaginator,
        "page_number": dlt_pages.PageNumberPaginator,
        "offset": dlt_pages.OffsetPaginator,
        "cursor": dlt_pages.JSONResponseCursorPaginator,
        "link_header": dlt_pages.HeaderLinkPaginator,
        "json_link": dlt_pages.JSONLinkPaginator,
    }
    return made[source.pages](**source.paging)
