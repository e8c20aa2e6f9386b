"""An API key is written nowhere, whatever a server makes of it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import logging
import signal
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest

from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.scrub import without, without_bytes
from tests.datasets import DatasetFolder
from tests.openai_server import FaultAction, RequestInfo, running_server
from tests.processes import Place, finished, quiet, unharmed, wait_until
from tests.test_run import Ran, run, synth

# Slashes, pluses and ampersands are spelled otherwise in URLs, in JSON and in HTML.
KEY = "sk-planted-8f3a/Zq81+xk&33==Tw0"
HEADER = f"Authorization: Bearer {KEY}"
JUST_CUT = 300 - len("HTTP 422: ") - len(KEY) + 1  # the message's bound falls into the key


def spellings() -> dict[str, bytes]:
    """The key as it might be found: plain, quoted, turned round, or in base64."""
    raw = KEY.encode()
    found = {
        "plain": raw,
        "cut": raw[:-1],
        "in a URL": quote(KEY, safe="").encode(),
        "in JSON": KEY.replace("/", "\\/").encode(),
        "in HTML": html.escape(KEY).encode(),
        "backwards": raw[::-1],
        "in hex": raw.hex().encode(),
    }
    for shift in range(3):  # base64 looks different at each of three alignments
        code = base64.b64encode(b"\0" * shift + raw)
        found[f"in base64 ({shift})"] = code[4 if shift else 0 : len(code) - 4]
    return found


def readings(path: Path, raw: bytes) -> Iterator[bytes]:
    """A file's bytes, and what a reader of its format sees: rows of tables, unpacked blobs."""
    yield raw
    if raw[:4] == b"PAR1":
        yield "\n".join(map(str, pl.read_parquet(path).iter_rows())).encode()
    elif raw[:15] == b"SQLite format 3":
        yield from _cells(path)
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)


def _cells(path: Path) -> Iterator[bytes]:
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):  # noqa: S608
                for value in row:
                    cell = value if isinstance(value, bytes) else str(value).encode()
                    yield cell
                    if cell[:1] == b"\x78":  # a zlib stream, maybe
                        with suppress(zlib.error):
                            yield zlib.decompressobj().decompress(cell)


def leaks(*roots: Path, said: str = "") -> list[tuple[str, str]]:
    """Where the key is found in any spelling: file and spelling."""
    known = spellings()
    found = [("said", how) for how, text in known.items() if text in said.encode()]
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    # All bytes first: opening a database folds in its write-ahead log.
    for path, raw in [(path, path.read_bytes()) for path in files]:
        for reading in readings(path, raw):
            found += [(str(path), how) for how, text in known.items() if text in reading]
    return found


def test_the_search_finds_a_key_wherever_it_is_hidden(tmp_path: Path) -> None:
    hidden: dict[str, Callable[[], object]] = {
        "plain": lambda: (tmp_path / "log").write_text(HEADER),
        "in base64 (1)": lambda: (tmp_path / "b64").write_bytes(
            base64.b64encode(b"x" * 7 + KEY.encode())
        ),
        "in a URL": lambda: pl.DataFrame({"url": [quote(KEY, safe="")]}).write_parquet(
            tmp_path / "t.parquet", compression="zstd"
        ),
        "backwards": lambda: (tmp_path / "z.gz").write_bytes(gzip.compress(KEY[::-1].encode())),
    }
    for how, hide in hidden.items():
        assert how not in {spelling for _, spelling in leaks(tmp_path)}
        hide()
        assert how in {spelling for _, spelling in leaks(tmp_path)}
    for file in tmp_path.iterdir():
        file.unlink()
    with sqlite3.connect(tmp_path / "blobs.db") as connection:
        connection.execute("CREATE TABLE t (b BLOB)")
        connection.execute("INSERT INTO t VALUES (?)", (zlib.compress(KEY.encode() * 500),))
    assert (str(tmp_path / "blobs.db"), "plain") in leaks(tmp_path)


ECHOES = (
    FaultAction("status", status=400, message=f"bad request, headers were {HEADER}"),
    FaultAction("status", status=422, message="x" * JUST_CUT + KEY),
    FaultAction("status", status=422, message=f"see https://help.example/?key={quote(KEY, '')}"),
    FaultAction("status", status=500, message=f"upstream failed with {spellings()['in JSON']!r}"),
    FaultAction("status", status=503, message=base64.b64encode(KEY.encode()).decode()),
    FaultAction("status", status=429, message=KEY, headers={"Retry-After": "0"}),
    FaultAction("html", status=502, message=f"<pre>{HEADER}</pre>"),
    FaultAction("html", status=400, message=f"<pre>{html.escape(HEADER)}</pre>"),
    FaultAction("html", status=403, message="<p>" + "x" * (64 * 1024 - 20) + KEY),
    FaultAction("html", status=200, message=f"<pre>{HEADER}</pre>"),
    FaultAction("html", status=302, headers={"Location": f"/v1?k={KEY}"}, message=HEADER),
    FaultAction("refusal", message=f"I will not, {KEY}"),
    FaultAction("reset"),
    FaultAction("broken_body"),
    FaultAction("malformed"),
)


def echoing(info: RequestInfo) -> FaultAction | None:
    """Most first attempts meet a server that says more than it should; the second is answered."""
    draw = hashlib.sha256(info.identity.encode()).digest()
    if info.index == 0 or info.attempt > 1 or draw[0] < 100:
        return None
    return ECHOES[draw[1] % len(ECHOES)]


@pytest.fixture
def planted(tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tickets.edit("generate.rows_per_call", 1)
    tickets.edit("validate.near_duplicate", 1.0)
    return Place(synth_home.parent)


def everything_said(*commands: Ran) -> str:
    return "".join(
        ran.result.output + ran.result.stderr + str(ran.result.exc_info) for ran in commands
    )


def test_a_key_that_every_kind_of_answer_echoes_is_written_nowhere(
    planted: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with running_server(api_key=KEY, fault=echoing) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        ran = run()
        shown = [synth(word, "tickets", "--json") for word in ("status", "plan")]
        plain = [synth("status", "tickets"), synth("run", "tickets"), synth("list")]
    assert leaks(planted.root, said=everything_said(ran, *shown, *plain) + caplog.text) == []
    assert ran.code == 0, ran.errors
    met = {kind for kind, count in server.faults.items() if count}
    assert met >= {"400", "422", "500", "429", "html", "refusal", "reset", "broken_body"}
    with Ledger.open(planted.ledger) as ledger:
        assert any("***" in failure.detail for failure in ledger.failures())


@pytest.mark.parametrize(
    "echo",
    [
        FaultAction("status", status=401, message=f"Incorrect API key provided: {KEY}."),
        FaultAction("html", status=401, message=f"<b>{HEADER}</b>"),
        FaultAction("status", status=403, message="x" * JUST_CUT + KEY),
    ],
)
def test_a_refused_key_that_is_echoed_is_named_by_its_variable_only(
    planted: Place, monkeypatch: pytest.MonkeyPatch, echo: FaultAction
) -> None:
    with running_server(api_key=KEY, fault=lambda _: echo) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        ran = run()
    assert ran.code == 1
    assert "OPENAI_API_KEY" in ran.errors
    assert leaks(planted.root, said=everything_said(ran, synth("status", "tickets"))) == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGKILL, -9, id="killed", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_leaves_no_key(
    planted: Place, sent: signal.Signals, code: int
) -> None:
    with running_server(api_key=KEY, fault=echoing, latency_s=0.2) as server:
        process = planted.start(server, "run", "tickets", OPENAI_API_KEY=KEY)
        with unharmed(process):
            wait_until(lambda: server.successes_by_identity.total() > 12, what="the run asks")
            process.send_signal(sent)
            stopped = finished(process)
        quiet(server)
    assert stopped.code == code
    log = planted.ledger.with_name("ledger.sqlite-wal")
    assert sent != signal.SIGKILL or log.stat().st_size > 0, "what a kill leaves is searched too"
    assert leaks(planted.root, said=stopped.out + stopped.errors) == []


@pytest.mark.parametrize("said", ["", "sk-", "a sk-planted-8f3b in the text", "xk&33==Tw0", "..."])
def test_what_only_resembles_a_key_stays_as_it_is(said: str) -> None:
    assert without(said, [KEY]) == said
    assert without_bytes(said.encode(), [KEY]) == said.encode()


@pytest.mark.parametrize("end", ["", "...", "sk-plante", "sk-plante..."])
def test_a_key_that_was_cut_off_is_masked_too(end: str) -> None:
    assert without(f"{KEY}: {end}", [KEY]) == f"***: {end.replace('sk-plante', '***')}"
