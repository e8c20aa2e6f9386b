"""What generation will cost and take: the arithmetic by itself, and the forecast against what was
then spent, through the command line and a real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.lifecycle.expect import LastTime, expected, last_time
from synth_assets.lifecycle.refill import next_round
from synth_assets.llm import Limits, Prices
from synth_assets.llm.answers import Tallies
from synth_assets.llm.budget import PriceTier
from synth_assets.llm.estimate import (
    EMBEDDED_START_S,
    FIGURES,
    FIRST_TOKEN_S,
    TOKENS_PER_SECOND,
    Cores,
    Estimate,
    Work,
    estimate,
    forecast_error,
)
from synth_assets.llm.ledger.history import Pace
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.test_run import Ran, run, synth

WORK = Work(rounds=(80, 20), cached_calls=0, prompt_tokens=50_000, completion_tokens=20_000)


def found(work: Work = WORK, *, limits: Limits | None = None, **known: Any) -> Estimate:
    facts: dict[str, Any] = {"prices": None, "pace": None}
    return estimate(work, limits=limits or Limits(concurrency=10), **(facts | known))


# --- arithmetic -------------------------------------------------------------------------------


def test_without_history_time_is_an_assumption_that_is_said() -> None:
    result = found()
    each = FIRST_TOKEN_S + 200 / TOKENS_PER_SECOND
    assert result.seconds == pytest.approx((80 / 10 + 20 / 10) * each, abs=0.1)
    assert result.how["seconds"].startswith("assumed")


def test_time_follows_the_measured_pace_and_the_calls_at_once() -> None:
    pace = Pace(latency_s=3.0, tokens=200, per_second=4.0, calls=50)
    assert found(pace=pace).seconds == pytest.approx(10 * 3.0)
    assert found(pace=pace, limits=Limits(concurrency=20)).seconds == pytest.approx(5 * 3.0)
    # A round takes one answer's time at least, however many may be asked at once.
    assert found(pace=pace, limits=Limits(concurrency=1000)).seconds == pytest.approx(2 * 3.0)
    longer = replace(WORK, completion_tokens=40_000)
    assert found(longer, pace=pace).seconds == pytest.approx(10 * 6.0)
    assert "last 50 calls" in found(pace=pace).how["seconds"]


@pytest.mark.parametrize(
    ("limits", "seconds", "word"),
    [
        (Limits(concurrency=100, requests_per_min=10), 99 * 6.0, "requests_per_min"),
        (Limits(concurrency=100, tokens_per_min=7_000), 600.0, "tokens_per_min"),
    ],
)
def test_a_rate_limit_bounds_the_time(limits: Limits, seconds: float, word: str) -> None:
    result = found(limits=limits)
    assert result.seconds == pytest.approx(seconds)
    assert word in result.how["seconds"]


def test_an_embedded_model_is_as_fast_as_its_cores_however_many_calls_are_open() -> None:
    def took(cores: int, concurrency: int, file_mb: float = 253.0) -> float:
        limits = Limits(concurrency=concurrency)
        return found(limits=limits, cores=Cores(cores, file_mb)).seconds - EMBEDDED_START_S

    assert took(2, 4) == took(2, 64)
    assert took(4, 4) == pytest.approx(took(2, 4) / 2, rel=0.01)
    assert took(2, 4, 506.0) == pytest.approx(took(2, 4) * 2, rel=0.01)
    pace = Pace(latency_s=8.0, tokens=200, per_second=2.0, calls=50)
    measured = found(cores=Cores(2), pace=pace)
    assert measured.seconds == pytest.approx(EMBEDDED_START_S + 100 / 2.0)


def test_nothing_to_ask_takes_no_time_and_no_money() -> None:
    held = Work((80, 20), 100, 0, 0)
    result = found(held, prices=Prices(1.0, 1.0), limits=Limits(requests_per_min=1))
    assert (result.calls, result.cached_calls, result.usd, result.seconds) == (100, 100, 0.0, 0.0)


def test_money_is_priced_per_call_in_its_tier_and_null_without_a_price() -> None:
    assert found().usd is None
    assert "generate.prices" in found().how["usd"]
    prices = Prices(1.0, 2.0, source="a list", per_call=0.001)
    assert found(prices=prices).usd == pytest.approx(0.05 + 0.04 + 0.1)
    assert found(prices=prices).how["usd"] == "a list"
    # 500 tokens a call: the 50,000 of all calls are not one long prompt.
    tiered = Prices(1.0, 2.0, tiers=(PriceTier(501, 100.0, 100.0),))
    assert found(prices=tiered).usd == pytest.approx(0.09)
    assert found(prices=tiered.discounted(0.5)).usd == pytest.approx(0.045)
    assert "0.5" in found(prices=tiered.discounted(0.5)).how["usd"]


def test_an_error_is_a_percentage_and_null_where_there_is_none() -> None:
    result = found(prices=None)
    spent = {
        "calls": 80,
        "prompt_tokens": 62_500,
        "completion_tokens": 0,
        "usd": 1.0,
        "seconds": None,
    }
    assert forecast_error(result, spent) == {
        "calls": 25.0,
        "prompt_tokens": -20.0,
        "completion_tokens": None,
        "usd": None,
        "seconds": None,
    }
    assert set(forecast_error(result, {})) == set(FIGURES)


# --- expected rounds --------------------------------------------------------------------------


def plan_of(**wanted: int) -> pl.DataFrame:
    """Five rows a call, up to four rows asked for per row wanted; by ordinal, then cell."""
    return pl.DataFrame(
        [
            {
                "cell": cell, "ordinal": ordinal, "wanted": rows, "rows": 5,
                "prompt_version": f"{cell}-{ordinal}",
            }
            for cell, rows in wanted.items()
            for ordinal in range(rows * 4 // 5)
        ],
        schema_overrides={"ordinal": pl.Int32, "wanted": pl.Int32, "rows": pl.Int32},
    ).sort("ordinal", "cell")  # fmt: skip


def test_without_history_the_first_round_is_expected() -> None:
    plan = plan_of(a=40, b=10)
    result = expected(plan, None, first_yield=0.8)
    first = next_round(plan, {}, first_yield=0.8)
    assert result.rounds == (first.height,)
    assert dict(result.stops) == dict(first.group_by("cell").len().iter_rows())


def test_a_poor_yield_means_more_rounds_and_no_more_than_the_plan_allows() -> None:
    plan = plan_of(a=40, b=10)
    poor = LastTime({"a": 20, "b": 4}, {"a": 40, "b": 0}, (24,), same_plan=False)
    result = expected(plan, poor, first_yield=0.8)
    assert len(result.rounds) > 1
    assert result.stops["a"] == pytest.approx(40 / (5 * 0.4), abs=2)
    assert result.stops["b"] == 8
    assert sum(result.rounds) == sum(result.stops.values())
    assert "36%" not in result.how
    assert "33%" in result.how


def generation(
    plan: pl.DataFrame, calls: dict[str, int], good: dict[str, int]
) -> dict[str, pl.LazyFrame]:
    """Tables of a generation that made so many calls of each cell, with so many good rows."""
    made = plan.filter(
        pl.col("ordinal") < pl.col("cell").replace_strict(calls, return_dtype=pl.Int64)
    )
    rows = (
        made.with_columns(
            request_id=pl.col("prompt_version"), round=pl.lit(0), item=pl.int_ranges("rows")
        )
        .explode("item")
        .with_columns(number=pl.int_range(pl.len()).over("cell"))
    )
    limit = pl.col("cell").replace_strict(good, return_dtype=pl.Int64)
    rows = rows.with_columns(
        reason=pl.when(pl.col("number") >= limit)
        .then(pl.lit("malformed"))
        .when(pl.col("number") >= pl.col("wanted"))
        .then(pl.lit("surplus"))
    )
    kept = rows.filter(pl.col("reason").is_null())
    refused = rows.filter(pl.col("reason").is_not_null())
    return {"candidates": rows.lazy(), "synthetic": kept.lazy(), "rejects": refused.lazy()}


def test_the_same_plan_is_expected_to_go_as_it_went() -> None:
    plan = plan_of(a=40, b=10)
    last = last_time(plan.lazy(), **generation(plan, {"a": 11, "b": 3}, {"a": 50, "b": 12}))
    assert last is not None
    assert last.same_plan
    result = expected(plan, last, first_yield=0.8)
    assert dict(result.stops) == {"a": 11, "b": 3}
    assert sum(result.rounds) == 14


@pytest.mark.parametrize("change", ["prompt", "wanted", "unfinished"])
def test_another_plan_is_expected_at_the_yield_that_was_seen(change: str) -> None:
    plan = plan_of(a=40, b=10)
    tables = generation(
        plan, {"a": 16, "b": 4}, {"a": 39 if change == "unfinished" else 40, "b": 10}
    )
    if change == "prompt":
        plan = plan.with_columns(prompt_version=pl.col("prompt_version") + "!")
    if change == "wanted":
        plan = plan_of(a=80, b=20)
    last = last_time(plan.lazy(), **tables)
    assert last is not None
    assert not last.same_plan
    result = expected(plan, last, first_yield=0.8)
    assert result.stops["a"] == pytest.approx((2 if change == "wanted" else 1) * 16, abs=1)


def test_rows_that_are_not_judged_yet_tell_the_calls_of_the_same_plan_only() -> None:
    plan = plan_of(a=40, b=10)
    old = generation(plan, {"a": 10, "b": 3}, {"a": 40, "b": 10})
    new = generation(plan, {"a": 12, "b": 3}, {"a": 40, "b": 10})
    mixed = {**old, "candidates": new["candidates"]}
    last = last_time(plan.lazy(), **mixed)
    assert last is not None
    assert dict(expected(plan, last, first_yield=0.8).stops) == {"a": 12, "b": 3}
    other = plan.with_columns(prompt_version=pl.col("prompt_version") + "!")
    assert last_time(other.lazy(), **mixed) is None


# --- against what was then spent --------------------------------------------------------------


@pytest.fixture
def endpoint(synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerState]:
    with running_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield server


def forecast() -> dict[str, Any]:
    ran = synth("plan", "tickets", "--json")
    assert ran.code == 0, ran.errors
    return ran.json


def errors(told: dict[str, Any], ran: Ran) -> dict[str, float | None]:
    """Percent of each figure, as forecast against spent."""
    assert ran.code == 0, ran.errors
    calls, tokens = ran.json["calls"], ran.json["tokens"]
    spent = {
        "calls": calls["made"] + calls["replayed"],
        "prompt_tokens": tokens["prompt"],
        "completion_tokens": tokens["completion"],
        "usd": ran.json["cost_usd"],
    }
    return forecast_error(
        Estimate(**{key: told[key] for key in told if key not in ("rows", "warnings")}), spent
    )


def within(found: dict[str, float | None], **bounds: float) -> bool:
    return all(abs(found[name] or 0.0) <= bound for name, bound in bounds.items())


def test_a_forecast_before_and_after_a_first_run_is_near_what_is_then_spent(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    tickets.edit("generate.prices", {"input_per_million": 1.0, "output_per_million": 2.0})
    tickets.edit("generate.rows_per_call", 3)
    first = forecast()
    assert endpoint.request_count == 0
    assert "tries the endpoint" in first["how"]["calls"]
    assert first["seconds"] > 0
    off = errors(first, run("tickets", "--until", "rejects"))
    # The first round, with human rows for a measure: generated ones are longer or shorter.
    assert within(off, calls=15, prompt_tokens=15, completion_tokens=25), off

    again = forecast()
    assert (again["cached_calls"], again["prompt_tokens"], again["usd"]) == (again["calls"], 0, 0.0)
    assert again["seconds"] == 0.0
    asked = endpoint.request_count

    prompt = tickets.folder / "prompt.md.j2"
    prompt.write_text("Be plain and short.\n" + prompt.read_text())
    second = forecast()
    assert endpoint.request_count == asked
    assert second["cached_calls"] == 0
    assert "last generation" in second["how"]["calls"]
    assert "of this" in second["how"]["prompt_tokens"]
    assert "of this dataset" in second["how"]["completion_tokens"]
    off = errors(second, run("tickets", "--until", "rejects"))
    assert within(off, calls=10, prompt_tokens=10, completion_tokens=10, usd=10), off


def test_a_forecast_of_the_same_plan_for_another_model_asks_as_many_calls(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    done = run("tickets", "--until", "rejects")
    endpoint.models = ("test-model", "gpt-4o-mini")
    tickets.edit("generate.model", "gpt-4o-mini")
    told = forecast()
    calls = done.json["calls"]["made"]
    assert (told["calls"], told["cached_calls"]) == (calls, 0)
    assert told["how"]["prompt_tokens"] == "tokenizer o200k_base"
    # A server on this machine has no list price, whatever its model is called.
    assert told["usd"] is None
    assert told["seconds"] > 0


def test_forecasting_needs_no_server_at_all(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.openai.com/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    tickets.edit("generate.model", "gpt-4o-mini")
    told = forecast()
    assert told["usd"] > 0
    assert told["how"]["usd"].startswith("genai-prices")
    assert told["prompt_tokens"] > 0


def test_an_embedded_model_that_is_not_here_is_not_fetched_for_a_forecast(
    tickets: DatasetFolder, synth_home: Path
) -> None:
    tickets.prompt = "{{ label }}\n{% for e in examples %}\n- {{ e }}\n{% endfor %}\n-"
    tickets.attributes["generate"] |= {
        "model": "embedded/gemma-3-270m", "style": "continue", "max_tokens": 40, "endpoint": {},
    }  # fmt: skip
    tickets.write()
    told = forecast()
    assert told["completion_tokens"] == 40 * told["calls"]
    assert (told["usd"], told["how"]["usd"]) == (0.0, "embedded model")
    assert "no tokenizer" in told["how"]["prompt_tokens"]
    assert not list(synth_home.rglob("*.gguf*"))


def test_prompts_are_read_a_chunk_at_a_time(
    tickets: DatasetFolder, endpoint: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.edit("generate.rows_per_call", 1)
    whole = forecast()
    sizes: list[int] = []
    from synth_assets import forecast as module

    held = module._held

    def noting(ledger: Any, ids: list[str]) -> set[str]:
        sizes.append(len(ids))
        return held(ledger, ids)

    monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr(module, "_held", noting)
    assert forecast() == whole
    assert max(sizes) <= 7
    assert (
        sum(sizes) == whole["calls"] - 1
    )  # the first call that tries the endpoint is none of them


def test_what_was_spent_has_the_forecasts_names() -> None:
    from synth_assets.forecast import spent_of

    spent = spent_of(Tallies(bought=7, replayed=3, prompt_tokens=5, usd=0.5), priced=True)
    assert set(spent) == set(FIGURES)
    assert (spent["calls"], spent["usd"]) == (10, 0.5)
    assert spent_of(Tallies(), priced=False)["usd"] is None
