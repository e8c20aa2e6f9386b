"""Make a release again, from what it carries with it, the ledger and the source, and compare.

Everything runs in an empty home: the graph as the release declared it, with answers copied from
the ledger. Nothing is bought, by construction: the endpoint that the run is given is one on this
machine that refuses and counts every call, under the identity that the answers were bought with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dagster as dg
import orjson
import polars as pl
import yaml
from pydantic import ValidationError

from synth_assets.assets.provenance import LEDGER_URL_ENV, requests_of
from synth_assets.assets.releasing import DEFS, PROMPT, SEEDS
from synth_assets.assets.source import source_versions
from synth_assets.assets.stages import SOURCE, STAGES
from synth_assets.assets.workbench import Notify, Workbench
from synth_assets.errors import SourceError, SynthError, UsageError
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.sync import run_sync
from synth_assets.run import Session, run_dataset
from synth_assets.settings import Home
from synth_assets.spec.load import Dataset
from synth_assets.spec.model import Budget, DatasetSpec
from synth_assets.spec.prompt import PromptTemplate
from synth_assets.status import StageStatus
from synth_assets.store.content import ContentStore
from synth_assets.store.erasures import Log
from synth_assets.store.releases import read_manifest
from synth_assets.store.verify import Problem, verify_release
from synth_assets.upkeep.refusing import refusing_endpoint

# What every other stage but the release itself leads to.
LAST_STAGE = "contribution"
NO_SUCH_KEY_ENV = "SYNTH_REPRODUCTION_ASKS_NOBODY"
# Batches at a provider give the same answers, and there is nobody to hand one to.
_LIVE = {"mode": "live"}
_AT_ONCE = 200
_NAMED = 10


@dataclass(frozen=True)
class StageComparison:
    """A stage as released and as made again (None: it was not made)."""

    stage: str
    released: str
    reproduced: str | None

    @property
    def same(self) -> bool:
        return self.released == self.reproduced


@dataclass
class Reproduction:
    """``problems`` may explain what is not the same: what the run said, a source that changed."""

    version: str
    dataset: str
    stages: list[StageComparison] = field(default_factory=list)
    answers: int = 0
    calls_tried: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.calls_tried and all(stage.same for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "dataset": self.dataset,
            "same": self.same,
            "stages": [vars(stage) | {"same": stage.same} for stage in self.stages],
            "answers_copied": self.answers,
            "calls_tried": self.calls_tried,
            "problems": self.problems,
        }


@dataclass(frozen=True)
class _NewHome(Home):
    """An empty home that shares the fetched packages of another (they are pinned by hash)."""

    shared_cache: Path

    @property
    def cache(self) -> Path:
        return self.shared_cache


def reproduce(
    folder: Path,
    *,
    into: Path,
    home: Home,
    source_folder: Path | None,
    notify: Notify = lambda line: None,
) -> Reproduction:
    """Make the release in ``folder`` again in the empty folder ``into``.

    ``home``: whose ledger and cache are used. ``source_folder``: the dataset's folder, where
    relative source paths start.

    Raises:
        UsageError: ``into`` is not empty.
        SynthError: a damaged release, a source that cannot be seen, no ledger.
    """
    _must_be_empty(into)
    made = _verified(folder)
    ledger = os.environ.get(LEDGER_URL_ENV, "").strip() or home.ledger
    dataset = _declared(folder, made, source_folder)
    new = _NewHome(into.resolve(), home.cache)
    _copy_erasures(home, new, dataset.name)
    found = Reproduction(str(made["version"]), dataset.name)
    for name, seen in _seen(dataset, new).items():
        wanted = str(made["source"].get("version" if name == SOURCE else name))
        if seen != wanted:
            told = f"the {name.replace('_', ' ')} has changed"
            found.problems.append(f"{told}: released {wanted[:12]}, now {seen[:12]}")
    if found.problems and Log(new.root, dataset.name).tombstones():
        found.problems.append("rows of it were erased, which stay away here too")
    asked = _released_calls(home, made)
    with refusing_endpoint() as nobody, _own_ledger():
        dataset = _asking_nobody(dataset, made["model"], asked, ledger, new, nobody.base_url, found)
        notify(f"{found.answers} answers copied; making {dataset.name} again in {into}")
        statuses = _run(dataset, new, notify, found)
    _compare(made, statuses, found)
    found.calls_tried = nobody.calls
    if nobody.calls and asked is None:
        found.problems.append(_not_there(_refused(new)))
    return found


def _copy_erasures(home: Home, new: Home, dataset: str) -> None:
    """What was erased is not made again, whatever the release was made of."""
    log = Log(home.root, dataset)
    log.lines()  # raises when it is not whole
    if log.path.exists():
        copy = Log(new.root, dataset).path
        copy.parent.mkdir(parents=True)
        shutil.copyfile(log.path, copy)


def _must_be_empty(into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(
            f"{into} is not an empty folder", fix="name one that does not exist yet with --into"
        )


def _verified(folder: Path) -> Mapping[str, Any]:
    problems: list[Problem] = verify_release(folder)
    if problems:
        raise SynthError(
            f"the release is damaged: {problems[0]}", fix="synth verify lists everything"
        )
    return read_manifest(folder)


def _declared(folder: Path, made: Mapping[str, Any], source_folder: Path | None) -> Dataset:
    """The dataset as the release's own files declare it, standing where its source is.

    Raises:
        SynthError: files that this version of the project cannot read.
    """
    try:
        document = yaml.safe_load((folder / DEFS).read_text(encoding="utf-8"))
        spec = DatasetSpec.model_validate(document.get("attributes") or {})
        prompt = (folder / PROMPT).read_text(encoding="utf-8") if spec.generates else ""
        lines = (folder / SEEDS).read_bytes().splitlines() if (folder / SEEDS).exists() else []
        seeds = tuple(orjson.loads(line) for line in lines)
    except (OSError, ValueError, yaml.YAMLError, ValidationError, AttributeError) as error:
        raise SynthError(
            f"this version of synth_assets cannot read the release's declaration: {error}",
            where=str(folder),
            fix=f"use the version that made it: {made['packages'].get('synth_assets')}",
        ) from error
    template = PromptTemplate(folder / PROMPT, prompt)
    return Dataset(str(made["dataset"]), source_folder or folder, spec, template, seeds)


@contextmanager
def _own_ledger() -> Iterator[None]:
    """Inside, the ledger is the one in the home, whatever the environment says."""
    configured = os.environ.pop(LEDGER_URL_ENV, None)
    try:
        yield
    finally:
        if configured is not None:
            os.environ[LEDGER_URL_ENV] = configured


def _seen(dataset: Dataset, new: Home) -> dict[str, str]:
    """The versions of the sources as they are now.

    Raises:
        SourceError: it cannot be seen.
    """
    try:
        return source_versions(dataset, new)
    except SourceError as error:
        fix = "; or --source-folder DIR, where relative paths start"
        raise SourceError(error.problem, where=error.where, fix=error.fix + fix) from error


def _released_calls(home: Home, made: Mapping[str, Any]) -> list[str] | None:
    """The ids of the calls whose answers the release was made of.

    They are in the stored candidates; None where those are gone or are not what was released.
    """
    if "candidates" not in made["stages"]:  # nothing was generated
        return []
    dataset, version = str(made["dataset"]), str(made["stages"]["candidates"]["data_version"])
    path = ContentStore(home.store).path(dataset, "candidates", version)
    try:
        ids = pl.read_parquet(path, columns=["request_id"])["request_id"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return None
    known = ids.drop_nulls().unique().sort().to_list()
    return known if requests_of(known) == made["requests"] else None


def _not_there(ids: list[str]) -> str:
    """Which answers are missing, in words."""
    named = ", ".join(one[:_NAMED] for one in ids[:_NAMED])
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{len(ids)} answers that the release was made of are not in the ledger: {named}{more}"


def _refused(new: Home) -> list[str]:
    """The ids of the calls that were tried here, sorted."""
    with Ledger.open(new.ledger) as ledger:
        return sorted({failure.request_id for failure in ledger.failures()})


def _asking_nobody(
    dataset: Dataset,
    model: Mapping[str, Any],
    asked: list[str] | None,
    ledger: str | Path,
    new: Home,
    address: str,
    found: Reproduction,
) -> Dataset:
    """The dataset with the refusing endpoint, once the release's answers are in the new ledger.

    ``asked``: the ids of its calls, as far as they are known.
    """
    if not dataset.spec.generates:
        return dataset
    generate = dataset.spec.generation
    asked_as, identity = model["asked_as"], None
    if asked_as is not None:
        identity, copied = _copy_answers(ledger, new, dataset.name, model, asked)
        found.answers = len(copied)
        if missing := sorted(set(asked or ()) - copied):
            found.problems.append(_not_there(missing))
    endpoint = generate.endpoint.model_copy(
        update={
            "base_url": address,
            "name": identity or generate.endpoint.name or address,
            "api_key_env": NO_SUCH_KEY_ENV,
        }
    )
    live = {name: value for name, value in _LIVE.items() if name in type(generate).model_fields}
    changed = {"endpoint": endpoint, "model_name": asked_as or generate.model_name, **live}
    if generate.budget is not None:
        # What the budget had no room for is not asked here either, whatever was bought since.
        changed["budget"] = Budget(calls=max(1, found.answers)) if asked is not None else None
    spec = dataset.spec.model_copy(update={"generate": generate.model_copy(update=changed)})
    return replace(dataset, spec=spec)


def _copy_answers(
    ledger: str | Path, new: Home, dataset: str, model: Mapping[str, Any], asked: list[str] | None
) -> tuple[str, set[str]]:
    """Intact answers of the model at that endpoint, and how it was asked, to a new ledger.

    Those to the calls ``asked``, or all (None). The endpoint's identity and the ids of what was
    copied.

    Raises:
        SynthError: the ledger holds nothing of it.
    """
    name, identity_sha256 = str(model["asked_as"]), str(model["endpoint"]["identity"])
    nothing = SynthError(
        f"the ledger holds no answer of {name} from the endpoint that was asked",
        fix="point SYNTH_HOME to the home whose ledger has the release's calls",
    )
    if isinstance(ledger, Path) and not ledger.exists():
        raise nothing
    with Ledger.open(ledger) as old, Ledger.open(new.ledger) as kept:
        rows = old.query("SELECT DISTINCT endpoint FROM calls WHERE model = ?", (name,))
        known = {hashlib.sha256(str(row[0]).encode()).hexdigest(): str(row[0]) for row in rows}
        if identity_sha256 not in known:
            raise nothing
        identity = known[identity_sha256]
        query = "SELECT request_id FROM calls WHERE endpoint = ? AND model = ? ORDER BY request_id"
        ids = asked or [str(row[0]) for row in old.query(query, (identity, name))]
        copied = run_sync(_copied(old, kept, ids, dataset))
        run_sync(kept.remember(identity, name, str(model["output_mode"])))
    return identity, copied


async def _copied(old: Ledger, kept: Ledger, ids: list[str], dataset: str) -> set[str]:
    """The ids of the answers copied; ``dataset`` counts as who paid for them."""
    copied: set[str] = set()
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        intact = old.answers(part)  # a damaged answer must not become a good one by being copied
        calls = [call for one in part if one in intact and (call := old.call(one)) is not None]
        await asyncio.gather(*(kept.put(replace(call, dataset=dataset)) for call in calls))
        copied |= {call.request_id for call in calls}
    return copied


def _run(dataset: Dataset, new: Home, notify: Notify, found: Reproduction) -> list[StageStatus]:
    place = new.root / "dagster"
    place.mkdir(parents=True, exist_ok=True)
    (place / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with dg.DagsterInstance.from_config(str(place)) as instance:
        session = Session.open(dataset, instance, Workbench(new, notify=notify))
        summary = run_dataset(session, until=LAST_STAGE)
    found.problems += summary.problems
    return summary.statuses


def _compare(made: Mapping[str, Any], statuses: list[StageStatus], found: Reproduction) -> None:
    again = {status.stage: status.data_version for status in statuses}
    found.stages = [
        StageComparison(stage, str(one["data_version"]), again.get(stage))
        for stage, one in sorted(made["stages"].items(), key=lambda item: _place(item[0]))
    ]


def _place(stage: str) -> int:
    """Where the stage stands in the graph; unknown ones last."""
    return list(STAGES).index(stage) if stage in STAGES else len(STAGES)
