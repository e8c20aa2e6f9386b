"""A PostgreSQL server in a folder of its own, reached by a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl: on PATH, or where Debian puts the newest."""
    on_path = shutil.which("initdb")
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    folders = [*([Path(on_path).resolve().parent] if on_path else []), *reversed(versions)]
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A running server; its URL, with a password that must appear nowhere."""
    place = Path(tempfile.mkdtemp(prefix="synth-source-pg-"))
    # PostgreSQL refuses to run as root.
    user = None
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres" if "postgres" in _users() else "nobody")
        shutil.chown(place, user.pw_name)

    def run(program: str, *arguments: object) -> None:
        subprocess.run(
            [str(folder / program), *map(str, arguments)],
            user=user.pw_name if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=True,
        )

    data = place / "data"
    run("initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C")
    run("pg_ctl", "-D", data, "-w", "-o", f"-k {place} -c listen_addresses=", "-l", place / "log",
        "start")  # fmt: skip
    try:
        yield f"postgresql://tester:pw-Zq81@/postgres?host={place}"
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(place)


def _users() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}
