"""Prompts: Jinja templates that are a function of their variables, checked before anything runs.

A template sees the variables its task declares and nothing else, in the environment of
``spec.sandbox``: without chance, without a trace of the process, without end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from synth_assets.errors import SpecProblem, shown
from synth_assets.spec.sandbox import (
    FILTERS,
    GLOBALS,
    TESTS,
    WORK,
    Meter,
    PromptEnvironment,
    metered,
)

MAX_TEMPLATE_CHARS = 1_000_000
# When trials have taken so much together, the rest is left to the plan, which renders every call.
TRIALS_WORK = 10 * WORK
_ENVIRONMENT = PromptEnvironment()
_ABROAD = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\u034f\u115f\u1160\u180e\u2800\u3164\uffa0\ufe00-\ufe0f\u00ad"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)
MAX_SAID = 300
_MEND = "mend the template"


@dataclass(frozen=True)
class Trial:
    """Variables to try a template with, and in words what they stand for: "label 'a'"."""

    told: str
    variables: Mapping[str, Any]


class PromptError(Exception):
    """A template that cannot be rendered with some variables: where, why, and what helps."""

    def __init__(self, problem: SpecProblem) -> None:
        self.problem = problem
        super().__init__(str(problem))


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

    def render(self, trial: Trial) -> str:
        """The prompt for one call; the variables are those that the task declares.

        Raises:
            PromptError: with the line, and what the variables stood for.
        """
        return self._rendered(trial, Meter(WORK, len(self.text)))

    def _rendered(self, trial: Trial, meter: Meter) -> str:
        try:
            with metered(meter):
                prompt = self._template.render(trial.variables)
            prompt.encode()  # a literal such as "\\ud800" has no bytes
        except Exception as error:  # a template can raise anything: TypeError, ZeroDivisionError
            said = f"cannot be rendered for {trial.told}: {_said(error)}"
            fix = _fix(error, trial.variables)
            raise PromptError(self._problem(_failing_line(error), said, fix=fix)) from None
        if not _INVISIBLE.sub("", prompt):
            fix = "write what the model is to do, whatever the label and number of examples"
            said = f"the prompt for {trial.told} is empty"
            raise PromptError(self._problem(1, said, fix=fix))
        return prompt

    def problems(self, trials: Iterable[Trial]) -> Iterator[SpecProblem]:
        """What is wrong with the template: in itself, else with the first trial that fails.

        All trials have the same variables.
        """
        if len(self.text) > MAX_TEMPLATE_CHARS:
            yield self._problem(
                1,
                "the template is too long",
                value=f"{len(self.text):,} characters",
                fix=f"keep it below {MAX_TEMPLATE_CHARS:,}",
            )
            return
        trials = list(trials)
        try:
            found = list(self._in_itself(set(trials[0].variables)))
            if not found:
                _ = self._template
        except jinja2.TemplateSyntaxError as error:
            yield self._problem(error.lineno, error.message or "not a valid template", fix=_MEND)
            return
        except Exception as error:  # too deep for the parser or for Python's compiler
            yield self._problem(1, f"cannot be read: {_said(error)}", fix=_MEND)
            return
        yield from found
        if found:
            return
        taken = 0
        for trial in trials:
            meter = Meter(WORK, len(self.text))
            try:
                self._rendered(trial, meter)
            except PromptError as error:
                yield error.problem
                return
            taken += WORK - meter.left
            if taken > TRIALS_WORK:
                return

    def _in_itself(self, known: set[str]) -> Iterator[SpecProblem]:
        tree = _ENVIRONMENT.parse(self.text)
        unusable = [*self._no_text(tree), *self._not_allowed(tree)]
        yield from unusable
        if unusable:
            return  # no code can be made of it, and that is where names are found
        unknown = find_undeclared_variables(tree) - known
        for name in sorted(unknown):
            yield self._problem(
                _line_of(tree, name),
                "undefined template variable",
                key=name,
                fix=f"use one of: {', '.join(sorted(known))}; functions: {', '.join(GLOBALS)}",
            )

    def _no_text(self, tree: nodes.Template) -> Iterator[SpecProblem]:
        for node in tree.find_all(_ABROAD):
            fix = "write its text here"
            yield self._problem(node.lineno, "a prompt is one file: it takes in no other", fix=fix)
        for name in tree.find_all(nodes.Name):
            if name.name == "self":
                said = "cannot be rendered: the template itself is no variable"
                yield self._problem(name.lineno, said, key="self", fix="use a macro")

    def _not_allowed(self, tree: nodes.Template) -> Iterator[SpecProblem]:
        for kind, names in ((nodes.Filter, FILTERS), (nodes.Test, TESTS)):
            for used in tree.find_all(kind):
                if used.name not in names:
                    what = f"there is no {kind.__name__.lower()} of this name in a prompt"
                    fix = f"use one of: {', '.join(sorted(names))}"
                    yield self._problem(used.lineno, what, key=used.name, fix=fix)

    def _problem(
        self, line: int, problem: str, *, key: str = "", value: str = "", fix: str = ""
    ) -> SpecProblem:
        return SpecProblem(str(self.file), line, key, problem, value=value, fix=fix)


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep, or calls itself without end"
    said = " ".join((str(error) or type(error).__name__).split())
    return said[:MAX_SAID] if said.isprintable() else shown(said)


def _fix(error: Exception, variables: Mapping[str, Any]) -> str:
    if not isinstance(error, jinja2.UndefinedError):
        return _MEND
    if "'dict object' has no attribute" in str(error):
        names = ", ".join(sorted(variables.get("attributes", {}))) or "none"
        return f"use an attribute of generate.attributes ({names}), or declare it there"
    return "guard it, as with {% if examples %}...{% endif %}, or mend the name"


def _line_of(tree: nodes.Template, name: str) -> int:
    return next((node.lineno for node in tree.find_all(nodes.Name) if node.name == name), 1)


def _failing_line(error: BaseException) -> int:
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
