"""Tables for pages and cards; text from models and sources cannot break them.

What is written is GitHub-flavoured Markdown, as Dagster's pages and a release's card show it.
"""

from __future__ import annotations

import unicodedata

import polars as pl

MAX_CELL_CHARS = 200
CUT_MARK = "…"

# Every ASCII mark that can begin or end something in Markdown; a backslash makes it itself. "-",
# "+", "." and digits mean something only at the start of a line, where no cell is.
_ESCAPES = {ord(mark): "\\" + mark for mark in "\\`*_{}[]()#|!~$^="}
# Entities: Markdown resolves them to text, and a renderer that knows HTML only does so too.
_ESCAPES |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
# Bare addresses become links *after* escapes are resolved. An invisible break in them prevents it.
_BREAK = "\u200b"
_LINK_STARTS = ("://", "www.", "WWW.", "@")


def plain(text: str, *, max_chars: int = MAX_CELL_CHARS) -> str:
    """``text`` on one line of at most ``max_chars``, without control or direction characters.

    White space of any kind becomes one blank; other invisible characters (Unicode categories Cc,
    Cf, Cs, Co, Cn) go, among them those that reorder the text around them.
    """
    # Cut before the costly part, generously: most characters stay.
    head = text[: 8 * max_chars + 64]
    shown = (
        one if unicodedata.category(one)[0] != "C" else " " if one.isspace() else "" for one in head
    )
    line = " ".join("".join(shown).split())
    cut = len(line) > max_chars or len(text) > len(head)
    return line[: max_chars - 1].rstrip() + CUT_MARK if cut else line


def escape_markdown(text: str, *, max_chars: int = MAX_CELL_CHARS) -> str:
    """``text`` as one plain Markdown cell: no markup, HTML, link or line end of it survives.

    ``max_chars`` counts characters shown, before escapes.
    """
    line = plain(text, max_chars=max_chars)
    for start in _LINK_STARTS:
        line = line.replace(start, start[0] + _BREAK + start[1:])
    return line.translate(_ESCAPES)


def markdown_table(df: pl.DataFrame, *, digits: int = 3, max_rows: int = 50) -> str:
    """``df`` as a Markdown table, numbers to the right, floats with ``digits`` decimals.

    Nulls are empty cells. Rows after the first ``max_rows`` are counted, not shown.
    """
    if not df.width:
        return "(nothing to show)"
    marks = ["---:" if kind.is_numeric() else "---" for kind in df.dtypes]
    lines = [_line([escape_markdown(name) for name in df.columns]), _line(marks)]
    lines += [
        _line([_cell(value, digits) for value in row]) for row in df.head(max_rows).iter_rows()
    ]
    hidden = df.height - max_rows
    if not df.height:
        lines += ["", "(no rows)"]
    elif hidden > 0:
        lines += ["", f"… and {hidden:,} more rows"]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    if isinstance(value, list):
        return escape_markdown(", ".join(str(part) for part in value))
    return escape_markdown(str(value))
