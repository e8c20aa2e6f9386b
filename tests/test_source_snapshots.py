"""Copies named by their content: whole, or the former one."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import SourceError
from synth_assets.sources.snapshots import Copy, Shelf, write_sorted

ROOT = Path(__file__).parents[1]
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=8)


def put(folder: Path, content: bytes, **facts: Any) -> Copy:
    def write(stream: IO[bytes]) -> dict[str, Any]:
        stream.write(content)
        return facts

    shelf = Shelf(folder)
    with shelf.locked("test"):
        return shelf.put(write, file="data", where="test")


def script(body: str, folder: Path) -> subprocess.Popen[str]:
    head = """
        import os, signal, sys
        from pathlib import Path
        from synth_assets.sources.snapshots import Shelf
        shelf = Shelf(Path(sys.argv[1]))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_copy_is_named_by_its_content_and_found_again(tmp_path: Path) -> None:
    made = put(tmp_path, b"rows", etag="1")
    assert made.path.parent.name == made.sha256 == hashlib.sha256(b"rows").hexdigest()
    assert Shelf(tmp_path).newest() == made
    assert made.facts == {"etag": "1"}


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"sha256": 1, "file": "x", "facts": {}}'])
def test_a_damaged_state_counts_as_no_copy(tmp_path: Path, state: str) -> None:
    put(tmp_path, b"rows")
    (tmp_path / "state.json").write_text(state)
    assert Shelf(tmp_path).newest() is None
    assert put(tmp_path, b"rows") == Shelf(tmp_path).newest()


def test_an_error_while_writing_leaves_the_former_copy_and_no_part(tmp_path: Path) -> None:
    made = put(tmp_path, b"rows")

    def broken(stream: IO[bytes]) -> dict[str, Any]:
        stream.write(b"half")
        raise SourceError("torn")

    with pytest.raises(SourceError, match="torn"):
        Shelf(tmp_path).put(broken, file="data", where="test")
    assert Shelf(tmp_path).newest() == made
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([made.sha256, "lock", "state.json"])


@pytest.mark.parametrize(
    "moment",
    [
        "lambda s: (s.write(b'half'), s.flush(), os.kill(os.getpid(), signal.SIGKILL))",
        "lambda s: (s.write(b'new'), setattr(Shelf, '_name', die))[1] or {}",
    ],
    ids=["writing", "naming"],
)
def test_a_kill_leaves_the_former_copy_and_the_next_one_works(tmp_path: Path, moment: str) -> None:
    made = put(tmp_path, b"old")
    body = f"""
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with shelf.locked("test"):
            shelf.put({moment}, file="data", where="test")
    """
    killed = script(body, tmp_path)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert Shelf(tmp_path).newest() == made
    newer = put(tmp_path, b"newer")
    assert Shelf(tmp_path).newest() == newer


def test_two_processes_at_once_leave_one_whole_copy(tmp_path: Path) -> None:
    body = """
        for number in range(20):
            word = f"{os.getpid()} {number} ".encode() * 10_000
            with shelf.locked("test"):
                shelf.put(lambda s: s.write(word) and {}, file="data", where="test")
                assert shelf.newest().path.read_bytes() == word
    """
    runs = [script(body, tmp_path) for _ in range(2)]
    assert [(*run.communicate(timeout=90), run.returncode) for run in runs] == [("", "", 0)] * 2
    assert Shelf(tmp_path).newest() is not None


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINE, max_size=20), seed=st.integers(0, 9))
def test_the_same_lines_in_any_order_and_batches_are_the_same_bytes(
    lines: list[str], seed: int
) -> None:
    def written(batches: list[list[str]]) -> bytes:
        stream = io.BytesIO()
        assert write_sorted(stream, batches) == sum(map(len, batches))
        return stream.getvalue()

    shuffled = random.Random(seed).sample(lines, len(lines))
    cut = len(lines) // 2
    assert written([shuffled[:cut], shuffled[cut:]]) == written([lines])
    assert sorted(written([lines]).decode().split("\n")[:-1]) == sorted(lines)
