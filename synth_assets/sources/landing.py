"""Land raw frames in DuckDB, whole or not at all, through dlt.

Each dataset has one database, ``<home>/landing/<dataset>/landed.duckdb`` (and another one for the
synthetic rows it imports, see ``import_name``), with the tables

- ``landing.raw``: the rows, with dlt's ``_dlt_load_id``; column names are plain SQL identifiers,
- ``landing.columns``: which source column (``original``) each of them (``name``) holds, in order,
- ``landing.source``: the version of the source and the number of rows,
- and dlt's own ``_dlt_loads``, ``_dlt_version``, ``_dlt_pipeline_state``.

How it holds: frames are staged as Parquet, dlt loads them into a *new* database, and one atomic
rename puts it in place. Until then the former rows are what readers see, however the load ends;
readers never wait for a writer. dlt works in a folder of that one load, so that a failed load
leaves no pending package to be loaded instead of the next data, and a column or row that is gone
from the source is gone here. One load per dataset at a time: others wait for a lock.

dlt takes staged Parquet as a *model* (a SELECT that the destination runs): 100,000 rows x 12
columns cost 0.8 CPU s, against 31 s as dicts; Arrow tables cost 1.0 s and 170 MB of ``pyarrow``.
dlt reads no configuration but what is here, sends no telemetry and writes nothing elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from synth_assets.errors import SourceError, shown
from synth_assets.sources import LOAD_ID, SERVICE_COLUMNS

if TYPE_CHECKING:
    import duckdb

TABLE = "landing.raw"
_IMPORTED = ".synthetic"
_SCHEMA, _DATABASE, _STAGING = "landing", "landed.duckdb", ".load-"
# dlt's run context and active pipeline belong to the process, not to a thread.
_ONE_PIPELINE = threading.Lock()


@dataclass(frozen=True)
class Landed:
    """What one load left behind: ``problems`` counts rows by reason, ``rows`` includes them."""

    rows: int
    problems: dict[str, int]
    load_id: str
    database: Path
    table: str
    source_version: str


def import_name(dataset: str) -> str:
    """The name under which ``dataset`` lands synthetic rows; a dot stands in no dataset's name."""
    return f"{dataset}{_IMPORTED}"


def dataset_of(name: str) -> str:
    """The dataset that lands under ``name``."""
    return name.removesuffix(_IMPORTED)


def land(
    batches: Iterable[pl.DataFrame],
    *,
    dataset: str,
    home: Path,
    source_version: str,
    wait_seconds: float = 600.0,
) -> Landed:
    """Replace what ``dataset`` has landed by ``batches`` (raw frames), atomically.

    Columns are the union over all frames, in order of first appearance; what a frame lacks is
    null. Raises ``SourceError`` when there are no rows, when dlt or DuckDB fails, or when another
    load of this dataset holds the lock for ``wait_seconds``; whatever ``batches`` raises passes
    through. In each case the former rows stay.
    """
    from filelock import FileLock, Timeout

    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", dataset):
        raise ValueError(f"not a plain dataset name: {shown(dataset)}")
    folder = home.absolute() / "landing" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=wait_seconds):
            for left_by_a_kill in folder.glob(f"{_STAGING}*"):
                shutil.rmtree(left_by_a_kill, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as work:
                return _land(batches, Path(work), folder / _DATABASE, source_version)
    except Timeout as error:
        raise SourceError(
            f"another process has been loading it for {wait_seconds:g} s",
            where=f"dataset {dataset}",
            fix="wait until it ends, or stop it, then run again",
        ) from error


def read_landed(landed: Landed | Path) -> pl.DataFrame:
    """The raw frame as landed, sorted by ``_source`` and ``_row``, in one piece.

    Source columns (String) under their original names, then ``_source``, ``_row`` (Int64),
    ``_problem``, ``_raw``, ``_load_id`` (String). Raises ``SourceError`` when nothing has landed.
    """
    with _landed_query(landed) as (connection, query, names):
        # Not the relation itself: polars would remember its type, and DuckDB 2.0 then prints
        # pages about leaked types when the process ends.
        frame = pl.DataFrame(_ArrowStream(connection.sql(query)))
        frame.columns = names
        return frame


def scan_landed(landed: Landed | Path, *, batch_rows: int = 20_000) -> Iterator[pl.DataFrame]:
    """As ``read_landed``, in frames of at most ``batch_rows`` rows."""
    with _landed_query(landed) as (connection, query, names):
        schema = {name: pl.Int64 if name == "_row" else pl.String for name in names}
        cursor = connection.execute(query)
        while rows := cursor.fetchmany(batch_rows):
            yield pl.DataFrame(rows, schema, orient="row")


class _ArrowStream:
    def __init__(self, relation: Any) -> None:
        self._relation = relation

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._relation.__arrow_c_stream__(requested_schema)


@contextmanager
def _landed_query(
    landed: Landed | Path,
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str, list[str]]]:
    """A read-only connection, the query for all rows, and the names its columns should have."""
    import duckdb

    path = landed.database if isinstance(landed, Landed) else landed
    if not path.is_file():
        raise SourceError("nothing has landed", where=str(path), fix="run the ingest first")
    # Opened by name, a database that anyone in this process still reads would be shared: the rows
    # from before a rename. Attached to a connection of our own, it is the file that is there now.
    spill = path.with_name(f".spill-{os.getpid()}-{uuid.uuid4().hex[:8]}")  # made only if needed
    with duckdb.connect(config={"temp_directory": str(spill)}) as connection:
        connection.execute(f"ATTACH {_literal(str(path))} AS landed (READ_ONLY); USE landed")
        listing = f"SELECT name, original FROM {_SCHEMA}.columns ORDER BY position"  # noqa: S608
        columns = connection.execute(listing).fetchall()
        wanted = [*(_quoted(name) for name, _ in columns), "_dlt_load_id"]
        query = f"SELECT {', '.join(wanted)} FROM {TABLE} ORDER BY _source, _row"  # noqa: S608
        yield connection, query, [*(original for _, original in columns), LOAD_ID]


def _land(
    batches: Iterable[pl.DataFrame], work: Path, database: Path, source_version: str
) -> Landed:
    staged = _stage(batches, work)
    if not staged.rows:
        raise SourceError("no rows to land", where=str(database), fix="check the source")
    facts = pl.DataFrame({"source_version": [source_version], "rows": [staged.rows]})
    facts.write_parquet(work / "source.parquet")
    columns = pl.DataFrame(
        {
            "position": range(len(staged.names)),
            "name": list(staged.names.values()),
            "original": list(staged.names),
        },
        schema_overrides={"position": pl.Int64, "name": pl.String, "original": pl.String},
    )
    columns.write_parquet(work / "columns.parquet")
    types = {name: "bigint" if name == "_row" else "text" for name in staged.names.values()}
    tables = [
        _Table("raw", staged.files, types),
        _Table("columns", [work / "columns.parquet"], {"position": "bigint", **_TEXT_NAMES}),
        _Table("source", [work / "source.parquet"], {"source_version": "text", "rows": "bigint"}),
    ]
    # On the main thread dlt would take over SIGINT and SIGTERM, and lose one that comes late.
    with ThreadPoolExecutor(1) as pool:
        load_id = pool.submit(_load, tables, work).result()
    _put_in_place(work / _DATABASE, database)
    return Landed(
        rows=staged.rows,
        problems=dict(sorted(staged.problems.items())),
        load_id=load_id,
        database=database,
        table=TABLE,
        source_version=source_version,
    )


_TEXT_NAMES = {"name": "text", "original": "text"}


@dataclass(frozen=True)
class _Staged:
    files: list[Path]
    names: dict[str, str]  # original -> SQL identifier, service columns last
    rows: int
    problems: Counter[str]


@dataclass(frozen=True)
class _Table:
    name: str
    files: list[Path]
    types: dict[str, str]  # dlt's names of types


def _stage(batches: Iterable[pl.DataFrame], work: Path) -> _Staged:
    files: list[Path] = []
    names = {name: name for name in SERVICE_COLUMNS}
    rows, problems = 0, Counter[str]()
    for batch in batches:
        expected = {c: pl.Int64 if c == "_row" else pl.String for c in batch.columns}
        if batch.schema != expected or not set(SERVICE_COLUMNS) <= set(batch.columns):
            raise ValueError(f"not a raw frame: {batch.schema}")
        for column in batch.columns:
            if column not in names:
                names[column] = _identifier(column, set(names.values()))
        path = work / f"{len(files):06d}.parquet"
        batch.rename(names, strict=False).write_parquet(path, compression="lz4")
        files.append(path)
        rows += batch.height
        problems.update(batch.get_column("_problem").drop_nulls().to_list())
    service = {name: names.pop(name) for name in SERVICE_COLUMNS}
    return _Staged(files, {**names, **service}, rows, problems)


def _identifier(column: str, taken: set[str]) -> str:
    """A readable identifier that dlt's naming leaves alone, unlike any in ``taken``.

    DuckDB folds case and dlt rewrites most characters: without this, ``Text`` and ``text`` or
    two Chinese headers would become one column.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower())[:60].strip("_") or "column"
    plain = plain if plain[0].isalpha() else f"c_{plain}"
    name, count = plain, 1
    while name in taken:
        count += 1
        name = f"{plain}_{count}"
    return name


def _load(tables: list[_Table], work: Path) -> str:
    """Load ``tables`` with dlt into a new database in ``work``; dlt's load id."""
    with _ONE_PIPELINE, _private_dlt(work) as dlt:
        from dlt.common.exceptions import DltException

        pipeline = dlt.pipeline(
            "landing",
            destination=dlt.destinations.duckdb(str(work / _DATABASE)),
            dataset_name=_SCHEMA,
            pipelines_dir=str(work / "dlt"),
        )
        try:
            info = pipeline.run([_resource(dlt, table, work) for table in tables])
            info.raise_on_failed_jobs()
            return str(info.loads_ids[0])
        except DltException as error:
            cause: BaseException = error
            while cause.__cause__:
                cause = cause.__cause__
            raise SourceError(
                f"the load into DuckDB failed: {shown(str(cause))}",
                where=str(work.parent),
                fix="see that the folder can be written and has space, then run it again",
            ) from error
        finally:
            pipeline.deactivate()


def _resource(dlt: Any, table: _Table, work: Path) -> Any:
    """A dlt resource that replaces ``table`` by its staged files, read by DuckDB itself."""
    from dlt.common.destination.client import SqlModel

    columns = ", ".join(map(_quoted, table.types))
    files = ", ".join(map(_file_literal, table.files))
    query = f"SELECT {columns} FROM read_parquet([{files}], union_by_name=true)"  # noqa: S608
    model = work / f"{table.name}.model"
    model.write_text(str(SqlModel(query, "duckdb")), encoding="utf-8")
    hints = {name: {"name": name, "data_type": kind} for name, kind in table.types.items()}

    def rows() -> Iterator[Any]:
        yield dlt.mark.with_file_import(str(model), "model")

    return dlt.resource(
        rows,
        name=table.name,
        write_disposition="replace",
        columns=hints,
        schema_contract={"tables": "evolve", "columns": "evolve", "data_type": "freeze"},
    )


@contextmanager
def _private_dlt(work: Path) -> Iterator[Any]:
    """dlt (slow to import, hence here) that knows no configuration or folder but ours."""
    import dlt
    from dlt.common.configuration.container import Container
    from dlt.common.configuration.providers import CustomLoaderDocProvider
    from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
    from dlt.common.runtime.run_context import RunContext

    settings = {
        "runtime": {"dlthub_telemetry": False, "log_level": "CRITICAL"},
        "providers": {"enable_airflow_secrets": False},
        "normalize": {"model_normalizer": {"add_dlt_load_id": True}},
    }

    class PrivateContext(RunContext):
        global_dir = run_dir = local_dir = data_dir = property(lambda _: str(work))

        def initial_providers(self) -> list[Any]:
            return [CustomLoaderDocProvider("synth_assets", lambda: settings)]

    container = Container()
    in_use = PluggableRunContext in container  # somebody else's dlt in this process
    former = container[PluggableRunContext] if in_use else None
    container[PluggableRunContext] = PluggableRunContext(PrivateContext(str(work)))
    try:
        yield dlt
    finally:
        if former is None:
            del container[PluggableRunContext]
        else:
            container[PluggableRunContext] = former


def _put_in_place(new: Path, place: Path) -> None:
    """Make ``new`` durable, then the one that ``place`` names, in one step."""
    if new.with_name(f"{new.name}.wal").exists():
        raise RuntimeError("DuckDB left a write-ahead log: the database is not complete")
    with new.open("rb") as file:
        os.fsync(file.fileno())
    # What someone's open session on the former file left would be replayed into the new one.
    place.with_name(f"{place.name}.wal").unlink(missing_ok=True)
    new.replace(place)
    directory = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _file_literal(path: Path) -> str:
    """A path as a SQL string in which DuckDB finds no pattern."""
    plain = re.sub(r"[*?\[]", lambda magic: f"[{magic[0]}]", str(path))
    return _literal(plain)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
