"""Looking into a ledger and pruning it, in a file and in PostgreSQL alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from synth_assets.llm import Ledger, Spent
from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.admin import (
    PAGE,
    CallFilter,
    Pruned,
    UnknownCall,
    calls,
    failures,
    full_id,
    overview,
    prune,
    summary,
)
from synth_assets.llm.ledger.rows import Batch, CallRow, Committed, UnseenRow
from tests.ledger_support import Place, failure, put_all, row
from tests.llm_support import run

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def filled(place: Place) -> Iterator[Ledger]:
    """Three pages of calls, one per second from 0 on; every third of dataset b, every fifth cut."""
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, [numbered(number) for number in range(3 * PAGE)]))
        yield ledger


def numbered(number: int) -> CallRow:
    return row(
        number,
        dataset="b" if number % 3 == 0 else "d",
        model="large" if number % 2 else "small",
        outcome="length" if number % 5 == 0 else "ok",
        # Two calls a second: pages must not lose one of a pair.
        started_at=float(number // 2),
    )


def test_paging_finds_every_call_once_in_order_of_time(filled: Ledger) -> None:
    forward = list(calls(filled))
    assert sorted(call.request_id for call in forward) == sorted(
        numbered(number).request_id for number in range(3 * PAGE)
    )
    assert [call.started_at for call in forward] == sorted(call.started_at for call in forward)
    assert list(calls(filled, newest_first=True)) == forward[::-1]
    assert list(calls(filled, newest_first=True, limit=PAGE + 1)) == forward[: -PAGE - 2 : -1]
    assert forward[0] in (numbered(0), numbered(1))


@pytest.mark.parametrize(
    "wanted",
    [
        CallFilter(dataset="b"),
        CallFilter(dataset="d", model="large"),
        CallFilter(outcome="length", since=20.0, until=100.0),
        CallFilter(dataset="b", model="small", outcome="ok", since=5.0, until=9.0),
        CallFilter(dataset="nobody"),
    ],
)
def test_a_filter_finds_what_it_says(wanted: CallFilter, filled: Ledger) -> None:
    def fits(call: CallRow) -> bool:
        return (
            wanted.dataset in (None, call.dataset)
            and wanted.model in (None, call.model)
            and wanted.outcome in (None, call.outcome)
            and (wanted.since is None or call.started_at >= wanted.since)
            and (wanted.until is None or call.started_at < wanted.until)
        )

    expected = {numbered(n).request_id for n in range(3 * PAGE) if fits(numbered(n))}
    assert {call.request_id for call in calls(filled, wanted)} == expected


def test_a_damaged_call_is_left_out_with_a_warning(
    filled: Ledger, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    bad = numbered(7).request_id
    place.run("UPDATE calls SET response = ? WHERE request_id = ?", (b"?", bad))
    found = {call.request_id for call in calls(filled)}
    assert len(found) == 3 * PAGE - 1
    assert bad not in found
    assert "damaged" in caplog.text


def test_the_summary_adds_up_to_what_was_spent(filled: Ledger) -> None:
    rows = summary(filled)
    assert len(rows) == 8
    assert sum(each.calls for each in rows) == 3 * PAGE
    of_b = [each for each in rows if each.dataset == "b"]
    assert Spent(
        sum(each.calls for each in of_b),
        sum(each.prompt_tokens for each in of_b),
        sum(each.completion_tokens for each in of_b),
        sum(each.usd for each in of_b),
    ) == filled.spent("b")
    assert min(each.first_at for each in rows) == 0.0
    assert max(each.last_at for each in rows) == (3 * PAGE - 1) // 2


def test_an_overview_counts_what_is_there_besides_calls(filled: Ledger) -> None:
    run(filled.put_failure(failure(1)))
    run(filled.put_unseen(UnseenRow("u", "d", 1, 1.0, "timeout")))
    run(filled.claim(["a", "b"]))
    prune(filled, 1.0)
    found = overview(filled)
    assert (found.claims, found.open_batches, found.unseen, found.pruned) == (2, 0, 1, 2)
    assert found.version == sql.SCHEMA_VERSION
    assert found.bytes > 10_000


def test_failures_come_newest_first(filled: Ledger) -> None:
    rows = [failure(number, dataset="b" if number else "d", at=number) for number in range(4)]
    for each in rows:
        run(filled.put_failure(each))
    assert failures(filled) == rows[::-1]
    assert failures(filled, dataset="b", limit=2) == [rows[3], rows[2]]


def test_the_beginning_of_an_id_names_a_call_unless_it_names_two(
    filled: Ledger, place: Place
) -> None:
    name = numbered(3).request_id
    assert full_id(filled, name) == full_id(filled, name[:8].upper()) == name
    run(filled.put_failure(failure(9_999)))
    lost = failure(9_999).request_id
    assert full_id(filled, lost[:10]) == lost
    twin = name[:20] + "0" * 44
    place.run(
        "INSERT INTO failures SELECT ?, dataset, endpoint, model, request, kind, status, detail, "
        "body, attempts, started_at FROM failures",
        (twin,),
    )
    with pytest.raises(UnknownCall, match="more than one"):
        full_id(filled, name[:20])
    for wrong, why in (("0" * 64, "no request"), (name[:7], "64 hex"), ("'; DROP TA", "64 hex")):
        with pytest.raises(UnknownCall, match=why):
            full_id(filled, wrong)


# -- pruning -----------------------------------------------------------------------------------


def test_pruning_deletes_what_is_old_and_keeps_what_it_cost(filled: Ledger) -> None:
    spent, committed = filled.spent("d"), filled.committed("d")
    run(filled.put_failure(failure(1, at=10.0)))
    run(filled.put_failure(failure(2, at=90.0)))
    run(filled.put_unseen(UnseenRow("u", "d", 5, 0.0, "timeout")))
    keep = {numbered(number).request_id for number in range(10)}
    would = prune(filled, 50.0, keep=keep, dry_run=True)
    assert would == Pruned(calls=90, bytes=would.bytes, kept=10, failures=1)
    assert len(list(calls(filled))) == 3 * PAGE
    assert prune(filled, 50.0, keep=keep) == would
    left = {call.request_id for call in calls(filled)}
    assert left == keep | {numbered(number).request_id for number in range(100, 3 * PAGE)}
    assert filled.spent("d") == spent
    assert filled.committed("d") == Committed(
        committed.calls + 1, committed.tokens + 5, committed.usd
    )
    assert failures(filled) == [failure(2, at=90.0)]
    assert prune(filled, 50.0, keep=keep.__contains__).calls == 0
    assert filled.spent("d") == spent


def test_pruning_one_dataset_leaves_the_others(filled: Ledger) -> None:
    run(filled.put_failure(failure(1, dataset="b")))
    run(filled.put_failure(failure(2, dataset="d")))
    assert prune(filled, 1e12, dataset="b").calls == PAGE
    assert {call.dataset for call in calls(filled)} == {"d"}
    assert [each.dataset for each in failures(filled)] == ["d"]


def test_a_pruned_call_may_be_bought_and_pruned_again(filled: Ledger) -> None:
    before = filled.spent()
    prune(filled, 1.0)
    assert run(put_all(filled, [numbered(0)])) == [True]
    prune(filled, 1.0)
    assert filled.spent().calls == before.calls + 1


def test_pruning_is_in_transactions_that_others_get_between(filled: Ledger) -> None:
    many = [row(number, started_at=5.0) for number in range(1000, 1000 + 2 * sql.CHUNK)]
    run(put_all(filled, many))
    sizes = []
    write = filled.backend.write

    def seen(batch: Batch) -> object:
        sizes.append(len(set(batch.statements[0][1])))
        return write(batch)

    filled.backend.write = seen  # type: ignore[method-assign, assignment]
    assert prune(filled, 1e12).calls == 3 * PAGE + len(many)
    assert max(sizes) <= sql.CHUNK
    assert len(sizes) == 3


def test_two_pruners_at_once_count_each_call_once(filled: Ledger, place: Place) -> None:
    spent = filled.spent()
    script = (
        "import sys\nfrom synth_assets.llm import Ledger\n"
        "from synth_assets.llm.ledger.admin import prune\n"
        "ledger = Ledger.open(sys.argv[1]); sys.stdin.read(); prune(ledger, 1e12); ledger.close()"
    )
    command = [sys.executable, "-c", script, place.location]
    pruners = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for process in pruners:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in pruners] == [0, 0, 0]
    assert list(calls(filled)) == []
    assert filled.spent() == spent


# -- space -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_file_gives_the_space_back(place: Place, filled: Ledger) -> None:
    big = [row(number, response=os.urandom(20_000)) for number in range(1000, 1200)]
    run(put_all(filled, big))
    before = filled.backend.size_bytes()
    run(filled.claim(["while another is at work"]))
    prune(filled, 1e12)
    assert "bytes" in filled.backend.shrink()
    assert filled.backend.size_bytes() < before / 4


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
@pytest.mark.parametrize("busy", [True, False])
def test_a_file_of_an_older_program_is_rewritten_unless_another_is_at_work(
    busy: bool, place: Place
) -> None:
    place.run("CREATE TABLE older (x)")
    with Ledger.open(place.location) as ledger, Ledger.open(place.location) as other:
        if busy:
            run(other.claim(["a"]))
        run(put_all(ledger, [row(number, response=os.urandom(20_000)) for number in range(200)]))
        before = ledger.backend.size_bytes()
        prune(ledger, 1e12)
        told = ledger.backend.shrink()
        assert ("another process writes" in told) == busy
        assert (ledger.backend.size_bytes() < before / 4) == (not busy)
        # The writer of the other goes on in the same file.
        assert run(put_all(other, [row(1)])) == [True]
        assert len(ledger.answers([row(1).request_id])) == 1
