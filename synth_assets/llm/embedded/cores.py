"""How many cores a compute-bound process may keep busy.

A llama.cpp server with more threads than cores spends its time waiting for the thread that is
not running: speed does not flatten, it collapses. So hyper-threads do not count, nor do cores
outside the process's affinity or beyond its cgroup's CPU quota.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import psutil


def usable_cores(
    *,
    cpus: Collection[int] | None = None,
    sys_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
) -> int:
    """Physical cores this process may use, at least 1: affinity and cgroup quota respected.

    ``cpus`` are the logical CPUs allowed (default: the process's affinity).
    """
    allowed = set(cpus) if cpus is not None else _affinity()
    cores = _physical(allowed, sys_root)
    if cores is None:
        cores = min(psutil.cpu_count(logical=False) or len(allowed), len(allowed))
    quota = min(_quotas(sys_root, proc_root), default=None)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical(cpus: set[int], sys_root: Path) -> int | None:
    """Distinct cores behind the logical CPUs; None where the system does not tell."""
    cores = set()
    for cpu in cpus:
        siblings = sys_root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        text = _read(siblings)
        if not text:
            return None
        cores.add(text)
    return len(cores) or None


def _quotas(sys_root: Path, proc_root: Path) -> Iterator[float]:
    """CPU quotas, in CPUs, of the process's cgroups (versions 1 and 2) and their ancestors."""
    for line in _read(proc_root / "self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = sys_root / "fs/cgroup" / controllers
        path = PurePosixPath(group)
        # In a container the group's name may be the host's: then only the root is there.
        for each in (path, *path.parents):
            folder = root / str(each).lstrip("/")
            limit, period = _limit(folder, version_2=not controllers)
            if limit > 0 and period > 0:
                yield limit / period


def _limit(folder: Path, *, version_2: bool) -> tuple[int, int]:
    if version_2:
        fields = _read(folder / "cpu.max").split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [_read(folder / name) for name in names]
    try:
        limit, period = fields
        return int(limit), int(period)
    except ValueError:
        return -1, -1  # "max": no limit; or no such file


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
