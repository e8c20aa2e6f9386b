"""``synth run`` killed again and again: nothing lost, nothing bought twice without need."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.openai_server import ServerState, running_server
from tests.processes import (
    Finished,
    Place,
    answered,
    asked,
    finished,
    killed,
    quiet,
    unharmed,
    versions_of,
)

KILLS = 20
CONCURRENCY = 4
ROWS = 200
LATENCY_S = 0.15
SETTINGS: dict[str, Any] = {
    "target": {"per_label": ROWS},
    "concurrency": CONCURRENCY,
}
# Stages whose table, once it is there, is a moment to strike; "releases" is a folder of its own.
LANDMARKS = ("human_raw", "seeds", "candidates", "blend", "contribution", "releases")
STARTS = 2
MOST_DELAY_S = 0.1


@dataclass
class Trial:
    """One dataset that is killed while it runs, and what the server saw of each start."""

    place: Place
    server: ServerState
    hits: list[set[str]] = field(default_factory=list)
    outcomes: list[Finished] = field(default_factory=list)

    def strike(self, moment: Moment) -> bool:
        """Start a run and kill it at the moment; False when it ended before that."""
        since = len(self.server.requests)
        process = self.place.start(self.server, "run", "tickets")
        with unharmed(process):
            reached = moment.reached(self)
            while process.poll() is None and not reached():
                time.sleep(0.002)
            time.sleep(moment.delay_s)
            struck = process.poll() is None
            self.outcomes.append(killed(process) if struck else finished(process))
        quiet(self.server)
        self.hits.append(set(asked(self.server, since=since)) - set(self.place.bought()))
        return struck


@dataclass(frozen=True)
class Moment:
    """When to kill: ``delay_s`` after ``more`` or ``all`` answers, a landmark, or the start."""

    more: int = 0
    all: int = 0
    landmark: str = ""
    delay_s: float = 0.0

    def reached(self, trial: Trial) -> Callable[[], bool]:
        if self.landmark:
            home, stage = trial.place.home, self.landmark
            where = home / stage if stage == "releases" else home / "store" / "tickets" / stage
            return where.exists
        answers = trial.server.successes_by_identity
        if self.all:
            return lambda: len(answers) >= self.all
        began = answers.total()
        return lambda: answers.total() >= began + self.more


def moments(seed: int, calls: int) -> list[Moment]:
    """``KILLS`` moments over a whole run of ``calls`` calls, most of them while calls are made."""
    rng = random.Random(seed)

    def delay() -> float:
        return rng.uniform(0, MOST_DELAY_S)

    starting = [Moment(delay_s=rng.uniform(0.1, 2.0)) for _ in range(STARTS)]
    marks = [Moment(landmark=name, delay_s=delay()) for name in LANDMARKS]
    judging = Moment(all=calls, delay_s=delay())
    asking = KILLS - STARTS - len(LANDMARKS) - 1
    # While a kill is under way more answers come; some are left to the last of these moments.
    share = calls // asking - 2 * CONCURRENCY
    counts = [rng.randint(1, 2 * share) for _ in range(asking)]
    while sum(counts) > share * asking:
        counts[counts.index(max(counts))] -= 1
    calling = [Moment(more=count, delay_s=delay()) for count in counts]
    return [*starting, *marks[:2], *calling, judging, *marks[2:]]


@dataclass(frozen=True)
class Undisturbed:
    """What the dataset gives and asks when nothing happens to it."""

    questions: frozenset[str]
    versions: dict[str, str]


def dataset(place: Place) -> None:
    # Made-up rows often resemble each other; what is proved here is not the screening.
    place.dataset(**SETTINGS).edit("validate.near_duplicate", 1.0)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    with running_server() as server:
        place = Place.make(tmp_path_factory.mktemp("calm"))
        dataset(place)
        ran = place.run(server)
        assert ran.code == 0, ran.errors
        assert max(answered(server).values()) == 1
        questions = frozenset(answered(server))
        return Undisturbed(questions, versions_of(place.statuses(server)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_kills_lose_nothing_and_cost_what_was_in_flight(
    tmp_path: Path, calm: Undisturbed, seed: int
) -> None:
    place = Place.make(tmp_path / "killed")
    dataset(place)
    with running_server(latency_s=LATENCY_S) as server:
        trial = Trial(place, server)
        struck = [trial.strike(moment) for moment in moments(seed, len(calm.questions))]
        last = place.run(server)
        assert last.code == 0, last.errors
        quiet(server)

        # A run may be through before the very last blow.
        assert struck[:-1] == [True] * (KILLS - 1)
        assert sum(bool(lost) for lost in trial.hits) >= KILLS // 3, "calls in flight were hit"
        # Everything the undisturbed run asks is answered and kept, and nothing else.
        answers = answered(server)
        assert set(answers) == calm.questions == set(place.bought())
        # A request is asked again exactly as often as a kill took it from flight.
        taken = Counter(name for lost in trial.hits for name in lost)
        assert Counter(asked(server)) == Counter(calm.questions) + taken
        # In flight, or answered and on the way to the disk while others took their places.
        assert all(len(lost) <= 2 * CONCURRENCY for lost in trial.hits)
        statuses = place.statuses(server)
        again = place.run(server)
    assert {stage["status"] for stage in statuses.values()} == {"fresh"}
    assert versions_of(statuses) == calm.versions
    assert (again.code, again.json["ran"]) == (0, [])
    rows = place.table(versions_of(statuses), "synthetic")
    assert rows.group_by("label").len()["len"].to_list() == [ROWS, ROWS, ROWS]
    assert rows["record_id"].n_unique() == rows.height
    assert only_hidden_files_are_left(place, versions_of(statuses))


def only_hidden_files_are_left(place: Place, versions: dict[str, str]) -> bool:
    """Tables and releases are those that stand; what a kill left in their folders is hidden."""
    store = place.home / "store" / "tickets"
    for stage, version in versions.items():
        if stage != "source":
            names = {path.name for path in (store / stage).iterdir() if path.name[0] != "."}
            assert names == {f"{version}.parquet", f"{version}.sha256"}, stage
    releases = place.home / "releases" / "tickets"
    current = (releases / "current").read_text().strip()
    return {path.name for path in releases.iterdir() if path.name[0] != "."} == {"current", current}
