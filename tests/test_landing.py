"""Landing: what was read is what comes back, and a load is whole or never happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from filelock import FileLock
from polars.testing import assert_frame_equal

from synth_assets.errors import SourceError
from synth_assets.sources.files import expand, read_batches
from synth_assets.sources.landing import Landed, land, read_landed, scan_landed
from synth_assets.sources.records import FileFormat

ROOT = Path(__file__).parents[1]


def raw(
    columns: dict[str, Sequence[str | None]],
    *,
    source: str = "a.csv",
    first: int = 1,
    problem: str | None = None,
) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    return pl.DataFrame(
        {
            **{name: pl.Series(list(values), dtype=pl.String) for name, values in columns.items()},
            "_source": pl.Series([source] * n, dtype=pl.String),
            "_row": list(range(first, first + n)),
            "_problem": pl.Series([problem] * n, dtype=pl.String),
            "_raw": pl.Series(["as found" if problem else None] * n, dtype=pl.String),
        },
        schema_overrides={"_row": pl.Int64},
    )


def put(home: Path, *batches: pl.DataFrame, version: str = "v1") -> Landed:
    return land(iter(batches), dataset="orders", home=home, source_version=version)


def texts(home: Path) -> list[str | None]:
    return read_landed(home / "landing/orders/landed.duckdb").get_column("text").to_list()


def left_over(home: Path) -> list[str]:
    folder = home / "landing/orders"
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


# --- what comes back ---


def test_what_was_read_comes_back_with_a_load_id(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("MajorSystem,text\nEngine,grün 😀\nEngine\n,blank label\n")
    (tmp_path / "b.csv").write_text('text,Cost\n"two\nlines",1.50\n', newline="")
    batches = list(
        read_batches(expand("*.csv", base=tmp_path), FileFormat("csv"), required_columns=["text"])
    )
    landed = put(tmp_path / "home", *batches)
    frame = read_landed(landed)
    names = ["MajorSystem", "text", "Cost", "_source", "_row", "_problem", "_raw"]
    expected = pl.concat(batches, how="diagonal").select(names)
    assert_frame_equal(frame.drop("_load_id"), expected)
    assert frame["_load_id"].to_list() == [landed.load_id] * 4
    assert (landed.rows, landed.problems) == (4, {"wrong_field_count": 1})


def test_a_scan_gives_the_same_rows_in_small_frames(tmp_path: Path) -> None:
    landed = put(tmp_path, raw({"text": [str(i) for i in range(7)], "none": [None] * 7}))
    frames = list(scan_landed(landed, batch_rows=3))
    assert [frame.height for frame in frames] == [3, 3, 1]
    assert_frame_equal(pl.concat(frames), read_landed(landed))


def test_rows_are_sorted_by_source_and_row_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    put(
        tmp_path,
        raw({"text": ["b9", "b10"]}, source="b.csv", first=9),
        raw({"text": ["a1"]}, source="a.csv"),
        raw({"text": ["Z1"]}, source="Z.csv"),
    )
    assert texts(tmp_path) == ["Z1", "a1", "b9", "b10"]


def test_any_column_name_survives(tmp_path: Path) -> None:
    names = [
        *("Text", "text", "TEXT", "text_2", "select", "with space", 'quo"te', "it's", "a.b", "a-b"),
        *("überschrift", "标题", "标签", "😀", " ", "1st", "_dlt_id", "_dlt_load_id", "x" * 300),
        *("line\nbreak", "semi;colon -- x", "a__b", "_", "*", "rows", "name", "tab\t", "▶"),
    ]
    put(tmp_path, raw({name: [f"value of {name}"] for name in names}))
    frame = read_landed(tmp_path / "landing/orders/landed.duckdb")
    assert frame.columns[:-5] == names
    assert frame.row(0)[:-5] == tuple(f"value of {name}" for name in names)


@pytest.mark.parametrize(
    "value", ["", "NULL", "2024-01-01 00:00:00.000", "007", "1e5", "true", "{}", "x" * 10_000_000]
)
def test_text_stays_the_text_it_was(tmp_path: Path, value: str) -> None:
    put(tmp_path, raw({"text": [value, None, "nul \0 and 😀"]}))
    assert texts(tmp_path) == [value, None, "nul \0 and 😀"]


def test_the_landed_table_reads_well_in_sql(tmp_path: Path) -> None:
    landed = put(tmp_path, raw({"MajorSystem": ["Engine"]}), version="abc")
    with duckdb.connect(str(landed.database), read_only=True) as connection:
        query = "SELECT major_system, _row, _dlt_load_id FROM landing.raw"
        assert connection.execute(query).fetchall() == [("Engine", 1, landed.load_id)]
        facts = connection.execute("SELECT source_version, rows FROM landing.source").fetchall()
    assert facts == [("abc", 1)]
    assert landed.table == "landing.raw"


# --- a load replaces, or never happened ---


def test_rows_and_columns_that_are_gone_are_gone(tmp_path: Path) -> None:
    put(tmp_path, raw({"text": ["one", "two"], "old": ["x", "y"]}))
    put(tmp_path, raw({"text": ["two!"], "new": ["z"]}), version="v2")
    frame = read_landed(tmp_path / "landing/orders/landed.duckdb")
    assert frame.columns[:2] == ["text", "new"]
    assert frame.select("text", "new").rows() == [("two!", "z")]


def test_an_error_while_reading_passes_through_and_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, raw({"text": ["good"]}))

    def broken() -> Iterator[pl.DataFrame]:
        yield raw({"text": ["half"]})
        raise SourceError("torn", where="b.csv:7")

    with pytest.raises(SourceError, match=r"^b\.csv:7: torn$"):
        land(broken(), dataset="orders", home=tmp_path, source_version="v2")
    assert texts(tmp_path) == ["good"]
    assert left_over(tmp_path) == ["landed.duckdb"]


def test_a_failed_load_leaves_nothing_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, raw({"text": ["good"]}))
    with monkeypatch.context() as patch:
        # DuckDB finds no such file when dlt runs the load job.
        patch.setattr("synth_assets.sources.landing._file_literal", lambda _: "'/gone.parquet'")
        with pytest.raises(SourceError, match=r"load into DuckDB failed: .*gone\.parquet"):
            put(tmp_path, raw({"text": ["lost"]}), version="v2")
    assert texts(tmp_path) == ["good"]
    put(tmp_path, raw({"text": ["next"]}), version="v3")
    assert texts(tmp_path) == ["next"]
    assert left_over(tmp_path) == ["landed.duckdb"]


@pytest.mark.parametrize("batches", [[], [raw({"text": []})]])
def test_nothing_to_land_is_an_error_and_changes_nothing(
    tmp_path: Path, batches: list[pl.DataFrame]
) -> None:
    put(tmp_path, raw({"text": ["good"]}))
    with pytest.raises(SourceError, match="no rows to land"):
        put(tmp_path, *batches)
    assert texts(tmp_path) == ["good"]


def test_a_frame_that_is_not_raw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a raw frame"):
        put(tmp_path, raw({"text": ["1"]}).with_columns(pl.col("text").cast(pl.Int64)))


@pytest.mark.parametrize("dataset", ["", "..", "a/b", "../x", "a\\b"])
def test_a_dataset_name_cannot_leave_its_folder(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="not a plain dataset name"):
        land([raw({"text": ["x"]})], dataset=dataset, home=tmp_path, source_version="v")


def test_reading_before_landing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing has landed"):
        read_landed(tmp_path / "landed.duckdb")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_load_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    from dlt.load.load import Load

    put(tmp_path, raw({"text": ["old"]}))
    finish = Load.complete_package
    former = signal.signal(stop, signal.default_int_handler)

    def stopped(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), stop)
        finish(*arguments, **options)

    monkeypatch.setattr(Load, "complete_package", stopped)
    try:
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path, raw({"text": ["new"]}), version="v2")
    finally:
        signal.signal(stop, former)
    assert texts(tmp_path) == ["old"]
    assert left_over(tmp_path) == ["landed.duckdb"]


# --- other processes ---


def script(body: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Run ``body`` with this file's ``raw``; ``home`` is the first argument."""
    head = """
        import os, signal, sys
        from pathlib import Path
        from tests_landing import land, raw, read_landed
        home = Path(sys.argv[1])
    """
    loader = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("tests_landing", {__file__!r})
        sys.modules["tests_landing"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    """
    code = "".join(textwrap.dedent(part) for part in (loader, head, body))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    "moment",
    [
        # while rows arrive
        f"def batches():\n    yield raw({{'text': ['new']}})\n    {KILL}",
        # inside dlt's load, rows inserted, not committed by us
        "from dlt.load.load import Load\n"
        f"Load.complete_package = lambda *_, **__: {KILL}\n"
        "def batches():\n    yield raw({'text': ['new']})",
        # loaded, about to be put in place
        f"Path.replace = lambda *_: {KILL}\ndef batches():\n    yield raw({{'text': ['new']}})",
    ],
    ids=["reading", "loading", "renaming"],
)
def test_a_kill_leaves_the_former_rows_and_the_next_load_works(tmp_path: Path, moment: str) -> None:
    put(tmp_path, raw({"text": ["old"]}))
    run = script(
        f"{moment}\nland(batches(), dataset='orders', home=home, source_version='v2')", tmp_path
    )
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert texts(tmp_path) == ["old"]
    assert any(name.startswith(".load-") for name in left_over(tmp_path))
    put(tmp_path, raw({"text": ["newer"]}), version="v3")
    assert texts(tmp_path) == ["newer"]
    assert left_over(tmp_path) == ["landed.duckdb"]


def test_two_processes_landing_at_once_both_end_well(tmp_path: Path) -> None:
    body = """
        word = sys.argv[2]
        frames = [raw({"text": [word] * 50}, source=f"{i}.csv") for i in range(4)]
        land(frames, dataset="orders", home=home, source_version=word)
    """
    runs = [script(body, tmp_path, word) for word in ("left", "right")]
    assert [(*run.communicate(timeout=90), run.returncode) for run in runs] == [("", "", 0)] * 2
    assert texts(tmp_path) in (["left"] * 200, ["right"] * 200)


def test_two_datasets_land_at_once_in_one_process(tmp_path: Path) -> None:
    def run(name: str) -> None:
        land([raw({"text": [name]})], dataset=name, home=tmp_path, source_version="v")

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        frame = read_landed(tmp_path / "landing" / name / "landed.duckdb")
        assert frame["text"].to_list() == [name]


def test_a_lock_held_too_long_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "landing/orders"
    folder.mkdir(parents=True)
    with (
        FileLock(folder / "lock"),
        pytest.raises(SourceError, match="dataset orders: another process has been loading it"),
    ):
        land(
            [raw({"text": ["x"]})],
            dataset="orders",
            home=tmp_path,
            source_version="v",
            wait_seconds=0.1,
        )


def test_a_reader_does_not_stop_a_load_and_keeps_its_rows(tmp_path: Path) -> None:
    landed = put(tmp_path, raw({"text": ["old", "old"]}))
    reading = scan_landed(landed, batch_rows=1)
    next(reading)
    put(tmp_path, raw({"text": ["new"]}), version="v2")
    assert next(reading)["text"].to_list() == ["old"]
    assert texts(tmp_path) == ["new"]


def test_a_load_is_silent_and_writes_only_under_home(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("user", "cwd", "home", "temp", "data")}
    for place in places.values():
        place.mkdir()
    # Settings of somebody else's dlt project here must not reach our load.
    (places["cwd"] / ".dlt").mkdir()
    settings = '[runtime]\nlog_level = "DEBUG"\n[normalize]\nloader_file_format = "csv"\n'
    (places["cwd"] / ".dlt/config.toml").write_text(settings)
    body = """
        opened = []
        def watch(event, arguments):
            if event == "open" and isinstance(arguments[0], str):
                if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    opened.append(arguments[0])
            elif event in ("os.mkdir", "os.rename", "socket.connect", "socket.getaddrinfo"):
                opened.append(str(arguments[0]))
        os.chdir(sys.argv[2])
        sys.addaudithook(watch)
        landed = land([raw({"text": ["a"]})], dataset="orders", home=home, source_version="v")
        assert read_landed(landed).height == 1
        inside = (str(home), os.devnull)
        strangers = [path for path in opened if not os.path.abspath(path).startswith(inside)]
        assert opened and not strangers, strangers
    """
    run = script(
        body,
        places["home"],
        places["cwd"],
        HOME=str(places["user"]),
        XDG_DATA_HOME=str(places["data"]),
        TMPDIR=str(places["temp"]),
        PYTHONDONTWRITEBYTECODE="1",
        DESTINATION__DUCKDB__CREDENTIALS="/nowhere/else.duckdb",
    )
    assert (*run.communicate(timeout=60), run.returncode) == ("", "", 0)
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    strangers = [name for name in written if not name.startswith(("home/", "cwd/.dlt"))]
    assert sorted(strangers) == sorted(places)


def test_dlt_is_not_imported_until_a_load(tmp_path: Path) -> None:
    body = "print([name for name in ('dlt', 'duckdb', 'pyarrow') if name in sys.modules])"
    code = f"import sys, synth_assets.sources.files, synth_assets.sources.landing; {body}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
