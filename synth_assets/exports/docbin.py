"""spaCy's DocBin files, for `spacy train` and for reading back with `DocBin.from_disk`.

spaCy is imported when asked for: it is an extra (``pip install 'synth_assets[spacy]'``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from synth_assets.errors import SynthError
from synth_assets.exports.batches import batches
from synth_assets.tasks import Task

# One file is in memory at once: tokens of so many texts, or of so much text.
SHARD_DOCS = 10_000
SHARD_CHARS = 16 * 2**20
# Tokens are split by Unicode rules of no language in particular; a pipeline may tokenise again.
LANGUAGE = "xx"
# Where spaCy's span categoriser looks by default.
SPANS_KEY = "sc"
KEPT = ("record_id", "origin", "weight")


@dataclass(frozen=True)
class Annotation:
    """What a document is trained towards.

    ``spans``: (first character, end, label), whole tokens or widened to them; None where spans
    are not annotated at all, which is not the same as a text that holds none.
    """

    cats: Mapping[str, float] = field(default_factory=dict)
    spans: Sequence[tuple[int, int, str]] | None = None


Annotate = Callable[[Mapping[str, Any]], Annotation]


def as_cats(task: Task, strata: Sequence[str]) -> Annotate:
    """Exclusive categories: 1 for a row's own stratum, 0 for every other."""
    zeros = dict.fromkeys(strata, 0.0)
    return lambda row: Annotation(cats={**zeros, row[task.stratum]: 1.0})


def require_spacy() -> Any:
    """The spacy module.

    Raises:
        SynthError: spaCy is not installed.
    """
    try:
        importlib.import_module("spacy.tokens")
        return importlib.import_module("spacy")
    except ImportError as error:
        raise SynthError(
            f"the spacy format needs spaCy, which cannot be imported ({error})",
            fix='install it: pip install "spacy>=3.8,<4"',
        ) from error


def write_docbins(rows: pl.LazyFrame, folder: Path, *, text: str, annotate: Annotate) -> int:
    """Write ``00000.spacy``, ... to ``folder``; the number of documents.

    Each document keeps ``record_id``, ``origin`` and ``weight`` in its ``user_data``.

    Raises:
        SynthError: spaCy is not installed, or a span does not fall on its text.
    """
    spacy, count = require_spacy(), 0
    folder.mkdir(parents=True, exist_ok=True)
    for place, shard in enumerate(_shards(rows, text)):
        # A vocabulary keeps every word it meets: a new one per file keeps memory flat.
        nlp = spacy.blank(LANGUAGE)
        docs = (
            document(nlp, row, text=text, annotate=annotate) for row in shard.iter_rows(named=True)
        )
        bins = spacy.tokens.DocBin(store_user_data=True, docs=docs)
        bins.to_disk(folder / f"{place:05}.spacy")
        count += shard.height
    return count


def document(nlp: Any, row: Mapping[str, Any], *, text: str, annotate: Annotate) -> Any:
    """One row as an annotated ``Doc`` of exactly its text.

    Raises:
        SynthError: a span is not within the text.
    """
    words, found = row[text], annotate(row)
    nlp.max_length = max(nlp.max_length, len(words) + 1)
    doc = nlp.make_doc(words)
    doc.cats = dict(found.cats)
    if found.spans is not None:
        spans = [doc.char_span(*span, alignment_mode="expand") for span in found.spans]
        if None in spans:
            raise SynthError(
                "an annotated span is not within its text", where=f"record {row['record_id']}"
            )
        doc.spans[SPANS_KEY] = spans
        # Entities cannot overlap: of those that do, the longest stands.
        doc.set_ents(importlib.import_module("spacy.util").filter_spans(spans))
    doc.user_data.update({name: row[name] for name in KEPT})
    return doc


def _shards(rows: pl.LazyFrame, text: str) -> Iterator[pl.DataFrame]:
    """``rows`` in order, in frames of at most ``SHARD_DOCS`` rows and (about) ``SHARD_CHARS``."""
    kept: list[pl.DataFrame] = []
    docs = chars = 0
    for batch in batches(rows):
        for one in batch.iter_slices(1_000):
            kept.append(one)
            docs += one.height
            chars += int(one[text].str.len_chars().sum())
            if docs >= SHARD_DOCS or chars >= SHARD_CHARS:
                yield pl.concat(kept)
                kept, docs, chars = [], 0, 0
    if kept:
        yield pl.concat(kept)
