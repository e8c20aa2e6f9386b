"""What generation promises while the server misbehaves in every way it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.llm.ledger.ledger import Ledger
from tests.datasets import DatasetFolder
from tests.openai_server import FaultAction, FaultHook, RequestInfo, ServerState, running_server
from tests.openai_server.faults import schedule
from tests.processes import quiet
from tests.test_run import Ran, run, table, versions

LABELS = ("billing", "delivery", "login")
LATENCY_S = 0.02
STALL_S = 2.0
EVERY_KIND = {
    "400": 0.02,
    "422": 0.02,
    "429": 0.03,
    "429_retry_after": 0.01,
    "500": 0.02,
    "503": 0.01,
    "html": 0.02,
    "reset": 0.02,
    "slow_body": 0.02,
    "broken_body": 0.02,
    "invalid_utf8": 0.02,
    "malformed": 0.04,
    "wrong_schema": 0.03,
    "length": 0.04,
    "empty": 0.03,
    "content_filter": 0.03,
    "refusal": 0.03,
    "duplicates": 0.02,
    "unknown_fields": 0.02,
    "wrong_usage": 0.02,
}
# What an answer that cannot be read is set aside for -> the faults that make one so. Whole rows of
# an answer that was cut short are kept instead.
UNREAD = {
    "malformed": ("malformed", "invalid_utf8", "wrong_schema"),
    "empty": ("empty",),
    "content_filter": ("content_filter",),
    "refused": ("refusal",),
    "permanent": ("400", "422"),
}


class Recorded:
    """A fault hook that remembers which request met what."""

    def __init__(self, hook: FaultHook) -> None:
        self._hook = hook
        self.met: dict[str, list[str]] = {}

    def __call__(self, info: RequestInfo) -> FaultAction | None:
        # The very first call asks what the server understands; what it says is another claim.
        action = self._hook(info) if info.index else None
        if action is not None:
            kind = str(action.status) if action.kind == "status" else action.kind
            self.met.setdefault(kind, []).append(info.identity)
        return action


def every_fault() -> Recorded:
    return Recorded(schedule(5, EVERY_KIND, seconds=0.05, retry_after="0.1"))


def generated(server: ServerState, monkeypatch: pytest.MonkeyPatch, *words: str) -> Ran:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    return run("tickets", "--until", "synthetic", *words)


def many(tickets: DatasetFolder, rows: int, **generate: Any) -> None:
    tickets.attributes["generate"] |= {"target": {"per_label": rows}, **generate}
    tickets.edit("validate.near_duplicate", 1.0)


def accepted(home: Path) -> dict[str, int]:
    rows = table(home, "synthetic")
    assert rows["record_id"].n_unique() == rows.height
    return dict(rows.group_by("label").len().rows())


def test_a_permanent_error_is_asked_once_and_made_up_for(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tickets, 300, concurrency=16)
    hook = Recorded(schedule(3, {"400": 0.02, "422": 0.01}))
    with running_server(fault=hook) as server:
        ran = generated(server, monkeypatch)
    assert ran.code == 0, ran.errors
    assert hook.met.keys() == {"400", "422"}
    assert max(server.attempts_by_identity.values()) == 1
    assert accepted(synth_home) == dict.fromkeys(LABELS, 300)
    refused = table(synth_home, "rejects").filter(pl.col("reason") == "permanent")
    assert refused.height == sum(map(len, hook.met.values())) == ran.json["calls"]["failed"]
    assert refused["raw"].str.contains("The request is invalid").any()
    assert ran.json["calls"]["made"] == server.successes_by_identity.total()


@pytest.mark.slow
def test_every_kind_of_fault_at_once_costs_no_row_and_hides_nothing(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tickets, 350, concurrency=32)
    hook = every_fault()
    with running_server(fault=hook, latency_s=LATENCY_S) as server:
        ran = generated(server, monkeypatch)
    assert ran.code == 0, ran.errors
    assert hook.met.keys() == {kind.partition("_retry")[0] for kind in EVERY_KIND}
    assert accepted(synth_home) == dict.fromkeys(LABELS, 350)
    assert max(server.answers_by_identity.values()) == 1
    # Nothing vanishes: what could not be read has its raw text and the call it came from.
    rejects = table(synth_home, "rejects")
    candidates = table(synth_home, "candidates").height
    assert rejects.height + table(synth_home, "synthetic").height == candidates
    assert rejects["reason"].null_count() == rejects["request_id"].null_count() == 0
    for reason, kinds in UNREAD.items():
        found = rejects.filter(pl.col("reason") == reason)
        # At least: a request that failed in several ways may be given up as malformed.
        assert found["request_id"].n_unique() >= sum(len(hook.met[kind]) for kind in kinds)
        assert (found["raw"].str.len_chars() > 0).all(), reason
    with Ledger.open(synth_home / "ledger" / "ledger.sqlite") as ledger:
        cut = "SELECT count(*) FROM calls WHERE outcome = 'length' AND length(response) > 0"
        assert ledger.query(cut) == [(len(hook.met["length"]),)]

    # The same faults, met in another order, give the same rows to the byte.
    first = versions()
    for name in ("SYNTH_HOME", "DAGSTER_HOME"):
        folder = synth_home.parent / "again" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    again = every_fault()
    with running_server(fault=again, latency_s=LATENCY_S) as other:
        ran = generated(other, monkeypatch, "--concurrency", "4")
    assert ran.code == 0, ran.errors
    assert other.max_in_flight <= 4 < server.max_in_flight
    assert versions() == first


def test_a_server_that_stalls_is_asked_again_and_nothing_hangs(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.edit("generate.timeout_s", 0.5)

    def stalls(info: RequestInfo) -> FaultAction | None:
        return (
            FaultAction("stall", seconds=STALL_S) if info.attempt == 1 and info.index % 3 else None
        )

    hook = Recorded(stalls)
    with running_server(fault=hook) as server:
        ran = generated(server, monkeypatch)
        quiet(server)
    assert ran.code == 0, ran.errors
    assert len(hook.met["stall"]) > 3
    assert {server.attempts_by_identity[one] for one in hook.met["stall"]} == {2}
    assert accepted(synth_home) == dict.fromkeys(LABELS, 20)


@pytest.mark.slow
def test_a_server_that_only_stalls_is_one_clear_error(
    tickets: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.edit("generate.timeout_s", 0.5)
    with running_server(fault=lambda _: FaultAction("stall", seconds=STALL_S)) as server:
        ran = generated(server, monkeypatch)
        quiet(server)
    assert ran.code == 1
    assert "timed out" in ran.errors
    assert "Traceback" not in ran.errors


def test_a_shortfall_names_the_label_and_the_counts(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.edit("generate.candidate_limit", 2.0)

    def repeats(info: RequestInfo) -> FaultAction | None:
        prompt = str(info.body["messages"][-1]["content"])
        return FaultAction("duplicates") if 'tickets about "login"' in prompt else None

    with running_server(fault=repeats) as server:
        ran = generated(server, monkeypatch)
    found = accepted(synth_home)
    assert (found.pop("billing"), found.pop("delivery")) == (20, 20)
    assert ran.code == 3
    assert f"too few rows: login {found['login']} of 20 (near_duplicate " in ran.errors
    # All calls that may be made were made: two rows asked for per row wanted, five a call.
    calls = table(synth_home, "candidates").filter(pl.col("cell") == "login")
    assert calls["request_id"].n_unique() == 8
    repeated = calls.height - found["login"]
    reasons = table(synth_home, "rejects").filter(pl.col("cell") == "login")["reason"]
    assert reasons.len() == repeated
    assert "near_duplicate" in reasons
