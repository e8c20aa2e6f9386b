"""What every step is given: where to write, and whom to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from synth_assets.settings import Home, home

Notify = Callable[[str], None]
Report = Callable[[str, dict[str, Any]], None]


def _silent(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Workbench:
    """``notify`` takes one line for a person; ``report`` numbers about a stage's progress."""

    home: Home = field(default_factory=home)
    notify: Notify = _silent
    report: Report = _silent
    concurrency: int | None = None

    @property
    def listens(self) -> bool:
        """Whether anybody is told about progress; numbers need not be made for nobody."""
        return self.report is not _silent
