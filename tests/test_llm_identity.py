"""Request identity: every ingredient counts, and nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.llm.identity import Request

SCHEMA = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "text": {"type": "string", "minLength": 1}},
    "required": ["why", "text"],
}
BODY: dict[str, Any] = {
    "model": "some-model",
    "messages": [
        {"role": "system", "content": "You write work orders."},
        {"role": "user", "content": "Three about a pump, please: \u00e9"},
    ],
    "temperature": 0.7,
    "top_p": 1.0,
    "max_tokens": 256,
    "stop": ["\n\n"],
    "seed": 3,
    "response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}},
}
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.text(max_size=20),
    st.floats(allow_nan=False, allow_infinity=False),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.dictionaries(st.text(max_size=8), trees, max_size=5)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every leaf."""
    if isinstance(value, dict):
        return [path for key, inner in value.items() for path in paths(inner, (*at, key))]
    if isinstance(value, list):
        return [path for key, inner in enumerate(value) for path in paths(inner, (*at, key))]
    return [at]


def with_leaf(body: dict[str, Any], path: tuple[Any, ...], leaf: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    holder: Any = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = leaf
    return changed


def reversed_members(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_members(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reversed_members(item) for item in value]
    return value


def id_of(body: dict[str, Any], **changes: Any) -> str:
    fields: dict[str, Any] = {"kind": "chat", "endpoint": "here", "sample": 0} | changes
    return Request(body=body, **fields).request_id


@pytest.mark.parametrize("path", paths(BODY), ids=str)
def test_a_change_of_any_leaf_of_the_body_is_another_request(path: tuple[Any, ...]) -> None:
    assert id_of(with_leaf(BODY, path, "other")) != id_of(BODY)
    assert id_of(with_leaf(BODY, path, None)) != id_of(BODY)


@pytest.mark.parametrize("key", BODY)
def test_a_missing_member_is_another_request(key: str) -> None:
    assert id_of({name: value for name, value in BODY.items() if name != key}) != id_of(BODY)


@pytest.mark.parametrize(
    "change", [{"kind": "completion"}, {"endpoint": "there"}, {"sample": 1}], ids=str
)
def test_kind_endpoint_and_sample_are_ingredients(change: dict[str, Any]) -> None:
    assert id_of(BODY, **change) != id_of(BODY)


@given(bodies, st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_leaf_misses(body: dict[str, Any], data: st.DataObject) -> None:
    places = [path for path in paths(body) if path]
    if not places:
        return
    changed = with_leaf(body, data.draw(st.sampled_from(places)), data.draw(scalars))
    same = json.dumps(numbers_plain(changed), sort_keys=True) == json.dumps(
        numbers_plain(body), sort_keys=True
    )
    assert (id_of(changed) == id_of(body)) == same


@given(bodies)
@settings(max_examples=150, deadline=None)
def test_the_order_of_members_does_not_count(body: dict[str, Any]) -> None:
    ordered = {key: value for key, value in body.items() if key not in ("tools", "functions")}
    assert id_of(reversed_members(ordered)) == id_of(ordered)


def test_the_order_of_schema_properties_counts_because_models_write_in_that_order() -> None:
    schema = SCHEMA | {"properties": reversed_members(SCHEMA["properties"])}
    other = copy.deepcopy(BODY)
    other["response_format"]["json_schema"]["schema"] = schema
    assert id_of(other) != id_of(BODY)
    reordered = {key: BODY[key] for key in reversed(BODY)}
    assert id_of(reordered) == id_of(BODY)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0, -0.0),
        (0.0, -0.0),
        (2.5, 2.50),
        (10**15, 1e15),
        ([1.0], [1]),
        ({"a": 2.0}, {"a": 2}),
    ],
    ids=str,
)
def test_the_spelling_of_a_number_does_not_count(one: Any, other: Any) -> None:
    assert id_of({"x": one}) == id_of({"x": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (0, False), (1, "1"), ("1.0", "1"), (None, "null"), ("a1.0,", "a1,"), (1.0, 1.5)],
    ids=str,
)
def test_values_that_look_alike_are_kept_apart(one: Any, other: Any) -> None:
    assert id_of({"x": one}) != id_of({"x": other})


def test_text_is_compared_as_the_bytes_that_are_sent() -> None:
    assert id_of({"x": "\u00e9"}) != id_of({"x": "e\u0301"})
    assert id_of({"x": "a "}) != id_of({"x": "a"})


def test_the_note_of_the_caller_is_no_ingredient() -> None:
    plain = Request("chat", "here", BODY)
    noted = Request("chat", "here", BODY, tag=("cell", 3))
    assert noted == plain
    assert len({noted, plain}) == 1


def test_the_id_is_stable_across_versions_of_the_program() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1.0}
    canonical = (
        '{"body":{"messages":[{"content":"hi","role":"user"}],"model":"m","temperature":1},'
        '"endpoint":"http://host/v1","kind":"chat","property_order":[],"sample":0,"version":1}'
    )
    known = "10872e1f736d"
    assert hashlib.sha256(canonical.encode()).hexdigest().startswith(known)
    assert Request("chat", "http://host/v1", body).request_id.startswith(known)


@pytest.mark.parametrize(
    "leaf", ["\ud800", 2**70, {1: 2}, object()], ids=["surrogate", "huge", "member", "object"]
)
def test_what_is_no_json_is_refused(leaf: Any) -> None:
    with pytest.raises(ValueError, match="plain JSON"):
        id_of({"x": leaf})


def numbers_plain(value: Any) -> Any:
    """Reference: whole floats as integers, as another JSON reader would see them."""
    if isinstance(value, dict):
        return {key: numbers_plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value
