"""How far a run is, for a person at a terminal: stages, then rows while a model writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from synth_assets.run import RunSummary

LINE_EVERY_S = 15.0
SHOWN_REASONS = 3
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
        now = time.monotonic()
        if self._live:
            self._bar.update(
                self._task,
                completed=numbers.get("answers", 0),
                total=numbers.get("answers_expected", 0),
                description=f"{stage}: {progress_text(numbers)}",
                visible=True,
            )
        elif now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            self.line(
                f"{stage}: {numbers.get('answers', 0):,} of "
                f"{numbers.get('answers_expected', 0):,} answers, {progress_text(numbers)}"
            )

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
            "warnings": summary.warnings,
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


def progress_text(numbers: Mapping[str, Any]) -> str:
    """Rows, rejects, tokens, money, pace and time left, as far as they are known."""
    rejects = dict(numbers.get("rejects_by_reason") or {})
    most = ", ".join(
        f"{reason} {count:,}" for reason, count in list(rejects.items())[:SHOWN_REASONS]
    )
    tokens = numbers.get("prompt_tokens", 0) + numbers.get("completion_tokens", 0)
    parts = [
        f"{numbers.get('rows_accepted', 0):,} of {numbers.get('rows_wanted', 0):,} rows accepted",
        f"{sum(rejects.values()):,} rejected ({most})" if rejects else "",
        f"{numbers['calls_replayed']:,} replayed" if numbers.get("calls_replayed") else "",
        f"{numbers['calls_failed']:,} failed" if numbers.get("calls_failed") else "",
        f"{tokens:,} tokens" if tokens else "",
        f"{numbers['cost_usd']:.4f} USD" if numbers.get("cost_usd") is not None else "",
        f"{numbers['answers_per_s']:,.1f} answers/s" if numbers.get("answers_per_s") else "",
        f"{timedelta(seconds=round(numbers['seconds_left']))} left"
        if numbers.get("seconds_left")
        else "",
    ]
    return ", ".join(part for part in parts if part)
