"""Taking a dataset out of Dagster's records: its runs, events, checks and logs.

Dagster keeps what a page shows of an asset: a preview of its rows, a prompt, rows that broke a
check. Such excerpts are cut and escaped, so no search would find all of them: everything about the
dataset goes, and the next run makes its stages again, out of the ledger.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as EVENTS
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from synth_assets.assets.stages import SOURCE, STAGES
from synth_assets.errors import SynthError

BUSY_S: Final = 30.0


def forget(instance: dg.DagsterInstance, dataset: str) -> int:
    """Deletes every record of the dataset; how many runs went. May be repeated.

    A run that also made other datasets stays, without what it says of this one.

    Raises:
        SynthError: another process keeps Dagster's database from being rewritten.
    """
    runs = set(runs_of(instance, dataset))
    shared = {run for run in runs if _has_others(instance, run, dataset)}
    for run in sorted(shared):
        _forget_part(instance, run, dataset)
    for run in sorted(runs - shared):
        _forget_logs(instance, run)
        instance.delete_run(run)
    keys = [dg.AssetKey([dataset, stage]) for stage in (SOURCE, *STAGES)]
    instance.wipe_assets(sorted({*keys, *instance.get_asset_keys(prefix=[dataset])}))
    _rewrite(instance, shared)
    return len(runs)


def runs_of(instance: dg.DagsterInstance, dataset: str) -> Iterator[str]:
    """The runs that touched the dataset, by their selection, their tags or their events."""
    for record in instance.get_run_records():
        run = record.dagster_run
        touched = {key.path[0] for key in run.asset_selection or ()}
        touched |= {check.asset_key.path[0] for check in run.asset_check_selection or ()}
        touched |= {run.tags["synth/dataset"]} if "synth/dataset" in run.tags else set()
        if dataset in touched or dataset in _datasets_in(instance, run.run_id):
            yield run.run_id


def in_sqlite(instance: dg.DagsterInstance) -> bool:
    """Whether Dagster's records are SQLite files, which can be rewritten from here."""
    return isinstance(instance.event_log_storage, SqliteEventLogStorage)


def _datasets_in(instance: dg.DagsterInstance, run: str) -> set[str]:
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return set()
    wanted = sa.select(EVENTS.c.asset_key).distinct().where(EVENTS.c.run_id == run)
    with storage.index_connection() as connection:
        found = [row[0] for row in connection.execute(wanted) if row[0]]
    keys = [dg.AssetKey.from_db_string(text) for text in found]
    return {key.path[0] for key in keys if key is not None}


def _has_others(instance: dg.DagsterInstance, run: str, dataset: str) -> bool:
    return bool(_datasets_in(instance, run) - {dataset})


def _forget_part(instance: dg.DagsterInstance, run: str, dataset: str) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    about = sa.or_(
        EVENTS.c.asset_key.like(f'["{dataset}",%'),
        EVENTS.c.step_key.like(f"{dataset}\\_\\_%", escape="\\"),
    )
    for connected in (storage.run_connection(run), storage.index_connection()):
        with connected as connection:
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.run_id == run, about))
    _forget_logs(instance, run)


def _forget_logs(instance: dg.DagsterInstance, run: str) -> None:
    instance.compute_log_manager.delete_logs(prefix=[run])
    shutil.rmtree(Path(instance.root_directory) / "storage" / run, ignore_errors=True)


def _rewrite(instance: dg.DagsterInstance, shared: set[str]) -> None:
    """Takes the bytes of deleted records out of SQLite's files."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        return
    known = {record.dagster_run.run_id for record in instance.get_run_records()}
    # Files of runs that are gone, by us now or before a kill.
    for run in set(storage.get_all_run_ids()) - known:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{storage.path_for_shard(run)}{suffix}").unlink(missing_ok=True)
    index = Path(storage.path_for_shard("index"))
    kept = [index, index.parent.parent / "runs.db"]
    kept += [Path(storage.path_for_shard(run)) for run in sorted(shared)]
    for path in kept:
        if path.exists():
            _vacuumed(path)


def _vacuumed(path: Path) -> None:
    problem = "another process reads it"
    until = time.monotonic() + BUSY_S
    while time.monotonic() < until:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as connection:
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return
        except sqlite3.Error as error:
            problem = str(error)
        time.sleep(0.1)
    raise SynthError(
        f"deleted records cannot be taken out of Dagster's database: {problem}",
        where=str(path),
        fix="stop dagster's webserver and daemon, then run it again",
    )
