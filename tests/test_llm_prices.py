"""Prices: declared ones win, a bundled table knows the rest, and nobody is asked for them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_assets.errors import SynthError, UsageError
from synth_assets.llm import Ledger, Prices
from synth_assets.llm.budget import PriceTier
from synth_assets.llm.prices import EMBEDDED, prices_for, prices_of, require_prices
from tests.llm_support import answers_of, endpoint_of, request
from tests.openai_server import running_server

OPENAI = "https://api.openai.com/v1"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
TIERED = Prices(1.0, 4.0, tiers=(PriceTier(200, 2.0, 6.0), PriceTier(1000, 1.5, 9.0)))


def test_a_well_known_model_has_its_price_and_the_price_its_source() -> None:
    found = prices_for(OPENAI, "gpt-4o-mini", NOW)
    assert found is not None
    assert (found.input_per_million, found.output_per_million) == (0.15, 0.6)
    assert found.source.startswith("genai-prices 0.")
    assert (found.discount, found.tiers, found.per_call) == (1.0, (), 0.0)


@pytest.mark.parametrize(
    ("address", "model"),
    [
        ("api.openai.com", "gpt-4o-mini"),
        ("https://api.openai.com/v1", "gpt-4o-mini-2024-07-18"),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini"),
        ("https://my-team.openai.azure.com/openai/v1", "gpt-4o-mini"),
    ],
)
def test_the_address_tells_the_provider(address: str, model: str) -> None:
    found = prices_for(address, model, NOW)
    assert found is not None
    assert found.input_per_million == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("address", "model"),
    [
        ("http://127.0.0.1:8000/v1", "gpt-4o"),
        ("http://localhost/v1", "gpt-4o"),
        ("http://[::1]:8000/v1", "gpt-4o"),
        ("https://gateway.example.org/v1", "gpt-4o"),
        ("https://api.openai.com.example.org/v1", "gpt-4o"),
        (OPENAI, "a-model-that-is-not-there"),
        (OPENAI, "text-embedding-3-small"),
        ("http://[broken", "gpt-4o"),
    ],
)
def test_no_price_is_known_where_nobody_lists_one(address: str, model: str) -> None:
    assert prices_for(address, model, NOW) is None


def test_a_price_is_that_of_its_day() -> None:
    before, after = (
        prices_for(
            "https://api.anthropic.com/v1", "claude-opus-4-6", datetime(2026, m, 1, tzinfo=UTC)
        )
        for m in (2, 6)
    )
    assert before is not None
    assert after is not None
    assert [tier.above_prompt_tokens for tier in before.tiers] == [200_000]
    assert after.tiers == ()


def test_a_long_prompt_pays_its_tier_for_every_token() -> None:
    found = prices_for(
        "https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-pro", NOW
    )
    assert found is not None
    assert found.cost(200_000, 1_000) == pytest.approx((200_000 * 1.25 + 1_000 * 10) / 1e6)
    assert found.cost(200_001, 1_000) == pytest.approx((200_001 * 2.5 + 1_000 * 15) / 1e6)


def test_a_price_per_call_is_part_of_the_cost() -> None:
    found = prices_for("https://api.perplexity.ai", "sonar", NOW)
    assert found is not None
    assert found.per_call > 0
    assert found.cost(0, 0) == found.per_call


@given(
    prompt=st.integers(0, 3000),
    completion=st.integers(0, 3000),
    more_prompt=st.integers(0, 3000),
    more_completion=st.integers(0, 3000),
    discount=st.floats(0.1, 1.0),
)
def test_the_worst_cost_is_never_below_a_cost(
    prompt: int, completion: int, more_prompt: int, more_completion: int, discount: float
) -> None:
    prices = TIERED.discounted(discount)
    worst = prices.worst_cost(prompt + more_prompt, completion + more_completion)
    assert prices.cost(prompt, completion) <= worst + 1e-15


def test_declared_prices_win_and_the_embedded_model_costs_nothing() -> None:
    declared = Prices(1.0, 2.0)
    known: dict[str, Any] = {"address": OPENAI, "model": "gpt-4o-mini", "at": NOW}
    assert prices_of(declared, embedded=False, **known) is declared
    assert prices_of(declared, embedded=True, **known) is declared
    assert prices_of(None, embedded=True, **known) is EMBEDDED
    assert EMBEDDED.cost(10_000, 10_000) == 0.0
    assert prices_of(None, embedded=False, **known) == prices_for(OPENAI, "gpt-4o-mini", NOW)


def test_a_discount_is_part_of_the_price_and_adds_up() -> None:
    halved = Prices(1.0, 4.0, per_call=0.01).discounted(0.5)
    assert halved.cost(1_000_000, 1_000_000) == pytest.approx(2.505)
    assert halved.discounted(0.5).discount == 0.25
    assert json.loads(halved.as_json())["discount"] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Prices(-1.0, 1.0),
        lambda: Prices(1.0, 1.0, discount=-0.5),
        lambda: Prices(1.0, 1.0, tiers=(PriceTier(10, 1.0, -1.0),)),
        lambda: Prices(float("nan"), 1.0),
    ],
)
def test_a_negative_price_is_refused(wrong: Any) -> None:
    with pytest.raises(SynthError, match="price"):
        wrong()


def test_the_ledger_keeps_what_a_call_was_priced_with(tmp_path: Path) -> None:
    prices = Prices(1.0, 2.0, source="genai-prices 9.9", tiers=(PriceTier(5, 3.0, 4.0),))
    with running_server() as server:
        (answer,) = answers_of(
            [request(1)],
            endpoint=endpoint_of(server),
            path=tmp_path / "l",
            prices=prices.discounted(0.5),
        )
    with Ledger.open(tmp_path / "l") as ledger:
        row = ledger.call(answer.request_id)
    assert row is not None
    assert row.prices is not None
    kept = json.loads(row.prices)
    assert (kept["source"], kept["discount"]) == ("genai-prices 9.9", 0.5)
    # What is kept is enough to come to the same cost again.
    tiers = tuple(PriceTier(**tier) for tier in kept.pop("tiers"))
    again = Prices(**kept, tiers=tiers)
    assert row.prompt_tokens is not None
    assert row.completion_tokens is not None
    assert row.cost_usd == pytest.approx(again.cost(row.prompt_tokens, row.completion_tokens))
    assert row.cost_usd == pytest.approx((row.prompt_tokens * 3 + row.completion_tokens * 4) / 2e6)


def test_a_budget_in_money_without_a_price_names_the_model_and_the_fix() -> None:
    with pytest.raises(UsageError, match="my-model") as caught:
        require_prices(None, model="my-model")
    assert "generate.prices" in caught.value.fix
    assert "cap tokens or calls" in caught.value.fix
    prices = Prices(1.0, 1.0)
    assert require_prices(prices, model="my-model") is prices


def test_looking_up_a_price_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a price was looked up over the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert prices_for(OPENAI, "gpt-4.1-mini", NOW) is not None
    assert prices_for(OPENAI, "another-model-that-is-not-there", NOW) is None


def test_neither_table_nor_tokenizer_is_loaded_before_it_is_needed() -> None:
    program = (
        "import sys, synth_assets.forecast\n"
        "print([name for name in ('genai_prices', 'toktok') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.strip() == "[]"
