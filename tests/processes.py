"""The ``synth`` command as real processes, in places of their own, for tests of what they share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from synth_assets.llm.client import PATHS
from synth_assets.llm.ledger.ledger import Ledger
from tests.datasets import DatasetFolder
from tests.openai_server import ServerState, identity_of

SYNTH = Path(sys.executable).parent / "synth"
DAGSTER_YAML = "telemetry: {enabled: false}\n"


@dataclass(frozen=True)
class Place:
    """A home, a Dagster instance and a folder of datasets; commands see nothing else."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> Place:
        place = cls(root)
        for folder in (place.home, place.dagster_home, place.defs):
            folder.mkdir(parents=True, exist_ok=True)
        (place.dagster_home / "dagster.yaml").write_text(DAGSTER_YAML)
        return place

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def defs(self) -> Path:
        return self.root / "defs"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger" / "ledger.sqlite"

    def dataset(self, name: str = "tickets", **generate: Any) -> DatasetFolder:
        """A dataset folder, written; ``generate`` overrides keys of that section."""
        folder = DatasetFolder(self.defs / name)
        folder.attributes["generate"] |= generate
        folder.write()
        return folder

    def environment(self, server: ServerState, **more: str) -> dict[str, str]:
        return os.environ | {
            "SYNTH_HOME": str(self.home),
            "DAGSTER_HOME": str(self.dagster_home),
            "SYNTH_DEFS": str(self.defs),
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": "test-key",
            **more,
        }

    def start(self, server: ServerState, *words: str, **more: str) -> subprocess.Popen[str]:
        """``synth WORDS`` as the leader of a process group of its own."""
        return subprocess.Popen(
            [str(SYNTH), *words],
            env=self.environment(server, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, server: ServerState, name: str = "tickets", *words: str) -> Finished:
        return finished(self.start(server, "run", name, "--json", *words))

    def statuses(self, server: ServerState, name: str = "tickets") -> dict[str, dict[str, Any]]:
        found = finished(self.start(server, "status", name, "--json"))
        assert found.code == 0, found.errors
        return {stage["stage"]: stage for stage in found.json["stages"]}

    def table(self, versions: Mapping[str, str], stage: str, name: str = "tickets") -> pl.DataFrame:
        return pl.read_parquet(self.home / "store" / name / stage / f"{versions[stage]}.parquet")

    def bought(self) -> dict[str, str]:
        """Name (see ``asked``) of every answer in the ledger, with the dataset that paid for it."""
        if not self.ledger.exists():
            return {}
        with Ledger.open(self.ledger) as ledger:
            rows = ledger.query("SELECT request, dataset FROM calls")
        calls = [(orjson.loads(request), dataset) for request, dataset in rows]
        return {_name("/v1" + PATHS[c["kind"]], c["body"]): dataset for c, dataset in calls}


@dataclass(frozen=True)
class Finished:
    """What one command gave."""

    code: int
    out: str
    errors: str

    @property
    def json(self) -> dict[str, Any]:
        lines = [line for line in self.out.splitlines() if line.startswith("{")]
        return dict(json.loads(lines[-1])) if lines else {}


def finished(process: subprocess.Popen[str], *, timeout: float = 120) -> Finished:
    out, errors = process.communicate(timeout=timeout)
    return Finished(process.returncode, out, errors)


def killed(process: subprocess.Popen[str]) -> Finished:
    """After SIGKILL to the whole process group."""
    os.killpg(process.pid, signal.SIGKILL)
    return finished(process, timeout=20)


def versions_of(statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {stage: str(found["data_version"]) for stage, found in statuses.items()}


def asked(server: ServerState, *, since: int = 0) -> list[str]:
    """Every request that reached the server, by name, in the order of arrival."""
    return [_name(info.path, info.body) for info in server.requests[since:]]


def answered(server: ServerState) -> Counter[str]:
    """How often the server gave a good answer to each request."""
    names = {info.identity: _name(info.path, info.body) for info in server.requests}
    return Counter({names[one]: n for one, n in server.successes_by_identity.items()})


def _name(path: str, body: object) -> str:
    """The same for a body as it was sent and as the ledger spells it (``1.0`` and ``1``)."""
    return identity_of(path, json.loads(json.dumps(body), parse_float=_plain))


def _plain(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def wait_until(reached: Callable[[], bool], *, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.005)


def quiet(server: ServerState) -> None:
    """Until nothing is in flight at the server and nothing arrives any more."""
    seen = -1
    while server.in_flight or server.request_count != seen:
        seen = server.request_count
        time.sleep(0.15)


@contextmanager
def unharmed(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens in the block, none of the processes is left behind."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                killed(process)
