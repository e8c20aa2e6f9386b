"""Batches: half the price, the same promises; refusals, expiry, budgets, leaving and collecting."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from synth_assets.errors import EndpointError, Incomplete, UsageError
from synth_assets.llm import (
    Answer,
    Budget,
    Caps,
    ErrorKind,
    Event,
    Ledger,
    Limits,
    Prices,
    Request,
    Tallies,
    run_sync,
    scheduler,
)
from synth_assets.llm.batch.batch import BatchPending, BatchSettings, ask_in_batches
from synth_assets.llm.batch.book import drop, holders, open_batches
from synth_assets.llm.batch.collect import Collected, cancel_batch, collect_batches
from synth_assets.llm.batch.draft import Draft
from synth_assets.llm.batch.files import request_of
from synth_assets.llm.batch.room import Room
from tests.batch_support import LEAVING, LIMITS, PATIENT, QUICK, batched, striking
from tests.llm_support import answers_of, endpoint_of, request, requests
from tests.openai_server import FaultAction, RequestInfo, ServerState, running_server, schedule

PRICES = Prices(input_per_million=10.0, output_per_million=20.0)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of calls to the provider, without the waiting."""
    monkeypatch.setattr(scheduler, "BACKOFF_FIRST_S", 0.02)


def assert_each_bought_once(server: ServerState, count: int) -> None:
    assert len(server.answers_by_identity) == count
    assert server.answers_by_identity.total() == count
    assert all(times == 1 for times in server.batches_by_token.values())
    assert "" not in server.batches_by_token


def assert_nothing_held(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert open_batches(ledger) == []
        assert ledger.query("SELECT count(*) FROM batch_requests") == [(0,)]
        assert ledger.query("SELECT count(*) FROM claims") == [(0,)]


def collected(server: ServerState, path: Path, **options: Any) -> Collected:
    async def collect() -> Collected:
        with Ledger.open(path) as ledger:
            return await collect_batches(
                endpoint=endpoint_of(server), ledger=ledger, limits=LIMITS, **options
            )

    return run_sync(collect())


def settings(**changes: Any) -> BatchSettings:
    return BatchSettings(**{"wait_s": 30, "poll_s": QUICK, **changes})


# -- the way there and back ----------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["an iterator", "a function"])
def test_every_request_gets_one_answer_at_half_the_price(tmp_path: Path, again: bool) -> None:
    asked = requests(60)
    stream: Any = (lambda: iter(asked)) if again else iter(asked)
    with running_server(batch_seconds=0.2) as server:
        tallies = Tallies()
        answers = batched(
            stream,
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            prices=PRICES,
            tallies=tallies,
        )
        assert_each_bought_once(server, 60)
    assert Counter(a.request_id for a in answers) == Counter(r.request_id for r in asked)
    for answer in answers:
        assert answer.ok
        assert not answer.replayed
        tokens = 5.0 * (answer.prompt_tokens or 0) + 10.0 * (answer.completion_tokens or 0)
        assert answer.cost_usd == pytest.approx(tokens / 1e6)
    assert tallies.bought == tallies.calls == 60
    with Ledger.open(tmp_path / "l") as ledger:
        row = ledger.call(asked[0].request_id)
        assert row is not None
        frozen = json.loads(row.prices or "")
        assert (frozen["input_per_million"], frozen["output_per_million"]) == (10.0, 20.0)
        assert (frozen["discount"], frozen["batch"]) == (0.5, True)
        tokens = (row.prompt_tokens or 0) * 5.0 + (row.completion_tokens or 0) * 10.0
        assert row.cost_usd == pytest.approx(tokens / 1e6)
        assert (row.dataset, row.status, row.latency_ms) == ("d", 200, 0.0)
        assert row.request == asked[0].canonical
        assert tallies.usd == pytest.approx(ledger.spent("d").usd)
    assert_nothing_held(tmp_path / "l")


def test_answers_keep_the_note_of_the_caller(tmp_path: Path) -> None:
    def asked() -> Iterator[Request]:
        for each in requests(10):
            yield Request(each.kind, each.endpoint, each.body, tag=each.body["seed"])

    with running_server() as server:
        answers = batched(asked, endpoint=endpoint_of(server), path=tmp_path / "l")
    assert all(answer.request.tag == answer.request.body["seed"] for answer in answers)


def test_batched_and_live_answers_are_the_same_rows(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        live = answers_of(requests(8), endpoint=endpoint, path=tmp_path / "live")
        slow = batched(requests(8), endpoint=endpoint, path=tmp_path / "batch")
        again = answers_of(requests(8), endpoint=endpoint, path=tmp_path / "batch")
    texts = [{a.request_id: (a.text, a.finish_reason) for a in some} for some in (live, slow)]
    assert texts[0] == texts[1]
    assert all(answer.replayed for answer in again)
    assert server.request_count == 16


def test_what_the_ledger_has_is_not_asked_and_needs_no_provider(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers_of(requests(30), endpoint=endpoint, path=tmp_path / "l")
        answers = batched(requests(40), endpoint=endpoint, path=tmp_path / "l")
        assert server.request_count == 40
    assert sum(answer.replayed for answer in answers) == 30

    def connect() -> Any:
        raise AssertionError("nothing is to be asked")

    again = batched(requests(40), endpoint=endpoint, path=tmp_path / "l", connect=connect)
    assert len(again) == 40
    assert all(answer.replayed for answer in again)


def test_the_key_is_asked_for_when_it_is_needed(tmp_path: Path) -> None:
    with running_server() as server:
        known, usable = endpoint_of(server, key="wrong"), endpoint_of(server)
        answers = batched(requests(3), endpoint=known, path=tmp_path / "l", connect=lambda: usable)
    assert all(answer.ok for answer in answers)


def test_the_same_question_twice_in_a_stream_is_asked_once(tmp_path: Path) -> None:
    with running_server() as server:
        asked = [request(1), request(2), request(1)]
        answers = batched(asked, endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 2
    assert sorted(answer.replayed for answer in answers) == [False, False, True]


def test_the_order_of_a_schemas_properties_reaches_the_provider(tmp_path: Path) -> None:
    inner = {"type": "object", "properties": {"z": {"type": "string"}, "b": {"type": "string"}}}
    schema = {"type": "object", "properties": {"why": inner, "answer": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "rows", "schema": schema}}
    asked = request(1, response_format=wanted)
    assert request_of(asked.canonical).payload() != asked.payload(), "members are sorted"
    with running_server() as server:
        batched([asked], endpoint=endpoint_of(server), path=tmp_path / "l")
    sent = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert list(sent["properties"]) == ["why", "answer"]
    assert list(sent["properties"]["why"]["properties"]) == ["z", "b"]
    assert sent == schema


def test_batches_are_split_by_number_size_model_and_kind(tmp_path: Path) -> None:
    long = request(500, messages=[{"role": "user", "content": "x" * 5000}])
    continued = Request(
        "completion", "the test server", {"model": "test-model", "prompt": "-", "max_tokens": 900}
    )
    asked = [*requests(101), *requests(7, model="other"), continued, long]
    with running_server(models=("test-model", "other")) as server:
        answers = batched(
            asked,
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            settings=settings(max_requests=50),
        )
        assert_each_bought_once(server, 110)
        # 50 + 50 + 2, the other model, completions.
        assert len(server.batches_by_token) == 5
    assert all(answer.ok for answer in answers)


def test_no_input_file_is_larger_than_allowed(tmp_path: Path) -> None:
    long = request(500, messages=[{"role": "user", "content": "x" * 5000}])
    with running_server() as server:
        small: dict[str, Any] = {
            "endpoint": endpoint_of(server),
            "settings": settings(max_bytes=4000),
        }
        batched(requests(50), path=tmp_path / "l", **small)
        with openai.OpenAI(base_url=server.base_url, api_key="test-key") as client:
            sizes = [file.bytes for file in client.files.list() if file.purpose == "batch"]
        assert len(sizes) == len(server.batches_by_token) > 3
        assert max(sizes) <= 4000
        with pytest.raises(UsageError, match="larger than a batch"):
            batched([long], path=tmp_path / "m", **small)
    assert_nothing_held(tmp_path / "m")


# -- lines that are no answers -------------------------------------------------------------------


def test_a_line_refused_for_good_is_asked_once_and_kept_with_its_body(tmp_path: Path) -> None:
    def refuse_odd(info: RequestInfo) -> FaultAction | None:
        return FaultAction("status", status=400, message="odd") if info.body["seed"] % 2 else None

    with running_server(batch_faults=refuse_odd) as server:
        answers = batched(requests(40), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert max(server.attempts_by_identity.values()) == 1
    refused = [answer for answer in answers if answer.error is ErrorKind.PERMANENT]
    assert (len(answers), len(refused)) == (40, 20)
    assert all("odd" in answer.error_detail and answer.status == 400 for answer in refused)
    with Ledger.open(tmp_path / "l") as ledger:
        assert {f.request_id for f in ledger.failures()} == {a.request_id for a in refused}
    assert_nothing_held(tmp_path / "l")


def test_throttled_and_failed_lines_are_asked_again_in_a_new_batch(tmp_path: Path) -> None:
    def first_time(info: RequestInfo) -> FaultAction | None:
        status = 429 if info.body["seed"] % 2 else 500
        return FaultAction("status", status=status) if info.attempt == 1 else None

    with running_server(batch_faults=first_time) as server:
        answers = batched(requests(30), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert_each_bought_once(server, 30)
        assert len(server.batches_by_token) == 2
    assert all(answer.ok for answer in answers)


def test_a_line_that_never_works_is_given_up_after_its_attempts(tmp_path: Path) -> None:
    def never(info: RequestInfo) -> FaultAction | None:
        return FaultAction("status", status=503) if info.body["seed"] == 7 else None

    with running_server(batch_faults=never) as server:
        answers = batched(
            requests(10),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            settings=settings(attempts=2),
        )
        assert max(server.attempts_by_identity.values()) == 2
    (bad,) = [answer for answer in answers if not answer.ok]
    assert (bad.error, bad.attempts, bad.status) == (ErrorKind.TRANSIENT, 2, 503)
    assert_nothing_held(tmp_path / "l")


def test_an_expired_batch_gives_what_it_has_and_the_rest_is_asked_again(tmp_path: Path) -> None:
    with running_server(batch_expire_share=0.5, batch_seconds=60) as server:
        with pytest.raises(BatchPending):
            batched(requests(60), endpoint=endpoint_of(server), path=tmp_path / "l",
                    settings=LEAVING)  # fmt: skip
        server.batch_seconds = 0
        while not (found := collected(server, tmp_path / "l")).answers:
            pass
        assert 10 < found.answers["d"] < 50
        assert found.answers["d"] + found.returned["d"] == 60
        server.batch_expire_share = None
        answers = batched(requests(60), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert_each_bought_once(server, 60)
    assert all(answer.ok for answer in answers)
    assert sum(answer.replayed for answer in answers) == found.answers["d"]


def test_requests_that_always_expire_are_given_up(tmp_path: Path) -> None:
    with running_server(batch_expire_share=1.0) as server:
        answers = batched(requests(5), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.answers_by_identity.total() == 0
    assert {(answer.error, answer.attempts) for answer in answers} == {(ErrorKind.TRANSIENT, 3)}


def test_noise_in_the_result_files_is_survived(tmp_path: Path) -> None:
    with running_server(batch_noise=True) as server:
        events: list[Event] = []
        answers = batched(
            requests(40), endpoint=endpoint_of(server), path=tmp_path / "l", on_event=events.append
        )
        assert_each_bought_once(server, 40)
    assert len(answers) == 40
    assert all(answer.ok for answer in answers)
    (told,) = [event.detail for event in events if event.name == "collected"]
    assert "broken lines" in told


def test_a_mixed_fault_schedule_loses_nothing_and_buys_nothing_twice(tmp_path: Path) -> None:
    rates = {"429": 0.05, "500": 0.05, "html": 0.02, "reset": 0.02, "malformed": 0.03}
    rates |= {"length": 0.03, "broken_body": 0.03, "invalid_utf8": 0.03, "empty": 0.03}
    rates |= {"content_filter": 0.03, "refusal": 0.03, "wrong_usage": 0.03}
    with running_server(batch_faults=schedule(3, rates), batch_noise=True) as server:
        answers = batched(
            requests(400),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            settings=settings(attempts=6, max_requests=150),
        )
        assert_each_bought_once(server, 400)
        assert set(server.faults) == set(rates)
    assert len({answer.request_id for answer in answers}) == len(answers) == 400
    assert {answer.error for answer in answers if not answer.ok} == {
        ErrorKind.LENGTH,
        ErrorKind.MALFORMED,
        ErrorKind.EMPTY,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.REFUSED,
    }
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.spent("d").calls == 400
    assert_nothing_held(tmp_path / "l")


# -- a provider that says no, or says nothing ----------------------------------------------------


def test_a_batch_refused_at_validation_is_said_with_the_providers_words(tmp_path: Path) -> None:
    with (
        running_server(batch_max_lines=5) as server,
        pytest.raises(EndpointError, match="too_many_tasks: More than 5 requests"),
    ):
        batched(requests(9), endpoint=endpoint_of(server), path=tmp_path / "l")
    assert_nothing_held(tmp_path / "l")
    with running_server() as server:
        assert len(batched(requests(9), endpoint=endpoint_of(server), path=tmp_path / "l")) == 9


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with running_server(batch_enqueued_lines=25, batch_seconds=0.2) as server:
        answers = batched(
            requests(60),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            settings=settings(max_requests=20, attempts=1),
        )
        assert_each_bought_once(server, 60)
        assert len(server.batches_by_token) > 3
    assert len(answers) == 60
    assert all(answer.ok for answer in answers)


def test_a_wrong_key_is_one_message_without_the_key(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server, key="sk-planted-key")
        with pytest.raises(EndpointError, match="OPENAI_API_KEY") as caught:
            batched(requests(5), endpoint=endpoint, path=tmp_path / "l")
        assert "sk-planted-key" not in str(caught.value)
        assert server.api_calls.total() == 1
    assert_nothing_held(tmp_path / "l")


def test_an_echoed_key_stays_out_of_messages_and_tables(tmp_path: Path) -> None:
    def echo(_: RequestInfo) -> FaultAction:
        return FaultAction("status", status=400, message="bad key test-key here")

    with running_server(batch_faults=echo) as server:
        answers = batched(requests(3), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert all("***" in a.error_detail for a in answers)
        server.batch_api_fault = echo
        with pytest.raises(EndpointError, match=r"\*\*\*") as caught:
            batched(requests(9), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert "test-key" not in str(caught.value)
    assert b"test-key" not in b"".join(file.read_bytes() for file in tmp_path.glob("l*"))


def test_an_unknown_model_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with running_server(models=("another",)) as server:
        with pytest.raises(EndpointError, match="test-model"):
            batched(requests(4), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert max(server.attempts_by_identity.values()) == 1


def test_a_server_without_a_batch_api_is_said_so(tmp_path: Path) -> None:
    missing = striking("POST /v1/files", FaultAction("status", status=404))
    with (
        running_server(batch_api_fault=missing) as server,
        pytest.raises(EndpointError, match="no batch API"),
    ):
        batched(requests(4), endpoint=endpoint_of(server), path=tmp_path / "l")
    assert_nothing_held(tmp_path / "l")


CALLS = (
    "POST /v1/files",
    "POST /v1/batches",
    "GET /v1/batches/{id}",
    "GET /v1/files/{id}/content",
)
FAULTS = {
    "429": FaultAction("status", status=429, headers={"Retry-After": "0"}),
    "503": FaultAction("status", status=503),
    "reset": FaultAction("reset"),
    "lost answer": FaultAction("lost_answer"),
    "half an answer": FaultAction("broken_body"),
    "a web page": FaultAction("html", status=200),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_now_and_then_is_made_again_and_buys_nothing_twice(
    tmp_path: Path, call: str
) -> None:
    for name, action in FAULTS.items():
        if call.endswith("content") and name in ("half an answer", "a web page"):
            continue  # the body is the result file itself: noise, see above
        with running_server(batch_api_fault=striking(call, action)) as server:
            answers = batched(requests(5), endpoint=endpoint_of(server), path=tmp_path / name)
            assert_each_bought_once(server, 5)
            assert len(server.batches_by_token) == 1
            assert server.faults.total() == 1
        assert all(answer.ok for answer in answers)


def test_a_result_file_cut_short_is_fetched_again(tmp_path: Path) -> None:
    cut = striking("GET /v1/files/{id}/content", FaultAction("broken_body"))
    with running_server(batch_api_fault=cut) as server:
        answers = batched(requests(20), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert_each_bought_once(server, 20)
        assert server.api_calls["GET /v1/files/{id}/content"] == 2
    assert all(answer.ok for answer in answers)


def test_an_outage_while_waiting_is_waited_out(tmp_path: Path) -> None:
    down = FaultAction("status", status=503, headers={"Retry-After": "0"})
    outage = striking("GET /v1/batches/{id}", down, times=5)
    limits = Limits(max_attempts=1)
    with running_server(batch_api_fault=outage) as server:
        answers = batched(requests(4), endpoint=endpoint_of(server), path=tmp_path / "l",
                          limits=limits)  # fmt: skip
        assert_each_bought_once(server, 4)
        assert server.faults.total() == 5
    assert len(answers) == 4
    with (
        running_server(batch_api_fault=striking("GET /v1/batches/{id}", down, times=99)) as server,
        pytest.raises(EndpointError, match="503"),
    ):
        batched(requests(4), endpoint=endpoint_of(server), path=tmp_path / "m", limits=limits,
                settings=settings(wait_s=0.3))  # fmt: skip


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
    with pytest.raises(EndpointError, match="no server answers"):
        batched(requests(4), endpoint=endpoint, path=tmp_path / "l")


def test_a_batch_that_a_living_process_prepares_is_left_alone(tmp_path: Path) -> None:
    async def prepared() -> None:
        with Ledger.open(tmp_path / "l") as ledger, Ledger.open(tmp_path / "l") as other:
            room = Room(None, None, ledger, "d")
            draft = await Draft.begun(ledger, room, request=request(1), dataset="d", prices=None)
            found = await collect_batches(endpoint=elsewhere, ledger=other)
            assert found.states == {("d", "preparing"): 1}
            with pytest.raises(UsageError, match="another process works"):
                await cancel_batch(draft.token, endpoint=elsewhere, ledger=other)
            await draft.dropped()
            assert (await collect_batches(endpoint=elsewhere, ledger=other)).states == {}

    with running_server() as server:
        elsewhere = endpoint_of(server)
    run_sync(prepared())


def test_a_batch_whose_process_was_taken_for_dead_holds_nothing(tmp_path: Path) -> None:
    async def frozen() -> None:
        with Ledger.open(tmp_path / "l") as ledger:
            asked = requests(4)
            room = Room(None, None, ledger, "d")
            draft, other = [
                await Draft.begun(ledger, room, request=asked[0], dataset="d", prices=None)
                for _ in range(2)
            ]
            draft.add(asked[0], 100, None)
            await draft.flush()
            other.add(asked[1], 100, None)
            await other.flush()
            # A request of another batch is not taken over; a dropped batch takes no more.
            draft.add(asked[1], 100, None)
            await draft.flush()
            assert holders(ledger, [r.request_id for r in asked]) == {
                asked[0].request_id: draft.token,
                asked[1].request_id: other.token,
            }
            await drop(ledger, draft.token)
            draft.add(asked[2], 100, None)
            await draft.flush()
            assert await draft.sealed() is None
            assert list(holders(ledger, [r.request_id for r in asked])) == [asked[1].request_id]

    run_sync(frozen())


# -- budget --------------------------------------------------------------------------------------


def budgeted(server: ServerState, path: Path, budget: Budget, count: int) -> list[Answer]:
    return batched(
        lambda: requests(count),
        endpoint=endpoint_of(server),
        path=path,
        budget=budget,
        settings=settings(max_requests=4),
    )


def test_a_budget_is_used_up_round_by_round_and_never_exceeded(tmp_path: Path) -> None:
    # Worst cases are several times what a call costs: after each collection there is room again.
    cap = 0.02
    with running_server(batch_seconds=0.05) as server:
        budget = Budget(Caps(usd=cap), prices=PRICES)
        answers = budgeted(server, tmp_path / "l", budget, 60)
        rounds = len(server.batches_by_token)
        assert_each_bought_once(server, sum(answer.ok for answer in answers))
    assert len(answers) == 60
    bought = [answer for answer in answers if answer.ok]
    assert {answer.error for answer in answers if not answer.ok} == {ErrorKind.BUDGET}
    assert rounds > 3
    with Ledger.open(tmp_path / "l") as ledger:
        spent = ledger.spent("d").usd
    assert (
        spent
        == pytest.approx(budget.spent.usd)
        == pytest.approx(sum(answer.cost_usd or 0 for answer in bought))
    )
    assert 0.5 * cap < spent <= cap
    assert budget.reserved.calls == 0


def test_an_open_batch_of_an_earlier_run_counts_against_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60) as server:
        leaving: dict[str, Any] = {
            "endpoint": endpoint_of(server),
            "path": path,
            "settings": LEAVING,
        }
        with pytest.raises(BatchPending):
            batched(requests(6), budget=Budget(Caps(calls=8)), **leaving)
        with pytest.raises(BatchPending):
            batched(requests(10)[6:], budget=Budget(Caps(calls=8)), **leaving)
        assert [row.requests for row in collectable(path)] == [6, 2]
        server.batch_seconds = 0
        answers = batched(
            requests(10), endpoint=endpoint_of(server), path=path, budget=Budget(Caps(calls=8))
        )
        assert_each_bought_once(server, 8)
    assert Counter(answer.error for answer in answers) == {None: 8, ErrorKind.BUDGET: 2}


def collectable(path: Path) -> list[Any]:
    with Ledger.open(path) as ledger:
        return open_batches(ledger)


def test_a_budget_in_dollars_needs_a_completion_limit(tmp_path: Path) -> None:
    unlimited = request(1, max_tokens=None)
    with running_server() as server, pytest.raises(UsageError, match="completion limit"):
        batched(
            [unlimited],
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            budget=Budget(Caps(usd=1.0), prices=PRICES),
        )
    assert_nothing_held(tmp_path / "l")


# -- leaving and coming back ---------------------------------------------------------------------


def test_a_run_that_leaves_says_what_waits_and_a_later_collection_is_replayed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60) as server:
        with pytest.raises(BatchPending, match=r"12 requests .* batch_0+ ") as caught:
            batched(requests(12), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        assert caught.value.exit_code == 3
        (waiting,) = collectable(path)
        assert (waiting.state, waiting.requests, waiting.dataset) == ("submitted", 12, "d")
        assert collected(server, path).states == {("d", "submitted"): 1}
        with pytest.raises(BatchPending):
            batched(requests(12), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        server.batch_seconds = 0
        while not (found := collected(server, path)).answers:
            pass
        assert (found.answers, found.states) == ({"d": 12}, {("d", "collected"): 1})
        assert collected(server, path).states == {}
        asked = server.request_count
        answers = answers_of(requests(12), endpoint=endpoint_of(server), path=path)
        assert server.request_count == asked
        assert_each_bought_once(server, 12)
    assert all(answer.ok and answer.replayed for answer in answers)


def test_no_live_run_asks_what_waits_in_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60) as server:
        with pytest.raises(BatchPending):
            batched(requests(4), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        with Ledger.open(path) as ledger:
            names = [each.request_id for each in requests(5)]

            async def claimed() -> Any:
                claims = await ledger.claim(names)
                await ledger.release(claims.granted)
                return claims

            claims = run_sync(claimed())
        assert claims.held == set(names[:4])
        assert claims.granted == {names[4]}


def test_another_dataset_collects_the_batch_that_holds_its_requests(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=0.3) as server:
        with pytest.raises(BatchPending):
            batched(requests(6), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        answers = batched(requests(9), endpoint=endpoint_of(server), path=path, dataset="other")
        assert_each_bought_once(server, 9)
    assert all(answer.ok for answer in answers)
    with Ledger.open(path) as ledger:
        assert (ledger.spent("d").calls, ledger.spent("other").calls) == (6, 3)


def test_a_stop_leaves_at_once_and_the_batch_stays(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60) as server:
        tallies = Tallies()

        async def stopped() -> list[Answer]:
            stop = asyncio.Event()

            def when_polled(event: Event) -> None:
                if event.name == "submitting":
                    asyncio.get_running_loop().call_later(0.3, stop.set)

            with Ledger.open(path) as ledger:
                stream = ask_in_batches(
                    requests(8),
                    endpoint=endpoint_of(server),
                    ledger=ledger,
                    settings=settings(poll_s=(50, 60), wait_s=600),
                    stop=stop,
                    tallies=tallies,
                    on_event=when_polled,
                )
                return [answer async for answer in stream]

        assert run_sync(stopped()) == []
        assert tallies.stopped
        server.batch_seconds = 0
        answers = batched(requests(8), endpoint=endpoint_of(server), path=path)
        assert_each_bought_once(server, 8)
    assert len(answers) == 8


def test_a_closed_stream_leaves_nothing_behind_that_was_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers_of(requests(3), endpoint=endpoint, path=path)

        async def first_only() -> None:
            with Ledger.open(path) as ledger:
                stream = ask_in_batches(
                    requests(600), endpoint=endpoint, ledger=ledger, settings=PATIENT
                )
                async for _ in stream:
                    break
                await stream.aclose()

        run_sync(first_only())
        assert server.api_calls.total() == 0
    assert_nothing_held(path)


# -- cancelling ----------------------------------------------------------------------------------


def cancelled(server: ServerState, path: Path) -> str:
    (row,) = collectable(path)

    async def cancel() -> str:
        with Ledger.open(path) as ledger:
            return await cancel_batch(
                row.token, endpoint=endpoint_of(server), ledger=ledger, limits=LIMITS
            )

    return run_sync(cancel())


def test_a_cancelled_batch_gives_what_was_done_and_frees_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60, batch_cancel_share=0.5) as server:
        with pytest.raises(BatchPending):
            batched(requests(40), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        assert cancelled(server, path) in ("submitted", "cancelled")
        while open_batches_of(path):
            collected(server, path)
        with Ledger.open(path) as ledger:
            done = ledger.spent("d").calls
        assert 5 < done < 35
        assert_nothing_held(path)
        server.batch_seconds = 0
        answers = batched(requests(40), endpoint=endpoint_of(server), path=path)
        assert_each_bought_once(server, 40)
    assert sum(answer.replayed for answer in answers) == done


def open_batches_of(path: Path) -> list[Any]:
    return collectable(path)


def test_a_run_whose_batch_is_cancelled_does_not_ask_the_rest_again(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60, batch_cancel_share=0.5) as server:
        with pytest.raises(BatchPending):
            batched(requests(40), endpoint=endpoint_of(server), path=path, settings=LEAVING)
        cancelled(server, path)
        if open_batches_of(path):
            with pytest.raises(Incomplete, match=r"was cancelled; .* have no answer"):
                batched(requests(40), endpoint=endpoint_of(server), path=path)
            assert len(server.batches_by_token) == 1


def test_a_batch_that_the_provider_lost_can_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with running_server(batch_seconds=60) as server, pytest.raises(BatchPending):
        batched(requests(4), endpoint=endpoint_of(server), path=path, settings=LEAVING)
    with running_server() as other:
        with pytest.raises(EndpointError, match="is not there"):
            batched(requests(4), endpoint=endpoint_of(other), path=path)
        assert "is not there" in collected(other, path).problems[0]
        assert cancelled(other, path) == "cancelled"
        assert len(batched(requests(4), endpoint=endpoint_of(other), path=path)) == 4


def test_a_batch_that_is_not_open_cannot_be_cancelled(tmp_path: Path) -> None:
    async def cancel(server: ServerState) -> None:
        with Ledger.open(tmp_path / "l") as ledger:
            await cancel_batch("nobody", endpoint=endpoint_of(server), ledger=ledger)

    with running_server() as server, pytest.raises(UsageError, match="no open batch"):
        run_sync(cancel(server))


@pytest.mark.parametrize(
    "wrong", [{"wait_s": -1}, {"poll_s": (5, 1)}, {"discount": 2}, {"attempts": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        settings(**wrong)


def test_requests_for_another_endpoint_are_refused(tmp_path: Path) -> None:
    foreign: Iterable[Request] = [Request("chat", "elsewhere", request(1).body)]
    with running_server() as server, pytest.raises(ValueError, match="wrong name"):
        batched(foreign, endpoint=endpoint_of(server), path=tmp_path / "l")
