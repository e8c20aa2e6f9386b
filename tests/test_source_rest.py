"""APIs as sources: every page or nothing, and the key goes nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synth_assets.errors import SourceError
from synth_assets.sources import http, rest
from synth_assets.sources.rest import RestList
from tests.source_server import Answer, Asked, Server, as_json, serving

ITEMS = [{"id": n, "text": f"ticket {n}"} for n in range(7)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def records(source: RestList, folder: Path) -> list[dict[str, Any]]:
    copy, _ = rest.fetch(source, folder=folder)
    return [json.loads(line) for line in copy.path.read_text().splitlines()]


def page(rows: list[Any], **more: Any) -> Answer:
    return as_json({"data": {"items": rows}, **more})


def by_page_number(asked: Asked) -> Answer:
    first = (int(asked.query["page"]) - 1) * 3
    return page(ITEMS[first : first + 3], pages=3)


def by_offset(asked: Asked) -> Answer:
    first, size = int(asked.query["offset"]), int(asked.query["limit"])
    return page(ITEMS[first : first + size], total=len(ITEMS))


def by_cursor(asked: Asked) -> Answer:
    first = int(asked.query.get("after", "0"))
    following = str(first + 3) if first + 3 < len(ITEMS) else None
    return page(ITEMS[first : first + 3], next=following)


def by_link_header(asked: Asked) -> Answer:
    first = int(asked.query.get("from", "0"))
    link = {"Link": f'</v1/tickets?from={first + 3}>; rel="next"'} if first + 3 < 7 else {}
    return as_json({"data": {"items": ITEMS[first : first + 3]}}, **link)


def by_json_link(asked: Asked) -> Answer:
    first = int(asked.query.get("from", "0"))
    following = f"/v1/tickets?from={first + 3}" if first + 3 < len(ITEMS) else None
    return page(ITEMS[first : first + 3], links={"next": following})


PAGINATIONS: list[tuple[Any, Any, dict[str, Any]]] = [
    (by_page_number, "page_number", {"base_page": 1, "page_param": "page", "total_path": None}),
    (by_page_number, "page_number", {"base_page": 1, "page_param": "page", "total_path": "pages"}),
    (by_offset, "offset", {"limit": 2, "total_path": None}),
    (by_offset, "offset", {"limit": 2, "total_path": "total"}),
    (by_cursor, "cursor", {"cursor_path": "next", "cursor_param": "after"}),
    (by_link_header, "link_header", {"links_next_key": "next"}),
    (by_json_link, "json_link", {"next_url_path": "links.next"}),
]


@pytest.mark.parametrize(("respond", "kind", "paging"), PAGINATIONS)
def test_every_record_of_every_page_arrives(
    server: Server, tmp_path: Path, respond: Any, kind: Any, paging: dict[str, Any]
) -> None:
    server.respond = respond
    source = RestList(
        f"{server.url}/v1", "tickets", records="data.items", pages=kind, paging=paging
    )
    assert records(source, tmp_path) == ITEMS
    assert set(server.paths) == {"/v1/tickets"}


def test_an_answer_that_is_the_list_needs_no_path(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: as_json(ITEMS)
    assert records(RestList(server.url, "tickets", params={"state": "open"}), tmp_path) == ITEMS
    assert server.asked[0].query == {"state": "open"}


def test_numbers_keep_their_text(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: Answer(b'[{"id": 12345678901234567890123, "x": 1.50}]')
    copy, _ = rest.fetch(RestList(server.url, "t"), folder=tmp_path)
    assert copy.path.read_text() == '{"id":12345678901234567890123,"x":1.50}\n'


def test_the_order_of_an_api_is_no_content(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: as_json(ITEMS)
    first, _ = rest.fetch(RestList(server.url, "t"), folder=tmp_path)
    server.respond = lambda asked: as_json(ITEMS[::-1])
    again, _ = rest.fetch(RestList(server.url, "t"), folder=tmp_path)
    assert again.sha256 == first.sha256
    server.respond = lambda asked: as_json(ITEMS[1:])
    gone, _ = rest.fetch(RestList(server.url, "t"), folder=tmp_path)
    assert gone.sha256 != first.sha256


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    def busy_twice(asked: Asked) -> Answer:
        busy = len(server.asked) <= 2
        return Answer(status=status, headers={"Retry-After": "0"}) if busy else as_json(ITEMS)

    server.respond = busy_twice
    assert records(RestList(server.url, "t"), tmp_path) == ITEMS
    assert len(server.asked) == 3


def test_a_body_that_breaks_off_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    whole = as_json(ITEMS)
    server.respond = lambda asked: (
        Answer(whole.body[:20], cut=50) if len(server.asked) == 1 else whole
    )
    assert records(RestList(server.url, "t"), tmp_path) == ITEMS


def broken_second_page(answer: Answer) -> Any:
    return lambda asked: by_cursor(asked) if "after" not in asked.query else answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(b"<html>", 500), "answers 500"),
        (Answer(b"", 429, {"Retry-After": "0"}), "answers 429"),
        (Answer(b"<html>oops</html>"), "not JSON"),
        (as_json({"error": "quota"}), "no records at 'data.items'; found 'error'"),
        (as_json({"data": {"items": None}}), "no records at"),
        (Answer(b'{"data": {"items": [1', cut=99), "no usable answer"),
        (Answer(b"", 302, {"Location": "/login"}), "answers 302"),
    ],
)
def test_a_broken_page_ends_the_whole_load_and_keeps_the_former_copy(
    server: Server, tmp_path: Path, answer: Answer, told: str
) -> None:
    paging = {"cursor_path": "next", "cursor_param": "after"}
    source = RestList(
        server.url, "t", records="data.items", pages="cursor", paging=paging, retries=1
    )
    server.respond = by_cursor
    good, _ = rest.fetch(source, folder=tmp_path)
    server.respond = broken_second_page(answer)
    with pytest.raises(SourceError, match=told) as caught:
        rest.fetch(source, folder=tmp_path)
    assert "page 2" in str(caught.value)
    assert good.path.read_text().count("\n") == len(ITEMS)
    server.respond = by_cursor
    assert rest.fetch(source, folder=tmp_path)[0].sha256 == good.sha256


def test_retries_are_bounded(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: Answer(status=503)
    with pytest.raises(SourceError, match="answers 503"):
        rest.fetch(RestList(server.url, "t", retries=3), folder=tmp_path)
    assert len(server.asked) == 4


def test_pages_that_go_in_circles_end(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: page(ITEMS, next="same")
    paging = {"cursor_path": "next", "cursor_param": "after"}
    source = RestList(server.url, "t", records="data.items", pages="cursor", paging=paging)
    with pytest.raises(SourceError, match="in circles"):
        rest.fetch(source, folder=tmp_path)
    assert len(server.asked) == 2


def test_more_pages_than_allowed_are_an_error_and_not_cut_off(
    server: Server, tmp_path: Path
) -> None:
    server.respond = by_offset
    paging = {"limit": 2, "total_path": None}
    source = RestList(
        server.url, "t", records="data.items", pages="offset", paging=paging, max_pages=3
    )
    with pytest.raises(SourceError, match="more than 3 pages"):
        rest.fetch(source, folder=tmp_path)


def test_an_api_without_records_is_an_error(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: as_json([])
    with pytest.raises(SourceError, match="no records"):
        rest.fetch(RestList(server.url, "t"), folder=tmp_path)


def test_nobody_listening_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no usable answer") as caught:
        rest.fetch(RestList("http://127.0.0.1:9", "t"), folder=tmp_path)
    assert "http://127.0.0.1:9/t" in str(caught.value)


# --- keys ---


@pytest.mark.parametrize(
    ("header", "sent"), [("Authorization", "Bearer k-123"), ("X-Api-Key", "k-123")]
)
def test_the_key_of_the_environment_is_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, sent: str
) -> None:
    monkeypatch.setenv("TICKETS_KEY", "k-123")
    server.respond = by_cursor
    paging = {"cursor_path": "next", "cursor_param": "after"}
    source = RestList(
        server.url,
        "t",
        records="data.items",
        pages="cursor",
        paging=paging,
        auth_header=header,
        auth_env="TICKETS_KEY",
    )
    assert records(source, tmp_path) == ITEMS
    assert {request.headers[header.lower()] for request in server.asked} == {sent}


def test_a_missing_key_is_named_before_anything_is_asked(server: Server, tmp_path: Path) -> None:
    source = RestList(server.url, "t", auth_header="Authorization", auth_env="NO_SUCH_KEY")
    with pytest.raises(SourceError, match="NO_SUCH_KEY is not set"):
        rest.fetch(source, folder=tmp_path)
    assert server.asked == []


def test_a_refused_key_is_named_by_its_variable_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS_KEY", "k-secret")
    server.respond = lambda asked: Answer(b"no: k-secret", 401)
    source = RestList(
        server.url, "t", params={"q": "k-2"}, auth_header="X-Key", auth_env="TICKETS_KEY"
    )
    with pytest.raises(SourceError, match="check TICKETS_KEY") as caught:
        rest.fetch(source, folder=tmp_path)
    assert "k-secret" not in str(caught.value)
    assert "k-2" not in str(caught.value)


@pytest.mark.parametrize("how", ["link", "redirect"])
def test_another_server_never_gets_the_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("TICKETS_KEY", "k-123")
    with serving() as stranger:
        stranger.respond = lambda asked: page(ITEMS)
        elsewhere = f"{stranger.url}/t"
        server.respond = lambda asked: (
            page(ITEMS, next=elsewhere)
            if how == "link"
            else Answer(b"", 302, {"Location": elsewhere})
        )
        source = RestList(
            server.url,
            "t",
            records="data.items",
            pages="json_link",
            paging={"next_url_path": "next"},
            auth_header="X-Key",
            auth_env="TICKETS_KEY",
        )
        with pytest.raises(SourceError, match=r"lies elsewhere|answers 302"):
            rest.fetch(source, folder=tmp_path)
        assert stranger.asked == []
