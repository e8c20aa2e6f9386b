"""Generation under a schedule of faults: exact counts, nothing lost, nothing bought twice."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.datasets import DatasetFolder
from tests.openai_server import running_server
from tests.openai_server.faults import schedule
from tests.test_run import run, table

RATES = {"429": 0.05, "500": 0.02, "reset": 0.01, "malformed": 0.02, "length": 0.01}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_mixed_faults_cost_no_row_and_no_answer_twice(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    tickets.attributes["generate"] |= {
        "target": {"per_label": 667},
        "rows_per_call": 5,
        "concurrency": 32,
    }
    tickets.edit("validate.near_duplicate", 1.0)
    with running_server(fault=schedule(seed, RATES)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        ran = run()
        assert ran.code == 0, ran.errors
        stats = server.stats()
    assert stats["by_fault"].keys() == RATES.keys(), "every kind of fault was met"
    rows = table(synth_home, "synthetic")
    assert rows.group_by("label").len()["len"].to_list() == [667, 667, 667]
    assert rows["record_id"].n_unique() == 2001
    # An answer that came back whole is never asked for again, spoiled ones only as new samples.
    assert max(server.successes_by_identity.values()) == 1
    assert max(server.answers_by_identity.values()) == 1
    rejects = table(synth_home, "rejects")
    unread = rejects.filter(pl.col("reason").is_in(["malformed", "length"]))
    assert unread.height > 0
    assert unread["raw"].str.len_chars().min() > 0
