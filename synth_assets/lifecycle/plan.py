"""How many rows each cell needs, and which call asks for them with what.

A *cell* is what counts are kept for (a label). The plan lists, per cell, every call that may be
made, in order; generation takes a prefix of it until the cell has its rows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import orjson
import polars as pl

from synth_assets.lifecycle.records import digest

VERSION_CHARS = 16
SCHEMA: dict[str, pl.DataType] = {
    "cell": pl.String(),
    "ordinal": pl.Int32(),
    "wanted": pl.Int32(),
    "rows": pl.Int32(),
    "attributes": pl.String(),
    "seed_ids": pl.List(pl.String),
    "system": pl.String(),
    "prompt": pl.String(),
    "prompt_version": pl.String(),
    "sample": pl.Int32(),
}


@dataclass(frozen=True)
class PlanRules:
    """Everything that shapes calls; ``candidate_limit`` is rows asked for per row wanted."""

    rows_per_call: int
    seeds_per_call: int
    candidate_limit: float
    attributes: Mapping[str, Sequence[str]]
    seed: int


Render = Callable[[str, Sequence[Mapping[str, str]], int, Mapping[str, str]], str]


def balance_to_largest(counts: Mapping[str, int]) -> dict[str, int]:
    """Synthetic rows per stratum that lift each to the largest one's human count."""
    largest = max(counts.values(), default=0)
    return {name: largest - count for name, count in counts.items()}


def fill_share(counts: Mapping[str, int], share: float) -> dict[str, int]:
    """Synthetic rows per stratum for a total share, poorest strata first (water-filling).

    ``share`` is synthetic / (human + synthetic), 0..1. The total is spread so that the smallest
    strata are raised to a common level; ties by name.
    """
    total = math.ceil(sum(counts.values()) * share / (1 - share) - 1e-9)
    poorest = [(count, name) for name, count in counts.items()]
    heapq.heapify(poorest)
    wanted = dict.fromkeys(counts, 0)
    for _ in range(total):
        count, name = poorest[0]
        heapq.heapreplace(poorest, (count + 1, name))
        wanted[name] += 1
    return wanted


def make_plan(
    wanted: Mapping[str, int],
    seeds: pl.DataFrame,
    rules: PlanRules,
    *,
    stratum: str,
    render: Render,
    system: str | None,
) -> pl.DataFrame:
    """Every call that may be made (schema ``SCHEMA``), cells in name order.

    ``seeds``: record_id, payload columns, the stratum column, ``seed_rank``. Deterministic: seeds
    rotate through the calls of a cell in keyed orders so that each is used equally often, and so
    do the combinations of ``attributes``. ``sample`` counts earlier calls with the same text, so
    that asking twice is a new request and the n-th asking stays the same one.
    """
    calls = [
        call
        for cell in sorted(wanted)
        if wanted[cell] > 0
        for call in _cell_calls(
            cell,
            wanted[cell],
            seeds.filter(pl.col(stratum) == cell).sort("seed_rank", "record_id").to_dicts(),
            rules,
            render,
        )
    ]
    plan = pl.DataFrame(
        [
            {
                **call,
                "system": system,
                "prompt_version": digest(system or "", call["prompt"])[:VERSION_CHARS],
            }
            for call in calls
        ],
        schema={name: kind for name, kind in SCHEMA.items() if name != "sample"},
    )
    return plan.with_columns(sample=pl.int_range(pl.len(), dtype=pl.Int32).over("prompt")).select(
        list(SCHEMA)
    )


def _cell_calls(
    cell: str,
    wanted: int,
    seeds: list[dict[str, Any]],
    rules: PlanRules,
    render: Render,
) -> Iterator[dict[str, Any]]:
    calls = math.ceil(wanted * rules.candidate_limit / rules.rows_per_call)
    combos = _rotation(_combinations(rules.attributes), "attributes", rules, cell)
    stream = _rotation(seeds, "seeds", rules, cell)
    per_call = min(rules.seeds_per_call, len(seeds))
    for ordinal in range(calls):
        chosen = _take_distinct(stream, per_call)
        attributes = next(combos)
        yield {
            "cell": cell,
            "ordinal": ordinal,
            "wanted": wanted,
            "rows": rules.rows_per_call,
            "attributes": orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode(),
            "seed_ids": [seed["record_id"] for seed in chosen],
            "prompt": render(cell, chosen, rules.rows_per_call, attributes),
        }


def _combinations(attributes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    names = sorted(attributes)
    values = product(*(attributes[name] for name in names))
    return [dict(zip(names, combo, strict=True)) for combo in values]


def _rotation(
    items: Sequence[dict[str, Any]], what: str, rules: PlanRules, cell: str
) -> Iterator[Any]:
    """``items`` again and again, each pass in another keyed order."""
    turn = 0
    while items:
        keyed = [
            (digest(what, str(rules.seed), cell, str(turn), orjson.dumps(_key(item)).decode()), n)
            for n, item in enumerate(items)
        ]
        for _, position in sorted(keyed):
            yield items[position]
        turn += 1


def _key(item: dict[str, Any]) -> Any:
    return item.get("record_id") or sorted(item.items())


def _take_distinct(stream: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The next ``count`` different seeds: a pass's end may meet the next one's beginning."""
    taken: dict[str, dict[str, Any]] = {}
    while len(taken) < count:
        seed = next(stream)
        taken.setdefault(seed["record_id"], seed)
    return list(taken.values())
