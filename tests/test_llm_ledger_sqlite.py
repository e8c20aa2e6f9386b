"""The ledger's file: durability, damage, repair, space."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from synth_assets.llm import Ledger, LedgerError
from synth_assets.llm.ledger.rows import CallRow
from synth_assets.llm.ledger.sqlite import SqliteBackend
from tests.ledger_support import put_all, row
from tests.llm_support import run


def filled(path: Path, count: int) -> list[CallRow]:
    rows = [row(number) for number in range(count)]
    with Ledger.open(path) as ledger:
        run(put_all(ledger, rows))
    return rows


def readable(path: Path, rows: list[CallRow]) -> set[str]:
    with Ledger.open(path) as ledger:
        return set(ledger.answers([each.request_id for each in rows]))


def test_every_commit_is_synchronous(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "l.sqlite", lease_s=1.0)
    full, wal = 2, "wal"
    assert backend._writer.execute("PRAGMA synchronous").fetchone()[0] == full
    assert backend._writer.execute("PRAGMA journal_mode").fetchone()[0] == wal
    backend.close()


# -- damage ------------------------------------------------------------------------------------


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


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").mkdir()
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        Ledger.open(tmp_path / "l.sqlite")


def test_an_unknown_kind_of_ledger_is_refused_without_its_password() -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.open("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)
