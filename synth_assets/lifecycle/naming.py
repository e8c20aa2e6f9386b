"""How references to rows are written, and the one form they are compared in.

``61``, ``61.0`` (pandas, of a column with a gap), ``0061``, ``#61``, ``"61"`` and ``６１`` name one
row, and so do ``T-9`` and ``t-9``. Two ids that differ by such a spelling only are told apart where
a reference is written exactly as one of them; any other spelling stands for both.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Final

# Deeper than this nothing is written by hand or by a program; longer lists are read as text.
_DEEPEST, _LONGEST = 3, 200_000
_ROUNDS: Final = 8
_DASHES: Final = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_INVISIBLE: Final = re.compile("[\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_QUOTES: Final = "\"'`´‘’‚“”„«»‹›"
_AROUND: Final = _QUOTES + "()[]{}<>"
# A word for "number" before what is one: "#61", "no. 61", "id: 61", "row 61".
_MARK: Final = re.compile(
    r"(?:#|(?:no|nr|id|n°|row|line|record|index)(?=[\s.:=#\d]))[\s.:=#]*(?=\d)|#\s*(?=\S)"
)
_THOUSANDS: Final = re.compile(r"([+-]?)(\d{1,3}(?:([,_'’ ])\d{3})(?:\3\d{3})*)((?:\.\d*)?)")
# How numpy and Python write what is no list: array([1, 2], dtype=int64), frozenset({1}).
_WRAPPED: Final = re.compile(
    r"(?:(?:np|numpy)\.)?(?:array|set|frozenset|list|tuple|deque)\("
    r"(|[\[({].*[\])}])(?:,\s*dtype=[^,\[\]]*)?\)",
    re.DOTALL,
)
_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d*)?(?:e[+-]?\d{1,2})?")
_NOBODY: Final = frozenset({"", "nan", "none", "null", "<na>", "na", "n/a", "nat", "nil", "-"})
# Strings beside each other without a comma: numpy writes them so, and Python would join them.
_BESIDE: Final = re.compile(r"['\"]\s+['\"]")
_PLACE: Final = re.compile(r"(.*\S)\s*[:#/@]\s*([^:#/@]+)", re.DOTALL)


def canonical(reference: str) -> str:
    """The form that references and ids are compared in; idempotent.

    NFKC and case folded, all dashes one, no invisible characters, quotes, brackets or number marks
    around it, white space as one blank. A number has no leading zeros, thousands marks, exponent,
    or zeros after its point. What would leave nothing (an id ``#``) stays.
    """
    for _ in range(_ROUNDS):
        simpler = _simpler(reference)
        if simpler == reference:
            break
        reference = simpler
    return reference


def names_nobody(reference: str) -> bool:
    """Whether it is how a missing value is written: empty, ``nan``, ``None``, ``[]``, ..."""
    whole = " ".join(_INVISIBLE.sub("", reference).casefold().split())
    return whole in _NOBODY or whole.strip(_AROUND + ", ") in _NOBODY


def place_in(reference: str) -> tuple[str, str] | None:
    """(source, row) of ``SOURCE:ROW`` (``#``, ``/``, ``@`` too), canonical; None: it is none."""
    found = _PLACE.fullmatch(reference.strip())
    return (source_name(found[1]), canonical(found[2])) if found else None


def source_name(name: str) -> str:
    """The form that names of sources are compared in: as ids, with one kind of slash."""
    return canonical(name.replace("\\", "/").strip().removeprefix("./"))


def source_names(source: str) -> set[str]:
    """Every name by which a reference may mean a source: its own, its file's, with and without
    folders and endings."""
    whole = source.replace("\\", "/")
    names = {whole, whole.split("/")[0], whole.rsplit("/", 1)[-1], whole.partition("/")[2]}
    for name in [one.rsplit("/", 1)[-1] for one in names]:
        while name.rpartition(".")[0]:
            name = name.rpartition(".")[0]
            names.add(name)
    return {source_name(name) for name in names if name}


def read_list(cell: str) -> list[str] | None:
    """The references of a cell that is a list; None when it is not written as one.

    JSON, as text in JSON too, and what Python writes; numbers as they stand there; missing values
    and empty ones are left out.

    Raises:
        ValueError: it is a list, and holds what is no reference.
    """
    stripped = _unwrapped(cell)
    if not stripped.startswith(("[", "(", "{", '"')) or len(stripped) > _LONGEST:
        return None
    for read in (_read_json, _read_python):
        try:
            value = read(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, str):
            return read_list(value) if value.strip().startswith("[") else None
        if isinstance(value, list):
            return list(_references(value, 0))
    return None


def cut(cell: str, known: Callable[[str], bool]) -> list[str]:
    """The references of a cell that is written as no list: commas stand between them.

    Other separators count where a piece between them is known; blanks, where all pieces are.
    """
    inside = _unwrapped(cell)
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1]
    found: list[str] = []
    for part in (one.strip() for one in inside.split(",")):
        pieces = [one.strip() for one in re.split(r"[;|\n\t]", part) if one.strip()]
        words = part.split()
        if not known(part) and len(pieces) > 1 and any(map(known, pieces)):
            found += pieces
        elif not known(part) and len(words) > 1 and all(map(known, words)):
            found += words
        else:
            found.append(part)
    return [one for one in found if not names_nobody(one) or known(one)]


def is_cut_off(cell: str) -> bool:
    """Whether a cell begins as a list and never ends."""
    return cell.strip().startswith("[") and "]" not in cell


def _unwrapped(cell: str) -> str:
    """The list in what Python and numpy write around one."""
    found = _WRAPPED.fullmatch(cell.strip())
    return (found[1] or "[]") if found else cell.strip()


def _simpler(reference: str) -> str:
    seen = unicodedata.normalize("NFKC", _INVISIBLE.sub("", reference)).casefold()
    seen = " ".join(_DASHES.sub("-", seen).split())
    bare = seen.strip(_AROUND + " ")
    bare = _MARK.sub("", bare, count=1) if _MARK.match(bare) else bare
    if thousands := _THOUSANDS.fullmatch(bare):
        bare = thousands[1] + thousands[2].replace(thousands[3], "") + thousands[4]
    if _NUMBER.fullmatch(bare):
        bare = format(Decimal(bare), "f")
        bare = bare.rstrip("0").rstrip(".") if "." in bare else bare
        bare = "0" if bare == "-0" else bare
    return bare or seen


def _read_json(cell: str) -> object:
    return json.loads(cell, parse_float=str, parse_int=str)


def _read_python(cell: str) -> object:
    if _BESIDE.search(cell):
        raise ValueError("strings without a comma between them")
    value = ast.literal_eval(cell)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return list(value) if isinstance(value, tuple) else value


def _references(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        for inner in value:
            yield from _references(inner, depth + 1)
    elif isinstance(value, str):
        if not names_nobody(value):
            yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            yield str(value)
    elif value is not None:
        raise ValueError("a list of parents holds texts and numbers only")
