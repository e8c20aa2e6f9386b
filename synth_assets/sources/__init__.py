"""Where human data comes from: read without losing a row (``files``), landed (``landing``).

What is not a local file is first copied into one (``objects``, ``huggingface``, ``sql``,
``rest``), so that what is hashed, judged and landed is the same thing (``snapshots``).

Everything here speaks *raw frames*: every source column as String, in the source's order, and

- ``_source`` (String): the file's display name,
- ``_row`` (Int64): 1-based record number in that file; a header and blank lines do not count,
- ``_problem`` (String, null when fine): why the row is unusable, one of ``PROBLEMS``,
- ``_raw`` (String, null when fine): that record as found, at most 2,000 characters, with what is
  not text escaped as ``\\xNN``.

The source columns of a row with a problem are all null. Once landed, ``_load_id`` joins them.
"""

from __future__ import annotations

PROBLEMS = (
    "undecodable",  # bytes that are not text in the declared encoding
    "nul_character",  # most tools downstream cut at a NUL, or refuse it
    "wrong_field_count",  # more or fewer cells than the header
    "malformed_quotes",  # text after a closing quote
    "unterminated_quote",  # a quote not closed on its line, nor properly on a later one
    "cell_too_large",
    "malformed_json",
    "duplicate_key",  # readers disagree about which value counts
    "empty_key",
    "not_an_object",
    "unknown_class",  # the number of no class that the file or its card names
    "wrong_type",  # a cell holds something else than its column is declared to hold
    "erased",  # a person asked for it to be deleted: no cell of it is read
)
SERVICE_COLUMNS = ("_source", "_row", "_problem", "_raw")
LOAD_ID = "_load_id"
MAX_RAW_CHARS = 2_000
RESERVED = frozenset((*SERVICE_COLUMNS, LOAD_ID))
