"""When a dataset's sources are looked at, and looking without holding anybody up.

Local files are looked at in every tick by their stat, and hashed when that changed. What lies
elsewhere is looked at every ``refresh.observe_every``, pinned things once. A look runs in a thread
of its own: a tick waits a while for all of them together, and a later tick takes the result of
one that was slow. A look that failed is a look: the next one comes when it would have come anyway.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from synth_assets.assets.source import source_versions
from synth_assets.errors import SynthError
from synth_assets.refresh.files import stats
from synth_assets.settings import Home
from synth_assets.sources import huggingface, objects
from synth_assets.sources.files import expand
from synth_assets.spec.load import Dataset
from synth_assets.spec.refresh import duration
from synth_assets.spec.sources import AnySource, FilesSource, HuggingFaceSource, PackageSource

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Look:
    """The last look at a dataset's sources. ``declared``, ``files``: marks of what was looked at.

    ``files`` is empty when the files were too young to be trusted; ``problem`` when there is none.
    """

    declared: str = ""
    files: str = ""
    at: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a look gave: every source's version, or none and the problem."""

    look: Look
    versions: dict[str, str]


class Looker:
    """Lives as long as its process; at most one look per dataset is on its way."""

    def __init__(self) -> None:
        self._running: dict[str, _Thread] = {}

    def look(self, datasets: Iterable[Dataset], home: Home, now: float) -> dict[str, Outcome]:
        """Looks at ``datasets``; results of these and of earlier looks that have ended by now."""
        for dataset in datasets:
            if dataset.name not in self._running:
                thread = _Thread(dataset, home, now)
                self._running[dataset.name] = thread
                thread.start()
        deadline = time.monotonic() + PATIENCE_S
        for thread in self._running.values():
            thread.join(max(deadline - time.monotonic(), 0.0))
        ended = {name: t for name, t in self._running.items() if not t.is_alive()}
        for name in ended:
            del self._running[name]
        return {name: t.outcome for name, t in ended.items() if t.outcome is not None}

    @property
    def on_their_way(self) -> frozenset[str]:
        return frozenset(self._running)


class _Thread(threading.Thread):
    def __init__(self, dataset: Dataset, home: Home, now: float) -> None:
        # A daemon: a server that never answers must not keep the process from ending.
        super().__init__(name=f"look-{dataset.name}", daemon=True)
        self._dataset, self._home, self._now = dataset, home, now
        self.outcome: Outcome | None = None

    def run(self) -> None:
        mark, settled = _stats(self._dataset, time.time())
        look = Look(declared_mark(self._dataset), mark if settled else "", self._now)
        try:
            self.outcome = Outcome(look, source_versions(self._dataset, self._home))
        except SynthError as error:
            self.outcome = Outcome(replace(look, problem=error.problem), {})
        except Exception as error:  # a driver's own; its words may repeat a connection string
            problem = f"cannot be looked at ({type(error).__name__})"
            self.outcome = Outcome(replace(look, problem=problem), {})


def due(dataset: Dataset, last: Look | None, *, now: float, tick: float | None) -> bool:
    """Whether the sources are to be looked at. ``tick``: the schedule's that is owed, epoch s."""
    if last is None or last.declared != declared_mark(dataset):
        return True
    if last.files != files_mark(dataset):
        return True
    kinds = {lies(source) for source in dataset.spec.all_sources}
    if "elsewhere" not in kinds and not (last.problem and "pinned" in kinds):
        return False
    if tick is not None and last.at < tick:
        return True
    every = duration(dataset.spec.refresh.observe_every).total_seconds()
    return dataset.spec.refresh.policy == "on_change" and now - last.at >= every


def lies(source: AnySource) -> str:
    """``here`` (local files), ``pinned`` (its version never changes) or ``elsewhere``."""
    match source:
        case FilesSource() if not objects.is_url(source.path):
            return "here"
        case PackageSource():
            return "pinned"
        case HuggingFaceSource() if huggingface.is_commit(source.revision):
            return "pinned"
    return "elsewhere"


def declared_mark(dataset: Dataset) -> str:
    declared = [source.model_dump(mode="json") for source in dataset.spec.all_sources]
    body = json.dumps([str(dataset.folder), declared], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def files_mark(dataset: Dataset) -> str:
    """Hash of the stats of all local files of the sources."""
    return _stats(dataset, 0.0)[0]


def _stats(dataset: Dataset, now: float) -> tuple[str, bool]:
    """The mark, and whether all files are old enough for it to be trusted."""
    marks, settled = [], True
    for source in dataset.spec.all_sources:
        if not isinstance(source, FilesSource) or lies(source) != "here":
            continue
        try:
            files = expand(objects.local(source.path), base=dataset.folder)
        except SynthError:
            marks.append("absent")
            continue
        seen = stats(path for _, path in files)
        marks.append(seen.mark)
        settled = settled and seen.settled(now)
    return ",".join(marks), settled
