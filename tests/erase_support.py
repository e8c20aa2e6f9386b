"""A home in which one row has spread everywhere, and a search that finds it wherever it is."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from click.testing import CliRunner

from synth_assets.cli import main
from tests import processes
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState
from tests.processes import Finished

# Words that nothing else says; rows that a model makes of the text hold one of them at least.
WORDS = ("zyxqvörtex", "kumquatparade")
PLANTED = f'the {WORDS[0]} "locks" my {WORDS[1]} number 0'
PLACE = 31  # its row in the source


class Place(processes.Place):
    """A place whose commands run in this process, which is many times as fast."""

    def run(self, server: ServerState, name: str = "tickets", *words: str) -> Finished:
        return synth(self, server, "run", name, "--json", *words)

    def statuses(self, server: ServerState, name: str = "tickets") -> dict[str, dict[str, Any]]:
        found = synth(self, server, "status", name, "--json")
        assert found.code == 0, found.errors
        return {stage["stage"]: stage for stage in found.json["stages"]}


def synth(place: processes.Place, server: ServerState, *words: str, **more: str) -> Finished:
    environment = place.environment(server, **more)
    ran = CliRunner().invoke(main, [*words], env=environment, catch_exceptions=False)
    return Finished(ran.exit_code, ran.stdout, ran.stderr)


def rows_with(planted: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*rows[: PLACE - 1], {"body": planted, "topic": "login"}, *rows[PLACE - 1 :]]


def spellings() -> dict[str, bytes]:
    """Every word as it might be found."""
    found: dict[str, bytes] = {}
    for word in WORDS:
        for how, text in (("plain", word), ("upper", word.upper()), ("title", word.title())):
            found[f"{how} {word}"] = text.encode()
        for code in ("utf-16-le", "utf-16-be"):
            found[f"{code} {word}"] = word.encode(code)
        escaped = word.encode("ascii", "backslashreplace").replace(b"\\x", b"\\u00")
        found[f"in JSON {word}"] = escaped
        found[f"in JSON, twice {word}"] = escaped.replace(b"\\", b"\\\\")
        for shift in range(3):  # base64 looks different at each of three alignments
            code64 = base64.b64encode(b"\0" * shift + word.encode())
            found[f"in base64 ({shift}) {word}"] = code64[4 if shift else 0 : -4]
    return found


def traces(*roots: Path, but: tuple[Path, ...] = ()) -> list[tuple[str, str]]:
    """Where a word is found in any spelling: file and spelling."""
    files = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    known = spellings()
    found = []
    # All bytes first: opening a database folds in its write-ahead log.
    for path, raw in [(path, path.read_bytes()) for path in files if path not in but]:
        for reading in readings(path, raw):
            found += [(str(path), how) for how, text in known.items() if text in reading]
    return found


def readings(path: Path, raw: bytes) -> Iterator[bytes]:
    yield raw
    if raw[:4] == b"PAR1":
        yield "\n".join(map(str, pl.read_parquet(path).iter_rows())).encode()
    elif raw[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(path)) as connection:
            select = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for (name,) in connection.execute(select).fetchall():
                rows = connection.execute(f'SELECT * FROM "{name}"')  # noqa: S608
                yield "\n".join(map(_text, rows)).encode()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif path.suffix == ".duckdb":
        with closing(duckdb.connect(str(path), read_only=True)) as database:
            names = database.execute(
                "SELECT table_schema, table_name FROM information_schema.tables"
            ).fetchall()
            for schema, name in names:
                rows = database.execute(f'SELECT * FROM "{schema}"."{name}"').fetchall()  # noqa: S608
                yield str(rows).encode()


def _text(row: tuple[object, ...]) -> str:
    return str([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in row])


def made(root: Path) -> Place:
    """An empty place."""
    return Place(processes.Place.make(root).root)


def spread(root: Path, server: ServerState) -> Place:
    """``tickets`` with the planted row as a seed: two releases, each exported in the home."""
    place = made(root)
    folder = DatasetFolder(place.defs / "tickets")
    folder.rows = rows_with(PLANTED, folder.rows)
    folder.write()
    for weight in (1.0, 0.5):
        folder.edit("blend.weights", {"synthetic": weight})
        ran = place.run(server)
        assert ran.code == 0, ran.errors
        words = ("export", "tickets", "--format", "csv", "--format", "hf")
        assert synth(place, server, *words).code == 0
    return place


def copied(place: Place, root: Path) -> Place:
    shutil.copytree(place.root, root, symlinks=True)
    return Place(root)


def killed_after(place: Place, server: ServerState, step: int, *words: str) -> int:
    """``synth WORDS``, killed by SIGKILL after that step of the erasure; exit code.

    After the last step comes the rebuild, which is killed in the middle.
    """
    code = f"""
import os, signal, sys
from synth_assets.erasure import erase as erasing
from synth_assets.assets import planning
from synth_assets.cli import main
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if {step} < len(erasing.STEPS):
    act = erasing.STEPS[{step}]
    erasing.STEPS[{step}] = lambda erasure: die(act(erasure))
else:
    planning.plan_calls = die
sys.argv = ["synth", *{list(words)!r}]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=place.environment(server)
        | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(Path.cwd()))},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode
