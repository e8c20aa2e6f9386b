"""What is known of erased source rows without knowing them: keyed hashes that leave rows out.

A mark is the HMAC-SHA256 of a value under a salt of the dataset. It tells whether a row is one
that was erased, and nothing else. Whoever has the salt, and guesses the very text, can confirm the
guess.

==========  ===================================================================
kind        the value
==========  ===================================================================
text        the normalised text of the row
group       the cells of the columns that group rows, joined as the tables do it
record      all that a row without a text holds
==========  ===================================================================
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson
import polars as pl

from synth_assets.cells import GROUP_MARK, group_of
from synth_assets.text import normalise

Kind = Literal["text", "group", "record"]
KINDS: Final[tuple[Kind, ...]] = ("text", "group", "record")
# What is wrong with a row that was erased: its ``_problem``, and the reason it is a reject.
ERASED: Final = "erased"
MARK_CHARS: Final = 32
_SERVICE: Final = ("_source", "_row", "_problem", "_raw", "_load_id")
_STUB: Final = re.compile(r'"erased:([0-9a-f]{32})"')


@dataclass(frozen=True)
class Reading:
    """How rows of a source are read: the column of the text, and those that group rows."""

    text: str
    group_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tombstones:
    """The marks of everything erased from a dataset; without any, nothing is left out.

    ``past``: those of names that the dataset may have had before, each with a salt of its own.
    """

    salt: str = ""
    marks: Mapping[Kind, frozenset[str]] = field(default_factory=dict)
    past: tuple[Tombstones, ...] = ()

    def __bool__(self) -> bool:
        return any(self.marks.values()) or any(self.past)

    @property
    def digest(self) -> str:
        """The same for the same marks; "" for none."""
        if not self:
            return ""
        body = {kind: sorted(self.marks.get(kind, ())) for kind in KINDS}
        past = [one.digest for one in self.past]
        return hashlib.sha256(orjson.dumps([self.salt, body, *past])).hexdigest()

    def has(self, kind: Kind, value: str) -> bool:
        marks = self.marks.get(kind)
        return bool(marks) and mark(self.salt, kind, value) in marks  # type: ignore[operator]

    def redact(self, frames: Iterable[pl.DataFrame], how: Reading) -> Iterator[pl.DataFrame]:
        """Raw frames in which erased rows hold nothing but their place and ``_problem``."""
        for frame in frames:
            yield self._redacted(frame, how) if self else frame

    def conceal(self, how: Reading) -> Callable[[str], str]:
        """For one JSON record on one line: the line, or a stub that says nothing of it."""

        def concealed(line: str) -> str:
            try:
                cells = orjson.loads(line)
            except ValueError:
                return line
            if not isinstance(cells, dict):
                return line
            said = dict.fromkeys((how.text, *how.group_by)) | cells
            frame = pl.DataFrame(
                {name: [_cell(value)] for name, value in said.items()} | {"_raw": [None]},
                schema_overrides=dict.fromkeys((*said, "_raw"), pl.String),
            )
            found = self._found(frame, how)[0]
            return f'"erased:{found}"' if found else line

        return concealed if self else _unchanged

    def _redacted(self, frame: pl.DataFrame, how: Reading) -> pl.DataFrame:
        gone = pl.Series([found is not None for found in self._found(frame, how)], dtype=pl.Boolean)
        if not gone.any():
            return frame
        cells = [name for name in frame.columns if name not in ("_source", "_row", "_load_id")]
        return frame.with_columns(
            pl.when(~gone).then(pl.col(name)).alias(name) for name in cells if name != "_problem"
        ).with_columns(pl.when(gone).then(pl.lit(ERASED)).otherwise("_problem").alias("_problem"))

    def _found(self, frame: pl.DataFrame, how: Reading) -> list[str | None]:
        """The mark by which each row is known to be erased."""
        found: list[str | None] = [None] * frame.height
        values: list[tuple[Kind, Sequence[str | None]]] = [
            (
                "text",
                frame.select(normalise(pl.col(how.text))).to_series().to_list()
                if how.text in frame.columns
                else [],
            ),
            ("group", groups(frame, how.group_by).to_list()),
            ("group", _as_written(frame, how.group_by).to_list()),
            ("record", records(frame).to_list() if "_raw" in frame.columns else []),
        ]
        for kind, column in values:
            marks = self.marks.get(kind, frozenset())
            if not marks:
                continue
            for place, value in enumerate(column):
                if (
                    value
                    and found[place] is None
                    and (one := mark(self.salt, kind, value)) in marks
                ):
                    found[place] = one
        if "_raw" in frame.columns:
            for place, raw in enumerate(frame["_raw"]):
                stub = _STUB.fullmatch(raw) if raw else None
                found[place] = stub[1] if stub else found[place]
        for former in self.past:
            found = [
                one or other for one, other in zip(found, former._found(frame, how), strict=True)
            ]
        return found


def mark(salt: str, kind: str, value: str) -> str:
    """The keyed hash of a value, 128 bits in hex."""
    said = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
    return hmac.digest(bytes.fromhex(salt), said, "sha256").hex()[:MARK_CHARS]


def groups(frame: pl.DataFrame, group_by: Sequence[str]) -> pl.Series:
    """The group of each row, as the tables write it; null without columns, or of blank cells."""
    if not group_by or not set(group_by) <= set(frame.columns):
        return pl.Series("group", [None] * frame.height, dtype=pl.String)
    return frame.select(group_of(group_by).alias("group")).to_series()


def _as_written(frame: pl.DataFrame, group_by: Sequence[str]) -> pl.Series:
    """Groups as erasures of former versions marked them: the cells as they stand, joined."""
    if not group_by or not set(group_by) <= set(frame.columns):
        return pl.Series("group", [None] * frame.height, dtype=pl.String)
    joined = pl.concat_list([pl.col(name).fill_null("") for name in group_by]).list.join(GROUP_MARK)
    filled = pl.any_horizontal(pl.col(name).fill_null("") != "" for name in group_by)
    return frame.select(pl.when(filled).then(joined).alias("group")).to_series()


def records(frame: pl.DataFrame) -> pl.Series:
    """All that a raw row says, in one string: what stood there unread, else its filled cells."""
    cells = sorted(name for name in frame.columns if name not in _SERVICE)
    filled = [
        pl.when(pl.col(name) != "").then(pl.format("{}={}", pl.lit(name), pl.col(name)))
        for name in cells
    ]
    said = pl.concat_str(filled, separator=GROUP_MARK, ignore_nulls=True) if filled else pl.lit("")
    return frame.select(pl.coalesce("_raw", said).alias("record")).to_series()


def _cell(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _unchanged(line: str) -> str:
    return line
