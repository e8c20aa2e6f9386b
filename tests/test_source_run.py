"""Sources through the command line: what changed is seen, what is broken leaves nothing behind."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from synth_assets.sources import http
from synth_assets.store.digest import frame_digest
from tests.datasets import DatasetFolder, human_rows, write_csv
from tests.source_server import Answer, Server, as_json, serving
from tests.test_run import run, statuses, synth, table, versions

LANDED = ("--until", "human_raw")
UNTIL_HUMAN = ("--until", "human")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def desk(tickets: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tickets dataset over a table of SQLite."""
    path = tmp_path / "desk.db"
    monkeypatch.setenv("DESK_DB", f"sqlite:///{path}")
    execute(path, "CREATE TABLE tickets (id INTEGER PRIMARY KEY, body, topic, changed INTEGER)")
    rows = [(n, row["body"], row["topic"], n) for n, row in enumerate(tickets.rows)]
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", rows)
    tickets.edit("source", {"kind": "sql", "url_env": "DESK_DB", "table": "tickets"})
    return path


def execute(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def ran(*words: str) -> list[str]:
    done = run("tickets", *words)
    assert done.code == 0, done.errors
    return list(done.json["ran"])


def told(*words: str) -> str:
    """What a run says to a person."""
    done = synth("run", "tickets", *words)
    assert done.code == 0, done.errors
    return " ".join(done.errors.split())


def left_over(home: Path) -> list[str]:
    folder = home / "landing" / "tickets"
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


# --- databases ---


def test_a_deleted_changed_or_new_row_of_a_table_is_seen(desk: Path, synth_home: Path) -> None:
    assert "human_raw" in ran(*LANDED)
    assert ran(*LANDED) == []
    rows = table(synth_home, "human_raw")
    seen, count = {frame_digest(rows, volatile=["_load_id"])}, rows.height
    for change, difference in (
        ("DELETE FROM tickets WHERE id = 7", -1),
        ("UPDATE tickets SET body = 'the courier lost it on the way' WHERE id = 8", -1),
        ("INSERT INTO tickets VALUES (999, 'a wholly new complaint', 'login', 999)", 0),
    ):
        execute(desk, change)
        assert ran(*LANDED) == ["human_raw"]
        rows = table(synth_home, "human_raw")
        assert rows.height == count + difference
        seen.add(frame_digest(rows, volatile=["_load_id"]))
    assert len(seen) == 4
    texts = rows["body"].to_list()
    assert "the courier lost it on the way" in texts
    assert "a wholly new complaint" in texts


def test_a_column_nobody_reads_is_landed_and_stops_there(desk: Path) -> None:
    ran(*UNTIL_HUMAN)
    before = versions()
    execute(desk, "UPDATE tickets SET changed = changed + 1")
    assert set(ran(*UNTIL_HUMAN)) == {"human_raw", "human", "human_rejects"}
    assert versions()["human"] == before["human"]


def test_an_untouched_table_written_anew_runs_nothing(desk: Path) -> None:
    ran(*LANDED)
    execute(desk, "CREATE TABLE copy AS SELECT * FROM tickets ORDER BY id DESC")
    execute(desk, "DROP TABLE tickets")
    execute(desk, "ALTER TABLE copy RENAME TO tickets")
    assert ran(*LANDED) == []


def test_a_version_query_decides_whether_rows_are_read(
    desk: Path, tickets: DatasetFolder, synth_home: Path
) -> None:
    tickets.edit("source.version_query", "SELECT max(changed) FROM tickets")
    ran(*LANDED)
    execute(desk, "UPDATE tickets SET body = 'unseen by the query' WHERE id = 7")
    assert ran(*LANDED) == []
    execute(desk, "UPDATE tickets SET changed = 5000 WHERE id = 7")
    assert "human_raw" in ran(*LANDED)
    assert "unseen by the query" in table(synth_home, "human_raw")["body"].to_list()


def test_an_incremental_table_says_that_deleted_rows_are_not_seen(
    desk: Path, tickets: DatasetFolder, synth_home: Path
) -> None:
    more = {"cursor": "changed", "primary_key": ["id"]}
    tickets.edit("source", tickets.attributes["source"] | more)
    assert "deleted ones are not seen" in told(*LANDED)
    count = table(synth_home, "human_raw").height
    execute(desk, "DELETE FROM tickets WHERE id = 7")
    assert ran(*LANDED) == []
    execute(desk, "INSERT INTO tickets VALUES (999, 'a new complaint', 'login', 999)")
    ran(*LANDED)
    assert table(synth_home, "human_raw").height == count + 1


def test_a_database_that_fails_leaves_the_rows_and_the_next_load_works(
    desk: Path, synth_home: Path
) -> None:
    ran(*LANDED)
    before = versions()
    execute(desk, "ALTER TABLE tickets RENAME COLUMN body TO words")
    broken = run("tickets", *LANDED)
    assert broken.code == 1
    assert "tickets: no column 'body'" in broken.errors
    assert "Traceback" not in broken.errors
    assert left_over(synth_home) == ["landed.duckdb"]
    execute(desk, "ALTER TABLE tickets RENAME COLUMN words TO body")
    ran(*LANDED)
    assert versions() == before


# --- contracts ---


def test_a_bad_load_then_a_good_one(tickets: DatasetFolder, synth_home: Path) -> None:
    def write(rows: list[Any]) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tickets.folder / "human.jsonl").write_text(lines)

    tickets.edit("source", {"kind": "files", "path": "human.jsonl"})
    write(tickets.rows)
    ran(*UNTIL_HUMAN)
    before = versions()
    write([{**row, "body": {"de": row["body"]}} for row in tickets.rows])
    broken = run("tickets", *UNTIL_HUMAN)
    assert broken.code == 1
    assert "human.jsonl: column 'body' changed its type: expected text, found struct" in (
        broken.errors
    )
    assert left_over(synth_home) == ["landed.duckdb"]
    assert statuses()["human_raw"]["status"] == "failed"
    bad = [{"body": ["a", "list"], "topic": "login"}, "no object", {"body": "x"}]
    write([*tickets.rows, *bad])
    ran(*UNTIL_HUMAN)
    reasons = dict(table(synth_home, "human_rejects").group_by("reason").len().iter_rows())
    assert reasons == {"wrong_type": 1, "not_an_object": 1, "too_short": 1}
    write(tickets.rows)
    ran(*UNTIL_HUMAN)
    assert versions() == before


def test_a_declared_type_sets_bad_rows_aside(tickets: DatasetFolder, synth_home: Path) -> None:
    rows = [{**row, "stars": str(n % 5)} for n, row in enumerate(tickets.rows)]
    rows[3]["stars"] = "many"
    write_csv(tickets.folder / "human.csv", rows)
    tickets.edit("source.columns", {"stars": "integer"})
    ran(*UNTIL_HUMAN)
    rejects = table(synth_home, "human_rejects")
    assert rejects["reason"].to_list() == ["wrong_type"]
    assert '"stars": "many"' in rejects["text"][0]


# --- several sources ---


def test_several_sources_are_named_and_what_two_share_is_a_duplicate(
    tickets: DatasetFolder, desk: Path, synth_home: Path, server: Server
) -> None:
    extra = human_rows({"login": 30}, seed=7)
    known = {row["body"] for row in tickets.rows}
    server.respond = lambda asked: as_json(
        [{"body": r["body"].upper(), "topic": r["topic"]} for r in extra]
    )
    del tickets.attributes["source"]
    sql = {"name": "desk", "kind": "sql", "url_env": "DESK_DB", "table": "tickets"}
    api = {"name": "export", "kind": "rest", "base_url": server.url, "path": "t"}
    files = {"name": "files", "kind": "files", "path": "*.csv"}
    tickets.edit("sources", [files, sql, api])
    ran(*UNTIL_HUMAN)
    human, rejects = table(synth_home, "human"), table(synth_home, "human_rejects")
    new = [row for row in extra if row["body"] not in known]
    assert 0 < len(new) < len(extra)
    counts = dict(human.group_by("source").len().iter_rows())
    assert counts == {"desk": len(tickets.rows), "export": len(new)}
    twice = dict(rejects.group_by("source", "reason").len().select("source", "len").iter_rows())
    assert twice == {"export": len(extra) - len(new), "files/human.csv": len(tickets.rows)}
    assert rejects["reason"].unique().to_list() == ["duplicate"]
    asked = len(server.asked)
    assert ran(*UNTIL_HUMAN) == []
    assert len(server.asked) == asked + 1


def test_one_failing_source_of_several_lands_nothing(
    tickets: DatasetFolder, synth_home: Path, server: Server
) -> None:
    del tickets.attributes["source"]
    api = {"name": "b", "kind": "rest", "base_url": server.url, "path": "t", "retries": 0}
    tickets.edit("sources", [{"name": "a", "kind": "files", "path": "human.csv"}, api])
    server.respond = lambda asked: as_json([{"body": "the api has one row", "topic": "login"}])
    ran(*LANDED)
    before = table(synth_home, "human_raw")
    write_csv(tickets.folder / "human.csv", tickets.rows[:50])
    server.respond = lambda asked: Answer(status=500)
    assert run("tickets", *LANDED).code == 1
    assert table(synth_home, "human_raw").equals(before)


# --- the other kinds ---


def test_an_api_is_asked_once_per_run_and_a_changed_record_is_seen(
    tickets: DatasetFolder, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESK_KEY", "k-Zq81xk33")
    rows = [dict(row) for row in tickets.rows]

    def respond(asked: Any) -> Answer:
        first = int(asked.query["offset"])
        return as_json({"items": rows[first : first + 50], "total": len(rows)})

    server.respond = respond
    tickets.edit(
        "source",
        {
            "kind": "rest",
            "base_url": server.url,
            "path": "tickets",
            "records": "items",
            "pagination": {"kind": "offset", "limit": 50, "total": "total"},
            "auth": {"kind": "bearer", "env": "DESK_KEY"},
        },
    )
    ran(*LANDED)
    assert len(server.asked) == 3
    rows[5]["body"] = "the courier lost it on the way"
    assert ran(*LANDED) == ["human_raw"]
    assert "the courier lost it on the way" in table(synth_home, "human_raw")["body"].to_list()
    files = [path for path in synth_home.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if b"k-Zq81xk33" in path.read_bytes()]


def test_a_store_and_a_hub_give_the_same_rows_as_the_file(
    tickets: DatasetFolder, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(*UNTIL_HUMAN)
    expected = table(synth_home, "human").drop("source")
    parquet = tickets.folder / "human.parquet"
    pl.DataFrame(tickets.rows).write_parquet(parquet)
    fsspec.filesystem("memory").pipe_file("/tickets/human.parquet", parquet.read_bytes())
    commit = "c" * 40
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.respond = lambda asked: (
        as_json({"sha": commit, "siblings": [{"rfilename": "d/human.parquet"}]})
        if asked.path.startswith("/api/")
        else Answer(parquet.read_bytes())
    )
    tickets.edit("source", {"kind": "files", "path": "memory://tickets/*.parquet"})
    ran(*UNTIL_HUMAN)
    assert table(synth_home, "human").drop("source").equals(expected)
    hub = {"kind": "huggingface", "repo": "org/t", "path": "d/*.parquet"}
    tickets.edit("source", hub)
    assert f"main of org/t can move; pin it: revision: {commit}" in told(*UNTIL_HUMAN)
    assert table(synth_home, "human").drop("source").equals(expected)
    tickets.edit("source", hub | {"revision": commit})
    assert "can move" not in told(*LANDED)


def test_images_class_numbers_and_a_json_array_lose_no_row(
    tickets: DatasetFolder, synth_home: Path
) -> None:
    """A folder as the Hub has it: Parquet with bytes, numbers for classes, and a card."""
    ran(*UNTIL_HUMAN)
    expected = table(synth_home, "human").drop("source")
    rows = pl.DataFrame(tickets.rows)
    names = sorted(rows["topic"].unique())
    rows.with_columns(
        pl.col("topic").replace_strict(names, range(len(names))),
        image=pl.struct(bytes=pl.lit(b"\xff\xd8"), path=pl.lit("a.png")),
        score=pl.lit(float("nan")),
    ).write_parquet(tickets.folder / "human.parquet")
    listed = "".join(f"        '{place}': {name}\n" for place, name in enumerate(names))
    (tickets.folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: topic\n    dtype:\n      class_label:\n"
        f"       names:\n{listed}---\n"
    )
    tickets.edit("source", {"kind": "files", "path": "*.parquet"})
    said = told(*UNTIL_HUMAN)
    assert "column 'image', which nothing reads: " in said
    assert table(synth_home, "human").drop("source").equals(expected)
    flawed = [row | {"score": float("nan")} for row in tickets.rows]
    (tickets.folder / "human.json").write_text(json.dumps(flawed))
    tickets.edit("source", {"kind": "files", "path": "human.json"})
    assert "column 'score', which nothing reads: " in told(*UNTIL_HUMAN)
    assert table(synth_home, "human").drop("source").equals(expected)
