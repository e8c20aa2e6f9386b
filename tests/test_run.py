"""A dataset from its folder to its release, through the command line and a real HTTP server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.cli import main
from tests.datasets import DatasetFolder, human_rows, write_csv
from tests.openai_server import ServerState, running_server

PAID = ["candidates", "synthetic", "rejects"]
PRODUCT = ["blend", "train", "validation", "contribution", "release"]
HUMAN = ["human_raw", "human", "human_rejects", "human_train", "holdout", "set_aside"]


@dataclass
class Ran:
    """What one command gave."""

    result: Result
    json: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> int:
        return self.result.exit_code

    @property
    def errors(self) -> str:
        return self.result.stderr


def synth(*words: str) -> Ran:
    result = CliRunner().invoke(main, [*words], catch_exceptions=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return Ran(result, json.loads(lines[-1]) if lines else {})


def run(name: str = "tickets", *words: str) -> Ran:
    return synth("run", name, "--json", *words)


def statuses(name: str = "tickets") -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in synth("status", name, "--json").json["stages"]}


def versions(name: str = "tickets") -> dict[str, str]:
    return {stage: found["data_version"] for stage, found in statuses(name).items()}


def table(home: Path, stage: str, name: str = "tickets") -> pl.DataFrame:
    version = versions(name)[stage]
    return pl.read_parquet(home / "store" / name / stage / f"{version}.parquet")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture
def endpoint(server: ServerState, synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> ServerState:
    server.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return server


@pytest.fixture
def done(tickets: DatasetFolder, endpoint: ServerState) -> DatasetFolder:
    """The tickets dataset after one complete run."""
    ran = run()
    assert ran.code == 0, ran.errors
    return tickets


def test_a_first_run_makes_every_stage_fresh_with_rows_and_versions(done: DatasetFolder) -> None:
    found = statuses()
    assert list(found) == ["source", *STAGES]
    assert {stage["status"] for stage in found.values()} == {"fresh"}
    assert all(found[s]["rows"] is not None and found[s]["code_version"] for s in STAGES)
    assert all(stage["data_version"] and stage["materialized_at"] for stage in found.values())


def test_as_many_rows_are_accepted_as_were_wanted(done: DatasetFolder, synth_home: Path) -> None:
    rows = table(synth_home, "synthetic")
    assert sorted(rows.group_by("label").len().rows()) == [
        ("billing", 20),
        ("delivery", 20),
        ("login", 20),
    ]
    assert rows["record_id"].n_unique() == rows.height


def test_every_synthetic_row_leads_to_its_call_and_its_seeds(
    done: DatasetFolder, synth_home: Path, endpoint: ServerState
) -> None:
    from synth_assets.llm.ledger.ledger import Ledger

    rows, seeds = table(synth_home, "synthetic"), table(synth_home, "seeds")
    with Ledger.open(synth_home / "ledger" / "ledger.sqlite") as ledger:
        for row in rows.sample(10, seed=1).iter_rows(named=True):
            call = ledger.call(row["request_id"])
            assert call is not None
            assert row["text"] in call.response.decode()
            texts = seeds.filter(pl.col("record_id").is_in(row["seed_ids"]))["text"]
            assert len(texts) == len(row["seed_ids"]) > 0
            assert all(json.dumps(text)[1:-1] in call.request.decode() for text in texts)


def test_nothing_that_failed_is_lost(done: DatasetFolder, synth_home: Path) -> None:
    counts = {stage: table(synth_home, stage).height for stage in (*HUMAN, *PAID)}
    assert counts["human"] + counts["human_rejects"] == counts["human_raw"]
    assert counts["human_train"] + counts["holdout"] + counts["set_aside"] == counts["human"]
    assert counts["synthetic"] + counts["rejects"] == counts["candidates"]
    assert table(synth_home, "rejects")["reason"].null_count() == 0


def test_no_holdout_text_reached_a_prompt(
    done: DatasetFolder, synth_home: Path, endpoint: ServerState
) -> None:
    sent = json.dumps([request.body for request in endpoint.requests])
    holdout = table(synth_home, "holdout")["text"]
    assert holdout.len() > 10
    assert not [text for text in holdout if text in sent]


def test_a_second_run_runs_nothing_and_asks_nothing(
    done: DatasetFolder, endpoint: ServerState
) -> None:
    asked = len(endpoint.requests)
    ran = run()
    assert (ran.code, ran.json["ran"], ran.json["calls"]["made"]) == (0, [], 0)
    assert len(endpoint.requests) == asked


def test_a_prompt_edit_reruns_generation_and_nothing_upstream(done: DatasetFolder) -> None:
    path = done.folder / "prompt.md.j2"
    path.write_text("Be inventive.\n" + path.read_text())
    assert statuses()["plan"]["status"] == "stale"
    ran = run()
    assert ran.code == 0, ran.errors
    assert set(ran.json["ran"]) == {"plan", *PAID, *PRODUCT}
    assert ran.json["calls"]["made"] > 0


def test_a_prompt_that_renders_the_same_stops_at_the_plan(done: DatasetFolder) -> None:
    path = done.folder / "prompt.md.j2"
    path.write_text("{# reviewed #}" + path.read_text())
    ran = run()
    assert (ran.code, ran.json["ran"]) == (0, ["plan"])


@pytest.mark.slow
def test_going_back_to_an_old_prompt_asks_nothing_again(
    done: DatasetFolder, endpoint: ServerState
) -> None:
    before, path = versions(), done.folder / "prompt.md.j2"
    old = path.read_text()
    path.write_text("Be inventive.\n" + old)
    assert run().code == 0
    path.write_text(old)
    asked = len(endpoint.requests)
    ran = run()
    assert ran.json["calls"]["made"] == 0
    assert ran.json["calls"]["replayed"] > 0
    assert len(endpoint.requests) == asked
    assert versions() == before


def test_a_new_source_row_reruns_what_it_touches_and_moves_no_other_row(
    done: DatasetFolder, synth_home: Path
) -> None:
    sides = {s: set(table(synth_home, s)["record_id"]) for s in ("human_train", "holdout")}
    more = {"body": "a forklift drove over my brand new espresso machine", "topic": "delivery"}
    write_csv(done.folder / "human.csv", [*done.rows, more])
    ran = run()
    assert ran.code == 0, ran.errors
    assert {"human_raw", "human"} <= set(ran.json["ran"])
    after = {s: set(table(synth_home, s)["record_id"]) for s in ("human_train", "holdout")}
    assert sides["human_train"] & after["holdout"] == set()
    assert sides["holdout"] & after["human_train"] == set()
    assert sum(map(len, after.values())) == sum(map(len, sides.values())) + 1


def test_a_rewritten_source_of_the_same_rows_stops_at_the_landing(done: DatasetFolder) -> None:
    path = done.folder / "human.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n") + b"\n")
    ran = run()
    assert (ran.code, ran.json["ran"]) == (0, ["human_raw"])


def test_another_home_and_another_concurrency_give_the_same_bytes(
    done: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = versions()
    for name in ("SYNTH_HOME", "DAGSTER_HOME"):
        folder = tmp_path / "elsewhere" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    ran = run("tickets", "--concurrency", "1")
    assert ran.code == 0, ran.errors
    assert versions() == first


def test_a_validation_rule_asks_nothing_new_when_enough_rows_pass(
    done: DatasetFolder, endpoint: ServerState
) -> None:
    done.edit("validate.near_duplicate", 0.95)
    ran = run()
    assert ran.json["calls"]["made"] == 0
    assert "human_raw" not in ran.json["ran"]


def test_a_blend_share_reruns_the_product_only(done: DatasetFolder, endpoint: ServerState) -> None:
    done.edit("blend.synthetic_share", 0.2)
    asked = len(endpoint.requests)
    ran = run()
    assert set(ran.json["ran"]) <= set(PRODUCT)
    assert "blend" in ran.json["ran"]
    assert len(endpoint.requests) == asked


def test_a_release_holds_the_tables_and_a_manifest_that_names_them(
    done: DatasetFolder, synth_home: Path
) -> None:
    root = synth_home / "releases" / "tickets"
    folder = root / (root / "current").read_text().strip()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == folder.name
    assert manifest["stages"]["train"]["data_version"] == versions()["train"]
    assert manifest["prompt"] == done.prompt
    assert pl.read_parquet(folder / "train.parquet").height == statuses()["train"]["rows"]
    assert "Did the synthetic rows help?" in (folder / "README.md").read_text()


def test_a_handwritten_seed_that_copies_the_holdout_blocks_generation(
    done: DatasetFolder, synth_home: Path, endpoint: ServerState
) -> None:
    stolen = table(synth_home, "holdout").row(0, named=True)
    seed = {"text": stolen["text"].upper(), "label": stolen["label"]}
    (done.folder / "seeds.jsonl").write_text(json.dumps(seed))
    asked = len(endpoint.requests)
    for _ in range(2):
        ran = run()
        assert ran.code == 3
        assert "seeds/no_leakage" in ran.errors
    assert len(endpoint.requests) == asked
    assert statuses()["seeds"]["status"] == "failed"
    (done.folder / "seeds.jsonl").unlink()
    assert run().code == 0


def test_a_handwritten_seed_joins_the_prompts(
    tickets: DatasetFolder, endpoint: ServerState, synth_home: Path
) -> None:
    text = "the voice menu sends me round in circles"
    (tickets.folder / "seeds.jsonl").write_text(json.dumps({"text": text, "label": "login"}))
    assert run().code == 0
    seeds = table(synth_home, "seeds").filter(pl.col("origin") == "handwritten")
    assert seeds["text"].to_list() == [text]
    assert text in json.dumps([request.body for request in endpoint.requests])


def test_a_shortfall_is_told_by_label_and_ends_with_3(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    tickets.edit("generate.candidate_limit", 1.0)
    tickets.edit("validate.near_duplicate", 0.15)
    ran = run()
    assert ran.code == 3
    assert "exact_counts" in ran.errors
    assert " of 20" in ran.errors


def test_json_of_a_run_is_one_line_with_counts(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    ran = run()
    assert ran.result.stdout.count("\n") == 1
    assert set(ran.json) == {
        "dataset", "ran", "skipped", "rows", "calls", "tokens", "cost_usd", "seconds",
        "exit_code", "problems", "warnings",
    }  # fmt: skip
    assert ran.json["calls"]["made"] == sum(endpoint.successes_by_identity.values())
    assert ran.json["tokens"]["completion"] > 0


def test_a_server_without_structured_output_is_asked_for_plain_lists(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(structured=False, json_mode=False, tools=False) as plain:
        monkeypatch.setenv("OPENAI_BASE_URL", plain.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        ran = run()
    assert ran.code == 0, ran.errors
    assert not any("response_format" in r.body for r in plain.requests[4:])


def test_a_base_model_continues_a_list(tickets: DatasetFolder, endpoint: ServerState) -> None:
    tickets.prompt = "{{ label }}\n{% for e in examples %}\n- {{ e }}\n{% endfor %}\n-"
    tickets.attributes["generate"] |= {"style": "continue", "max_tokens": 90}
    tickets.write()
    ran = run()
    assert ran.code == 0, ran.errors
    assert {request.path for request in endpoint.requests} == {"/v1/completions"}


def test_plan_forecasts_without_a_call(tickets: DatasetFolder, endpoint: ServerState) -> None:
    tickets.edit("generate.prices", {"input_per_million": 1.0, "output_per_million": 2.0})
    found = synth("plan", "tickets", "--json")
    assert found.code == 0, found.errors
    assert set(found.json) >= {
        "calls", "cached_calls", "prompt_tokens", "completion_tokens", "usd", "seconds",
    }  # fmt: skip
    assert endpoint.requests == []
    assert found.json["calls"] >= 12
    assert found.json["usd"] > 0


# --- endpoints that cannot answer -------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1", ["127.0.0.1:9"]),
        ("OPENAI_BASE_URL", "", ["OPENAI_BASE_URL"]),
        ("OPENAI_API_KEY", "wrong-key-1234", ["OPENAI_API_KEY"]),
    ],
)
def test_an_endpoint_that_cannot_answer_is_one_clear_error(
    tickets: DatasetFolder,
    endpoint: ServerState,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: list[str],
) -> None:
    monkeypatch.setenv(variable, value)
    ran = run()
    assert ran.code == 1
    assert all(word in ran.errors for word in words), ran.errors
    assert "fix:" in ran.errors
    assert "Traceback" not in ran.errors
    assert "wrong-key-1234" not in ran.errors
    assert len(endpoint.requests) <= 16
    assert statuses()["candidates"]["status"] == "failed"


def test_an_unknown_model_is_one_clear_error(tickets: DatasetFolder, endpoint: ServerState) -> None:
    tickets.edit("generate.model", "no-such-model")
    ran = run()
    assert ran.code == 1
    assert "no-such-model" in ran.errors
    assert len(endpoint.requests) <= 16


def test_an_unknown_embedded_model_names_the_known_ones(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    tickets.edit("generate.model", "embedded/gemma-9")
    ran = run()
    assert ran.code == 1
    assert "embedded/gemma-3-270m" in ran.errors


def test_chatting_with_an_embedded_base_model_is_refused(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    tickets.edit("generate.model", "embedded/gemma-3-270m")
    ran = run()
    assert ran.code == 1
    assert "style: continue" in ran.errors


# --- human data as it comes -------------------------------------------------------------------


def test_bad_rows_are_counted_by_reason_and_the_rest_is_used(
    tickets: DatasetFolder, endpoint: ServerState, synth_home: Path
) -> None:
    path = tickets.folder / "human.csv"
    text = path.read_text()
    bad = (
        ",billing\n"
        '"   ",billing\n'
        "no label here,\n"
        "some other topic entirely,weather\n"
        "one two,three,four\n"
        f"{'x' * 10_000_000},billing\n"
        "a nul \x00 inside this text,billing\n"
        "ein päckchen 📦 fehlt im lager,delivery\n"
        "one text with two labels,billing\n"
        "One text with two labels!,login\n"
        f"{tickets.rows[0]['body']},{tickets.rows[0]['topic']}\n"
    )
    path.write_bytes(b"\xef\xbb\xbf" + (text + bad).encode() + b"caf\xe9 bill is wrong,billing\n")
    ran = run()
    assert ran.code == 0, ran.errors
    reasons = dict(table(synth_home, "human_rejects").group_by("reason").len().iter_rows())
    assert reasons == {
        "missing_text": 2,
        "missing_label": 1,
        "unknown_label": 1,
        "wrong_field_count": 1,
        "too_long": 1,
        "nul_character": 1,
        "conflicting_labels": 2,
        "duplicate": 1,
        "undecodable": 1,
    }
    assert "ein päckchen 📦 fehlt im lager" in table(synth_home, "human")["text"].to_list()


@pytest.mark.parametrize("name", ["human.jsonl", "human.jsonl.gz", "human.parquet", "human.csv.gz"])
def test_the_same_rows_in_another_format_are_the_same_human_rows(
    tickets: DatasetFolder, synth_home: Path, name: str
) -> None:
    assert run("tickets", "--until", "human").code == 0
    expected = table(synth_home, "human").drop("source")
    rows, path = pl.DataFrame(tickets.rows), tickets.folder / name
    if name == "human.parquet":
        rows.write_parquet(path)
    else:
        text = rows.write_csv() if "csv" in name else rows.write_ndjson()
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    tickets.edit("source.path", name)
    ran = run("tickets", "--until", "human")
    assert ran.code == 0, ran.errors
    assert table(synth_home, "human").drop("source").equals(expected)


def test_several_files_are_one_source(tickets: DatasetFolder, synth_home: Path) -> None:
    (tickets.folder / "human.csv").unlink()
    for number, rows in enumerate((tickets.rows[:50], tickets.rows[50:])):
        write_csv(tickets.folder / f"part{number}.csv", rows)
    tickets.edit("source.path", "part*.csv")
    assert run("tickets", "--until", "human").code == 0
    found = table(synth_home, "human")
    assert found.height == len(tickets.rows)
    assert set(found["source"]) == {"part0.csv", "part1.csv"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["human.csv"]),
        (b"body,topic\n", ["no rows"]),
        (b"text,topic\nhello there,billing\n", ["body"]),
        (b"body,topic\nhello there,weather\n", ["no usable row", "unknown_label"]),
        ("body,topic\nhällo thöre,billing\n".encode("utf-16-le"), ["encoding"]),
    ],
)
def test_a_source_without_a_usable_row_is_a_clear_failure(
    tickets: DatasetFolder, endpoint: ServerState, content: bytes, words: list[str]
) -> None:
    (tickets.folder / "human.csv").write_bytes(content)
    ran = run()
    assert ran.code == 1
    assert all(word in ran.errors for word in words), ran.errors
    assert "Traceback" not in ran.errors


def test_a_failed_load_leaves_the_next_good_one_working(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    good = (tickets.folder / "human.csv").read_bytes()
    (tickets.folder / "human.csv").write_bytes(b"body\nx\n")
    assert run().code == 1
    (tickets.folder / "human.csv").write_bytes(good)
    assert run().code == 0


def test_a_missing_source_file_is_a_clear_failure(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    (tickets.folder / "human.csv").unlink()
    ran = run()
    assert ran.code == 1
    assert "human.csv" in ran.errors


# --- several datasets -------------------------------------------------------------------------


def test_a_broken_dataset_does_not_stop_another(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    bad = DatasetFolder(tickets.folder.parent / "bad")
    bad.write()
    bad.edit("generate.temprature", 1.0)
    assert run().code == 0
    checked = synth("check")
    assert checked.code == 2
    assert "temprature" in checked.errors
    assert run("bad").code == 2
    assert [b["dataset"] for b in synth("list", "--json").json["broken"]] == ["bad"]


def test_an_unknown_dataset_or_stage_is_a_usage_error(
    tickets: DatasetFolder, endpoint: ServerState
) -> None:
    assert run("nope").code == 2
    assert run("tickets", "--force", "nope").code == 2


def test_forcing_a_stage_runs_it_and_stops_where_nothing_changed(done: DatasetFolder) -> None:
    ran = run("tickets", "--force", "human")
    assert set(ran.json["ran"]) == {"human", "human_rejects"}


def test_an_api_key_is_written_nowhere(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = "sk-planted-Zq81xk33"
    with running_server(api_key=planted) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", planted)
        assert run().code == 0
    files = [path for path in synth_home.parent.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert not [path for path in files if planted.encode() in path.read_bytes()]


def test_the_human_rows_of_tests_are_plausible() -> None:
    assert len({row["body"] for row in human_rows()}) == 120
