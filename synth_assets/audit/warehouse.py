"""A home as a read-only database in memory: a view per stored table, releases, calls, lineage.

One DuckDB connection per use, over the Parquet files themselves. Nothing is copied but the ledger,
which no Parquet file holds: what of it a query uses is streamed into a private folder first.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl

from synth_assets.audit.sql_guard import checked, query_error
from synth_assets.audit.sql_views import (
    CALL_TEXTS,
    CALLS,
    call_frames,
    lineage_query,
    release_frame,
    text_frames,
)
from synth_assets.audit.versions import Versions
from synth_assets.errors import UsageError, shown
from synth_assets.ledger_export import stream_parquet
from synth_assets.llm.ledger.ledger import Ledger, ledger_location
from synth_assets.llm.ledger.rows import NoLedger
from synth_assets.settings import Home
from synth_assets.store.content import ContentStore
from synth_assets.store.releases import ReleaseStore

_RESERVED = frozenset({"pg_catalog", "information_schema"})
_SPECIAL = re.compile(r"[*?\[]")
# Set before the views' files are all that may be opened, and then locked.
_SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",
}
_WHOLE = frozenset(f"{sign}{size}int" for sign in ("", "u") for size in ("tiny", "small", "big"))
_PLAIN = _WHOLE | {
    *("boolean", "integer", "uinteger", "float", "double", "decimal", "varchar", "blob"),
    *("date", "time", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"),
    "timestamp with time zone",
}


@dataclass(frozen=True)
class View:
    """One thing to query; ``schema`` empty: of all datasets."""

    schema: str
    name: str
    columns: tuple[tuple[str, str], ...]
    rows: int

    @property
    def title(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass
class Warehouse:
    """An open, locked connection. ``folder`` is private, and the only one that is written to."""

    connection: duckdb.DuckDBPyConnection
    folder: Path
    _results: int = field(default=0)

    def run(self, query: str, *, most: int | None = None) -> pl.LazyFrame:
        """What a query gives, at most ``most`` rows, as a scan of a file in the private folder.

        Kinds of values that Parquet and polars do not both have (intervals, maps, ...) are text.

        Raises:
            QueryError: what is no query, must not be run, or fails.
        """
        text = checked(query)
        self._results += 1
        path = self.folder / f"result{self._results}.parquet"
        try:
            found = self.connection.sql(text)
            if most is not None:
                found = found.limit(most)
            kinds = list(zip(found.columns, found.types, strict=True))
            if not all(_is_plain(kind) for _, kind in kinds):
                found = found.project(
                    ", ".join(
                        f"#{at}" if _is_plain(kind) else f"CAST(#{at} AS VARCHAR) AS {quoted(name)}"
                        for at, (name, kind) in enumerate(kinds, start=1)
                    )
                )
            found.write_parquet(str(path))
        except duckdb.Error as error:
            raise query_error(error) from None
        return pl.scan_parquet(path, glob=False)

    def views(self) -> list[View]:
        """Every view with its columns (name, kind) and rows."""
        names = self.connection.execute(
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
        found = []
        for schema, name in names:
            title = titled(schema, name)
            columns = self.connection.execute(f"DESCRIBE {title}").fetchall()
            counted = self.connection.execute(f"SELECT count(*) FROM {title}").fetchone()  # noqa: S608
            shape = tuple((str(c[0]), str(c[1])) for c in columns)
            own = "" if schema == "main" else str(schema)
            found.append(View(own, str(name), shape, int(counted[0]) if counted else 0))
        return found


@contextmanager
def open_warehouse(
    home: Home,
    instance: dg.DagsterInstance,
    datasets: Sequence[str],
    *,
    used: Collection[str] | None = None,
    default: str | None = None,
) -> Iterator[Warehouse]:
    """Views over the latest tables of ``datasets``, locked against everything else.

    ``used``: words of the query, lower case; views that cost something are made only when they are
    among them (None: all). ``default``: the dataset whose stages need no name before them.

    Raises:
        UsageError: two datasets whose names SQL cannot tell apart, or one that is called as what
            DuckDB keeps for itself (without being the ``default`` it is left out).
    """
    _different(datasets)
    if default in _RESERVED:
        raise UsageError(f"SQL cannot have a dataset called {default}", fix="rename its folder")
    datasets = [name for name in datasets if name not in _RESERVED]
    folder = Path(tempfile.mkdtemp(prefix="synth-sql-")).resolve()
    try:
        with duckdb.connect() as connection:
            _fill(_Builder(connection, folder), home, instance, datasets, used)
            if default is not None:
                place = f"memory.{quoted(default)},memory.main"
                connection.execute(f"SET search_path = {literal(place)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield Warehouse(connection, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Builder:
    """Adds views to a connection that is still open to the world."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self.connection, self.folder = connection, folder
        self._allowed: list[str] = []
        for name, value in _SETTINGS.items():
            connection.execute(f"SET {name} = {value}")
        connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}")

    def schema(self, name: str) -> None:
        self.connection.execute(f"CREATE SCHEMA IF NOT EXISTS memory.{quoted(name)}")

    def over_file(self, title: str, path: Path) -> None:
        readable = self._readable(path)
        self._allowed.append(str(readable))
        query = f"SELECT * FROM read_parquet({literal(str(readable))})"  # noqa: S608
        self.over_query(title, query)

    def over_query(self, title: str, query: str) -> None:
        self.connection.execute(f"CREATE VIEW {title} AS {query}")

    def columns(self, title: str) -> set[str]:
        return {str(row[0]) for row in self.connection.execute(f"DESCRIBE {title}").fetchall()}

    def close(self) -> None:
        """Says which files may be opened from now on."""
        paths = ", ".join(literal(path) for path in self._allowed)
        self.connection.execute(f"SET allowed_paths = [{paths}]")
        self.connection.execute(f"SET allowed_directories = [{literal(str(self.folder) + '/')}]")

    def _readable(self, path: Path) -> Path:
        """``path``, or a copy of it where its name would be read as a pattern."""
        real = path.resolve()
        if not _SPECIAL.search(str(real)):
            return real
        copy = self.folder / f"table{len(self._allowed)}.parquet"
        shutil.copyfile(real, copy)
        return copy


def _fill(
    build: _Builder,
    home: Home,
    instance: dg.DagsterInstance,
    datasets: Sequence[str],
    used: Collection[str] | None,
) -> None:
    def wanted(name: str) -> bool:
        return used is None or name in used

    store, shapes = ContentStore(home.store), {}
    for dataset in datasets:
        latest = Versions(home, instance, dataset).latest
        present = {s: store.path(dataset, s, v) for s, v in latest.items()}
        present = {stage: path for stage, path in present.items() if path.is_file()}
        build.schema(dataset)
        for stage, path in present.items():
            title = titled(dataset, stage)
            build.over_file(title, path)
            if wanted("lineage"):
                shapes[dataset, stage] = build.columns(title)
    if wanted("releases"):
        frame = release_frame(ReleaseStore(home.releases), datasets)
        frame.write_parquet(build.folder / "releases.parquet")
        build.over_file(titled("main", "releases"), build.folder / "releases.parquet")
    if wanted("calls") or wanted("call_texts"):
        _fill_calls(build, home, wanted("calls"), wanted("call_texts"))
    if wanted("lineage"):
        build.over_query(
            titled("main", "lineage"), lineage_query(shapes, titled=titled, literal=literal)
        )
    build.close()


def _fill_calls(build: _Builder, home: Home, facts: bool, texts: bool) -> None:
    try:
        ledger: Ledger | None = Ledger.open(ledger_location(home.ledger), create=False)
    except NoLedger:
        ledger = None
    try:
        for name, schema, frames, asked in (
            ("calls", CALLS, call_frames, facts),
            ("call_texts", CALL_TEXTS, text_frames, texts),
        ):
            if asked:
                path = build.folder / f"{name}.parquet"
                stream_parquet(frames(ledger) if ledger else iter(()), schema, path)
                build.over_file(titled("main", name), path)
    finally:
        if ledger is not None:
            ledger.close()


def titled(schema: str, name: str) -> str:
    """A view in full: a schema may be called as one of DuckDB's own catalogs."""
    return f"memory.{quoted(schema)}.{quoted(name)}"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _different(datasets: Sequence[str]) -> None:
    folded: dict[str, str] = {}
    for name in datasets:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise UsageError(
                f"SQL cannot tell {shown(other)} from {shown(name)}",
                fix=f"name the one that is meant: synth sql {name} ...",
            )


def _is_plain(kind: Any) -> bool:
    """Whether Parquet and polars have this kind of value too."""
    if kind.id in ("list", "struct"):
        return all(_is_plain(inner) for _, inner in kind.children)
    return str(kind.id) in _PLAIN
