"""``synth ledger``, through the command line, on a file and on PostgreSQL."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from synth_assets.cli import main
from synth_assets.commands.ledger import moment
from synth_assets.errors import UsageError
from synth_assets.llm import Ledger
from tests.ledger_support import Place, failure, put_all, row
from tests.llm_support import run

pytest_plugins = ["tests.postgres"]

DAY = 86_400
NOW = time.time()
ANSWER = (
    b'{"choices":[{"message":{"content":"a [red]pump[/] \\u001b[31m"},"finish_reason":"stop"}]}'
)


@pytest.fixture
def filled(place: Place, synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Ten calls, one per day back from now; the fifth of dataset b, the last not UTF-8."""
    monkeypatch.setenv("SYNTH_LEDGER_URL", place.location)
    rows = [
        row(
            number,
            started_at=NOW - number * DAY - 60,
            response=b"\xff\xfe" if number == 9 else ANSWER,
            dataset="b" if number == 5 else "d",
            prices='{"input_per_million":1.0}',
        )
        for number in range(10)
    ]
    with Ledger.open(place.location) as ledger:
        run(put_all(ledger, rows))
        run(ledger.put_failure(failure(1, detail="[bold]no\x1b[31m", at=NOW - 100 * DAY)))
    return place


def synth(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["ledger", *arguments])
    assert result.exit_code == code, result.output
    return result


def told(*arguments: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in synth(*arguments).stdout.splitlines()]


def test_show_sums_up_and_says_where(filled: Place) -> None:
    (shown,) = told("show", "--json")
    assert sum(each["calls"] for each in shown["calls"]) == 10
    assert (shown["failures"], shown["claims"], shown["version"]) == (1, 0, 3)
    assert shown["place"] in (filled.location, filled.location.replace("tester@", "").split("?")[0])
    text = synth("show").output
    assert "dataset" in text
    assert "1 failures kept" in text


def test_calls_are_listed_newest_first_and_filtered(filled: Place) -> None:
    ids = [each["request_id"] for each in told("calls", "--json")]
    assert ids == [row(number).request_id for number in range(10)]
    recent = told("calls", "--since", "3d", "--dataset", "d", "--limit", "2", "--json")
    assert [each["request_id"] for each in recent] == ids[:2]
    assert told("calls", "--model", "other", "--json") == []
    assert ids[3][:8] in synth("calls").output


def test_one_call_is_shown_whole_and_its_markup_and_controls_are_inert(filled: Place) -> None:
    name = row(1).request_id
    text = synth("call", name[:8]).output
    assert "Write one row about pump 1." in text
    assert "a [red]pump[/]" in text
    assert "\x1b" not in text
    assert "[bold]no" in text
    (whole,) = told("call", name[:10], "--json")
    assert whole["call"]["answer"] == "a [red]pump[/] \x1b[31m"
    assert whole["call"]["request"]["body"]["seed"] == 1
    assert whole["call"]["prices"] == {"input_per_million": 1.0}
    assert len(whole["failures"]) == 1


def test_raw_prints_the_body_byte_for_byte(filled: Place) -> None:
    assert synth("call", row(1).request_id[:8], "--raw").stdout_bytes == ANSWER
    assert synth("call", row(9).request_id, "--raw").stdout_bytes == b"\xff\xfe"
    (whole,) = told("call", row(9).request_id, "--json")
    assert (whole["call"]["response"], whole["call"]["response_base64"]) == (None, "//4=")
    synth("call", row(9).request_id)


def test_failures_are_listed(filled: Place) -> None:
    assert told("failures", "--json")[0][0]["detail"] == "[bold]no\x1b[31m"
    text = synth("failures", "--dataset", "d").output
    assert "[bold]no" in text
    assert "\x1b" not in text


def test_an_export_holds_every_call(filled: Place, tmp_path: Path) -> None:
    lines, packed, parquet = (tmp_path / f"x.{kind}" for kind in ("jsonl", "jsonl.gz", "parquet"))
    for file in (lines, packed, parquet):
        assert told("export", str(file), "--json")[0]["calls"] == 10
    assert gzip.decompress(packed.read_bytes()) == lines.read_bytes()
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [each["request_id"] for each in records] == [row(n).request_id for n in range(9, -1, -1)]
    table = pl.read_parquet(parquet)
    assert table["request_id"].to_list() == [each["request_id"] for each in records]
    assert table["response"].to_list() == [b"\xff\xfe", *[ANSWER] * 9]
    assert table["request"].str.json_decode(pl.Struct({"kind": pl.String})).len() == 10
    some = tmp_path / "some.parquet"
    synth("export", str(some), "--dataset", "b", "--outcome", "ok")
    assert pl.read_parquet(some)["request_id"].to_list() == [row(5).request_id]
    synth("export", str(some), "--model", "none")
    assert pl.read_parquet(some).shape == (0, 16)


def test_an_export_that_fails_leaves_the_file_that_was_there(
    filled: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synth_assets.llm.ledger.rows import LedgerError

    def broken(*_: object, **__: object) -> object:
        yield row(1)
        raise LedgerError("the disk is on fire")

    monkeypatch.setattr("synth_assets.llm.ledger.admin.calls", broken)
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        file = tmp_path / "exports" / f"x.{kind}"
        file.parent.mkdir(exist_ok=True)
        file.write_text("before")
        assert "on fire" in synth("export", str(file), code=1).stderr
        assert file.read_text() == "before"
        assert list(file.parent.iterdir()) == [file]
        file.unlink()


def test_pruning_asks_first_keeps_what_is_used_and_counts_the_rest(
    filled: Place, synth_home: Path
) -> None:
    table = synth_home / "store" / "d" / "candidates" / "v1.parquet"
    table.parent.mkdir(parents=True)
    used = [row(8).request_id, row(8).request_id, None]
    pl.DataFrame({"request_id": used}, schema={"request_id": pl.String}).write_parquet(table)
    would = synth("prune", "--older-than", "7d").output
    assert "would prune 2 calls" in would
    assert "--yes" in would
    assert told("prune", "--older-than", "7d", "--yes", "--json")[0] == {
        "calls": 2,
        "bytes": pytest.approx(1000, abs=600),
        "kept": 1,
        "failures": 1,
        "pruned": True,
        "space": told_space(filled),
    }
    left = {each["request_id"] for each in told("calls", "--json")}
    assert left == {row(number).request_id for number in (*range(7), 8)}
    with Ledger.open(filled.location) as ledger:
        assert ledger.spent().calls == 10
    synth("prune", "--older-than", "7d", "--also-used", "--yes")
    assert row(8).request_id not in {each["request_id"] for each in told("calls", "--json")}


class told_space:
    """Equal to whatever a place says about space."""

    def __init__(self, place: Place) -> None:
        self._says = "by itself" if place.is_postgres else "the file went from"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._says in other

    def __hash__(self) -> int:
        return hash(self._says)


def test_a_table_that_cannot_be_read_stops_the_pruning(filled: Place, synth_home: Path) -> None:
    table = synth_home / "store" / "d" / "candidates" / "v1.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"no parquet")
    assert "--also-used" in synth("prune", "--older-than", "1d", "--yes", code=1).stderr
    assert len(told("calls", "--json")) == 10


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["call", "00000000"], 1, "no request"),
        (["call", "xyz"], 1, "at least the first 8"),
        (["calls", "--since", "yesterday"], 2, "is no time"),
        (["prune", "--older-than", "90 days"], 2, "is no time"),
        (["export", "x.csv"], 2, "end it in .jsonl"),
        (["calls", "--limit", "0"], 2, "Invalid value"),
    ],
)
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_mistake_is_told_with_its_exit_code(
    arguments: list[str], code: int, says: str, filled: Place
) -> None:
    assert says in synth(*arguments, code=code).stderr


def test_without_a_ledger_nothing_is_made(
    place: Place, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_LEDGER_URL", place.location)
    for arguments in (["show"], ["calls"], ["prune", "--older-than", "1d", "--yes"]):
        assert "no ledger yet" in synth(*arguments, code=1).stderr
    monkeypatch.delenv("SYNTH_LEDGER_URL")
    assert str(synth_home) in synth("show", code=1).stderr
    assert not (synth_home / "ledger").exists()


def test_times_are_ago_or_iso_in_utc() -> None:
    assert moment("1970-01-02") == DAY
    assert moment("1970-01-01T01:00:00+01:00") == 0
    assert moment("2w") == pytest.approx(time.time() - 14 * DAY, abs=60)
    for wrong in ("", "7", "d7", "-3d", "12:00", "9999999999d", "١d"):
        with pytest.raises(UsageError):
            moment(wrong)


@pytest.mark.parametrize("command", sorted(main.commands["ledger"].commands))
def test_every_command_shows_an_example(command: str) -> None:
    assert "Example: synth ledger" in synth(command, "--help").output


EXPORTER = """
import sys
from pathlib import Path
from synth_assets.ledger_export import export
from synth_assets.llm import Ledger
from synth_assets.llm.ledger.admin import calls

def peak():
    # Not `ru_maxrss`: that begins with what the process had that started this one.
    (line,) = [x for x in Path("/proc/self/status").open() if x.startswith("VmHWM")]
    return int(line.split()[1])

with Ledger.open(sys.argv[1]) as ledger:
    export(calls(ledger, limit=200), Path(sys.argv[2]).with_name("warm." + sys.argv[3]))
    before = peak()
    export(calls(ledger), Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
def test_the_memory_of_an_export_does_not_grow_with_the_ledger(
    place: Place, tmp_path: Path
) -> None:
    with Ledger.open(place.location) as ledger:
        for start in range(0, 30_000, 1000):
            body = os.urandom(6_000).hex().encode()
            rows = [row(start + n, response=body, started_at=float(start + n)) for n in range(1000)]
            run(put_all(ledger, rows))
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        file = tmp_path / f"x.{kind}"
        command = [sys.executable, "-c", EXPORTER, place.location, str(file), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        # 360 MB of calls; kilobytes of growth are told.
        assert int(done.stdout) < 200_000, kind
        file.unlink()
