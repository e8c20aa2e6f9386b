"""A dataset made of answers as real models write them: exact rows, and a reason for the rest."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from tests.datasets import DatasetFolder
from tests.openai_server import FaultAction, RequestInfo, answers, running_server
from tests.openai_server.quirks import LISTS, LOSING
from tests.test_run import run, table

QUIRKS = [*(f"list: {name}" for name in LISTS), *(f"losing: {name}" for name in LOSING)]
# Losing quirk -> the reason that its answer is set aside for; cut ones keep their whole rows.
REASONS = {
    "losing: thinking cut at the limit": "length",
    "losing: reasoning only": "empty",
    "losing: a refusal in words": "unmarked_answer",
}


class Cycled:
    """Every quirk in turn; which request met which."""

    def __init__(self) -> None:
        self.met: dict[str, list[RequestInfo]] = {}

    def __call__(self, info: RequestInfo) -> FaultAction | None:
        if "says: ok" in answers.prompt_text(info.body):
            return None
        name = QUIRKS[sum(map(len, self.met.values())) % len(QUIRKS)]
        self.met.setdefault(name, []).append(info)
        return FaultAction("quirk", message=name)


def test_of_odd_answers_only_rows_become_rows_and_nothing_is_lost_unsaid(
    tickets: DatasetFolder, synth_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.prompt = tickets.prompt.replace("support tickets", "messages")
    tickets.attributes["generate"] |= {"target": {"per_label": 60}, "output": "list"}
    tickets.edit("validate.near_duplicate", 1.0)
    tickets.write()
    hook = Cycled()
    with running_server(fault=hook) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        ran = run("tickets", "--until", "synthetic")
        assert server.request_count == sum(map(len, hook.met.values())), "nothing is asked twice"
    assert ran.code == 0, ran.errors
    assert set(hook.met) == set(QUIRKS)
    kept, rejects = table(synth_home, "synthetic"), table(synth_home, "rejects")
    assert set(kept.group_by("label").len()["len"]) == {60}

    # Every text is a line that the server would have given plainly, and none of those is missing.
    said: dict[str, set[str]] = {}
    for name, requests in hook.met.items():
        for info in requests:
            plain = answers.chat(
                info.body, identity=info.identity, seeded_by=info.identity, default_rows=8
            )["choices"][0]["message"]["content"]
            said.setdefault(name, set()).update(
                line.removeprefix("- ") for line in plain.split("\n")
            )
    candidates = table(synth_home, "candidates")
    texts = set(candidates["text"].drop_nulls())
    assert texts <= set().union(*said.values())
    for name in QUIRKS:
        assert name.startswith("losing") or said[name] <= texts, name

    # What is no row has its reason and what it said.
    counts = dict(rejects.group_by("reason").len().iter_rows())
    for name, reason in REASONS.items():
        assert counts[reason] == len(hook.met[name]), reason
    unread = rejects.filter(pl.col("text").is_null())
    assert (unread["raw"].str.len_chars() > 0).all()
    aside = "\n".join(unread.filter(pl.col("reason") == "unmarked_lines")["raw"])
    for line in ("## Batch one", "Batch two:", "---", "Let me know if you", "| --- | --- |"):
        assert line in aside
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tickets", "candidates"]))
    assert event is not None
    assert event.asset_materialization is not None
    told = event.asset_materialization.metadata["rejects_by_reason"].value
    assert isinstance(told, dict)
    assert told["unmarked_lines"] == counts["unmarked_lines"] > 0
