"""The embedded default: a small model on loopback, with no key and no account.

The server is llama.cpp (``xllamacpp``) in a process of its own, which speaks the OpenAI protocol.
So the engine talks to it as to any other endpoint: there is no second code path.
``python -m synth_assets.llm.embedded.server`` is that process; ``models`` names its models.

Limitation: answers are not reproducible bit for bit. Which requests share a batch changes the
order of floating-point sums; what was answered is kept by the ledger, not recomputed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from synth_assets.errors import EndpointError
from synth_assets.llm.embedded.cores import usable_cores
from synth_assets.llm.embedded.models import (
    ALTERNATIVE,
    MODELS,
    PREFIX,
    EmbeddedModel,
    model_file,
    model_identity,
    resolve,
)

__all__ = [
    "ALTERNATIVE",
    "MODELS",
    "PREFIX",
    "EmbeddedModel",
    "EmbeddedServer",
    "model_file",
    "model_identity",
    "require_server",
    "resolve",
    "serve",
]

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 5.0
# Measured with Gemma 3 270M on 2 cores: 71, 78, 87 tokens/s with 4, 8, 16 slots; little beyond.
MAX_SLOTS = 16
SLOTS_PER_CORE = 8
CONTEXT_PER_SLOT = 2048  # tokens: prompt and answer of one request


@dataclass
class EmbeddedServer:
    """A running server: ``base_url`` as the openai client takes it; ``slots`` answer at once.

    Requests beyond ``slots`` wait in the server. It asks for no key: it listens on 127.0.0.1.
    """

    base_url: str
    model: str
    slots: int
    threads: int
    pid: int
    _process: subprocess.Popen[bytes] = field(repr=False)

    def stop(self) -> None:
        """Ends the server; requests in flight are lost. May be called again."""
        _end(self._process)


@contextmanager
def serve(
    model: EmbeddedModel,
    *,
    cache_dir: Path,
    slots: int | None = None,
    threads: int | None = None,
    log_path: Path,
    notify: Callable[[str], None],
) -> Iterator[EmbeddedServer]:
    """The model served on loopback for as long as the block runs.

    ``threads``: default, the physical cores this process may use; more than those collapses the
    speed. ``slots``: requests answered together, default 8 a core and at most 16, of 2,048 tokens
    each. All output of the server goes to ``log_path``. The server ends with the block, with this
    process, and also when this process is killed. Raises EndpointError: no server for this
    platform, no model file, a server that does not start within three minutes.
    """
    require_server()
    threads = threads or usable_cores()
    slots = slots or min(MAX_SLOTS, SLOTS_PER_CORE * threads)
    path = model_file(model, cache_dir=cache_dir, notify=notify)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        log_start = log.seek(0, os.SEEK_END)
        process = _started(path, model.name, slots=slots, threads=threads, log=log)
    try:
        address = _address(process, model, log_path, log_start)
        yield EmbeddedServer(
            base_url=f"{address}/v1",
            model=model.name,
            slots=slots,
            threads=threads,
            pid=process.pid,
            _process=process,
        )
    finally:
        _end(process)


def require_server() -> None:
    """Raises EndpointError where the llama.cpp server is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise _no_server("xllamacpp is not installed")


def _no_server(problem: str) -> EndpointError:
    return EndpointError(
        f"the embedded model server cannot run here: {problem}",
        where="generate.model",
        fix=f"`pip install xllamacpp`, if it has a wheel for this platform; else {ALTERNATIVE}",
    )


def _started(
    path: Path, name: str, *, slots: int, threads: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "synth_assets.llm.embedded.server"]
    command += ["--model-file", str(path.resolve()), "--name", name, "--slots", str(slots)]
    command += ["--threads", str(threads), "--parent", str(os.getpid())]
    # The child finds this package however the parent found it.
    root = str(Path(__file__).resolve().parents[3])
    known = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(known)},
        # Ctrl-C is for the parent: answers in flight are still worth having.
        start_new_session=True,
    )


def _address(
    process: subprocess.Popen[bytes], model: EmbeddedModel, log_path: Path, log_start: int
) -> str:
    """The address the child announces in its first line."""
    lines: list[bytes] = []
    pipe = process.stdout
    assert pipe is not None
    reader = threading.Thread(target=lambda: lines.append(pipe.readline()), daemon=True)
    reader.start()
    reader.join(START_TIMEOUT_S)
    where = f"model {PREFIX}{model.name}"
    if not lines:
        raise EndpointError(
            f"the model server did not start within {START_TIMEOUT_S:.0f} s",
            where=where,
            fix=f"the machine may be overloaded or short of memory: see {log_path}; "
            f"or {ALTERNATIVE}",
        )
    try:
        said = json.loads(lines[0])
    except ValueError:
        process.wait(STOP_TIMEOUT_S)
        said = {"error": f"its process ended with {process.returncode}"}
    if "missing" in said:
        raise _no_server(str(said["missing"]))
    if "address" not in said:
        raise EndpointError(
            f"the model server did not start: {said['error']} "
            f"{_first_complaint(log_path, log_start)}".rstrip(),
            where=where,
            fix=f"see {log_path}; or {ALTERNATIVE}",
        )
    return str(said["address"])


def _first_complaint(log_path: Path, start: int) -> str:
    """The first error in the log since the start; llama.cpp's later ones follow from it."""
    with log_path.open("rb") as log:
        log.seek(start)
        text = log.read(64_000).decode(errors="backslashreplace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.split(" E ", 1)[1].strip() for line in lines if " E " in line]
    return (errors or lines[-1:] or [""])[0][:500]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def main() -> None:
    """The server's process: announces its address, then serves until its parent is gone."""
    parser = argparse.ArgumentParser(prog="python -m synth_assets.llm.embedded.server")
    parser.add_argument("--model-file", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    # llama.cpp writes to file descriptor 1: keep that for ourselves, give it the log.
    with os.fdopen(os.dup(1), "w") as announce:
        os.dup2(2, 1)
        _end_with(options.parent)
        try:
            server = _llama_server(options)
            said = {"address": str(server.listening_address)}  # type: ignore[attr-defined]
        except ImportError as error:
            said = {"missing": f"{error}"}
        except Exception as error:
            said = {"error": f"{error}"}
        announce.write(json.dumps(said) + "\n")
    if "address" not in said:
        sys.exit(1)
    while True:
        time.sleep(3600)


def _llama_server(options: argparse.Namespace) -> object:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model_file
    params.model_alias = {options.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = options.slots
    params.n_ctx = CONTEXT_PER_SLOT * options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    # A waiting request holds a thread: more clients than slots must still get a connection.
    params.n_threads_http = 2 * options.slots + 4
    # Prompts differ in their examples: copying old caches to memory (8 GB allowed) gains nothing.
    params.cache_ram_mib = 0
    params.fit_params = False  # nothing to fit: every size is given
    params.ui = params.endpoint_slots = False
    params.cors_origins = ""  # no web page has business here
    params.verbosity = 1  # errors
    return xllamacpp.Server(params)


def _end_with(parent: int) -> None:
    """Ends this process once the parent is gone, even killed.

    The end of standard input tells at once on every platform; a forked sibling may hold that pipe
    open, so on POSIX the parent's id is watched too.
    """

    def at_end_of_input() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    def at_another_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    watches = [at_end_of_input] if os.name == "nt" else [at_end_of_input, at_another_parent]
    for watch in watches:
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
