"""What a user is told when something is wrong: one message, no traceback.

Every error here carries four things as far as they are known: *where* it is (file, line, key,
column), *what* is wrong, the *value* found, and the *fix*. The command line prints the message
and exits with ``exit_code``; Dagster shows it as the step's failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

MAX_VALUE_CHARS = 120


def shown(value: object) -> str:
    """A value as it may appear in a message: one line, bounded, control characters escaped."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."


class SynthError(Exception):
    """A failure that the user can understand and mend."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem = problem
        self.where = where
        self.fix = fix
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


class SourceError(SynthError):
    """Human data that cannot be used: missing file or column, nothing usable in it."""


class EndpointError(SynthError):
    """A model endpoint that cannot answer: unreachable, wrong key, unknown model."""


class Incomplete(SynthError):
    """Work that ended early in good order: a shortfall, a budget reached, a blocking check."""

    exit_code: ClassVar[int] = 3


class Stopped(SynthError):
    """A run that was asked to stop: everything that was paid for is kept."""

    exit_code: ClassVar[int] = 130

    def __init__(self) -> None:
        super().__init__("stopped; every answer is kept, run again to go on")


class UsageError(SynthError):
    """A command that asks for something that does not exist."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class SpecProblem:
    """One thing wrong with a dataset's YAML or prompt."""

    file: str
    line: int
    key: str
    problem: str
    value: str = ""
    fix: str = ""

    def __str__(self) -> str:
        found = f" (found {self.value})" if self.value else ""
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        key = f" {self.key}:" if self.key else ""
        return f"{self.file}:{self.line}:{key} {self.problem}{found}{fix}"


@dataclass
class SpecError(SynthError):
    """Everything wrong with one dataset's declaration, in file order."""

    dataset: str
    problems: list[SpecProblem] = field(default_factory=list)
    exit_code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        Exception.__init__(self, "\n".join(str(problem) for problem in self.problems))

    def __hash__(self) -> int:
        return id(self)
