"""The budget: never above the cap, whatever comes back and however much is asked at once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import UsageError
from synth_assets.llm import Budget, Caps, ErrorKind, Ledger, Limits, Prices, Spent, Tallies
from synth_assets.llm.budget import Cost, PriceTier, completion_limit
from tests.llm_support import answers_of, endpoint_of, request, requests, run
from tests.openai_server import FaultAction, running_server

PRICES = Prices(input_per_million=1.0, output_per_million=4.0)


@given(
    seed=st.integers(0, 2**32),
    cap=st.integers(1, 20_000),
    concurrency=st.integers(1, 256),
    in_usd=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_cap_holds_under_any_schedule(
    seed: int, cap: int, concurrency: int, in_usd: bool
) -> None:
    rng = random.Random(seed)
    caps = Caps(usd=cap / 1e6) if in_usd else Caps(tokens=cap)
    budget = Budget(caps, prices=PRICES)
    most = Cost(1, 300, PRICES.cost(100, 200))
    spent_for_real = Cost()

    async def call(places: asyncio.Semaphore) -> None:
        nonlocal spent_for_real
        async with places:
            reservation = await budget.reserve(most)
            if reservation is None:
                return
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            prompt, completion = rng.randrange(101), rng.randrange(201)
            real = Cost(1, prompt + completion, PRICES.cost(prompt, completion))
            ending = rng.choice(["settle", "refund", "unknown"])
            if ending == "refund":
                budget.refund(reservation)
                return
            spent_for_real += real
            check(spent_for_real)
            budget.settle(reservation, real if ending == "settle" else None)
            budget.settle(reservation, real)

    def check(spent: Cost) -> None:
        assert caps.tokens is None or spent.tokens <= caps.tokens
        assert caps.usd is None or spent.usd <= caps.usd * (1 + 1e-6)

    async def all_calls() -> None:
        places = asyncio.Semaphore(concurrency)
        await asyncio.gather(*(call(places) for _ in range(150)))

    run(all_calls())
    assert budget.reserved.calls == budget.reserved.tokens == 0
    assert budget.reserved.usd == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("caps", [Caps(usd=0.02), Caps(tokens=6_000), Caps(calls=17)], ids=str)
def test_a_run_ends_below_its_cap_and_goes_on_when_it_is_raised(tmp_path: Path, caps: Caps) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        path = tmp_path / "l"
        tallies = Tallies()
        answers = answers_of(
            requests(200),
            endpoint=endpoint,
            path=path,
            limits=Limits(concurrency=256),
            budget=Budget(caps, prices=PRICES),
            tallies=tallies,
        )
        with Ledger.open(path) as ledger:
            spent = ledger.spent()
        assert caps.usd is None or spent.usd <= caps.usd
        assert caps.tokens is None or spent.prompt_tokens + spent.completion_tokens <= caps.tokens
        assert caps.calls is None or server.successes_by_identity.total() == caps.calls
        bought = [answer for answer in answers if answer.ok]
        assert 0 < len(bought) < 200
        assert len(answers) == 200
        assert tallies.failed == {ErrorKind.BUDGET: 200 - len(bought)}
        assert tallies.usd == pytest.approx(spent.usd)

        raised = Budget(Caps(usd=100.0), prices=PRICES, before=spent)
        again = answers_of(requests(200), endpoint=endpoint, path=path, budget=raised)
        assert all(answer.ok for answer in again)
        assert max(server.successes_by_identity.values()) == 1


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    with running_server() as server:
        budget = Budget(Caps(calls=5), before=Spent(calls=5))
        answers = answers_of(
            requests(9), endpoint=endpoint_of(server), path=tmp_path / "l", budget=budget
        )
        assert server.request_count == 0
    assert {answer.error for answer in answers} == {ErrorKind.BUDGET}


def test_replays_need_no_budget(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers_of(requests(9), endpoint=endpoint, path=tmp_path / "l")
        budget = Budget(Caps(calls=9), before=Spent(calls=9))
        asked = [request(100), *requests(9)]
        answers = answers_of(asked, endpoint=endpoint, path=tmp_path / "l", budget=budget)
    assert sum(answer.ok for answer in answers) == 9


def test_errors_that_nobody_bills_give_their_room_back(tmp_path: Path) -> None:
    def strike(info: object) -> FaultAction | None:
        return FaultAction("status", status=500) if getattr(info, "attempt", 0) == 1 else None

    with running_server(fault=strike) as server:
        budget = Budget(Caps(calls=6))
        answers = answers_of(
            requests(6), endpoint=endpoint_of(server), path=tmp_path / "l", budget=budget
        )
    assert all(answer.ok for answer in answers)
    assert budget.spent.calls == 6


def test_a_call_that_timed_out_stays_spent(tmp_path: Path) -> None:
    def strike(info: object) -> FaultAction | None:
        return FaultAction("stall", seconds=3) if getattr(info, "attempt", 0) == 1 else None

    with running_server(fault=strike) as server:
        budget = Budget(Caps(calls=2))
        limits = Limits(concurrency=1, timeout_s=0.2)
        answers = answers_of(
            requests(2),
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            limits=limits,
            budget=budget,
        )
    assert budget.spent.calls == 2
    assert ErrorKind.BUDGET in {answer.error for answer in answers}


def test_a_cap_in_money_needs_prices() -> None:
    with pytest.raises(UsageError, match="needs prices"):
        Budget(Caps(usd=1.0))


def test_a_cap_in_tokens_needs_a_completion_limit(tmp_path: Path) -> None:
    with running_server() as server, pytest.raises(UsageError, match="completion limit"):
        answers_of(
            [request(1, max_tokens=None)],
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            budget=Budget(Caps(tokens=10_000)),
        )


def test_the_completion_limit_counts_every_choice() -> None:
    assert completion_limit({"max_tokens": 10, "n": 3}) == 30
    assert completion_limit({"max_completion_tokens": 7}) == 7
    assert completion_limit({}) is None


def test_the_worst_case_is_priced_at_the_dearest_tier_that_a_call_can_reach() -> None:
    tiers = (PriceTier(300, 2.0, 8.0), PriceTier(100_000, 50.0, 50.0))
    prices = Prices(1.0, 4.0, tiers=tiers, discount=0.5)
    budget = Budget(Caps(usd=1.0), prices=prices)
    worst = budget.worst_case({"max_tokens": 100}, b"x" * 100)
    # 100 bytes and the room for a template: 356 tokens, which is above 300.
    assert worst.tokens == 356 + 100
    assert worst.usd == pytest.approx((356 * 2.0 + 100 * 8.0) / 1e6 * 0.5)
