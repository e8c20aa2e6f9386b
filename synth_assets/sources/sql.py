"""Rows of a database: a table or a query, read through SQLAlchemy into a snapshot.

The connection string comes from the environment and is in no message. The connection only reads:
nothing is committed, SQLite and PostgreSQL are told to refuse writes.

The snapshot holds every row as one line of JSON, sorted by its text, because a query promises no
order. So the version is a hash of the *set* of rows, and a row that changed or went is seen. Values
without a JSON form (dates, decimals, UUIDs) are their text, bytes are UTF-8 or a problem row.

With a ``cursor`` only rows whose cursor is not below the highest one seen are read again (and
those without one) and replace those of the same ``primary_key``. Of all other rows keys and cursors
are compared with what is held: a row that is not held as it is there (a text ``'100'`` is below
``'99'``, a time with another offset below an earlier one) makes the look a full one, and is told.
Rows that were deleted, or changed without a new cursor value, stay as they were until the next full
read: ``full_every=N`` makes every N-th look a full one, and so does another declaration or a lost
snapshot.

Moments are told in UTC, whatever zone a session has. What a user should know of a look are the
``notes`` of the copy's facts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from synth_assets.errors import SourceError, shown
from synth_assets.sources import http
from synth_assets.sources.snapshots import Copy, Shelf, write_sorted

if TYPE_CHECKING:
    import sqlalchemy as sa

Conceal = Callable[[str], str]
BATCH_ROWS = 5_000
CONNECT_TIMEOUT_S = 15
# A session's zone decides how moments are told, and which day they are on.
_IN_UTC = {
    "postgresql": "SET TIME ZONE 'UTC'",
    "mysql": "SET time_zone = '+00:00'",
    "mariadb": "SET time_zone = '+00:00'",
}
_CURSOR_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "Decimal": Decimal,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
}


@dataclass(frozen=True)
class SqlTable:
    """What is read: ``table`` (may be SCHEMA.TABLE) or ``query``, and how it is looked at again."""

    url_env: str
    table: str = ""
    query: str = ""
    cursor: str = ""
    primary_key: tuple[str, ...] = ()
    full_every: int = 0
    version_query: str = ""

    @property
    def name(self) -> str:
        return self.table or "query"

    @property
    def where(self) -> str:
        return f"{self.name} (database of {self.url_env})"


def version(source: SqlTable) -> str:
    """A hash of what ``version_query`` gives. Raises ``SourceError``."""
    with _connection(source) as (connection, _):
        rows = connection.execute(_text(statement(source.version_query))).fetchall()
    body = json.dumps([[_plain(value) for value in row] for row in rows])
    return hashlib.sha256(body.encode()).hexdigest()


def fetch(source: SqlTable, *, folder: Path, conceal: Conceal = str) -> tuple[Copy, str]:
    """The rows as they are now, as JSON lines; a sentence about how they were read.

    ``folder`` keeps the snapshot; what ``conceal`` makes of a line is kept of it. Raises
    ``SourceError``: no such variable, driver, table or column; a database that cannot be
    reached; a query that fails or gives no row.
    """
    shelf = Shelf(folder)
    with shelf.locked(source.where), _connection(source) as (connection, database):
        shape = _shape(source, database)
        former = shelf.newest()
        if former and former.facts.get("shape") != shape:
            former = None
        looks = (former.facts["looks"] if former else 0) + 1
        full = (
            not source.cursor
            or not former
            or bool(source.full_every and looks % source.full_every == 0)
        )
        notes: list[str] = []
        if former and not full:
            merged = _merge(source, connection, shelf, former, looks, conceal, notes)
            if merged:
                return merged
        with closing(_execute(source, connection, None)) as result:
            rows = _Rows(source, result, conceal)

            def write(stream: IO[bytes]) -> dict[str, Any]:
                written = write_sorted(stream, rows.lines())
                if not written:
                    raise SourceError(
                        "no rows", where=source.where, fix="check the table or the query"
                    )
                return {
                    "shape": shape,
                    "looks": looks,
                    "cursor": rows.highest,
                    "rows": written,
                    "notes": notes,
                }

            copy = shelf.put(write, file="data", where=source.where)
        return copy, f"{source.name}: all {copy.facts['rows']} rows read"


def _merge(
    source: SqlTable,
    connection: sa.Connection,
    shelf: Shelf,
    former: Copy,
    looks: int,
    conceal: Conceal,
    notes: list[str],
) -> tuple[Copy, str] | None:
    """The former snapshot with the rows that are new since then; None: everything must be read."""
    since = _restored(former.facts["cursor"])
    with closing(_execute(source, connection, since)) as result:
        rows = _Rows(source, result, conceal)
        rows.highest = former.facts["cursor"]
        new = {rows.key(line): line for lines in rows.lines() for line in lines}
    with former.path.open(encoding="utf-8") as file:
        old = {rows.key(line): line.rstrip("\n") for line in file}
    gone = 0
    if since is not None:
        unseen, there = _unseen(source, connection, since, old)
        if unseen:
            if not any(map(_concealed, old.values())):  # erased rows are never held as they are
                notes.append(
                    f"{source.name}: {unseen} rows are below the highest {source.cursor} but were "
                    "not there before (numbers or moments in a text? set late?): everything was "
                    "read again"
                )
            return None
        gone = len(old.keys() - new.keys() - there)
    told = (
        f"{source.name}: {len(new)} rows read that are new by {source.cursor}; deleted rows are "
        + (f"seen at every {source.full_every}. look" if source.full_every else "not seen")
    )
    if gone:
        notes.append(f"{source.name}: {gone} rows that are held are no longer there")
    facts = {**former.facts, "looks": looks, "cursor": rows.highest, "notes": notes}
    merged = {**old, **new}
    if merged == old:
        return shelf.note(former, facts), told

    def write(stream: IO[bytes]) -> dict[str, Any]:
        return {**facts, "rows": write_sorted(stream, [list(merged.values())])}

    return shelf.put(write, file="data", where=source.where), told


def _unseen(
    source: SqlTable, connection: sa.Connection, since: Any, held: Mapping[str, str]
) -> tuple[int, set[str]]:
    """How many of the rows that were not read are not held as they are there; the keys of all."""
    unseen, there = 0, set[str]()
    columns = (*source.primary_key, source.cursor)
    with closing(_execute(source, connection, since, older=columns)) as result:
        for part in result.partitions(BATCH_ROWS):
            for row in part:
                *key, cursor = map(_plain, row)
                name = _key(key)
                there.add(name)
                line = held.get(name)
                kept = json.loads(line) if line is not None else {}
                unseen += _key([kept.get(source.cursor)]) != _key([cursor])
    return unseen, there


def _key(values: list[Any]) -> str:
    return json.dumps(values, default=_plain)


def _concealed(line: str) -> bool:
    return not line.startswith("{")


class _Rows:
    """A result as JSON lines, and the highest cursor value in it (JSON: type and text)."""

    def __init__(self, source: SqlTable, result: sa.CursorResult[Any], conceal: Conceal) -> None:
        self.source, self.result, self.conceal = source, result, conceal
        self.columns = list(result.keys())
        self.highest: list[str] | None = None
        self._keys: set[str] = set()
        for column in self.columns:
            if self.columns.count(column) > 1:
                raise SourceError(
                    f"two columns are named {shown(column)}",
                    where=source.where,
                    fix="name one of them differently: AS other_name",
                )
        for column in filter(None, (source.cursor, *source.primary_key)):
            if column not in self.columns:
                raise SourceError(
                    f"no column {shown(column)}; found {', '.join(map(shown, self.columns))}",
                    where=source.where,
                    fix="cursor and primary_key are columns of the table or the query",
                )

    def lines(self) -> Iterator[list[str]]:
        place = self.columns.index(self.source.cursor) if self.source.cursor else None
        best = _restored(self.highest)
        for part in self.result.partitions(BATCH_ROWS):
            lines = [self._line(row) for row in part]
            if place is not None:
                values = [row[place] for row in part if row[place] is not None]
                best = self._higher(best, [value for value in values if value == value])  # no NaN
                self.highest = _kept(best, self.source.where)
                self._unique(lines)
            yield [self.conceal(line) for line in lines]

    def key(self, line: str) -> str:
        row = json.loads(line)
        if not isinstance(row, dict):  # a concealed row has no key but itself
            return line
        return _key([row[column] for column in self.source.primary_key])

    def _line(self, row: Sequence[Any]) -> str:
        cells = {column: _plain(value) for column, value in zip(self.columns, row, strict=True)}
        line = json.dumps(cells, ensure_ascii=False, separators=(",", ":"), default=_plain)
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:  # bytes that are not text; the reader says so
                return json.dumps(cells, separators=(",", ":"), default=_plain)
        return line

    def _higher(self, best: Any, values: list[Any]) -> Any:
        try:
            return max(values if best is None else [best, *values], default=best)
        except TypeError:
            raise SourceError(
                f"values of {shown(self.source.cursor)} cannot be compared with each other",
                where=self.source.where,
                fix="a cursor is a column of one type: a number, a date or a text that sorts",
            ) from None

    def _unique(self, lines: Iterable[str]) -> None:
        for key in map(self.key, lines):
            if key in self._keys:
                raise SourceError(
                    f"two rows have the key {shown(key)}",
                    where=self.source.where,
                    fix=f"primary_key must tell rows apart: {', '.join(self.source.primary_key)} "
                    "does not",
                )
            self._keys.add(key)


def _plain(value: Any) -> Any:
    """A value as JSON holds it; text where JSON has nothing of the kind."""
    if value is None or isinstance(value, str | bool | int | dict | list):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "surrogateescape")
    if isinstance(value, datetime) and value.tzinfo is not None:
        return _utc(value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return list(value) if isinstance(value, tuple | set) else str(value)


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:  # at the end of the calendar
        return value


def _kept(value: Any, where: str) -> list[str] | None:
    if value is None:
        return None
    kind = type(value).__name__
    if kind not in _CURSOR_TYPES:
        raise SourceError(
            f"a cursor of type {kind} cannot be kept",
            where=where,
            fix="a number, a date or a text that sorts",
        )
    return [kind, value.isoformat() if isinstance(value, date) else str(value)]


def _restored(kept: Sequence[str] | None) -> Any:
    return None if kept is None else _CURSOR_TYPES[kept[0]](kept[1])


def _shape(source: SqlTable, database: str) -> str:
    """What the snapshot is of: anything else here, and it is no base to merge into."""
    parts = [database, source.table, source.query, source.cursor, *source.primary_key]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _execute(
    source: SqlTable, connection: sa.Connection, since: Any, older: Sequence[str] = ()
) -> sa.CursorResult[Any]:
    """All rows; those not below ``since``; or the columns ``older`` of all others."""
    import sqlalchemy as sa

    query = statement(source.query)
    select: Any = _text(query)
    if source.table or since is not None:
        schema, _, table = source.table.rpartition(".")
        rows: Any = sa.table(table, schema=schema or None)
        # On a line of its own, what closes it is in no comment.
        rows = rows if source.table else _text(f"({query}\n) AS rows_of_query")
        wanted: list[Any] = [sa.column(name) for name in older] or [sa.literal_column("*")]
        select = sa.select(*wanted).select_from(rows)
    if since is not None:
        cursor: sa.ColumnClause[Any] = sa.column(source.cursor)
        newer = sa.or_(cursor >= since, cursor.is_(None))
        select = select.where(sa.not_(newer) if older else newer)
    return connection.execution_options(stream_results=True, yield_per=BATCH_ROWS).execute(select)


_TOKEN = re.compile(
    r"""(?P<blank>\s+|;|--[^\n]*|/\*.*?\*/)|(?P<open>/\*.*)
    |[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]
    |(?P<dollar>\$\w*\$).*?(?P=dollar)
    |\w+|.""",
    re.VERBOSE | re.DOTALL,
)


def statement(query: str) -> str:
    """A query without the semicolons around it, also where comments stand behind them.

    So it can be put into brackets. What looks like one in a text or a comment stays; a comment that
    nothing closes (SQLite takes it) would reach over the bracket, and goes.
    """
    end, ending = 0, ""
    query = query.lstrip("; \t\r\n")
    for token in _TOKEN.finditer(query):
        if token["open"]:
            break
        if token["blank"] is None:
            end, ending = token.end(), ""
        elif token["blank"] != ";":
            ending += token["blank"]
    return query[:end] + ending.rstrip()


def _text(query: str) -> sa.TextClause:
    """SQL as it stands: a colon in it names no parameter."""
    import sqlalchemy as sa

    return sa.text(query.replace(":", r"\:"))


@contextmanager
def _connection(source: SqlTable) -> Iterator[tuple[sa.Connection, str]]:
    """A connection that reads only, and the database's name without secrets."""
    import sqlalchemy as sa

    written = http.environment(
        source.url_env, source.where, "the database's URL, such as postgresql://USER:PW@HOST/NAME"
    )
    try:
        url = sa.make_url(re.sub("^postgres://", "postgresql://", written))
        dialect = url.get_dialect().name
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=_arguments(dialect))
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise SourceError(
            f"no driver for this database: {shown(str(error))}",
            where=source.where,
            fix="install one; for PostgreSQL: pip install 'psycopg[binary]'",
        ) from None
    except (sa.exc.ArgumentError, ValueError):
        raise SourceError(
            f"what stands in {source.url_env} is not a database URL",
            where=source.where,
            fix="write it as dialect://USER:PASSWORD@HOST:PORT/NAME, or sqlite:////a/file.db",
        ) from None
    if dialect == "sqlite" and _lacks_file(url.database or ""):
        raise SourceError(
            f"no such file: {shown(url.database)}",
            where=source.where,
            fix=f"check {source.url_env}: sqlite:////ABSOLUTE/PATH.db",
        )
    options = {"postgresql_readonly": True} if dialect == "postgresql" else {}
    try:
        with engine.connect().execution_options(**options) as connection:
            if dialect == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
                driver: Any = connection.connection.driver_connection
                driver.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            if dialect in _IN_UTC:
                connection.exec_driver_sql(_IN_UTC[dialect])
            yield connection, url.render_as_string(hide_password=True)
    except sa.exc.SQLAlchemyError as error:
        raise _failed(
            source, error, [written, url.password or "", str(url.query.get("password", ""))]
        ) from None
    finally:
        engine.dispose()


def _lacks_file(database: str) -> bool:
    # SQLite would make an empty database of that name.
    return not database.startswith("file:") and not Path(database).is_file()


def _arguments(dialect: str) -> dict[str, Any]:
    return {"connect_timeout": CONNECT_TIMEOUT_S} if dialect in ("postgresql", "mysql") else {}


def _failed(source: SqlTable, error: Exception, secrets: list[str]) -> SourceError:
    told = str(getattr(error, "orig", None) or error).strip()
    return SourceError(
        f"the database says: {shown(http.scrubbed(' '.join(told.split()), map(str, secrets)))}",
        where=source.where,
        fix=f"check the table, the query and {source.url_env}",
    )
