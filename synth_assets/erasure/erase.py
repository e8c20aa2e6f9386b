"""``synth erase``: a person's rows, and all that was made from them, are deleted for good.

What is to go is written down first (``erasures``): the marks by which the rows are left out from
then on, and the work itself. Every step may be repeated, so an erasure that was killed is finished
by the next one, or by the next run, from what was written down.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
from filelock import FileLock

from synth_assets.assets.workbench import Notify
from synth_assets.erasure import dagster_records
from synth_assets.erasure.aftermath import Aftermath, aftermath
from synth_assets.erasure.impact import Impact, ReleaseImpact, impact, imported_texts, opened_ledger
from synth_assets.erasure.past import is_past
from synth_assets.erasure.select import Selector, marks_of
from synth_assets.errors import Incomplete, SynthError, UsageError
from synth_assets.lifecycle.descent import Known
from synth_assets.lifecycle.tombstones import Kind, Tombstones
from synth_assets.llm.ledger.erase import erase_requests, open_batches_with
from synth_assets.run import Session
from synth_assets.settings import Home
from synth_assets.sources import objects
from synth_assets.sources.landing import import_name
from synth_assets.spec.load import Dataset
from synth_assets.spec.sources import FilesSource, HuggingFaceSource, PackageSource
from synth_assets.store import withdrawn
from synth_assets.store.content import WRITING_LOCK, ContentStore, checksum_path
from synth_assets.store.erasures import BEGUN, DONE, Log
from synth_assets.store.releases import ReleaseStore
from synth_assets.tasks import task_for
from synth_assets.turns import Turn, present
from synth_assets.underway import run_under_way

ID_BYTES: Final = 8
LANDING_WAIT_S: Final = 600.0
_SETS: Final = ("texts", "groups", "records", "ids", "made", "calls")


@dataclass
class Erasure:
    """One erasure as it is carried out. ``work`` is what is written down of it."""

    dataset: Dataset
    declared: Mapping[str, Dataset]
    home: Home
    instance: dg.DagsterInstance
    work: dict[str, Any]
    found: Impact

    @property
    def log(self) -> Log:
        return Log(self.home.root, self.dataset.name)


@dataclass(frozen=True)
class Prospect:
    """What would be deleted, and what would have to be asked anew."""

    impact: Impact
    after: Aftermath
    stones: Tombstones
    selectors: tuple[str, ...]


@contextmanager
def alone(home: Home, instance: dg.DagsterInstance, dataset: str, notify: Notify) -> Iterator[None]:
    """The dataset's turn, which automation sees. Raises ``Incomplete`` while Dagster runs it."""
    with present(home.root, dataset), Turn(home.root, dataset, notify=notify) as turn:
        turn.take()
        _nobody_runs(instance, dataset)
        yield


def prospect(
    dataset: Dataset,
    declared: Mapping[str, Dataset],
    home: Home,
    instance: dg.DagsterInstance,
    known: Known,
    selector: Selector,
) -> Prospect:
    """Looks, and changes nothing.

    Raises:
        UsageError: a file of the user's own would bring the text back, or a batch that shows it
            lies at a provider.
    """
    salt = Log(home.root, dataset.name).salt()
    found = impact(dataset, declared, home, instance, known)
    while more := imported_texts(dataset, home, found) - known.texts:
        # They descend, and would be imported again: their own texts are left out from now on.
        known = Known(known.texts | more, known.groups, known.records)
        found = impact(dataset, declared, home, instance, known)
    stones, chosen = _stones(known, selector, salt)
    _not_in_own_files(dataset, known)
    with opened_ledger(home) as ledger:
        batches = open_batches_with(ledger, found.calls) if ledger is not None else []
    if batches:
        token, owner = batches[0]
        raise UsageError(
            f"the batch {token[:8]} of {owner}, which shows the row, lies at the provider",
            fix=f"synth batches cancel {owner}, or collect it, then erase",
        )
    return Prospect(found, aftermath(dataset, home, instance, stones), stones, tuple(chosen))


def outlook(
    dataset: Dataset, home: Home, instance: dg.DagsterInstance, known: Known, selector: Selector
) -> Aftermath:
    """What would come of an erasure that nobody asks for yet."""
    stones, _ = _stones(known, selector, Log(home.root, dataset.name).salt())
    return aftermath(dataset, home, instance, stones)


def _stones(known: Known, selector: Selector, salt: str) -> tuple[Tombstones, list[str]]:
    """The marks of what is erased, and of the words that selected it."""
    marks, chosen = marks_of(known, selector, salt)
    kinds = {_kind(kind): frozenset(these) for kind, these in marks.items()}
    return Tombstones(salt, kinds), chosen


def erase(
    seen: Prospect,
    dataset: Dataset,
    declared: Mapping[str, Dataset],
    home: Home,
    instance: dg.DagsterInstance,
    *,
    reason: str,
) -> dict[str, Any]:
    """Deletes what ``seen`` found; call it alone. What the log says of it.

    Raises:
        Incomplete: a run began meanwhile; nothing is erased.
        SynthError: something cannot be deleted; what is missing is done by the next erasure or run.
    """
    log = Log(home.root, dataset.name)
    log.write_pending(_written_down(seen, reason))
    try:
        # A run that began before may still write what it has read; one that begins now sees what
        # is written down, and reads nothing.
        _nobody_runs(instance, dataset.name)
    except Incomplete:
        log.drop_pending()
        raise
    # What a run may have made since it was looked is found by looking again.
    done = finish(dataset, declared, home, instance)
    assert done is not None
    return done


def finish(
    dataset: Dataset,
    declared: Mapping[str, Dataset],
    home: Home,
    instance: dg.DagsterInstance,
) -> dict[str, Any] | None:
    """Carries out what is left of an erasure that did not come to its end; None: there is none.

    Call it alone.
    """
    log = Log(home.root, dataset.name)
    work = log.pending()
    if work is None:
        log.drop_pending()
        return None
    known = _known(work)
    found = impact(dataset, declared, home, instance, known)
    return _carried_out(Erasure(dataset, declared, home, instance, work, found))


def finish_first(session: Session, declared: Mapping[str, Dataset]) -> None:
    """Before a run: what is left of an erasure. Raises as ``finish``."""
    bench, dataset = session.workbench, session.dataset
    if is_pending(bench.home, dataset.name):
        with alone(bench.home, session.instance, dataset.name, bench.notify):
            bench.notify(f"finishing an erasure of {dataset.name} that was cut short")
            finish(dataset, declared, bench.home, session.instance)


def is_pending(home: Home, dataset: str) -> bool:
    return Log(home.root, dataset).pending_path.exists()


# --- steps: each may be repeated -----------------------------------------------------------------


def _nobody_runs(instance: dg.DagsterInstance, dataset: str) -> None:
    if why := run_under_way(instance, dataset):
        raise Incomplete(f"nothing was erased: {why}", where=dataset, fix="let it end first")


def _tombstone(erasure: Erasure) -> None:
    """From here on the rows are left out of every landing."""
    work = erasure.work
    if any(line["id"] == work["id"] for line in erasure.log.lines()):
        return
    names = ("id", "at", "reason", "salt", "marks", "selectors", "seats")
    erasure.log.append({"event": BEGUN, **{name: work[name] for name in names}})


def _tables(erasure: Erasure) -> None:
    store, name = ContentStore(erasure.home.store), erasure.dataset.name
    listed = {tuple(one) for one in erasure.work["tables"]}
    listed |= set(erasure.found.own.select("stage", "version").iter_rows())
    with store.writing(name):
        for stage, version in sorted(listed):
            path = store.path(name, stage, version)
            checksum_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        for left in (erasure.home.store / name).glob("*/.*"):  # of writers that were killed
            if left.name != WRITING_LOCK:
                _delete(left)


def _releases(erasure: Erasure) -> None:
    work, name = erasure.work, erasure.dataset.name
    store = ReleaseStore(erasure.home.releases)
    for version, rows in _versions(erasure).items():
        stone = withdrawn.tombstone(
            dataset=name,
            version=version,
            erasure=work["id"],
            at=work["at"],
            reason=work["reason"],
            rows=rows,
        )
        withdrawn.write(erasure.home.releases, stone)
    for version in _versions(erasure):
        store.withdraw(name, version)
    for left in (erasure.home.releases / name).glob(".*"):
        _delete(left)


def _exports(erasure: Erasure) -> None:
    root = erasure.home.root / "exports" / erasure.dataset.name
    for name in {*erasure.work["exports"], *(path.name for path in erasure.found.exports)}:
        _delete(root / name)


def _landing(erasure: Erasure) -> None:
    """What has landed, and copies of what lies elsewhere: the next run fetches and lands anew."""
    for name in (erasure.dataset.name, import_name(erasure.dataset.name)):
        folder = erasure.home.root / "landing" / name
        if folder.is_dir():
            with FileLock(folder / "lock", timeout=LANDING_WAIT_S):
                for path in folder.iterdir():
                    if path.name != "lock":
                        _delete(path)
    _delete(erasure.home.root / "snapshots" / erasure.dataset.name)
    cache = erasure.home.cache
    if is_past(erasure.dataset):  # nobody knows what its source was
        for kind in ("artifacts", "members", "objects"):
            _delete(cache / kind)
    for source in erasure.dataset.spec.all_sources:
        if isinstance(source, PackageSource):
            _delete(cache / "artifacts" / source.sha256)
            _delete(cache / "members" / source.sha256)
        far = isinstance(source, FilesSource) and objects.is_url(source.path)
        if far or isinstance(source, HuggingFaceSource):
            _delete(cache / "objects")


def _ledger(erasure: Erasure) -> None:
    with opened_ledger(erasure.home) as ledger:
        if ledger is not None:
            erase_requests(ledger, {*erasure.work["known"]["calls"], *erasure.found.calls})
            ledger.backend.scrub()


def _dagster(erasure: Erasure) -> None:
    dagster_records.forget(erasure.instance, erasure.dataset.name)


def _logs(erasure: Erasure) -> None:
    folder = erasure.home.logs
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file():
            said = pl.Series("text", [path.read_bytes().decode("utf-8", "replace")], pl.String)
            if erasure.found.known.holds(said).any():
                _delete(path)


def _record(erasure: Erasure) -> None:
    work, log = erasure.work, erasure.log
    if any((line["event"], line["id"]) == (DONE, work["id"]) for line in log.lines()):
        return
    stones = withdrawn.withdrawn(erasure.home.releases, erasure.dataset.name)
    mine = {v: str(one["sha256"]) for v, one in stones.items() if one.get("erasure") == work["id"]}
    tables = {tuple(one) for one in work["tables"]}
    tables |= set(erasure.found.own.select("stage", "version").iter_rows())
    log.append(
        {
            "event": DONE,
            "id": work["id"],
            "at": _now(),
            "removed": work["counts"],
            "tables": [list(one) for one in sorted(tables)],
            "releases": mine,
            "others": work["others"],
        }
    )


def _forget_work(erasure: Erasure) -> None:
    erasure.log.drop_pending()


Step = Callable[[Erasure], None]
STEPS: list[Step] = [
    _tombstone,
    _tables,
    _releases,
    _exports,
    _landing,
    _ledger,
    _dagster,
    _logs,
    _record,
    _forget_work,
]


# --- helpers -------------------------------------------------------------------------------------


def _carried_out(erasure: Erasure) -> dict[str, Any]:
    for step in STEPS:
        try:
            step(erasure)
        except OSError as error:
            raise SynthError(
                f"cannot be deleted: {error.strerror or error}",
                where=str(error.filename or erasure.home.root),
                fix=f"mend that, then run it again: synth erase {erasure.dataset.name}",
            ) from error
    done = [line for line in erasure.log.lines() if line["event"] == DONE]
    return next(line for line in reversed(done) if line["id"] == erasure.work["id"])


def _written_down(seen: Prospect, reason: str) -> dict[str, Any]:
    found, known = seen.impact, seen.impact.known
    kept: dict[str, Any] = {name: sorted(getattr(known, name)) for name in _SETS}
    kept["prompts"] = sorted(one.hex() for one in known.prompts)
    kept["calls"] = sorted(found.calls)
    return {
        "id": secrets.token_hex(ID_BYTES),
        "at": _now(),
        "reason": reason,
        "salt": seen.stones.salt,
        "marks": {kind: sorted(marks) for kind, marks in seen.stones.marks.items()},
        "selectors": list(seen.selectors),
        "seats": [one.to_dict() for one in seen.after.seats],
        "known": kept,
        "tables": [list(one) for one in found.own.select("stage", "version").iter_rows()],
        "releases": {one.version: dict(one.rows) for one in found.releases},
        "exports": [path.name for path in found.exports],
        "counts": counts_of(found),
        "others": sorted(found.others),
    }


def counts_of(found: Impact) -> dict[str, Any]:
    """How much there is of everything, without saying what."""
    return {
        "rows": {stage["stage"]: stage["most_rows"] for stage in found.stages()},
        "tables": found.own.height,
        "calls": found.kept.calls,
        "failures": found.kept.failures,
        "releases": len(found.releases),
        "exports": len(found.exports),
    }


def _known(work: Mapping[str, Any]) -> Known:
    kept = work["known"]
    return Known(
        texts=frozenset(kept["texts"]),
        groups=frozenset(kept["groups"]),
        records=frozenset(kept["records"]),
        ids=set(kept["ids"]),
        made=set(kept["made"]),
        calls=set(kept["calls"]),
        prompts={bytes.fromhex(one) for one in kept["prompts"]},
    )


def _versions(erasure: Erasure) -> dict[str, dict[str, int]]:
    """The releases to withdraw, with the rows found in them."""
    listed: dict[str, dict[str, int]] = dict(erasure.work["releases"])
    more: list[ReleaseImpact] = erasure.found.releases
    return {one.version: dict(one.rows) for one in more} | listed


def _not_in_own_files(dataset: Dataset, known: Known) -> None:
    """Refuse while a file beside the declaration says it: it would be shown again at once."""
    if is_past(dataset):
        return
    said = [
        (dataset.prompt.file, known.holds(pl.Series("text", [dataset.prompt.text], pl.String))),
        (dataset.file, known.holds(pl.Series("text", [dataset.file.read_text("utf-8-sig")]))),
    ]
    column = task_for(dataset.spec).text
    seeds = pl.Series("text", [row[column] for row in dataset.handwritten_seeds], dtype=pl.String)
    file = dataset.folder / (dataset.spec.seeds.file or "seeds.jsonl")
    said.append((file, known.is_text(seeds) | known.holds(seeds)))
    for path, found in said:
        if found.any():
            raise UsageError(
                "this file of yours says what is to be erased; the next run would show it again",
                where=str(path),
                fix="take it out of the file, then erase",
            )


def _kind(name: str) -> Kind:
    return name  # type: ignore[return-value]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
