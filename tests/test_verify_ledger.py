"""Damage to a paid answer, or to the question it belongs to, is found by ``synth verify``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import Batch
from synth_assets.llm.ledger.verify import PAGE, LedgerFindings, verify_ledger
from tests.ledger_support import Place, row
from tests.release_support import Place as Released
from tests.test_run import synth

pytest_plugins = ["tests.postgres", "tests.release_fixtures"]

CALLS = PAGE + 20


def write(ledger: Ledger, statement: str, *values: Any) -> None:
    ledger.backend.write(Batch(statements=[(statement, values)]))


@pytest.fixture
def filled(place: Place) -> Place:
    with Ledger.open(place.location) as ledger:
        calls = [row(n, dataset="odd" if n % 2 else "even") for n in range(CALLS)]
        ledger.backend.write(Batch(calls=calls))
    return place


def verified(place: Place, dataset: str | None = None) -> LedgerFindings:
    with Ledger.open(place.location) as ledger:
        return verify_ledger(ledger, dataset=dataset)


def test_a_ledger_as_it_was_written_is_all_good(filled: Place) -> None:
    assert verified(filled) == LedgerFindings(CALLS, [])
    assert verified(filled, "odd").calls == CALLS // 2


# What a replay uses, and where damage would be believed: (column, another value).
DAMAGE: dict[str, Any] = {
    "response": b"{}",
    "status": 500,
    "outcome": "length",
    "finish_reason": "length",
    "prompt_tokens": 11,
    "completion_tokens": None,
    "cost_usd": 0.0,
    "attempts": 2,
    "latency_ms": 2.5,
    "checksum": b"\0" * 16,
}


@pytest.mark.parametrize("column", DAMAGE)
def test_a_changed_value_of_an_answer_is_found(filled: Place, column: str) -> None:
    damaged = row(PAGE + 3).request_id
    with Ledger.open(filled.location) as ledger:
        statement = f"UPDATE calls SET {column} = ? WHERE request_id = ?"  # noqa: S608
        write(ledger, statement, DAMAGE[column], damaged)
    found = verified(filled)
    assert [(one.request_id, one.part) for one in found.damaged] == [(damaged, "answer")]
    assert found.calls == CALLS


def test_every_flipped_byte_of_a_response_is_found(filled: Place) -> None:
    rng = random.Random(3)
    with Ledger.open(filled.location) as ledger:
        for number in rng.sample(range(CALLS), 30):
            response = bytearray(row(number).response)
            response[rng.randrange(len(response))] ^= 1 << rng.randrange(8)
            update = "UPDATE calls SET response = ? WHERE request_id = ?"
            write(ledger, update, bytes(response), row(number).request_id)
        assert len(verify_ledger(ledger).damaged) == 30


def test_a_question_that_is_not_the_one_that_was_asked_is_found(filled: Place) -> None:
    one = row(5)
    with Ledger.open(filled.location) as ledger:
        other = one.request.decode().replace("{", '{"seen":1,', 1)
        write(ledger, "UPDATE calls SET request = ? WHERE request_id = ?", other, one.request_id)
    found = verified(filled)
    assert [(d.request_id, d.part) for d in found.damaged] == [(one.request_id, "request")]


def test_the_command_names_the_damaged_call_and_can_leave_the_ledger_out(
    released: Released,
) -> None:
    whole = synth("verify", "--json")
    assert (whole.code, whole.json["calls"] > 10) == (0, True)
    path = released.home / "ledger" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ((one,),) = ledger.query("SELECT min(request_id) FROM calls")
        write(ledger, "UPDATE calls SET response = ? WHERE request_id = ?", b"{}", one)
    found = synth("verify", "--json")
    assert found.code == 1
    assert [problem["file"] for problem in found.json["problems"]] == [f"{path} call {one}"]
    assert one in synth("verify", "tickets").result.stdout
    for words in (["--no-ledger"], ["tickets", "--release", "current"]):
        left_out = synth("verify", "--json", *words)
        assert (left_out.code, left_out.json["calls"]) == (0, 0)


def test_a_home_without_a_ledger_is_no_problem(synth_home: Path) -> None:
    found = synth("verify", "--json")
    assert (found.code, found.json["calls"]) == (0, 0)
    assert not (synth_home / "ledger" / "ledger.sqlite").exists()
