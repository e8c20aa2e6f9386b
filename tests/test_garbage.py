"""What nothing needs can go; what a release, the graph or a run needs never does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.storage.dagster_run import DagsterRun
from filelock import FileLock

from synth_assets import underway
from synth_assets.settings import Home
from synth_assets.store.content import ContentStore, checksum_path
from synth_assets.store.garbage import find_garbage, remove
from tests.datasets import DatasetFolder
from tests.release_support import Place
from tests.test_run import run, synth

pytest_plugins = ["tests.release_fixtures"]


def unneeded(released: Place, stage: str = "plan", rows: int = 3) -> Path:
    """A table that nothing refers to."""
    store = ContentStore(released.home / "store")
    return store.put("tickets", stage, pl.DataFrame({"n": range(rows)})).path


def aged(path: Path, seconds: float = 7200) -> Path:
    moment = time.time() - seconds
    for one in (*(path.rglob("*") if path.is_dir() else ()), path):
        os.utime(one, (moment, moment))
    return path


def tree(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.endswith("lock"))
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_nothing_that_a_release_or_the_graph_needs_is_garbage(released: Place) -> None:
    found = synth("gc", "--json")
    assert (found.code, found.json["items"]) == (0, [])


def test_without_yes_nothing_is_deleted_and_with_it_only_what_was_listed(released: Place) -> None:
    before = tree(released.home)
    path = unneeded(released)
    size = path.stat().st_size + checksum_path(path).stat().st_size
    listed = synth("gc", "tickets", "--json").json
    assert [(i["path"], i["kind"], i["bytes"]) for i in listed["items"]] == [
        (str(path), "table", size)
    ]
    assert listed["deleted"] is False
    assert path.exists()
    assert "would go" in synth("gc").result.stdout
    assert synth("gc", "--yes", "--json").json["items"] == listed["items"]
    assert tree(released.home) == before
    assert synth("verify").code == 0
    assert run().json["ran"] == []


def test_tables_of_a_release_stay_when_the_graph_has_moved_on(released: Place) -> None:
    first, _ = released.versions
    shutil.rmtree(released.releases / first)
    gone = {Path(item["path"]) for item in synth("gc", "--json").json["items"]}
    assert released.table("train", released.current) not in gone
    assert {path.parent.name for path in gone} >= {"plan", "candidates", "train"}
    assert not {path.parent.name for path in gone} & {"human_raw", "holdout", "eval"}


def test_the_newest_tables_of_a_stage_can_be_kept(released: Place) -> None:
    newest = unneeded(released, rows=4)
    oldest = aged(unneeded(released, rows=3))
    items = synth("gc", "--json", "--keep-last", "1").json["items"]
    assert [item["path"] for item in items] == [str(oldest)]
    assert newest.exists()


def test_what_killed_processes_left_goes_after_an_hour(released: Place) -> None:
    stage = released.home / "store" / "tickets" / "plan"
    landing = released.home / "landing" / "tickets"
    left = [
        stage / ".abc.parquet.x1.tmp",
        released.releases / ".0123456789abcdef.k2",
        released.releases / ".current.k3.tmp",
        landing / ".load-k4",
        landing / ".spill-99-k5",
    ]
    for path in left:
        if path.suffix == ".tmp":
            path.write_bytes(b"half")
        else:
            path.mkdir()
            (path / "part").write_bytes(b"half")
    assert synth("gc", "--json").json["items"] == []
    for path in left:
        aged(path)
    busy = FileLock(landing / "lock")
    with busy:  # a load is under way: its folder may be old and still in use
        gone = synth("gc", "--yes", "--json").json["items"]
    assert {item["path"] for item in gone} == {str(path) for path in left[:3]}
    assert {i["path"] for i in synth("gc", "--yes", "--json").json["items"]} == set(
        map(str, left[3:])
    )
    assert (landing / "landed.duckdb").exists()


def test_a_table_that_came_into_use_after_the_listing_stays(released: Place) -> None:
    path, home = unneeded(released), Home(released.home)
    aged(path)
    listed_at = time.time() - 60
    found = find_garbage(home, "tickets", needed=[])
    assert unneeded(released) == path  # a run made the same content once more
    assert path not in {one.path for one in remove(home, found, listed_at=listed_at)}
    assert path.exists()


def test_a_dataset_with_a_run_under_way_is_refused(released: Place) -> None:
    unneeded(released)
    with dg.DagsterInstance.get() as instance:
        started = DagsterRun(
            job_name="x",
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({dg.AssetKey(["tickets", "plan"])}),
        )
        instance.add_run(started)
        refused = synth("gc", "--yes", "--json")
        assert refused.code == 3
        assert refused.json["items"] == []
        assert started.run_id[:8] in refused.json["refused"]["tickets"]
        instance.delete_run(started.run_id)
    assert len(synth("gc", "--yes", "--json").json["items"]) == 1


def test_a_killed_run_holds_nobody_up_and_one_of_unknown_end_only_for_an_hour_of_silence(
    released: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    unneeded(released)
    prompt = released.dataset / "prompt.md.j2"
    prompt.write_text("Unheard of.\n" + prompt.read_text())
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        code = "import sys; from synth_assets.cli import main; main(sys.argv[1:])"
        running = subprocess.Popen(
            [sys.executable, "-c", code, "run", "tickets"],
            env=os.environ | {"OPENAI_BASE_URL": url},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        mute.settimeout(60)
        connection, _ = mute.accept()  # it asks: the run is in the middle of generation
        with connection:
            assert synth("gc", "tickets").code == 3
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert synth("gc", "tickets").code == 0
    # As a run that a code server executed: who it was is not written down.
    monkeypatch.setattr(underway, "has_ended", lambda name: False)
    assert synth("gc", "tickets").code == 3
    monkeypatch.setattr(underway, "SILENT_S", 0.0)
    assert synth("gc", "tickets").code == 0


def test_another_dagster_instance_is_no_reason_to_delete_everything(
    released: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(released.releases)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    before = tree(released.home)
    found = synth("gc", "--yes", "--json")
    assert found.code == 3
    assert "knows nothing of it" in found.json["refused"]["tickets"]
    assert tree(released.home) == before


def test_a_dataset_that_is_declared_nowhere_is_left_alone_unless_asked_for(
    released: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "no datasets"
    empty.mkdir()
    monkeypatch.setenv("SYNTH_DEFS", str(empty))
    path = unneeded(released)
    assert synth("gc", "--yes", "--json").json["items"] == []
    named = synth("gc", "tickets", "--yes")
    assert named.code == 3
    assert "--orphans" in named.errors
    gone = synth("gc", "--yes", "--orphans", "--json").json["items"]
    assert str(path) in {item["path"] for item in gone}
    assert not (released.home / "landing" / "tickets").exists()
    # Both releases can still be verified, with every table that they were made of.
    assert synth("verify").code == 0
    assert (released.home / "ledger" / "ledger.sqlite").exists()


def test_a_dataset_whose_declaration_is_broken_is_left_alone(released: Place) -> None:
    unneeded(released)
    (released.dataset / "defs.yaml").write_text("type: [")
    for words in (("gc", "--yes", "--json"), ("gc", "--yes", "--orphans", "--json")):
        found = synth(*words)
        assert found.code == 3
        assert found.json["items"] == []
        assert "broken" in found.json["refused"]["tickets"]


def test_one_dataset_is_cleared_without_touching_another(released: Place) -> None:
    other = DatasetFolder(released.root / "defs" / "other")
    other.write()
    assert run("other", "--until", "human").code == 0
    store = ContentStore(released.home / "store")
    theirs = store.put("other", "human", pl.DataFrame({"n": [1]})).path
    mine = unneeded(released)
    items = synth("gc", "tickets", "--yes", "--json").json["items"]
    assert [item["path"] for item in items] == [str(mine)]
    assert theirs.exists()
    assert synth("gc", "nothing").code == 2


def test_a_checksum_without_its_table_goes(released: Place) -> None:
    path = unneeded(released)
    path.unlink()
    assert synth("verify").code == 1
    assert synth("gc", "--yes").code == 0
    assert synth("verify").code == 0
