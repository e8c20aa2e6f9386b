"""The test server keeps the promises that other tests lean on."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import jsonschema
import openai
import orjson
import pytest
from pydantic import SecretStr

from synth_assets.llm import Endpoint, Ledger, output_mode
from tests.openai_server import FaultAction, RequestInfo, ServerState, running_server, schedule
from tests.openai_server import grammar as rows_of

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = (
    "replace radiator hose lower", "radiator leaking coolant", "fan belt broken on radiator",
    "clean radiator core 3 times", "coolant hose clamp loose", "top up coolant 20 litres",
    "radiator cap faulty", "fan motor not turning",
)  # fmt: skip
PROMPT = "Real examples:\n" + "".join(f"- {row}\n" for row in EXAMPLES)
ROWS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "minItems": 12,
            "maxItems": 12,
            "items": {"$ref": "#/$defs/row"},
        }
    },
    "required": ["rows"],
    "additionalProperties": False,
    "$defs": {
        "row": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "maxLength": 40},
                "label": {"enum": ["Radiator", "Engine"]},
                "hours": {"type": "integer", "minimum": 2, "maximum": 5},
                "cost": {"type": "number", "exclusiveMinimum": 0},
                "note": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 60}]},
                "urgent": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
            "required": ["text", "label", "hours", "cost", "note", "urgent", "tags"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture
def server() -> Iterator[ServerState]:
    with running_server() as running:
        yield running


def client(server: ServerState, **options: Any) -> openai.AsyncOpenAI:
    given: dict[str, Any] = {
        "base_url": server.base_url,
        "api_key": "test-key",
        "max_retries": 0,
        "timeout": 10,
    }
    return openai.AsyncOpenAI(**(given | options))


def exchanged(
    server: ServerState, method: str, path: str, data: bytes | None = None
) -> tuple[int, bytes]:
    """Status and raw body of one request, without the client's help."""
    connection = http.client.HTTPConnection(server.base_url.split("/")[2], timeout=10)
    connection.request(method, path, body=data, headers={"Authorization": "Bearer test-key"})
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def chat(server: ServerState, prompt: str = PROMPT, **body: Any) -> Any:
    options = body.pop("options", {})

    async def ask() -> Any:
        async with client(server, **options) as asking:
            return await asking.chat.completions.create(
                **{"model": "test-model", "messages": [{"role": "user", "content": prompt}]} | body
            )

    return asyncio.run(ask())


def complete(server: ServerState, prompt: str, **body: Any) -> Any:
    async def ask() -> Any:
        async with client(server) as asking:
            return await asking.completions.create(
                **{"model": "test-model", "prompt": prompt} | body
            )

    return asyncio.run(ask())


def by_schema(schema: dict[str, Any]) -> dict[str, Any]:
    wanted = {"name": "rows", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": wanted}


def made(count: int, seed: int = 1) -> list[str]:
    rows = rows_of.rows(rows_of.read_prompt(PROMPT), seed=seed)
    return [next(rows) for _ in range(count)]


def jaccard(left: str, right: str) -> float:
    grams = [{text[at : at + 3] for at in range(len(text) - 2)} for text in (left, right)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_models_are_listed() -> None:
    with running_server(models=("a", "b")) as server:

        async def names() -> list[str]:
            async with client(server) as asking:
                return [model.id async for model in asking.models.list()]

        assert asyncio.run(names()) == ["a", "b"]


def test_a_plain_chat_answer_is_a_list_of_the_rows_asked_for(server: ServerState) -> None:
    text = chat(server, PROMPT + "\nWrite 5 more texts.").choices[0].message.content
    assert len(text.split("\n")) == 5
    assert all(line.startswith("- ") for line in text.split("\n"))


def test_json_mode_answers_rows_with_text(server: ServerState) -> None:
    answer = chat(server, response_format={"type": "json_object"})
    rows = json.loads(answer.choices[0].message.content)["rows"]
    assert len(rows) == 8
    assert all(set(row) == {"text"} for row in rows)


def test_a_structured_answer_satisfies_its_schema(server: ServerState) -> None:
    answer = chat(server, response_format=by_schema(ROWS_SCHEMA))
    jsonschema.validate(json.loads(answer.choices[0].message.content), ROWS_SCHEMA)


def test_a_recursive_schema_ends(server: ServerState) -> None:
    node = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    schema = {"type": "object", "properties": {"next": node}, "required": ["next"]}
    answer = chat(server, response_format=by_schema(schema))
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


def test_the_number_in_the_text_counts_where_the_schema_leaves_room(server: ServerState) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 50}
    answer = chat(server, "Write 17 rows.", response_format=by_schema(schema))
    assert len(json.loads(answer.choices[0].message.content)) == 17


def test_an_answer_depends_on_the_request_alone_and_not_on_its_turn(server: ServerState) -> None:
    async def ask(seeds: list[int]) -> dict[int, str]:
        async with client(server) as asking:
            answers = await asyncio.gather(
                *(
                    asking.chat.completions.create(
                        model="test-model",
                        messages=[{"role": "user", "content": PROMPT}],
                        seed=seed,
                    )
                    for seed in seeds
                )
            )
        return {seed: a.model_dump_json() for seed, a in zip(seeds, answers, strict=True)}

    first = asyncio.run(ask(list(range(20))))
    assert asyncio.run(ask(list(range(20))[::-1])) == first
    assert len(set(first.values())) == 20


def test_a_token_limit_cuts_the_answer_and_says_length(server: ServerState) -> None:
    choice = chat(server, max_tokens=10).choices[0]
    assert choice.finish_reason == "length"
    assert len(choice.message.content) == 40


def test_usage_grows_with_the_texts(server: ServerState) -> None:
    short, long = chat(server, max_tokens=5).usage, chat(server, PROMPT * 2).usage
    assert short.completion_tokens == 5
    assert long.prompt_tokens > short.prompt_tokens
    assert long.total_tokens == long.prompt_tokens + long.completion_tokens


def test_a_completion_continues_an_open_list(server: ServerState) -> None:
    choice = complete(server, PROMPT + "-", max_tokens=400).choices[0]
    first, *others = choice.text.split("\n")
    assert first.startswith(" ")
    assert len(others) >= 7
    assert all(line.startswith("- ") for line in others)
    assert choice.finish_reason == "stop"


def test_a_completion_continues_a_numbered_list(server: ServerState) -> None:
    prompt = "".join(f"{at}. {row}\n" for at, row in enumerate(EXAMPLES, 1)) + "9."
    lines = complete(server, prompt, max_tokens=200).choices[0].text.split("\n")
    assert lines[1].startswith("10. ")


def test_a_completion_cut_by_its_token_limit_says_length(server: ServerState) -> None:
    choice = complete(server, PROMPT + "-", max_tokens=20).choices[0]
    assert (choice.finish_reason, len(choice.text)) == ("length", 80)


def test_a_stop_sequence_ends_a_completion(server: ServerState) -> None:
    choice = complete(server, PROMPT + "-", max_tokens=400, stop=["\n"]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.text.strip()
    assert "\n" not in choice.text


def test_rows_use_the_words_of_the_examples() -> None:
    known = {word for row in EXAMPLES for word in row.split()}
    shares = [len(set(row.split()) & known) / len(set(row.split())) for row in made(300)]
    assert sum(shares) / len(shares) > 0.6


def test_most_rows_are_distinct_and_no_near_copy_of_an_example() -> None:
    rows = made(400)
    new = [row for row in dict.fromkeys(rows) if max(jaccard(row, e) for e in EXAMPLES) < 0.8]
    assert len(new) > 0.8 * len(rows)


def test_about_one_row_in_twelve_is_an_exact_copy() -> None:
    rows = made(2_000)
    examples = sum(row in EXAMPLES for row in rows)
    repeated = len(rows) - len(set(rows))
    assert 0.03 < examples / len(rows) < 0.09
    assert repeated > 0.05 * len(rows)


def test_a_list_of_rules_does_not_become_rows() -> None:
    rules = "Rules:\n" + "".join(f"- rule number {at} of them\n" for at in range(20))
    assert rows_of.read_prompt(rules + "\n" + PROMPT).examples == EXAMPLES


def test_a_prompt_without_a_list_still_gives_rows(server: ServerState) -> None:
    assert chat(server, "hm").choices[0].message.content.count("\n") == 7


def test_a_wrong_key_is_refused_and_no_key_is_recorded(server: ServerState) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        chat(server, options={"api_key": "sk-planted"})
    assert caught.value.code == "invalid_api_key"
    assert len(server.requests) == 1
    assert "sk-planted" not in repr(server.requests)


def test_an_unknown_model_is_not_found(server: ServerState) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, model="other")
    assert caught.value.code == "model_not_found"


def test_a_server_without_structured_output_names_response_format() -> None:
    with running_server(structured=False) as server:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, response_format=by_schema(ROWS_SCHEMA))
        assert caught.value.param == "response_format"
        assert chat(server, response_format={"type": "json_object"}).choices


def test_broken_json_is_a_bad_request(server: ServerState) -> None:
    status, body = exchanged(server, "POST", "/v1/chat/completions", b'{"model": ')
    assert status == 400
    assert "parse" in json.loads(body)["error"]["message"]


def test_requests_are_counted_by_the_hash_of_path_and_canonical_body(server: ServerState) -> None:
    chat(server)
    chat(server)
    recorded = server.requests[0]
    canonical = orjson.dumps(recorded.body, option=orjson.OPT_SORT_KEYS)
    identity = hashlib.sha256(b"/v1/chat/completions\n" + canonical).hexdigest()
    assert server.successes_by_identity == {identity: 2}
    assert server.stats()["repeated_successes"] == 1
    assert [info.attempt for info in server.requests] == [1, 2]
    server.reset()
    assert (server.requests, server.stats()["requests"]) == ([], 0)


STATUS_ERRORS = {
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
    408: openai.APIStatusError,
}


@pytest.mark.parametrize("status", STATUS_ERRORS)
def test_a_status_fault_reaches_the_client_as_its_error(status: int) -> None:
    action = FaultAction("status", status=status, headers={"Retry-After": "7"})
    with running_server(fault=lambda _: action) as server:
        with pytest.raises(STATUS_ERRORS[status]) as caught:
            chat(server)
        assert caught.value.status_code == status
        assert caught.value.response.headers["retry-after"] == "7"
        assert server.stats()["successes"] == 0


def test_a_reset_breaks_the_connection() -> None:
    with running_server(fault=lambda _: FaultAction("reset")) as server:
        with pytest.raises(openai.APIConnectionError):
            chat(server)
        assert server.stats()["by_fault"] == {"reset": 1}


def test_a_stall_runs_into_the_clients_timeout() -> None:
    with (
        running_server(fault=lambda _: FaultAction("stall", seconds=60)) as server,
        pytest.raises(openai.APITimeoutError),
    ):
        chat(server, options={"timeout": 0.3})


def test_a_slow_body_is_still_a_good_answer() -> None:
    with running_server(fault=lambda _: FaultAction("slow_body", seconds=0.1)) as server:
        assert chat(server).choices[0].message.content
        assert server.stats()["successes"] == 1


def test_an_html_page_is_no_json() -> None:
    with running_server(fault=lambda _: FaultAction("html", status=502)) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            chat(server)
        assert "<html>" in caught.value.response.text


@pytest.mark.parametrize("kind", ["broken_body", "invalid_utf8"])
def test_a_spoiled_body_cannot_be_decoded(kind: Any) -> None:
    with running_server(fault=lambda _: FaultAction(kind)) as server:
        asked = {"model": "test-model", "messages": [{"role": "user", "content": PROMPT}]}
        _, raw = exchanged(server, "POST", "/v1/chat/completions", orjson.dumps(asked))
        with pytest.raises(ValueError, match=r"utf-8|Unterminated|Expecting"):
            json.loads(raw.decode())
        assert server.stats()["successes"] == 0


@pytest.mark.parametrize(
    ("kind", "finish"),
    [("malformed", "stop"), ("length", "length"), ("empty", "stop"), ("refusal", "stop")],
)
def test_a_content_fault_leaves_no_json_to_use(kind: Any, finish: str) -> None:
    with running_server(fault=lambda _: FaultAction(kind)) as server:
        choice = chat(server, response_format=by_schema(ROWS_SCHEMA)).choices[0]
        assert choice.finish_reason == finish
        with pytest.raises(json.JSONDecodeError):
            json.loads(choice.message.content or "")
        assert bool(choice.message.refusal) == (kind == "refusal")
        assert (server.stats()["successes"], server.stats()["answers"]) == (0, 1)


def test_a_filtered_answer_says_content_filter() -> None:
    with running_server(fault=lambda _: FaultAction("content_filter")) as server:
        assert chat(server).choices[0].finish_reason == "content_filter"
        assert complete(server, PROMPT).choices[0].text == ""


def test_a_wrong_schema_is_valid_json_of_another_shape() -> None:
    with running_server(fault=lambda _: FaultAction("wrong_schema")) as server:
        answer = chat(server, response_format=by_schema(ROWS_SCHEMA))
        value = json.loads(answer.choices[0].message.content)
        assert not jsonschema.Draft202012Validator(ROWS_SCHEMA).is_valid(value)


def test_duplicates_repeat_the_first_row() -> None:
    with running_server(fault=lambda _: FaultAction("duplicates")) as server:
        answer = chat(server, response_format={"type": "json_object"})
        rows = json.loads(answer.choices[0].message.content)["rows"]
        assert len(rows) == 8
        assert all(row == rows[0] for row in rows)
        lines = chat(server).choices[0].message.content.split("\n")
        assert len(lines) == 8
        assert len(set(lines)) == 1


def info(identity: str, attempt: int, index: int = 0) -> RequestInfo:
    return RequestInfo("/v1/completions", {}, {}, identity, attempt, index)


def test_a_schedule_depends_on_seed_identity_and_attempt_alone() -> None:
    rates = {"429": 0.2, "reset": 0.2, "length": 0.2}
    asked = [info(f"{at:x}", attempt) for at in range(200) for attempt in (1, 2)]
    one = [schedule(3, rates)(request) for request in asked]
    later = schedule(3, rates)
    assert [later(request) for request in asked[::-1]] == one[::-1]
    assert [schedule(4, rates)(request) for request in asked] != one
    assert any(a != b for a, b in zip(one[::2], one[1::2], strict=True))


def test_a_schedule_keeps_its_rates() -> None:
    hook = schedule(0, {"500": 0.1, "malformed": 0.05})
    struck = [hook(info(f"{at:x}", 1)) for at in range(4_000)]
    assert 340 < sum(a is not None and a.kind == "status" for a in struck) < 460
    assert 150 < sum(a is not None and a.kind == "malformed" for a in struck) < 250


@pytest.mark.parametrize("rates", [{"nonsense": 0.1}, {"500": 0.7, "429": 0.7}, {"429": -0.1}])
def test_an_impossible_schedule_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fault"):
        schedule(0, rates)


def test_it_runs_as_its_own_process_and_ends_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "port"
    command = [sys.executable, "-m", "tests.openai_server", "--ready-file", str(ready)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--faults", '{"500": 1.0}'], env=environment) as process:
        try:
            deadline = time.monotonic() + 30
            while not ready.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            state = ServerState(base_url=f"http://127.0.0.1:{ready.read_text()}/v1")
            with pytest.raises(openai.InternalServerError):
                chat(state)
            stats = json.loads(exchanged(state, "GET", "/__stats")[1])
            assert stats["by_status"] == {"500": 1}
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


# -- forced tools, and faults that came later ----------------------------------------------------


def by_tool(schema: dict[str, Any], **changes: Any) -> dict[str, Any]:
    function = {"name": "rows", "parameters": schema, "strict": True}
    choice = {"type": "function", "function": {"name": "rows"}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": choice} | changes


@pytest.mark.parametrize(
    ("choice", "finish"),
    [({"type": "function", "function": {"name": "rows"}}, "stop"), ("required", "tool_calls")],
)
def test_a_forced_tool_is_called_with_arguments_that_fit(
    server: ServerState, choice: Any, finish: str
) -> None:
    answer = chat(server, **by_tool(ROWS_SCHEMA, tool_choice=choice)).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.message.content, answer.finish_reason) == (None, finish)
    assert (call.type, call.function.name) == ("function", "rows")
    jsonschema.validate(json.loads(call.function.arguments), ROWS_SCHEMA)


def test_a_tool_that_is_not_forced_is_not_called(server: ServerState) -> None:
    message = chat(server, **by_tool(ROWS_SCHEMA, tool_choice="auto")).choices[0].message
    assert message.content
    assert message.tool_calls is None


@pytest.mark.parametrize(
    "fault", ["malformed", "length", "empty", "wrong_schema", "refusal", "content_filter"]
)
def test_content_faults_spoil_the_arguments_of_a_tool(fault: Any) -> None:
    with running_server(fault=lambda _: FaultAction(fault)) as server:
        message = chat(server, **by_tool(ROWS_SCHEMA)).choices[0].message
        calls = message.tool_calls
        if fault in ("refusal", "content_filter"):
            assert calls is None
            assert bool(message.refusal) == (fault == "refusal")
        else:
            with pytest.raises((ValueError, jsonschema.ValidationError)):
                jsonschema.validate(json.loads(calls[0].function.arguments), ROWS_SCHEMA)


def test_bad_bytes_reach_the_arguments_of_a_tool() -> None:
    with running_server(fault=lambda _: FaultAction("invalid_utf8")) as server:
        asked = {"model": "test-model", "messages": [{"role": "user", "content": PROMPT}]}
        body = orjson.dumps(asked | by_tool(ROWS_SCHEMA))
        _, raw = exchanged(server, "POST", "/v1/chat/completions", body)
        with pytest.raises(UnicodeDecodeError):
            raw.decode()


@pytest.mark.parametrize(
    ("cannot", "body", "named"),
    [
        ("structured", {"response_format": by_schema(ROWS_SCHEMA)}, "response_format"),
        ("json_mode", {"response_format": {"type": "json_object"}}, "response_format"),
        ("tools", by_tool(ROWS_SCHEMA), "tools"),
    ],
)
def test_every_way_to_ask_for_structure_can_be_refused(
    cannot: str, body: dict[str, Any], named: str
) -> None:
    with running_server(**{cannot: False}) as server:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, **body)
        assert caught.value.param == named
        assert chat(server).choices


def test_retry_after_may_be_a_date() -> None:
    hook = schedule(0, {"429_retry_after_date": 1.0}, retry_after="30")
    with running_server(fault=hook) as server, pytest.raises(openai.RateLimitError) as caught:
        chat(server)
    when = parsedate_to_datetime(caught.value.response.headers["retry-after"]).timestamp()
    assert 20 < when - time.time() <= 30


def test_throttling_may_come_without_a_retry_after() -> None:
    with running_server(fault=schedule(0, {"429": 1.0})) as server:
        with pytest.raises(openai.RateLimitError) as caught:
            chat(server)
        assert "retry-after" not in caught.value.response.headers


def test_one_answer_may_come_for_every_seed() -> None:
    with running_server(fault=lambda _: FaultAction("same_answer")) as server:
        texts = {chat(server, seed=seed).choices[0].message.content for seed in range(4)}
        ids = {chat(server, seed=seed).id for seed in range(4)}
    assert (len(texts), len(ids)) == (1, 4)


def test_an_answer_may_be_billed_and_lost() -> None:
    with running_server(fault=lambda _: FaultAction("lost_answer")) as server:
        with pytest.raises(openai.APIConnectionError):
            chat(server)
        assert (server.stats()["lost"], server.stats()["answers"]) == (1, 0)


@pytest.mark.parametrize(
    ("cannot", "mode"),
    [(("structured", "json_mode"), "tool"), (("structured", "json_mode", "tools"), "list")],
)
def test_a_probe_goes_down_to_what_the_server_can(
    tmp_path: Path, cannot: tuple[str, ...], mode: str
) -> None:
    async def found(server: ServerState) -> str:
        endpoint = Endpoint(server.base_url, "test-model", SecretStr("test-key"))
        with Ledger.open(tmp_path / "l") as ledger:
            return await output_mode(endpoint=endpoint, ledger=ledger)

    with running_server(**dict.fromkeys(cannot, False)) as server:
        assert asyncio.run(found(server)) == mode
