"""When the sensor looks at sources: local files by their stat, others now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from synth_assets.assets import source as sources
from synth_assets.refresh import files, looking, sensor
from synth_assets.refresh.files import stats
from synth_assets.refresh.looking import Look, due, lies
from synth_assets.refresh.memory import read
from synth_assets.settings import home
from synth_assets.sources import http
from synth_assets.spec.load import Dataset, load_dataset
from tests.automation import Automation
from tests.datasets import DatasetFolder, human_rows
from tests.source_server import Answer, Asked, Server, as_json, serving

DAY = 86400.0
ROWS = human_rows()
UP_TO_THE_PLAN = {"policy": "on_change", "generate": "manual"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.0)
    monkeypatch.setattr(files, "SETTLED_AFTER_S", 0.2)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.respond = lambda asked: as_json(ROWS)
        yield running


@pytest.fixture
def instance(synth_home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as found:
        yield found


def api(folder: Path, server: Server, **refresh: Any) -> DatasetFolder:
    """A dataset whose source is the server, under automation up to the plan."""
    dataset = DatasetFolder(folder)
    dataset.attributes["source"] = {"kind": "rest", "base_url": server.url, "retries": 0}
    dataset.attributes["refresh"] = UP_TO_THE_PLAN | refresh
    dataset.write()
    return dataset


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    moment = time.time() + seconds
    monkeypatch.setattr(sensor, "clock", lambda: moment)


def version(instance: dg.DagsterInstance, name: str) -> str | None:
    records = instance.fetch_observations(dg.AssetKey([name, "source"]), limit=1).records
    observed = records[0].asset_observation if records else None
    return (observed.tags or {}).get("dagster/data_version") if observed else None


def loaded(folder: DatasetFolder) -> Dataset:
    found = load_dataset(folder.folder)
    assert found is not None
    return found


def test_an_api_is_asked_every_so_often_and_not_every_tick(
    instance: dg.DagsterInstance, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    api(synth_home.parent / "defs" / "tickets", server, observe_every="15m")
    automation = Automation(instance)
    for _ in range(3):
        assert automation.tick().stages["tickets"][0] == "human_raw"
    assert len(server.asked) == 1
    first = version(instance, "tickets")
    server.respond = lambda asked: as_json(ROWS[:-1])
    later(monkeypatch, 14 * 60)
    automation.tick()
    assert (len(server.asked), version(instance, "tickets")) == (1, first)
    later(monkeypatch, 16 * 60)
    automation.tick()
    assert len(server.asked) == 2
    assert version(instance, "tickets") not in (None, first)


def test_a_source_that_cannot_be_reached_holds_up_nobody_else_and_is_not_hammered(
    instance: dg.DagsterInstance, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.respond = lambda asked: Answer(status=503)
    api(synth_home.parent / "defs" / "down", server)
    fine = DatasetFolder(synth_home.parent / "defs" / "fine")
    fine.attributes["refresh"] = dict(UP_TO_THE_PLAN)
    fine.write()
    automation = Automation(instance)
    for _ in range(3):
        looked = automation.tick()
        assert set(looked.stages) == {"fine"}
    assert len(server.asked) == 1
    for request in looked.requests:
        automation.work(request)
    held = automation.tick()
    assert "down: held: human_raw (the source cannot be seen: " in held.message
    server.respond = lambda asked: as_json(ROWS)
    later(monkeypatch, 16 * 60)
    assert set(automation.tick().stages) == {"down"}
    assert len(server.asked) == 2


def test_a_tick_of_the_schedule_looks_at_once(
    instance: dg.DagsterInstance, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    daily = {"policy": "manual", "cron": "0 5 * * *", "observe_every": "2w"}
    api(synth_home.parent / "defs" / "tickets", server, **daily)
    automation = Automation(instance)
    assert automation.tick().requests == []
    assert server.asked == []
    for day in (1, 2):
        later(monkeypatch, day * DAY)
        for _ in range(2):
            automation.tick()
        assert len(server.asked) == day


def test_a_source_that_takes_long_delays_its_own_dataset_only(
    instance: dg.DagsterInstance, synth_home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "PATIENCE_S", 0.2)
    answer = threading.Event()

    def slow(asked: Asked) -> Answer:
        answer.wait(30)
        return as_json(ROWS)

    server.respond = slow
    api(synth_home.parent / "defs" / "slow", server)
    fine = DatasetFolder(synth_home.parent / "defs" / "fine")
    fine.attributes["refresh"] = dict(UP_TO_THE_PLAN)
    fine.write()
    automation = Automation(instance)
    for _ in range(2):
        assert set(automation.tick().stages) == {"fine"}
    assert len(server.asked) == 1
    answer.set()
    while version(instance, "slow") is None:
        stages = automation.tick().stages
    assert set(stages) == {"fine", "slow"}
    assert len(server.asked) == 1


def test_what_was_seen_is_remembered_by_another_process(
    instance: dg.DagsterInstance, synth_home: Path, server: Server
) -> None:
    api(synth_home.parent / "defs" / "tickets", server)
    automation = Automation(instance)
    automation.tick()
    # A code location that was reloaded has nothing but the cursor.
    again = Automation(instance, cursor=automation.cursor)
    again.tick()
    assert len(server.asked) == 1


def test_a_local_file_is_hashed_when_its_stat_changed_and_not_else(
    instance: dg.DagsterInstance, tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.edit("refresh", UP_TO_THE_PLAN)
    hashed: list[str] = []
    real = sources.source_versions
    monkeypatch.setattr(
        looking, "source_versions", lambda d, h: (hashed.append(d.name), real(d, h))[1]
    )
    settled(tickets.folder / "human.csv")
    automation = Automation(instance)
    for _ in range(3):
        automation.tick()
    assert hashed == ["tickets"]
    (tickets.folder / "human.csv").touch()
    automation.tick()
    assert hashed == ["tickets"] * 2


def test_a_file_too_young_to_be_trusted_is_hashed_again(
    tickets: DatasetFolder, synth_home: Path
) -> None:
    path, dataset = tickets.folder / "human.csv", loaded(tickets)
    path.touch()
    looked = looking.Looker().look([dataset], home(), time.time())["tickets"].look
    assert due(dataset, looked, now=time.time(), tick=None)
    settled(path)
    looked = looking.Looker().look([dataset], home(), time.time())["tickets"].look
    assert not due(dataset, looked, now=time.time(), tick=None)


def test_a_file_that_is_gone_is_a_problem_that_is_told_once_it_is_back_it_is_seen(
    instance: dg.DagsterInstance, tickets: DatasetFolder
) -> None:
    tickets.edit("refresh", UP_TO_THE_PLAN)
    path = tickets.folder / "human.csv"
    body = path.read_bytes()
    path.unlink()
    automation = Automation(instance)
    for _ in range(2):
        looked = automation.tick()
        assert looked.requests == []
        assert "the source cannot be seen: no file matches 'human.csv'" in looked.message
    path.write_bytes(body)
    assert automation.tick().stages["tickets"][0] == "human_raw"


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ({"kind": "files", "path": "human.csv"}, "here"),
        ({"kind": "files", "path": "https://127.0.0.1/human.csv"}, "elsewhere"),
        ({"kind": "huggingface", "repo": "a/b", "path": "x.csv"}, "elsewhere"),
        ({"kind": "huggingface", "repo": "a/b", "path": "x", "revision": "0" * 40}, "pinned"),
        ({"kind": "sql", "url_env": "DB", "table": "t"}, "elsewhere"),
        (
            {"kind": "package", "package": "a==1", "sha256": "0" * 64, "member": "x.csv"},
            "pinned",
        ),
    ],
)
def test_pinned_sources_are_looked_at_once(
    tickets: DatasetFolder, source: dict[str, Any], where: str
) -> None:
    tickets.attributes["refresh"] = {"policy": "on_change"}
    tickets.edit("source", source)
    dataset = loaded(tickets)
    assert lies(dataset.spec.human_sources[0]) == where
    now = time.time()
    looked = Look(looking.declared_mark(dataset), looking.files_mark(dataset), at=now - DAY)
    assert due(dataset, looked, now=now, tick=None) == (where == "elsewhere")
    assert due(dataset, None, now=now, tick=None)
    tickets.edit("source", source | {"license": "CC0-1.0"})
    assert due(loaded(tickets), looked, now=now, tick=None)


@pytest.mark.parametrize("cursor", [None, "", "{", "[]", '{"tickets": 1}', '{"tickets": {}}'])
def test_a_cursor_that_cannot_be_read_is_an_empty_one(cursor: str | None) -> None:
    assert read(cursor) == {}


def settled(path: Path) -> None:
    """Waits until the file is old enough to be trusted by its stat."""
    while not stats([path]).settled(time.time()):
        time.sleep(0.01)
