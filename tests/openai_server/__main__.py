"""``python -m tests.openai_server``: the server as its own process."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
from pathlib import Path

from tests.openai_server.app import serve
from tests.openai_server.faults import schedule
from tests.openai_server.state import ServerState


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.openai_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--ready-file", type=Path, help="receives the port once it listens")
    parser.add_argument("--model", action="append", help="a model it has; may be repeated")
    parser.add_argument("--api-key", default="test-key", help="'' accepts any key")
    parser.add_argument("--no-structured", action="store_true", help="refuses json_schema")
    parser.add_argument("--no-json-mode", action="store_true", help="refuses json_object")
    parser.add_argument("--no-tools", action="store_true", help="refuses tools")
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="how long a batch takes")
    parser.add_argument("--batch-faults", type=json.loads, default={}, help="per line of a batch")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rows", type=int, default=8, help="rows when a prompt names no number")
    parser.add_argument("--faults", type=json.loads, default={}, help='as {"429": 0.05}')
    parser.add_argument("--seed", type=int, default=0, help="of the fault schedule")
    parser.add_argument("--fault-seconds", type=float, default=0.5, help="of stalls, slow bodies")
    options = parser.parse_args()
    state = ServerState(
        models=tuple(options.model or ("test-model",)),
        api_key=options.api_key or None,
        structured=not options.no_structured,
        json_mode=not options.no_json_mode,
        tools=not options.no_tools,
        batch_seconds=options.batch_seconds,
        batch_faults=schedule(options.seed, options.batch_faults) if options.batch_faults else None,
        latency_s=options.latency,
        default_rows=options.rows,
        fault=schedule(options.seed, options.faults, seconds=options.fault_seconds)
        if options.faults
        else None,
        record=False,
    )
    asyncio.run(_run(state, options.port, options.ready_file))


async def _run(state: ServerState, port: int, ready_file: Path | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ready: asyncio.Future[int] = loop.create_future()
    serving = asyncio.create_task(serve(state, port=port, stop=stop, ready=ready))
    if ready_file is not None:
        ready.add_done_callback(lambda done: _write(ready_file, str(done.result())))
    await serving


def _write(path: Path, text: str) -> None:
    """Atomic: a reader finds no file or the whole port."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


if __name__ == "__main__":
    main()
