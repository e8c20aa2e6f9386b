"""How many rows each cell needs, and which call asks for them with what.

A *cell* is what counts are kept for (a label). The plan lists, per cell, every call that may be
made, in order; generation takes a prefix of it until the cell has its rows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import orjson
import polars as pl

from synth_assets.lifecycle.records import digest

VERSION_CHARS = 16
SLAB_ROWS = 4_096
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
    """Every call that may be made (schema ``SCHEMA``): the first of every cell, the second, ...

    Cells take turns, so that a run that ends early has left none of them out.

    ``seeds``: record_id, payload columns, the stratum column, ``seed_rank``, and maybe ``slot``
    (see ``seats``). Deterministic: the combinations of ``attributes`` rotate through the calls of a
    cell in keyed orders so that each is used equally often, and so do the seeds, for each
    combination by itself: the n-th call of a combination stays what it was when a value is added.
    ``sample`` counts earlier calls with the same text, so that asking twice is a new request
    and the n-th asking stays the same one.
    """
    calls = (
        {**call, "system": system, "prompt_version": _version(system, call["prompt"])}
        for cell in sorted(wanted)
        if wanted[cell] > 0
        for call in _cell_calls(
            cell,
            wanted[cell],
            seeds.filter(pl.col(stratum) == cell).sort("seed_rank", "record_id").to_dicts(),
            rules,
            render,
        )
    )
    plan = _frame(calls)
    # Samples are counted cell by cell: the order of turns is no reason to ask anything anew.
    sample = pl.int_range(pl.len(), dtype=pl.Int32).over("prompt")
    return plan.with_columns(sample=sample).select(list(SCHEMA)).sort("ordinal", "cell")


def _version(system: str | None, prompt: str) -> str:
    return digest(system or "", prompt)[:VERSION_CHARS]


def _frame(calls: Iterator[dict[str, Any]]) -> pl.DataFrame:
    """Calls as columns, a slab at a time: as Python objects they would be several times as big."""
    schema = {name: kind for name, kind in SCHEMA.items() if name != "sample"}
    slabs = [pl.DataFrame(schema=schema)]
    while slab := list(islice(calls, SLAB_ROWS)):
        slabs.append(pl.DataFrame(slab, schema=schema))
    return pl.concat(slabs)


def _cell_calls(
    cell: str,
    wanted: int,
    seeds: list[dict[str, Any]],
    rules: PlanRules,
    render: Render,
) -> Iterator[dict[str, Any]]:
    calls = math.ceil(wanted * rules.candidate_limit / rules.rows_per_call)
    combos = _rotation(_combinations(rules.attributes), "attributes", rules, cell, _key)
    streams: dict[str, Iterator[Any]] = {}
    per_call = min(rules.seeds_per_call, len(seeds))
    for ordinal in range(calls):
        attributes = next(combos)
        combo = orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode()
        if combo not in streams:
            what = f"seeds {combo}" if attributes else "seeds"
            streams[combo] = _rotation(seeds, what, rules, cell, _seat)
        chosen = _take_distinct(streams[combo], per_call)
        yield {
            "cell": cell,
            "ordinal": ordinal,
            "wanted": wanted,
            "rows": rules.rows_per_call,
            "attributes": combo,
            "seed_ids": [seed["record_id"] for seed in chosen],
            "prompt": render(cell, chosen, rules.rows_per_call, attributes),
        }


def _combinations(attributes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    names = sorted(attributes)
    values = product(*(attributes[name] for name in names))
    return [dict(zip(names, combo, strict=True)) for combo in values]


def _rotation(
    items: Sequence[dict[str, Any]],
    what: str,
    rules: PlanRules,
    cell: str,
    key: Callable[[dict[str, Any]], Any],
) -> Iterator[Any]:
    """``items`` again and again, each pass in another keyed order."""
    turn = 0
    while items:
        keyed = [
            (digest(what, str(rules.seed), cell, str(turn), orjson.dumps(key(item)).decode()), n)
            for n, item in enumerate(items)
        ]
        for _, position in sorted(keyed):
            yield items[position]
        turn += 1


def _key(item: dict[str, Any]) -> Any:
    return item.get("record_id") or sorted(item.items())


def _seat(seed: dict[str, Any]) -> str:
    """A seed that took an erased one's place is shown where that was."""
    return str(seed.get("slot") or seed["record_id"])


def _take_distinct(stream: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The next ``count`` different seeds: a pass's end may meet the next one's beginning."""
    taken: dict[str, dict[str, Any]] = {}
    while len(taken) < count:
        seed = next(stream)
        taken.setdefault(seed["record_id"], seed)
    return list(taken.values())
