"""One look at all datasets: which runs are to be started, and a word about the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from synth_assets.assets.stages import key
from synth_assets.refresh.attempts import AGAIN_TAG, attempts, last_made_or_tried
from synth_assets.refresh.catalog import Catalog
from synth_assets.refresh.decide import Decision, decide
from synth_assets.refresh.looking import Looker, due
from synth_assets.refresh.memory import Remembered
from synth_assets.refresh.reading import Reading, read_again, shapes
from synth_assets.refresh.schedule import next_tick, owed, served
from synth_assets.settings import Home
from synth_assets.spec.load import Dataset
from synth_assets.status import Records, observe_source
from synth_assets.store.content import ContentStore
from synth_assets.underway import report_dead_runs, run_tags, under_way
from synth_assets.waves import GENERATED, due_stages


@dataclass
class Ticked:
    """What a look gave. ``words``: dataset (or file) -> what is to be said about it."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    memory: dict[str, Remembered] = field(default_factory=dict)

    def message(self) -> str:
        told = [f"{name}: {word}" for name, word in self.words.items()]
        return "; ".join(told) or "nothing to do"


@dataclass
class Watch:
    """What lives as long as the code location's process, between looks."""

    catalog: Catalog = field(default_factory=Catalog)
    looker: Looker = field(default_factory=Looker)
    reading: Reading | None = None


def tick(
    watch: Watch,
    *,
    roots: Sequence[Path],
    instance: dg.DagsterInstance,
    home: Home,
    memory: Mapping[str, Remembered],
    loaded: Any | None,
    now: float | None = None,
) -> Ticked:
    """``loaded``: the asset graph of the code location, which runs are made of; None: any."""
    now = time.time() if now is None else now
    found, ticked = watch.catalog.read(roots), Ticked()
    for broken in found.broken:
        ticked.words[broken.name] = f"broken, run: synth check {broken.name}"
        if broken.name in memory:  # what it is owed waits until it is mended
            ticked.memory[broken.name] = memory[broken.name]
    active = [d for d in found.datasets.values() if d.spec.refresh.active]
    ticks: dict[str, float | None] = {}
    for dataset in active:
        known, ticks[dataset.name] = owed(
            dataset.spec.refresh, memory.get(dataset.name, Remembered()), now
        )
        ticked.memory[dataset.name] = known
    report_dead_runs(instance)
    busy = under_way(instance, home.root, ticks)
    awake = [
        d
        for d in active
        if d.name not in busy
        and (d.spec.refresh.policy == "on_change" or ticks[d.name] is not None)
    ]
    ticked.words |= {name: f"{what} is under way" for name, what in busy.items()}
    if not awake:
        return ticked
    _look(watch, awake, instance, home, ticked, ticks, now)
    graph = watch.catalog.graph(active)
    reading = watch.reading = read_again(watch.reading, instance, graph, active)
    for dataset in awake:
        if dataset.name in watch.looker.on_their_way:
            ticked.words[dataset.name] = "its source is being looked at"
        elif loaded is not None and (unlike := _unlike(dataset, graph, loaded)):
            ticked.words[dataset.name] = unlike
        else:
            _refresh(dataset, reading, home, ticked, ticks[dataset.name], now)
    return ticked


def _look(
    watch: Watch,
    datasets: Iterable[Dataset],
    instance: dg.DagsterInstance,
    home: Home,
    ticked: Ticked,
    ticks: Mapping[str, float | None],
    now: float,
) -> None:
    """Looks at the sources that are due, and records what is new."""
    named = {dataset.name: dataset for dataset in datasets}
    wanted = [
        dataset
        for name, dataset in named.items()
        if due(dataset, ticked.memory[name].look, now=now, tick=ticks[name])
    ]
    for name, outcome in watch.looker.look(wanted, home, now).items():
        if name not in named:  # the dataset went away, or somebody runs it, while it was looked at
            continue
        known = ticked.memory[name]
        ticked.memory[name] = Remembered(outcome.look, known.schedule, known.served)
        for source, version in outcome.versions.items():
            observe_source(named[name], instance, version, source)


def _unlike(dataset: Dataset, graph: Any, loaded: Any) -> str:
    """Why the code location cannot run the dataset as it is on disk, "" when it can.

    Runs read the declaration from disk, so another prompt or label needs no reload; other stages
    or checks do, because what a run consists of comes from the code location.
    """
    ours, theirs = shapes(graph).get(dataset.name), shapes(loaded).get(dataset.name)
    if ours == theirs:
        return ""
    return ("its stages have changed" if theirs else "it is new") + ": reload the code location"


def _refresh(
    dataset: Dataset,
    reading: Reading,
    home: Home,
    ticked: Ticked,
    owed_tick: float | None,
    now: float,
) -> None:
    known = ticked.memory[dataset.name]
    decision = decision_for(
        dataset,
        reading,
        home,
        tick=owed_tick,
        source_problem=known.look.problem if known.look else "",
        now=now,
    )
    if decision.wave:
        tags = run_tags(dataset, decision.wave)
        if decision.repeats:
            tags[AGAIN_TAG] = decision.repeats
        selection = [key(dataset, stage) for stage in decision.wave]
        ticked.requests.append(dg.RunRequest(asset_selection=selection, tags=tags))
    else:
        ticked.memory[dataset.name] = served(known, owed_tick)
    if decision.wave or decision.held:
        ticked.words[dataset.name] = decision.sentence()


def decision_for(
    dataset: Dataset,
    reading: Reading,
    home: Home,
    *,
    tick: float | None,
    source_problem: str,
    now: float,
) -> Decision:
    """What is to be done with a dataset that nobody runs, by what is recorded."""
    statuses, checks = reading.standing(dataset, ContentStore(home.store))
    return decide(
        statuses,
        checks,
        tried=attempts(dataset, due_stages(statuses), reading.records, checks),
        tick=tick,
        generation=_why_not_generate(dataset, reading.records, tick, now),
        source_problem=source_problem,
    )


def _why_not_generate(dataset: Dataset, records: Records, tick: float | None, now: float) -> str:
    """Why nothing may be generated now, "" when it may."""
    refresh = dataset.spec.refresh
    if refresh.generate == "on_change":
        return ""
    if refresh.generate == "manual":
        return f"refresh.generate is manual; synth run {dataset.name} generates"
    if tick is not None and last_made_or_tried(dataset, GENERATED, records) < tick:
        return ""
    coming = next_tick(refresh, now)
    return f"waits for {coming:%Y-%m-%d %H:%M} UTC" if coming else "waits for the schedule"
