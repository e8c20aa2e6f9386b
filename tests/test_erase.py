"""A person asks for their data to be deleted: afterwards nothing of it is found, and nothing else
is lost or asked again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.storage.dagster_run import DagsterRun

from synth_assets.assets.workbench import Workbench
from synth_assets.erasure import erase as erasing
from synth_assets.erasure.erase import STEPS
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.run import Session
from synth_assets.settings import Home, defs_roots
from synth_assets.spec.load import dataset_named
from synth_assets.store.content import ContentStore
from synth_assets.store.erasures import Log
from synth_assets.store.withdrawn import digest_of
from synth_assets.underway import under_way
from tests.datasets import DatasetFolder, human_rows, write_csv
from tests.erase_support import (
    PLACE,
    PLANTED,
    WORDS,
    Place,
    copied,
    killed_after,
    made,
    readings,
    rows_with,
    spread,
    synth,
    traces,
)
from tests.openai_server import ServerState, running_server
from tests.processes import versions_of
from tests.test_imports import bring, go, importing_tickets
from tests.test_imports import made as imported
from tests.test_run import synth as command
from tests.test_run import versions

ROW = f"human.csv:{PLACE}"
YES = ("erase", "tickets", "--source-row", ROW, "--reason", "request 17", "--yes", "--json")


@dataclass(frozen=True)
class Erased:
    """A home before and after the erasure, and what the server was asked for it."""

    before: Place
    after: Place
    told: dict[str, Any]
    asked: list[str]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture(scope="module")
def spoiled(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return spread(tmp_path_factory.mktemp("spread") / "before", server)


@pytest.fixture(scope="module")
def done(server: ServerState, spoiled: Place, tmp_path_factory: pytest.TempPathFactory) -> Erased:
    after = copied(spoiled, tmp_path_factory.mktemp("erased") / "after")
    count = server.request_count
    ran = synth(after, server, *YES)
    assert ran.code == 0, ran.errors
    asked = [prompt_of(info.body) for info in server.requests[count:]]
    return Erased(spoiled, after, ran.json, asked)


@pytest.fixture
def place(spoiled: Place, tmp_path: Path) -> Place:
    """A copy in which the row is everywhere."""
    return copied(spoiled, tmp_path / "place")


def prompt_of(body: dict[str, Any]) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"])


def has_word(text: str) -> bool:
    return any(word in text.casefold() for word in WORDS)


def table(place: Place, server: ServerState, stage: str) -> pl.DataFrame:
    return place.table(versions_of(place.statuses(server)), stage)


def says(texts: pl.Series) -> pl.Series:
    return pl.Series([has_word(text or "") for text in texts], dtype=pl.Boolean)


# --- what descends ---------------------------------------------------------------------------


def test_the_row_had_spread_to_every_place_that_is_searched(spoiled: Place) -> None:
    found = {Path(path).relative_to(spoiled.root).parts[:2] for path, _ in traces(spoiled.root)}
    folders = ("store", "ledger", "landing", "releases", "exports")
    assert found >= {("home", folder) for folder in folders} | {("dagster", "history")}
    stages = {Path(path).parent.name for path, _ in traces(spoiled.home / "store")}
    assert stages >= {"human_raw", "human", "human_train", "seeds", "plan", "candidates", "train"}


def test_the_impact_is_what_the_words_of_the_row_show(spoiled: Place, server: ServerState) -> None:
    told = synth(spoiled, server, "impact", "tickets", "--source-row", ROW, "--json").json
    stages = {stage["stage"]: stage for stage in told["stages"]}
    plan, candidates = table(spoiled, server, "plan"), table(spoiled, server, "candidates")
    shown = plan.filter(says(plan["prompt"]))
    calls = candidates.join(shown, on=("cell", "ordinal"), how="semi")
    assert stages["human_raw"]["ids"] == [ROW]
    assert stages["seeds"]["rows"] == stages["human"]["rows"] == 1
    assert sorted(stages["plan"]["ids"]) == sorted(
        f"{cell}/{ordinal}" for cell, ordinal in shown.select("cell", "ordinal").iter_rows()
    )
    assert stages["candidates"]["rows"] == calls.height
    assert told["calls"]
    assert set(told["calls"]) == set(calls["request_id"])
    assert says(candidates["text"]).sum() > 1, "the model did repeat it"
    assert set(candidates.filter(says(candidates["text"]))["request_id"]) <= set(told["calls"])
    train = table(spoiled, server, "train")
    made = train.filter(pl.col("request_id").is_in(told["calls"])).height
    assert stages["train"]["rows"] == made + 1
    assert [one["rows"]["train"] for one in told["releases"]] == [made + 1] * 2
    assert [one["current"] for one in told["releases"]].count(True) == 1
    assert len(told["exports"]) == 2
    assert not has_word(json.dumps(told))


@pytest.mark.parametrize("by", ["record", "text"])
def test_a_row_is_the_same_by_its_record_and_by_its_text(
    spoiled: Place, server: ServerState, tmp_path: Path, by: str
) -> None:
    human = table(spoiled, server, "human")
    (tmp_path / "text").write_text(f"  {PLANTED.upper()}\n")
    words = {
        "record": ["--record", human.filter(says(human["text"]))["record_id"][0][:12]],
        "text": ["--text-file", str(tmp_path / "text")],
    }[by]
    told = [
        synth(spoiled, server, "impact", "tickets", *selected, "--json").json
        for selected in (words, ["--source-row", ROW])
    ]
    assert told[0] == told[1]


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the ledger's, which whoever opens it writes to, and locks."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): path.read_bytes() for path in files if path.parent.name != "ledger"}


def test_without_yes_nothing_changes_and_what_would_is_told(
    place: Place, server: ServerState, done: Erased
) -> None:
    before = tree(place.home)
    ran = synth(place, server, *(word for word in YES if word != "--yes"))
    assert (ran.code, ran.json["erased"]) == (0, False)
    assert ran.json["asked_anew"] == {"login": len(done.asked)}
    assert tree(place.home) == before


# --- afterwards ------------------------------------------------------------------------------


def test_no_byte_of_it_is_left_anywhere(done: Erased) -> None:
    source = done.after.defs / "tickets" / "human.csv"
    assert traces(done.after.root, but=(source,)) == []
    assert traces(source.parent), "the user's own file is the user's"


def test_only_prompts_that_showed_it_are_asked_anew(done: Erased, server: ServerState) -> None:
    made = done.told["rebuilt"]["calls"]["made"]
    shown = synth(done.before, server, "impact", "tickets", "--source-row", ROW, "--json").json
    assert made == len(done.asked) == len(shown["calls"])
    plans = [table(at, server, "plan") for at in (done.before, done.after)]
    was, now = ({(c, o): p for c, o, p in t.select("cell", "ordinal", "prompt").rows()}
                for t in plans)  # fmt: skip
    assert was.keys() == now.keys()
    changed = {call for call in was if was[call] != now[call]}
    assert changed == {call for call in was if has_word(was[call])}
    assert {cell for cell, _ in changed} == {"login"}
    assert all(any(prompt in asked for asked in done.asked) for prompt in
               (now[call] for call in changed if call in _made(done, server)))  # fmt: skip
    # Of each prompt that changed, one line did: another row took the place.
    for call in changed:
        lines = zip(was[call].splitlines(), now[call].splitlines(), strict=True)
        assert [has_word(a) for a, b in lines if a != b] == [True]


def _made(done: Erased, server: ServerState) -> set[tuple[str, int]]:
    return set(table(done.after, server, "candidates").select("cell", "ordinal").iter_rows())


def test_all_is_verified_and_there_is_nothing_left_to_do(done: Erased, server: ServerState) -> None:
    verified = synth(done.after, server, "verify", "--json")
    assert (verified.code, verified.json["problems"]) == (0, [])
    count = server.request_count
    again = done.after.run(server)
    assert (again.code, again.json["ran"], server.request_count) == (0, [], count)
    counts = synth(done.after, server, "status", "tickets", "--json").json["stages"]
    assert {stage["status"] for stage in counts} == {"fresh"}


def test_the_row_is_a_reject_without_its_text(done: Erased, server: ServerState) -> None:
    rejects = table(done.after, server, "human_rejects").filter(pl.col("reason") == "erased")
    assert rejects.select("source", "source_row", "text", "label").rows() == [
        ("human.csv", PLACE, None, None)
    ]


def test_what_is_left_of_releases_says_that_they_were_erased(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    listed = synth(done.after, server, "releases", "tickets", "--json").json["releases"]
    gone = [one for one in listed if one.get("erased")]
    assert {one["erased"]["reason"] for one in gone} == {"request 17"}
    assert [one["current"] for one in listed] == [True, False, False]
    shown = synth(done.after, server, "releases", "tickets", COLUMNS="200").out
    assert shown.count("request 17") == shown.count("erased") == 2
    version = gone[0]["version"]
    for words in (
        ("reproduce", version[:8], "--into", str(tmp_path / "again")),
        ("export", "tickets", "--release", version),
        ("rollback", "tickets", version),
    ):
        ran = synth(done.after, server, *words)
        assert ran.code == 2
        assert "was erased" in ran.errors


def test_it_is_told_what_went_and_recorded_without_a_word_of_it(done: Erased) -> None:
    lines = Log(done.after.home, "tickets").lines()
    assert [line["event"] for line in lines] == ["begun", "done"]
    removed = lines[1]["removed"]
    assert removed == done.told["removed"]
    assert (removed["releases"], removed["exports"], removed["rows"]["seeds"]) == (2, 2, 1)
    assert removed["calls"] == len(done.asked)


@pytest.mark.slow
def test_the_source_brings_it_back_in_no_later_load(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    place = copied(done.after, tmp_path / "later")
    more = {"body": "a forklift drove over my new espresso machine", "topic": "delivery"}
    copy = {"body": PLANTED.upper().replace(" ", "  "), "topic": "billing"}
    folder = place.defs / "tickets"
    write_csv(folder / "human.csv", [more, copy, *rows_with(PLANTED, human_rows())])
    ran = place.run(server)
    assert ran.code == 0, ran.errors
    assert "human_raw" in ran.json["ran"]
    assert traces(place.root, but=(folder / "human.csv",)) == []
    rejects = table(place, server, "human_rejects").filter(pl.col("reason") == "erased")
    assert rejects["source_row"].to_list() == [2, PLACE + 2]


def test_the_same_erasure_again_finds_that_it_is_done(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    place = copied(done.after, tmp_path / "again")
    (tmp_path / "text").write_text(PLANTED)
    for words in (YES, ("erase", "tickets", "--text-file", str(tmp_path / "text"), "--yes")):
        ran = synth(place, server, *words)
        assert ran.code == 0, ran.errors
        assert "erased before" in ran.out
    assert len(Log(place.home, "tickets").lines()) == 2


@pytest.mark.slow
def test_a_new_release_can_be_made_again_from_what_is_left(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    into = tmp_path / "again"
    ran = synth(done.after, server, "reproduce", "--dataset", "tickets", "current",
                "--into", str(into), "--json")  # fmt: skip
    assert ran.code == 0, (ran.out, ran.errors)
    assert ran.json["same"]
    assert traces(into) == []


# --- a kill ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "again"),
    [
        pytest.param(step, again, marks=[] if (step, again) in QUICK else [pytest.mark.slow])
        for QUICK in [{(5, "erase")}]
        for step in range(len(STEPS) + 1)
        for again in ("erase", "run")
    ],
)
def test_a_kill_at_any_step_is_finished_by_the_next_erasure_or_run(
    place: Place, server: ServerState, done: Erased, step: int, again: str
) -> None:
    assert killed_after(place, server, step, *YES) == -9
    complete = step >= len(STEPS) - 1
    verified = synth(place, server, "verify", "tickets", "--json")
    told = json.dumps(verified.json["problems"])
    assert (verified.code == 0) == complete
    assert complete or "synth erase tickets" in told
    count = server.request_count
    ran = synth(place, server, *(YES if again == "erase" else ("run", "tickets", "--json")))
    assert ran.code == 0, ran.errors
    assert server.request_count - count == len(done.asked)
    assert traces(place.root, but=(place.defs / "tickets" / "human.csv",)) == []
    assert synth(place, server, "verify").code == 0
    found, wanted = (versions_of(at.statuses(server)) for at in (place, done.after))
    # The marks of each erasure have a salt of their own, which is part of the source's version.
    assert found | {"source": ""} == wanted | {"source": ""}
    assert [line["event"] for line in Log(place.home, "tickets").lines()] == ["begun", "done"]


def test_before_the_tombstone_nothing_is_deleted(place: Place, server: ServerState) -> None:
    before = {path for path in tree(place.home) if "erasures" not in path}
    assert killed_after(place, server, 0, *YES) == -9
    assert {path for path in tree(place.home) if "erasures" not in path} == before
    assert Log(place.home, "tickets").unfinished()


# --- what would be wrong ---------------------------------------------------------------------


def test_a_release_that_vanished_and_a_forged_tombstone_are_found(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    place = copied(done.after, tmp_path / "forged")
    root = place.home / "releases" / "tickets"
    current = (root / "current").read_text().strip()
    shutil.rmtree(root / current)
    (root / "current").unlink()
    assert current in synth(place, server, "verify").out
    stone = json.loads(next((root / "erased").glob("*.json")).read_text())
    forged = root / "erased" / f"{current}.json"
    forged.write_text(json.dumps(stone | {"version": current}))
    assert "a tombstone as it was written" in synth(place, server, "verify").out
    body = stone | {"version": current}
    forged.write_text(json.dumps(body | {"sha256": digest_of(body)}))
    assert "no record of it" in synth(place, server, "verify").out


def test_a_record_of_erasures_that_was_changed_is_found_and_nothing_lands_by_it(
    done: Erased, server: ServerState, tmp_path: Path
) -> None:
    place = copied(done.after, tmp_path / "changed")
    log = Log(place.home, "tickets").path
    first, second = log.read_text().splitlines()
    begun = json.loads(first) | {"marks": {"text": [], "group": [], "record": []}}
    log.write_text(json.dumps(begun) + "\n" + second + "\n")
    assert "line 1 does not follow" in synth(place, server, "verify").out
    ran = place.run(server)
    assert ran.code == 1
    assert "record of erasures" in ran.errors


# --- others at work --------------------------------------------------------------------------


def test_a_run_of_dagsters_own_holds_an_erasure_back(place: Place, server: ServerState) -> None:
    with dagster_of(place) as instance:
        instance.add_run(started())
    ran = synth(place, server, *YES)
    assert ran.code == 3
    assert "under way" in ran.errors
    assert not Log(place.home, "tickets").lines()


def test_a_run_that_begins_after_the_look_holds_it_back_too(
    place: Place, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started()

    def begin() -> None:
        with dagster_of(place) as instance:
            instance.add_run(run)

    at_the_last_moment(monkeypatch, begin)
    before = {path for path in tree(place.home) if "erasures" not in path}
    ran = synth(place, server, *YES)
    assert ran.code == 3
    assert f"run {run.run_id[:8]}" in ran.errors
    assert {path for path in tree(place.home) if "erasures" not in path} == before
    log = Log(place.home, "tickets")
    assert (log.lines(), log.pending_path.exists()) == ([], False)


def test_what_was_made_between_the_look_and_the_erasure_goes_too(
    place: Place, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = pl.DataFrame({"record_id": ["h-later"], "text": [PLANTED], "topic": ["login"]})
    store = ContentStore(place.home / "store")
    at_the_last_moment(monkeypatch, lambda: store.put("tickets", "human", later))
    ran = synth(place, server, *YES)
    assert ran.code == 0, ran.errors
    assert traces(place.root, but=(place.defs / "tickets" / "human.csv",)) == []


def test_a_step_of_anybody_reads_and_writes_nothing_while_an_erasure_is_unfinished(
    place: Place, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.environment(server).items():
        monkeypatch.setenv(name, value)
    assert killed_after(place, server, STEPS.index(erasing._tombstone), *YES) == -9
    dataset = dataset_named("tickets", defs_roots())
    tables = {path for path in tree(place.home) if "/store/" in path}
    with dagster_of(place) as instance:
        session = Session.open(dataset, instance, Workbench(Home(place.home)))
        # `human_raw` reads no table and `plan` does: what writes is refused as what reads is.
        for stage in ("human_raw", "plan"):
            step = session.materialize([stage])
            assert not step.success
            (failure,) = [e for e in step.all_node_events if e.is_step_failure]
            told = failure.step_failure_data.user_failure_data
            assert told is not None
            assert "synth erase tickets --yes" in str(told.description)
        busy = under_way(instance, place.home, ["tickets", "other"])
    assert list(busy) == ["tickets"]
    assert "an erasure" in busy["tickets"]
    assert {path for path in tree(place.home) if "/store/" in path} == tables
    ran = place.run(server)
    assert ran.code == 0, ran.errors
    assert traces(place.root, but=(place.defs / "tickets" / "human.csv",)) == []


def at_the_last_moment(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Does ``act`` when all has been looked at, just before the erasure is written down."""
    write = Log.write_pending

    def acting(log: Log, work: Mapping[str, Any]) -> None:
        act()
        write(log, work)

    monkeypatch.setattr(Log, "write_pending", acting)


def dagster_of(place: Place) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(place.dagster_home))


def started() -> DagsterRun:
    """A run that somebody else executes."""
    tags = {"synth/dataset": "tickets"}
    return DagsterRun(job_name="j", status=dg.DagsterRunStatus.STARTED, tags=tags)


# --- what is refused -------------------------------------------------------------------------


def test_a_seed_written_by_hand_that_says_it_is_taken_out_first(
    place: Place, server: ServerState
) -> None:
    seeds = place.defs / "tickets" / "seeds.jsonl"
    seeds.write_text(json.dumps({"text": PLANTED, "label": "login"}) + "\n")
    ran = synth(place, server, *YES)
    assert ran.code == 2
    assert "seeds.jsonl" in ran.errors
    assert not Log(place.home, "tickets").lines()


def test_words_that_name_nothing_are_refused(spoiled: Place, server: ServerState) -> None:
    for words in (
        (),
        ("--source-row", "human.csv"),
        ("--source-row", "human.csv:4000"),
        ("--record", "00000000"),
        ("--group", "x"),
        ("--record", "00000000", "--source-row", ROW),
    ):
        ran = synth(spoiled, server, "erase", "tickets", *words, "--yes")
        assert (ran.code, ran.errors.count("fix:")) == (2, 1), words
    assert not Log(spoiled.home, "tickets").lines()


# --- beyond one dataset ----------------------------------------------------------------------


@pytest.mark.slow
def test_calls_of_another_dataset_that_show_it_go_and_the_dataset_is_named(
    place: Place, server: ServerState
) -> None:
    other = DatasetFolder(place.defs / "others")
    other.rows = rows_with(PLANTED, other.rows)
    other.attributes["random_seed"] = 7
    other.write()
    assert place.run(server, "others").code == 0
    before = versions_of(place.statuses(server, "others"))
    ran = synth(place, server, *YES)
    assert ran.code == 0, ran.errors
    assert set(ran.json["impact"]["other_datasets"]) == {"others"}
    assert ran.json["impact"]["other_datasets"]["others"]["human"] == 1
    assert versions_of(place.statuses(server, "others")) == before
    with Ledger.open(place.ledger) as ledger:
        shown = [row[0] for row in ledger.query("SELECT request FROM calls")]
    assert not [request for request in shown if has_word(request)]
    assert synth(place, server, "erase", "others", "--source-row", ROW, "--yes").code == 0
    files = tuple(place.defs / name / "human.csv" for name in ("tickets", "others"))
    assert traces(place.root, but=files) == []


@pytest.mark.slow
def test_rows_of_a_group_go_together_and_later_ones_stay_away(
    server: ServerState, tmp_path: Path
) -> None:
    place = made(tmp_path)
    folder = DatasetFolder(place.defs / "tickets")
    mine = [{"body": f"{PLANTED} {n}", "topic": "login"} for n in range(3)]
    folder.rows = [{**row, "person": f"p{n // 2}"} for n, row in enumerate(folder.rows)]
    folder.rows += [{**row, "person": "kim"} for row in mine]
    folder.write()
    folder.edit("partition.group_by", ["person"])
    assert place.run(server, "tickets", "--until", "human_train").code == 0
    words = ("erase", "tickets", "--group", "kim", "--yes", "--no-rebuild", "--json")
    ran = synth(place, server, *words)
    assert ran.code == 0, ran.errors
    assert ran.json["removed"]["rows"]["human"] == 3
    later = {"body": "an altogether different complaint", "topic": "login", "person": "kim"}
    write_csv(folder.folder / "human.csv", [*folder.rows, later])
    assert place.run(server, "tickets", "--until", "human_train").code == 0
    erased = table(place, server, "human_rejects").filter(pl.col("reason") == "erased")
    assert erased.height == 4
    assert traces(place.root, but=(folder.folder / "human.csv",)) == []


@pytest.mark.slow
def test_a_snapshot_of_a_database_does_not_keep_it_either(
    server: ServerState, tmp_path: Path
) -> None:
    place = made(tmp_path)
    database = tmp_path / "tickets.db"
    rows = rows_with(PLANTED, human_rows())
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE tickets (id INTEGER PRIMARY KEY, body TEXT, topic TEXT)")
        values = [(n, row["body"], row["topic"]) for n, row in enumerate(rows)]
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?)", values)
        connection.commit()
    folder = place.dataset()
    folder.edit("source", {"kind": "sql", "url_env": "TICKETS_DB", "table": "tickets",
                           "cursor": "id", "primary_key": ["id"]})  # fmt: skip
    url = {"TICKETS_DB": f"sqlite:///{database}"}
    until = ("run", "tickets", "--until", "human_train", "--json")
    assert synth(place, server, *until, **url).code == 0
    text = tmp_path / "text"
    text.write_text(PLANTED)
    words = ("erase", "tickets", "--text-file", str(text), "--yes", "--no-rebuild")
    assert synth(place, server, *words, **url).code == 0
    text.unlink()
    for number in (998, 999):  # all rows first, then what is new
        ran = synth(place, server, *until, **url)
        assert ran.code == 0, ran.errors
        assert traces(place.root, but=(database, folder.folder / "human.csv")) == []
        with closing(sqlite3.connect(database)) as connection:
            more = (number, f"one more complaint, of {number}", "login")
            connection.execute("INSERT INTO tickets VALUES (?, ?, ?)", more)
            connection.commit()
    rejects = table(place, server, "human_rejects").filter(pl.col("reason") == "erased")
    assert rejects.height == 1


@pytest.mark.slow
def test_a_run_of_several_datasets_keeps_what_it_says_of_the_others(
    place: Place, server: ServerState
) -> None:
    place.dataset("others")
    environment = place.environment(server)
    code = (
        "import dagster as dg\n"
        "from synth_assets.definitions import defs\n"
        "from synth_assets.instance import open_instance\n"
        "job = defs().resolve_implicit_global_asset_job_def()\n"
        "keys = [dg.AssetKey([d, 'human_raw']) for d in ('tickets', 'others')]\n"
        "with open_instance() as instance:\n"
        "    assert job.execute_in_process(instance=instance, asset_selection=keys).success\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    ran = synth(place, server, *YES, "--no-rebuild")
    assert ran.code == 0, ran.errors
    assert traces(place.root, but=(place.defs / "tickets" / "human.csv",)) == []
    assert place.statuses(server, "others")["human_raw"]["status"] == "fresh"
    assert place.statuses(server)["human_raw"]["status"] == "missing"


@pytest.mark.slow
def test_an_imported_row_that_names_it_as_a_parent_goes_and_stays_away(
    synth_home: Path, server: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    folder = importing_tickets(synth_home.parent / "defs" / "tickets")
    derived = {"body": "the mumblecrust sank off the coast", "from": "T-5"}
    again = {"body": "a mumblecrust, once more removed", "from": "T-5"}
    good = imported(8, "billing")
    bring(folder, [good[0] | derived, *good[1:4], good[4] | again, *good[5:]])
    go()
    told = command("erase", "tickets", "--source-row", "desk/human.csv:6", "--yes", "--json")
    assert told.code == 0, told.errors
    rest = [
        str(path)
        for path in synth_home.rglob("*")
        if path.is_file()
        for reading in readings(path, path.read_bytes())
        if b"mumblecrust" in reading
    ]
    assert rest == []
    assert command("verify").code == 0
    # The file still says it, and a change of the file does not bring it back.
    bring(folder, [good[0] | derived, *good[1:4], good[4] | again, *imported(12, "billing")[5:]])
    go()
    version = versions()["imported"]
    table = pl.read_parquet(synth_home / "store/tickets/imported" / f"{version}.parquet")
    assert table.filter(problem="erased")["source_row"].sort().to_list() == [1, 5]
    assert not table["text"].str.contains("mumblecrust").any()
