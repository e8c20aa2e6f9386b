"""What the commands share: clean errors, tables, and untrusted text made fit for a terminal."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import click

from synth_assets.errors import Stopped, SynthError

F = TypeVar("F", bound=Callable[..., Any])
LEAST_WIDTH = 40


def clean_errors(function: F) -> F:
    """User errors become one message and their exit code; anything else stays a traceback."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SynthError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            stopped = Stopped()
            click.echo(str(stopped), err=True)
            sys.exit(stopped.exit_code)

    return wrapped  # type: ignore[return-value]


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def plain(value: object) -> str:
    """Untrusted text for a terminal table: no markup, no control characters."""
    from rich.markup import escape

    text = "" if value is None else str(value)
    return escape("".join(c if c.isprintable() else " " for c in text))


def plain_lines(text: str) -> str:
    """Untrusted text to be printed as it is, line by line: no control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def table(*columns: str) -> Any:
    """An empty table with these columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column)
    return made


def print_table(made: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(made)


def print_warnings(lines: Sequence[str], title: str = "warnings") -> None:
    """A block of lines as wide as the terminal; nothing when there are none."""
    if not lines:
        return
    wrapped = textwrap.TextWrapper(
        width=max(LEAST_WIDTH, shutil.get_terminal_size().columns),
        initial_indent="- ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    click.echo(f"{title} ({len(lines)}):")
    for line in lines:
        click.echo(wrapped.fill(plain_lines(line)))


@contextmanager
def opened_instance() -> Iterator[Any]:
    """The Dagster instance of this machine, for the length of a block."""
    # Dagster's own log goes to its instance, not over what a person reads.
    warnings.filterwarnings("ignore", category=Warning, module=r"dagster.*")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    from synth_assets.instance import open_instance

    instance = open_instance()
    try:
        yield instance
    finally:
        instance.dispose()
