"""``synth sql``: questions about everything that was made, in SQL, reading only."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synth_assets.errors import SynthError, UsageError
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import discover, no_such_dataset
from synth_assets.terminal import (
    clean_errors,
    opened_instance,
    plain,
    print_table,
    table,
)

if TYPE_CHECKING:
    import polars as pl

    from synth_assets.audit.warehouse import View

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
MOST_CHARS = 200


@click.command()
@click.argument("dataset", required=False)
@click.argument("query", required=False)
@click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="Read the query from a file; - is standard input.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(FORMATS),
    help="[default: by the output's ending, else table]",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file, all of it."
)
@click.option(
    "--rows", type=click.IntRange(1, 100_000), default=40, show_default=True,
    help="At most so many rows in a terminal.",
)  # fmt: skip
@clean_errors
def sql(
    dataset: str | None,
    query: str | None,
    file: Path | None,
    form: str | None,
    output: Path | None,
    rows: int,
) -> None:
    """Ask DuckDB about stored tables, releases, calls and lineage; reading only.

    Views are DATASET.STAGE (as last materialised), releases, calls, call_texts and lineage. With
    DATASET only its views are there, and its stages need no DATASET before them. Without a query
    the views are listed. QUERY - reads standard input.

    Example: synth sql work_orders "select label, count(*) from train group by all"
    """
    from synth_assets.audit.warehouse import open_warehouse
    from synth_assets.upkeep.home import datasets_of

    found = discover(defs_roots())
    known = sorted({*found.datasets, *datasets_of(home())})
    if dataset is not None and query is None and dataset not in known:
        if re.fullmatch(r"\w+", dataset):
            raise no_such_dataset(dataset, found)
        dataset, query = None, dataset
    if dataset is not None and dataset not in known:
        raise no_such_dataset(dataset, found)
    text = _query(query, file)
    form = _format(form, output)
    used = None if text is None else set(re.findall(r"\w+", text.lower()))
    if used is not None and used & _ALL_VIEWS:
        used = None
    names = known if dataset is None else [dataset]
    with (
        opened_instance() as instance,
        open_warehouse(home(), instance, names, used=used, default=dataset) as warehouse,
    ):
        if text is None:
            _list(warehouse.views(), form, output)
        elif form == "table":
            _print(warehouse.run(text, most=rows + 1).collect(), rows)
        else:
            _write(warehouse.run(text), form, output)


# Words of queries that ask what views there are.
_ALL_VIEWS = {"show", "information_schema", "sqlite_master", "pg_catalog"}


# --- helpers --------------------------------------------------------------------------------


def _query(query: str | None, file: Path | None) -> str | None:
    if query is not None and file is not None:
        raise UsageError("a query and a file with one", fix="give one of the two")
    if query == "-" or (file is not None and str(file) == "-"):
        return sys.stdin.read()
    if file is None:
        return query
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the query cannot be read: {error}", where=str(file)) from None


def _format(form: str | None, output: Path | None) -> str:
    if output is None:
        if form == "parquet":
            raise UsageError("parquet is no text", fix="add --output FILE")
        return form or "table"
    ending = output.suffix.lower().removeprefix(".")
    form = form or (ending if ending in FORMATS else None)
    if form in (None, "table"):
        raise UsageError(
            f"cannot tell what to write to {output.name!r}",
            fix="--format csv, json, jsonl or parquet",
        )
    return str(form)


def _print(frame: pl.DataFrame, most: int) -> None:
    cells = [[_cell(value) for value in row] for row in frame.head(most).iter_rows()]
    names = [plain(name) for name in frame.columns]
    widths = (max(map(len, column)) + 1 for column in zip(names, *cells, strict=True))
    if sum(widths) <= shutil.get_terminal_size().columns:
        made = table(*names)
        for row in cells:
            made.add_row(*row)
        print_table(made)
    else:  # one value a line: columns squeezed to nothing tell nobody anything
        for at, row in enumerate(cells, start=1):
            made = table(f"row {at:,}", "")
            for name, cell in zip(names, row, strict=True):
                made.add_row(name, cell)
            print_table(made)
    if frame.height > most:
        click.echo(f"the first {most:,} rows; there are more: --rows N, or --format csv", err=True)
    else:
        click.echo(f"{frame.height:,} rows", err=True)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return plain(text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…")


def _write(rows: pl.LazyFrame, form: str, output: Path | None) -> None:
    from synth_assets.exports.tables import write_table
    from synth_assets.store.content import write_atomically

    if output is not None:
        try:
            write_atomically(output.absolute(), lambda path: write_table(rows, form, path))
        except OSError as error:
            raise SynthError(f"cannot be written: {error.strerror}", where=str(output)) from None
        click.echo(str(output), err=True)
        return
    sys.stdout.flush()
    write_table(rows, form, sys.stdout.buffer)


def _list(views: list[View], form: str, output: Path | None) -> None:
    if form != "table" or output is not None:
        import polars as pl

        told = [
            {"view": v.title, "rows": v.rows, "column": name, "kind": kind}
            for v in views
            for name, kind in v.columns
        ]
        _write(pl.LazyFrame(told), form, output)
        return
    made = table("view", "rows", "columns")
    for view in views:
        columns = ", ".join(name for name, _ in view.columns)
        made.add_row(plain(view.title), f"{view.rows:,}", plain(columns))
    print_table(made)
