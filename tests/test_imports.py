"""Synthetic rows that exist already, through the command line and a real HTTP server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from synth_assets.assets.stages import COMMON_STAGES, STAGES
from synth_assets.lifecycle.partition import Partitioned, PartitionRules, partition
from synth_assets.lifecycle.records import with_record_id
from synth_assets.sources.files import read_batches
from synth_assets.sources.records import FileFormat
from synth_assets.tasks.classification import Classification
from synth_assets.terminal import opened_instance
from tests.datasets import DatasetFolder, write_csv
from tests.openai_server import ServerState, running_server
from tests.test_dagster import location
from tests.test_run import HUMAN, run, statuses, synth, versions

# Texts unlike the human ones and unlike each other.
OTHER_WORDS: dict[str, tuple[list[str], list[str]]] = {
    "billing": (
        ["gift voucher", "quarterly ledger", "tax receipt", "loyalty bonus", "coupon booklet"],
        ["vanished", "keeps being rounded upwards", "belongs to Hortense", "needs a signature"],
    ),
    "delivery": (
        ["pallet", "forklift", "barge", "mule", "zeppelin"],
        ["sank off the coast", "refuses to move", "took a wrong turn", "arrived upside down"],
    ),
    "login": (
        ["fingerprint", "security question", "captcha", "smart card", "passphrase"],
        ["mocks me", "was about my aunt", "melted in the sun", "only works at full moon"],
    ),
    "gardening": (["rake", "hedge", "shovel", "lawn", "gnome"], ["rusts", "grows", "stares", "x"]),
}
BOUGHT = "bought/bought.csv"


def made(count: int, topic: str, **cells: str) -> list[dict[str, str]]:
    """So many good rows of a topic, as many as 20."""
    things, events = OTHER_WORDS[topic]
    texts = [f"the {thing} {event} again" for event in events for thing in things]
    return [{"body": text, "topic": topic, "by": "", "from": "", **cells} for text in texts[:count]]


def bring(folder: DatasetFolder, rows: list[dict[str, str]]) -> None:
    write_csv(folder.folder / "bought.csv", rows)


def go(*words: str) -> dict[str, Any]:
    ran = run("tickets", *words)
    assert ran.code == 0, ran.errors
    return ran.json


def importing_tickets(folder: Path) -> DatasetFolder:
    """The tickets dataset with ids for its human rows and a second, synthetic source."""
    made = DatasetFolder(folder)
    made.rows = [{"id": f"T-{n}", **row} for n, row in enumerate(made.rows)]
    del made.attributes["source"]
    desk = {"name": "desk", "kind": "files", "path": "human.csv", "id_column": "id"}
    bought = {
        "name": "bought",
        "kind": "files",
        "path": "bought.csv",
        "role": "synthetic",
        "provenance": {"model": "house-model", "model_column": "by", "parents_column": "from"},
    }
    made.attributes["sources"] = [desk, bought]
    made.write()
    return made


def sides(folder: DatasetFolder) -> Partitioned:
    """On which side each human row will come to stand."""
    path = folder.folder / "human.csv"
    frames = read_batches([("human", path)], FileFormat("csv"), required_columns=["body"])
    task = Classification("body", "topic")
    rows = with_record_id(task.read_human(pl.concat(frames))[0], task.payload, kind=task.kind)
    rules = PartitionRules(holdout=0.3, validation=0.1, salt="1", decontaminate=0.6)
    return partition(rows, rules, text=task.text, stratum=task.stratum)


def id_of(folder: DatasetFolder, text: str) -> str:
    return next(row["id"] for row in folder.rows if row["body"] == text)


@dataclass
class Tables:
    """The tables of the dataset as they stand."""

    home: Path

    @cached_property
    def versions(self) -> dict[str, str]:
        return versions()

    def __getitem__(self, stage: str) -> pl.DataFrame:
        name = f"{self.versions[stage]}.parquet"
        return pl.read_parquet(self.home / "store" / "tickets" / stage / name)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture
def importing(synth_home: Path) -> DatasetFolder:
    return importing_tickets(synth_home.parent / "defs" / "tickets")


@pytest.fixture
def endpoint(server: ServerState, synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> ServerState:
    server.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return server


# --- one run over good and bad rows ---------------------------------------------------------------


@dataclass
class Done:
    """A run up to ``train``: what was imported, what it gave, what the server was asked."""

    rows: list[dict[str, str]]
    bad: list[str]
    parents: pl.DataFrame
    tables: Tables
    calls: dict[str, int]
    prompts: list[str]
    home: Path


@pytest.fixture(scope="module")
def done(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    root = tmp_path_factory.mktemp("imports")
    for name in ("home", "dagster"):
        (root / name).mkdir()
    folder = importing_tickets(root / "defs" / "tickets")
    parts = sides(folder)
    trained = parts.human_train.filter(split="train")
    aside = parts.human_train.filter(split="validation")
    ids = [id_of(folder, text) for text in trained["text"].head(2)]
    rows = made(20, "billing") + made(12, "login")
    rows[0] |= {"from": ", ".join(ids), "by": "big-model"}
    rows[1] |= {"from": f'["{trained["text"][0].title()}", "elsewhere-7"]'}
    bad = bad_rows(folder, parts.holdout, aside, trained)
    bring(folder, rows + [row for _, row in bad])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTH_HOME", str(root / "home"))
        patch.setenv("DAGSTER_HOME", str(root / "dagster"))
        patch.setenv("SYNTH_DEFS", str(root / "defs"))
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_API_KEY", "test-key")
        server.reset()
        calls = go("--until", "train")["calls"]
        assert calls["made"] == server.successes_by_identity.total()
        prompts = [request.body["messages"][-1]["content"] for request in server.requests]
        found = Tables(root / "home")
        assert found.versions
        yield Done(
            rows, [why for why, _ in bad], trained.head(2), found, calls, prompts, root / "home"
        )


def bad_rows(
    folder: DatasetFolder, holdout: pl.DataFrame, aside: pl.DataFrame, trained: pl.DataFrame
) -> list[tuple[str, dict[str, str]]]:
    """(the reason it must be rejected for, row)."""
    held, kept = holdout["text"][0], trained["text"][0]
    cells: list[tuple[str, dict[str, str]]] = [
        ("near_copy_of_holdout", {"body": held.upper() + "!"}),
        ("contains_holdout", {"body": f"he wrote: {held} and nothing more came of it"}),
        ("near_copy_of_validation", {"body": aside["text"][0]}),
        ("near_copy_of_human", {"body": kept}),
        ("unknown_label", {"body": "a wholly different complaint", "topic": "gardening"}),
        ("missing_text", {"body": " "}),
        ("missing_label", {"body": "nobody knows what this is about", "topic": ""}),
        ("too_long", {"body": "on and on it goes " * 40}),
        ("too_short", {"body": "odd"}),
        ("bad_parents", {"body": "the stamp on the form is upside down", "from": "[T-1"}),
    ]
    unseen = [
        id_of(folder, held),
        f"{id_of(folder, kept)}, {id_of(folder, held)}",
        holdout["record_id"][1],
        f'["{held}"]',
        held.upper(),
        held.replace(" ", ", ", 1) + "?",
        f"#{id_of(folder, held).lower()}",
        f"human.csv:{1 + [row['body'] for row in folder.rows].index(held)}",
        f"['nobody', '{id_of(folder, held)} ']",
    ]
    derived = [("derived_from_holdout", {"from": parent}) for parent in unseen]
    derived.append(("derived_from_validation", {"from": id_of(folder, aside["text"][0])}))
    found = [
        (why, {"body": row["body"], "from": cell["from"]})
        for row, (why, cell) in zip(made(20, "delivery"), derived, strict=False)
    ]
    shared = {"topic": "delivery", "by": "", "from": ""}
    return [(why, shared | row) for why, row in cells + found]


def test_imported_rows_count_and_only_what_is_missing_is_asked_for(done: Done) -> None:
    rows = done.tables["synthetic"]
    per_label = dict.fromkeys(("billing", "delivery", "login"), 20)
    assert dict(rows.group_by("label").len().iter_rows()) == per_label
    bought = rows.filter(request_id=f"import:{BOUGHT}")
    assert dict(bought.group_by("label").len().iter_rows()) == {"billing": 20, "login": 12}
    made_calls = done.tables["candidates"].unique(["cell", "ordinal"])
    # Five rows a call, four of them taken to be good: 20 missing need 5 calls, 8 need 2, 0 none.
    assert Counter(made_calls.filter(round=0)["cell"]) == {"delivery": 5, "login": 2}
    # One call more tries what the endpoint can do.
    assert done.calls["made"] == made_calls.height + 1
    assert not [prompt for prompt in done.prompts if 'about "billing"' in prompt]


def test_every_rejected_row_stands_among_the_rejects_with_its_reason(done: Done) -> None:
    rejects = done.tables["rejects"].filter(source=BOUGHT).sort("source_row")
    first = len(done.rows) + 1
    assert rejects.select("source_row", "reason").rows() == list(enumerate(done.bad, start=first))
    derived = rejects.filter(pl.col("reason").str.starts_with("derived"))
    assert derived["detail"].str.starts_with("parent ").all()
    kept = done.tables["synthetic"].filter(source=BOUGHT)
    assert kept.height + rejects.height == done.tables["imported_raw"].height


def test_a_rejected_row_reaches_neither_training_nor_a_prompt(done: Done) -> None:
    refused = done.tables["rejects"].filter(source=BOUGHT)["text"].drop_nulls()
    human = done.tables["human"]["text"]
    refused = refused.filter(~refused.is_in(human.implode()))
    train = done.tables["train"]
    assert refused.len() > 10
    assert not train["text"].is_in(refused.implode()).any()


def test_an_imported_row_is_never_a_human_row(done: Done) -> None:
    texts = {row["body"] for row in done.rows}
    for stage in (*HUMAN[1:], "seeds", "validation"):
        assert texts.isdisjoint(done.tables[stage]["text"]), stage
    assert texts.isdisjoint(done.tables["human_raw"]["body"])
    assert not [text for text in texts if any(text in prompt for prompt in done.prompts)]
    train = done.tables["train"].filter(pl.col("text").is_in(texts))
    assert (train.height, set(train["origin"])) == (len(texts), {"synthetic"})
    landed = (done.home / "landing").glob("*/landed.duckdb")
    assert {path.parent.name for path in landed} == {"tickets", "tickets.synthetic"}


def test_from_a_training_row_one_reaches_the_imported_row_and_its_parents(done: Done) -> None:
    train = done.tables["train"].filter(source=BOUGHT)
    found = {row["source_row"]: row for row in train.iter_rows(named=True)}
    assert sorted(found) == list(range(1, len(done.rows) + 1))
    assert [found[n]["model"] for n in (1, 2)] == ["big-model", "house-model"]
    assert found[1]["seed_ids"] == done.parents["record_id"].to_list()
    assert found[2]["seed_ids"] == [done.parents["record_id"][0], "elsewhere-7"]
    assert found[3]["seed_ids"] == []
    assert (found[1]["request_id"], found[1]["item"]) == (f"import:{BOUGHT}", 1)
    raw = done.tables["imported_raw"].filter(_row=2).row(0, named=True)
    assert (raw["body"], raw["_source"]) == (found[2]["text"], found[2]["source"])
    assert done.tables["synthetic"].filter(source_row=2)["_load_id"].item() == raw["_load_id"]
    others = done.tables["train"].filter(pl.col("source").is_null())
    assert set(others["origin"]) == {"synthetic"}
    assert not others["request_id"].str.starts_with("import:").any()


def test_a_trace_leads_from_a_training_row_to_the_imported_row_and_to_its_parents(
    done: Done,
) -> None:
    row = done.tables["train"].filter(source_row=1, source=BOUGHT).row(0, named=True)
    traced = synth("trace", "tickets", row["record_id"], "--json").json
    told = json.dumps(traced)
    assert {"imported", "synthetic", "blend", "train"} <= {one["stage"] for one in traced["stands"]}
    assert (BOUGHT, 1) in {(one["_source"], one["_row"]) for one in traced["source_rows"]}
    for parent, text in done.parents.select("record_id", "text").iter_rows():
        assert parent in told
        assert text in told
    assert traced["calls"] == []


def test_every_stored_column_of_an_import_has_its_lineage(done: Done) -> None:
    with opened_instance() as instance:
        for stage in ("imported_raw", "imported", "synthetic", "rejects", "blend", "train"):
            event = instance.get_latest_materialization_event(dg.AssetKey(["tickets", stage]))
            assert event is not None
            assert event.asset_materialization is not None
            found = event.asset_materialization.metadata["dagster/column_lineage"].value
            assert isinstance(found, dg.TableColumnLineage)
            assert set(found.deps_by_column) == set(done.tables[stage].columns), stage
            for deps in found.deps_by_column.values():
                for dep in deps:
                    parent = dep.asset_key.path[-1]
                    stored = parent in STAGES
                    assert not stored or dep.column_name in done.tables[parent].columns, stage


# --- what runs again ------------------------------------------------------------------------------


def test_where_enough_is_imported_no_model_is_needed(
    importing: DatasetFolder, synth_home: Path
) -> None:
    bring(importing, [row for topic in importing.labels for row in made(20, topic)])
    assert go("--until", "synthetic")["calls"] == {"made": 0, "replayed": 0, "failed": 0}
    tables = Tables(synth_home)
    assert tables["candidates"].is_empty()
    assert tables["synthetic"].height == 60
    assert tables["rejects"].is_empty()


def test_a_changed_import_reruns_what_it_touches_and_asks_nothing_when_it_is_enough(
    importing: DatasetFolder, endpoint: ServerState
) -> None:
    rows = [row for topic in importing.labels for row in made(16, topic)]
    bring(importing, rows)
    go("--until", "synthetic")
    before, asked = versions(), len(endpoint.requests)
    assert asked > 0
    bring(importing, [row for topic in importing.labels for row in made(20, topic)])
    ran = go("--until", "synthetic")
    assert (ran["calls"]["made"], len(endpoint.requests)) == (0, asked)
    paid = ["candidates", "synthetic", "rejects"]
    assert set(ran["ran"]) == {"imported_raw", "imported", *paid}
    after = versions()
    untouched = (*HUMAN, "seeds", "plan")
    assert [stage for stage in untouched if before[stage] != after[stage]] == []


@pytest.mark.slow
def test_what_was_bought_for_fewer_imported_rows_is_there_when_they_are_fewer_again(
    importing: DatasetFolder, endpoint: ServerState
) -> None:
    rows = [row for topic in importing.labels for row in made(16, topic)]
    bring(importing, rows)
    go("--until", "synthetic")
    before = versions()
    bring(importing, [row for topic in importing.labels for row in made(20, topic)])
    go("--until", "synthetic")
    bring(importing, rows)
    assert go("--until", "synthetic")["calls"]["made"] == 0
    assert versions() == before


@pytest.mark.slow
def test_an_import_is_landed_again_only_when_it_changes(importing: DatasetFolder) -> None:
    bring(importing, made(20, "billing"))
    go("--until", "imported")
    path = importing.folder / "bought.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n") + b"\n")
    assert go("--until", "imported")["ran"] == ["imported_raw"]
    more = {"id": "T-999", "body": "a forklift drove over my espresso machine", "topic": "delivery"}
    write_csv(importing.folder / "human.csv", [*importing.rows, more])
    ran = go("--until", "imported")["ran"]
    assert "imported" in ran
    assert "imported_raw" not in ran


@pytest.mark.slow
def test_the_order_of_the_file_does_not_matter(
    importing: DatasetFolder, endpoint: ServerState, synth_home: Path
) -> None:
    """Neither for what is accepted of rows that repeat each other, nor for what is surplus."""
    rows = made(20, "billing") + made(20, "login")
    rows += [{**row, "body": row["body"] + suffix} for row in rows[:9] for suffix in ("!", " now")]
    rows += [{**row, "by": "another-model"} for row in rows[:4]]
    importing.edit("generate.target", {"per_label": {"billing": 12, "login": 20, "delivery": 6}})

    def outcome() -> tuple[Any, ...]:
        tables, place = Tables(synth_home), ["item", "source_row", "_load_id"]
        refused = tables["rejects"].drop(place).sort(pl.all().exclude("seed_ids"))
        kept = tables["synthetic"].drop(place).sort("record_id")
        return kept.rows(), refused.rows(), tables.versions["candidates"]

    bring(importing, rows)
    go("--until", "synthetic")
    first = outcome()
    bring(importing, rows[::-1])
    done = go("--until", "synthetic")
    assert done["calls"]["made"] == 0
    assert outcome() == first
    reasons = Tables(synth_home)["rejects"].filter(source=BOUGHT)["reason"]
    assert {"surplus", "near_duplicate"} <= set(reasons)


@pytest.mark.slow
def test_a_forecast_counts_imported_rows_as_there(
    importing: DatasetFolder, endpoint: ServerState
) -> None:
    bring(importing, made(20, "billing") + made(12, "login"))
    found = synth("plan", "tickets", "--json")
    assert found.code == 0, found.errors
    # 20 of delivery and 8 of login are missing: 5 calls, 2 calls, and one that tries the endpoint.
    assert (found.json["calls"], found.json["rows"]) == (8, 28)
    assert "32 imported rows need none" in found.json["how"]["calls"]
    assert endpoint.requests == []
    calls = go("--until", "synthetic")["calls"]["made"]
    again = synth("plan", "tickets", "--json")
    assert (again.json["calls"], again.json["cached_calls"]) == (calls - 1, calls - 1)
    # Fewer imported rows: the last generation is no measure of this one.
    bring(importing, made(12, "login"))
    fewer = synth("plan", "tickets", "--json")
    assert fewer.json["rows"] == 48
    assert fewer.json["calls"] >= calls - 1 + 4


def test_lists_of_parents_come_from_json_lines_and_parquet_beside_each_other(
    importing: DatasetFolder, synth_home: Path
) -> None:
    parts, folder = sides(importing), importing.folder
    known = parts.human_train.filter(split="train").row(0, named=True)
    parent, held = id_of(importing, known["text"]), id_of(importing, parts.holdout["text"][0])
    lines = [row | {"from": [parent]} for row in made(2, "login")]
    lines[1]["from"] = [parent, held]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    frame = [{**row, "from": [parent], "tone": "calm"} for row in made(2, "delivery")]
    pl.DataFrame(frame).write_parquet(folder / "b.parquet")
    desk, bought = importing.attributes["sources"]
    more = bought["provenance"] | {"attributes_columns": ["tone"]}
    importing.edit(
        "sources",
        [
            desk,
            bought | {"name": "lines", "path": "a.jsonl"},
            bought | {"name": "columns", "path": "b.parquet", "provenance": more},
        ],
    )
    go("--until", "imported")
    rows = Tables(synth_home)["imported"].sort("source", "source_row")
    assert rows.select("source", "source_row", "attributes", "problem").rows() == [
        ("columns/b.parquet", 1, '{"tone":"calm"}', None),
        ("columns/b.parquet", 2, '{"tone":"calm"}', None),
        ("lines/a.jsonl", 1, "{}", None),
        ("lines/a.jsonl", 2, "{}", "derived_from_holdout"),
    ]
    assert {tuple(ids) for ids in rows["seed_ids"].head(3)} == {(known["record_id"],)}


@pytest.mark.slow
def test_a_label_that_only_the_import_knows_is_unknown_without_declared_labels(
    importing: DatasetFolder, endpoint: ServerState, synth_home: Path
) -> None:
    del importing.attributes["task"]["labels"]
    importing.edit("generate.target", {"balance": "to_largest"})
    bring(importing, made(3, "login") + made(2, "billing") + made(2, "gardening"))
    go("--until", "synthetic")
    tables = Tables(synth_home)
    rejects = tables["rejects"].filter(source=BOUGHT)
    reasons = rejects.group_by("cell", "reason").len().sort("cell").rows()
    # The largest label needs no synthetic row at all.
    assert reasons == [("billing", "surplus", 2), ("gardening", "unknown_label", 2)]
    assert tables["synthetic"].filter(source=BOUGHT)["label"].to_list() == ["login"] * 3


def test_an_import_that_cannot_be_read_is_named_and_the_human_side_stands(
    importing: DatasetFolder, endpoint: ServerState
) -> None:
    rows = [{"body": row["body"], "topic": row["topic"]} for row in made(3, "login")]
    bring(importing, rows)
    broken = run("tickets", "--until", "synthetic")
    assert broken.code == 1
    assert "bought.csv:1: no column 'by'" in broken.errors.replace("\n", " ")
    assert "Traceback" not in broken.errors
    found = statuses()
    assert (found["imported_raw"]["status"], found["human_train"]["status"]) == ("failed", "fresh")
    assert endpoint.requests == []
    bring(importing, made(3, "login"))
    assert "imported" in go("--until", "imported")["ran"]


def test_a_dataset_without_a_synthetic_source_has_no_such_stage(
    tickets: DatasetFolder, synth_home: Path
) -> None:
    graph = location().get_repository_def().asset_graph
    names = {key.path[-1] for key in graph.get_all_asset_keys() if key.path[0] == "tickets"}
    assert names == {"source", *COMMON_STAGES}
    assert STAGES.keys() - COMMON_STAGES.keys() == {"imported_raw", "imported"}
    assert {
        key.path[-1] for key in graph.get(dg.AssetKey(["tickets", "candidates"])).parent_keys
    } == {
        "plan",
        "human_train",
        "holdout",
    }
    refused = run("tickets", "--force", "imported")
    assert refused.code == 2
    assert "no stage named 'imported'" in refused.errors
