"""Keyed draws, scores under thousands of weightings of the held-out rows, and their intervals.

Held-out rows are drawn by the Bayesian bootstrap (Rubin 1981, "The Bayesian Bootstrap", Ann.
Statist. 9): instead of leaving rows out, each cluster of rows gets an independent Exp(1) weight, so
that no label vanishes from an average over labels. Training rows are drawn otherwise: see
``draws``. A draw belongs to an id, a seed and a counter, not to a place in a table: the order of
rows is nothing, and the same rows are drawn alike for every arm (paired comparison).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import norm, t

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]
Keys: TypeAlias = NDArray[np.uint64]

TAIL = 0.025
CELLS_AT_ONCE = 1 << 21  # weights held in memory at once: 16 MiB
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def keys_of(ids: Sequence[str], *, seed: int, stream: str) -> Keys:
    """One uint64 per record id; ``stream`` separates uses of one seed."""
    prefix = f"{seed}\0{stream}\0".encode()
    digests = b"".join(
        hashlib.blake2b(prefix + one.encode(), digest_size=8).digest() for one in ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def exponential(keys: Keys, draw: int) -> Floats:
    """The ``draw``-th (>= 1) Exp(1) weight of each key."""
    return np.asarray(-np.log(uniform(keys, draw)), dtype=np.float64)


def uniform(keys: Keys, draw: int) -> Floats:
    """The ``draw``-th (>= 1) number in (0, 1) of each key: SplitMix64 (Steele, Lea, Flood 2014)."""
    # uint64 arithmetic is meant to wrap around, which NumPy does silently on arrays.
    state = keys + np.uint64(draw * _GOLDEN & _WORD)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return np.asarray(((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


@dataclass(frozen=True)
class Scores:
    """Scores of F fits under 1 + M weightings of the held-out rows; the first has all weights 1.

    ``accuracy`` is (F, 1 + M); ``f1`` is (F, K, 1 + M) over the K labels in code order.
    """

    accuracy: Floats
    f1: Floats

    @property
    def macro_f1(self) -> Floats:
        """(F, 1 + M): the unweighted mean over the K labels."""
        return np.asarray(self.f1.mean(axis=1), dtype=np.float64)


def weighted_scores(truth: Codes, predicted: Codes, weights: Floats, *, labels: int) -> Scores:
    """Scores of F predictions of n rows, for W weightings at once.

    ``truth`` (n,) holds codes in [0, labels), ``predicted`` (F, n) the same or -1 for any label
    outside, ``weights`` is (n, W). A label with no weight in truth and prediction has F1 0, as
    ``sklearn.metrics.f1_score(zero_division=0)`` has it.
    """
    counts = _Counts.zero(len(predicted), labels, weights.shape[1])
    counts.add(truth, predicted, weights)
    return counts.scores()


def drawn_scores(truth: Codes, predicted: Codes, keys: Keys, *, labels: int, draws: int) -> Scores:
    """``weighted_scores`` under weights 1 and then ``draws`` Exp(1) draws per key."""
    counts = _Counts.zero(len(predicted), labels, 1 + draws)
    step = max(1, CELLS_AT_ONCE // (1 + draws))
    for low in range(0, len(truth), step):
        rows = slice(low, low + step)
        weights = np.ones((len(truth[rows]), 1 + draws))
        for draw in range(1, 1 + draws):
            weights[:, draw] = exponential(keys[rows], draw)
        counts.add(truth[rows], predicted[:, rows], weights)
    return counts.scores()


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two, and how it varies.

    ``drawn`` (1 + M,): the full fit under weightings of the test rows, all weights 1 first;
    ``refits`` (R,): fits on training rows drawn again, on the test rows as they are.
    """

    drawn: Floats
    refits: Floats

    def __sub__(self, other: Estimate) -> Estimate:
        """The paired difference: both under the same draws."""
        return Estimate(self.drawn - other.drawn, self.refits - other.refits)


@dataclass(frozen=True)
class FitScores:
    """Of one arm: its full fit under drawn test rows, and its refits on them as they are.

    ``sizes`` (K,): clusters of training rows per label, of which refits are draws.
    """

    full: Scores  # F = 1, 1 + M weightings
    refits: Scores  # F = R, one weighting
    sizes: Codes

    def of(self, metric: str) -> Estimate:
        """``accuracy`` or ``macro_f1``."""
        return self.beside(self, metric)

    def f1(self, code: int) -> Estimate:
        """F1 of one label."""
        return self.f1_beside(self, code)

    def beside(self, other: FitScores, metric: str) -> Estimate:
        """As in a comparison with ``other``: a label is as scarce as it is in the scarcer arm."""
        if metric == "accuracy":
            return Estimate(self.full.accuracy[0], self.refits.accuracy[:, 0])
        refits = _unshrunk(self.refits.f1[:, :, 0], np.minimum(self.sizes, other.sizes))
        return Estimate(self.full.macro_f1[0], refits.mean(axis=1))

    def f1_beside(self, other: FitScores, code: int) -> Estimate:
        """F1 of one label, as in a comparison with ``other``."""
        refits = _unshrunk(self.refits.f1[:, :, 0], np.minimum(self.sizes, other.sizes))
        return Estimate(self.full.f1[0, code], refits[:, code])

    def minus(self, other: FitScores, metric: str) -> Estimate:
        """The paired difference of a metric."""
        return self.beside(other, metric) - other.beside(self, metric)

    def f1_minus(self, other: FitScores, code: int) -> Estimate:
        """The paired difference of one label's F1."""
        return self.f1_beside(other, code) - other.f1_beside(self, code)


def _unshrunk(refits: Floats, sizes: Codes) -> Floats:
    """``refits`` (R, K) with their spread per label as it would be without the bootstrap's bias.

    Draws from c rows vary by (c - 1) / c of what c fresh rows would (Davison & Hinkley 1997,
    section 3.2): a label of one row would be drawn the same each time it is drawn. Deviations are
    scaled by sqrt(c / (c - 1)), those of a single row as those of two.
    """
    held = np.maximum(sizes, 2)
    factor = np.where(sizes > 0, np.sqrt(held / (held - 1)), 1.0)
    middle = refits.mean(axis=0)
    return np.asarray(middle + factor * (refits - middle), dtype=np.float64)


def fit_scores(
    truth: Codes, predicted: Codes, keys: Keys, *, sizes: Codes, draws: int
) -> FitScores:
    """Scores of ``predicted`` (1 + R, n), the full fit first; see ``drawn_scores``.

    ``sizes`` (K,): see ``FitScores``; there are K labels.
    """
    labels = len(sizes)
    every = np.ones((len(truth), 1))
    return FitScores(
        drawn_scores(truth, predicted[:1], keys, labels=labels, draws=draws),
        weighted_scores(truth, predicted[1:], every, labels=labels),
        sizes,
    )


@dataclass(frozen=True)
class _Counts:
    """The margins and diagonal of weighted confusion matrices: all that F1 needs."""

    right: Floats  # (F, K, W)
    guessed: Floats  # (F, K, W)
    present: Floats  # (K, W)

    @classmethod
    def zero(cls, fits: int, labels: int, weightings: int) -> _Counts:
        shape = (fits, labels, weightings)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros((labels, weightings)))

    def add(self, truth: Codes, predicted: Codes, weights: Floats) -> None:
        labels = len(self.present)
        self.present[:] += _sum_by(truth, weights, labels)
        for fit, codes in enumerate(predicted):
            self.guessed[fit] += _sum_by(codes, weights, labels)
            self.right[fit] += _sum_by(np.where(codes == truth, truth, -1), weights, labels)

    def scores(self) -> Scores:
        both = self.guessed + self.present
        f1 = np.divide(2 * self.right, both, out=np.zeros_like(both), where=both > 0)
        total = self.present.sum(axis=0)
        right = self.right.sum(axis=1)
        accuracy = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        return Scores(accuracy, f1)


def _sum_by(codes: Codes, weights: Floats, labels: int) -> Floats:
    rows = np.flatnonzero(codes >= 0)
    shape = (labels, len(codes))
    member = sparse.csr_matrix((np.ones(len(rows)), (codes[rows], rows)), shape=shape)
    return np.asarray(member @ weights, dtype=np.float64)


@dataclass(frozen=True)
class Interval:
    """A point estimate with the limits of its 95 % interval."""

    value: float
    low: float
    high: float


def interval(found: Estimate, *, lowest: float, difference: bool = False) -> Interval:
    """The 95 % interval of an estimate with at least 2 refits.

    ``found.drawn`` carries the uncertainty of the test sample, ``found.refits`` that of the
    training sample; a draw is the sum of one deviation of each. (Refits on drawn test rows would
    count the test sample twice: half widths came out 1.1 to 1.2 times too large.) Three repairs:

    - Refits are *centred*. A draw holds fewer distinct rows than the sample (63 % of them), so
      every refit does worse than the full fit, an arm with more rows less so. Uncentred draws
      would credit any second copy of the data with a gain.
    - Refits' deviations are widened by sqrt(R / (R - 1)) and by Student's t over the normal
      quantile: few repeats cost width, not honesty.
    - A ``difference`` is reflected about its estimate (basic bootstrap; Davison & Hinkley 1997,
      section 5.2). Exp(1) weights are never 0, so a lead by one test row would have all its
      percentiles above 0; reflected, a unanimous lead must be five or six rows long, which is
      about where the exact sign test passes 5 %, too.
    """
    point, repeats = float(found.drawn[0]), len(found.refits)
    widen = np.sqrt(repeats / (repeats - 1)) * t.ppf(1 - TAIL, repeats - 1) / norm.ppf(1 - TAIL)
    refits = widen * (found.refits - found.refits.mean())
    draws = found.drawn[1:] + refits[:, None]
    draws = draws - draws.mean() + point
    low, high = np.quantile(draws, (TAIL, 1 - TAIL))
    if difference:
        low, high = 2 * point - high, 2 * point - low
    return Interval(point, max(lowest, float(low)), min(1.0, float(high)))
