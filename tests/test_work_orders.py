"""The embedded default, whole: real work orders, the real local model, no key."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from tests.test_run import run, statuses, table


def test_the_source_is_what_the_readme_says(synth_home: Path) -> None:
    ran = run("work_orders", "--until", "plan")
    assert ran.code == 0, ran.errors
    assert table(synth_home, "human_raw", "work_orders").height == 5_485
    human = table(synth_home, "human", "work_orders")
    counts = dict(human.group_by("label").len().iter_rows())
    assert human.height == 2_068
    assert len(counts) == 9
    assert (counts["Hydraulic System"], counts["Turbochargers"]) == (815, 23)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_dataset_is_made_with_the_local_model(synth_home: Path) -> None:
    ran = run("work_orders")
    assert ran.code == 0, ran.errors
    found = statuses("work_orders")
    assert {found[stage]["status"] for stage in STAGES} == {"fresh"}
    train = table(synth_home, "train", "work_orders")
    assert train.group_by("label").len().filter(pl.col("len") < 40).is_empty()
    contribution = table(synth_home, "contribution", "work_orders")
    verdict = contribution.filter(pl.col("metric") == "verdict")["note"].item()
    assert "held-out human rows" in verdict
    assert ran.json["tokens"]["completion"] > 1_000
    again = run("work_orders")
    assert (again.code, again.json["ran"]) == (0, [])
