"""The ledger in a SQLite file: one connection that writes and one that reads.

Durability: WAL with ``synchronous=FULL``, so that a commit survives a killed process and a power
cut; every row of a batch shares the one fsync. Damage is met where it is found: a row whose body
no longer fits its checksum is skipped; a file that SQLite calls malformed is copied row by row
into a new one (see ``rescue``) and put aside.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.backend import Backend, Transaction
from synth_assets.llm.ledger.rescue import opening_lock, rescued
from synth_assets.llm.ledger.rows import Batch, LedgerError, NoLedger, Owner, Written

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 60.0
# Others wait this long for the file at most; a larger one is not rewritten while they might.
MOST_REWRITTEN_BYTES = 4 * 2**30
FREED_AT_ONCE_PAGES = 250
EMPTY_LOG_WITHIN_S = 30.0
_DAMAGE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_INCREMENTAL = 2


class SqliteTransaction(Transaction):
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._cursor.execute(statement, parameters).fetchall()

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        self._cursor.execute(statement, parameters)

    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._cursor.executemany(statement, rows)

    def changed(self, statement: str, rows: Sequence[Sequence[Any]]) -> list[bool]:
        execute = self._cursor.execute
        return [execute(statement, row).rowcount > 0 for row in rows]

    @property
    def now(self) -> float:
        return time.time()


class SqliteBackend(Backend):
    """Opens or creates the file at ``path``; raises NoLedger where it may not be created."""

    def __init__(self, path: Path, *, lease_s: float, create: bool = True) -> None:
        super().__init__(str(path), lease_s=lease_s)
        self._path = path
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        if not create and not path.exists():
            raise NoLedger(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise LedgerError(f"cannot open the ledger: {error}", where=str(path)) from error
            self._repair(str(error))

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

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement. Raises LedgerError."""
        try:
            try:
                return self._query(statement, parameters)
            except sqlite3.DatabaseError as error:
                if is_undecodable(error):
                    return self._query(statement, parameters, text=_lenient)
                if not is_damage(error):
                    raise
                self._repair(str(error))
                return self._query(statement, parameters)
        except sqlite3.Error as error:
            raise LedgerError(f"cannot read the ledger: {error}", where=str(self._path)) from error

    def close(self) -> None:
        self._writer.close()
        with self._reading:
            self._reader.close()

    # -- opening -----------------------------------------------------------------------------

    def _open(self) -> None:
        with opening_lock(self._path):
            self._writer = _connected(self._path)
            try:
                self._prepare()
                self._reader = _connected(self._path)
            except BaseException:
                self._writer.close()
                raise
            self._inode = _inode(self._path)

    def _prepare(self) -> None:
        # Only a file that is still empty takes this on: then deleted rows' space can be given back.
        self._writer.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
        self._writer.execute("PRAGMA journal_mode=WAL")
        with _transaction(self._writer) as transaction:
            version = 0
            if transaction.rows("SELECT 1 FROM sqlite_schema WHERE name = 'schema_version'"):
                version = transaction.rows("SELECT max(version) FROM schema_version")[0][0] or 0
            self._migrate(transaction, version=version)

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
            with _transaction(self._writer) as transaction:
                written = self._transact(transaction, batch)
            if _inode(self._path) == self._inode:
                return written
            log.warning("ledger: %s was replaced; writing to the new file", self._path)
            self.close()
            self._open()

    def _is_stored_intact(self, transaction: Transaction, request_id: str) -> bool:
        try:
            return super()._is_stored_intact(transaction, request_id)
        except sqlite3.OperationalError as error:
            if not is_undecodable(error):
                raise
            return False

    def leave(self, owner: Owner) -> None:
        with (
            contextlib.suppress(sqlite3.Error),
            self._writing,
            _transaction(self._writer) as transaction,
        ):
            self._left(transaction, owner)

    # -- space -----------------------------------------------------------------------------------

    def size_bytes(self) -> int:
        size = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                size += Path(f"{self._path}{suffix}").stat().st_size
        return size

    def shrink(self) -> str:
        before = self.size_bytes()
        try:
            with self._writing:
                held_up = self._shrunk()
        except sqlite3.Error as error:
            return f"the space is used again by later calls (not given back: {error})"
        return held_up or f"the file went from {before:,} to {self.size_bytes():,} bytes"

    def scrub(self) -> None:
        try:
            with self._writing:
                self._writer.execute("PRAGMA secure_delete=ON")
                self._writer.execute("VACUUM")
                self._emptied_log()
        except sqlite3.Error as error:
            raise LedgerError(
                f"deleted rows cannot be taken out of the file: {error}",
                where=str(self._path),
                fix="free as much disk space as the ledger takes, then run it again",
            ) from error
        for path in self._path.parent.glob(f"{self._path.name}.*"):
            if path.name.startswith((f"{self._path.name}.damaged-", f"{self._path.name}.rescue")):
                path.unlink()

    def _emptied_log(self) -> None:
        """Truncates the write-ahead log, in which deleted rows may stand still."""
        until = time.monotonic() + EMPTY_LOG_WITHIN_S
        while self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until:
                raise LedgerError(
                    "another process reads the ledger: its log still holds deleted rows",
                    where=str(self._path),
                    fix="let that process end, then run it again",
                )
            time.sleep(0.1)

    def _shrunk(self) -> str:
        """Makes the file smaller; or why not."""
        pragma = self._pragma
        used = (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")
        now = time.time()
        owners = self._writer.execute(sql.OWNERS).fetchall()
        alone = all(self._is_gone(Owner(*who), beat, now=now) for *who, beat in owners)
        if alone and used <= MOST_REWRITTEN_BYTES:
            self._writer.execute("VACUUM")
        elif pragma("auto_vacuum") == _INCREMENTAL:
            self._free_bit_by_bit()
        elif alone:
            return "the space is used again by later calls (too large to be rewritten now)"
        else:
            return "the space is used again by later calls (another process writes now)"
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return ""

    def _free_bit_by_bit(self) -> None:
        free = self._pragma("freelist_count")
        while free > 0:
            started = time.monotonic()
            self._writer.execute(f"PRAGMA incremental_vacuum({FREED_AT_ONCE_PAGES})").fetchall()
            before, free = free, self._pragma("freelist_count")
            if free >= before:
                return
            # Who waits for the file looks again only now and then: leave it free half of the time.
            time.sleep(time.monotonic() - started)

    def _pragma(self, name: str) -> int:
        return int(self._writer.execute(f"PRAGMA {name}").fetchone()[0])

    # -- reading ---------------------------------------------------------------------------------

    def _query(
        self,
        statement: str,
        parameters: Sequence[Any] = (),
        *,
        text: Callable[[bytes], str] = str,
    ) -> list[tuple[Any, ...]]:
        with self._reading:
            self._reader.text_factory = text
            return self._reader.execute(statement, parameters).fetchall()

    def _now(self) -> float:
        return time.time()

    def _readable(self, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        try:
            names = sql.filled(ids)
            return self._query(sql.select_answers(len(names)), names)
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


def _lenient(raw: bytes) -> str:
    """Text of a damaged row, with marks in place of what is no UTF-8."""
    return raw.decode(errors="replace")


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
    connection.execute(f"PRAGMA auto_vacuum={_INCREMENTAL}")
    for statements in sql.MIGRATIONS.values():
        for statement in statements:
            connection.execute(statement)
    connection.execute(sql.VERSION_TABLE)
    connection.execute("INSERT INTO schema_version (version) VALUES (?)", (sql.SCHEMA_VERSION,))
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[Transaction]:
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield SqliteTransaction(cursor)
        cursor.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            cursor.execute("ROLLBACK")
        raise


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino)
