"""A PostgreSQL server of the tests' own, and both kinds of ledger for tests that are about either.

``SYNTH_TEST_POSTGRES_URL`` names a server to use instead (its role may create databases).
Without a server the PostgreSQL half is skipped, or fails with ``SYNTH_TEST_POSTGRES=required``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.ledger_support import Place

_numbers = count()


class Server:
    """A cluster in a new folder, reached through a socket there."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="synth-pg-"))
        # PostgreSQL refuses to run as root.
        self._user: str | None = None
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self._run(
            "initdb", "-D", self._data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C"
        )
        self.url = f"postgresql://tester@/postgres?host={self._folder}"
        self._control("start")

    def restart(self) -> None:
        """As after a crash: connections are cut, transactions under way are lost."""
        self._control("restart", "-m", "immediate")

    def kill_and_stay_down(self) -> None:
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        self._control("start")

    def end(self) -> None:
        self._control("stop", "-m", "immediate")
        shutil.rmtree(self._folder)

    def _control(self, action: str, *more: str) -> None:
        options = f"-k {self._folder} -c listen_addresses="
        start = [] if action == "stop" else ["-o", options, "-l", self._folder / "log"]
        self._run("pg_ctl", "-D", self._data, "-w", *start, action, *more)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._binaries / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            user=self._user,
            group=self._user and pwd.getpwnam(self._user).pw_gid,
            extra_groups=[] if self._user else None,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            log = self._folder / "log"
            said = (done.stdout or b"").decode() + (log.read_text() if log.exists() else "")
            raise RuntimeError(f"{program} failed:\n{said}")


def server_binaries() -> Path | None:
    """The folder with initdb and pg_ctl: on PATH, or where Debian puts the newest."""
    found = [Path(where).resolve().parent for name in ("initdb", "postgres")
             if (where := shutil.which(name))]  # fmt: skip
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    return next((path for path in found if (path / "initdb").exists()), None)


@pytest.fixture(scope="session")
def _started() -> Iterator[tuple[str, Server | None]]:
    if url := os.environ.get("SYNTH_TEST_POSTGRES_URL"):
        yield url, None
        return
    binaries = server_binaries()
    if binaries is None:
        message = "no PostgreSQL server is installed (initdb not found)"
        if os.environ.get("SYNTH_TEST_POSTGRES") == "required":
            pytest.fail(message)
        pytest.skip(message)
    server = Server(binaries)
    yield server.url, server
    server.end()


@pytest.fixture
def postgres_server(_started: tuple[str, Server | None]) -> Server:
    """The server itself, for tests that stop it."""
    _, server = _started
    if server is None:
        pytest.skip("the server is not ours to stop")
    return server


@pytest.fixture
def postgres_url(_started: tuple[str, Server | None]) -> Iterator[str]:
    """An empty database."""
    url, _ = _started
    name = f"ledger_{os.getpid()}_{next(_numbers)}"
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    yield urlsplit(url)._replace(path=f"/{name}").geturl()
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a ledger, of each kind."""
    if request.param == "postgres":
        return Place(request.getfixturevalue("postgres_url"))
    return Place(str(tmp_path / "l.sqlite"))
