"""The ledger, in a file and in PostgreSQL alike: answers, versions, budgets, claims."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import astuple, replace

import pytest

from synth_assets.llm import Ledger, LedgerError, Spent
from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.owners import is_gone, this_process
from synth_assets.llm.ledger.rows import Batch, Committed, Mark, NoLedger, UnseenRow, Written
from tests.ledger_support import Place, failure, put_all, row
from tests.llm_support import request, run

pytest_plugins = ["tests.postgres"]


def test_a_call_is_kept_whole_and_verbatim(place: Place) -> None:
    kept = row(1, response=b"\xff\x00 raw \r\n", prices='{"input_per_million":1.0}')
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, [kept]))
        assert ledger.call(kept.request_id) == kept
        assert ledger.call("0" * 64) is None


def test_the_first_answer_to_a_request_counts(place: Place) -> None:
    with Ledger.open(place.location) as ledger:
        assert run(put_all(ledger, [row(1)])) == [True]
        assert run(put_all(ledger, [row(1, response=b"later")])) == [False]
        assert ledger.answers([row(1).request_id])[row(1).request_id].response == row(1).response


def test_a_put_is_visible_to_others_when_it_returns(place: Place) -> None:

    async def put_and_look() -> int:
        with Ledger.open(place.location) as ledger:
            await ledger.put(row(1))
            return int(place.run("SELECT count(*) FROM calls")[0][0])

    assert run(put_and_look()) == 1


def test_failures_are_kept_and_are_no_answers(place: Place) -> None:
    asked = request(1)
    with Ledger.open(place.location) as ledger:
        run(ledger.put_failure(failure(1)))
        assert ledger.failures(asked.request_id) == ledger.failures() == [failure(1)]
        assert ledger.answers([asked.request_id]) == {}


def test_spending_is_summed_per_dataset(place: Place) -> None:
    with Ledger.open(place.location) as ledger:
        free = row(3, dataset="b", cost_usd=None, prompt_tokens=None, completion_tokens=None)
        run(put_all(ledger, [row(1), row(2), free]))
        assert ledger.spent("d") == Spent(2, 20, 10, 1.0)
        assert ledger.spent("b") == Spent(1, 0, 0, 0.0)
        assert ledger.spent() == Spent(3, 20, 10, 1.0)


def test_capabilities_are_remembered(place: Place) -> None:
    with Ledger.open(place.location) as ledger:
        assert ledger.capability("e", "m") is None
        run(ledger.remember("e", "m", "tool"))
        run(ledger.remember("e", "m", "list"))
    with Ledger.open(place.location) as ledger:
        assert ledger.capability("e", "m") == "list"


def test_an_answer_damaged_at_rest_is_skipped_with_a_warning_and_bought_anew(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(number) for number in range(3)]
    ids = [each.request_id for each in rows]
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, rows))
        place.run("UPDATE calls SET response = ? WHERE request_id = ?", (b"?", ids[1]))
        assert set(ledger.answers(ids)) == {ids[0], ids[2]}
        assert "damaged answer" in caplog.text
        assert run(put_all(ledger, [rows[1]])) == [True]
        assert len(ledger.answers(ids)) == 3


def test_text_that_no_database_keeps_is_kept_as_an_escape_and_replayed(place: Place) -> None:
    odd = row(1, model="a\0b", finish_reason="\ud800 stop \0", dataset="tick\0ets")
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, [odd]))
        run(ledger.put_failure(failure(2, detail="NUL \0 and half a pair \udfff: é")))
        run(ledger.remember("e\0", "m\ud800", "tool"))
        assert set(ledger.answers([odd.request_id])) == {odd.request_id}
        kept = ledger.call(odd.request_id)
        assert kept is not None
        assert (kept.model, kept.finish_reason) == ("a\\x00b", "\\ud800 stop \\x00")
        assert ledger.spent("tick\0ets").calls == ledger.committed("tick\0ets").calls == 1
        assert ledger.failures()[0].detail == "NUL \\x00 and half a pair \\udfff: é"
        assert ledger.capability("e\0", "m\ud800") == "tool"
        # What does not go through our own rows: refused or kept, never a crash of the writer.
        run(put_all(ledger, [row(3)]))


def test_many_lookups_find_exactly_what_is_there(place: Place) -> None:
    rows = [row(number) for number in range(700)]
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, rows[::2]))
        for count in (1, 2, 9, 65, 513, 700):
            asked = rows[:count]
            found = run(ledger.get_many([each.request_id for each in asked]))
            assert set(found) == {each.request_id for each in asked[::2]}


# -- versions ----------------------------------------------------------------------------------


def test_a_ledger_of_a_newer_program_is_refused(place: Place) -> None:
    Ledger.open(place.location).close()
    place.run("INSERT INTO schema_version VALUES (99)")
    with pytest.raises(LedgerError, match="version 99"):
        Ledger.open(place.location)


def test_a_ledger_of_the_first_version_is_brought_up_with_its_rows(place: Place) -> None:
    for statement in (*sql.MIGRATIONS[1], sql.VERSION_TABLE):
        place.run(statement)
    place.run("INSERT INTO schema_version VALUES (1)")
    for number in range(20):
        place.run(sql.INSERT_CALL, sql.call_values(row(number)))
    place.run("INSERT INTO claims VALUES ('x', 'y')")
    with Ledger.open(place.location) as ledger:
        assert ledger.backend.version() == sql.SCHEMA_VERSION
        assert len(ledger.answers([row(number).request_id for number in range(20)])) == 20
        assert ledger.committed("d") == Committed(20, 300, 10.0)
        assert place.run("SELECT request_id, dataset FROM claims") == [("x", None)]


def test_a_ledger_that_is_not_there_is_not_made_by_looking(place: Place) -> None:
    for _ in range(2):
        with pytest.raises(NoLedger, match="no ledger yet"):
            Ledger.open(place.location, create=False)
    Ledger.open(place.location).close()
    Ledger.open(place.location, create=False).close()


def test_several_processes_may_be_the_first_to_open(place: Place) -> None:
    script = (
        "import sys; from synth_assets.llm import Ledger\n"
        "sys.stdin.read(); Ledger.open(sys.argv[1]).close()"
    )
    command = [sys.executable, "-c", script, place.location]
    openers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    for process in openers:
        assert process.stdin is not None
        process.stdin.close()
    for process in openers:
        assert process.stderr is not None
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    assert place.run("SELECT version FROM schema_version ORDER BY version") == [
        (version,) for version in sql.MIGRATIONS
    ]


# -- what a budget counts ----------------------------------------------------------------------


def test_a_budget_counts_what_was_paid_may_have_been_paid_and_is_promised(place: Place) -> None:
    batch = (
        "INSERT INTO batches (token, dataset, endpoint, model, kind, state, requests, tokens, usd, "
        "detail, created_at, updated_at) VALUES (?, ?, 'e', 'm', 'chat', ?, 7, 700, 7.0, '', 0, 0)"
    )
    with Ledger.open(place.location) as ledger:
        nothing = row(3, cost_usd=None, prompt_tokens=None, completion_tokens=None)
        run(put_all(ledger, [row(1), row(2), nothing, row(4, dataset="b")]))
        run(ledger.put_unseen(UnseenRow("u", "d", 1000, 0.25, "timeout")))
        run(ledger.put_unseen(UnseenRow("u", "d", None, None, "cancelled")))
        states = ("submitting", "submitted", "done")
        run(ledger.execute([(batch, (state, "d", state)) for state in states]))
        run(ledger.execute([("INSERT INTO pruned VALUES (?, 10, 100, 50, 2.0)", ("d",))]))
        paid = Committed(3 + 10, 30 + 150, 1.0 + 2.0)
        unseen, promised = Committed(2, 1000, 0.25), Committed(14, 1400, 14.0)
        assert ledger.committed("d") == Committed(
            *(sum(parts) for parts in zip(*map(astuple, (paid, unseen, promised)), strict=True))
        )
        assert ledger.committed("b") == Committed(1, 15, 0.5)
        assert ledger.committed("nobody") == Committed()
        assert ledger.spent("d") == Spent(13, 120, 60, 3.0)
        assert ledger.spent() == Spent(14, 130, 65, 3.5)


MARKED_AND_KILLED = """
import asyncio, os, signal, sys
from synth_assets.llm import Ledger

async def main():
    ledger = Ledger.open(sys.argv[1])
    await ledger.claim(["asked", "not asked", "seen", "given up"])
    for name in ("asked", "seen", "given up"):
        ledger.mark_asked(name, dataset="d", tokens=300, usd=0.5)
    await ledger.release(["given up"])
    await ledger.execute([("DELETE FROM claims WHERE request_id = ?", ("seen",))])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def killed_with_marks(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MARKED_AND_KILLED, place.location], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr


def test_what_a_killed_process_had_asked_is_unseen_once_and_its_claims_are_free(
    place: Place,
) -> None:
    killed_with_marks(place)
    with Ledger.open(place.location) as ledger:
        assert place.run("SELECT count(*) FROM claims") == [(2,)]
        assert run(ledger.claim(["asked", "not asked"])).held == frozenset()
        unseen = place.run("SELECT request_id, dataset, tokens, usd, reason FROM unseen")
        assert unseen == [("asked", "d", 300, 0.5, "killed")]
        assert ledger.committed("d") == Committed(1, 300, 0.5)


def test_a_budget_that_is_read_first_counts_what_a_killed_process_had_asked(place: Place) -> None:
    killed_with_marks(place)
    with Ledger.open(place.location) as ledger:
        assert ledger.committed("d") == ledger.committed("d") == Committed(1, 300, 0.5)
        assert place.run("SELECT count(*) FROM claims") == [(0,)]


def test_closing_in_good_order_leaves_nothing_unseen(place: Place) -> None:
    async def play() -> None:
        with Ledger.open(place.location) as ledger:
            await ledger.claim(["a"])
            ledger.mark_asked("a", dataset="d", tokens=3, usd=None)

    run(play())
    with Ledger.open(place.location) as ledger:
        assert ledger.committed("d") == Committed()
    assert place.run("SELECT count(*) FROM claims") == [(0,)]


def test_a_mark_reaches_the_disk_though_nothing_follows_it(place: Place) -> None:
    async def play() -> list[tuple[object, ...]]:
        with Ledger.open(place.location) as ledger:
            await ledger.claim(["a"])
            ledger.mark_asked("a", dataset="d", tokens=3, usd=None)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                marked = place.run("SELECT dataset, tokens, usd FROM claims")
                if marked[0][0] is not None:
                    break
                await asyncio.sleep(0.01)
            return marked

    assert run(play()) == [("d", 3, None)]


def test_marks_share_the_commit_of_what_comes_next(place: Place) -> None:
    async def play() -> list[Batch]:
        with Ledger.open(place.location) as ledger:
            rows = [row(number) for number in range(40)]
            await ledger.claim([each.request_id for each in rows])
            commits, go_on = held_up(ledger)
            first = asyncio.create_task(ledger.remember("e", "m", "tool"))
            while not commits:
                await asyncio.sleep(0.001)
            for each in rows:
                ledger.mark_asked(each.request_id, dataset="d", tokens=1, usd=None)
            puts = asyncio.create_task(put_all(ledger, rows))
            while ledger._writer._ops.qsize() < 80:
                await asyncio.sleep(0.001)
            go_on.set()
            await asyncio.gather(first, puts)
            return commits

    _, together = run(play())
    assert (len(together.marks), len(together.calls)) == (40, 40)


def held_up(ledger: Ledger) -> tuple[list[Batch], threading.Event]:
    """What is written from now on, each time after the event."""
    seen: list[Batch] = []
    go_on = threading.Event()
    write = ledger.backend.write

    def waiting(batch: Batch) -> Written:
        seen.append(batch)
        assert go_on.wait(30)
        return write(batch)

    ledger.backend.write = waiting  # type: ignore[method-assign]
    return seen, go_on


def test_an_unseen_attempt_is_counted_once_even_if_its_process_dies_before_the_next(
    place: Place,
) -> None:
    dead = replace(this_process(), pid=2**22 + 1)
    backend = place.backend()
    backend.write(Batch(claims=["a", "b"], owner=dead))
    backend.write(Batch(marks=[Mark("a", "d", 10, None), Mark("b", "d", 1, None)], owner=dead))
    # What the writer makes of put_unseen: the row, and the mark taken off.
    backend.write(
        Batch(
            unseen=[UnseenRow("a", "d", 10, None, "timeout")],
            marks=[Mark("a", None, None, None)],
            owner=dead,
        )
    )
    assert backend.committed("d") == Committed(2, 11, 0.0)
    backend.close()


def test_putting_an_unseen_attempt_takes_the_mark_off_its_claim(place: Place) -> None:
    async def play() -> None:
        with Ledger.open(place.location) as ledger:
            await ledger.claim(["a"])
            ledger.mark_asked("a", dataset="d", tokens=10, usd=1.0)
            await ledger.put_unseen(UnseenRow("a", "d", 10, 1.0, "timeout"))
            assert place.run("SELECT dataset FROM claims") == [(None,)]
            ledger.mark_asked("a", dataset="d", tokens=10, usd=1.0)
            await ledger.remember("e", "m", "tool")
            assert place.run("SELECT dataset FROM claims") == [("d",)]
            assert ledger.committed("d") == Committed(1, 10, 1.0)

    run(play())


def test_a_request_of_an_open_batch_is_held(place: Place) -> None:
    with Ledger.open(place.location) as ledger:
        run(ledger.execute([("INSERT INTO batch_requests VALUES (?, 't', '{}')", ("a",))]))
        claims = run(ledger.claim(["a", "b"]))
        assert (claims.held, claims.granted) == ({"a"}, {"b"})


# -- claims ------------------------------------------------------------------------------------


def test_a_claim_is_granted_once_and_passes_on_when_given_up(place: Place) -> None:
    ids = [request(number).request_id for number in range(3)]

    async def play() -> None:
        with Ledger.open(place.location) as one, Ledger.open(place.location) as other:
            assert (await one.claim(ids[:2])).granted == set(ids[:2])
            claims = await other.claim(ids)
            assert claims.held == set(ids[:2])
            assert claims.granted == {ids[2]}
            await one.put(row(0))
            await one.release([ids[1]])
            claims = await other.claim(ids[:2])
            assert claims.answered == {ids[0]}
            assert claims.granted == {ids[1]}

    run(play())


def test_two_askers_of_one_ledger_do_not_both_get_a_claim(place: Place) -> None:
    name = request(1).request_id

    async def play() -> None:
        with Ledger.open(place.location) as ledger:
            both = await asyncio.gather(ledger.claim([name]), ledger.claim([name]))
            assert sorted(len(claims.granted) for claims in both) == [0, 1]
            assert sorted(len(claims.held) for claims in both) == [0, 1]

    run(play())


def test_closing_gives_claims_back(place: Place) -> None:
    name = request(1).request_id

    async def play() -> None:
        with Ledger.open(place.location) as one:
            await one.claim([name])
        with Ledger.open(place.location) as other:
            assert (await other.claim([name])).granted == {name}

    run(play())


def test_a_claim_of_a_dead_process_is_taken_over_at_once(place: Place) -> None:
    name = request(1).request_id
    dead = replace(this_process(), pid=2**22 + 1)
    backend = place.backend(lease_s=3600.0)
    backend.write(Batch(claims=[name], owner=dead))
    assert backend.write(Batch(claims=[name], owner=this_process())).claims.granted == {name}
    backend.close()


def test_a_claim_of_another_host_lasts_as_long_as_its_lease() -> None:
    now = time.time()
    owner = replace(this_process(), host="elsewhere", pid=1)
    assert not is_gone(owner, heartbeat_at=now - 50, now=now, lease_s=60)
    assert is_gone(owner, heartbeat_at=now - 61, now=now, lease_s=60)


def test_a_reused_process_id_is_not_taken_for_the_owner() -> None:
    now = time.time()
    me = this_process()
    assert not is_gone(me, heartbeat_at=now, now=now, lease_s=60)
    assert is_gone(replace(me, born="1.00"), heartbeat_at=now, now=now, lease_s=60)


def test_holding_a_claim_beats_while_nothing_is_written(place: Place) -> None:
    name = request(1).request_id

    async def play() -> tuple[float, float]:
        with Ledger.open(place.location, lease_s=0.2) as ledger:
            await ledger.claim([name])
            before = beat()
            deadline = time.monotonic() + 10
            while beat() == before and time.monotonic() < deadline:
                time.sleep(0.02)
            return before, beat()

    def beat() -> float:
        return float(place.run("SELECT heartbeat_at FROM owners")[0][0])

    before, after = run(play())
    assert after > before
