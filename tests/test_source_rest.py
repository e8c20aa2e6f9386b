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
        (as_json({"data": {"rows": []}}), "no records at"),
        (Answer(b"", 404), "answers 404"),  # the API itself has named that page
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


# --- how paging ends, and what is missing then ---

OFFSETS: dict[str, Any] = {"limit": 3, "total_path": None}
PAGES: dict[str, Any] = {"base_page": 1, "page_param": "page", "total_path": None}
CURSORS: dict[str, Any] = {"cursor_path": "next", "cursor_param": "after"}
NOTHING = as_json({"data": {"items": []}})


def listed(server: Server, kind: Any, paging: dict[str, Any], **more: Any) -> RestList:
    return RestList(server.url, "t", records="data.items", pages=kind, paging=paging, **more)


def read(source: RestList, folder: Path) -> tuple[list[Any], str]:
    """Ids (or the records themselves) in order, and what is noted."""
    copy, _ = rest.fetch(source, folder=folder)
    rows = [json.loads(line) for line in copy.path.read_text().splitlines()]
    assert len(rows) == copy.facts["rows"]
    return [row["id"] if row else row for row in rows], " | ".join(copy.facts["notes"])


def sliced(*sizes: int, total: Any = None, **more: Any) -> Any:
    """A server that gives so many records a page, wherever the offset stands."""

    def respond(asked: Asked) -> Answer:
        first = int(asked.query["offset"])
        size = sizes[min(len(server_calls), len(sizes) - 1)]
        server_calls.append(first)
        said = {} if total is None else {"total": total}
        return page(ITEMS[first : first + size], **said, **more)

    server_calls: list[int] = []
    respond.calls = server_calls  # type: ignore[attr-defined]
    return respond


@pytest.mark.parametrize("total", [None, 7, "7", 7.0])
@pytest.mark.parametrize("sizes", [(3,), (2,), (1,), (3, 1, 3), (7,), (50,)])
def test_an_offset_moves_by_the_records_that_came(
    server: Server, tmp_path: Path, sizes: tuple[int, ...], total: Any
) -> None:
    server.respond = sliced(*sizes, total=total)
    paging = OFFSETS | {"total_path": "total" if total else None}
    assert read(listed(server, "offset", paging), tmp_path) == ([0, 1, 2, 3, 4, 5, 6], "")


@pytest.mark.parametrize(("more", "end"), [(True, False), ("true", "false"), (1, 0), ("1", None)])
@pytest.mark.parametrize("kind", ["offset", "page_number"])
def test_more_is_told_in_any_spelling(
    server: Server, tmp_path: Path, kind: str, more: Any, end: Any
) -> None:
    def respond(asked: Asked) -> Answer:
        first = int(asked.query.get("offset", (int(asked.query.get("page", 1)) - 1) * 3))
        rows = [] if first == 3 and kind == "page_number" else ITEMS[first : first + 3]
        return page(rows, meta={"more": more if first + 3 < 7 else end})

    server.respond = respond
    paging = (OFFSETS if kind == "offset" else PAGES) | {"has_more_path": "meta.more"}
    ids, _ = read(listed(server, kind, paging), tmp_path)
    # An empty page in the middle is no end where the API says that there are more.
    assert ids == ([0, 1, 2, 6] if kind == "page_number" else list(range(7)))
    assert len(server.asked) == 3


def test_fewer_records_than_declared_are_an_error_with_both_numbers(
    server: Server, tmp_path: Path
) -> None:
    server.respond = sliced(3, total=9)
    with pytest.raises(SourceError, match=r"declares 9 records, 7 arrived(?s:.*)pagination"):
        read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)


def test_a_hole_in_the_middle_is_no_end_where_a_total_says_so(
    server: Server, tmp_path: Path
) -> None:
    server.respond = lambda asked: (
        page(ITEMS[:3], total=7) if asked.query["offset"] == "0" else page([], total=7)
    )
    with pytest.raises(SourceError, match="declares 7 records, 3 arrived"):
        read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)


@pytest.mark.parametrize("total", [3, 6, "3", 0])
def test_more_records_than_declared_are_all_read(
    server: Server, tmp_path: Path, total: Any
) -> None:
    server.respond = sliced(3, total=total)
    ids, noted = read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)
    assert ids == list(range(7))
    assert f"{total} records declared, 7 arrived" in noted


@pytest.mark.parametrize("status", [200, 204, 400, 404])
def test_a_look_behind_a_declared_end_may_be_answered_anyhow(
    server: Server, tmp_path: Path, status: int
) -> None:
    whole = sliced(7, total=7)
    behind = NOTHING if status == 200 else Answer(b"nothing here", status)
    server.respond = lambda asked: behind if asked.query["offset"] == "7" else whole(asked)
    ids, noted = read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)
    assert (ids, noted) == (list(range(7)), "")


def test_a_total_that_moves_while_it_is_read_is_told(server: Server, tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        first = int(asked.query["offset"])
        return page(ITEMS[first : first + 3], total=7 if first == 0 else 8)

    server.respond = respond
    ids, noted = read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)
    assert ids == list(range(7))
    assert "changed while it was read: 7, then 8 records declared; 7 arrived" in noted


def test_fewer_pages_than_declared_are_an_error(server: Server, tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        number = int(asked.query["page"])
        return page(ITEMS[number : number + 1], pages=5) if number < 4 else Answer(b"", 404)

    server.respond = respond
    with pytest.raises(SourceError, match="declares 5 pages, 3 arrived"):
        read(listed(server, "page_number", PAGES | {"total_path": "pages"}), tmp_path)


def test_an_empty_page_among_the_declared_ones_is_passed(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: (
        page([], pages=3) if asked.query["page"] == "2" else by_page_number(asked)
    )
    ids, _ = read(listed(server, "page_number", PAGES | {"total_path": "pages"}), tmp_path)
    assert ids == [0, 1, 2, 6]


ENDS: list[Answer] = [
    NOTHING,
    as_json({"data": {"items": None}}),
    as_json({"data": {"items": {}}}),
    as_json({"data": {"items": [{}]}}),
    as_json({"data": {"items": [None, None]}}),
    as_json({"data": None}),
    as_json({"data": {}}),
    as_json({}),
    as_json(None),
    as_json([]),
    Answer(b"", 204),
    Answer(b"no such page", 404),
    Answer(b"", 416),
]


@pytest.mark.parametrize(
    ("kind", "end"),
    # Of a cursor, a 404 is an error: the API itself has named that page.
    [
        (kind, end)
        for kind in ("offset", "page_number", "cursor")
        for end in ENDS
        if kind != "cursor" or end.status < 400
    ],
)
def test_an_empty_answer_ends_the_paging(
    server: Server, tmp_path: Path, kind: str, end: Answer
) -> None:
    def respond(asked: Asked) -> Answer:
        after = {"": 0, "b": 3}.get(asked.query.get("after", ""), 6)
        number = int(asked.query.get("page", 1)) - 1
        first = int(asked.query.get("offset", 0)) + 3 * number + after
        return end if first == 6 else page(ITEMS[first : first + 3], next="b" if not first else "c")

    server.respond = respond
    paging = {"offset": OFFSETS, "page_number": PAGES, "cursor": CURSORS}[kind]
    assert read(listed(server, kind, paging), tmp_path) == ([0, 1, 2, 3, 4, 5], "")
    assert len(server.asked) == 3


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.status}-{end.body.decode()}")
def test_an_empty_first_answer_is_an_error(server: Server, tmp_path: Path, end: Answer) -> None:
    server.respond = lambda asked: end
    with pytest.raises(SourceError, match=r"no records|answers 4"):
        read(listed(server, "offset", OFFSETS), tmp_path)


@pytest.mark.parametrize("status", [400, 410, 422])
def test_a_refusal_that_may_be_the_end_or_a_limit_tells_what_to_declare(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.respond = lambda asked: (
        page(ITEMS[:3]) if asked.query["offset"] == "0" else Answer(b"", status)
    )
    with pytest.raises(SourceError, match=rf"answers {status}(?s:.*)declare how many there are"):
        read(listed(server, "offset", OFFSETS), tmp_path)


@pytest.mark.parametrize("kind", ["offset", "page_number"])
def test_an_api_that_leaves_out_false_ends_with_the_first_empty_page(
    server: Server, tmp_path: Path, kind: str
) -> None:
    def respond(asked: Asked) -> Answer:
        first = int(asked.query.get("offset", (int(asked.query.get("page", 1)) - 1) * 3))
        return page(ITEMS[first : first + 3], **({"more": True} if first + 3 < 7 else {}))

    server.respond = respond
    paging = (OFFSETS if kind == "offset" else PAGES) | {"has_more_path": "more"}
    assert read(listed(server, kind, paging), tmp_path) == (list(range(7)), "")
    assert len(server.asked) == 4
    server.respond = lambda asked: page(ITEMS)  # never said: a wrong path
    with pytest.raises(SourceError, match="nothing at more"):
        read(listed(server, kind, paging), tmp_path)


@pytest.mark.parametrize(
    ("records", "path", "said"),
    [
        ({"items": ITEMS}, "data", "the only record holds a list of 7 at 'items'"),
        ({"items": ITEMS}, "", "the only record holds a list of 7 at 'data.items'"),
        ({"items": [{"node": i} for i in ITEMS]}, "data.items", "object of its own, named 'node'"),
        ({"items": [{"node": i} for i in ITEMS]}, "data.items[*].node", ""),
        ({"items": [{"id": 1, "tags": ["a", "b"]}]}, "data.items", ""),
        ({"items": [{"id": n} for n in range(3)]}, "data.items", ""),
    ],
)
def test_records_that_lie_deeper_than_the_path_goes_are_told(
    server: Server, tmp_path: Path, records: Any, path: str, said: str
) -> None:
    server.respond = lambda asked: as_json({"data": records})
    copy, _ = rest.fetch(RestList(server.url, "t", records=path), folder=tmp_path)
    noted = " ".join(copy.facts["notes"])
    assert (said in noted) if said else not noted


def test_items_that_are_no_objects_among_others_stay_to_be_counted(
    server: Server, tmp_path: Path
) -> None:
    server.respond = lambda asked: page([{"id": 1}, None, {}, 7, "x"])
    copy, _ = rest.fetch(listed(server, "single", {}), folder=tmp_path)
    assert copy.path.read_text().splitlines() == ['"x"', "7", "null", '{"id":1}', "{}"]


@pytest.mark.parametrize(
    ("kind", "paging", "param"),
    [
        ("page_number", PAGES | {"page_param": "p"}, "p"),
        ("offset", OFFSETS | {"offset_param": "start"}, "start"),
    ],
)
@pytest.mark.parametrize("pages", [1, 2])
def test_a_page_that_was_there_before_ends_the_paging_and_is_told(
    server: Server, tmp_path: Path, kind: str, paging: dict[str, Any], param: str, pages: int
) -> None:
    """A server that does not know the parameter, or gives its last page again past the end."""

    def respond(asked: Asked) -> Answer:
        place = min(len(server.asked), pages) - 1
        return page(ITEMS[3 * place : 3 * place + 3])

    server.respond = respond
    ids, noted = read(listed(server, kind, paging), tmp_path)
    assert ids == list(range(3 * pages))
    assert f"page {pages + 1} is the same as one before" in noted
    assert f"'{param}'" in noted


def test_a_repeated_page_short_of_the_total_is_an_error(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: page(ITEMS[:3], total=7)
    with pytest.raises(SourceError) as caught:
        read(listed(server, "offset", OFFSETS | {"total_path": "total"}), tmp_path)
    assert "declares 7 records, 3 arrived; page 2 is the same as one before" in str(caught.value)
    assert "'offset'" in str(caught.value)


def test_a_repeated_cursor_with_an_empty_page_is_the_end(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: page([] if "after" in asked.query else ITEMS, next="same")
    assert read(listed(server, "cursor", CURSORS), tmp_path) == (list(range(7)), "")
    assert len(server.asked) == 2


@pytest.mark.parametrize("kind", ["cursor", "json_link"])
def test_an_empty_page_with_a_new_cursor_is_followed_for_a_while(
    server: Server, tmp_path: Path, kind: str
) -> None:
    def respond(asked: Asked) -> Answer:
        number = int(asked.query.get("after", "0"))
        following = str(number + 1) if kind == "cursor" else f"?after={number + 1}"
        return page({0: ITEMS[:3], 2: ITEMS[3:]}.get(number, []), next=following)

    server.respond = respond
    paging = CURSORS if kind == "cursor" else {"next_url_path": "next"}
    ids, noted = read(listed(server, kind, paging), tmp_path)
    assert ids == list(range(7))
    assert "10 empty pages in a row" in noted


def test_a_link_to_the_same_page_is_a_circle(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: page(ITEMS, next="/t?a=1")
    with pytest.raises(SourceError, match="in circles"):
        read(listed(server, "json_link", {"next_url_path": "next"}), tmp_path)


@pytest.mark.parametrize("end", [None, "", False])
@pytest.mark.parametrize("link", ["?from=3", "/t?from=3", "t?from=3", "{url}/t?from=3"])
def test_a_link_may_be_relative_and_end_in_any_spelling(
    server: Server, tmp_path: Path, link: str, end: Any
) -> None:
    server.respond = lambda asked: (
        page(ITEMS[3:], next=end)
        if "from" in asked.query
        else page(ITEMS[:3], next=link.format(url=server.url))
    )
    assert read(listed(server, "json_link", {"next_url_path": "next"}), tmp_path)[0] == list(
        range(7)
    )


@pytest.mark.parametrize(
    ("kind", "paging", "answer"),
    [
        ("single", {}, page(ITEMS, next="/t?page=2")),
        ("single", {}, page(ITEMS, has_more=True)),
        ("single", {}, as_json({"data": {"items": ITEMS}}, Link='</t?p=2>; rel="next"')),
        ("single", {}, as_json({"data": {"items": ITEMS}}, X_Total_Count="8")),
        ("single", {}, page(ITEMS, total=8)),
        ("single", {}, page(ITEMS, meta={"totalCount": "8"})),
        ("single", {}, page(ITEMS, links={"next": "/t?page=2"})),
        ("single", {}, page(ITEMS, **{"@odata.nextLink": "/t?page=2"})),
        ("cursor", CURSORS | {"cursor_path": "nxt"}, page(ITEMS, next_cursor="b")),
        ("link_header", {"links_next_key": "nxt"}, page(ITEMS, next="/t?page=2")),
    ],
)
def test_further_pages_that_nobody_reads_are_told(
    server: Server, tmp_path: Path, kind: str, paging: dict[str, Any], answer: Answer
) -> None:
    server.respond = lambda asked: answer
    ids, noted = read(listed(server, kind, paging), tmp_path)
    assert ids == list(range(7))
    assert "further pages" in noted
    assert "pagination" in noted


@pytest.mark.parametrize("more", [{"total": 7}, {"total": None}, {"total": "many"}, {"next": ""}])
def test_an_answer_that_is_whole_is_not_said_to_go_on(
    server: Server, tmp_path: Path, more: dict[str, Any]
) -> None:
    server.respond = lambda asked: page(ITEMS, meta=more, **more)
    assert read(listed(server, "single", {}), tmp_path)[1] == ""


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
