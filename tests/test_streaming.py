"""A plan's length is no matter of memory: prompts are read, asked and let go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from synth_assets.generation import Dialect, outline, requests_of
from synth_assets.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[1]
TASK = Classification("body", "topic", min_chars=3)
DIALECT = Dialect("m", "chat", "json_schema", {"temperature": 1.0}, 7)
PEAK = """
import sys
from pathlib import Path
import polars as pl
from synth_assets.generation import outline, requests_of
from tests.test_streaming import DIALECT, TASK
plan = pl.scan_parquet(sys.argv[1])
count = sum(1 for _ in requests_of(plan, outline(plan), DIALECT, "here", TASK))
# Not `ru_maxrss`: that begins with what the process had that started this one.
(peak,) = [x for x in Path("/proc/self/status").open() if x.startswith("VmHWM")]
print(count, peak.split()[1])
"""


def plan_of(calls: int) -> pl.DataFrame:
    number = pl.int_range(calls, dtype=pl.Int32)
    return pl.select(
        cell=pl.concat_str(pl.lit("label "), number % 10),
        ordinal=number // 10,
        wanted=pl.lit(100, pl.Int32),
        rows=pl.lit(8, pl.Int32),
        attributes=pl.lit("{}"),
        seed_ids=pl.concat_list(number.cast(pl.String)),
        system=pl.lit(None, pl.String),
        prompt=pl.concat_str(
            pl.lit("Write eight new support tickets about a parcel that is late. " * 16),
            number.hash(1).cast(pl.String),
        ),
        prompt_version=pl.lit("0"),
        sample=pl.lit(0, pl.Int32),
    )


def test_requests_come_in_the_order_of_the_plan_and_only_those_of_the_round() -> None:
    plan = plan_of(9_000)
    drawn = outline(plan.lazy()).filter(pl.col("ordinal") % 3 == 1)
    found = list(requests_of(plan.lazy(), drawn, DIALECT, "here", TASK))
    assert [(r.tag["cell"], r.tag["ordinal"]) for r in found] == drawn.select(
        "cell", "ordinal"
    ).rows()
    prompts = plan.filter(pl.col("ordinal") % 3 == 1)["prompt"]
    assert [r.body["messages"][-1]["content"] for r in found] == prompts.to_list()
    assert all("prompt" not in r.tag for r in found)


def peak_mb(path: Path) -> tuple[int, float]:
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    count, kilobytes = out.stdout.split()
    return int(count), int(kilobytes) / 1024


@pytest.mark.slow
def test_ten_times_the_plan_takes_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for calls in (10_000, 100_000):
        path = tmp_path / f"{calls}.parquet"
        plan_of(calls).write_parquet(path)
        count, peak = peak_mb(path)
        assert count == calls
        peaks.append(peak)
    assert peaks[1] <= 1.2 * peaks[0], peaks
