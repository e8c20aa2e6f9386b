"""`synth export`: a verified release becomes whole, repeatable files, or one clear error."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from synth_assets.cli import main
from synth_assets.commands import export as cli_export
from synth_assets.exports import formats, source, tabular
from synth_assets.store.digest import file_sha256
from synth_assets.store.releases import ReleaseStore
from tests.datasets import DatasetFolder
from tests.openai_server import running_server
from tests.releases import publish, rows

SPACY = importlib.util.find_spec("spacy") is not None
ALL = [name for name in formats.FORMATS if name != "spacy" or SPACY]


def synth(*words: str) -> Result:
    return CliRunner().invoke(main, [*words], catch_exceptions=False)


def exported(*words: str) -> dict[str, Any]:
    result = synth("export", "tickets", "--json", *words)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def failed(*words: str) -> tuple[int, str]:
    result = synth("export", *words)
    assert result.exit_code != 0
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stderr


def every(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--format", name)]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below ``folder``, hidden files too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def release(synth_home: Path) -> Path:
    return publish(synth_home / "releases")


def test_every_format_is_written_with_a_record_of_its_files(
    release: Path, synth_home: Path
) -> None:
    found = exported(*every(ALL))
    assert found["release"] == release.name
    assert [made["format"] for made in found["exports"]] == ALL
    for made in found["exports"]:
        folder = Path(made.pop("folder"))
        assert folder == synth_home / "exports" / "tickets" / release.name / made["format"]
        assert json.loads((folder / "export.json").read_bytes()) == made
        assert made["rows"] == {
            split: pl.read_parquet(release / f"{split}.parquet").height for split in source.SPLITS
        }
        there = contents(folder)
        assert set(made["files"]) | {"export.json"} == set(there)
        assert all(file_sha256(folder / name) == sha for name, sha in made["files"].items())


def test_the_parquet_export_is_the_release_to_the_byte(release: Path) -> None:
    (made,) = exported()["exports"]
    manifest = json.loads((release / "manifest.json").read_bytes())
    assert made["files"] == {
        name: manifest["files"][name]["sha256"]
        for name in ("train.parquet", "validation.parquet", "eval.parquet")
    }


def test_a_real_run_can_be_exported(
    tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        assert "run: synth run tickets" in failed("tickets")[1]
        assert synth("run", "tickets", "--json").exit_code == 0
    found = exported(*every(ALL))
    assert {made["rows"]["train"] for made in found["exports"]} == {102}
    lines = (Path(found["exports"][2]["folder"]) / "train.jsonl").read_text().splitlines()
    made = [row for row in map(json.loads, lines) if row["origin"] == "synthetic"]
    assert len(made) == 60
    assert all(isinstance(row["seed_ids"], list) for row in made)


def test_what_is_exported_can_be_chosen(release: Path, tmp_path: Path) -> None:
    found = exported("--split", "eval", "--split", "train", "--out", str(tmp_path / "x" / "y"))
    assert list(found["exports"][0]["rows"]) == ["train", "eval"]
    assert sorted(contents(tmp_path / "x")) == [
        "y/parquet/eval.parquet",
        "y/parquet/export.json",
        "y/parquet/train.parquet",
    ]


def test_lines_for_people_say_where_and_how_many(release: Path) -> None:
    result = synth("export", "tickets", "--format", "csv", "--split", "eval")
    assert result.stdout.startswith("csv: ")
    assert result.stdout.endswith(f"/exports/tickets/{release.name}/csv (eval 40 rows)\n")


def test_current_latest_stored_and_a_version_are_three_things(synth_home: Path) -> None:
    releases = synth_home / "releases"
    old = publish(releases, {"train": rows(1)})
    new = publish(releases, {"train": rows(2)})
    for place, folder in enumerate((old, new)):
        os.utime(folder / "manifest.json", (1_000 + place, 1_000 + place))
    (releases / "tickets" / "current").write_text(old.name + "\n")
    assert exported()["release"] == old.name
    assert exported("--release", "latest-stored")["release"] == new.name
    assert exported("--release", new.name)["release"] == new.name


def test_weights_that_a_format_cannot_say_are_counted(synth_home: Path) -> None:
    halved = pl.when(pl.col("origin") == "synthetic").then(0.5).otherwise(1.0)
    table = rows().head(6).with_columns(weight=halved)
    publish(synth_home / "releases", {"train": table})
    found = exported("--format", "openai_chat", "--format", "alpaca", "--format", "jsonl")
    chat, alpaca, jsonl = (made["notes"] for made in found["exports"])
    assert chat[0] == alpaca[0] == (
        "3 rows of train have a weight other than 1, which this format cannot say"
    )  # fmt: skip
    assert chat[1] == "train has 6 examples; OpenAI takes no file of fewer than 10"
    assert jsonl == []


# --- what cannot be exported ---


def test_without_a_release_the_error_says_how_to_make_one(tickets: DatasetFolder) -> None:
    code, errors = failed("tickets")
    assert code == 1
    assert errors == "tickets: nothing has been released yet\n  fix: run: synth run tickets\n"


def test_an_unknown_dataset_and_release_list_those_there_are(release: Path) -> None:
    code, errors = failed("no_such")
    assert (code, "no dataset named 'no_such'" in errors) == (2, True)
    code, errors = failed("tickets", "--release", "0" * 16)
    assert (code, release.name in errors) == (2, True)


@pytest.mark.parametrize(
    "name", ["../tickets", "..", "/etc", "a/b", ".tickets", "a\0b", "", "a\nb"]
)
def test_a_dataset_name_cannot_leave_the_folder(release: Path, tmp_path: Path, name: str) -> None:
    before = set(tmp_path.rglob("*"))
    code, errors = failed(name)
    assert code == 2
    assert "cannot be a dataset's name" in errors
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../other/{}", "..", "/etc", ".", "", "current/../{}", "{}/"])
def test_a_release_name_cannot_leave_the_folder(release: Path, synth_home: Path, name: str) -> None:
    shutil.copytree(release, synth_home / "releases" / "other" / release.name)
    code, errors = failed("tickets", "--release", name.format(release.name))
    assert (code, "no release" in errors) == (2, True)
    (release.parent / "current").write_text(name.format(release.name).rstrip("/") + "/.\n")
    assert failed("tickets")[0] == 2
    assert not (synth_home / "exports").exists()


@pytest.mark.parametrize("name", ["train.parquet", "eval.parquet", "contribution.parquet"])
@pytest.mark.parametrize("how", ["changed", "gone", "cut"])
def test_a_release_that_is_not_what_it_was_is_one_error(
    release: Path, synth_home: Path, name: str, how: str
) -> None:
    data = (release / name).read_bytes()
    if how == "gone":
        (release / name).unlink()
    else:
        (release / name).write_bytes(data[:-1] if how == "cut" else data[:-9] + b"x" + data[-8:])
    code, errors = failed("tickets", "--format", "csv", "--split", "validation")
    assert code == 1
    assert errors.startswith(str(release / name))
    assert errors.count("fix:") == 1
    assert not (synth_home / "exports").exists()


@pytest.mark.parametrize("edit", ["license", "dataset", "files", "not json", "a list"])
def test_an_edited_manifest_is_one_error(release: Path, edit: str) -> None:
    path = release / "manifest.json"
    manifest = json.loads(path.read_bytes())
    if edit == "license":
        manifest["declared"]["source"]["license"] = "MIT"
    elif edit == "dataset":
        manifest["dataset"] = "others"
    elif edit == "files":
        manifest["files"]["train.parquet"] = "0" * 64
    text = {"not json": "{", "a list": "[]"}.get(edit) or json.dumps(manifest)
    path.write_text(text)
    code, errors = failed("tickets")
    assert (code, errors.count("fix:")) == (1, 1)
    assert "the manifest" in errors


def test_a_manifest_of_another_time_is_said_to_be_one(release: Path) -> None:
    path = release / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"manifest_version": 2', b'"manifest_version": 99'))
    assert "a manifest of version 99, not 2" in failed("tickets")[1]


def test_a_declaration_that_cannot_be_read_stops_only_what_needs_it(synth_home: Path) -> None:
    from synth_assets.lifecycle.release import version_of

    folder = publish(synth_home / "releases")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["declared"]["task"]["kind"] = "another"
    manifest["version"] = version_of(manifest)
    files = {name: folder / name for name in manifest["files"]}
    ReleaseStore(synth_home / "releases").publish("tickets", manifest, files, {})
    exported("--format", "csv", "--format", "jsonl", "--format", "parquet")
    assert "does not know" in failed("tickets", "--format", "hf")[1]


# --- the same release, the same bytes ---


def in_a_process(out: Path, names: list[str], **environment: str) -> dict[str, bytes]:
    command = "from synth_assets.cli import main; main()"
    words = ["export", "tickets", "--out", str(out), *every(names)]
    subprocess.run(
        [sys.executable, "-c", command, *words], env={**os.environ, **environment}, check=True
    )
    return contents(out)


def test_the_same_release_gives_the_same_bytes_on_any_machine(
    synth_home: Path, tmp_path: Path
) -> None:
    publish(synth_home / "releases", {"train": rows(70_000)})
    names = [name for name in ALL if name != "spacy"]
    made = [
        in_a_process(tmp_path / threads, names, POLARS_MAX_THREADS=threads, PYTHONHASHSEED=threads)
        for threads in ("1", "4")
    ]
    assert made[0] == made[1]
    assert len(made[0]) > 15


@pytest.mark.skipif(not SPACY, reason="spaCy is not installed")
def test_docbins_are_the_same_bytes_too(release: Path, tmp_path: Path) -> None:
    made = [in_a_process(tmp_path / seed, ["spacy"], PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert made[0] == made[1]
    assert len(made[0]) == 4


# --- whole or not at all ---


def test_a_new_export_replaces_the_old_one_whole(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported("--format", "jsonl", "--out", str(out))
    exported("--format", "jsonl", "--out", str(out), "--split", "train")
    assert sorted(contents(out)) == ["jsonl/export.json", "jsonl/train.jsonl"]
    assert [path.name for path in out.iterdir()] == ["jsonl"]


def test_a_failing_export_leaves_the_old_one_and_nothing_else(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exported("--format", "jsonl", "--out", str(out))
    before = contents(out)
    real, calls = tabular.write_jsonl, []

    def full(rows: pl.LazyFrame, file: Path) -> None:
        calls.append(file)
        real(rows, file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(tabular, "write_jsonl", full)
    code, errors = failed("tickets", "--format", "jsonl", "--out", str(out))
    assert code == 1
    assert "No space left on device" in errors
    assert contents(out) == before
    assert [path.name for path in out.iterdir()] == ["jsonl"]


def test_a_refused_rename_puts_the_old_export_back(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exported("--format", "jsonl", "--out", str(out))
    before, real = contents(out), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert "Input/output error" in failed("tickets", "--format", "jsonl", "--out", str(out))[1]
    assert contents(out) == before
    assert [path.name for path in out.iterdir()] == ["jsonl"]


def test_a_killed_export_leaves_nothing_under_its_name(release: Path, tmp_path: Path) -> None:
    code = (
        "import os; from synth_assets.exports import tabular; from synth_assets.cli import main\n"
        "tabular.write_jsonl = lambda rows, file: os._exit(9)\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "export", "tickets", "--format", "jsonl", "--out", "out"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 9
    assert not (tmp_path / "out" / "jsonl").exists()
    exported("--format", "jsonl", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "jsonl" / "export.json").exists()


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        ("a file of mine", "it holds a file that the export did not write, 'notes.txt'"),
        ("an edit", "'train.jsonl' was changed after it was exported"),
        ("no record", "it holds no export.json that can be read"),
        ("another dataset", "it is an export of 'others' as 'jsonl'"),
        ("a link", "it is not a folder"),
        ("a plain file", "it is not a folder"),
    ],
)
def test_what_is_not_an_untouched_export_is_never_replaced(
    release: Path, tmp_path: Path, mine: str, said: str
) -> None:
    out = tmp_path / "out"
    exported("--format", "jsonl", "--out", str(out))
    folder = out / "jsonl"
    if mine == "a file of mine":
        (folder / "notes.txt").write_text("keep me")
    elif mine == "an edit":
        (folder / "train.jsonl").write_text("mine now")
    elif mine == "no record":
        (folder / "export.json").write_text("[]")
    elif mine == "another dataset":
        record = (folder / "export.json").read_text()
        (folder / "export.json").write_text(record.replace('"tickets"', '"others"'))
    else:
        shutil.move(folder, tmp_path / "elsewhere")
        if mine == "a link":
            folder.symlink_to(tmp_path / "elsewhere")
        else:
            folder.write_text("mine")
    before = contents(tmp_path)
    code, errors = failed("tickets", "--format", "jsonl", "--out", str(out))
    assert (code, said in errors) == (2, True), errors
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_error(release: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, errors = failed("tickets", "--out", str(tmp_path / "file" / "x"))
    assert (code, "cannot write the export" in errors) == (1, True)


def test_the_command_offers_what_there_is() -> None:
    assert list(formats.FORMATS) == list(cli_export.FORMATS)
    assert source.SPLITS == cli_export.SPLITS
    assert synth("export", "tickets", "--format", "xlsx").exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("name", [name for name in ALL if name != "spacy"])
def test_memory_does_not_grow_with_the_rows(synth_home: Path, tmp_path: Path, name: str) -> None:
    code = (
        "from pathlib import Path; from synth_assets.cli import main\n"
        "main(standalone_mode=False)\n"
        "(peak,) = [x for x in Path('/proc/self/status').open() if x.startswith('VmHWM')]\n"
        "print(peak.split()[1])"
    )
    words = ["export", "tickets", "--json", "--format", name, "--out", str(tmp_path / "out")]
    peaks = []
    for count in (200_000, 1_200_000):
        publish(synth_home / "releases", {"train": rows(count)})
        ran = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        peaks.append(int(ran.stdout.splitlines()[-1]) // 1024)
    assert peaks[1] < peaks[0] + 300, f"{peaks} MB"
