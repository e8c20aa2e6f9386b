"""How far a run is, for a person at a terminal: stages, then rows while a model writes."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from synth_assets.run import RunSummary

LINE_EVERY_S = 15.0
COUNTS = ("calls_made", "calls_replayed", "calls_failed", "prompt_tokens", "completion_tokens")


class Progress:
    """A live bar on a terminal; a line now and then where output is a file; silent if ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = not quiet and sys.stderr.isatty()
        self._quiet = quiet
        self._numbers: dict[str, Any] = {}
        self._next_line = 0.0
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("rows", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text)

    def wave(self, stages: list[str]) -> None:
        self.line(f"running {', '.join(stages)}")

    def report(self, stage: str, numbers: dict[str, Any]) -> None:
        """Numbers of a stage so far (``answers``, ``rows_accepted``, ``COUNTS``, ...)."""
        self._numbers = numbers
        answers, expected = numbers.get("answers", 0), numbers.get("answers_expected", 0)
        text = (
            f"{stage}: {answers} of {expected} answers, "
            f"{numbers.get('rows_accepted', 0)} of {numbers.get('rows_wanted', 0)} rows accepted "
            f"after {numbers.get('rounds_judged', 0)} rounds"
        )
        self._bar.update(
            self._task, completed=answers, total=expected, description=text, visible=True
        )
        now = time.monotonic()
        if not self._live and now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            self.line(text)

    def as_dict(self, summary: RunSummary) -> dict[str, Any]:
        """The one JSON line of ``synth run --json``."""
        count = {name: int(self._numbers.get(name, 0)) for name in COUNTS}
        return {
            "dataset": summary.dataset,
            "ran": summary.ran,
            "skipped": summary.skipped,
            "rows": summary.rows,
            "calls": {
                "made": count["calls_made"],
                "replayed": count["calls_replayed"],
                "failed": count["calls_failed"],
            },
            "tokens": {
                "prompt": count["prompt_tokens"],
                "completion": count["completion_tokens"],
            },
            "cost_usd": self._numbers.get("cost_usd"),
            "seconds": summary.seconds,
            "exit_code": summary.exit_code,
            "problems": summary.problems,
        }

    def sentence(self, summary: RunSummary) -> str:
        if not summary.ran:
            return f"{summary.dataset}: nothing to run ({summary.seconds:.1f} s)"
        found = self.as_dict(summary)
        cost = f", {found['cost_usd']:.4f} USD" if found["cost_usd"] is not None else ""
        return (
            f"{summary.dataset}: {len(summary.ran)} stages run (*), "
            f"{found['calls']['made']} calls made, {found['calls']['replayed']} replayed, "
            f"{found['tokens']['completion']:,} tokens written{cost}, {summary.seconds:.1f} s"
        )
