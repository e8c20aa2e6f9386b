"""No byte of a release or a stored table changes unseen, and damage is a finding, not a crash."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from synth_assets.store.content import ContentStore, checksum_path
from synth_assets.store.releases import ReleaseStore
from synth_assets.store.verify import Problem, verify_pointer, verify_release, verify_store
from tests.release_support import Place, flipped
from tests.test_run import run, synth

pytest_plugins = ["tests.release_fixtures"]

FLIPS = 100
ROWS = pl.DataFrame({"a": range(1000)})


def everything(released: Place) -> list[Problem]:
    """All that is wrong with the store and the releases."""
    releases = ReleaseStore(released.home / "releases")
    return [
        *(p for v in releases.versions("tickets") for p in verify_release(released.releases / v)),
        *verify_pointer(releases, "tickets"),
        *verify_store(ContentStore(released.home / "store")).problems,
    ]


def files_of(released: Place) -> list[Path]:
    folders = (released.releases, released.home / "store")
    found = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    return [path for path in found if path.stat().st_size]


def test_a_home_as_it_was_made_is_all_good(released: Place) -> None:
    found = synth("verify", "--json")
    assert found.code == 0, found.result.output
    assert found.json["problems"] == []
    assert found.json["releases"] == 2
    assert found.json["tables"] > 20
    assert "all good" in synth("verify", "tickets", "--release", "current").result.stdout


@pytest.mark.slow
def test_a_flipped_byte_of_any_file_is_found_a_hundred_times_out_of_a_hundred(
    released: Place,
) -> None:
    rng, files = random.Random(20), files_of(released)
    assert {path.suffix for path in files} >= {".parquet", ".sha256", ".json", ".md", ".yaml"}
    # Every file once, whatever else is struck.
    assert {"current", "manifest.json", "README.md"} <= {path.name for path in files}
    again = rng.choices(files, k=max(0, FLIPS - len(files)))
    for path in [*rng.sample(files, len(files)), *again]:
        at = rng.randrange(path.stat().st_size)
        before = flipped(path, at, mask=rng.randrange(1, 256))
        told = [problem.file for problem in everything(released)]
        assert told, f"byte {at} of {path}"
        same = (path.name, path.with_suffix(".parquet").name)
        assert any(Path(file).name in same for file in told)
        path.write_bytes(before)
    assert everything(released) == []


@pytest.mark.parametrize("name", ["manifest.json", "train.parquet", "README.md"])
def test_the_command_names_the_flipped_file_and_ends_with_1(released: Place, name: str) -> None:
    path = released.releases / released.current / name
    flipped(path, path.stat().st_size // 2)
    found = synth("verify", "tickets")
    assert found.code == 1
    assert str(path) in found.result.stdout
    assert "expected" in found.result.stdout
    assert "Traceback" not in found.result.output


def test_cut_missing_and_extra_files_of_a_release_are_found(released: Place) -> None:
    folder = released.releases / released.current
    (folder / "eval.parquet").unlink()
    (folder / "notes.txt").write_text("mine")
    train = folder / "train.parquet"
    train.chmod(0o644)
    train.write_bytes(train.read_bytes()[:-1])
    told = {Path(p.file).name: p for p in verify_release(folder)}
    assert set(told) == {"eval.parquet", "notes.txt", "train.parquet"}
    assert told["eval.parquet"].found == "nothing"
    assert told["notes.txt"].expected == "nothing"


def test_a_manifest_that_was_rewritten_to_fit_does_not_fit_its_folder(released: Place) -> None:
    import orjson

    from synth_assets.lifecycle.release import manifest_bytes, version_of

    path = released.releases / released.current / "manifest.json"
    made = orjson.loads(path.read_bytes())
    made["contribution"]["verdict"] = "helps"
    made["version"] = version_of(made)
    path.chmod(0o644)
    path.write_bytes(manifest_bytes(made))
    assert [p.expected for p in verify_release(path.parent)] == [
        f"content of version {released.current}"
    ]


def test_rows_are_compared_with_the_data_version_and_not_with_bytes_alone(released: Place) -> None:
    table = released.table("train", released.current)
    pl.read_parquet(table).reverse().write_parquet(table)
    checksum_path(table).unlink()
    found = verify_store(ContentStore(released.home / "store"))
    assert [(p.file, p.expected) for p in found.problems] == [
        (str(table), f"rows of data version {table.stem}")
    ]
    assert found.healed == []


def test_what_a_release_or_the_graph_refers_to_and_is_gone_is_found(released: Place) -> None:
    first, second = released.versions
    old, new = released.table("plan", first), released.table("train", second)
    for path in (old, new):
        path.unlink()
        checksum_path(path).unlink()
    told = {p["file"]: p["expected"] for p in synth("verify", "--json").json["problems"]}
    assert set(told) == {str(old), str(new)}
    assert f"release {first}" in told[str(old)]
    assert synth("verify", "--no-store").code == 0


def test_a_pointer_to_nothing_is_found(released: Place) -> None:
    (released.releases / "current").write_text("0123456789abcdef\n")
    found = synth("verify", "--json")
    assert found.code == 1
    assert [Path(p["file"]).name for p in found.json["problems"]] == ["current"]


def test_a_file_that_is_no_table_is_found(released: Place) -> None:
    (released.home / "store" / "tickets" / "train" / "copy.parquet").write_bytes(b"x")
    assert [Path(p.file).name for p in everything(released)] == ["copy.parquet"]


def test_an_unknown_dataset_or_release_is_a_usage_error(released: Place) -> None:
    assert synth("verify", "nope").code == 2
    assert synth("verify", "tickets", "--release", "zz").code == 2
    assert synth("verify", "--release", "current").code == 2


# --- tables and their checksums -------------------------------------------------------------------


def test_a_table_without_a_checksum_gets_one_when_its_rows_are_right(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    loaded = ROWS.with_columns(_load_id=pl.lit("x"))
    path = store.put("d", "s", loaded, volatile=["_load_id"]).path
    before = checksum_path(path).read_bytes()
    checksum_path(path).unlink()
    assert verify_store(store).healed == [str(checksum_path(path))]
    assert checksum_path(path).read_bytes() == before


def test_damage_without_a_checksum_is_a_finding_or_no_damage_to_the_rows(tmp_path: Path) -> None:
    store, rng = ContentStore(tmp_path), random.Random(4)
    path = store.put("d", "s", ROWS).path
    good, found = path.read_bytes(), 0
    for _ in range(60):
        checksum_path(path).unlink(missing_ok=True)
        flipped(path, rng.randrange(len(good)), mask=1 << rng.randrange(8))
        checked = verify_store(store)
        assert bool(checked.problems) != bool(checked.healed)
        found += bool(checked.problems)
        path.write_bytes(good)
    assert found > 30


KILLED = """
import os, sys, polars as pl
from pathlib import Path
from synth_assets.store import content
content.write_checksum = lambda path: os._exit(9)
content.ContentStore(Path(sys.argv[1])).put("d", "s", pl.DataFrame({"a": range(1000)}))
"""


@pytest.mark.parametrize("mended_by", ["put", "verify"])
def test_a_kill_between_table_and_checksum_is_mended(tmp_path: Path, mended_by: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == 9
    store = ContentStore(tmp_path)
    (path,) = (tmp_path / "d" / "s").glob("*.parquet")
    assert not checksum_path(path).exists()
    if mended_by == "put":
        store.put("d", "s", ROWS)
    else:
        assert verify_store(store).healed
    assert checksum_path(path).exists()
    assert verify_store(store).problems == []


def test_a_damaged_table_is_written_anew_by_the_next_put(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    path = store.put("d", "s", ROWS).path
    flipped(path, 200)
    assert verify_store(store).problems
    store.put("d", "s", ROWS)
    assert verify_store(store).problems == []


WRITER = """
import sys, polars as pl
from pathlib import Path
from synth_assets.store.content import ContentStore
for turn in range(20):
    frame = pl.DataFrame({"a": range(turn, turn + 50), "_load_id": [sys.argv[2]] * 50})
    ContentStore(Path(sys.argv[1])).put("d", "s", frame, volatile=["_load_id"])
"""


def test_writers_of_one_content_leave_tables_that_fit_their_checksums(tmp_path: Path) -> None:
    # Their files differ in a volatile column, hence in bytes.
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name * 9]) for name in "xyz"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = verify_store(ContentStore(tmp_path))
    assert (found.tables, found.problems, found.healed) == (20, [], [])


def test_a_damaged_stage_is_mended_by_forcing_it(released: Place) -> None:
    flipped(released.table("human_train", released.current), 500)
    assert synth("verify").code == 1
    ran = run("tickets", "--force", "human_train")
    assert ran.code == 0, ran.errors
    assert synth("verify").code == 0
