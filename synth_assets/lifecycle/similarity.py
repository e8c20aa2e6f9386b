"""Which texts are copies of which: exact, deterministic, nothing sampled.

What "similar" means, in this order:

1. A text is brought into a *form* (`synth_assets.text`): by default `normalise`, its words only.
2. It becomes the set of its character n-grams (5 by default). Texts shorter than n are padded with
   spaces to n characters, so that each text has at least one gram and two short texts are similar
   only when they are equal.
3. Similarity is the Jaccard index of two sets, shared / all, between 0 and 1.

A threshold is the decimal that the user wrote: 0.8 means 4/5, and a pair that shares exactly
four fifths *is* similar. Pairs are decided in integers, so no rounding moves the edge.

How it stays fast without missing a pair. Grams are ordered from rare to common. Two sets with
similarity t or more must share k grams (or all that they share, when fewer) among the rarest
``size - ceil(t * size) + k`` of each (prefix filter: Chaudhuri, Ganti, Kaushik 2006; for k above 1:
Wang, Li, Feng 2012), so only these are joined, by a product of sparse matrices. What that finds
is thinned by set size and by a bound on the overlap from XOR signatures (bitmap filter: Sandes,
Teodoro, Melo 2020), and what is left is counted exactly. No filter discards a pair that qualifies.

Rows may have *labels*. Opposites ("increase the volume", "decrease the volume") share most of their
grams, so between rows of two labels similarity of grams is not enough: their words must also follow
each other alike (`OTHER_LABEL`). With one word replaced that takes a text of 24 words; shorter ones
are near-copies across labels only when they are the same. A row without a label is compared as one
of the same label.

Limits: the grams of all texts of one call are in memory (some 80 bytes per character at the peak,
10 after it); candidate pairs come in blocks of bounded size. When most texts are alike, time is
quadratic in their number for `near_copies`, which must look at each pair to name the best;
`greedy_unique` looks only at pairs with a kept row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from synth_assets.errors import UsageError
from synth_assets.text import normalise

Ints = NDArray[np.int64]

DEFAULT_NGRAM = 5

# Candidate pairs held at once, and grams gathered at once to count overlaps: some 50 MB each.
PAIRS_AT_ONCE = 2_000_000
GRAMS_AT_ONCE = 4_000_000

# Rare grams that a pair must share before it is looked at: longer prefixes, far fewer candidates.
WITNESSES = 3

# Jaccard similarity of pairs of neighbouring words (the ends of a text count as words) from which
# similar texts of two labels are taken for copies.
OTHER_LABEL = Fraction(17, 20)

# Scripts without spaces: each character is a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"

Form = Callable[[pl.Expr], pl.Expr]

# Thresholds are read to nine decimals: integer products stay far below 2**63.
_MAX_DENOMINATOR = 10**9


@dataclass(frozen=True)
class GramSets:
    """The sets of n-grams of many texts: set k is ``ids[start[k]:start[k + 1]]``.

    Ids ascend within a set and run from the gram held by the fewest texts to that held by most.
    """

    start: Ints
    ids: NDArray[np.int32]
    grams: int

    @property
    def size(self) -> Ints:
        """Grams per set, at least 1."""
        return np.diff(self.start)

    def matrix(self) -> sparse.csr_matrix:
        """Incidence, texts x grams, boolean."""
        ones = np.ones(len(self.ids), bool)
        return sparse.csr_matrix((ones, self.ids, self.start), (len(self.start) - 1, self.grams))


def gram_sets(texts: pl.Series, *, ngram: int = DEFAULT_NGRAM) -> GramSets:
    """Sets of character n-grams of texts that are normalised already (String, no null)."""
    if ngram < 1:
        raise UsageError(f"n-grams of {ngram} characters do not exist", fix="use 1 or more")
    rows = len(texts)
    if rows == 0:
        return GramSets(np.zeros(1, np.int64), np.zeros(0, np.int32), 0)
    padded = texts.str.pad_end(ngram, " ")
    lengths = padded.str.len_chars().to_numpy().astype(np.int64)
    row_bits = np.uint64(rows.bit_length())
    codes = _packed("".join(padded.to_list()), ngram, limit=1 << (64 - rows.bit_length()))
    inside = np.ones(len(codes), bool)
    for back in range(1, ngram):
        inside[np.cumsum(lengths)[:-1] - back] = False
    owner = np.repeat(np.arange(rows, dtype=np.uint64), lengths)[: len(codes)]

    # Sorting whole keys (gram, row) is many times faster than any sort that returns an order.
    by_gram = (codes[inside] << row_bits) | owner[inside]
    by_gram.sort()
    by_gram = by_gram[np.r_[True, by_gram[1:] != by_gram[:-1]]]
    gram = by_gram >> row_bits
    owner = by_gram & ((np.uint64(1) << row_bits) - np.uint64(1))
    first = np.r_[True, gram[1:] != gram[:-1]]
    held_by = np.diff(np.flatnonzero(np.r_[first, True]))
    rank = np.empty(len(held_by), np.uint64)
    rank[np.argsort(held_by, kind="stable")] = np.arange(len(held_by), dtype=np.uint64)
    by_row = (owner << np.uint64(32)) | rank[np.cumsum(first) - 1]
    by_row.sort()
    sizes = np.bincount((by_row >> np.uint64(32)).astype(np.int64), minlength=rows)
    ids = (by_row & np.uint64(0xFFFF_FFFF)).astype(np.int32)
    return GramSets(np.r_[0, np.cumsum(sizes)].astype(np.int64), ids, len(held_by))


def _packed(text: str, ngram: int, *, limit: int) -> NDArray[np.uint64]:
    """One number below `limit` per window of `ngram` characters; equal windows, equal numbers."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    used = np.bincount(points) > 0
    codes = (np.cumsum(used) - 1).astype(np.uint64)[points]
    base = int(used.sum())
    packed, span = codes, base
    for shift in range(1, ngram):
        if span * base > limit:  # large alphabets: number the distinct beginnings instead
            distinct, inverse = np.unique(packed, return_inverse=True)
            packed, span = inverse.astype(np.uint64), len(distinct)
        packed = packed[:-1] * np.uint64(base) + codes[shift:]
        span *= base
    return packed


@dataclass(frozen=True)
class Pairs:
    """Verified similar pairs: set numbers, shared grams and grams in either."""

    left: Ints
    right: Ints
    shared: Ints
    union: Ints

    @property
    def similarity(self) -> NDArray[np.float64]:
        return self.shared / self.union

    def at(self, places: Ints) -> Pairs:
        """Some of the pairs, in the order of `places`."""
        columns = (self.left, self.right, self.shared, self.union)
        return Pairs(*(column[places] for column in columns))

    def first(self) -> Pairs:
        """The first pair of each left, where pairs of one left are neighbours."""
        return self.at(np.flatnonzero(np.diff(self.left, prepend=-1)))


@dataclass(frozen=True)
class Labels:
    """The label of each set (a number; -1: none) and its text, in the form that is compared."""

    codes: Ints
    texts: pl.Series

    def differ(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """Whether the labels are known and not the same."""
        one, other = self.codes[left], self.codes[right]
        differ: NDArray[np.bool_] = (one != other) & (one >= 0) & (other >= 0)
        return differ

    def kept(self, pairs: Pairs) -> Pairs:
        """Without pairs of two labels whose words do not follow each other alike."""
        differ = np.flatnonzero(self.differ(pairs.left, pairs.right))
        if len(differ) == 0:
            return pairs
        sets, places = np.unique(
            np.r_[pairs.left[differ], pairs.right[differ]], return_inverse=True
        )
        words = _word_pairs(self.texts.gather(sets))
        left, right = np.split(places, 2)
        shared = np.diff(words[left].multiply(words[right]).tocsr().indptr)
        size = np.diff(words.indptr)
        union = size[left] + size[right] - shared
        apart = shared * OTHER_LABEL.denominator < union * OTHER_LABEL.numerator
        return pairs.at(np.setdiff1d(np.arange(len(pairs.left)), differ[apart]))


def _word_pairs(texts: pl.Series) -> sparse.csr_matrix:
    """Incidence, texts x pairs of neighbouring words; the ends of a text are words, too."""
    spaced = pl.format("\x02 {} \x03", pl.col("text").str.replace_all(_UNSPACED, " $0 "))
    words = (
        pl.DataFrame({"text": texts})
        .with_row_index("row")
        .select("row", word=spaced.str.split(" "))
        .explode("word")
        .filter(pl.col("word") != "")
        .with_columns(following=pl.col("word").shift(-1).over("row"))
        .drop_nulls()
        .unique(["row", "word", "following"], maintain_order=True)
        .select("row", pair=pl.struct("word", "following").rank("dense") - 1)
    )
    row, pair = (words[name].cast(pl.Int64).to_numpy() for name in ("row", "pair"))
    ones = np.ones(len(row), bool)
    return sparse.csr_matrix((ones, (row, pair)), (len(texts), int(pair.max(initial=-1)) + 1))


class Matcher:
    """Finds the pairs of `sets` whose similarity is at least `threshold`."""

    def __init__(self, sets: GramSets, threshold: float, labels: Labels | None = None) -> None:
        exact = threshold_fraction(threshold)
        self.labels = labels
        # By the grams of both sets together: how many may be in one only. With `least` the smallest
        # whole number that satisfies shared / (both - shared) >= num / den, it is both - 2 * least.
        both = np.arange(2 * int(sets.size.max(initial=0)) + 1)
        least = -((-exact.numerator * both) // (exact.numerator + exact.denominator))
        self.slack = (both - 2 * least).astype(np.int32)
        self.size = sets.size.astype(np.int32)
        self.matrix = sets.matrix()
        least_shared = -((-exact.numerator * sets.size) // exact.denominator)
        length = np.minimum(sets.size, sets.size - least_shared + WITNESSES)
        self.witnesses = np.minimum(least_shared, WITNESSES).astype(np.int32)
        beyond = np.repeat(sets.start[:-1] + length, sets.size)
        ids = sets.ids[np.arange(len(sets.ids)) < beyond]
        start = np.r_[0, np.cumsum(length)]
        ones = np.ones(len(ids), np.int32)
        self.prefix = sparse.csr_matrix((ones, ids, start), self.matrix.shape)
        self.signature = _signatures(sets)

    def index(self, rows: Ints) -> sparse.csr_matrix:
        """Gram -> position in `rows`, over the rare grams."""
        return self.prefix[rows].T.tocsr()

    def cost(self, rows: Ints, index: sparse.csr_matrix) -> Ints:
        """Upper bound of the candidates of each row."""
        prefix = self.prefix[rows]
        held = np.r_[0, np.cumsum(np.diff(index.indptr)[prefix.indices], dtype=np.int64)]
        bound: Ints = np.diff(held[prefix.indptr])
        return bound

    def pairs(
        self, rows: Ints, index: sparse.csr_matrix, members: Ints, *, cost: Ints | None = None
    ) -> Iterator[Pairs]:
        """Similar pairs (row, member) with member < row, ordered, each row's in one block.

        `index` is that of `members`; `cost`, when known, saves working it out again.
        """
        total = np.cumsum(self.cost(rows, index) if cost is None else cost)
        block = total // PAIRS_AT_ONCE
        edges = np.r_[0, np.flatnonzero(np.diff(block)) + 1, len(rows)]
        for begin, end in pairwise(edges):
            found = self.prefix[rows[begin:end]] @ index
            left = np.repeat(rows[begin:end], np.diff(found.indptr))
            right = members[found.indices]
            likely = (right < left) & (found.data >= self.witnesses[left])
            yield self._verified(left[likely], right[likely])

    def _verified(self, left: Ints, right: Ints) -> Pairs:
        small = self.size[left]
        both = small + self.size[right]
        slack = self.slack[both]
        alive = np.flatnonzero(np.abs(2 * small - both) <= slack)
        differ = np.zeros(len(alive), np.int32)
        for word in self.signature:
            differ += np.bitwise_count(word[left[alive]] ^ word[right[alive]])
            keep = differ <= slack[alive]
            alive, differ = alive[keep], differ[keep]
        left, right, both = left[alive], right[alive], both[alive].astype(np.int64)
        shared = self._shared(left, right, both)
        order = np.lexsort((right, left))
        order = order[(both - 2 * shared <= slack[alive])[order]]
        found = Pairs(left[order], right[order], shared[order], (both - shared)[order])
        return found if self.labels is None else self.labels.kept(found)

    def _shared(self, left: Ints, right: Ints, both: Ints) -> Ints:
        shared = np.zeros(len(left), np.int64)
        block = np.cumsum(both) // GRAMS_AT_ONCE
        edges = np.r_[0, np.flatnonzero(np.diff(block)) + 1, len(left)]
        for begin, end in pairwise(edges):
            if end > begin:
                common = self.matrix[left[begin:end]].multiply(self.matrix[right[begin:end]])
                shared[begin:end] = np.diff(common.tocsr().indptr)
        return shared


def threshold_fraction(threshold: float) -> Fraction:
    """The threshold as the decimal it was written as: 0.8 is 4/5, not the float below it.

    Raises `UsageError` when it is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise UsageError(
            f"a similarity threshold of {threshold} makes no sense",
            fix="use a number above 0 and at most 1, such as 0.8",
        )
    exact = Fraction(threshold).limit_denominator(_MAX_DENOMINATOR)
    return max(exact, Fraction(1, _MAX_DENOMINATOR))


def _signatures(sets: GramSets) -> list[NDArray[np.uint64]]:
    """XOR signatures, one array per 64-bit word; each gram flips one bit of its set's signature.

    Two sets differ in at least as many grams as their signatures differ in bits. Words grow with
    the sets: a signature much smaller than its set says nothing.
    """
    mean = len(sets.ids) / max(1, len(sets.start) - 1)
    words = int(min(16, max(2, mean // 32)))
    mixed = sets.ids.astype(np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    bit = np.uint64(1) << (mixed >> np.uint64(58))
    word = ((mixed >> np.uint64(20)) & np.uint64(0xFFFF)) % np.uint64(words)
    flat = np.zeros((len(sets.start) - 1) * words, np.uint64)
    owner = np.repeat(np.arange(len(sets.start) - 1) * words, sets.size)
    np.bitwise_xor.at(flat, owner + word.astype(np.int64), bit)
    return [np.ascontiguousarray(column) for column in flat.reshape(-1, words).T]


def near_copies(
    texts: pl.Series,
    reference: pl.Series,
    *,
    threshold: float,
    ngram: int = DEFAULT_NGRAM,
    form: Form = normalise,
    labels: pl.Series | None = None,
    reference_labels: pl.Series | None = None,
) -> pl.DataFrame:
    """The texts that are the same as, or similar to, a text of `reference`.

    Returns `row` (UInt32, index into `texts`), `match` (UInt32, index into `reference`) and
    `similarity` (Float64, at least `threshold`), one line per such text, ordered by row. The match
    is an identical text (in `form`) when there is one, else the most similar; of several that are
    equally good one of the same label, then the lowest index. Null texts match nothing. Exact: no
    pair is missed or made up.

    With labels (String, null: none) of both, a text is a near-copy of one of another label only if
    their words follow each other alike: see above.

    Raises `UsageError` for a threshold outside (0, 1].
    """
    threshold_fraction(threshold)
    rows = _compared(texts, labels, form)
    known = _first_of_each(_compared(reference, reference_labels, form))
    differ = (pl.col("label") != pl.col("label_right")).fill_null(False)
    same = (
        rows.join(known, on="text")
        .sort("row", differ, "first")
        .unique("row", keep="first", maintain_order=True)
        .select("row", match="first", similarity=pl.lit(1.0))
    )
    asked = _first_of_each(rows.join(known, on="text", how="anti"))
    if asked.height == 0 or known.height == 0:
        return same.sort("row")
    both = pl.concat([known, asked])
    coded = _coded(both)
    matcher = Matcher(gram_sets(both["text"], ngram=ngram), threshold, coded)
    members = np.arange(known.height)
    queries = np.arange(known.height, known.height + asked.height)
    found: list[pl.DataFrame] = []
    for pairs in matcher.pairs(queries, matcher.index(members), members):
        other = coded.differ(pairs.left, pairs.right)
        best = pairs.at(np.lexsort((pairs.right, other, -pairs.similarity, pairs.left))).first()
        one = asked[best.left - known.height].select("text", "label")
        match = known["first"][best.right].alias("match")
        found.append(one.with_columns(match, pl.Series("similarity", best.similarity)))
    near = _as_rows(rows, pl.concat(found)).select("row", "match", "similarity")
    return pl.concat([same, near]).sort("row")


def greedy_unique(
    texts: pl.Series,
    *,
    threshold: float,
    ngram: int = DEFAULT_NGRAM,
    against: pl.Series | None = None,
    form: Form = normalise,
    labels: pl.Series | None = None,
    against_labels: pl.Series | None = None,
) -> pl.DataFrame:
    """The texts to drop, so that what is kept resembles neither itself nor `against`.

    Texts are judged in order: one is dropped when it is similar to any text of `against` or to an
    earlier *kept* text. Returns the dropped ones, ordered by row: `row` (UInt32), `match` (UInt32),
    `similarity` (Float64) and `where` (String): "against" with the best match in `against` (as in
    `near_copies`), or "self" with the first kept row that is similar. Null texts are kept. `form`
    and labels: as in `near_copies`.

    Incremental: judging A and then B, with what was kept of A joined to `against`, keeps the same
    rows as judging A followed by B at once.

    Raises `UsageError` for a threshold outside (0, 1].
    """
    outside = pl.Series([], dtype=pl.String) if against is None else against
    taken = near_copies(
        texts,
        outside,
        threshold=threshold,
        ngram=ngram,
        form=form,
        labels=labels,
        reference_labels=against_labels,
    ).with_columns(where=pl.lit("against"))
    rows = _compared(texts, labels, form).join(taken, on="row", how="anti", maintain_order="left")
    firsts = _first_of_each(rows)
    dropped = _settled(gram_sets(firsts["text"], ngram=ngram), threshold, _coded(firsts))
    near = firsts[dropped.left].select(
        "text",
        "label",
        firsts["first"][dropped.right].alias("match"),
        pl.Series("similarity", dropped.similarity),
    )
    # A copy of a dropped row falls to the same kept row; a copy of a kept one, to that.
    own = (
        _as_rows(_as_rows(rows, firsts), near, how="left")
        .filter(pl.col("match").is_not_null() | (pl.col("row") != pl.col("first")))
        .with_columns(pl.col("match").fill_null(pl.col("first")))
        .with_columns(pl.col("similarity").fill_null(1.0), where=pl.lit("self"))
    )
    return pl.concat([taken, own.select("row", "match", "similarity", "where")]).sort("row")


def _settled(sets: GramSets, threshold: float, labels: Labels) -> Pairs:
    """For each set that is dropped (`left`), the first kept one that is similar (`right`)."""
    matcher = Matcher(sets, threshold, labels)
    drops: list[Pairs] = []

    def without(rows: Ints, found: list[Pairs]) -> Ints:
        drops.extend(found)
        gone = np.concatenate([pairs.left for pairs in found])
        left: Ints = np.setdiff1d(rows, gone, assume_unique=True)
        return left

    def kept_of(rows: Ints) -> Ints:
        index = matcher.index(rows)
        cost = matcher.cost(rows, index)
        # Halving means that later rows meet only what was kept of the earlier ones, and that a
        # crowd of similar rows, whose pairs would not fit, shrinks before it is joined.
        if len(rows) > 1 and cost.sum() >= PAIRS_AT_ONCE:
            first, rest = np.split(rows, [len(rows) // 2])
            first = kept_of(first)
            near = matcher.pairs(rest, matcher.index(first), first)
            rest = kept_of(without(rest, [pairs.first() for pairs in near]))
            return np.concatenate([first, rest])
        near = matcher.pairs(rows, index, rows, cost=cost)
        return without(rows, [_first_kept(pairs) for pairs in near])

    kept_of(np.arange(len(sets.start) - 1))
    columns = zip(*((p.left, p.right, p.shared, p.union) for p in drops), strict=True)
    return Pairs(*(np.concatenate(column) for column in columns))


def _first_kept(pairs: Pairs) -> Pairs:
    """The greedy rule over all pairs of some rows: drop what resembles an earlier kept row."""
    gone: dict[int, int] = {}
    for at, (left, right) in enumerate(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)):
        if left not in gone and right not in gone:
            gone[left] = at
    return pairs.at(np.array(list(gone.values()), np.int64))


def _compared(texts: pl.Series, labels: pl.Series | None, form: Form) -> pl.DataFrame:
    """`row` (UInt32), `text` in the form that is compared and `label`, without null texts."""
    label = pl.lit(None, pl.String) if labels is None else labels.cast(pl.String)
    frame = pl.DataFrame({"text": texts.cast(pl.String)}).with_columns(label.alias("label"))
    return frame.with_row_index("row").with_columns(form(pl.col("text"))).drop_nulls("text")


def _first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """`text` and `label` and the `first` row that has both, ordered by it."""
    return rows.group_by("text", "label").agg(first=pl.col("row").min()).sort("first")


def _as_rows(
    rows: pl.DataFrame, told: pl.DataFrame, *, how: Literal["inner", "left"] = "inner"
) -> pl.DataFrame:
    """What is told of texts and labels, for each row that has them."""
    return rows.join(told, on=["text", "label"], how=how, nulls_equal=True)


def _coded(rows: pl.DataFrame) -> Labels:
    """The labels of some rows as numbers."""
    codes = rows["label"].rank("dense").cast(pl.Int64).fill_null(-1)
    return Labels(codes.to_numpy(), rows["text"])
