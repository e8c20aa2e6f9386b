"""Seeds stay where they are when a row is erased, so that only prompts that showed it change.

Which rows are seeds is decided from all rows of a stratum, and which call shows which seed from all
its seeds. One row less can move all of them, and every moved prompt is bought anew. So an erasure
notes, for each stratum whose training rows it changes, who was a seed. As long as the rest of the
stratum stands as it did, they stay seeds, and the erased one's place is taken by another row: it is
shown where the other was (``slot``), nobody else moves. Once the stratum changes for any other
reason, seeds are chosen as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import polars as pl

from synth_assets.lifecycle.records import digest

SLOT = "slot"


@dataclass(frozen=True)
class Seats:
    """``rows``: digest of the training rows that are left; ``seeds``: (record id, slot) by rank.

    ``code``: the declaration that the seeds were chosen by.
    """

    stratum: str
    code: str
    rows: str
    seeds: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        seeds = tuple((str(one), str(slot)) for one, slot in stored["seeds"])
        return cls(str(stored["stratum"]), str(stored["code"]), str(stored["rows"]), seeds)


def seats_after(
    seeds: pl.DataFrame,
    before: pl.DataFrame,
    after: pl.DataFrame,
    *,
    stratum: str,
    code: str,
) -> list[Seats]:
    """The seats of every stratum whose training rows are others ``after`` than ``before``.

    ``seeds``: the table as it stands; ``before``, ``after``: training rows (record_id, stratum).
    """
    old, new = _ids(before, stratum), _ids(after, stratum)
    chosen = seeds.filter(pl.col("origin") == "human").sort("seed_rank", "record_id")
    slot = pl.coalesce(SLOT, "record_id") if SLOT in seeds.columns else pl.col("record_id")
    found = []
    for name in sorted(old.keys() & new.keys()):
        rows = chosen.filter(pl.col(stratum) == name).select("record_id", slot.alias(SLOT)).rows()
        if rows and old[name] != new[name]:
            found.append(Seats(name, code, _digest(new[name]), tuple(rows)))
    return found


def seated(
    chosen: pl.DataFrame,
    train: pl.DataFrame,
    seats: Iterable[Seats],
    *,
    stratum: str,
    code: str,
) -> pl.DataFrame:
    """``chosen`` with the seeds that have a seat in their seats; of several seats the last counts.

    ``chosen``: record_id, origin, payload, seed_rank, as chosen without seats; ``train``: all
    training rows. Has a column ``slot`` (String, null: its own) when somebody took a seat over.
    """
    ids = _ids(train, stratum)
    valid = {
        one.stratum: one
        for one in seats
        if one.code == code and one.rows == _digest(ids.get(one.stratum, frozenset()))
    }
    parts = [
        _taken(chosen.filter(pl.col(stratum) == name), train, valid[name].seeds)
        if name in valid
        else chosen.filter(pl.col(stratum) == name)
        for name in chosen[stratum].unique().sort().to_list()
    ]
    made = pl.concat(parts, how="diagonal") if parts else chosen
    if SLOT in made.columns and made[SLOT].null_count() == made.height:
        made = made.drop(SLOT)
    return made.sort(stratum, "seed_rank", "record_id")


def _taken(
    chosen: pl.DataFrame, train: pl.DataFrame, seats: Sequence[tuple[str, str]]
) -> pl.DataFrame:
    """The seeds of one stratum, those in seats first by rank; hand-written ones as they are."""
    human = chosen.filter(pl.col("origin") == "human")
    here = set(train["record_id"])
    spare = iter([one for one in human["record_id"] if one not in {name for name, _ in seats}])
    places = []
    for rank, (name, slot) in enumerate(seats):
        sitting = name if name in here else next(spare, None)
        if sitting is not None:
            places.append((sitting, rank, slot if slot != sitting else None))
    plan = pl.DataFrame(
        places,
        schema={"record_id": pl.String, "seed_rank": chosen.schema["seed_rank"], SLOT: pl.String},
        orient="row",
    )
    rows = train.drop(plan.columns[1:], strict=False)
    rows = rows.join(plan, on="record_id", maintain_order="right").select(*chosen.columns, SLOT)
    by_hand = chosen.filter(pl.col("origin") != "human")
    by_hand = by_hand.join(rows, on="record_id", how="anti", maintain_order="left")
    return pl.concat([by_hand.with_columns(pl.lit(None, pl.String).alias(SLOT)), rows])


def _ids(rows: pl.DataFrame, stratum: str) -> dict[str, frozenset[str]]:
    grouped = rows.group_by(stratum).agg("record_id")
    return {str(name): frozenset(ids) for name, ids in grouped.iter_rows()}


def _digest(ids: Iterable[str]) -> str:
    return digest("seats", *sorted(ids))
