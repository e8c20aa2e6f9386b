"""Requests that were erased leave no byte in a ledger's files, and no hole in what was spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from synth_assets.llm import Ledger
from synth_assets.llm.ledger.admin import prune
from synth_assets.llm.ledger.erase import (
    PAGE,
    Erased,
    count_kept,
    erase_requests,
    kept_requests,
    open_batches_with,
)
from synth_assets.llm.ledger.rows import Batch, CallRow, FailureRow
from tests.ledger_support import Place, failure, put_all, row
from tests.llm_support import request, run

pytest_plugins = ["tests.postgres"]

WORD = "kumquatparade"


def saying(number: int, word: str, **changes: object) -> CallRow:
    """A call whose request and answer say a word."""
    messages = [{"role": "user", "content": f"one row like {word} {number}"}]
    asked = request(number, messages=messages)
    answer = f'{{"said": "{word}"}}'.encode()
    return row(
        number,
        request_id=asked.request_id,
        request=asked.canonical,
        response=answer,
        **changes,
    )


def failed(call: CallRow) -> FailureRow:
    plain = failure(0)
    return FailureRow(
        call.request_id, call.dataset, plain.endpoint, plain.model, call.request, plain.kind,
        plain.status, f"cannot read {WORD}", call.response, 1, 1.0,
    )  # fmt: skip


def files(place: Place) -> list[Path]:
    """The files in which the database keeps its tables now."""
    if not place.is_postgres:
        folder = Path(place.location).parent
        return [path for path in folder.iterdir() if path.is_file()]
    place.run("CHECKPOINT")
    ((data,),) = place.run("SHOW data_directory")
    ((database,),) = place.run(
        "SELECT oid::text FROM pg_database WHERE datname = current_database()"
    )
    folder = Path(str(data)) / "base" / str(database)
    if not folder.is_dir():
        pytest.skip("the server's files are not here")
    return [path for path in folder.iterdir() if path.is_file()]


def found_in(place: Place) -> list[str]:
    return [path.name for path in files(place) if WORD.encode() in path.read_bytes()]


def test_erased_requests_leave_no_byte_and_are_still_counted(place: Place) -> None:
    others = [row(number, started_at=9.0) for number in range(PAGE + 60)]
    pruned = [saying(5_000 + number, WORD, started_at=0.5) for number in range(40)]
    mine = [saying(9_000 + number, WORD, started_at=5.0) for number in range(40)]
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, [*others, *pruned, *mine]))
        ledger.backend.write(Batch(failures=[failed(mine[0]), failure(3)]))
        # What a former deletion left in the file goes as well.
        prune(ledger, 1.0)
        spent = ledger.committed("d")
        assert found_in(place)
        seen = [kept for page in kept_requests(ledger) for kept in page]
        ids = {kept.request_id for kept in seen if any(WORD in text for text in kept.texts)}
        assert ids == {call.request_id for call in mine}
        assert count_kept(ledger, ids) == Erased(calls=40, failures=1)
        for _ in range(2):  # may be repeated
            erase_requests(ledger, ids)
            ledger.backend.scrub()
        assert found_in(place) == []
        assert ledger.committed("d") == spent
        assert len(ledger.answers([call.request_id for call in others])) == len(others)
        assert [one.request_id for one in ledger.failures()] == [failure(3).request_id]


def test_a_copy_of_a_damaged_ledger_goes_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    copy = tmp_path / "l.sqlite.damaged-17"
    copy.write_text(WORD)
    (tmp_path / "l.sqlite.damaged-17-wal").write_text(WORD)
    with Ledger.open(path) as ledger:
        ledger.backend.scrub()
    assert not list(tmp_path.glob("*damaged*"))


def test_requests_that_lie_at_a_provider_are_named(place: Place) -> None:
    call = saying(1, WORD)
    with Ledger.open(place.location) as ledger:
        for state in ("submitted", "collected"):
            ledger.backend.write(
                Batch(
                    statements=[
                        (
                            "INSERT INTO batches (token, dataset, endpoint, model, kind, state, "
                            "requests, detail, created_at, updated_at) "
                            "VALUES (?, 'd', 'e', 'm', 'chat', ?, 1, '', 0.0, 0.0)",
                            (state, state),
                        )
                    ]
                )
            )
        held = "INSERT INTO batch_requests (request_id, token, request) VALUES (?, ?, ?)"
        values = (call.request_id, "submitted", call.request.decode())
        ledger.backend.write(Batch(statements=[(held, values)]))
        assert [kept.dataset for page in kept_requests(ledger) for kept in page] == ["d"]
        assert open_batches_with(ledger, [call.request_id]) == [("submitted", "d")]
        erase_requests(ledger, [call.request_id])
        assert open_batches_with(ledger, [call.request_id]) == []
