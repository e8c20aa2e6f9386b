"""Near-duplicates: exact search against MinHash LSH and brute force, in one run.

    python -m benchmarks.near_duplicates [--rows 100000] [--threshold 0.8] [--words 10]

Texts come from a seeded generator: a skewed vocabulary, three in ten an edited copy of an earlier
text. Truth for recall and precision is brute force over all pairs (small sizes) or the exact search
(larger ones, once the small size has shown the two to agree). CPU seconds of the whole process;
trust ratios, not seconds. Each method is asked its own natural question, "which texts have a
similar earlier or later text"; the greedy pass that drops texts is timed beside it.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import polars as pl

from synth_assets.lifecycle.similarity import (
    Matcher,
    gram_sets,
    greedy_unique,
    near_copies,
    normalise,
)

try:
    import rensa
except ImportError:
    rensa = None
try:
    from rapidfuzz import process
    from rapidfuzz.distance import Indel
except ImportError:
    process = None  # type: ignore[assignment]

BRUTE_ROWS = 2_000
SMALL_ROWS = 10_000
NGRAM = 5


@dataclass(frozen=True)
class Measured:
    """One line of the table; `flagged` holds the rows found to have a similar text."""

    method: str
    cpu: float
    flagged: frozenset[int]


def corpus(rows: int, *, words: int, seed: int = 0) -> list[str]:
    """`rows` texts of about `words` words; three in ten are copies with up to three edits."""
    rng = Random(seed)
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"

    def syllable() -> str:
        end = rng.choice(consonants) if rng.random() < 0.5 else ""
        return rng.choice(consonants) + rng.choice(vowels) + end

    vocabulary = ["".join(syllable() for _ in range(rng.randint(1, 3))) for _ in range(5_000)]
    heights = np.cumsum([(rank + 2) ** -0.9 for rank in range(5_000)]).tolist()
    texts: list[str] = []
    for row in range(rows):
        if row > 10 and rng.random() < 0.3:
            copy = list(rng.choice(texts))
            for _ in range(rng.randint(0, 3)):
                copy[rng.randrange(len(copy))] = rng.choice("abcdefghijklmno")
            texts.append("".join(copy))
        else:
            size = rng.randint(int(words * 0.7), int(words * 1.5))
            texts.append(" ".join(rng.choices(vocabulary, cum_weights=heights, k=size)))
    return texts


def cpu_of(work: Callable[[], frozenset[int]], method: str) -> Measured:
    """User and system seconds of `work`, all threads."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    flagged = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Measured(method, cpu, flagged)


def normalised(texts: list[str]) -> pl.Series:
    return pl.DataFrame({"text": texts}).select(normalise(pl.col("text")))["text"]


def shingles(texts: list[str]) -> list[set[str]]:
    padded = [text.ljust(NGRAM) for text in normalised(texts).to_list()]
    return [{t[i : i + NGRAM] for i in range(len(t) - NGRAM + 1)} for t in padded]


def exact_pairs(texts: list[str], threshold: float) -> frozenset[int]:
    """Our search, all similar pairs, without the greedy rule."""
    matcher = Matcher(gram_sets(normalised(texts), ngram=NGRAM), threshold)
    rows = np.arange(len(texts))
    flagged: set[int] = set()
    for pairs in matcher.pairs(rows, matcher.index(rows), rows):
        flagged.update(pairs.left.tolist(), pairs.right.tolist())
    return frozenset(flagged)


def greedy(texts: list[str], threshold: float) -> frozenset[int]:
    """Our greedy pass: the rows that would be dropped."""
    return frozenset(greedy_unique(pl.Series(texts), threshold=threshold)["row"].to_list())


def later_half(texts: list[str], threshold: float) -> frozenset[int]:
    """Our search of the second half of the rows for copies of the first half."""
    half = len(texts) // 2
    found = near_copies(pl.Series(texts[half:]), pl.Series(texts[:half]), threshold=threshold)
    return frozenset(found["row"].to_list())


def brute_sets(texts: list[str], threshold: float) -> frozenset[int]:
    """All pairs of Python sets: the truth."""
    sets = shingles(texts)
    flagged: set[int] = set()
    for right, one in enumerate(sets):
        for left in range(right):
            shared = len(one & sets[left])
            # nine digits: the float below 4/5 must not move the edge
            if round(shared / (len(one) + len(sets[left]) - shared), 9) >= round(threshold, 9):
                flagged.update((left, right))
    return frozenset(flagged)


def brute_rapidfuzz(texts: list[str], threshold: float) -> frozenset[int]:
    """All pairs by rapidfuzz's normalised Indel similarity (difflib's ratio, compiled).

    Another measure, higher than Jaccard of 5-grams for the same edits: the cut-off (1 + t) / 2 is a
    rule of thumb that misses nothing here. Compare its time; its precision only says how far
    the two measures differ.
    """
    plain = normalised(texts).to_list()
    cutoff = (1 + threshold) / 2
    flagged: set[int] = set()
    for start in range(0, len(plain), 500):
        block = plain[start : start + 500]
        scores = process.cdist(
            block, plain, scorer=Indel.normalized_similarity, score_cutoff=cutoff, dtype=np.float32
        )
        scores[np.arange(len(block)), start + np.arange(len(block))] = 0
        left, right = np.nonzero(scores)
        flagged.update((left + start).tolist(), right.tolist())
    return frozenset(flagged)


def minhash_lsh(texts: list[str], threshold: float, *, bands: int) -> frozenset[int]:
    """rensa: 128 permutations, rows that share a band with another row, unverified.

    It gets our gram numbers, which is much faster than giving it strings.
    """
    hashed = gram_sets(normalised(texts), ngram=NGRAM)
    tokens = hashed.ids.astype(np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        tokens, hashed.start.astype(np.uint64), 128, 42
    )
    index = rensa.RMinHashLSH(threshold, 128, bands)
    index.insert_matrix(digests)
    return frozenset(np.flatnonzero(index.query_duplicate_flags_matrix(digests)).tolist())


def report(title: str, lines: list[Measured], truth: frozenset[int]) -> None:
    """One table; the ratio is CPU time relative to the first line."""
    print(f"\n{title}: {len(truth):,} texts have a similar one")
    print(f"  {'method':<44}{'CPU s':>9}{'ratio':>9}{'recall':>9}{'precision':>11}")
    for line in lines:
        right = len(line.flagged & truth)
        recall, precision = right / max(1, len(truth)), right / max(1, len(line.flagged))
        ratio = line.cpu / max(lines[0].cpu, 1e-9)
        print(f"  {line.method:<44}{line.cpu:>9.2f}{ratio:>9.1f}{recall:>9.3f}{precision:>11.3f}")


def peers(texts: list[str], threshold: float) -> list[Measured]:
    """The approximate peers that are installed."""
    if rensa is None:
        print("rensa is not installed: MinHash is left out (pip install rensa)", file=sys.stderr)
        return []
    return [
        cpu_of(
            partial(minhash_lsh, texts, threshold, bands=bands),
            f"rensa MinHash LSH, {bands} bands x {128 // bands}, unverified",
        )
        for bands in (16, 32)
    ]


def compare(rows: int, threshold: float, words: int) -> None:
    """Print all tables."""
    texts = corpus(max(rows, SMALL_ROWS), words=words)
    greedy(texts[:100], threshold)  # imports and thread pools are not what is measured
    few = texts[:BRUTE_ROWS]
    ours = cpu_of(partial(exact_pairs, few, threshold), "ours, exact pairs")
    sets = cpu_of(partial(brute_sets, few, threshold), "Python sets, all pairs")
    lines = [ours, sets, *peers(few, threshold)]
    if process is None:
        print("rapidfuzz is not installed: it is left out (pip install rapidfuzz)", file=sys.stderr)
    else:
        lines.append(cpu_of(partial(brute_rapidfuzz, few, threshold), "rapidfuzz Indel, all pairs"))
    report(f"{len(few):,} texts, truth by brute force", lines, sets.flagged)
    if ours.flagged != sets.flagged:
        raise SystemExit("the exact search disagrees with brute force")
    for size in sorted({SMALL_ROWS, rows}):
        part = texts[:size]
        ours = cpu_of(partial(exact_pairs, part, threshold), "ours, exact pairs")
        lines = [ours, *peers(part, threshold)]
        report(f"{size:,} texts, truth by exact search", lines, ours.flagged)
        drop = cpu_of(partial(greedy, part, threshold), "greedy_unique")
        near = cpu_of(partial(later_half, part, threshold), "near_copies")
        print(f"  greedy_unique drops {len(drop.flagged):,} in {drop.cpu:.2f} CPU s;", end=" ")
        print(
            f"near_copies of one half in the other: {len(near.flagged):,} in {near.cpu:.2f} CPU s"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    mean = sum(map(len, texts)) / len(texts)
    print(f"\nthreshold {threshold}, {mean:.0f} characters a text, peak {peak:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument(
        "--words", type=int, default=10, help="words per text (10 is 67 characters)"
    )
    args = parser.parse_args()
    compare(args.rows, args.threshold, args.words)


if __name__ == "__main__":
    main()
