"""Bodies per style and output mode, rows out of answers, and finding out what a server can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import EndpointError, UsageError
from synth_assets.llm import Endpoint, Ledger, build_body, items_of, output_mode
from synth_assets.llm.formats import Items
from synth_assets.llm.plain_list import read_plain_list
from synth_assets.llm.salvage import salvage_json_list
from tests.llm_support import endpoint_of, run
from tests.openai_server import FaultAction, running_server

SCHEMA = {"type": "object", "properties": {"rows": {"type": "array"}}}
rows = st.lists(
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none(), max_size=3
    )
    | st.text(max_size=12),
    max_size=5,
)


@given(rows, st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_any_prefix_of_a_document_yields_a_prefix_of_its_rows(
    truth: list[Any], wrapped: bool, data: st.DataObject
) -> None:
    document = json.dumps({"note": [1, {"a": "]"}][1], "rows": truth} if wrapped else truth)
    end = data.draw(st.integers(0, len(document)))
    items, complete = salvage_json_list(document[:end])
    assert items == truth[: len(items)]
    assert not complete or items == truth


@given(rows, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_whole_document_yields_all_rows(truth: list[Any], ascii_only: bool) -> None:
    document = json.dumps({"rows": truth}, ensure_ascii=ascii_only, indent=1)
    assert salvage_json_list(document) == (truth, True)


@given(st.text(alphabet='[]{}":,\\ab1 -\n', max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_survived(text: str) -> None:
    items, _ = salvage_json_list(text)
    assert isinstance(items, list)
    assert all(line.strip() for line in read_plain_list(text, cut=True).rows)


@pytest.mark.parametrize(
    ("text", "items", "complete"),
    [
        ('Sure, see [1]:\n```json\n{"rows": ["a", "b"]}\n```', ["a", "b"], True),
        ('{"rows": [{"text": "a"}, {"text": "b', [{"text": "a"}], False),
        ('["a", "b', ["a"], False),
        ("[1, 2", [1], False),
        ('[{"a": 1} {"b": 2}]', [], False),
        ('["a", nonsense, "b"]', ["a"], False),
        ("[NaN]", [], False),
        ('["a line\nbreak"]', ["a line\nbreak"], True),
        (r'["half \ud800"]', ["half "], True),
        ('{"text": "no list"}', [], False),
        ("no json at all", [], False),
        ("[" * 100_000, [], False),
        ("[" + "9" * 10_000 + "]", [], False),
    ],
    ids=range(13),
)
def test_lists_are_salvaged(text: str, items: list[Any], complete: bool) -> None:
    assert salvage_json_list(text) == (items, complete)


@pytest.mark.parametrize(
    ("text", "cut", "expected"),
    [
        ("- a\n* b\n1. c\n2) d\n(3) e\n\u2022 f", False, ["a", "b", "c", "d", "e", "f"]),
        ("- a\n- b\n", True, ["a", "b"]),
        ("- a\n-\n- \n\n- b\r\n", False, ["a", "b"]),
        (
            "- 3.5 l of oil\n- -5 degrees\n- 10.5 bar",
            False,
            ["3.5 l of oil", "-5 degrees", "10.5 bar"],
        ),
        ("", True, []),
    ],
    ids=range(5),
)
def test_plain_lists_lose_their_marks_and_a_cut_line(
    text: str, cut: bool, expected: list[str]
) -> None:
    assert read_plain_list(text, cut=cut).rows == expected


def test_a_base_model_gets_a_text_to_continue() -> None:
    body = build_body(
        style="continue", mode="list", model="m", user="- a\n-", sampling={"max_tokens": 9}, seed=4
    )
    assert body == {"model": "m", "prompt": "- a\n-", "max_tokens": 9, "seed": 4}


@pytest.mark.parametrize("mode", ["json_schema", "json_object", "tool", "list"])
def test_each_mode_asks_in_its_own_way(mode: Any) -> None:
    body = build_body(style="chat", mode=mode, model="m", user="u", system="s", schema=SCHEMA)
    words = body["messages"][0]["content"]
    assert body["messages"][-1] == {"role": "user", "content": "u"}
    assert body.get("response_format", {}).get("type") == (mode if "json" in mode else None)
    assert ("tools" in body) == (mode == "tool")
    assert ("JSON" in words) == (mode == "json_object")
    assert ("plain list" in words) == (mode == "list")


def test_sampling_cannot_replace_what_is_asked() -> None:
    with pytest.raises(UsageError, match="messages, seed"):
        build_body(
            style="chat", mode="list", model="m", user="u", sampling={"messages": [], "seed": 1}
        )


def test_a_cut_answer_is_never_called_complete() -> None:
    assert items_of('{"rows": ["a"]}', "json_schema", cut=True) == Items(["a"], False)
    assert items_of("- a\n- b", "list", cut=True) == Items(["a"], False)
    assert items_of(None, "list", cut=False) == Items([], False)


def found_mode(endpoint: Endpoint, path: Path, **options: Any) -> str:
    async def find() -> str:
        with Ledger.open(path) as ledger:
            mode: str = await output_mode(endpoint=endpoint, ledger=ledger, **options)
            return mode

    mode: str = run(find())
    return mode


@pytest.mark.parametrize(
    ("can", "mode"),
    [
        ({}, "json_schema"),
        ({"structured": False}, "json_object"),
        ({"structured": False, "json_mode": False}, None),
    ],
    ids=str,
)
def test_the_best_mode_of_a_server_is_found_once(
    can: dict[str, bool], mode: str | None, tmp_path: Path
) -> None:
    with running_server(**can) as server:
        endpoint = endpoint_of(server)
        first = found_mode(endpoint, tmp_path / "ledger.sqlite")
        asked = server.request_count
        again = found_mode(endpoint, tmp_path / "ledger.sqlite")
        assert server.request_count == asked
    assert first == again
    assert first == mode or (mode is None and first in ("tool", "list"))


def test_a_server_that_ignores_the_format_is_noticed(tmp_path: Path) -> None:
    with running_server(fault=lambda _: FaultAction("malformed")) as server:
        assert found_mode(endpoint_of(server), tmp_path / "ledger.sqlite") == "list"


def test_a_refusal_of_something_else_is_not_taken_for_a_missing_format(tmp_path: Path) -> None:
    refusal = FaultAction("status", status=400, message="temperature must be below 2")
    with running_server(fault=lambda _: refusal) as server:
        with pytest.raises(EndpointError, match="temperature must be below 2"):
            found_mode(endpoint_of(server), tmp_path / "ledger.sqlite")
        assert server.request_count == 1


def test_a_mode_asked_by_name_is_not_probed(tmp_path: Path) -> None:
    with running_server() as server:
        path = tmp_path / "ledger.sqlite"
        assert found_mode(endpoint_of(server), path, wanted="tool") == "tool"
        assert server.request_count == 0
