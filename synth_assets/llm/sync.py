"""Running a coroutine from ordinary code: a step's thread, a command, a notebook.

The loop has a thread of its own, whatever runs in the caller's. So it works where a loop is
already running, and an interrupt in the main thread (Ctrl-C, SIGTERM as an exception, a step
terminated from outside) is never raised into the middle of a callback: the caller receives it, the
coroutine is cancelled in good order, and what was paid for is kept.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

# How long a cancelled coroutine may take to keep what is in flight.
STOP_WITHIN_S: Final = 5.0
# Some platforms deliver signals to a waiting thread only between waits.
_WAIT_S: Final = 0.5


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; on uvloop where it is installed.

    Raises what the coroutine raises. An exception in the waiting caller (KeyboardInterrupt,
    SystemExit, ...) cancels the coroutine, waits up to five seconds for it, and goes on.
    """
    running = _Running(coroutine)
    thread = threading.Thread(target=running.run, name="llm-loop", daemon=True)
    thread.start()
    try:
        while not running.done.wait(_WAIT_S):
            pass
    except BaseException:
        running.cancel()
        running.done.wait(STOP_WITHIN_S)
        raise
    thread.join()
    return cast(T, running.result())


class _Running:
    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.done = threading.Event()
        self._coroutine: Coroutine[Any, Any, Any] = coroutine
        self._results: list[Any] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self) -> None:
        try:
            with _runner() as runner:
                self._results.append(runner.run(self._main()))
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def cancel(self) -> None:
        with self._lock:
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._results[0]

    async def _main(self) -> Any:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
        try:
            return await self._coroutine
        finally:
            with self._lock:
                self._task = None


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
