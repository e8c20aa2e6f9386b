"""The test server's files and batches keep the shapes and promises of the API they stand for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
from openai.types import Batch

from tests.openai_server import FaultAction, ServerState, running_server, schedule

URL: Final = "/v1/chat/completions"


@pytest.fixture
def server() -> Iterator[ServerState]:
    with running_server() as running:
        yield running


def client(server: ServerState, **options: Any) -> openai.OpenAI:
    given: dict[str, Any] = {
        "base_url": server.base_url,
        "api_key": "test-key",
        "max_retries": 0,
        "timeout": 10,
    }
    return openai.OpenAI(**(given | options))


def lines(count: int, **changes: Any) -> bytes:
    made = []
    for number in range(count):
        messages = [{"role": "user", "content": f"Write 1 row about pump {number}."}]
        body = {"model": "test-model", "messages": messages}
        line = {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": body}
        made.append(json.dumps(line | changes))
    return "\n".join(made).encode()


def created(asking: openai.OpenAI, content: bytes, mark: str = "t") -> Batch:
    file = asking.files.create(file=("in.jsonl", content), purpose="batch")
    return asking.batches.create(
        completion_window="24h",
        endpoint=URL,
        input_file_id=file.id,
        metadata={"synth_batch": mark},
    )


def ended(asking: openai.OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + 30
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline
        batch = asking.batches.retrieve(batch.id)
    return batch


def results(asking: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in asking.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered_as_its_requests_would_be_live(server: ServerState) -> None:
    with client(server) as asking:
        batch = created(asking, lines(3))
        assert (batch.status, batch.request_counts and batch.request_counts.total) in (
            ("validating", 0), ("completed", 3),
        )  # fmt: skip
        batch = ended(asking, batch)
        assert batch.metadata == {"synth_batch": "t"}
        assert batch.expires_at
        assert batch.completed_at
        assert batch.request_counts
        assert batch.request_counts.completed == 3
        found = results(asking, batch.output_file_id)
        assert batch.error_file_id is None
        prompt = "Write 1 row about pump 0."
        live = asking.chat.completions.create(
            model="test-model", messages=[{"role": "user", "content": prompt}]
        )
    assert [line["custom_id"] for line in found] == ["r0", "r1", "r2"]
    assert found[0]["response"]["status_code"] == 200
    assert found[0]["response"]["body"]["choices"][0]["message"]["content"] == (
        live.choices[0].message.content
    )
    assert max(server.answers_by_identity.values()) == 2, "live and batched share the counters"
    assert server.batches_by_token == {"t": 1}


def test_files_can_be_listed_shown_read_and_deleted(server: ServerState) -> None:
    with client(server) as asking:
        file = asking.files.create(file=("a.jsonl", b"abc"), purpose="batch")
        assert (file.bytes, file.filename, file.purpose) == (3, "a.jsonl", "batch")
        assert [one.id for one in asking.files.list()] == [file.id]
        assert asking.files.retrieve(file.id) == file
        assert asking.files.content(file.id).content == b"abc"
        assert asking.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            asking.files.retrieve(file.id)


def test_batches_are_listed_newest_first_page_by_page(server: ServerState) -> None:
    with client(server) as asking:
        made = [created(asking, lines(1), mark=str(at)).id for at in range(7)]
        page = asking.batches.list(limit=3)
        assert [batch.id for batch in page.data] == made[:3:-1]
        assert page.has_more
        assert [batch.id for batch in asking.batches.list(limit=3)] == made[::-1]
        assert [batch.id for batch in asking.batches.list(after=made[1])] == made[:1]


def test_a_batch_takes_its_time_and_says_how_far_it_is() -> None:
    with running_server(batch_seconds=0.5) as server, client(server) as asking:
        batch = created(asking, lines(2))
        seen = [batch.status]
        while batch.status != "completed":
            batch = asking.batches.retrieve(batch.id)
            seen.append(batch.status)
    order = ["validating", "in_progress", "finalizing", "completed"]
    assert list(dict.fromkeys(seen)) == order


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"not json", "invalid_json_line"),
        (lines(1, url="/v1/embeddings"), "mismatched_url"),
        (lines(2, custom_id="same"), "duplicate_custom_id"),
        (b"", "empty_file"),
        (lines(4), "too_many_tasks"),
    ],
)
def test_an_input_file_that_breaks_the_rules_fails_whole(content: bytes, code: str) -> None:
    with running_server(batch_max_lines=3) as server, client(server) as asking:
        batch = ended(asking, created(asking, content))
        assert batch.status == "failed"
        problems = (batch.errors.data if batch.errors else None) or []
        assert code in [problem.code for problem in problems]
        assert server.request_count == 0


def test_an_expired_batch_leaves_a_share_unanswered() -> None:
    with running_server(batch_expire_share=0.4) as server, client(server) as asking:
        batch = ended(asking, created(asking, lines(100)))
        good, bad = (results(asking, f) for f in (batch.output_file_id, batch.error_file_id))
        assert (batch.status, len(good) + len(bad)) == ("expired", 100)
        assert 20 < len(bad) < 60
        assert {line["error"]["code"] for line in bad} == {"batch_expired"}
        assert server.answers_by_identity.total() == len(good)


def test_a_cancelled_batch_keeps_what_was_done() -> None:
    with (
        running_server(batch_seconds=60, batch_cancel_share=0.5) as server,
        client(server) as asking,
    ):
        batch = asking.batches.cancel(created(asking, lines(60)).id)
        assert batch.status == "cancelling"
        batch = ended(asking, batch)
        assert batch.status == "cancelled"
        assert 10 < len(results(asking, batch.output_file_id)) < 50


def test_faults_strike_lines_by_their_kind() -> None:
    rates = {"429": 0.3, "500": 0.2, "malformed": 0.3, "broken_body": 0.2}
    with running_server(batch_faults=schedule(1, rates)) as server, client(server) as asking:
        batch = ended(asking, created(asking, lines(50)))
        bad = results(asking, batch.error_file_id)
        assert {line["response"]["status_code"] for line in bad} == {429, 500}
        raw = asking.files.content(batch.output_file_id or "").content.splitlines()
        assert len(raw) + len(bad) == 50
        torn = [line for line in raw if not _is_json(line)]
        assert len(torn) == server.faults["broken_body"] > 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_a_call_may_be_carried_out_and_its_answer_lost() -> None:
    with running_server() as server, client(server) as asking:
        file = asking.files.create(file=("in.jsonl", lines(1)), purpose="batch")
        server.batch_api_fault = lambda _: FaultAction("lost_answer")
        with pytest.raises(openai.APIConnectionError):
            asking.batches.create(
                completion_window="24h", endpoint=URL, input_file_id=file.id, metadata={}
            )
        server.batch_api_fault = None
        assert len(asking.batches.list().data) == 1


def test_batch_routes_want_the_key(server: ServerState) -> None:
    with client(server, api_key="wrong") as asking, pytest.raises(openai.AuthenticationError):
        asking.batches.list()
