"""A version is a hash of schema and rows, and a stored table is complete or absent."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_assets.errors import SynthError
from synth_assets.store.content import ContentStore, write_atomically
from synth_assets.store.digest import BATCH_ROWS, frame_digest
from tests.independent import rows_digest

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=8)), max_size=30)
NESTED = st.lists(
    st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=3)),
    max_size=8,
)


@given(TEXTS, NESTED, st.lists(st.one_of(st.none(), st.floats()), max_size=8))
def test_the_encoding_is_the_one_that_is_written_down_twice(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    nested: list[list[str | None] | None],
    numbers: list[float | None],
) -> None:
    path = tmp_path_factory.getbasetemp() / "twice.parquet"
    for values, kind in ((texts, pl.String), (nested, pl.List(pl.String)), (numbers, pl.Float64)):
        frame = pl.DataFrame({"a": values}, schema={"a": kind})
        frame.write_parquet(path)
        assert rows_digest(path) == frame_digest(frame)


@given(TEXTS, st.integers(0, 30))
def test_chunking_does_not_matter(texts: list[str | None], cut: int) -> None:
    frame = pl.DataFrame(
        {"a": texts, "n": range(len(texts))}, schema={"a": pl.String, "n": pl.Int64}
    )
    parts = pl.concat([frame[:cut], frame[cut:]], rechunk=False)
    assert frame_digest(parts) == frame_digest(frame)


@given(TEXTS, TEXTS)
def test_equal_digests_mean_equal_columns(left: list[str | None], right: list[str | None]) -> None:
    a, b = (pl.DataFrame({"a": pl.Series(x, dtype=pl.String)}) for x in (left, right))
    assert (frame_digest(a) == frame_digest(b)) == (left == right)


@given(NESTED, NESTED)
def test_equal_digests_mean_equal_lists(left: list[object], right: list[object]) -> None:
    a, b = (pl.DataFrame({"a": pl.Series(x, dtype=pl.List(pl.String))}) for x in (left, right))
    assert (frame_digest(a) == frame_digest(b)) == (left == right)


def test_row_order_column_order_names_and_types_matter() -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    variants = [
        frame.reverse(),
        frame.select("b", "a"),
        frame.rename({"a": "c"}),
        frame.with_columns(pl.col("a").cast(pl.Int32)),
        frame.with_columns(a=pl.lit(None, pl.Int64)),
    ]
    assert len({frame_digest(f) for f in [frame, *variants]}) == len(variants) + 1


def test_every_type_that_stages_use_has_an_encoding() -> None:
    frame = pl.DataFrame(
        {
            "f": [1.5, None],
            "b": [True, None],
            "d": [dt.date(2026, 1, 1), None],
            "t": [dt.datetime(2026, 1, 1, 2), None],
            "s": [{"x": 1, "y": ["a"]}, None],
            "z": [b"\x00", None],
        }
    )
    for name in frame.columns:
        one = frame.select(name)
        assert frame_digest(one) != frame_digest(one.reverse()), name


def test_volatile_columns_are_kept_but_not_in_the_version(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    frames = [pl.DataFrame({"a": [1], "_load_id": [load]}) for load in ("x", "y")]
    first, second = (store.put("d", "s", f, volatile=["_load_id"]) for f in frames)
    assert first.data_version == second.data_version
    assert store.scan("d", "s", first.data_version).collect().columns == ["a", "_load_id"]


def test_a_batch_boundary_is_not_visible_in_what_is_read_back(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": range(BATCH_ROWS + 3)})
    stored = ContentStore(tmp_path).put("d", "s", frame)
    assert frame_digest(pl.read_parquet(stored.path)) == stored.data_version


def test_a_gone_table_says_how_to_make_it_again(tmp_path: Path) -> None:
    with pytest.raises(SynthError, match="materialise it again"):
        ContentStore(tmp_path).scan("d", "s", "0" * 64)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_thread_count_does_not_change_a_version() -> None:
    code = (
        "import polars as pl; from synth_assets.store.digest import frame_digest;"
        "f = pl.DataFrame({'g': [i % 7 for i in range(99999)], 'v': range(99999)});"
        "g = f.group_by('g').agg(pl.col('v').sum(), pl.col('v').alias('all')).sort('g');"
        "print(frame_digest(g))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "POLARS_MAX_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1
