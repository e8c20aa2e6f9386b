"""The ledger in SQLite: synchronous, one connection that writes and one that reads.

Durability: WAL with ``synchronous=FULL``, so that a commit survives a killed process and a power
cut; every row of a batch shares the one fsync. Damage is met where it is found: a row whose body
no longer fits its checksum is skipped; a file that SQLite calls malformed is copied row by row
into a new one (see ``rescue``) and put aside.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from synth_assets.llm import ledger_sql as sql
from synth_assets.llm.owners import is_gone
from synth_assets.llm.rescue import opening_lock, rescued
from synth_assets.llm.rows import (
    Batch,
    CallRow,
    Claims,
    FailureRow,
    LedgerError,
    Owner,
    Spent,
    StoredAnswer,
    Written,
)

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 60.0
CHUNK = 400
_DAMAGE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_CLAIMS = Claims(frozenset(), frozenset(), frozenset())

T = TypeVar("T")


class SqliteBackend:
    """Opens or creates the file at ``path``. ``write`` from one thread, reads from any."""

    def __init__(self, path: Path, *, lease_s: float) -> None:
        self._path = path
        self._lease_s = lease_s
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise LedgerError(f"cannot open the ledger: {error}", where=str(path)) from error
            self._repair(str(error))

    def close(self) -> None:
        self._writer.close()
        with self._reading:
            self._reader.close()

    def write(self, batch: Batch) -> Written:
        """One transaction, on disk when this returns. Raises LedgerError."""
        try:
            try:
                with self._writing:
                    return self._write_here(batch)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._repair(str(error))
                with self._writing:
                    return self._write_here(batch)
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot write the ledger: {error}",
                where=str(self._path),
                fix="free disk space or mend the file's permissions; answers already written "
                "are safe and are not asked again",
            ) from error

    def answers(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """The stored answers among ``ids``; damaged ones are left out with a warning."""
        found: dict[str, StoredAnswer] = {}
        for chunk in _chunks(ids):
            for row in self._readable(chunk):
                answer = StoredAnswer._make(row)
                if answer.intact:
                    found[answer.request_id] = answer
                else:
                    log.warning("ledger: damaged answer of %s skipped", answer.request_id)
        return found

    def call(self, request_id: str) -> CallRow | None:
        query = f"SELECT {sql.CALL_COLUMNS} FROM calls WHERE request_id = ?"
        rows = self.query(query, (request_id,))
        return CallRow(*sql.with_request_bytes(rows[0])) if rows else None

    def failures(self, request_id: str | None = None) -> list[FailureRow]:
        where = " WHERE request_id = ?" if request_id else ""
        query = f"SELECT {sql.FAILURE_COLUMNS} FROM failures{where} ORDER BY started_at"
        rows = self.query(query, (request_id,) if request_id else ())
        return [FailureRow(*sql.with_request_bytes(row)) for row in rows]

    def spent(self, dataset: str | None = None) -> Spent:
        where = " WHERE dataset = ?" if dataset is not None else ""
        rows = self.query(sql.SPENT + where, (dataset,) if dataset is not None else ())
        return Spent(*rows[0])

    def capability(self, endpoint: str, model: str) -> str | None:
        query = "SELECT mode FROM capabilities WHERE endpoint = ? AND model = ?"
        rows = self.query(query, (endpoint, model))
        return str(rows[0][0]) if rows else None

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement. Raises LedgerError."""
        try:
            try:
                return self._query(statement, parameters)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._repair(str(error))
                return self._query(statement, parameters)
        except sqlite3.Error as error:
            raise LedgerError(f"cannot read the ledger: {error}", where=str(self._path)) from error

    # -- opening -----------------------------------------------------------------------------

    def _open(self) -> None:
        with opening_lock(self._path):
            self._writer = _connected(self._path)
            try:
                self._migrate()
                self._reader = _connected(self._path)
            except BaseException:
                self._writer.close()
                raise
            self._inode = _inode(self._path)

    def _migrate(self) -> None:
        self._writer.execute("PRAGMA journal_mode=WAL")
        with _transaction(self._writer) as cursor:
            cursor.execute(sql.VERSION_TABLE)
            row = cursor.execute("SELECT max(version) FROM schema_version").fetchone()
            version = row[0] or 0
            if version > sql.SCHEMA_VERSION:
                raise LedgerError(
                    f"the ledger has version {version}; this program knows {sql.SCHEMA_VERSION}",
                    where=str(self._path),
                    fix="upgrade the program, or name another ledger",
                )
            for step in range(version + 1, sql.SCHEMA_VERSION + 1):
                for statement in sql.MIGRATIONS[step]:
                    cursor.execute(statement)
                cursor.execute("INSERT INTO schema_version (version) VALUES (?)", (step,))

    def _repair(self, reason: str) -> None:
        log.warning("ledger: %s is damaged (%s); copying what is readable", self._path, reason)
        with self._writing:
            with contextlib.suppress(AttributeError, sqlite3.Error):
                self.close()
            rescued(self._path, create=_create)
            self._open()

    # -- writing -----------------------------------------------------------------------------

    def _write_here(self, batch: Batch) -> Written:
        """Writes, and again if the file was replaced by another process's repair meanwhile."""
        while True:
            written = self._transact(batch)
            if _inode(self._path) == self._inode:
                return written
            log.warning("ledger: %s was replaced; writing to the new file", self._path)
            self.close()
            self._open()

    def _transact(self, batch: Batch) -> Written:
        now = time.time()
        with _transaction(self._writer) as cursor:
            kept = [_inserted_call(cursor, call) for call in batch.calls]
            cursor.executemany(sql.DROP_CLAIM, [(call.request_id,) for call in batch.calls])
            cursor.executemany(sql.INSERT_FAILURE, [sql.failure_values(f) for f in batch.failures])
            cursor.executemany(sql.DROP_CLAIM, [(name,) for name in batch.releases])
            cursor.executemany(sql.REMEMBER, [(*row, now) for row in batch.capabilities])
            claims = _NO_CLAIMS
            if batch.owner is not None:
                owner = batch.owner
                cursor.execute(sql.HEARTBEAT, (owner.token, owner.host, owner.pid, owner.born, now))
                if batch.claims:
                    claims = self._claimed(cursor, owner, batch.claims, now=now)
        return Written(kept=kept, claims=claims)

    def _claimed(
        self, cursor: sqlite3.Cursor, owner: Owner, ids: Sequence[str], *, now: float
    ) -> Claims:
        granted = _inserted_claims(cursor, owner, ids)
        if len(granted) < len(ids):
            self._drop_gone_owners(cursor, now=now)
            rest = [name for name in ids if name not in granted]
            granted |= _inserted_claims(cursor, owner, rest)
        # After the insert: an answer written before it is visible now, one written later cannot
        # be, since writing it takes the claim that we hold.
        answered = {
            row[0]
            for chunk in _chunks(ids)
            for row in cursor.execute(sql.select_answered(len(chunk)), chunk)
        }
        cursor.executemany(sql.DROP_CLAIM, [(name,) for name in granted & answered])
        return Claims(
            granted=frozenset(granted - answered),
            answered=frozenset(answered),
            held=frozenset(set(ids) - granted - answered),
        )

    def _drop_gone_owners(self, cursor: sqlite3.Cursor, *, now: float) -> None:
        rows = cursor.execute("SELECT token, host, pid, born, heartbeat_at FROM owners").fetchall()
        for *who, heartbeat_at in rows:
            owner = Owner(*who)
            if is_gone(owner, heartbeat_at=heartbeat_at, now=now, lease_s=self._lease_s):
                cursor.execute("DELETE FROM claims WHERE owner = ?", (owner.token,))
                cursor.execute("DELETE FROM owners WHERE token = ?", (owner.token,))

    def leave(self, owner: Owner) -> None:
        """Gives back whatever the owner still claims."""
        with contextlib.suppress(sqlite3.Error), _transaction(self._writer) as cursor:
            cursor.execute("DELETE FROM claims WHERE owner = ?", (owner.token,))
            cursor.execute("DELETE FROM owners WHERE token = ?", (owner.token,))

    # -- reading -----------------------------------------------------------------------------

    def _query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._reading:
            return self._reader.execute(statement, parameters).fetchall()

    def _readable(self, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        try:
            return self._query(sql.select_answers(len(ids)), ids)
        except sqlite3.DatabaseError as error:
            if not (is_damage(error) or is_undecodable(error)):
                where = str(self._path)
                raise LedgerError(f"cannot read the ledger: {error}", where=where) from error
        return self._readable_one_by_one(ids)

    def _readable_one_by_one(self, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for name in ids:
            try:
                yield from self._query(sql.select_answers(1), (name,))
            except sqlite3.DatabaseError as error:
                log.warning("ledger: unreadable answer of %s skipped (%s)", name, error)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is broken, not the statement or the disk."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE_CODES


def is_undecodable(error: sqlite3.Error) -> bool:
    """Whether a text column of a damaged row is no UTF-8 any more."""
    return "Could not decode to UTF-8" in str(error)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous=FULL")
    # A checkpoint costs two fsyncs: one per 16 MB of log, not per 4.
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection


def _create(path: Path) -> sqlite3.Connection:
    """An empty ledger in a new file, for a repair to fill."""
    connection = _connected(path)
    for statements in sql.MIGRATIONS.values():
        for statement in statements:
            connection.execute(statement)
    connection.execute(sql.VERSION_TABLE)
    connection.execute("INSERT INTO schema_version (version) VALUES (?)", (sql.SCHEMA_VERSION,))
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
        cursor.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            cursor.execute("ROLLBACK")
        raise


def _inserted_call(cursor: sqlite3.Cursor, call: CallRow) -> bool:
    """Whether the call is the one stored now: the first one is, unless it is damaged."""
    values = sql.call_values(call)
    if cursor.execute(sql.INSERT_CALL, values).rowcount == 1:
        return True
    if _is_stored_intact(cursor, call.request_id):
        return False
    cursor.execute("DELETE FROM calls WHERE request_id = ?", (call.request_id,))
    cursor.execute(sql.INSERT_CALL, values)
    return True


def _is_stored_intact(cursor: sqlite3.Cursor, request_id: str) -> bool:
    try:
        row = cursor.execute(sql.select_answers(1), (request_id,)).fetchone()
    except sqlite3.OperationalError as error:
        if not is_undecodable(error):
            raise
        return False
    return StoredAnswer._make(row).intact


def _inserted_claims(cursor: sqlite3.Cursor, owner: Owner, ids: Sequence[str]) -> set[str]:
    granted: set[str] = set()
    for chunk in _chunks(ids):
        values = [value for name in chunk for value in (name, owner.token)]
        granted.update(row[0] for row in cursor.execute(sql.insert_claims(len(chunk)), values))
    return granted


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
