"""Who holds a claim, and whether that process still lives."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from functools import cache
from pathlib import Path
from uuid import getnode

import psutil

from synth_assets.llm.ledger.rows import Owner


def this_process() -> Owner:
    """A new owner for one ledger object of this process."""
    pid = os.getpid()
    return Owner(token=secrets.token_hex(16), host=_host(), pid=pid, born=_born(pid) or "")


def is_gone(owner: Owner, *, heartbeat_at: float, now: float, lease_s: float) -> bool:
    """Whether the owner's claims may be taken over.

    On the same host a dead process is known at once; elsewhere its heartbeat (Unix seconds) must
    be older than the lease.
    """
    if now - heartbeat_at > lease_s:
        return True
    return owner.host == _host() and _born(owner.pid) != owner.born


def process_name() -> str:
    """A name for this process that no other has, on any machine, for ``has_ended``."""
    pid = os.getpid()
    return f"{pid} {_born(pid)} {_host()}"


def has_ended(name: str) -> bool:
    """Whether the process of that name ran here and is gone; of one elsewhere nothing is known."""
    pid, _, rest = name.partition(" ")
    born, _, host = rest.partition(" ")
    return host == _host() and pid.isdigit() and _born(int(pid)) not in (born, "")


@cache
def _host() -> str:
    """What process ids are unique within: host name, running kernel, process-id namespace.

    Two machines may share a name, and two containers a machine; neither share their ids.
    """
    namespace = ""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = f"{getnode():012x}"
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {kernel} {namespace}".strip()


def _born(pid: int) -> str | None:
    """When a living process started, to tell reused ids apart; None when it has ended."""
    try:
        process = psutil.Process(pid)
        # A zombie has ended; only its parent has not noticed yet.
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""
