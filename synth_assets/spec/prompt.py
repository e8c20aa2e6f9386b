"""Prompts: Jinja templates in a sandbox, checked before anything runs.

A template sees the variables its task declares and nothing else: no globals of the process, no
attribute tricks (``ImmutableSandboxedEnvironment``), no silent blanks (``StrictUndefined``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synth_assets.errors import SpecProblem

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt as its author wrote it; ``version`` is the sha256 of the text."""

    file: Path
    text: str = field(repr=False)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def _template(self) -> jinja2.Template:
        return _ENVIRONMENT.from_string(self.text)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt for one call; ``variables`` as declared by the task."""
        return self._template.render(variables)

    def problems(self, example: Mapping[str, Any]) -> Iterator[SpecProblem]:
        """What is wrong with the template, tried on ``example`` values of every variable."""
        try:
            tree = _ENVIRONMENT.parse(self.text)
        except jinja2.TemplateSyntaxError as error:
            yield self._problem(error.lineno, "", error.message or "not a valid template")
            return
        unknown = find_undeclared_variables(tree) - set(example)
        for name in sorted(unknown):
            yield self._problem(
                _line_of(tree, name),
                name,
                "undefined template variable",
                fix=f"use one of: {', '.join(sorted(example))}",
            )
        if unknown:
            return
        try:
            self.render(example)
        except Exception as error:  # a template can raise anything: TypeError, ZeroDivisionError
            yield self._problem(
                _failing_line(error), "", f"cannot be rendered: {error}", fix="mend the template"
            )

    def _problem(self, line: int, key: str, problem: str, *, fix: str = "") -> SpecProblem:
        return SpecProblem(str(self.file), line, key, problem, fix=fix)


def _line_of(tree: nodes.Template, name: str) -> int:
    return next((node.lineno for node in tree.find_all(nodes.Name) if node.name == name), 1)


def _failing_line(error: BaseException) -> int:
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
