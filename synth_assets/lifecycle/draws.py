"""Training samples drawn again: how the rows of a dataset could have come out otherwise.

A bootstrap tells the truth when it draws as the sample was drawn (Davison & Hinkley 1997, chapters
2 and 3), so rows are drawn with replacement, in whole clusters, and counts that were not left to
chance stay what they are:

- **Natural** human rows are drawn over all labels: a rare label may come out with fewer rows, or
  with none, as it would in another sample of the same size. How often a label comes is taken from
  training and held-out rows together, where the two agree: one or two training rows say little.
- **Fixed** counts stay: those of generated rows, which a plan decides; the first rows that were
  taken of every label on purpose; and counts that are more even than chance makes them
  (``counts_are_fixed``). Imported rows without a parent are drawn as human rows are, by themselves.
- A **cluster** is what came together: rows of one model call, rows written from the same parents
  (and such a parent itself, when it trains), rows of one declared group.

Why not weights that are never zero (Exp(1), Rubin 1981): they keep every label in every draw, and
let the label totals of a balanced sample vary. Against the spread of fresh samples they gave .4 to
.7 of it for 100 rows at natural frequencies, and 1.3 to 1.6 times it for balanced ones (measured
once, when they were replaced; ``benchmarks/contribution`` measures the draws made here).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2

from synth_assets.lifecycle.imported import is_imported
from synth_assets.lifecycle.resample import Floats, keys_of, uniform

Places = NDArray[np.int64]

# Counts as even as this come about in 1 of 100 samples of a source with equally frequent labels,
# and practically never in one of any other source.
EVEN_BY_CHANCE = 0.01
_HUMAN = "human"
_SEPARATOR = "\x1f"
_CALL = f"call{_SEPARATOR}"


def counts_are_fixed(counts: Sequence[int]) -> bool:
    """Whether rows per label are more even than chance makes them: chosen, not found.

    The index of dispersion, sum((c - mean)^2) / mean, is chi-square with K - 1 degrees of freedom
    for K labels of equal frequency, and larger for others; below its 1 % quantile the counts are
    taken as fixed. Fewer than two labels are never fixed.
    """
    if len(counts) < 2:
        return False
    found = np.asarray(counts, dtype=np.float64)
    dispersion = float(((found - found.mean()) ** 2).sum() / found.mean())
    return dispersion <= float(chi2.ppf(EVEN_BY_CHANCE, len(counts) - 1))


@dataclass(frozen=True)
class _Stratum:
    """Clusters among which ``size`` are drawn with replacement, each with its probability."""

    name: str
    clusters: Places
    size: int
    upper: Floats | None = None  # cumulative probabilities; None: all alike

    def drawn(self, seed: int, draws: int) -> Places:
        """(draws, size): places of clusters."""
        keys = keys_of([f"{self.name}\0{n}" for n in range(self.size)], seed=seed, stream="train")
        return np.stack([self._at(uniform(keys, draw)) for draw in range(1, 1 + draws)])

    def _at(self, positions: Floats) -> Places:
        if self.upper is None:
            return self.clusters[(positions * len(self.clusters)).astype(np.int64)]
        places = np.searchsorted(self.upper, positions, side="right")
        return self.clusters[np.minimum(places, len(self.clusters) - 1)]


@dataclass(frozen=True)
class TrainingDraws:
    """How often each cluster stands in each draw; the same for every arm (paired comparison)."""

    place: Mapping[str, int]
    times: NDArray[np.int32]  # (draws, clusters)

    def factors(self, clusters: Sequence[str]) -> Iterator[Floats]:
        """Draw by draw, one factor (0, 1, 2, ...) per row of these clusters."""
        places = np.array([self.place[name] for name in clusters], dtype=np.int64)
        for times in self.times:
            yield times[places].astype(np.float64)


def training_draws(
    rows: pl.DataFrame,
    *,
    draws: int,
    seed: int,
    first_of_each: int = 0,
    elsewhere: Mapping[str, int] | None = None,
) -> TrainingDraws:
    """Draws all clusters of ``rows`` (cluster, label, human: Boolean) ``draws`` times.

    ``first_of_each``: human rows that were taken of every label on purpose before the rest came
    in natural proportions. ``elsewhere``: rows per label of another sample of the same source (the
    holdout), by which natural proportions are known better than by a few training rows. A cluster
    with a human row is drawn as its human rows are, under their first label. The order of rows does
    not matter.
    """
    clusters = (
        rows.sort("cluster", "human", "label", descending=[False, True, False])
        .group_by("cluster", maintain_order=True)
        .agg(pl.col("human").first(), pl.col("label").first())
        .sort("cluster")
        .with_row_index("place")
    )
    human, made = clusters.filter("human"), clusters.filter(~pl.col("human"))
    planned = pl.col("cluster").str.starts_with(_CALL)
    strata = [
        *_found_strata(_HUMAN, human, first_of_each, elsewhere or {}),
        *_by_label(made.filter(planned), "planned"),
        *_found_strata("other", made.filter(~planned), 0, elsewhere or {}),
    ]
    times = np.zeros((draws, clusters.height), dtype=np.int32)
    for stratum in strata:
        for draw, places in enumerate(stratum.drawn(seed, draws)):
            times[draw] += np.bincount(places, minlength=clusters.height).astype(np.int32)
    place = dict(zip(clusters["cluster"].to_list(), range(clusters.height), strict=True))
    return TrainingDraws(place, times)


def _found_strata(
    name: str, rows: pl.DataFrame, first_of_each: int, elsewhere: Mapping[str, int]
) -> list[_Stratum]:
    """Strata of clusters whose labels were found, not chosen, unless their counts say otherwise."""
    if rows.is_empty():
        return []
    counts = rows.group_by("label").len("rows").sort("label")
    if counts_are_fixed(counts["rows"].to_list()):
        return _by_label(rows, name)
    chosen = _by_label(rows, name, most=first_of_each) if first_of_each else []
    rest = rows.height - sum(stratum.size for stratum in chosen)
    if not rest:
        return chosen
    left = counts.with_columns(left=(pl.col("rows") - (first_of_each if chosen else 0)).clip(0))
    shares = _shares(dict(left.select("label", "left").iter_rows()), elsewhere)
    each = rows.join(counts, on="label", how="left", maintain_order="left").select(
        pl.col("label").replace_strict(shares, return_dtype=pl.Float64) / pl.col("rows")
    )
    upper = np.cumsum(each.to_series().to_numpy())
    places = rows["place"].to_numpy().astype(np.int64)
    return [*chosen, _Stratum(name, places, rest, upper / upper[-1])]


def _shares(counts: Mapping[str, int], elsewhere: Mapping[str, int]) -> dict[str, float]:
    """How often each label of ``counts`` comes: by them and, if they agree, other rows too."""
    both = np.array([[counts[name], elsewhere.get(name, 0)] for name in counts], dtype=np.float64)
    return dict(
        zip(counts, (both.sum(axis=1) if _agree(both) else both[:, 0]).tolist(), strict=True)
    )


def _agree(both: Floats) -> bool:
    """Whether two samples (K, 2) of counts may be of one source: chi-square, 1 % level."""
    both = both[both.sum(axis=1) > 0]
    if len(both) < 2 or (both.sum(axis=0) == 0).any():
        return False
    expected = both.sum(axis=1, keepdims=True) * both.sum(axis=0) / both.sum()
    return float(((both - expected) ** 2 / expected).sum()) <= float(
        chi2.ppf(1 - EVEN_BY_CHANCE, len(both) - 1)
    )


def _by_label(clusters: pl.DataFrame, name: str, *, most: int | None = None) -> list[_Stratum]:
    strata = []
    for (label,), part in sorted(clusters.partition_by("label", as_dict=True).items()):
        places = part["place"].to_numpy().astype(np.int64)
        size = len(places) if most is None else min(most, len(places))
        strata.append(_Stratum(f"{name}\0{label}", places, size))
    return strata


def clustered(rows: pl.DataFrame, groups: pl.DataFrame | None) -> pl.DataFrame:
    """``rows`` of ``train`` or ``eval`` with ``cluster``: what each of them came together with.

    Generated rows: their call. Imported rows: the parents they name, sorted, so that one of a
    single parent is drawn with that parent. Human rows: their group, where ``groups`` (human rows:
    record_id, group) are given. All others stand alone.
    """
    named = rows.with_columns(cluster=_together() if "request_id" in rows.columns else "record_id")
    if groups is None:
        return named
    of_row = groups.select(
        "record_id", _group=pl.concat_str(pl.lit(f"group{_SEPARATOR}"), pl.col("group"))
    )
    joined = named.join(
        of_row, left_on="cluster", right_on="record_id", how="left", maintain_order="left"
    )
    return joined.with_columns(cluster=pl.coalesce("_group", "cluster")).drop("_group")


def _together() -> pl.Expr:
    imported = is_imported()
    parents = pl.col("seed_ids").list.sort().list.join(_SEPARATOR)
    return (
        pl.when(imported & (pl.col("seed_ids").list.len() > 0))
        .then(parents)
        .when(pl.col("request_id").is_not_null() & ~imported)
        .then(pl.concat_str(pl.lit(_CALL), pl.col("request_id")))
        .otherwise("record_id")
    )
