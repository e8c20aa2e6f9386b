"""Kills from an empty home to a second release: what is called good is good.

After every kill the home is verified, and judged a second time by code that shares nothing with
the project's (``tests.independent``). Kills come after a delay, after answers, when a table
appears, and at a counted change to a file, so that every step of a publication is struck.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.store.content import ContentStore
from tests.datasets import DatasetFolder
from tests.independent import wrong_with
from tests.openai_server import ServerState, running_server
from tests.processes import Place, finished, killed, unharmed, versions_of, wait_until
from tests.test_run import synth

# Four datasets' lives with 18 kills each, and 14 kills of what looks after a home.
SEEDS, IN_A_LIFE = (1, 2, 3, 4), 18
UPKEEP = {"gc": 6, "rollback": 4, "verify": 4}
LATENCY_S = 0.02
MOST_DELAY_S = 0.15
# The longest a command has to get to where it is to be struck.
REACHED_S = 60.0


@dataclass(frozen=True)
class Moment:
    """When to kill: ``delay_s`` after the start, ``answers``, or the ``nth`` table of a stage.

    ``change``: at that change of a file below the home's folder ``below`` instead.
    """

    delay_s: float = 0.0
    answers: int = 0
    table: str = ""
    nth: int = 1
    below: str = ""
    change: int = 0


@dataclass
class Life:
    """One home that is killed again and again. ``told``: the problems that were reported."""

    place: Place
    server: ServerState
    struck: int = 0
    told: list[str] = field(default_factory=list)

    def strike(self, moment: Moment, *words: str) -> bool:
        """Run a command and kill it at the moment; False when it ended before that."""
        process = self._start(moment, *words)
        with unharmed(process):
            if not moment.change:
                reached = self._reached(moment)
                ended = lambda: process.poll() is not None  # noqa: E731
                wait_until(lambda: reached() or ended(), what=str(moment), seconds=REACHED_S)
                time.sleep(moment.delay_s)
                if process.poll() is None:
                    killed(process)
            done = finished(process)
        self.struck += done.code == -9
        self.judge()
        return done.code == -9

    def judge(self) -> None:
        """What verify finds, and that nothing else is wrong."""
        found = synth("verify", "--json")
        problems = [Path(problem["file"]).name for problem in found.json["problems"]]
        assert found.code == (1 if problems else 0), found.errors
        # The one thing a kill may leave: a first release that is not in use yet.
        assert problems in ([], ["current"]), found.json["problems"]
        wrong = wrong_with(self.place.home)
        assert [bool(wrong)] == [bool(problems)], wrong
        self.told += problems

    def finish(self, *words: str) -> None:
        ran = self.place.run(self.server, "tickets", *words)
        assert ran.code == 0, ran.errors
        self.judge()

    def _start(self, moment: Moment, *words: str) -> subprocess.Popen[str]:
        if not moment.change:
            return self.place.start(self.server, *words)
        folder = str(self.place.home / moment.below)
        return killing(self.place, self.server, folder, moment.change, *words)

    def _reached(self, moment: Moment) -> Callable[[], bool]:
        if moment.table:
            folder = self.place.home / "store" / "tickets" / moment.table
            return lambda: len(list(folder.glob("[!.]*.parquet"))) >= moment.nth
        began = self.server.successes_by_identity.total()
        return lambda: self.server.successes_by_identity.total() >= began + moment.answers


def killing(
    place: Place, server: ServerState, folder: str, change: int, *words: str
) -> subprocess.Popen[str]:
    command = ["-m", "tests.killing", folder, str(change), str(place.root / "changes"), *words]
    return subprocess.Popen(
        [sys.executable, *command],
        env=place.environment(server),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def changes(place: Place, server: ServerState, below: str, *words: str) -> int:
    """How many changes a command makes below a folder of the home, when it is let be."""
    done = finished(killing(place, server, str(place.home / below), 0, *words))
    assert done.code == 0, done.errors
    return int((place.root / "changes").read_text())


def first(place: Place) -> DatasetFolder:
    folder = place.dataset(concurrency=2)
    (folder.folder / "seeds.jsonl").write_text(
        '{"text": "the voice menu sends me round in circles", "label": "login"}\n'
    )
    return folder


def second(folder: DatasetFolder) -> None:
    folder.write_prompt("Be inventive.\n" + folder.prompt)
    folder.attributes["blend"] = {"weights": {"synthetic": 0.5}}
    folder.edit("description", "Support tickets, once more")


def releases(place: Place) -> set[str]:
    folder = place.home / "releases" / "tickets"
    return {path.name for path in folder.iterdir() if path.name[0] != "."} - {"current"}


def current(place: Place) -> str:
    return (place.home / "releases" / "tickets" / "current").read_text().strip()


@dataclass(frozen=True)
class Calm:
    """What comes of it when nothing happens: versions and release after each half."""

    place: Place
    versions: tuple[dict[str, str], dict[str, str]]
    releases: tuple[str, str]
    changes_of_a_release: int


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    # One for all homes: its address stands in a manifest.
    with running_server(latency_s=LATENCY_S) as state:
        yield state


@pytest.fixture(scope="module")
def calm(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    place = Place.make(tmp_path_factory.mktemp("calm"))
    folder = first(place)
    found: list[tuple[dict[str, str], str]] = []
    words = ("run", "tickets", "--until", "contribution")
    assert finished(place.start(server, *words)).code == 0
    count = changes(place, server, "releases", "run", "tickets")
    for half in (1, 2):
        if half == 2:
            second(folder)
        ran = place.run(server)
        assert ran.code == 0, ran.errors
        found.append((versions_of(place.statuses(server)), current(place)))
    (old, first_release), (new, second_release) = found
    return Calm(place, (old, new), (first_release, second_release), count)


def enter(place: Place, server: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment(server).items():
        monkeypatch.setenv(name, value)


def moments(rng: random.Random, nth: int, publishing: int) -> list[Moment]:
    """Nine over one half of a life, in the order in which a run gets there."""

    def delay() -> float:
        return rng.uniform(0, MOST_DELAY_S)

    steps = sorted(rng.sample(range(1, publishing + 1), 3))
    early = (
        [Moment(delay_s=rng.uniform(0.2, 2.0)), Moment(delay(), table="human_raw")]
        if nth == 1
        else [Moment(delay_s=rng.uniform(1.0, 3.0)), Moment(delay(), table="plan", nth=nth)]
    )
    return [
        *early,
        Moment(delay(), answers=rng.randint(1, 4)),
        Moment(delay(), answers=rng.randint(1, 4)),
        Moment(delay(), table=rng.choice(["candidates", "synthetic", "blend"]), nth=nth),
        Moment(delay(), table=rng.choice(["train", "contribution"]), nth=nth),
        *(Moment(below="releases", change=step) for step in steps),
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_kills_from_nothing_to_a_second_release_leave_what_is_verified_and_end_the_same(
    tmp_path: Path, calm: Calm, server: ServerState, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, place = random.Random(seed), Place.make(tmp_path / "killed")
    enter(place, server, monkeypatch)
    # Answers that other homes have got count for nothing here.
    server.reset()
    life, folder = Life(place, server), first(place)
    for half in (0, 1):
        if half:
            second(folder)
        for moment in moments(rng, half + 1, calm.changes_of_a_release):
            life.strike(moment, "run", "tickets")
        life.finish()
        assert versions_of(place.statuses(server)) == calm.versions[half]
        assert current(place) == calm.releases[half]
    assert releases(place) == set(calm.releases)
    again = place.run(server)
    assert (again.code, again.json["ran"]) == (0, [])
    print(f"seed {seed}: struck {life.struck} of {IN_A_LIFE} times")
    # A run may be through before a blow that comes late.
    assert life.struck >= IN_A_LIFE - 4


@pytest.fixture
def lived(tmp_path: Path, calm: Calm, server: ServerState, monkeypatch: pytest.MonkeyPatch) -> Life:
    """A copy of the undisturbed home after its second release."""
    place = Place(Path(shutil.copytree(calm.place.root, tmp_path / "copy")))
    enter(place, server, monkeypatch)
    return Life(place, server)


def tables(home: Path) -> set[Path]:
    return set((home / "store").rglob("*.parquet"))


def spare(home: Path, rng: random.Random) -> None:
    """Tables that nothing refers to, and never did."""
    for _ in range(5):
        frame = pl.DataFrame({"a": [rng.random() for _ in range(100)]})
        ContentStore(home / "store").put("tickets", "plan", frame)


def without_checksums(home: Path, rng: random.Random) -> None:
    """As kills between tables and their checksums leave them."""
    found = sorted((home / "store").rglob("*.sha256"))
    for path in rng.sample(found, len(found) // 2):
        path.unlink()


COMMANDS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, random.Random], Any]]] = {
    "gc": ("store", ("gc", "--yes"), spare),
    "rollback": ("releases", ("rollback", "tickets", "previous"), lambda home, rng: None),
    "verify": ("store", ("verify",), without_checksums),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_of_what_looks_after_a_home_do_no_harm(
    lived: Life, calm: Calm, command: str, tmp_path: Path
) -> None:
    below, words, prepare = COMMANDS[command]
    rng, home = random.Random(command), lived.place.home
    needed = tables(home)
    prepare(home, rng)
    rehearsal = Place(Path(shutil.copytree(lived.place.root, tmp_path / "rehearsal")))
    # The last change may be the giving back of a lock.
    count = changes(rehearsal, lived.server, below, *words)
    for _ in range(UPKEEP[command]):
        prepare(home, rng)
        lived.strike(Moment(below=below, change=rng.randint(1, count)), *words)
        assert needed <= tables(home)
        assert releases(lived.place) == set(calm.releases)
        assert current(lived.place) in calm.releases
        lived.place.start(lived.server, "rollback", "tickets", calm.releases[1]).communicate()
    assert lived.struck >= UPKEEP[command] - 1
    done = finished(lived.place.start(lived.server, *words))
    assert done.code == 0, done.errors
    lived.judge()
    assert lived.told == []
    lived.place.start(lived.server, "rollback", "tickets", calm.releases[1]).communicate()
    lived.finish()
    assert versions_of(lived.place.statuses(lived.server)) == calm.versions[1]
    assert current(lived.place) == calm.releases[1]
