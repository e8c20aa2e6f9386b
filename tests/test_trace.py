"""A row's history, checked against the files, the ledger and what the test server received."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.audit.rows import Auditor, auditor
from synth_assets.errors import UsageError
from synth_assets.lifecycle import lineage
from synth_assets.lifecycle.lineage import Reference
from synth_assets.settings import Home
from synth_assets.terminal import opened_instance
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, running_server
from tests.release_support import KEY, SEED, Place
from tests.test_run import run, synth

TRACES = 200
BAD = [",billing", "no label here,", "some other topic entirely,weather", "a,b,c"]
RED = "\x1b[31m[bold red]red"


@dataclass(frozen=True)
class Made:
    """A dataset that was released twice with different answers, and everything it came from."""

    place: Place
    server: ServerState

    @property
    def csv_rows(self) -> list[list[str]]:
        with (self.place.dataset / "human.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]

    @cached_property
    def answers(self) -> dict[str, tuple[str, bytes]]:
        """Request id -> (request, raw answer), as they lie in the ledger's file."""
        with sqlite3.connect(self.place.home / "ledger" / "ledger.sqlite") as connection:
            query = "SELECT request_id, request, response FROM calls"
            return {name: (asked, got) for name, asked, got in connection.execute(query)}

    @cached_property
    def received(self) -> set[str]:
        """Every prompt that reached the server."""
        return {str(one.body["messages"][-1]["content"]) for one in self.server.requests}

    @cached_property
    def versions(self) -> dict[str, str]:
        found = synth("status", "tickets", "--json").json["stages"]
        return {stage["stage"]: stage["data_version"] for stage in found}

    def table(self, stage: str) -> pl.DataFrame:
        path = self.place.home / "store" / "tickets" / stage / f"{self.versions[stage]}.parquet"
        return pl.read_parquet(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    place = Place(tmp_path_factory.mktemp("traced"))
    for name in ("home", "dagster", "defs"):
        (place.root / name).mkdir()
    (place.root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    folder = DatasetFolder(place.dataset)
    folder.rows.append({"body": f"the light is {RED} and the door stays shut", "topic": "login"})
    folder.write()
    with (place.dataset / "human.csv").open("a") as file:
        file.writelines(f"{line}\n" for line in [*BAD, ",".join(folder.rows[0].values())])
    (place.dataset / "seeds.jsonl").write_text(json.dumps(SEED) + "\n")
    folder.edit("generate.attributes", {"tone": ["angry", "calm"]})
    folder.edit("generate.prices", {"input_per_million": 1.0, "output_per_million": 2.0})
    with pytest.MonkeyPatch.context() as patch, running_server(api_key=KEY) as server:
        place.enter(patch)
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_API_KEY", KEY)
        first = run()
        assert first.code == 0, first.errors
        folder.edit("generate.temperature", 0.7)
        second = run()
        assert second.code == 0, second.errors
        assert len(place.versions) == 2
        yield Made(place, server)


@pytest.fixture(scope="module")
def audits(made: Made) -> Iterator[Auditor]:
    with opened_instance() as instance, auditor(Home(made.place.home), instance, "tickets") as one:
        yield one


def references(made: Made) -> list[tuple[str, str]]:
    """(stage, name) of every row of every stage, of the first release's own rows too."""
    found: list[tuple[str, str]] = []
    for stage in ("human", "human_train", "holdout", "set_aside", "seeds", "synthetic", "blend",
                  "train", "validation", "eval", "rejects"):  # fmt: skip
        found += [(stage, name) for name in made.table(stage)["record_id"]]
    for stage in ("human_raw", "human_rejects"):
        rows = made.table(stage).rename({"_source": "source", "_row": "source_row"}, strict=False)
        found += [(stage, f"{a}:{b}") for a, b in rows.select("source", "source_row").iter_rows()]
    for cell, ordinal in made.table("plan").select("cell", "ordinal").iter_rows():
        found.append(("plan", f"{cell}/{ordinal}"))
    for request_id, item in made.table("candidates").select("request_id", "item").iter_rows():
        found.append(("candidates", f"{request_id}/{item}"))
    old = made.place.releases / made.place.versions[0]
    for split in ("train", "validation", "eval"):
        names = pl.read_parquet(old / f"{split}.parquet")["record_id"]
        found += [(f"old {split}", name) for name in names]
    return found


# --- two hundred rows of all stages -----------------------------------------------------------


def test_every_traced_row_agrees_with_the_raw_files(made: Made, audits: Auditor) -> None:
    rng = random.Random(20_260)
    by_stage: dict[str, list[str]] = {}
    for stage, name in references(made):
        by_stage.setdefault(stage, []).append(name)
    chosen = [(stage, rng.choice(names)) for stage, names in by_stage.items() for _ in range(4)]
    everything = references(made)
    chosen += rng.sample(everything, TRACES - len(chosen))
    assert len(chosen) == TRACES
    assert {stage for stage, _ in chosen} == set(by_stage)
    checked = dict.fromkeys(("source", "call", "seed", "release"), 0)
    for stage, name in chosen:
        told = audits.trace(name).to_dict()
        stands = {one["stage"]: one for one in told["stands"]}
        assert stands, (stage, name)
        if not stage.startswith("old "):
            assert stage in stands
            assert stands[stage]["data_version"] == made.versions[stage]
        checked["source"] += the_source_rows_are_those_of_the_file(made, told)
        checked["call"] += the_calls_are_those_of_the_ledger(made, told)
        checked["seed"] += the_seeds_were_in_the_prompt(made, told)
        checked["release"] += the_releases_hold_it(made, told)
    assert min(checked.values()) >= 60, checked


def the_source_rows_are_those_of_the_file(made: Made, told: dict[str, Any]) -> int:
    texts = {
        (row["source"], row["source_row"]): row["text"]
        for group in (*(one["rows"] for one in told["stands"]),
                      *(rows for by in told["seeds"].values() for rows in by.values()))
        for row in group
        if row.get("source_row") is not None
    }  # fmt: skip
    sources = {(row["_source"], row["_row"]): row for row in told["source_rows"]}
    assert texts.keys() <= sources.keys()
    for (source, number), row in sources.items():
        assert source == "human.csv"
        cells = made.csv_rows[number - 1]
        assert row["_load_id"]
        if row["_problem"] is None:
            assert [row["body"] or "", row["topic"] or ""] == cells
        if row["_problem"] is None and texts.get((source, number)):
            assert texts[source, number] == cells[0].strip()
    return bool(sources)


def the_calls_are_those_of_the_ledger(made: Made, told: dict[str, Any]) -> int:
    for call in told["calls"]:
        request, response = made.answers[call["request_id"]]
        assert call["response"].encode() == response
        assert call["request"] == json.loads(request)
        assert call["messages"][-1]["text"] in made.received
        assert call["endpoint"] == "test-server"
        assert call["finish_reason"] in ("stop", "length")
        assert call["cost_usd"] > 0
        body = json.loads(response)
        answer = " ".join(body["choices"][0]["message"]["content"].split())
        for one in told["stands"]:
            for row in one["rows"]:
                if row.get("request_id") == call["request_id"] and row.get("text"):
                    assert row["text"] in answer
    return bool(told["calls"])


def the_seeds_were_in_the_prompt(made: Made, told: dict[str, Any]) -> int:
    ids = {
        seed for one in told["stands"] for row in one["rows"] for seed in row.get("seed_ids") or ()
    }
    assert ids == set(told["seeds"])
    texts = {name: by["seeds"][0]["text"] for name, by in told["seeds"].items()}
    for call in told["calls"]:
        prompt = call["messages"][-1]["text"]
        entries = [entry for entry in told["plan"] if entry["prompt"] == prompt]
        assert entries, "the plan's entry behind the call has the prompt that was sent"
        for entry in entries:
            assert all(texts[seed] in prompt for seed in entry["seed_ids"])
    return bool(told["calls"]) and bool(texts)


def the_releases_hold_it(made: Made, told: dict[str, Any]) -> int:
    ids = {
        row["record_id"]
        for one in told["stands"]
        for row in one["rows"]
        if "record_id" in row and "reason" not in row
    } | ({told["reference"]["id"]} if told["reference"]["kind"] == "record" else set())
    named = {one["version"]: one for one in told["releases"]}
    for version in made.place.versions:
        splits = {
            split: pl.read_parquet(made.place.releases / version / f"{split}.parquet")
            for split in ("train", "validation", "eval")
        }
        holding = [s for s, rows in splits.items() if ids & set(rows["record_id"])]
        shown = splits["train"].filter(
            pl.col("seed_ids").list.eval(pl.element().is_in(list(ids))).list.any()
        )
        found = named.get(version)
        assert (found["splits"] if found else []) == holding
        written = set(found["descendants"]) if found else set()
        assert written == set(shown["record_id"]) - ids
        assert found is None or found["current"] == (version == made.place.current)
    return bool(named)


# --- what is special about some rows ----------------------------------------------------------


def test_a_row_that_only_an_older_release_has_is_traced_in_its_tables(
    made: Made, audits: Auditor
) -> None:
    first, second = made.place.versions
    old = pl.read_parquet(made.place.table("synthetic", first))
    new = pl.read_parquet(made.place.table("synthetic", second))
    row = old.join(new, on="record_id", how="anti").row(0, named=True)
    found = audits.trace(row["record_id"])
    assert found.found_in == f"release {first}"
    assert found.versions["synthetic"] == made.place.table("synthetic", first).stem
    assert [one.version for one in found.releases] == [first]
    assert found.calls[0].request["body"]["temperature"] == 1
    assert len(found.trace.behind.parents) == 4


def test_a_release_whose_stored_tables_are_gone_still_tells_of_its_rows(
    made: Made, audits: Auditor, tmp_path: Path
) -> None:
    first = made.place.versions[0]
    old, new = (pl.read_parquet(made.place.table("synthetic", v)) for v in made.place.versions)
    name = old.join(new, on="record_id", how="anti")["record_id"][0]
    hidden = []
    for stage in ("synthetic", "blend", "train", "candidates"):
        path = made.place.table(stage, first)
        path.rename(tmp_path / stage)
        hidden.append((tmp_path / stage, path))
    try:
        found = audits.trace(name)
    finally:
        for aside, path in hidden:
            aside.rename(path)
    assert list(found.trace.stands) == ["train"]
    assert len(found.calls) == len(found.trace.behind.plan) == 1
    assert len(found.trace.behind.sources) >= 3


def test_a_reject_says_why_and_shows_the_row_it_was_too_much_like(
    made: Made, audits: Auditor
) -> None:
    copies = made.table("rejects").filter(pl.col("reason").str.starts_with("near_"))
    assert copies.height
    for row in copies.iter_rows(named=True):
        found = audits.trace(f"{row['request_id']}/{row['item']}")
        assert found.trace.stands["rejects"][0]["reason"] == row["reason"]
        other = row["detail"].split()[-1]
        assert list(found.trace.behind.named) == [other]
        assert all(r["record_id"] == other for rows in found.trace.behind.named[other].values()
                   for r in rows)  # fmt: skip


def test_a_set_aside_row_shows_the_holdout_row_that_kept_it_out(
    made: Made, audits: Auditor
) -> None:
    row = (
        made.table("set_aside")
        .filter(pl.col("reason") == "near_copy_of_holdout")
        .row(0, named=True)
    )
    found = audits.trace(row["record_id"])
    assert "holdout" not in found.trace.stands
    assert row["detail"].split()[-1] in set(made.table("holdout")["record_id"])
    assert list(found.trace.behind.named) == [row["detail"].split()[-1]]


def test_a_source_row_that_was_not_used_says_why(made: Made, audits: Auditor) -> None:
    number = next(at for at, cells in enumerate(made.csv_rows, 1) if len(cells) == 3)
    found = audits.trace(f"human.csv:{number}")
    assert set(found.trace.stands) == {"human_raw", "human_rejects"}
    assert found.trace.stands["human_rejects"][0]["reason"] == "wrong_field_count"
    assert found.releases == []


def test_a_seed_names_every_row_whose_prompt_showed_it(made: Made, audits: Auditor) -> None:
    synthetic = made.table("synthetic")
    for name in made.table("seeds")["record_id"].head(6):
        expected = synthetic.filter(pl.col("seed_ids").list.contains(name))["record_id"]
        found = audits.trace(name)
        told = [row["record_id"] for row in found.trace.written.rows.get("synthetic", [])]
        assert sorted(told) == sorted(expected)


def test_a_handwritten_seed_has_no_source_row(made: Made, audits: Auditor) -> None:
    name = made.table("seeds").filter(pl.col("origin") == "handwritten")["record_id"][0]
    found = audits.trace(name)
    assert set(found.trace.stands) == {"seeds"}
    assert found.trace.behind.sources == []


def test_candidates_that_nothing_has_judged_are_found_by_the_id_they_would_have(
    made: Made,
) -> None:
    row = made.table("synthetic").row(0, named=True)
    tables = {"candidates": made.table("candidates").lazy()}
    assert lineage.find(tables, row["record_id"]) == []
    found = lineage.find_unjudged(
        tables, row["record_id"][:20], payload=("text", "label"), kind="classification"
    )
    assert found == [Reference("item", f"{row['request_id']}/{row['item']}")]


def test_an_imported_row_leads_to_its_parents_over_generations() -> None:
    ids = [f"{n:032x}" for n in range(4)]
    human = pl.LazyFrame({"record_id": ids[:1], "text": ["a"], "source": ["h"], "source_row": [3]})
    synthetic = pl.LazyFrame(
        {
            "record_id": ids[1:],
            "text": ["b", "c", "d"],
            "request_id": ["import:x", "import:x", "import:x"],
            "item": [1, 2, 3],
            "seed_ids": [[ids[0]], [ids[1]], []],
        },
        schema_overrides={"seed_ids": pl.List(pl.String)},
    )
    raw = pl.LazyFrame({"cell": ["a"], "_source": ["h"], "_row": [3], "_load_id": ["1"]})
    tables = {"human_raw": raw, "human": human, "synthetic": synthetic}
    found = lineage.trace(tables, Reference("record", ids[2]))
    assert list(found.behind.parents) == [ids[1], ids[0]]
    assert [row["_row"] for row in found.behind.sources] == [3]
    below = lineage.trace(tables, Reference("record", ids[0]))
    assert [row["record_id"] for row in below.written.rows["synthetic"]] == [ids[1], ids[2]]


# --- names ------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough_when_it_is_one_rows_only(
    made: Made, audits: Auditor
) -> None:
    name = made.table("synthetic")["record_id"][7]
    assert audits.trace(name[:12]).trace.reference == Reference("record", name)


def test_the_beginning_of_several_ids_is_one_clear_error(made: Made, audits: Auditor) -> None:
    names = sorted(made.table("train")["record_id"])
    shared = next(a[0] for a, b in pairwise(names) if a[0] == b[0])
    with pytest.raises(UsageError, match="beginning of more than one") as error:
        audits.trace(shared)
    assert "give more of it: " in error.value.fix


@pytest.mark.parametrize("name", ["", "zz", "human.csv:999999", "nowhere/7", "f" * 64, "%' OR 1=1"])
def test_a_name_of_nothing_is_one_clear_error(audits: Auditor, name: str) -> None:
    with pytest.raises(UsageError, match="nothing is named"):
        audits.trace(name)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_the_whole_history_as_json(made: Made) -> None:
    row = made.table("train").filter(pl.col("origin") == "synthetic").row(0, named=True)
    told = synth("trace", "tickets", row["record_id"], "--json").json
    assert told["reference"] == {"kind": "record", "id": row["record_id"]}
    assert the_calls_are_those_of_the_ledger(made, told) == 1
    assert the_seeds_were_in_the_prompt(made, told) == 1
    assert the_source_rows_are_those_of_the_file(made, told) == 1
    assert the_releases_hold_it(made, told) == 1


def test_the_command_prints_a_tree_with_prompt_answer_seeds_and_releases(made: Made) -> None:
    row = made.table("train").filter(pl.col("origin") == "synthetic").row(0, named=True)
    shown = " ".join(synth("trace", "tickets", row["record_id"]).result.stdout.split())
    for words in ("stands in", "call", "test-model at test-server", "answer", "seeds", "releases",
                  f"{made.place.current} (current): train", "human.csv:"):  # fmt: skip
        assert words in shown


def test_hostile_text_in_a_row_stays_text_in_the_tree(made: Made) -> None:
    row = made.table("human").filter(pl.col("text").str.contains("[bold red]", literal=True))
    shown = synth("trace", "tickets", row["record_id"][0]).result.stdout
    assert "\x1b" not in shown
    assert "[bold red]red" in shown


def test_an_unknown_dataset_or_row_is_a_usage_error(made: Made) -> None:
    for words in (("nope", "abc"), ("tickets", "abcdefabcdef")):
        ran = synth("trace", *words)
        assert ran.code == 2
        assert "fix:" in ran.errors
        assert "Traceback" not in ran.errors
