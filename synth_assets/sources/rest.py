"""Records of a JSON API, page by page, with dlt's REST client, into a snapshot.

dlt's client and paginators do the asking (single page, page number, offset, cursor, link header,
link in the answer). What is added here and in ``paging``: an answer that says something else than
records is an error, not an empty page; numbers keep their text; the key goes to the declared server
only; pages that go in circles end; what the API declares is compared with what came. Any error ends
the load as a whole.

The end is an empty page (no content, null or {} where the list should be) or, of numbered pages
and offsets, a 404, a 416 or a page that was there before. What ``fetch`` notes of it are the
``notes`` of the copy's facts.

The snapshot holds every record as one line of JSON, sorted by its text, because an API promises
no order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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

    from synth_assets.sources.paging import Pages

# Of numbered pages and offsets: 404 and 416 say that nothing is there. The others may as well say
# that the API gives no more than so many rows of those it has, which would be a loss.
_PAST_THE_END = frozenset({404, 416})
_PERHAPS_PAST_THE_END = frozenset({400, 410, 422})

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
    from synth_assets.sources.paging import Pages

    pages = Pages()
    with shelf.locked(source.where), http.session(source.retries) as client:

        def batches() -> Iterator[list[str]]:
            for lines in _pages(source, client, pages):
                yield [conceal(line) for line in lines]
            pages.check(source.where)

        def write(stream: IO[bytes]) -> dict[str, Any]:
            written = write_sorted(stream, batches())
            if not written:
                raise SourceError(
                    "no records", where=source.where, fix="check path, records and params"
                )
            return {"rows": written, "notes": pages.notes}

        copy = shelf.put(write, file="data", where=source.where)
        return copy, f"{source.name}: {copy.facts['rows']} records on {pages.kept} pages"


def _pages(source: RestList, client: requests.Session, pages: Pages) -> Iterator[list[str]]:
    """The lines of each page."""
    import requests
    from dlt.common.configuration.specs import RuntimeConfiguration
    from dlt.sources.helpers.rest_client.client import RESTClient

    from synth_assets.sources.paging import paginator

    secret = ""
    if source.auth_env:
        secret = http.environment(source.auth_env, source.where, "the key of the API")

    class Strict(RESTClient):
        def _send_request(self, request: requests.Request, **options: Any) -> requests.Response:
            if not http.same_origin(str(request.url), source.base_url):
                raise SourceError(
                    f"the next page lies elsewhere: {http.without_secrets(str(request.url))}",
                    where=source.where,
                    fix="write that address as base_url, if it is to be trusted",
                )
            pages.asked += 1
            for _ in range(http.BODY_TRIES - 1):
                with suppress(requests.exceptions.ChunkedEncodingError):  # broke off half-way
                    return super()._send_request(request, **options)
            return super()._send_request(request, **options)

        def extract_response(self, response: requests.Response, path: Any) -> list[Any]:
            where = f"{source.where}, page {pages.asked}"
            pages.value = None
            pages.over = response.status_code == 204 or (_past_the_end(response) and pages.rows > 0)
            if pages.over:
                return []
            if response.status_code != 200:
                error = http.refused(response, where, source.auth_env)
                raise _maybe_the_end(error) if _counted() and _refused(response) else error
            try:
                value = exact_json(response.content.decode("utf-8-sig"))
                response.json()  # what the paginators read
            except (ValueError, RecursionError):
                raise http.not_json(where) from None
            records = _records(value, source.records, where)
            pages.value, pages.arrived = value, len(records)
            if pages.asked == 1 and (deeper := _deeper(records)):
                pages.notes.append(f"{deeper}: check `records` ({shown(source.records)})")
            return records

    def _past_the_end(response: requests.Response) -> bool:
        # A link or a cursor that leads nowhere is no end: the API itself has named it.
        end = response.status_code in _PAST_THE_END or (pages.beyond and not response.ok)
        return end and _counted()

    def _counted() -> bool:
        return source.pages in ("page_number", "offset")

    def _refused(response: requests.Response) -> bool:
        return pages.rows > 0 and response.status_code in _PERHAPS_PAST_THE_END

    rest = Strict(
        source.base_url,
        headers={"Accept": "application/json"},
        auth=_auth(source.auth_header, secret),
        paginator=paginator(source.pages, source.paging, pages),
        session=client,
        config=RuntimeConfiguration(),
    )
    try:
        found = rest.paginate(
            source.path,
            params=dict(source.params),
            paginator=rest.paginator,
            data_selector=source.records or "$",
            hooks={"response": []},
            timeout=source.timeout_s,
            allow_redirects=False,
        )
        yield from _until_the_end(source, found, pages)
    except requests.RequestException as error:
        raise http.unreachable(error, f"{source.where}, page {pages.asked}") from None
    except ValueError as error:  # a paginator that finds no total, no next link
        told = http.scrubbed(str(error), [secret])
        raise SourceError(
            f"the answer does not hold what pagination needs: {shown(told)}",
            where=f"{source.where}, page {pages.asked}",
            fix="check the paths in pagination",
        ) from None


def _until_the_end(source: RestList, found: Iterable[Any], pages: Pages) -> Iterator[list[str]]:
    """The lines of the pages that say something new. Raises ``SourceError``: circles, too many."""
    requests_made: set[str] = set()
    contents: set[bytes] = set()
    for page in found:
        lines = [line(record) for record in page]
        content = hashlib.sha256("\n".join(lines).encode()).digest()
        if lines and content in contents and source.pages in ("page_number", "offset"):
            param = source.paging.get("page_param") or source.paging.get("offset_param") or "offset"
            pages.notes.append(
                f"page {pages.asked} is the same as one before: reading ends there (does the API "
                f"know the parameter {shown(param)}?)"
            )
            return
        contents.add(content)
        pages.rows += len(lines)
        pages.kept += not pages.over
        yield lines
        following = json.dumps([page.request.url, page.request.params], default=str)
        more = page.paginator.has_next_page
        circle = following in requests_made
        if not more or (circle and not lines) or (pages.beyond and pages.asked >= source.max_pages):
            return
        if circle or pages.asked >= source.max_pages:
            raise SourceError(
                "the pages go in circles" if circle else f"more than {pages.asked} pages",
                where=f"{source.where}, page {pages.asked}",
                fix="check pagination" if circle else "raise max_pages, or ask for larger ones",
            )
        requests_made.add(following)


def _maybe_the_end(error: SourceError) -> SourceError:
    return SourceError(
        error.problem,
        where=error.where,
        fix="if that is how the API answers behind its last row, declare how many there are "
        "(total, total_pages) or has_more in pagination; if it gives only so many rows, ask for "
        "parts by params",
    )


def line(record: Any) -> str:
    """One record as compact JSON on one line."""
    text = compact_json(record)
    try:
        text.encode()
    except UnicodeEncodeError:  # half an emoji; the reader says so
        return json.dumps(record, separators=(",", ":"), default=str)
    return text


def _records(value: Any, path: str, where: str) -> list[Any]:
    """The records at ``path``; none where the list, or all on the way to it, is null or empty."""
    from dlt.common import jsonpath

    found = jsonpath.find_values(path, value) if path else [value]
    records = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if all(_blank(record) for record in records):
        if records or _blank(value) or (isinstance(records, list) and found) or _ends(value, path):
            return []
        keys = ", ".join(map(shown, value)) if isinstance(value, dict) else type(value).__name__
        raise SourceError(
            f"no records at {shown(path)}; found {keys[:300]}",
            where=where,
            fix="`records` is the JSON path of the list, such as data.items",
        )
    return list(records)


def _deeper(records: list[Any]) -> str:
    """What is said where the records seem to lie deeper than the path goes, else ""."""
    found = [record for record in records if isinstance(record, dict)]
    if len(found) == len(records) == 1:
        places = [("", found[0])]
        places += [(f"{key}.", value) for key, value in found[0].items() if isinstance(value, dict)]
        for prefix, place in places:
            for key, value in place.items():
                if isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict):
                    return f"the only record holds a list of {len(value)} at {shown(prefix + key)}"
    names = {tuple(record) for record in found}
    name = names.pop() if len(names) == 1 and len(found) == len(records) > 1 else ()
    if len(name) == 1 and all(isinstance(record[name[0]], dict) for record in found):
        return f"every record lies in an object of its own, named {shown(name[0])}"
    return ""


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)


def _ends(value: Any, path: str) -> bool:
    """Whether the way to the records ends in something null or empty, or picks none of a list."""
    if any(sign in path for sign in "*?"):
        return True
    for name in path.removeprefix("$.").split("."):
        if _blank(value):
            return True
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return _blank(value)


def _auth(header: str, secret: str) -> Any:
    from requests.auth import AuthBase

    class Key(AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            if secret:
                bearer = header.lower() == "authorization"
                request.headers[header] = f"Bearer {secret}" if bearer else secret
            return request

    return Key()
