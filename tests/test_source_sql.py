"""Databases as sources: the rows as they are, and every change of them seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from synth_assets.errors import SourceError
from synth_assets.sources import sql
from synth_assets.sources.files import read_batches
from synth_assets.sources.records import FileFormat
from synth_assets.sources.sql import SqlTable
from tests import source_postgres

TABLE = SqlTable("TICKETS_DB", table="tickets")
INCREMENTAL = SqlTable("TICKETS_DB", table="tickets", cursor="changed", primary_key=("id",))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    pytest.importorskip("psycopg")
    folder = source_postgres.binaries()
    if folder is None:
        pytest.skip("no PostgreSQL server is installed (initdb not found)")
    with source_postgres.running(folder) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sa.Engine]:
    url = f"sqlite:///{tmp_path}/tickets.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres")
    monkeypatch.setenv("TICKETS_DB", url)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    run(engine, "DROP TABLE IF EXISTS tickets")
    run(engine, "CREATE TABLE tickets (id INTEGER PRIMARY KEY, body TEXT, changed INTEGER)")
    insert(engine, *((n, f"ticket {n}", n) for n in range(1, 6)))
    yield engine
    run(engine, "DROP TABLE IF EXISTS tickets")


def run(engine: sa.Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def insert(engine: sa.Engine, *rows: tuple[int, str | None, int | None]) -> None:
    for number, body, changed in rows:
        statement = "INSERT INTO tickets VALUES (:id, :body, :changed)"
        run(engine, statement, id=number, body=body, changed=changed)


def rows(source: SqlTable, folder: Path) -> list[dict[str, Any]]:
    copy, _ = sql.fetch(source, folder=folder)
    found = [json.loads(line) for line in copy.path.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda row: row.get("id", 0))


def version(source: SqlTable, folder: Path) -> str:
    return sql.fetch(source, folder=folder)[0].sha256


# --- everything is read ---


def test_a_table_and_a_query_give_their_rows(database: sa.Engine, tmp_path: Path) -> None:
    assert rows(TABLE, tmp_path / "t")[0] == {"id": 1, "body": "ticket 1", "changed": 1}
    query = SqlTable(
        "TICKETS_DB", query="WITH t AS (SELECT * FROM tickets) SELECT body AS b FROM t WHERE id>3;"
    )
    assert [row["b"] for row in rows(query, tmp_path / "q")] == ["ticket 4", "ticket 5"]


def test_colons_and_percents_of_a_query_are_just_text(database: sa.Engine, tmp_path: Path) -> None:
    query = "SELECT ':x 12:30 100%' AS a, body FROM tickets WHERE body LIKE 'ticket %'"
    found = rows(SqlTable("TICKETS_DB", query=query), tmp_path)
    assert {row["a"] for row in found} == {":x 12:30 100%"}
    assert len(found) == 5


@pytest.mark.parametrize(
    "ending",
    [
        *(
            "",
            " ;",
            "\n-- all of it",
            "; -- all; of it",
            "--all",
            ";\n/* a ; b */\n;\n",
            " /* ' */ ; ",
        ),
        *("\n\n -- a 'quote", "\t;;\r\n", "; /* never closed", "/* a -- */--b"),
    ],
)
def test_a_query_may_end_in_a_comment_and_works_again_and_again(
    database: sa.Engine, tmp_path: Path, ending: str
) -> None:
    query = f"-- tickets; all\nSELECT id, body, changed FROM tickets WHERE body <> '-- ;'{ending}"
    whole = SqlTable("TICKETS_DB", query=query, version_query=f"SELECT 1 AS ok{ending}")
    assert sql.version(whole) == sql.version(whole)
    assert len(rows(whole, tmp_path / "whole")) == len(rows(whole, tmp_path / "whole")) == 5
    onward = SqlTable("TICKETS_DB", query=query, cursor="changed", primary_key=("id",))
    assert len(rows(onward, tmp_path / "onward")) == 5
    insert(database, (6, "ticket 6", 6))
    assert len(rows(onward, tmp_path / "onward")) == 6


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("SELECT ';'", "SELECT ';'"),
        ("SELECT ';';", "SELECT ';'"),
        ("SELECT 'it''s -- no comment' ; -- ;", "SELECT 'it''s -- no comment'  -- ;"),
        ('SELECT "a;--"; ', 'SELECT "a;--"'),
        ("SELECT E'it\\'s;' ;", "SELECT E'it\\'s;'"),
        ("SELECT $q$;--$q$;", "SELECT $q$;--$q$"),
        ("SELECT 5--3", "SELECT 5--3"),
        (" ; SELECT 1 /* ;", "SELECT 1"),
        ("SELECT '/* a', 1;", "SELECT '/* a', 1"),
        ("SELECT 6/*2*/ /3", "SELECT 6/*2*/ /3"),
        ("SELECT 1; SELECT 2", "SELECT 1; SELECT 2"),
        ("", ""),
    ],
)
def test_only_what_ends_a_query_is_taken_off(query: str, expected: str) -> None:
    assert sql.statement(query) == expected


def test_a_backslash_before_a_colon_stays(database: sa.Engine, tmp_path: Path) -> None:
    query = r"SELECT 'C:\:x \: a::b' AS a"
    assert rows(SqlTable("TICKETS_DB", query=query), tmp_path) == [{"a": r"C:\:x \: a::b"}]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM tickets WHERE id = 3",
        "UPDATE tickets SET body = 'other' WHERE id = 3",
        "INSERT INTO tickets VALUES (9, 'new', 9)",
        "UPDATE tickets SET body = NULL WHERE id = 3",
    ],
)
def test_a_deleted_changed_or_new_row_is_another_version(
    database: sa.Engine, tmp_path: Path, change: str
) -> None:
    before = version(TABLE, tmp_path)
    assert version(TABLE, tmp_path) == before
    run(database, change)
    assert version(TABLE, tmp_path) != before


def test_the_order_of_rows_is_no_content(database: sa.Engine, tmp_path: Path) -> None:
    before = version(TABLE, tmp_path)
    run(database, "DELETE FROM tickets WHERE id = 1")
    insert(database, (1, "ticket 1", 1))  # now the last row of a heap
    assert version(TABLE, tmp_path) == before
    backwards = SqlTable("TICKETS_DB", query="SELECT * FROM tickets ORDER BY id DESC")
    assert version(backwards, tmp_path / "b") == before


def test_any_value_comes_back_as_text_or_with_a_reason(database: sa.Engine, tmp_path: Path) -> None:
    awkward = 'grün 😀 "q" \\ \n\u2028 \'x\' {"a": 1}'
    run(database, "UPDATE tickets SET body = :b WHERE id = 1", b=awkward)
    blob = "X'C3BC'" if database.dialect.name == "sqlite" else r"'\xc3bc'::bytea"
    torn = "X'FF'" if database.dialect.name == "sqlite" else r"'\xff'::bytea"
    query = (
        f"SELECT id, body, {blob} AS bytes, "  # noqa: S608
        f"CASE WHEN id = 2 THEN {torn} END AS torn, 1.50 AS real, NULL AS blank FROM tickets"
    )
    copy, _ = sql.fetch(SqlTable("TICKETS_DB", query=query), folder=tmp_path)
    frame = next(iter(read_batches([("q", copy.path)], FileFormat("jsonl"), required_columns=[])))
    bad = frame.filter(frame["_problem"].is_not_null())
    assert bad["_problem"].to_list() == ["undecodable"]
    first = frame.filter(frame["id"] == "1").row(0, named=True)
    assert (first["body"], first["bytes"], first["blank"]) == (awkward, "ü", None)
    assert float(first["real"]) == 1.5


def test_postgres_types_are_their_text(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS_DB", postgres)
    query = (
        "SELECT 12.340::numeric AS n, 'NaN'::float8 AS nan, '2024-02-29'::date AS d, "
        "'2024-02-29 10:00:00+00'::timestamptz AT TIME ZONE 'UTC' AS t, '{\"a\": [1]}'::jsonb AS j,"
        "ARRAY['x','y'] AS l, '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid AS u, true AS b"
    )
    assert rows(SqlTable("TICKETS_DB", query=query), tmp_path) == [
        {
            "n": "12.340",
            "nan": "nan",
            "d": "2024-02-29",
            "t": "2024-02-29T10:00:00",
            "j": {"a": [1]},
            "l": ["x", "y"],
            "u": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "b": True,
        }
    ]


def test_a_table_of_another_schema_is_read(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS_DB", postgres.replace("postgresql://", "postgres://"))
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    run(engine, 'CREATE SCHEMA IF NOT EXISTS "Desk"')
    run(engine, 'CREATE TABLE IF NOT EXISTS "Desk"."Old Tickets" AS SELECT 1 AS id')
    assert rows(SqlTable("TICKETS_DB", table="Desk.Old Tickets"), tmp_path) == [{"id": 1}]


def test_a_query_cannot_write(database: sa.Engine, tmp_path: Path) -> None:
    writing = "DELETE FROM tickets RETURNING id"
    with pytest.raises(SourceError, match=r"read-?only|syntax error at or near .DELETE"):
        sql.fetch(SqlTable("TICKETS_DB", query=writing), folder=tmp_path)
    assert len(rows(TABLE, tmp_path)) == 5


# --- only what is new is read ---


def test_new_and_changed_rows_are_merged_into_what_a_full_read_gives(
    database: sa.Engine, tmp_path: Path
) -> None:
    version(INCREMENTAL, tmp_path / "i")
    insert(database, (6, "ticket 6", 6), (7, "no cursor", None))
    run(database, "UPDATE tickets SET body = 'changed', changed = 7 WHERE id = 2")
    copy, told = sql.fetch(INCREMENTAL, folder=tmp_path / "i")
    assert copy.sha256 == version(TABLE, tmp_path / "full")
    assert "4 rows read that are new by changed" in told  # 2, 6, 7 and the tie at 5
    assert "deleted rows are not seen" in told
    assert version(INCREMENTAL, tmp_path / "i") == copy.sha256


def test_a_row_with_the_highest_cursor_seen_is_not_missed(
    database: sa.Engine, tmp_path: Path
) -> None:
    version(INCREMENTAL, tmp_path)
    insert(database, (6, "same moment", 5))
    assert len(rows(INCREMENTAL, tmp_path)) == 6


def test_a_deleted_row_is_unseen_until_a_full_read(database: sa.Engine, tmp_path: Path) -> None:
    every_third = SqlTable(
        "TICKETS_DB", table="tickets", cursor="changed", primary_key=("id",), full_every=3
    )
    counts = []
    for look in range(6):
        if look == 1:
            run(database, "DELETE FROM tickets WHERE id = 2")
        counts.append(len(rows(every_third, tmp_path)))
    assert counts == [5, 5, 4, 4, 4, 4]


def test_a_query_is_read_on_from_its_cursor(database: sa.Engine, tmp_path: Path) -> None:
    query = SqlTable(
        "TICKETS_DB",
        query="SELECT id, body, changed FROM tickets WHERE body <> ':'",
        cursor="changed",
        primary_key=("id",),
    )
    version(query, tmp_path)
    insert(database, (6, "ticket 6", 6))
    assert [row["id"] for row in rows(query, tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_text_and_a_date_are_cursors_too(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS_DB", postgres)
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    for kind, early, late in (
        ("timestamptz", "2024-01-01 00:00:00.000001+00", "2024-01-01 00:00:00.000002+00"),
        ("date", "2024-01-01", "2024-01-02"),
        ("text", "a", "b"),
        ("numeric", "1.00000000000000000001", "1.00000000000000000002"),
    ):
        run(engine, "DROP TABLE IF EXISTS moments")
        run(engine, f"CREATE TABLE moments (id int, at {kind})")
        run(engine, f"INSERT INTO moments VALUES (1, '{early}'), (2, '{late}')")  # noqa: S608
        source = SqlTable("TICKETS_DB", table="moments", cursor="at", primary_key=("id",))
        version(source, tmp_path / kind)
        run(engine, f"INSERT INTO moments VALUES (3, '{late}')")  # noqa: S608
        copy, told = sql.fetch(source, folder=tmp_path / kind)
        assert "2 rows read that are new" in told
        assert copy.path.read_text().count("\n") == 3
    run(engine, "DROP TABLE moments")


def look(source: SqlTable, folder: Path) -> tuple[list[Any], str, str]:
    """Ids in order, how they were read, what is noted."""
    copy, told = sql.fetch(source, folder=folder)
    found = [json.loads(line)["id"] for line in copy.path.read_text().splitlines()]
    return sorted(found), told, " ".join(copy.facts["notes"])


MOMENTS = SqlTable("TICKETS_DB", table="moments", cursor="at", primary_key=("id",))


@pytest.mark.parametrize(
    ("held", "later"),
    [
        ("99", "100"),  # numbers in a text
        ("v9", "v10"),
        ("2024-05-01T10:00:00", "2024-05-01 11:00:00"),
        ("2024-05-01T10:00:00+02:00", "2024-05-01T09:30:00+00:00"),
        ("2024-05-01T10:00:00Z", "2024-04-30T23:00:00-12:00"),
        ("9.5.2024", "10.5.2024"),
        ("2024-05-01", "2024-03-01"),  # written late
    ],
)
def test_a_row_that_sorts_below_what_was_seen_is_read_and_told(
    database: sa.Engine, tmp_path: Path, held: str, later: str
) -> None:
    run(database, "DROP TABLE IF EXISTS moments")
    run(database, "CREATE TABLE moments (id INTEGER, at TEXT)")
    run(database, "INSERT INTO moments VALUES (1, '0'), (2, :at)", at=held)
    assert look(MOMENTS, tmp_path)[0] == [1, 2]
    run(database, "INSERT INTO moments VALUES (3, :at)", at=later)
    ids, told, noted = look(MOMENTS, tmp_path)
    assert ids == [1, 2, 3]
    assert "all 3 rows read" in told
    assert "1 rows are below the highest at" in noted
    ids, told, noted = look(MOMENTS, tmp_path)
    assert (ids, noted) == ([1, 2, 3], "")
    assert "new by at" in told
    run(database, "DROP TABLE moments")


def test_a_skipped_row_is_seen_although_another_was_deleted(
    database: sa.Engine, tmp_path: Path
) -> None:
    version(INCREMENTAL, tmp_path)
    run(database, "DELETE FROM tickets WHERE id = 2")
    ids, _, noted = look(INCREMENTAL, tmp_path)
    assert ids == [1, 2, 3, 4, 5]
    assert "1 rows that are held are no longer there" in noted
    insert(database, (9, "set late", 1))  # as many rows as are held
    assert look(INCREMENTAL, tmp_path)[0] == [1, 3, 4, 5, 9]


def test_a_cursor_that_went_back_or_was_filled_in_late_is_seen(
    database: sa.Engine, tmp_path: Path
) -> None:
    insert(database, (6, "open", None))
    version(INCREMENTAL, tmp_path)
    run(database, "UPDATE tickets SET body = 'closed', changed = 2 WHERE id = 6")
    run(database, "UPDATE tickets SET body = 'reset', changed = 0 WHERE id = 4")
    found = {row["id"]: row["body"] for row in rows(INCREMENTAL, tmp_path)}
    assert (found[6], found[4]) == ("closed", "reset")


def test_rows_without_any_cursor_value_are_all_read(database: sa.Engine, tmp_path: Path) -> None:
    run(database, "UPDATE tickets SET changed = NULL")
    version(INCREMENTAL, tmp_path)
    run(database, "UPDATE tickets SET body = 'other' WHERE id = 3")
    insert(database, (6, "ticket 6", None))
    assert [row["body"] for row in rows(INCREMENTAL, tmp_path)][2:] == [
        *("other", "ticket 4", "ticket 5", "ticket 6")
    ]


def test_moments_do_not_depend_on_the_zone_of_a_session(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = (
        "SELECT 1 AS id, '2024-07-01 23:30:00+00'::timestamptz AS at, "
        "ARRAY['2024-07-01 23:30:00+00'::timestamptz] AS l, "
        "'2024-07-01 23:30:00+00'::timestamptz::text AS t, "
        "'2024-07-01 23:30:00+00'::timestamptz::date AS d, '2024-07-01 10:00'::timestamp AS n"
    )
    versions = set()
    for zone in ("UTC", "Europe/Paris", "Asia/Kolkata"):
        monkeypatch.setenv("TICKETS_DB", f"{postgres}&options=-c%20timezone%3D{zone}")
        source = SqlTable("TICKETS_DB", query=query)
        assert rows(source, tmp_path / zone) == [
            {
                "id": 1,
                "at": "2024-07-01T23:30:00+00:00",
                "l": ["2024-07-01T23:30:00+00:00"],
                "t": "2024-07-01 23:30:00+00",
                "d": "2024-07-01",
                "n": "2024-07-01T10:00:00",
            }
        ]
        versions.add(version(source, tmp_path / zone))
    assert len(versions) == 1


def test_a_cursor_of_moments_is_followed_from_any_zone(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    run(engine, "DROP TABLE IF EXISTS moments")
    run(engine, "CREATE TABLE moments (id int, at timestamptz)")
    run(engine, "INSERT INTO moments VALUES (1, '2024-10-27 00:30:00+00')")
    for number, zone in enumerate(("Europe/Paris", "UTC", "America/New_York"), 2):
        monkeypatch.setenv("TICKETS_DB", f"{postgres}&options=-c%20timezone%3D{zone}")
        look(MOMENTS, tmp_path)
        run(engine, f"INSERT INTO moments VALUES ({number}, '2024-10-27 0{number}:30:00+00')")  # noqa: S608
        ids, told, noted = look(MOMENTS, tmp_path)
        assert (ids, noted) == (list(range(1, number + 1)), "")
        assert "new by at" in told
    run(engine, "DROP TABLE moments")


def test_a_lost_or_damaged_snapshot_is_a_full_read(database: sa.Engine, tmp_path: Path) -> None:
    copy, _ = sql.fetch(INCREMENTAL, folder=tmp_path)
    run(database, "DELETE FROM tickets WHERE id = 1")
    copy.path.write_text("{}\n")
    assert len(rows(INCREMENTAL, tmp_path)) == 4


def test_another_database_is_no_base_to_merge_into(
    database: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(INCREMENTAL, tmp_path / "s")
    other = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    run(other, "CREATE TABLE tickets (id INTEGER, body TEXT, changed INTEGER)")
    run(other, "INSERT INTO tickets VALUES (77, 'elsewhere', 99)")
    monkeypatch.setenv("TICKETS_DB", f"sqlite:///{tmp_path}/other.db")
    assert [row["id"] for row in rows(INCREMENTAL, tmp_path / "s")] == [77]


def test_a_key_that_is_not_unique_is_refused(database: sa.Engine, tmp_path: Path) -> None:
    insert(database, (6, "ticket 1", 6))
    source = SqlTable("TICKETS_DB", table="tickets", cursor="changed", primary_key=("body",))
    with pytest.raises(SourceError, match="two rows have the key"):
        sql.fetch(source, folder=tmp_path)


def test_a_version_query_is_the_version(database: sa.Engine, tmp_path: Path) -> None:
    source = SqlTable(
        "TICKETS_DB", table="tickets", version_query="SELECT count(*), max(changed) FROM tickets"
    )
    before = sql.version(source)
    assert sql.version(source) == before
    insert(database, (6, "new", 6))
    assert sql.version(source) != before


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (SqlTable("TICKETS_DB", table="nothing"), "nothing"),
        (SqlTable("TICKETS_DB", query="SELEKT 1"), "SELEKT"),
        (SqlTable("TICKETS_DB", query="SELECT * FROM tickets WHERE id > 99"), "no rows"),
        (SqlTable("TICKETS_DB", query="SELECT 1 AS a, 2 AS a"), "two columns are named 'a'"),
        (SqlTable("TICKETS_DB", table="tickets", cursor="x", primary_key=("id",)), "no column 'x'"),
        (SqlTable("NO_SUCH_DB", table="tickets"), "NO_SUCH_DB is not set"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error_and_the_former_copy_stays(
    database: sa.Engine, tmp_path: Path, source: SqlTable, told: str
) -> None:
    before, _ = sql.fetch(TABLE, folder=tmp_path)
    with pytest.raises(SourceError, match=told) as caught:
        sql.fetch(source, folder=tmp_path)
    assert "pw-Zq81" not in str(caught.value)
    assert before.path.exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://joe:pw-Zq81@127.0.0.1:9/db", "the database says: "),
        ("joe:pw-Zq81@127.0.0.1", "not a database URL"),
        ("postgresql://joe:pw-Zq81@127.0.0.1:port/db", "not a database URL"),
        ("nosuch://joe:pw-Zq81@127.0.0.1/db", "no driver for this database"),
        ("sqlite:////no/such/file.db", "no such file"),
    ],
)
def test_an_unusable_url_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.setenv("TICKETS_DB", url)
    with pytest.raises(SourceError, match=told) as caught:
        sql.fetch(TABLE, folder=tmp_path)
    assert "pw-Zq81" not in str(caught.value)
    assert "TICKETS_DB" in str(caught.value)
    assert not Path("/no").exists()


def test_a_password_is_in_no_file(database: sa.Engine, tmp_path: Path) -> None:
    sql.fetch(INCREMENTAL, folder=tmp_path / "snapshot")
    files = [path for path in (tmp_path / "snapshot").rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if b"pw-Zq81" in path.read_bytes()]
