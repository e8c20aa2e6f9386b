"""What SQL may be run: one statement that reads tables, and nothing else.

DuckDB's own settings keep a query from other files, the network and extensions; they do not keep
it from *writing* a file that it may read: ``WITH x AS (COPY ... TO 'that file') SELECT ...`` counts
as a SELECT. So a query is parsed by DuckDB into its syntax tree first, and every kind of node and
every table function in it must be one of those below. A kind that is not known here is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import orjson

from synth_assets.errors import UsageError, shown

READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
# Of values only: not one of them runs SQL, reads a file or takes an address in memory.
TABLE_FUNCTIONS = frozenset({"unnest", "range", "generate_series", "json_each", "json_tree"})
MOST_CHARS = 1_000_000


class QueryError(UsageError):
    """A query that cannot be run, or must not be."""


def checked(query: str) -> str:
    """``query``, if it is one statement that only reads.

    Raises:
        QueryError: it is not, or it is no SQL.
    """
    if not query.strip():
        raise QueryError("the query is empty", fix="synth sql lists what can be queried")
    if len(query) > MOST_CHARS:
        raise QueryError(f"the query is {len(query):,} characters long", fix="shorten it")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise QueryError("the query holds what is no character") from None
    with duckdb.connect(config={"autoload_known_extensions": "false"}) as parser:
        try:
            kinds = [statement.type.name for statement in parser.extract_statements(query)]
            told = parser.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
        except duckdb.Error as error:
            raise query_error(error) from None
    tree = orjson.loads(told[0]) if told else {}
    if kinds != ["SELECT"] or tree.get("error") or len(tree.get("statements", ())) != 1:
        found = ", ".join(kinds) or "nothing"
        raise _refused(f"only one reading statement may be run, this is: {found}")
    for node in _nodes(tree["statements"]):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in READING_NODES:
            raise _refused(f"only reading is allowed: {kind.removesuffix('_NODE').lower()} is not")
        if kind == "TABLE_FUNCTION":
            name = str((node.get("function") or {}).get("function_name")).lower()
            if name not in TABLE_FUNCTIONS:
                raise _refused(f"the table function {shown(name)} may not be used")
    return query


def query_error(error: Exception) -> QueryError:
    """DuckDB's message, without what it says of files."""
    text = str(error)
    if isinstance(error, duckdb.PermissionException):
        return _refused("a query cannot open files, addresses or extensions")
    lines = [line for line in text.splitlines() if line.strip()]
    return QueryError("\n".join(lines[:6]), fix="synth sql lists the views and their columns")


def _refused(problem: str) -> QueryError:
    views = "read the views that synth sql lists, in one SELECT"
    return QueryError(problem, fix=f"{views}; to write a file: --output FILE")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON tree."""
    todo = [tree]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
