"""Data contracts: what every table promises, as Pandera schemas over polars frames.

One module per kind of table. A contract is made for a task's payload columns and, where they are
known, their allowed values; ``violations`` turns a broken contract into a table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

MAX_CASES = 1_000

CASES = pl.Schema({"column": pl.String, "check": pl.String, "failure_case": pl.String})


def violations(contract: pa.DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame:
    """Every broken rule: column, check, failure_case (empty frame: the contract holds)."""
    try:
        # Eager on purpose: on a LazyFrame Pandera checks the schema only.
        contract.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases: pl.DataFrame = error.failure_cases
        return cases.select(pl.col(name).cast(pl.String, strict=False) for name in CASES).head(
            MAX_CASES
        )
    return CASES.to_frame()


def record_id() -> pa.Column:
    return pa.Column(pl.String, pa.Check.str_matches(r"^[0-9a-f]{32}$"), unique=True)


def payload(columns: Sequence[str], allowed: Mapping[str, Collection[str]]) -> dict[str, pa.Column]:
    """Payload columns: text, never null or blank, and among ``allowed`` where that is closed."""
    made = {}
    for name in columns:
        checks = [pa.Check.str_matches(r"\S")]
        if name in allowed:
            checks.append(pa.Check.isin(sorted(allowed[name])))
        made[name] = pa.Column(pl.String, checks)
    return made


def one_of(*values: str) -> pa.Column:
    return pa.Column(pl.String, pa.Check.isin(list(values)))
