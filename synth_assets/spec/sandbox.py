"""Jinja, cut down to what is a function of a template's variables, and bounded.

A prompt is made again when a release is reproduced, so nothing in a template may depend on chance,
on time, on the process or on where an object lies in memory. Filters, tests, globals and methods
come from lists of what is allowed. Only data can be written: a method, a macro or a generator has
no text, neither by itself nor inside another value.

Templates are untrusted, so work and memory are bounded too: each rendering has a *meter*, and
loops, calls, operators and filters take from it what they are about to make, before they make it.
The same template takes the same amount on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any

import jinja2
from jinja2 import filters as known_filters
from jinja2 import nodes
from jinja2 import tests as known_tests
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer

# What one rendering may take, in characters made. A value or a turn of a loop counts as STEP, a
# call of a macro as CALL and the length of the template.
WORK = 10_000_000
STEP, CALL = 20, 200
MAX_SIZE = 100_000  # of a width, a range, a number of parts
MAX_BITS = 10_000  # of a whole number

_FILTERS = """
abs batch capitalize center count d default dictsort e escape filesizeformat first float forceescape
format groupby indent int items join last length list lower map max min pprint reject rejectattr
replace reverse round safe select selectattr slice sort string striptags sum title tojson trim
truncate unique upper urlencode urlize wordcount wordwrap xmlattr
"""
FILTERS = frozenset(_FILTERS.split())
# Left out: the identity of objects, functions as values, what the environment has.
_TESTS = """
!= < <= == > >= boolean defined divisibleby eq equalto escaped even false float ge greaterthan gt
in integer iterable le lessthan lower lt mapping ne none number odd sequence string true undefined
upper
"""
TESTS = frozenset(_TESTS.split())
_TEXT_METHODS = """
capitalize casefold center count endswith find format format_map index isalnum isalpha isascii
isdecimal isdigit islower isnumeric isspace istitle isupper join ljust lower lstrip partition
removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines
startswith strip swapcase title upper zfill
"""
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_TEXT_METHODS.split())),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (LoopContext, frozenset({"cycle", "changed"})),
    (Cycler, frozenset({"next", "reset"})),
)
_DATA = (str, bool, int, float, type(None))
_HELPERS = (Undefined, Macro, LoopContext, Cycler, Joiner, Namespace, range)
# No template can spell these: names of filters have no spaces.
_EACH, _JOINED, _HELD = "each of", "joined to", "is held"
# Filters and methods that take a width or a number of parts.
_WITH_SIZES = "batch center indent ljust pprint rjust round slice tojson truncate wordwrap zfill"
_SIZED = frozenset(_WITH_SIZES.split())
# What stands behind % or : in a format, as far as it may hold widths.
_SPEC = re.compile(r"(?:%(?:\([^)]*\))?|:)[^a-zA-Z%{}]*")
_NESTED = re.compile(r"\{[^{}]+\{|%(?:\([^)]*\))?[-#0 +\d.]*\*")


class TemplateError(jinja2.TemplateRuntimeError):
    """A template that asks for what it cannot have; the message is for its author."""


class Meter:
    """How much of ``work`` is left; a call of a macro costs ``size``, what the template has."""

    def __init__(self, work: int = WORK, size: int = 0) -> None:
        self.left, self.size = work, size

    def take(self, amount: float) -> None:
        self.left -= int(amount)
        if self.left < 0:
            raise TemplateError("the template repeats too much, or makes too long a text")

    def hold(self, value: Any) -> Any:
        """Take what a value is, with all that is in it."""
        if isinstance(value, str):
            self.take(len(value))
        elif isinstance(value, list | tuple):
            self.take(STEP * len(value))
            for item in value:
                self.hold(item)
        elif isinstance(value, dict):
            self.take(STEP * len(value))
            for name, item in value.items():
                self.hold(name)
                self.hold(item)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TemplateError("a number this large has no place in a prompt")
        return value


_METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Renderings inside take from ``meter``."""
    token = _METER.set(meter)
    try:
        yield
    finally:
        _METER.reset(token)


@dataclass(frozen=True, eq=False)
class _Method:
    """A function, to be called; it has no text, for that would say where an object lies."""

    function: Callable[..., Any]
    name: str
    owner: Any = None

    def __str__(self) -> str:
        raise TemplateError(f"{self.name} is a function and no text: write {self.name}(...)")

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)


def _wordless(kind: type) -> type:
    """The same kind of object, without a text."""

    def refuse(self: object) -> str:
        raise TemplateError(f"a {kind.__name__.lower()} is no text")

    return type(kind.__name__, (kind,), {"__str__": refuse, "__repr__": refuse})


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if found and abs(found[-1] - found[0]) // abs(found.step) >= MAX_SIZE:
        raise TemplateError(f"a range of more than {MAX_SIZE:,} numbers")
    return found


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "range": _range,
    "dict": dict,
    "namespace": _wordless(Namespace),
    "cycler": _wordless(Cycler),
    "joiner": _wordless(Joiner),
}
GLOBALS = {name: _Method(function, name) for name, function in _FUNCTIONS.items()}


def _settled(value: Any, name: str, owner: Any = None) -> Any:
    """What a filter, a call or an attribute gives: data; what yields data, as a list of it."""
    if isinstance(value, (*_DATA, list, tuple, dict, *_HELPERS, _Method)):
        return value
    if callable(value):
        return _Method(value, name, owner)
    if hasattr(value, "__iter__") and not isinstance(value, bytes | bytearray):
        return list(islice(value, MAX_SIZE))
    raise TemplateError(f"a prompt has no use for a value of the kind {type(value).__name__}")


# --- how much something will make, before it does ------------------------------------------------


def _formatted(text: str, *values: Any, **named: Any) -> int:
    if _NESTED.search(text):
        raise TemplateError("a format has its widths written in it")
    widths = sum(int(n[:9]) for spec in _SPEC.findall(text) for n in re.findall(r"\d+", spec))
    longest = max((len(str(value)) for value in (*values, *named.values())), default=0)
    return (text.count("%") + text.count("{")) * longest + widths


def _percent(text: str, values: Any) -> int:
    if isinstance(values, Mapping):
        return _formatted(text, *values.values())
    return _formatted(text, *(values if isinstance(values, tuple) else (values,)))


def _indented(text: str, width: int | str = 4, *_: Any, **__: Any) -> int:
    return (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _wrapped(
    text: str, width: int = 79, long: bool = True, wrapstring: str | None = None, *_: Any, **__: Any
) -> int:
    return (len(text) // max(1, width) + text.count("\n") + text.count(" ")) * len(wrapstring or "")


def _summed(items: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise TemplateError("sum adds numbers")
    return 0


_GROWTH: dict[str, Callable[..., int]] = {
    "format": _formatted,
    "format_map": _percent,
    "indent": _indented,
    "wordwrap": _wrapped,
    "sum": _summed,
    "join": lambda items, by="", *_, **__: len(list(items)) * len(str(by)),
    ".join": lambda by, items: len(list(items)) * len(by),
    "replace": lambda text, old, new, *_, **__: (str(text).count(str(old)) + 1) * len(str(new)),
}


def _foreseen(
    name: str, subject: Any, args: tuple[Any, ...], named: Mapping[str, Any], growth: str
) -> None:
    """Take what a filter, a test or a method is given and will make of it."""
    meter = _METER.get()
    meter.take(STEP)
    for value in (subject, *args, *named.values()):
        meter.hold(value)
        if name in _SIZED and isinstance(value, int) and value is not subject and value > MAX_SIZE:
            raise TemplateError(f"{name} takes numbers up to {MAX_SIZE:,}")
    if growth in _GROWTH:
        meter.take(_GROWTH[growth](subject, *args, **named))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*args: Any, **named: Any) -> Any:
        _foreseen(name, args[passed], args[passed + 1 :], named, growth=name)
        return _METER.get().hold(_settled(function(*args, **named), name))

    return bounded


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int):
            _METER.get().take(len(one) * max(0, other))
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() * right)
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _METER.get().take(_percent(left, right))
    return left % right


def _bits(count: int) -> None:
    if count > MAX_BITS:
        raise TemplateError("a number this large has no place in a prompt")


# --- the environment -----------------------------------------------------------------------------


class _Bounds(NodeTransformer):
    """Puts the meter into what the sandbox cannot intercept: loops, ~, literals, comparisons."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        texts = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _call(_EACH, node.iter, nodes.Const(STEP + texts))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(_JOINED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call(_HELD, node.expr)
        for operand in node.ops:
            operand.expr = _call(_HELD, operand.expr)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call(_HELD, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call(_HELD, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call(_HELD, node) if node.ctx == "load" else node


def _call(name: str, subject: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(subject, name, list(args), [], None, None, lineno=subject.lineno)


def _each_of(items: Any, cost: int) -> list[Any]:
    every = list(items)
    _METER.get().take(cost * len(every))
    return every


def _joined(parts: list[Any]) -> str:
    return "".join(str(_METER.get().hold(part)) for part in parts)


def _held(value: Any) -> Any:
    return _METER.get().hold(value)


@pass_context  # so that nothing is worked out while a template is compiled, without a meter
def _written(context: Context, value: Any) -> Any:
    if isinstance(value, Undefined):
        return str(value)  # raises what is wrong
    _METER.get().hold(value)
    if value is None:
        raise TemplateError("this writes nothing: the value is none")
    for one in _no_data(value):
        said = str(one) if isinstance(one, _Method) else ""  # a function says so for itself
        raise TemplateError(
            f"{said}a {_KINDS.get(type(one), type(one).__name__.lower())} is no text"
        )
    return value


_KINDS = {LoopContext: "loop"}


def _no_data(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _no_data(item)
    elif isinstance(value, dict):
        yield from _no_data([*value, *value.values()])
    elif not isinstance(value, _DATA):
        yield value


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """Renders prompts; only inside ``metered``."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            finalize=_written,
            optimized=False,
        )
        self.globals = dict(GLOBALS)
        self.filters = {name: _bounded(name, known_filters.FILTERS[name]) for name in FILTERS}
        self.filters |= {_EACH: _each_of, _JOINED: _joined, _HELD: _held}
        tests: Mapping[str, Any] = known_tests.TESTS
        self.tests = {name: _bounded(name, tests[name]) for name in TESTS}
        self.binop_table |= {"*": _times, "**": _power, "%": _modulo}

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        return super()._generate(_Bounds().visit(source), *args, **named)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        known = next((names for kind, names in _METHODS if isinstance(obj, kind)), frozenset())
        return not callable(value) or attr in known or isinstance(obj, Namespace)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return _settled(super().getattr(obj, attribute), attribute, obj)

    def getitem(self, obj: Any, argument: Any) -> Any:
        found = _settled(super().getitem(obj, argument), str(argument), obj)
        return _METER.get().hold(found) if isinstance(argument, slice) else found

    def call(self, context: Context, function: Any, *args: Any, **named: Any) -> Any:
        meter = _METER.get()
        if isinstance(function, _Method):
            name, owner = function.name, function.owner
            growth = ".join" if name == "join" else name
            _foreseen(name, owner, args, named, growth if owner is not None else "")
            function = function.function
        else:
            name = "this"
            turns = len(list(args[0])) if isinstance(function, LoopContext) and args else 0
            meter.take(CALL + meter.size * (1 + turns))
            for value in (*args, *named.values()):
                meter.hold(value)
        return meter.hold(_settled(super().call(context, function, *args, **named), name))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.hold(left)
        meter.hold(right)
        return meter.hold(super().call_binop(context, operator, left, right))
