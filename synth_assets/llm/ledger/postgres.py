"""The ledger in PostgreSQL, for several machines: one connection that writes and one that reads.

Transactions that write follow each other, by an advisory lock that each takes first and that ends
with it: claims are as exact as in a SQLite file. The statements of a transaction are sent together
(pipelined), so a batch of a hundred calls takes three round trips. The clock is the database's.

A lost connection is made anew, for as long as a server takes to restart. If it was lost while a
commit was on its way, the server is asked what became of that transaction before anything is
written again, so nothing is written twice.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.string import StrDumperUnknown

from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.backend import Backend, Transaction
from synth_assets.llm.ledger.rows import Batch, LedgerError, NoLedger, Owner, Written, storable

log = logging.getLogger(__name__)

# How long a restart of the server may take, and how long another's transaction.
RECONNECT_S: Final = 60.0
LOCK_TIMEOUT_S: Final = 60
# A process that was frozen inside a transaction does not hold up the others for longer.
IDLE_TIMEOUT_S: Final = 30
_DEFAULTS: Final = {
    "application_name": "synth",
    "connect_timeout": "10",
    # A server that has vanished is noticed within a minute or so, not after hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_LOCK: Final = "SELECT pg_advisory_xact_lock(1937337460, hashtext(coalesce(current_schema(), '')))"
_NOW: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
_HEAD: Final = f"{_NOW}, CAST(pg_current_xact_id() AS TEXT)"
# What a server says before it closes a connection.
_ENDED: Final = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.IdleInTransactionSessionTimeout,
)

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")


class PostgresTransaction(Transaction):
    """Inside a pipeline: nothing is waited for until something is to be read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.execute(_LOCK)
        self._head = connection.execute(_HEAD)
        self._read: tuple[float, str] | None = None

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(in_postgres(statement), tuple(parameters)).fetchall()

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        self._connection.execute(in_postgres(statement), tuple(parameters))

    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            self._connection.cursor().executemany(in_postgres(statement), rows)

    def changed(self, statement: str, rows: Sequence[Sequence[Any]]) -> list[bool]:
        if not rows:
            return []
        cursor = self._connection.cursor()
        cursor.executemany(in_postgres(statement), rows, returning=True)
        changed = [cursor.rowcount > 0]
        while cursor.nextset():
            changed.append(cursor.rowcount > 0)
        return changed

    @property
    def now(self) -> float:
        return self._begun()[0]

    @property
    def number(self) -> str:
        """By which the server knows this transaction later."""
        return self._begun()[1]

    def _begun(self) -> tuple[float, str]:
        if self._read is None:
            ((now, number),) = self._head.fetchall()
            self._read = (float(now), str(number))
        return self._read


class PostgresBackend(Backend):
    """Connects to the database at ``url``; makes the tables, or raises NoLedger if it may not."""

    def __init__(self, url: str, *, place: str, lease_s: float, create: bool = True) -> None:
        super().__init__(place, lease_s=lease_s)
        self._conninfo = _conninfo(url, place)
        self._secret = _secret(self._conninfo)
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        try:
            self._writer = self._connected()
            self._prepare(self._writer, create=create)
        except psycopg.Error as error:
            self.close()
            raise self._error("cannot open the ledger", error) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                with contextlib.suppress(psycopg.Error):
                    connection.close()
        self._writer = self._reader = None

    def write(self, batch: Batch) -> Written:
        pending: tuple[str, Written] | None = None

        def written() -> Written:
            nonlocal pending
            self._writer = connection = self._writer or self._connected()
            if pending is not None and _was_committed(connection, pending[0]):
                return pending[1]
            pending = None
            with _transaction(connection) as transaction:
                result = self._transact(transaction, batch)
                pending = (transaction.number, result)
            return result

        def forget() -> None:
            _closed(self._writer)
            self._writer = None

        with self._writing:
            return self._insisting("cannot write the ledger", written, forget)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        def found() -> list[tuple[Any, ...]]:
            self._reader = connection = self._reader or self._connected()
            return connection.execute(in_postgres(statement), tuple(parameters)).fetchall()

        def forget() -> None:
            _closed(self._reader)
            self._reader = None

        with self._reading:
            return self._insisting("cannot read the ledger", found, forget)

    def leave(self, owner: Owner) -> None:
        with contextlib.suppress(psycopg.Error), self._writing:
            if self._writer is not None:
                with _transaction(self._writer) as transaction:
                    self._left(transaction, owner)

    def size_bytes(self) -> int:
        total = " + ".join(f"pg_total_relation_size('{table}')" for table in sql.TABLES)
        return int(self.query(f"SELECT {total}")[0][0])

    def scrub(self) -> None:
        """Writes the tables that hold requests anew; the server's own log and backups keep more."""

        def written() -> None:
            self._writer = connection = self._writer or self._connected()
            for table in ("calls", "failures", "batch_requests"):
                connection.execute(f"VACUUM FULL {table}")

        def forget() -> None:
            _closed(self._writer)
            self._writer = None

        with self._writing:
            self._insisting("deleted rows cannot be taken out of the tables", written, forget)

    def _now(self) -> float:
        return float(self.query(_NOW)[0][0])

    # -- connections -----------------------------------------------------------------------------

    def _connected(self) -> Connection:
        connection = psycopg.connect(self._conninfo, autocommit=True, client_encoding="utf8")
        try:
            connection.adapters.register_dumper(str, _StorableDumper)
            connection.execute(
                "SELECT set_config('lock_timeout', %s, false), "
                "set_config('idle_in_transaction_session_timeout', %s, false)",
                (f"{LOCK_TIMEOUT_S}s", f"{IDLE_TIMEOUT_S}s"),
            )
            # What is durable elsewhere may be more than this; it is never less.
            connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection, *, create: bool) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise LedgerError(
                f"the database has encoding {encoding}",
                where=self.place,
                fix="make one that keeps any text: createdb -E UTF8 -T template0 NAME",
            )
        with _transaction(connection) as transaction:
            version = 0
            if transaction.rows("SELECT to_regclass('schema_version')")[0][0] is not None:
                version = transaction.rows("SELECT max(version) FROM schema_version")[0][0] or 0
            if not version and not create:
                raise NoLedger(self.place)
            self._migrate(transaction, version=version)

    def _insisting(self, what: str, act: Callable[[], T], forget: Callable[[], None]) -> T:
        """Acts, and again with a new connection when it was lost, while a server may come back."""
        lost_at, wait = 0.0, 0.05
        while True:
            try:
                return act()
            except psycopg.Error as error:
                now = time.monotonic()
                lost_at = lost_at or now
                if not _is_lost(error) or now - lost_at > RECONNECT_S:
                    raise self._error(what, error) from None
                if now == lost_at:
                    log.warning("ledger: connection to %s lost; connecting again", self.place)
                forget()
                time.sleep(wait)
                wait = min(1.0, wait * 2)

    def _error(self, what: str, error: psycopg.Error) -> LedgerError:
        text = " ".join(str(error).split())
        for secret in self._secret:
            text = text.replace(secret, "***")
        return LedgerError(f"{what}: {text}", where=self.place, fix=_fix(error))


def _fix(error: psycopg.Error) -> str:
    if isinstance(error, errors.InsufficientPrivilege):
        return "grant this role CREATE on the schema, or let its owner open the ledger once"
    if isinstance(error, (errors.DuplicateTable, errors.UndefinedColumn, errors.UndefinedTable)):
        return "give the ledger a database (or a schema, by search_path) of its own"
    if isinstance(error, errors.LockNotAvailable):
        return "another process holds the ledger's lock: see pg_stat_activity for what it does"
    if isinstance(error, psycopg.OperationalError):
        return "check that the server runs, and the host, port, database, user and password"
    return "answers already written are safe and are not asked again"


def _conninfo(url: str, place: str) -> str:
    try:
        return make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(url)})
    except psycopg.Error:
        # Not its message: that may quote the password.
        raise LedgerError(
            "the PostgreSQL URL cannot be read",
            where=place,
            fix="postgresql://user:password@host:port/database, percent-encoded where needed",
        ) from None


def _secret(conninfo: str) -> list[str]:
    password = conninfo_to_dict(conninfo).get("password")
    return [str(password), unquote(str(password))] if password else []


def _is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone (or there is none to be had now), not the statement wrong."""
    if isinstance(error, _ENDED):
        return True
    if isinstance(error, errors.PipelineAborted):
        return False
    # Without a code it comes from the client's side of the connection.
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith("08")
    )


def _was_committed(connection: Connection, number: str) -> bool:
    """What became of a transaction whose commit was not confirmed."""
    try:
        with connection.transaction():
            # Its end, if the server has not noticed yet that we are gone.
            connection.execute(_LOCK)
            status = connection.execute("SELECT pg_xact_status(CAST(%s AS xid8))", (number,))
            return status.fetchall() == [("committed",)]
    except errors.InvalidParameterValue:
        # Another server than the one that had begun it.
        return False


@contextlib.contextmanager
def _transaction(connection: Connection) -> Iterator[PostgresTransaction]:
    with connection.pipeline(), connection.transaction():
        yield PostgresTransaction(connection)


def _closed(connection: Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(psycopg.Error):
            connection.close()


@lru_cache(maxsize=256)
def in_postgres(statement: str) -> str:
    """Our plain SQL in this dialect: ``?`` marks, and the name of bytes."""
    marked = statement.replace("%", "%%").replace("?", "%s")
    return re.sub(r"\bBLOB\b", "BYTEA", marked)


class _StorableDumper(StrDumperUnknown):
    """Text without NUL, which PostgreSQL cannot keep."""

    def dump(self, obj: str) -> Any:
        return super().dump(storable(obj))
