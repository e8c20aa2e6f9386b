"""Tokens without a call: exact where a tokenizer is at hand, measured where calls were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from synth_assets.counting import SAMPLE, Counters, PromptSample, answer_tokens, counters
from synth_assets.errors import EndpointError
from synth_assets.generation import Dialect
from synth_assets.llm import Ledger, build_body
from synth_assets.llm.embedded.server import MODELS, serve
from synth_assets.llm.ledger.history import (
    PastCall,
    completion_ratio,
    pace,
    past_calls,
    prompt_ratio,
    rows_asked,
    tokens_per_row,
)
from synth_assets.llm.tokens import (
    LlamaTokens,
    MeasuredRatio,
    OpenAITokens,
    assumed,
    openai_tokens,
    prompt_texts,
)
from tests.llm_support import answers_of, endpoint_of, request, requests
from tests.openai_server import running_server

TEXTS = [
    "hello world",
    "Hydraulic hose leaking, replaced O-ring 12345.",
    "Größe: 3½ m², größer als üblich",
    "漏れている油圧ホース",
    "def f(x):\n    return x ** 2\n",
    "\N{HAMMER AND WRENCH}\ufe0f pump №7",
]


def past(**changes: Any) -> PastCall:
    known: dict[str, Any] = {
        "prompt_chars": 300, "prompt_tokens": 100, "completion_chars": 120, "completion_tokens": 30,
        "started_at": 0.0, "seconds": 2.0, "rows": None,
    }  # fmt: skip
    return PastCall(**(known | changes))


def dialect(**changes: Any) -> Dialect:
    known: dict[str, Any] = {
        "model": "test-model", "style": "chat", "output": "json_schema",
        "sampling": {"max_tokens": 1000}, "seed": 0,
    }  # fmt: skip
    return Dialect(**(known | changes))


# --- tokenizers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("o200k_base", [2, 12, 13, 8, 11, 7]), ("cl100k_base", [2, 12, 15, 13, 11, 7])],
)
def test_openai_counts_are_those_of_the_reference_tokenizer(
    encoding: str, expected: list[int]
) -> None:
    # The numbers are tiktoken's, with OpenAI's own ranks.
    assert OpenAITokens(encoding).count(TEXTS) == expected


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-5-nano-2026-01-01", "o200k_base"),
        ("openai/o3-mini", "o200k_base"),
        ("o1", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::1", "o200k_base"),
        ("openai/gpt-oss-20b", "o200k_harmony"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
    ],
)
def test_the_name_tells_the_encoding(model: str, encoding: str) -> None:
    assert openai_tokens(model) == OpenAITokens(encoding)


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "llama-3", "olmo-2", "my-gpt-4o", ""])
def test_other_families_have_no_openai_tokenizer(model: str) -> None:
    assert openai_tokens(model) is None


def test_a_server_that_does_not_count_is_one_clear_error() -> None:
    with running_server() as server, pytest.raises(EndpointError, match="does not count tokens"):
        LlamaTokens(server.base_url).count(["text"])
    with pytest.raises(EndpointError, match="does not count tokens"):
        LlamaTokens("http://127.0.0.1:9/v1").count(["text"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_model_counts_as_it_bills(tmp_path: Path) -> None:
    from openai import OpenAI

    from synth_assets.settings import home

    with serve(
        MODELS["gemma-3-270m"],
        cache_dir=home().cache,
        slots=1,
        log_path=tmp_path / "log",
        notify=print,
    ) as server:
        counted = LlamaTokens(server.base_url).count(TEXTS)
        client = OpenAI(base_url=server.base_url, api_key="none")
        billed = [
            client.completions.create(model=server.model, prompt=text, max_tokens=1).usage
            for text in TEXTS
        ]
    assert counted == [usage.prompt_tokens for usage in billed if usage is not None]


# --- what calls measured ----------------------------------------------------------------------


def test_measured_tokens_are_those_that_were_billed_template_included(tmp_path: Path) -> None:
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers = answers_of(requests(40), endpoint=endpoint, path=tmp_path / "l", dataset="a")
    with Ledger.open(tmp_path / "l") as ledger:
        calls = past_calls(ledger, endpoint.identity, endpoint.model)
        assert past_calls(ledger, endpoint.identity, endpoint.model, dataset="b") == []
        assert past_calls(ledger, "elsewhere", endpoint.model) == []
        assert past_calls(ledger, endpoint.identity, "another model") == []
    assert len(calls) == 40
    measured = prompt_ratio(calls, "of this model")
    written = completion_ratio(calls, "of this model")
    assert measured is not None
    assert written is not None
    texts = [text for answer in answers for text in prompt_texts(answer.request.body)]
    billed = sum(answer.prompt_tokens or 0 for answer in answers)
    assert sum(measured.count(texts)) == pytest.approx(billed, rel=0.05)
    # The server puts 4 tokens around each message, which characters / 4 leave out.
    assert sum(assumed().count(texts)) < 0.9 * billed
    read = sum(written.count([answer.text or "" for answer in answers]))
    assert read == pytest.approx(sum(a.completion_tokens or 0 for a in answers), rel=0.05)


def test_only_the_latest_calls_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth_assets.llm.ledger.history.RECENT", 5)
    with running_server() as server:
        endpoint = endpoint_of(server)
        answers_of(requests(9), endpoint=endpoint, path=tmp_path / "l")
        answers_of([request(100)], endpoint=endpoint, path=tmp_path / "l")
    with Ledger.open(tmp_path / "l") as ledger:
        calls = past_calls(ledger, endpoint.identity, endpoint.model)
        every = ledger.query("SELECT max(started_at) FROM calls")
    assert len(calls) == 5
    assert calls[0].started_at == every[0][0]


def test_few_calls_measure_nothing() -> None:
    assert prompt_ratio([past()] * 19, "of this model") is None
    assert prompt_ratio([past()] * 20, "of this model") is not None
    assert tokens_per_row([past()] * 4, 8) is None
    assert pace([past()] * 4) is None
    assert pace([past(seconds=0.0)] * 30) is None


def test_rows_asked_come_from_the_schema_where_there_is_one() -> None:
    schema = {"type": "object", "properties": {"rows": {"type": "array", "minItems": 7}}}
    for mode, expected in (("json_schema", 7), ("tool", 7), ("list", None)):
        body = build_body(style="chat", mode=mode, model="m", user="u", schema=schema)  # type: ignore[arg-type]
        assert rows_asked(body) == expected
    assert tokens_per_row([past(rows=10)] * 5, 3) == 3.0
    assert tokens_per_row([past()] * 5, 3) == 10.0


def test_the_pace_counts_the_time_in_which_calls_were_under_way() -> None:
    two_at_once = [past(started_at=float(start), seconds=2.0) for start in (0, 0, 2, 2)]
    a_day_later = [past(started_at=90_000.0 + start, seconds=2.0) for start in (0, 0, 1, 2)]
    found = pace(two_at_once + a_day_later)
    assert found is not None
    assert found.latency_s == 2.0
    assert found.per_second == pytest.approx(8 / (4.0 + 4.0))


# --- which counter speaks ---------------------------------------------------------------------


def chosen(
    speaker: Dialect, mine: Sequence[PastCall] = (), model: Sequence[PastCall] = (), own: Any = None
) -> Counters:
    return counters(speaker, of_dataset=mine, of_model=model, tokenizer=lambda: own)


def test_what_was_measured_wins_over_a_tokenizer_for_chats() -> None:
    speaker = dialect(model="gpt-4o")
    assert chosen(speaker).prompts == OpenAITokens("o200k_base")
    assert chosen(speaker).per_message == 4
    measured = chosen(speaker, model=[past()] * 20)
    assert "20 calls of this model" in measured.prompts.method
    assert measured.per_message == 0
    both = chosen(speaker, mine=[past()] * 30, model=[past()] * 40)
    assert "30 calls of this dataset" in both.prompts.method


def test_a_base_models_own_tokenizer_wins_over_other_datasets() -> None:
    own = MeasuredRatio(2.0, "own")
    speaker = dialect(style="continue", output="list")
    assert chosen(speaker, model=[past()] * 20, own=own).prompts is own
    assert "this dataset" in chosen(speaker, mine=[past()] * 20, own=own).prompts.method
    assert "this model" in chosen(speaker, model=[past()] * 20).prompts.method


def test_a_tokenizer_that_needs_a_server_is_not_asked_for_in_vain() -> None:
    def started() -> None:
        raise AssertionError("a server was started for nothing")

    for model, calls in (("gpt-4o", []), ("another", [past()] * 20)):
        counters(dialect(model=model), of_dataset=calls, of_model=calls, tokenizer=started)  # type: ignore[arg-type]


def test_without_anything_a_token_is_four_characters_and_that_is_said() -> None:
    found = chosen(dialect()).prompts
    assert found.count(["x" * 400, ""]) == [100, 0]
    assert "no tokenizer" in found.method


# --- many prompts -----------------------------------------------------------------------------


def bodies(count: int) -> list[dict[str, Any]]:
    texts = (f"Pump {number}. " * (1 + number * 7 % 23) for number in range(count))
    return [build_body(style="chat", mode="list", model="m", user=text) for text in texts]


def test_a_sample_stands_for_all_prompts() -> None:
    all_bodies, counting = bodies(5_000), Counters(OpenAITokens("o200k_base"), assumed(), 4)
    samples = [PromptSample(), PromptSample()]
    for sample in samples:
        for body in all_bodies:
            sample.add(body)
    tokens, how = samples[0].tokens(counting)
    exact = counting.prompts.count([text for body in all_bodies for text in prompt_texts(body)])
    assert tokens == pytest.approx(sum(exact) + 4 * 2 * 5_000, rel=0.02)
    assert "of 5000 prompts" in how
    assert int(how.split(", on ")[1].split()[0]) <= SAMPLE
    assert samples[1].tokens(counting) == (tokens, how)


def test_few_prompts_are_all_counted() -> None:
    sample, counting = PromptSample(), Counters(OpenAITokens("o200k_base"), assumed(), 0)
    few = bodies(SAMPLE)
    for body in few:
        sample.add(body)
    exact = counting.prompts.count([text for body in few for text in prompt_texts(body)])
    assert sample.tokens(counting) == (sum(exact), "tokenizer o200k_base")


def test_answers_stop_at_the_limit_and_a_base_model_goes_there() -> None:
    import polars as pl

    from synth_assets.tasks.classification import Classification

    human = pl.DataFrame({"text": ["four words are here"] * 30, "label": ["a"] * 30})
    known: dict[str, Any] = {"task": Classification("t", "l"), "counting": chosen(dialect())}

    def tokens(speaker: Dialect, mine: Sequence[PastCall] = ()) -> int:
        return answer_tokens({8: 10}, human, dialect=speaker, of_dataset=mine, **known)[0]

    structured = len('{"text":"four words are here"},') / 4
    assert tokens(dialect()) == pytest.approx(10 * (8 * structured + 3), rel=0.05)
    assert tokens(dialect(sampling={"max_tokens": 50})) == 500
    assert tokens(dialect(style="continue", output="list", sampling={"max_tokens": 72})) == 720
    assert tokens(dialect(), [past(rows=8, completion_tokens=80)] * 20) == 800
    assert answer_tokens({}, human, dialect=dialect(), of_dataset=[], **known)[0] == 0
