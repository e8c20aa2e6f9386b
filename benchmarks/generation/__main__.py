"""Requests per second, CPU and memory of generation clients, in one run.

    python -m benchmarks.generation [--requests 5000] [--latency 50 200] [--concurrency 64 256]
                                    [--repeat 3] [--memory] [--peer NAME=PYTHON ...] [--json FILE]

A server in its own process gives one canned chat answer after the latency; every client asks the
same questions in a process of its own. ``ours`` writes every answer durably to a ledger before it
counts; the others keep nothing. ``aiohttp`` is the floor: no client library at all. ``replay`` asks
a ledger that has every answer. Medians over ``--repeat``; trust ratios, not seconds.

Peers run in environments of their own (their pins contradict each other): see ``peers``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CLIENTS = ("ours", "create", "create_aiohttp", "aiohttp")
MEMORY_SIZES = (10_000, 100_000)
ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


@contextmanager
def server(latency_ms: float) -> Iterator[str]:
    """The URL of a server in its own process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.generation.server", str(latency_ms)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def run(client: str, url: str, requests: int, concurrency: int, peers: dict[str, str]) -> Result:
    """One client in its own process; raises CalledProcessError when it fails."""
    module = "benchmarks.generation.peers" if client in peers else "benchmarks.generation.clients"
    command = [peers.get(client, sys.executable), "-m", module, client, url]
    done = subprocess.run(
        [*command, str(requests), str(concurrency)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: Result = json.loads(done.stdout.strip().splitlines()[-1])
    if found["good"] != requests:
        raise SystemExit(f"{client}: {found['good']} good answers to {requests} requests")
    return found


def median(results: list[Result]) -> Result:
    """The figure-by-figure median of repeated runs."""
    return {
        name: statistics.median(one[name] for one in results)
        for name in ("seconds", "cpu", "peak_mb")
    }


def compared(options: argparse.Namespace, peers: dict[str, str]) -> list[Result]:
    rows: list[Result] = []
    for latency in options.latency:
        with server(latency) as url:
            for concurrency in options.concurrency:
                # Rounds over all clients, so that a slow minute of the machine hits all alike.
                found: dict[str, list[Result]] = {}
                for _ in range(options.repeat):
                    for client in (*options.clients, *peers):
                        one = run(client, url, options.requests, concurrency, peers)
                        found.setdefault(client, []).append(one)
                case = {"latency_ms": latency, "concurrency": concurrency}
                rows += [
                    {**case, "client": client, **median(results)}
                    for client, results in found.items()
                ]
    return rows


def show(rows: list[Result], requests: int) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("latency", "in flight", "client", "calls/s", "x create", "x floor"):
        table.add_column(column, justify="right" if column != "client" else "left")
    table.add_column("CPU s/1,000", justify="right")
    table.add_column("MB", justify="right")
    for row in rows:
        same = {
            other["client"]: other["seconds"]
            for other in rows
            if (other["latency_ms"], other["concurrency"])
            == (row["latency_ms"], row["concurrency"])
        }
        table.add_row(
            f"{row['latency_ms']:g} ms",
            str(row["concurrency"]),
            row["client"],
            f"{requests / row['seconds']:,.0f}",
            f"{same['create'] / row['seconds']:.2f}" if "create" in same else "",
            f"{same['aiohttp'] / row['seconds']:.2f}" if "aiohttp" in same else "",
            f"{1000 * row['cpu'] / requests:.2f}",
            f"{row['peak_mb']:.0f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--latency", type=float, nargs="+", default=[50, 200], help="ms")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="10,000 and 100,000 requests of ours")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    peers = dict(one.split("=", 1) for one in options.peer)
    rows = compared(options, peers)
    show(rows, options.requests)
    results: dict[str, Any] = {"requests": options.requests, "rows": rows}
    with server(0) as url:
        replays = [run("replay", url, options.requests, 256, {}) for _ in range(options.repeat)]
        results["replay_per_s"] = options.requests / median(replays)["seconds"]
        print(f"replay from the ledger: {results['replay_per_s']:,.0f} calls/s")
        if options.memory:
            peaks = [run("ours", url, size, 256, {})["peak_mb"] for size in MEMORY_SIZES]
            results["memory_mb"] = dict(zip(map(str, MEMORY_SIZES), peaks, strict=True))
            print(
                f"peak memory: {peaks[0]:.0f} MB at 10,000, {peaks[1]:.0f} MB at 100,000 requests"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
