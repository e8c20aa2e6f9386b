"""Which human rows become seeds: different from each other, yet typical of their label.

Random seeds repeat what is common. Pure farthest-first picks differ most, and are odd: on short
customer texts they lie further from their own neighbours than random rows do. So "diverse" is, for
each stratum (usually a label) on its own:

1. One row per normalised text. TF-IDF vectors of character 3-grams (each gram counts once per
   text; smoothed idf *within the stratum*, so that what all its rows say weighs little and no
   other stratum's rows move these seeds); distance is 1 - cosine.
2. The rows furthest from their nearest neighbours (5 % of strata with 20 rows or more) are set
   aside as outliers.
3. Farthest-first traversal (Gonzalez 1985; as core-set selection in Sener and Savarese 2018,
   section 4.2), begun at the medoid: each next pick is the row furthest from all picks so far.
4. Each pick gives way to the medoid of the rows nearest to it (one step of k-medoids), which
   makes it typical of its neighbourhood. On real labels this leaves the covering radius where it
   was and lowers the mean distance from a row to its nearest seed by about a tenth.

Ties fall to the lower `record_id` and sums run in `record_id` order, so neither row order nor
threads matter. The price of step 4: seeds for k + 1 need not contain the seeds for k.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from synth_assets.errors import UsageError
from synth_assets.lifecycle.similarity import gram_sets
from synth_assets.text import normalise

Strategy = Literal["diverse", "random"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NGRAM = 3
NEIGHBOURS = 3
OUTLIER_SHARE = 0.05
TRIM_FROM_ROWS = 20

# Larger strata are sampled first (in hash order): neighbours are quadratic in rows.
POOL_ROWS = 2_000
POOL_PER_SEED = 10

# Distances closer than this are ties, whatever the last bits of a sum on this machine.
_DECIMALS = 9


def select_diverse(
    rows: pl.DataFrame,
    *,
    text: str,
    stratum: str,
    per_stratum: int,
    seed: int,
    strategy: Strategy = "diverse",
) -> pl.DataFrame:
    """At most `per_stratum` rows of each stratum, with their `seed_rank` (Int32, from 0).

    `rows` has a unique `record_id` (String), `text` (String) and `stratum` (any type; null is a
    stratum of its own). Rows without text are never picked. A stratum with fewer rows than
    wanted gives all of them, copies of another text last. "diverse" is the method above, in the
    order of its traversal; `seed` only matters to it where a stratum is large enough to be
    sampled. "random" orders by a hash of `seed` and `record_id`: adding rows does not reshuffle
    the others.

    Returns the columns of `rows` and `seed_rank`, ordered by stratum and rank, whatever the order
    of `rows`. Raises `UsageError` for a missing column, repeated ids, or fewer than 1 seed.
    """
    _check(rows, needs=("record_id", text, stratum), per_stratum=per_stratum)
    known = rows.select(
        "record_id", pl.col(stratum).alias("stratum"), text=normalise(pl.col(text))
    ).drop_nulls("text")
    picks = [
        _ranked(part["record_id"], part["text"], per_stratum, seed=seed, strategy=strategy)
        for part in known.sort("record_id").partition_by("stratum", maintain_order=False)
    ]
    chosen = pl.concat([_picks([]), *picks])
    kept = rows.drop("seed_rank", strict=False).join(chosen, on="record_id")
    return kept.sort(stratum, "seed_rank")


def _check(rows: pl.DataFrame, *, needs: tuple[str, ...], per_stratum: int) -> None:
    missing = [name for name in needs if name not in rows.columns]
    if missing:
        raise UsageError(f"seeds need the column {missing[0]!r}", fix=f"have: {rows.columns}")
    if rows["record_id"].is_duplicated().any():
        raise UsageError("seeds need one row per record_id", fix="drop repeated rows first")
    if per_stratum < 1:
        raise UsageError(f"{per_stratum} seeds per stratum", fix="ask for 1 or more")


def _picks(ids: list[str]) -> pl.DataFrame:
    ranks = pl.Series("seed_rank", range(len(ids)), pl.Int32)
    return pl.DataFrame([pl.Series("record_id", ids, pl.String), ranks])


def _ranked(
    ids: pl.Series, texts: pl.Series, wanted: int, *, seed: int, strategy: Strategy
) -> pl.DataFrame:
    """The picks of one stratum; `ids` ascend."""
    if strategy == "random":
        return _picks(_shuffled(ids.to_list(), seed)[:wanted])
    fresh = texts.is_first_distinct()
    copies = ids.filter(~fresh).to_list()
    pool = pl.DataFrame({"id": ids.filter(fresh), "text": texts.filter(fresh)})
    limit = max(POOL_ROWS, POOL_PER_SEED * wanted)
    if pool.height > limit:
        sampled = _shuffled(pool["id"].to_list(), seed)[:limit]
        pool = pool.filter(pl.col("id").is_in(sampled))
    order = _spread(_vectors(pool["text"]), wanted)
    return _picks([*pool["id"][order].to_list(), *copies][:wanted])


def _shuffled(ids: list[str], seed: int) -> list[str]:
    """In the order of a hash that is the same in every process and version."""
    key = str(seed).encode()
    return sorted(ids, key=lambda one: (blake2b(one.encode(), key=key[:64]).digest(), one))


def _vectors(texts: pl.Series) -> sparse.csr_matrix:
    """Unit TF-IDF rows, texts x grams (smoothed idf as in scikit-learn's TfidfTransformer)."""
    held = gram_sets(texts, ngram=NGRAM).matrix().astype(np.float64)
    rows = held.shape[0]
    idf = np.log((1 + rows) / (1 + np.asarray(held.sum(axis=0)).ravel())) + 1
    weighted = held @ sparse.diags(idf)
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return (sparse.diags(1 / length) @ weighted).tocsr()


def _spread(vectors: sparse.csr_matrix, wanted: int) -> Ints:
    """Row numbers of the picks: farthest-first over the inliers, each moved to its medoid."""
    rows = vectors.shape[0]
    if rows <= wanted:
        return _farthest_first(vectors, rows)
    inliers = np.arange(rows)
    trimmed = rows - int(rows * OUTLIER_SHARE) if rows >= TRIM_FROM_ROWS else rows
    if wanted <= trimmed < rows:
        lonely = _loneliness(vectors)
        inliers = np.sort(np.argsort(lonely, kind="stable")[:trimmed])
    typical = vectors[inliers]
    picks = _farthest_first(typical, wanted)
    nearest = np.argmin(_distances(typical, picks), axis=1)
    nearest[picks] = np.arange(len(picks))
    moved = [_medoid(typical, np.flatnonzero(nearest == pick)) for pick in range(len(picks))]
    return inliers[moved]


def _farthest_first(vectors: sparse.csr_matrix, wanted: int) -> Ints:
    picks = [_medoid(vectors, np.arange(vectors.shape[0]))]
    nearest = _distances(vectors, picks).ravel()
    while len(picks) < wanted:
        nearest[picks[-1]] = -1  # taken, and no copy of it is nearer to nothing than it is
        picks.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, _distances(vectors, picks[-1:]).ravel())
    return np.array(picks, np.int64)


def _medoid(vectors: sparse.csr_matrix, members: Ints) -> int:
    """The member with the least mean distance to all members: the closest to their sum."""
    part = vectors[members]
    centre = np.asarray(part.sum(axis=0)).ravel()
    return int(members[np.argmax(np.round(part @ centre, _DECIMALS))])


def _distances(vectors: sparse.csr_matrix, to: list[int] | Ints) -> Floats:
    """Cosine distances, rows x `to`, from 0 to 1."""
    near = np.asarray((vectors @ vectors[to].T).todense(), dtype=np.float64)
    apart: Floats = np.clip(1 - near, 0, 1).round(_DECIMALS)
    return apart


def _loneliness(vectors: sparse.csr_matrix) -> Floats:
    """Mean distance of each row to its nearest neighbours, in blocks of bounded size."""
    rows = vectors.shape[0]
    count = min(NEIGHBOURS, rows - 1)
    mean: Floats = np.zeros(rows)
    for begin in range(0, rows, 256):
        block = np.arange(begin, min(begin + 256, rows))
        apart = _distances(vectors, block)
        apart[block, np.arange(len(block))] = np.inf
        mean[block] = np.partition(apart, count - 1, axis=0)[:count].mean(axis=0)
    return mean.round(_DECIMALS)
