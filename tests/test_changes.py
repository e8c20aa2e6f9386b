"""The table of changes: what each runs again, and what it asks the model. No more, and no less.

``docs/versions.md`` shows the same table to users.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from synth_assets.assets.stages import COMMON_STAGES as STAGES
from synth_assets.settings import PROJECT_ROOT
from synth_assets.spec.fingerprint import REVISIONS
from tests.datasets import DatasetFolder, text_of, write_csv
from tests.openai_server import ServerState, running_server
from tests.processes import Place, answered
from tests.test_run import Ran, run, synth, table, versions

LABELS = ("billing", "delivery", "login")
# What an endpoint and model are asked first: which structured output they understand.
PROBE = "(output mode)"

LANDED = ("human_raw", "human", "human_rejects")
SIDES = ("human_train", "holdout", "set_aside")
SHOWN = ("seeds", "plan")
GENERATED = ("candidates", "synthetic", "rejects")
BLENDED = ("blend", "train", "validation", "contribution", "release")
EVERYTHING = tuple(STAGES)

Edit = Callable[[DatasetFolder], object]


@dataclass(frozen=True)
class Change:
    """A row: what is changed, the stages that run again, good answers asked for by label.

    ``words`` tell users what is asked, and why, where the numbers do not. ``slow`` rows say little
    that others do not.
    """

    what: str
    edit: Edit
    runs: tuple[str, ...] = ()
    asks: Mapping[str, int] = field(default_factory=dict)
    words: str = ""
    slow: bool = False


def set_to(path: str, value: Any) -> Edit:
    return lambda dataset: dataset.edit(path, value)


def rows(change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> Edit:
    return lambda dataset: write_csv(dataset.folder / "human.csv", change(list(dataset.rows)))


def seeds(*texts: str, label: str = "login") -> Edit:
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text in texts)
    return lambda dataset: (dataset.folder / "seeds.jsonl").write_text(lines)


def touch(dataset: DatasetFolder) -> None:
    os.utime(dataset.folder / "human.csv", (1, 1))


def bump(stage: str) -> Edit:
    # The test gives the old value back.
    return lambda _: REVISIONS.__setitem__(stage, REVISIONS[stage] + 1)


def delivery(text: str) -> dict[str, str]:
    return {"body": text, "topic": "delivery"}


# The side of a row is a hash of its text.
HELD_OUT = delivery("a forklift drove over my brand new espresso machine")
TO_LEARN_FROM = delivery("nobody rang the bell and the box went back to the depot")
FOR_BILLING = '{% if label == "billing" %}Never name a sum of money.{% endif %}'
# A training row of delivery that is a seed, two lines before the end of the file.
SHOWN_ROW = 117

ALL = {"billing": 5, "delivery": 5, "login": 6}
# fmt: off
CHANGES = (
    # --- prompts and seeds ---
    Change("the whole prompt", lambda d: d.write_prompt("Be inventive.\n" + d.prompt),
           ("plan", *GENERATED, *BLENDED), ALL, "every call"),
    Change("the prompt, so that it renders the same",
           lambda d: d.write_prompt("{# reviewed #}" + d.prompt), ("plan",)),
    Change("the prompt, for one label", lambda d: d.write_prompt(d.prompt + FOR_BILLING),
           ("plan", *GENERATED, *BLENDED), {"billing": 5}, "that label's calls", slow=True),
    Change("one label's description",
           lambda d: d.edit("task.labels", {**d.labels, "billing": "invoices"}),
           ("plan", *GENERATED, *BLENDED), {"billing": 5}, "that label's calls"),
    Change("a hand-written seed more", seeds("the voice menu sends me round in circles"),
           ("seeds", "plan", *GENERATED, *BLENDED), {"login": 5},
           "calls of that label that show other seeds now"),
    # --- the model and how it is asked ---
    Change("the model", set_to("generate.model", "other-model"),
           (*GENERATED, *BLENDED), {PROBE: 1, "billing": 5, "delivery": 5, "login": 5},
           "every call, and once which structured output it understands"),
    Change("the temperature", set_to("generate.temperature", 0.5),
           (*GENERATED, *BLENDED), {"billing": 6, "delivery": 5, "login": 5}, "every call"),
    Change("a target raised for one label",
           set_to("generate.target", {"per_label": {"billing": 20, "delivery": 20, "login": 40}}),
           ("plan", *GENERATED, *BLENDED), {"login": 5}, "further calls of that label",
           slow=True),
    Change("a target lowered", set_to("generate.target", {"per_label": 10}),
           ("plan", *GENERATED, *BLENDED), slow=True),
    Change("the timeout", set_to("generate.timeout_s", 30.0)),
    Change("the concurrency", set_to("generate.concurrency", 3)),
    Change("prices, requests and tokens per minute",
           lambda d: [d.edit("generate.requests_per_min", 500),
                      d.edit("generate.tokens_per_min", 100_000),
                      d.edit("generate.prices",
                             {"input_per_million": 1.0, "output_per_million": 2.0})]),
    # --- human data ---
    Change("a source row more, for training", rows(lambda rows: [*rows, TO_LEARN_FROM]),
           tuple(s for s in EVERYTHING if s != "eval"), {"delivery": 2},
           "calls of that label that show other seeds now"),
    Change("a source row more, held out", rows(lambda rows: [*rows, HELD_OUT]),
           tuple(s for s in EVERYTHING if s != "blend"), {},
           "none; `seeds`, `plan` and `train` are compared with the new row, and stay as they are",
           slow=True),
    Change("a source row more, not usable", rows(lambda rows: [*rows, rows[0]]),
           (*LANDED, "release")),
    Change("the text of a source row that prompts show",
           rows(lambda rows: [*rows[:SHOWN_ROW], TO_LEARN_FROM, *rows[SHOWN_ROW + 1:]]),
           tuple(s for s in EVERYTHING if s != "eval"), {"delivery": 3},
           "calls of that label that show other seeds now"),
    Change("a source row that prompts show, removed",
           rows(lambda rows: [*rows[:SHOWN_ROW], *rows[SHOWN_ROW + 1:]]), EVERYTHING,
           {"delivery": 4}, "calls of that label that show other seeds now"),
    Change("the source file's time", touch),
    Change("the order of source rows", rows(lambda rows: rows[::-1]), EVERYTHING, {},
           "none; every row names the line it stands in"),
    # --- rules ---
    Change("a validation rule, so that rows are rejected", set_to("validate.near_duplicate", 0.5),
           (*GENERATED, *BLENDED), {"billing": 3, "delivery": 1, "login": 3},
           "further calls, until the rejected rows are made up for"),
    Change("a validation rule, so that nothing changes", set_to("validate.near_duplicate", 0.79),
           GENERATED),
    Change("`validate.decontaminate`, so that nothing changes",
           set_to("validate.decontaminate", 0.599),
           (*SIDES, *SHOWN, *GENERATED, "train", "validation"), slow=True),
    # --- the product ---
    Change("the blend's share", set_to("blend.synthetic_share", 0.2), BLENDED),
    Change("the blend's weights", set_to("blend.weights", {"synthetic": 0.5}), BLENDED),
    Change("`measure.repeats`", set_to("measure.repeats", 5), ("contribution", "release")),
    Change("`release.require`", set_to("release.require", ["no_leakage", "label_support"]),
           ("release",)),
    Change("the description", set_to("description", "Tickets, by topic"), ("release",)),
    Change("the owners", set_to("owners", ["team:data"])),
    # --- the code ---
    Change("the code of `plan`, which gives the same", bump("plan"), ("plan",)),
    Change("the code of `blend`, which gives the same", bump("blend"), ("blend",)),
)
# fmt: on


@dataclass(frozen=True)
class Standing:
    """What a dataset holds: versions by stage; record ids and request ids by label."""

    versions: dict[str, str]
    rows: dict[str, set[str]]
    calls: dict[str, set[str]]


@dataclass(frozen=True)
class Changed:
    """A dataset after a complete run, and what a further run of it asks."""

    dataset: DatasetFolder
    server: ServerState
    place: Place

    def run(self, *words: str) -> tuple[Ran, list[str]]:
        """A run, and the prompts that got a good answer for it."""
        before, since = answered(self.server), self.server.request_count
        ran = run("tickets", *words)
        assert ran.code == 0, ran.errors
        bought = answered(self.server) - before
        prompts = [text_of(request.body) for request in self.server.requests[since:]]
        assert max(bought.values(), default=1) == 1, "nothing is bought twice"
        assert bought.total() == len(prompts) == ran.json["calls"]["made"]
        return ran, prompts

    def standing(self) -> Standing:
        found = versions()

        def ids(stage: str, by: str, column: str) -> dict[str, set[str]]:
            grouped = self.place.table(found, stage).group_by(by).agg(column)
            return {name: set(values) for name, values in grouped.iter_rows()}

        return Standing(
            found,
            rows=ids("synthetic", "label", "record_id"),
            calls=ids("candidates", "cell", "request_id"),
        )


def by_label(prompts: list[str]) -> Counter[str]:
    found = [[label for label in LABELS if f'tickets about "{label}"' in text] for text in prompts]
    return Counter(label for labels in found for label in labels or [PROBE])


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server(models=("test-model", "other-model")) as state:
        yield state


@pytest.fixture(scope="module")
def complete(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    """A place in which the dataset ran once; tests work on copies of it."""
    place = Place.make(tmp_path_factory.mktemp("complete"))
    dataset = place.dataset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.environment(server).items():
            patch.setenv(name, value)
        ran = run("tickets")
    assert ran.code == 0, ran.errors
    return Changed(dataset, server, place)


@pytest.fixture
def changed(complete: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Changed:
    place = Place(Path(shutil.copytree(complete.place.root, tmp_path / "copy")))
    for name, value in place.environment(complete.server).items():
        monkeypatch.setenv(name, value)
    for stage, revision in REVISIONS.items():
        monkeypatch.setitem(REVISIONS, stage, revision)
    return Changed(DatasetFolder(place.defs / "tickets"), complete.server, place)


@pytest.fixture(scope="module")
def before(complete: Changed) -> Standing:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in complete.place.environment(complete.server).items():
            patch.setenv(name, value)
        return complete.standing()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, marks=[pytest.mark.slow] if change.slow else [], id=change.what)
        for change in CHANGES
    ],
)
def test_a_change_runs_and_asks_what_the_table_says(
    changed: Changed, before: Standing, change: Change
) -> None:
    change.edit(changed.dataset)
    ran, prompts = changed.run()
    assert sorted(ran.json["ran"]) == sorted(change.runs)
    assert by_label(prompts) == change.asks
    after = changed.standing()
    assert {s for s in STAGES if after.versions[s] != before.versions[s]} <= set(change.runs)
    # What was asked is what the rows come from, and nothing else is new.
    new = {label: len(after.calls[label] - before.calls[label]) for label in LABELS}
    assert +Counter(new) == Counter(change.asks) - Counter([PROBE])
    # The rows of a label that was not asked come from the answers that were there.
    for label in set(LABELS) - set(change.asks):
        assert after.calls[label] <= before.calls[label]
        assert after.rows[label] <= before.rows[label]


def test_users_are_shown_this_table() -> None:
    lines = ["| changed | runs again | asked of the model |", "|---|---|---|"]
    lines += [f"| {c.what} | {_told(c.runs)} | {c.words or 'none'} |" for c in CHANGES]
    assert "\n".join(lines) in (PROJECT_ROOT / "docs" / "versions.md").read_text()
    assert all(c.words for c in CHANGES if c.asks)


def _told(stages: tuple[str, ...]) -> str:
    """Stages in order of the graph, one of each step; long lists by what they leave out."""
    steps = {(s.shaped_by, s.parents): s.name for s in reversed(STAGES.values())}.values()
    left_out = [f"`{stage}`" for stage in steps if stage not in stages]
    if len(left_out) < 2:
        return "everything" + (f" but {left_out[0]}" if left_out else "")
    return ", ".join(f"`{stage}`" for stage in reversed(steps) if stage in stages) or "nothing"


@pytest.mark.slow
def test_going_back_asks_nothing_and_gives_the_same_versions(
    changed: Changed, before: Standing
) -> None:
    changed.dataset.edit("generate.temperature", 0.5)
    _, prompts = changed.run("--until", "synthetic")
    assert len(prompts) > 10
    changed.dataset.edit("generate.temperature", 1.0)
    _, prompts = changed.run()
    assert (prompts, changed.standing()) == ([], before)


@pytest.mark.slow
def test_a_raised_target_keeps_the_rows_that_were_there(changed: Changed, before: Standing) -> None:
    changed.dataset.edit("generate.target", {"per_label": {"billing": 20, "login": 40}})
    changed.run("--until", "synthetic")
    after = changed.standing()
    assert before.calls["login"] < after.calls["login"]
    assert before.rows["login"] < after.rows["login"]
    assert {label: len(ids) for label, ids in after.rows.items()} == {"billing": 20, "login": 40}


@pytest.mark.slow
def test_an_attribute_value_more_asks_for_that_value_only(changed: Changed) -> None:
    def tones_in(prompts: list[str]) -> set[str]:
        return {text.rpartition("Tone: ")[2] for text in prompts}

    changed.dataset.write_prompt(changed.dataset.prompt + "Tone: {{ attributes.tone }}")
    changed.dataset.edit("generate.attributes", {"tone": ["angry", "calm"]})
    _, first = changed.run("--until", "candidates")
    assert tones_in(first) == {"angry", "calm"}
    changed.dataset.edit("generate.attributes", {"tone": ["angry", "brief", "calm"]})
    ran, more = changed.run("--until", "candidates")
    assert tones_in(more) == {"brief"}
    assert ran.json["calls"]["replayed"] > 0


def test_another_threshold_makes_every_leak_check_anew(changed: Changed, before: Standing) -> None:
    # Near enough to a held-out row for the second threshold only; it moves no human row.
    held = table(changed.place.home, "holdout").row(0, named=True)
    changed.dataset.edit("validate.decontaminate", 1.0)
    seeds(f"{held['text']}s", label=str(held["label"]))(changed.dataset)
    assert run("tickets", "--until", "seeds").code == 0
    sides = versions()
    changed.dataset.edit("validate.decontaminate", 0.95)
    ran = run("tickets", "--until", "plan")
    assert (ran.code, "seeds/no_leakage" in ran.errors) == (3, True)
    assert {stage: versions()[stage] for stage in SIDES} == {s: sides[s] for s in SIDES}
    checks = synth("status", "tickets", "--json").json
    assert {s["stage"]: s["status"] for s in checks["stages"]}["seeds"] == "failed"
