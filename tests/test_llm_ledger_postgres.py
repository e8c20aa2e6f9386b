"""The ledger in PostgreSQL: lost connections, many processes, settings, what a URL gives away."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from synth_assets.llm import Ledger, LedgerError
from synth_assets.llm.ledger import postgres as ledger_postgres
from synth_assets.llm.ledger.location import ledger_location, postgres_place
from synth_assets.llm.ledger.rows import Batch
from tests.ledger_support import Place, failure, put_all, row
from tests.llm_support import request, run
from tests.openai_server import running_server
from tests.test_llm_processes import asker, finished

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def place(postgres_url: str) -> Place:
    return Place(postgres_url)


# -- several processes ---------------------------------------------------------------------------


def test_two_processes_at_once_buy_every_request_once(place: Place) -> None:
    with running_server(latency_s=0.02) as server:
        both = [asker(server, place.location, count=300),
                asker(server, place.location, first=100, count=300)]  # fmt: skip
        one, other = (finished(process) for process in both)
        assert max(server.successes_by_identity.values()) == 1
        assert server.request_count == 400
    assert len(one) == len(other) == 300


def test_claims_of_many_ledgers_at_once_are_granted_once(place: Place) -> None:
    ids = [request(number).request_id for number in range(200)]
    granted: list[str] = []
    ready = threading.Barrier(4)

    def claimer(order: list[str]) -> None:
        async def claims() -> None:
            with Ledger.open(place.location) as ledger:
                ready.wait()
                for start in range(0, len(order), 10):
                    granted.extend((await ledger.claim(order[start : start + 10])).granted)
                ready.wait()

        asyncio.run(claims())

    threads = [
        threading.Thread(target=claimer, args=(ids[shift:] + ids[:shift],))
        for shift in (0, 30, 60, 90)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == sorted(ids)


# -- lost connections ----------------------------------------------------------------------------


def test_a_server_restart_in_the_middle_of_writing_loses_and_doubles_nothing(
    place: Place, postgres_server: Any
) -> None:
    total = 3000

    async def play() -> None:
        with Ledger.open(place.location) as ledger:
            numbers = iter(range(total))
            written = 0

            async def worker() -> None:
                nonlocal written
                for number in numbers:
                    assert await ledger.put(row(number))
                    await ledger.put_failure(failure(number))
                    written += 1

            workers = [asyncio.create_task(worker()) for _ in range(50)]
            for stage in (1, 2):
                while written < stage * total / 4:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(postgres_server.restart)
            await asyncio.gather(*workers)
            ids = [row(number).request_id for number in range(total)]
            assert len(ledger.answers(ids)) == total

    run(play())
    counted = "SELECT count(*), count(DISTINCT request_id) FROM failures"
    assert place.run(counted) == [(total, total)]


@contextmanager
def confirmation_lost(monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> Iterator[list[str]]:
    """The next transaction ends, this way or that; its connection is lost before we know."""
    honest = ledger_postgres._transaction
    lost: list[str] = []

    @contextmanager
    def losing(connection: Any) -> Iterator[Any]:
        if lost:
            with honest(connection) as transaction:
                yield transaction
            return
        try:
            with honest(connection) as transaction:
                yield transaction
                lost.append(transaction.number)
                if not committed:
                    raise ConnectionError
        except ConnectionError:
            pass
        connection.close()
        raise psycopg.OperationalError("the connection is lost")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_postgres, "_transaction", losing)
        yield lost


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_that_was_not_confirmed_is_written_exactly_once(
    committed: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(place.location) as ledger:
        with confirmation_lost(monkeypatch, committed=committed) as lost:
            batch = Batch(calls=[row(1)], failures=[failure(2)])
            assert ledger.backend.write(batch).kept == [True]
            assert lost
        assert place.run("SELECT count(*) FROM calls") == [(1,)]
        assert place.run("SELECT count(*) FROM failures") == [(1,)]


def test_a_server_that_does_not_come_back_is_one_clear_error(
    place: Place, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_postgres, "RECONNECT_S", 0.3)
    ledger = Ledger.open(place.location)
    run(put_all(ledger, [row(1)]))
    postgres_server.kill_and_stay_down()
    try:
        with pytest.raises(LedgerError, match="cannot write the ledger"):
            run(put_all(ledger, [row(2)]))
        with pytest.raises(LedgerError, match="cannot read the ledger"):
            ledger.spent()
    finally:
        postgres_server.start()
    assert run(put_all(ledger, [row(2), row(1)])) == [True, False]
    ledger.close()


def test_a_statement_that_is_wrong_is_told_at_once_and_the_ledger_goes_on(place: Place) -> None:
    with Ledger.open(place.location) as ledger:
        for statement in ("SELEC 1", "INSERT INTO failures (request_id) VALUES ('x')"):
            with pytest.raises(LedgerError, match="cannot write the ledger"):
                run(ledger.execute([(statement, ())]))
        with pytest.raises(LedgerError, match="cannot read the ledger"):
            ledger.query("SELECT * FROM nothing")
        assert run(put_all(ledger, [row(1)])) == [True]


# -- settings ------------------------------------------------------------------------------------


def test_every_commit_is_synchronous_even_where_the_role_says_otherwise(place: Place) -> None:
    name = place.run("SELECT current_database()")[0][0]
    place.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
    backend = place.backend()
    assert backend._writer.execute("SHOW synchronous_commit").fetchone() == ("on",)
    backend.close()


def test_heartbeats_are_by_the_clock_of_the_database(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine's clock is an hour slow: its claims are not thought abandoned.
    monkeypatch.setattr("time.time", lambda: 1.0)
    with Ledger.open(place.location) as slow, Ledger.open(place.location) as other:
        run(slow.claim(["a"]))
        ((off,),) = place.run(
            "SELECT abs(heartbeat_at - extract(epoch FROM clock_timestamp())) FROM owners"
        )
        assert off < 60
        assert run(other.claim(["a"])).held == {"a"}


def test_two_schemas_of_a_database_hold_two_ledgers(place: Place) -> None:
    place.run("CREATE SCHEMA other")
    there = Place(place.location + "&options=" + quote("-c search_path=other"))
    with Ledger.open(place.location) as one, Ledger.open(there.location) as two:
        run(put_all(one, [row(1)]))
        run(put_all(two, [row(2), row(3)]))
        assert (one.spent().calls, two.spent().calls) == (1, 2)


def test_a_database_that_is_another_programs_is_left_alone(place: Place) -> None:
    place.run("CREATE TABLE schema_version (installed_rank INTEGER)")
    with pytest.raises(LedgerError, match="of its own"):
        Ledger.open(place.location)


def test_a_database_that_cannot_keep_any_text_is_refused(
    place: Place, postgres_server: Any
) -> None:
    with closing(psycopg.connect(postgres_server.url, autocommit=True)) as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(LedgerError, match="encoding LATIN1"):
        Ledger.open(postgres_server.url.replace("/postgres?", "/latin?"))


# -- what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@127.0.0.1:1/db",
        "postgresql://me:hush%40pass@127.0.0.1:1/db",
        "postgresql://me:hush@ro@127.0.0.1:1/db",
        "postgresql://me:hush/slash@127.0.0.1:1/db",
        "postgresql://me:hush?query@127.0.0.1:1/db",
        "postgresql://me:hush%zz@127.0.0.1:1/db",
        "postgresql://me:hush/db",
        "postgresql://127.0.0.1:1/db?password=hush",
        "postgresql://127.0.0.1:1/db?pasword=hush",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "hush" not in shown.replace(repr(url), "")
    assert "fix:" in shown


def test_a_place_is_host_and_database() -> None:
    assert postgres_place("postgresql://me:hush@db.example:5433/ledger?sslmode=require") == (
        "postgresql://db.example:5433/ledger"
    )
    assert postgres_place("postgres://me@[::1]:5432/x") == "postgresql://[::1]:5432/x"
    assert postgres_place("postgresql://a:1,b:2/x") == "postgresql://a:1,b:2/x"


def test_the_environment_names_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNTH_LEDGER_URL", raising=False)
    assert ledger_location("here") == "here"
    monkeypatch.setenv("SYNTH_LEDGER_URL", "postgresql://host/db")
    assert ledger_location("here") == "postgresql://host/db"


def test_a_missing_driver_is_one_clear_error_with_the_command() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from synth_assets.llm import Ledger\n"
        "Ledger.open('postgresql://me:hush@127.0.0.1:1/db')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=os.environ
    )
    last = done.stderr[done.stderr.rindex("LedgerError") :]
    assert "pip install" in last
    assert "hush" not in last


def test_a_file_ledger_does_not_load_the_driver(tmp_path: Path) -> None:
    script = (
        "import sys; from synth_assets.llm import Ledger; Ledger.open(sys.argv[1]).close()\n"
        "assert 'psycopg' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "l.sqlite"], check=True)
