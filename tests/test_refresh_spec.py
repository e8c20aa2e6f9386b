"""The ``refresh`` section: what it refuses, what it shapes, and what a person is told of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synth_assets.errors import SpecError
from synth_assets.refresh.memory import Remembered
from synth_assets.refresh.schedule import next_tick, owed, served
from synth_assets.spec.fingerprint import SHAPES, code_version
from synth_assets.spec.load import Dataset, load_dataset
from synth_assets.spec.refresh import Refresh, duration
from tests.automation import location
from tests.datasets import DatasetFolder
from tests.test_run import synth


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    found = DatasetFolder(tmp_path / "tickets")
    found.write()
    return found


def loaded(folder: DatasetFolder, **refresh: Any) -> Dataset:
    folder.edit("refresh", refresh)
    found = load_dataset(folder.folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("refresh", "key", "words"),
    [
        ({"cron": "0 5 * *"}, "refresh.cron", ["'0 5 * *'", "day of week"]),
        ({"cron": "0 25 * * *"}, "refresh.cron", ["'0 25 * * *'"]),
        ({"cron": "0 0 30 2 *"}, "refresh.cron", ["'0 0 30 2 *'"]),
        ({"cron": "0 5 * * 1", "timezone": "Berlin"}, "refresh.timezone", ["Europe/Berlin"]),
        ({"timezone": "UTC"}, "refresh.timezone", ["together with cron"]),
        ({"generate": "scheduled"}, "refresh.generate", ["needs a schedule", "add cron"]),
        ({"generate": "on_change"}, "refresh.generate", ["nothing is ever refreshed"]),
        ({"observe_every": "15"}, "refresh.observe_every", ["15m"]),
        ({"observe_every": "0m"}, "refresh.observe_every", ["15m"]),
        ({"fresh_within": "30s"}, "refresh.fresh_within", ["at least 1m"]),
        ({"policy": "always"}, "refresh.policy", ["'on_change' or 'manual'"]),
        ({"polcy": "manual"}, "refresh.polcy", ["did you mean policy?"]),
    ],
)
def test_a_mistake_is_told_with_its_line_its_value_and_its_fix(
    folder: DatasetFolder, refresh: dict[str, str], key: str, words: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        loaded(folder, **refresh)
    (problem,) = caught.value.problems
    lines = folder.defs_file.read_text().splitlines()
    assert problem.key == key
    assert lines[problem.line - 1].strip().startswith(key.rpartition(".")[2])
    assert all(word in str(problem) for word in words), str(problem)


def test_nothing_is_automatic_unless_it_is_declared(folder: DatasetFolder) -> None:
    found = load_dataset(folder.folder)
    assert found is not None
    assert (found.spec.refresh.policy, found.spec.refresh.generate) == ("manual", "manual")
    assert not found.spec.refresh.active
    # A policy alone never makes a paid call.
    assert loaded(folder, policy="on_change").spec.refresh.generate == "manual"


def test_refreshing_shapes_no_stage(folder: DatasetFolder) -> None:
    def codes(**refresh: str) -> dict[str, str]:
        dataset = loaded(folder, **refresh)
        return {stage: code_version(dataset, stage) for stage in SHAPES}

    assert codes() == codes(
        policy="on_change",
        generate="scheduled",
        cron="0 5 * * 1",
        timezone="Europe/Berlin",
        fresh_within="7d",
        observe_every="1h",
    )


def test_durations_have_a_unit() -> None:
    assert [duration(text) for text in ("90s", "15m", "6h", "7d", "2w")] == [
        timedelta(seconds=90),
        timedelta(minutes=15),
        timedelta(hours=6),
        timedelta(days=7),
        timedelta(weeks=2),
    ]


# --- ticks ----------------------------------------------------------------------------------------

MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def test_a_tick_is_owed_until_it_is_served_and_missed_ones_are_one() -> None:
    weekly = Refresh(cron="0 5 * * 1")
    known, tick = owed(weekly, Remembered(), MONDAY)
    assert tick is None  # first seen now: this morning's tick is nobody's
    known, tick = owed(weekly, known, MONDAY + 6 * DAY)
    assert tick is None
    known, tick = owed(weekly, known, MONDAY + 22 * DAY)
    assert tick == datetime(2026, 3, 23, 5, tzinfo=UTC).timestamp()
    assert owed(weekly, known, MONDAY + 22 * DAY)[1] == tick
    known = served(known, tick)
    assert owed(weekly, known, MONDAY + 27 * DAY)[1] is None


def test_another_schedule_starts_anew() -> None:
    known, _ = owed(Refresh(cron="0 5 * * 1"), Remembered(), MONDAY)
    known, tick = owed(Refresh(cron="0 6 * * *"), known, MONDAY + 3 * DAY)
    assert tick is None
    assert owed(Refresh(cron="0 6 * * *"), known, MONDAY + 4 * DAY)[1] is not None


def test_ticks_are_in_the_declared_time_zone() -> None:
    berlin = Refresh(cron="0 5 * * *", timezone="Europe/Berlin")
    summer = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
    assert next_tick(berlin, summer) == datetime(2026, 7, 2, 3, tzinfo=UTC)
    assert next_tick(berlin, MONDAY) == datetime(2026, 3, 3, 4, tzinfo=UTC)


# --- Dagster and the terminal -----------------------------------------------------------------


def test_a_release_that_must_stay_young_is_watched_by_dagster(tickets: DatasetFolder) -> None:
    tickets.edit("refresh", {"fresh_within": "7d"})
    graph = location().get_repository_def().asset_graph
    policies = {
        stage: graph.get(dg.AssetKey(["tickets", stage])).freshness_policy
        for stage in ("release", "train")
    }
    assert policies == {"release": dg.FreshnessPolicy.time_window(timedelta(days=7)), "train": None}


def test_the_status_says_what_automation_would_do_and_why_it_holds(tickets: DatasetFolder) -> None:
    assert "refresh: manual; nothing runs by itself" in synth("status", "tickets").result.stdout
    tickets.edit("refresh", {"policy": "on_change", "generate": "scheduled", "cron": "0 5 * * 1"})
    found = synth("status", "tickets", "--json").json["refresh"]
    assert (found["policy"], found["generate"]) == ("on_change", "scheduled")
    assert found["next"][0] == "human_raw"
    assert "candidates" not in found["next"]
    assert found["held"]["candidates"] == f"waits for {found['next_tick']}"
    assert found["sensor"] == "never"
    told = synth("status", "tickets").result.stdout.replace("\n", " ")
    assert "next: human_raw" in told
    assert "no daemon has looked yet" in told


def test_the_status_of_a_manual_policy_with_a_cron_waits_for_it(tickets: DatasetFolder) -> None:
    tickets.edit("refresh", {"cron": "0 5 * * 1"})
    found = synth("status", "tickets", "--json").json["refresh"]
    assert found["next"] == []
    assert found["held"]["human_raw"] == "waits for the next tick"
