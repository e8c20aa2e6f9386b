"""The ledger alone: durability, damage, claims, versions."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synth_assets.llm import Ledger, LedgerError, Spent
from synth_assets.llm.ledger_sqlite import SqliteBackend
from synth_assets.llm.owners import is_gone, this_process
from synth_assets.llm.rows import Batch, CallRow, FailureRow
from tests.llm_support import request, run

BODY = b'{"choices":[{"message":{"content":"' + b"x" * 900 + b'"},"finish_reason":"stop"}]}'


def row(number: int, **changes: object) -> CallRow:
    asked = request(number)
    plain = CallRow(
        request_id=asked.request_id,
        dataset="d",
        endpoint="e",
        model="m",
        request=asked.canonical,
        response=BODY + str(number).encode(),
        status=200,
        outcome="ok",
        finish_reason="stop",
        prompt_tokens=10,
        completion_tokens=5,
        cost_usd=0.5,
        prices=None,
        attempts=1,
        started_at=1.0,
        latency_ms=2.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def filled(path: Path, count: int) -> list[CallRow]:
    rows = [row(number) for number in range(count)]
    with Ledger.open(path) as ledger:
        run(put_all(ledger, rows))
    return rows


async def put_all(ledger: Ledger, rows: list[CallRow]) -> list[bool]:
    import asyncio

    return list(await asyncio.gather(*(ledger.put(each) for each in rows)))


def readable(path: Path, rows: list[CallRow]) -> set[str]:
    with Ledger.open(path) as ledger:
        return set(ledger.answers([each.request_id for each in rows]))


def test_a_call_is_kept_whole_and_verbatim(tmp_path: Path) -> None:
    kept = row(1, response=b"\xff\x00 raw \r\n", prices='{"input_per_million":1.0}')
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        run(put_all(ledger, [kept]))
        assert ledger.call(kept.request_id) == kept
        assert ledger.call("0" * 64) is None


def test_the_first_answer_to_a_request_counts(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert run(put_all(ledger, [row(1)])) == [True]
        assert run(put_all(ledger, [row(1, response=b"later")])) == [False]
        assert ledger.answers([row(1).request_id])[row(1).request_id].response == row(1).response


def test_a_put_is_visible_to_others_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"

    async def put_and_look() -> int:
        with Ledger.open(path) as ledger:
            await ledger.put(row(1))
            other = sqlite3.connect(path)
            count: int = other.execute("SELECT count(*) FROM calls").fetchone()[0]
            other.close()
            return count

    assert run(put_and_look()) == 1


def test_every_commit_is_synchronous(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "l.sqlite", lease_s=1.0)
    full, wal = 2, "wal"
    assert backend._writer.execute("PRAGMA synchronous").fetchone()[0] == full
    assert backend._writer.execute("PRAGMA journal_mode").fetchone()[0] == wal
    backend.close()


def test_failures_are_kept_and_are_no_answers(tmp_path: Path) -> None:
    asked = request(1)
    failure = FailureRow(
        asked.request_id, "d", "e", "m", asked.canonical, "permanent", 400, "no", b"raw\xff", 1, 1.0
    )
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        run(ledger.put_failure(failure))
        assert ledger.failures(asked.request_id) == ledger.failures() == [failure]
        assert ledger.answers([asked.request_id]) == {}


def test_spending_is_summed_per_dataset(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        free = row(3, dataset="b", cost_usd=None, prompt_tokens=None, completion_tokens=None)
        run(put_all(ledger, [row(1), row(2), free]))
        assert ledger.spent("d") == Spent(2, 20, 10, 1.0)
        assert ledger.spent("b") == Spent(1, 0, 0, 0.0)
        assert ledger.spent() == Spent(3, 20, 10, 1.0)


def test_capabilities_are_remembered(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.capability("e", "m") is None
        run(ledger.remember("e", "m", "tool"))
        run(ledger.remember("e", "m", "list"))
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.capability("e", "m") == "list"


# -- damage ------------------------------------------------------------------------------------


def test_a_changed_body_is_skipped_with_a_warning_and_bought_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "l.sqlite"
    rows = filled(path, 3)
    raw = sqlite3.connect(path)
    raw.execute("UPDATE calls SET response = ? WHERE request_id = ?", (b"?", rows[1].request_id))
    raw.commit()
    raw.close()
    with Ledger.open(path) as ledger:
        assert set(ledger.answers([each.request_id for each in rows])) == {
            rows[0].request_id,
            rows[2].request_id,
        }
        assert "damaged answer" in caplog.text
        assert run(put_all(ledger, [rows[1]])) == [True]
        assert len(ledger.answers([each.request_id for each in rows])) == 3


def test_a_torn_log_tail_loses_nothing_committed_before_it(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    rows = [row(number) for number in range(50)]
    ledger = Ledger.open(path)
    for start in range(0, 50, 10):
        run(put_all(ledger, rows[start : start + 10]))
    # As a crash leaves it: the log not yet merged, its last bytes garbage.
    log = (tmp_path / "l.sqlite-wal").read_bytes()
    main = path.read_bytes()
    ledger.close()
    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(main)
    (tmp_path / "torn.sqlite-wal").write_bytes(log[:-3000] + os.urandom(2000))
    found = readable(torn, rows)
    assert {each.request_id for each in rows[:40]} <= found


@pytest.mark.parametrize("where", ["middle", "cut", "header", "index"])
def test_a_damaged_file_is_repaired_and_never_fatal(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "l.sqlite"
    rows = filled(path, 600)
    whole = bytearray(path.read_bytes())
    page = 4096
    if where == "middle":
        at = len(whole) // 2 // page * page
        whole[at : at + 4 * page] = os.urandom(4 * page)
    elif where == "cut":
        del whole[len(whole) * 2 // 3 // page * page + 100 :]
    elif where == "header":
        whole[:100] = bytes(100)
    else:
        root = sqlite3.connect(path)
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_calls_1'"
        at = (root.execute(query).fetchone()[0] - 1) * page
        root.close()
        whole[at : at + page] = os.urandom(page)
    path.write_bytes(whole)
    with Ledger.open(path) as ledger:
        run(put_all(ledger, [row(number) for number in range(600, 650)]))
        ids = [each.request_id for each in rows]
        found = ledger.answers(ids)
        assert all(
            found[each.request_id].response == each.response
            for each in rows
            if each.request_id in found
        )
        assert (
            len(found)
            == {"middle": len(found), "cut": len(found), "header": 0, "index": 600}[where]
        )
        if where in ("middle", "cut"):
            assert len(found) > 200
        assert len(ledger.answers([row(number).request_id for number in range(600, 650)])) == 50
    if where != "middle":
        assert "damaged" in caplog.text
        assert list(tmp_path.glob("l.sqlite.damaged-*"))


def test_a_repair_by_another_process_is_noticed_and_the_batch_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger.open(path) as ledger:
        run(put_all(ledger, [row(1)]))
        # What a repair elsewhere does: another file takes the place of this one.
        fresh = tmp_path / "fresh.sqlite"
        filled(fresh, 1)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        fresh.replace(path)
        run(put_all(ledger, [row(2)]))
        assert "was replaced" in caplog.text
    assert readable(path, [row(2)]) == {row(2).request_id}


def test_a_ledger_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    filled(path, 1)
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO schema_version VALUES (99)")
    raw.commit()
    raw.close()
    with pytest.raises(LedgerError, match="version 99"):
        Ledger.open(path)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").mkdir()
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger.open(tmp_path / "l.sqlite")


def test_an_unknown_kind_of_ledger_is_refused_without_its_password() -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)


# -- claims ------------------------------------------------------------------------------------


def test_a_claim_is_granted_once_and_passes_on_when_given_up(tmp_path: Path) -> None:
    ids = [request(number).request_id for number in range(3)]

    async def play() -> None:
        path = tmp_path / "l.sqlite"
        with Ledger.open(path) as one, Ledger.open(path) as other:
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


def test_two_askers_of_one_ledger_do_not_both_get_a_claim(tmp_path: Path) -> None:
    import asyncio

    name = request(1).request_id

    async def play() -> None:
        with Ledger.open(tmp_path / "l.sqlite") as ledger:
            both = await asyncio.gather(ledger.claim([name]), ledger.claim([name]))
            assert sorted(len(claims.granted) for claims in both) == [0, 1]
            assert sorted(len(claims.held) for claims in both) == [0, 1]

    run(play())


def test_closing_gives_claims_back(tmp_path: Path) -> None:
    name = request(1).request_id

    async def play() -> None:
        path = tmp_path / "l.sqlite"
        with Ledger.open(path) as one:
            await one.claim([name])
        with Ledger.open(path) as other:
            assert (await other.claim([name])).granted == {name}

    run(play())


def test_a_claim_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    name = request(1).request_id
    dead = replace(this_process(), pid=2**22 + 1)
    backend = SqliteBackend(tmp_path / "l.sqlite", lease_s=3600.0)
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


def test_holding_a_claim_beats_while_nothing_is_written(tmp_path: Path) -> None:
    name = request(1).request_id
    path = tmp_path / "l.sqlite"

    async def play() -> tuple[float, float]:
        with Ledger.open(path, lease_s=0.2) as ledger:
            await ledger.claim([name])
            before = beat()
            deadline = time.monotonic() + 10
            while beat() == before and time.monotonic() < deadline:
                time.sleep(0.02)
            return before, beat()

    def beat() -> float:
        raw = sqlite3.connect(path)
        (at,) = raw.execute("SELECT heartbeat_at FROM owners").fetchone()
        raw.close()
        return float(at)

    before, after = run(play())
    assert after > before
