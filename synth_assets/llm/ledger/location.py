"""Where a ledger is: a path, ``sqlite:///path`` or ``postgresql://user:password@host/database``.

What is shown of a location never holds its password.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from synth_assets.llm.ledger.backend import Backend
from synth_assets.llm.ledger.rows import LedgerError
from synth_assets.llm.ledger.sqlite import SqliteBackend

LEDGER_URL_ENV: Final = "SYNTH_LEDGER_URL"
_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql", "postgres")
# A host and a port: nothing in which a password could hide.
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(:\d+)?")


def ledger_location(default: Path) -> str | Path:
    """``SYNTH_LEDGER_URL`` where it is set, else ``default``."""
    return os.environ.get(LEDGER_URL_ENV, "").strip() or default


def opened_backend(location: str | Path, *, lease_s: float, create: bool = True) -> Backend:
    """The database at ``location``. Raises LedgerError."""
    text = str(location)
    scheme, is_url, _ = text.partition("://")
    if not is_url or text.startswith(_SQLITE):
        path = Path(text.removeprefix(_SQLITE)).expanduser()
        return SqliteBackend(path, lease_s=lease_s, create=create)
    if scheme not in _POSTGRES:
        raise LedgerError(
            f"a ledger of kind {scheme!r} is not known",
            fix="give the path of a SQLite file, or postgresql://user:password@host/database",
        )
    place = postgres_place(text)
    try:
        from synth_assets.llm.ledger.postgres import PostgresBackend
    except ImportError as error:
        raise LedgerError(
            "the PostgreSQL driver is not installed",
            where=place,
            fix="pip install 'synth_assets[postgres]' (or 'psycopg[binary]')",
        ) from error
    return PostgresBackend(text, place=place, lease_s=lease_s, create=create)


def postgres_place(url: str) -> str:
    """Host and database of a URL. Raises LedgerError where they cannot be told from a password."""
    rest = url.partition("://")[2]
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    hosts = authority.rpartition("@")[2]
    path = rest[len(authority) :]
    told = authority.count("@") <= 1 and "@" not in path
    if not told or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise LedgerError(
            "the PostgreSQL URL cannot be read",
            where="postgresql://...",
            fix="postgresql://user:password@host:port/database, with %40 for @, %2F for /, "
            "%3A for : and %3F for ? in the password",
        )
    return f"postgresql://{hosts}{path.partition('?')[0]}"
