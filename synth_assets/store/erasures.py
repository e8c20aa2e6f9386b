"""What was erased from a dataset: a log without texts, and the work of an erasure under way.

``<home>/erasures/<dataset>.jsonl`` has two lines for every erasure. The first, ``begun``, is there
before anything is deleted: time, reason, marks (keyed hashes) of the rows, seats of the seeds that
stay. The second, ``done``, says what went. Each line holds a hash of itself and the line before, so
that a line that was changed or taken out is seen.

``<dataset>.pending`` holds the texts and ids that an erasure works from while it is under way, so
that it can be finished after a kill; it is there before the first line, and goes with the second.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from synth_assets.errors import SynthError
from synth_assets.lifecycle.seats import Seats
from synth_assets.lifecycle.tombstones import KINDS, Kind, Tombstones
from synth_assets.store.content import sync_folder, write_atomically

FOLDER: Final = "erasures"
DEFS_FILE: Final = "defs.yaml"  # of a dataset's folder, as ``spec.load`` names it
BEGUN, DONE = "begun", "done"
_CHAIN_CHARS: Final = 32


@dataclass(frozen=True)
class Log:
    """The erasures of one dataset below ``home``."""

    home: Path
    dataset: str

    @property
    def path(self) -> Path:
        return self.home / FOLDER / f"{self.dataset}.jsonl"

    @property
    def pending_path(self) -> Path:
        return self.home / FOLDER / f"{self.dataset}.pending"

    # -- reading ---------------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """Every line, the oldest first.

        Raises:
            SynthError: a line that is not what was written: nothing may be let in because of it.
        """
        found, problem = self._read()
        if problem:
            raise SynthError(
                f"the record of erasures is not as it was written: {problem}",
                where=str(self.path),
                fix="put it back from a backup: without it, erased rows would come back",
            )
        return found

    def problem(self) -> str:
        """What is wrong with the log; "" when it is whole."""
        return self._read()[1]

    def tombstones(self) -> Tombstones:
        """The marks of everything that was erased, or is to be."""
        begun = [line for line in self.lines() if line["event"] == BEGUN]
        if not begun:
            return Tombstones()
        marks: dict[Kind, frozenset[str]] = {
            kind: frozenset(one for line in begun for one in line["marks"].get(kind, ()))
            for kind in KINDS
        }
        return Tombstones(str(begun[0]["salt"]), marks)

    def seats(self) -> list[Seats]:
        """Where seeds stay, the latest word last."""
        begun = [line for line in self.lines() if line["event"] == BEGUN]
        return [Seats.from_dict(one) for line in begun for one in line["seats"]]

    def salt(self) -> str:
        """The dataset's salt; a new one before its first erasure."""
        return next((str(line["salt"]) for line in self.lines()), "") or secrets.token_hex(32)

    def unfinished(self) -> list[dict[str, Any]]:
        """The erasures that have begun and are not done."""
        lines = self.lines()
        done = {line["id"] for line in lines if line["event"] == DONE}
        return [line for line in lines if line["event"] == BEGUN and line["id"] not in done]

    def erased_tables(self) -> set[tuple[str, str, str]]:
        """(dataset, stage, data version) of every table that was erased."""
        return {
            (self.dataset, str(stage), str(version))
            for line in self.lines()
            for stage, version in line.get("tables", ())
        }

    def withdrawn(self) -> dict[str, str]:
        """Version -> hash of the tombstone, of every release that was withdrawn."""
        return {
            str(version): str(digest)
            for line in self.lines()
            for version, digest in line.get("releases", {}).items()
        }

    # -- writing ---------------------------------------------------------------------------------

    def append(self, line: Mapping[str, Any]) -> None:
        """One more line, durable on return."""
        former = self.lines()
        body = {**line, "chain": _chain(former[-1]["chain"] if former else "", line)}
        kept = b"".join(orjson.dumps(one) + b"\n" for one in (*former, body))
        write_atomically(self.path, lambda path: path.write_bytes(kept))

    def write_pending(self, work: Mapping[str, Any]) -> None:
        def write(path: Path) -> None:
            path.chmod(0o600)
            path.write_bytes(orjson.dumps(work))

        write_atomically(self.pending_path, write)

    def pending(self) -> dict[str, Any] | None:
        """The work of the erasure under way, if any."""
        try:
            found: dict[str, Any] = orjson.loads(self.pending_path.read_bytes())
        except FileNotFoundError:
            return None
        return found

    def drop_pending(self) -> None:
        """Overwrites the texts, then removes the file."""
        if not self.path.parent.is_dir():
            return
        for path in [*self.path.parent.glob(f".{self.pending_path.name[:40]}.*.tmp")]:
            _overwritten(path)
        if self.pending_path.exists():
            _overwritten(self.pending_path)
        sync_folder(self.path.parent)

    def _read(self) -> tuple[list[dict[str, Any]], str]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], ""
        found: list[dict[str, Any]] = []
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                one = orjson.loads(line)
                chain = one.pop("chain")
                whole = chain == _chain(found[-1]["chain"] if found else "", one)
            except (ValueError, KeyError, AttributeError, TypeError):
                whole = False
            if not whole:
                return found, f"line {number} does not follow from the lines before it"
            found.append({**one, "chain": chain})
        return found, ""


def stones_for(home: Path, dataset: str, roots: Sequence[Path]) -> Tombstones:
    """The marks of what was erased from a dataset, and under names that have no folder.

    Such a name (``roots`` hold the folders) may be what the dataset was called before: erased rows
    stay away after a renaming.

    Raises:
        SynthError: as ``Log.lines``.
    """
    own = Log(home, dataset).tombstones()
    others = [name for name in logged(home) if name != dataset]
    if not others:
        return own
    there = {file.parent.name for root in roots for file in root.rglob(DEFS_FILE)}
    past = [Log(home, name).tombstones() for name in others if name not in there]
    return replace(own, past=tuple(stones for stones in past if stones))


def logged(home: Path) -> list[str]:
    """Datasets of which something was erased, or is being erased."""
    folder = home / FOLDER
    if not folder.is_dir():
        return []
    names = {p.stem for p in folder.iterdir() if p.suffix in (".jsonl", ".pending")}
    return sorted(name for name in names if not name.startswith("."))


def _chain(former: str, line: Mapping[str, Any]) -> str:
    body = orjson.dumps(line, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(former.encode() + b"\n" + body).hexdigest()[:_CHAIN_CHARS]


def _overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
