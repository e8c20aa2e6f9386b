"""What versions cost, beside what the same bytes cost without them.

    python -m benchmarks.versions [--tables 200] [--megabytes 500] [--calls 100000] [--repeat 3]
                                  [--json FILE]

``store``: ``synth verify``'s walk over a store (the hash of every file, and of every row) against
``sha256sum -c`` of the same files. ``table``: the data version of one of its tables against writing
it as Parquet. ``ledger``: the checksums of paid calls of about 1.5 KB. ``run``: ``synth run`` of a
small dataset in which everything is fresh, as a process. All files are in the page cache; medians
over ``--repeat``; trust ratios, not seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.ledger import put, rows
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.verify import verify_ledger
from synth_assets.store.content import ContentStore
from synth_assets.store.digest import frame_digest
from synth_assets.store.verify import verify_store

ROWS_PER_MB = 5_500
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", dtype=np.uint8)
SYNTH = Path(sys.executable).parent / "synth"


def table(height: int, seed: int) -> pl.DataFrame:
    """Rows in the shape of a training table: ids, a sentence, a label, a weight, seed ids."""
    rng = np.random.default_rng(seed)
    texts = rng.choice(LETTERS, (height, 160))
    ids = [value.tobytes().hex() for value in rng.integers(0, 256, (height, 32), dtype=np.uint8)]
    return pl.DataFrame(
        {
            "record_id": ids,
            "text": [text.tobytes().decode() for text in texts],
            "label": rng.choice(["billing", "delivery", "login"], height),
            "weight": rng.random(height),
            "source_row": np.arange(height),
            "seed_ids": [ids[n : n + 4] for n in range(height)],
        }
    )


def median_s(work: Callable[[], object], repeat: int) -> float:
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def store(root: Path, *, tables: int, megabytes: float, repeat: int) -> dict[str, Any]:
    kept = ContentStore(root / "store")
    height = int(megabytes / tables * ROWS_PER_MB)
    for number in range(tables):
        kept.put("bench", f"stage{number % 10}", table(height, number))
    files = sorted(kept.root.rglob("*.parquet"))
    lines = [f"{p.with_suffix('.sha256').read_text().split()[0]}  {p}\n" for p in files]
    (root / "sums").write_text("".join(lines))

    def verified() -> None:
        found = verify_store(kept)
        if found.problems or found.tables != tables:
            raise SystemExit(f"the store is not what was written: {found.problems[:3]}")

    check = ["sha256sum", "--check", "--quiet", str(root / "sums")]
    ours = median_s(verified, repeat)
    plain = median_s(lambda: subprocess.run(check, check=True), repeat)
    size = sum(path.stat().st_size for path in files) / 1e6
    return {
        "tables": tables,
        "megabytes": round(size, 1),
        "verify_s": round(ours, 2),
        "verify_mb_per_s": round(size / ours, 1),
        "sha256sum_s": round(plain, 2),
        "ratio": round(ours / plain, 1),
    }


def one_table(root: Path, *, repeat: int) -> dict[str, Any]:
    frame = table(100_000, 1)
    size = frame.estimated_size() / 1e6
    path = root / "one.parquet"
    written = median_s(lambda: frame.write_parquet(path), repeat)
    hashed = median_s(lambda: frame_digest(frame), repeat)
    columns = {
        name: round(median_s(lambda name=name: frame_digest(frame.select(name)), repeat), 4)
        for name in frame.columns
    }
    return {
        "rows": frame.height,
        "megabytes_in_memory": round(size, 1),
        "write_parquet_s": round(written, 3),
        "frame_digest_s": round(hashed, 3),
        "frame_digest_mb_per_s": round(size / hashed, 1),
        "ratio": round(hashed / written, 2),
        "seconds_by_column": columns,
    }


def ledger(root: Path, *, calls: int, repeat: int) -> dict[str, Any]:
    path = root / "ledger.sqlite"
    with Ledger.open(path) as opened:
        for start in range(0, calls, 10_000):
            part = rows(start, min(10_000, calls - start))
            asyncio.run(put(opened, part, 2_000, claiming=False))
        seconds = median_s(lambda: verify_ledger(opened), repeat)
        looked = verify_ledger(opened)
    if looked.damaged or looked.calls != calls:
        raise SystemExit("the ledger is not what was written")
    return {
        "calls": calls,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "verify_s": round(seconds, 2),
        "calls_per_s": round(calls / seconds),
    }


def fresh_run(root: Path, *, repeat: int) -> dict[str, Any]:
    from tests.openai_server import running_server
    from tests.processes import Place

    place = Place.make(root / "place")
    place.dataset()
    with running_server() as server:
        first = place.run(server)
        environment = place.environment(server)
    if first.code:
        raise SystemExit(first.errors)
    command = [str(SYNTH), "run", "tickets", "--json"]
    quiet = {"env": environment, "check": True, "stdout": subprocess.DEVNULL}
    seconds = median_s(lambda: subprocess.run(command, **quiet), repeat)  # type: ignore[call-overload]
    verify = [str(SYNTH), "verify"]
    looked = median_s(lambda: subprocess.run(verify, **quiet), repeat)  # type: ignore[call-overload]
    return {
        "first_s": first.json["seconds"],
        "nothing_to_do_s": round(seconds, 2),
        "verify_s": round(looked, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions")
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = {
            "cpus": os.cpu_count(),
            "store": store(
                root, tables=given.tables, megabytes=given.megabytes, repeat=given.repeat
            ),
            "table": one_table(root, repeat=given.repeat),
            "ledger": ledger(root, calls=given.calls, repeat=given.repeat),
            "run": fresh_run(root, repeat=given.repeat),
        }
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
