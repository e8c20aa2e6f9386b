"""The engine over real HTTP: replays, faults, waits, giving up, stopping, secrets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from pydantic import SecretStr

from synth_assets.errors import EndpointError
from synth_assets.llm import (
    Answer,
    Endpoint,
    ErrorKind,
    Event,
    Ledger,
    Limits,
    Prices,
    Request,
    Tallies,
    ask,
    run_sync,
)
from tests.llm_support import FAST, answers_of, endpoint_of, request, requests, run
from tests.openai_server import FaultAction, RequestInfo, running_server, schedule


def by_id(answers: list[Answer]) -> dict[str, str | None]:
    return {answer.request_id: answer.text for answer in answers}


def test_every_request_gets_one_answer_with_its_numbers(tmp_path: Path) -> None:
    with running_server() as server:
        prices = Prices(input_per_million=1.0, output_per_million=2.0)
        asked = requests(40)
        answers = answers_of(
            iter(asked), endpoint=endpoint_of(server), path=tmp_path / "l", prices=prices
        )
    assert Counter(answer.request_id for answer in answers) == Counter(
        each.request_id for each in asked
    )
    for answer in answers:
        assert answer.ok
        assert answer.text
        assert not answer.replayed
        tokens = (answer.prompt_tokens or 0) + 2 * (answer.completion_tokens or 0)
        assert answer.cost_usd == pytest.approx(tokens / 1e6)


def test_a_second_run_makes_no_call_and_says_the_same(tmp_path: Path) -> None:
    with running_server() as server:
        first = answers_of(requests(60), endpoint=endpoint_of(server), path=tmp_path / "l")
        server.reset()
        tallies = Tallies()
        again = answers_of(
            requests(60), endpoint=endpoint_of(server), path=tmp_path / "l", tallies=tallies
        )
        assert server.request_count == 0
    assert by_id(first) == by_id(again)
    assert all(answer.replayed for answer in again)
    assert (tallies.calls, tallies.replayed, tallies.usd) == (0, 60, 0.0)


def test_a_replay_needs_no_server(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        first = answers_of(requests(5), endpoint=endpoint, path=tmp_path / "l")
    assert by_id(answers_of(requests(5), endpoint=endpoint, path=tmp_path / "l")) == by_id(first)


def test_only_changed_requests_are_bought(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers_of(requests(20), endpoint=endpoint, path=tmp_path / "l")
        server.reset()
        changed = [*requests(15), *(request(n, temperature=0.5) for n in range(15, 20))]
        answers_of(changed, endpoint=endpoint, path=tmp_path / "l")
        assert server.request_count == 5


def test_the_same_question_twice_in_a_stream_is_asked_once(tmp_path: Path) -> None:
    with running_server(latency_s=0.05) as server:
        asked = [request(1), request(2), request(1), request(1)]
        answers = answers_of(asked, endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 2
    assert Counter(answer.request_id for answer in answers)[request(1).request_id] == 3
    assert sum(answer.replayed for answer in answers) == 2


def test_a_new_sample_of_the_same_text_is_asked(tmp_path: Path) -> None:
    with running_server() as server:
        asked = [request(1), request(1, sample=1)]
        answers_of(asked, endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 2


def test_a_mixed_fault_schedule_loses_nothing_and_buys_nothing_twice(tmp_path: Path) -> None:
    rates = {"429": 0.05, "500": 0.02, "reset": 0.01, "malformed": 0.02, "length": 0.02}
    rates |= {"html": 0.01, "broken_body": 0.01, "invalid_utf8": 0.01, "empty": 0.01}
    rates |= {"content_filter": 0.01, "refusal": 0.01, "unknown_fields": 0.02, "wrong_usage": 0.02}
    with running_server(fault=schedule(5, rates)) as server:
        answers = answers_of(requests(500), endpoint=endpoint_of(server), path=tmp_path / "l")
        stats = server.stats()
        again = answers_of(requests(500), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == stats["requests"]
    assert len({answer.request_id for answer in answers}) == 500
    assert stats["answers"] == stats["identities"] == 500
    assert stats["repeated_successes"] == 0
    failed = [answer for answer in answers if not answer.ok]
    assert {answer.error for answer in failed} == {
        ErrorKind.LENGTH,
        ErrorKind.MALFORMED,
        ErrorKind.EMPTY,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.REFUSED,
    }
    assert all(answer.raw for answer in failed)
    assert {a.request_id: a.error for a in again} == {a.request_id: a.error for a in answers}


def test_a_cut_answer_keeps_its_text_and_is_not_good(tmp_path: Path) -> None:
    with running_server(fault=lambda _: FaultAction("length")) as server:
        (answer,) = answers_of([request(1)], endpoint=endpoint_of(server), path=tmp_path / "l")
    assert (answer.ok, answer.error, answer.finish_reason) == (False, ErrorKind.LENGTH, "length")
    assert answer.text


def test_nonsense_usage_is_null_not_money(tmp_path: Path) -> None:
    with running_server(fault=lambda _: FaultAction("wrong_usage")) as server:
        prices = Prices(1.0, 1.0)
        answers = answers_of(
            requests(10), endpoint=endpoint_of(server), path=tmp_path / "l", prices=prices
        )
    assert all(answer.ok and answer.cost_usd is None for answer in answers)


def test_a_permanent_error_is_asked_once_and_kept_with_its_body(tmp_path: Path) -> None:
    def refuse_odd(info: RequestInfo) -> FaultAction | None:
        return FaultAction("status", status=400, message="odd") if info.body["seed"] % 2 else None

    with running_server(fault=refuse_odd) as server:
        answers = answers_of(requests(40), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert max(server.attempts_by_identity.values()) == 1
    refused = [answer for answer in answers if answer.error is ErrorKind.PERMANENT]
    assert len(refused) == 20
    with Ledger.open(tmp_path / "l") as ledger:
        kept = ledger.failures()
    assert {row.request_id for row in kept} == {answer.request_id for answer in refused}
    assert all(b"odd" in row.body and row.status == 400 for row in kept)


# -- waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_back_every_call_to_the_endpoint(tmp_path: Path, as_date: bool) -> None:
    seen: list[float] = []

    def throttle_first(_: RequestInfo) -> FaultAction | None:
        seen.append(time.time())
        if len(seen) > 1:
            return None
        # A date has whole seconds: two ahead are at least one.
        value = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return FaultAction("status", status=429, headers={"Retry-After": value})

    with running_server(fault=throttle_first) as server:
        limits = Limits(concurrency=1)
        answers = answers_of(
            requests(4), endpoint=endpoint_of(server), path=tmp_path / "l", limits=limits
        )
    assert all(answer.ok for answer in answers)
    assert len(seen) == 5
    assert seen[1] - seen[0] >= 0.95


def test_throttling_is_no_failure_however_often(tmp_path: Path) -> None:
    def throttle(info: RequestInfo) -> FaultAction | None:
        if info.attempt > 4:
            return None
        return FaultAction("status", status=429, headers={"Retry-After": "0"})

    with running_server(fault=throttle) as server:
        tallies = Tallies()
        limits = Limits(concurrency=4, max_attempts=2)
        answers = answers_of(
            requests(10),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            limits=limits,
            tallies=tallies,
        )
    assert all(answer.ok for answer in answers)
    assert (tallies.throttled, tallies.retried) == (40, 0)


def test_concurrency_grows_to_its_bound_and_not_beyond(tmp_path: Path) -> None:
    with running_server(latency_s=0.03) as server:
        limits = Limits(concurrency=24)
        answers_of(requests(300), endpoint=endpoint_of(server), path=tmp_path / "l", limits=limits)
        assert server.max_in_flight == 24


def test_concurrency_shrinks_to_what_a_server_bears(tmp_path: Path) -> None:
    with running_server(latency_s=0.02) as server:
        server.fault = lambda _: FaultAction("status", status=429) if server.in_flight > 4 else None
        tallies = Tallies()
        answers = answers_of(
            requests(150),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            limits=Limits(concurrency=64),
            tallies=tallies,
        )
    assert all(answer.ok for answer in answers)
    # Blind retries at full concurrency would be thrown back several times each.
    assert tallies.throttled < 150


def test_requests_per_minute_are_spaced(tmp_path: Path) -> None:
    seen: list[float] = []
    with running_server(fault=lambda _: seen.append(time.monotonic())) as server:
        limits = Limits(concurrency=8, requests_per_min=600)
        answers_of(requests(12), endpoint=endpoint_of(server), path=tmp_path / "l", limits=limits)
    assert max(seen) - min(seen) >= 0.95 * 11 * 0.1


# -- giving up early -----------------------------------------------------------------------------


def failing(endpoint: Endpoint, path: Path, count: int = 2000) -> tuple[str, float]:
    started = time.monotonic()
    model = endpoint.model
    with pytest.raises(EndpointError) as caught:
        answers_of((request(n, model=model) for n in range(count)), endpoint=endpoint, path=path)
    return str(caught.value), time.monotonic() - started


@pytest.mark.parametrize("count", [1, 2000])
def test_a_wrong_key_is_one_error_after_a_handful_of_calls(tmp_path: Path, count: int) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server, key="sk-planted-wrong")
        message, _ = failing(endpoint, tmp_path / "l", count)
        assert server.request_count <= 20
    assert "OPENAI_API_KEY" in message
    assert endpoint.host in message
    assert "test-model" in message
    assert "planted" not in message


@pytest.mark.parametrize("count", [1, 2000])
def test_an_unknown_model_is_one_error_after_a_handful_of_calls(tmp_path: Path, count: int) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server, model="gpt-nope")
        message, _ = failing(endpoint, tmp_path / "l", count)
        assert server.request_count <= 20
        assert max(server.attempts_by_identity.values()) == 1
    assert "gpt-nope" in message
    assert "check the model's name" in message


def test_an_unreachable_address_is_one_error_in_seconds(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        endpoint = Endpoint(url, "m", SecretStr("k"), identity="the test server")
        message, seconds = failing(endpoint, tmp_path / "l")
    assert "no server answers" in message
    assert "OPENAI_BASE_URL" in message
    assert seconds < 10


def test_a_web_server_that_is_no_model_server_is_one_error(tmp_path: Path) -> None:
    page = FaultAction("html", status=200, message="<html>welcome</html>")
    with running_server(fault=lambda _: page) as server:
        message, seconds = failing(endpoint_of(server), tmp_path / "l")
        assert server.request_count < 60
    assert "does not speak the OpenAI protocol" in message
    assert seconds < 20


def test_a_used_up_quota_ends_the_run_and_keeps_what_was_bought(tmp_path: Path) -> None:
    with running_server() as server:
        server.fault = lambda info: QUOTA if info.index >= 50 else None
        got: list[Answer] = []
        with pytest.raises(EndpointError, match="quota"):
            run_sync(collect(got, endpoint_of(server), tmp_path / "l"))
        assert server.request_count < 120
        bought = sum(answer.ok for answer in got)
        assert bought == server.successes_by_identity.total()
        server.fault = None
        server.reset()
        answers = answers_of(requests(1000), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 1000 - bought
    assert all(answer.ok for answer in answers)


QUOTA = FaultAction("html", status=429, message='{"error": {"code": "insufficient_quota"}}')


async def collect(got: list[Answer], endpoint: Endpoint, path: Path) -> None:
    with Ledger.open(path) as ledger:
        async with aclosing(ask(requests(1000), endpoint=endpoint, ledger=ledger)) as stream:
            async for answer in stream:
                got.append(answer)


def test_a_request_for_another_endpoint_is_not_asked_here(tmp_path: Path) -> None:
    with running_server() as server:
        stranger = Request("chat", "elsewhere", request(1).body)
        with pytest.raises(ValueError, match="wrong name"):
            answers_of([stranger], endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 0


# -- streams -------------------------------------------------------------------------------------


def test_a_long_stream_is_read_only_as_far_as_the_consumer_goes(tmp_path: Path) -> None:
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        while True:
            read += 1
            yield request(read)

    async def take_some(endpoint: Endpoint) -> None:
        with Ledger.open(tmp_path / "l") as ledger:
            stream = ask(endless(), endpoint=endpoint, ledger=ledger, limits=FAST)
            async with aclosing(stream):
                for _ in range(10):
                    await anext(stream)
                await asyncio.sleep(0.3)

    with running_server() as server:
        run(take_some(endpoint_of(server)))
    assert read < 2_000


def test_an_error_of_the_stream_itself_is_passed_on(tmp_path: Path) -> None:
    def broken() -> Iterator[Request]:
        yield request(1)
        raise RuntimeError("no such template")

    with running_server() as server, pytest.raises(RuntimeError, match="no such template"):
        answers_of(broken(), endpoint=endpoint_of(server), path=tmp_path / "l")


def test_events_tell_what_happens(tmp_path: Path) -> None:
    def once(info: RequestInfo) -> FaultAction | None:
        return FaultAction("status", status=500) if info.attempt == 1 and info.index == 0 else None

    events: list[Event] = []
    with running_server(fault=once) as server:
        endpoint = endpoint_of(server)
        answers_of(requests(3), endpoint=endpoint, path=tmp_path / "l", on_event=events.append)
        answers_of(requests(3), endpoint=endpoint, path=tmp_path / "l", on_event=events.append)
    assert Counter(event.name for event in events) == {"bought": 3, "retry": 1, "replayed": 3}


# -- stopping ------------------------------------------------------------------------------------


def test_a_stop_keeps_what_is_in_flight_and_asks_nothing_more(tmp_path: Path) -> None:
    async def stopped(endpoint: Endpoint) -> tuple[list[Answer], Tallies]:
        stop = asyncio.Event()
        tallies = Tallies()
        answers = []
        with Ledger.open(tmp_path / "l") as ledger:
            stream = ask(
                requests(500),
                endpoint=endpoint,
                ledger=ledger,
                limits=FAST,
                stop=stop,
                tallies=tallies,
            )
            async for answer in stream:
                answers.append(answer)
                if len(answers) == 20:
                    stop.set()
        return answers, tallies

    with running_server(latency_s=0.05) as server:
        answers, tallies = run(stopped(endpoint_of(server)))
        assert tallies.stopped
        assert 20 <= len(answers) < 100
        assert len(answers) == server.successes_by_identity.total()
        server.reset()
        answers_of(requests(500), endpoint=endpoint_of(server), path=tmp_path / "l")
        assert server.request_count == 500 - len(answers)


def test_a_stop_does_not_wait_for_a_stalled_server(tmp_path: Path) -> None:
    async def stopped(endpoint: Endpoint) -> float:
        stop = asyncio.Event()
        limits = Limits(concurrency=4, grace_s=0.3)
        with Ledger.open(tmp_path / "l") as ledger:
            asyncio.get_running_loop().call_later(0.3, stop.set)
            started = time.monotonic()
            stream = ask(requests(9), endpoint=endpoint, ledger=ledger, limits=limits, stop=stop)
            assert [answer async for answer in stream] == []
            return time.monotonic() - started

    with running_server(fault=lambda _: FaultAction("stall", seconds=8)) as server:
        assert run(stopped(endpoint_of(server))) < 5


def test_a_stop_does_not_wait_for_a_retry_after(tmp_path: Path) -> None:
    async def stopped(endpoint: Endpoint) -> float:
        stop = asyncio.Event()
        with Ledger.open(tmp_path / "l") as ledger:
            asyncio.get_running_loop().call_later(0.3, stop.set)
            started = time.monotonic()
            async for _ in ask(requests(9), endpoint=endpoint, ledger=ledger, stop=stop):
                pass
            return time.monotonic() - started

    wait = FaultAction("status", status=429, headers={"Retry-After": "60"})
    with running_server(fault=lambda _: wait) as server:
        assert run(stopped(endpoint_of(server))) < 4


def test_leaving_the_stream_early_keeps_what_is_in_flight(tmp_path: Path) -> None:
    async def leave(endpoint: Endpoint) -> None:
        with Ledger.open(tmp_path / "l") as ledger:
            async with aclosing(
                ask(requests(500), endpoint=endpoint, ledger=ledger, limits=FAST)
            ) as stream:
                async for _ in stream:
                    break

    with running_server(latency_s=0.1) as server:
        run(leave(endpoint_of(server)))
        served = server.successes_by_identity.total()
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.spent().calls == served


def test_a_cancelled_consumer_keeps_what_is_in_flight(tmp_path: Path) -> None:
    async def cancelled(endpoint: Endpoint) -> None:
        task = asyncio.create_task(collect([], endpoint, tmp_path / "l"))
        await asyncio.sleep(0.4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with running_server(latency_s=0.1) as server:
        run(cancelled(endpoint_of(server)))
        served = server.successes_by_identity.total()
        assert 0 < served < 1000
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.spent().calls == served


def test_a_call_from_ordinary_code_works_inside_a_running_loop() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 3

    async def outer() -> int:
        return run_sync(inner())

    assert run(outer()) == run_sync(inner()) == 3


# -- secrets -------------------------------------------------------------------------------------


def test_a_planted_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = "sk-planted-9f8e7d6c5b4a"
    echo = FaultAction("status", status=400, message=f"you sent {key}")
    caplog.set_level(logging.DEBUG)

    def strike(info: RequestInfo) -> FaultAction | None:
        return echo if info.body["seed"] % 3 == 0 else None

    events: list[Event] = []
    with running_server(api_key=key, fault=strike) as server:
        endpoint = endpoint_of(server, key=key)
        answers = answers_of(
            requests(30), endpoint=endpoint, path=tmp_path / "l", on_event=events.append
        )
    assert any("you sent ***" in answer.error_detail for answer in answers)
    told = f"{answers} {events} {endpoint} {caplog.text}"
    assert key not in told
    for path in tmp_path.iterdir():
        assert key.encode() not in path.read_bytes(), path


# --- reaching the endpoint ------------------------------------------------------------------------


def test_the_server_is_reached_for_once_when_there_is_something_to_ask(tmp_path: Path) -> None:
    path = tmp_path / "l"
    reached: list[int] = []
    with running_server() as server:
        there = endpoint_of(server)
        known = replace(there, base_url="http://127.0.0.1:9/v1")

        def connect() -> Endpoint:
            reached.append(1)
            return there

        first = answers_of(requests(20), endpoint=known, path=path, connect=connect)
        again = answers_of(requests(20), endpoint=known, path=path, connect=connect)
    assert all(answer.ok for answer in [*first, *again])
    assert reached == [1], "a replay needs no server"


def test_an_endpoint_that_cannot_be_reached_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    def connect() -> Endpoint:
        raise EndpointError("the model file is gone", fix="fetch it")

    with running_server() as server, pytest.raises(EndpointError, match="the model file is gone"):
        answers_of(requests(3), endpoint=endpoint_of(server), path=tmp_path / "l", connect=connect)


def test_answers_of_another_endpoint_are_not_kept_under_this_ones_name(tmp_path: Path) -> None:
    with running_server() as server:
        other = replace(endpoint_of(server), identity="another server")
        with pytest.raises(ValueError, match="another"):
            answers_of(
                requests(3),
                endpoint=endpoint_of(server),
                path=tmp_path / "l",
                connect=lambda: other,
            )


def test_a_long_stream_is_read_no_further_ahead_than_a_window(tmp_path: Path) -> None:
    limits = Limits(concurrency=8)
    drawn = 0

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for one in range(6_000):
            drawn += 1
            yield request(one % 50, sample=one)

    async def slow() -> int:
        most = seen = 0
        with Ledger.open(tmp_path / "l") as ledger:
            asked = ask(stream(), endpoint=endpoint_of(server), ledger=ledger, limits=limits)
            async with aclosing(asked) as answers:
                async for _ in answers:
                    seen += 1
                    most = max(most, drawn - seen)
                    if seen == 600:
                        break
        return most

    with running_server() as server:
        assert run_sync(slow()) <= 2_048
