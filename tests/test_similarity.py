"""Near-copies are found exactly: no pair missed, none made up, the edge decided in integers."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import UsageError
from synth_assets.lifecycle import similarity
from synth_assets.lifecycle.similarity import gram_sets, greedy_unique, near_copies
from synth_assets.text import normalise

# Few letters and few words make near-copies, ties and short texts likely.
words = st.sampled_from(
    ["oil", "leak", "leaks", "pump", "PUMP", "a", "b", "é", "ß", "水漏れ", "🚀", "-"]
)
a_text = st.one_of(st.none(), st.lists(words, max_size=6).map(" ".join), st.text(max_size=12))
many_texts = st.lists(a_text, max_size=14)
thresholds = st.sampled_from([0.1, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0])
ngrams = st.integers(1, 6)


def series(texts: list[str | None]) -> pl.Series:
    return pl.Series(texts, dtype=pl.String)


def normal(text: str) -> str:
    return str(pl.select(normalise(pl.lit(text))).item())


def grams(text: str, ngram: int) -> set[str]:
    padded = normal(text).ljust(ngram)
    return {padded[i : i + ngram] for i in range(len(padded) - ngram + 1)}


def jaccard(a: str, b: str, ngram: int) -> Fraction:
    left, right = grams(a, ngram), grams(b, ngram)
    return Fraction(len(left & right), len(left | right))


def least(threshold: float) -> Fraction:
    return Fraction(2, 3) if threshold == 2 / 3 else Fraction(str(threshold))


def brute_near(
    texts: list[str | None], reference: list[str | None], threshold: float, ngram: int
) -> Iterator[tuple[int, int, float]]:
    for row, text in enumerate(texts):
        scored = [
            (-int(normal(text) == normal(other)), -jaccard(text, other, ngram), match)
            for match, other in enumerate(reference)
            if text is not None and other is not None
        ]
        if scored and -min(scored)[1] >= least(threshold):
            yield row, min(scored)[2], float(-min(scored)[1])


def brute_greedy(
    texts: list[str | None], threshold: float, ngram: int
) -> Iterator[tuple[int, int, float, str]]:
    kept: list[tuple[int, str]] = []
    for row, text in enumerate(texts):
        if text is None:
            continue
        scored = ((match, jaccard(text, other, ngram)) for match, other in kept)
        hit = next((one for one in scored if one[1] >= least(threshold)), None)
        if hit is None:
            kept.append((row, text))
        else:
            yield row, hit[0], float(hit[1]), "self"


@pytest.fixture(params=[1, 40, similarity.PAIRS_AT_ONCE], ids=["tiny", "small", "usual"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PAIRS_AT_ONCE", request.param)
    monkeypatch.setattr(similarity, "GRAMS_AT_ONCE", request.param)


# --- normalisation


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("  Oil-leak,  at PUMP!! ", "oil leak at pump"),
        ("ﬁlter № ５", "filter no 5"),
        ("Straße", "STRASSE"),
        ("exam\u00adple", "example"),
        ("\ufeffo\u200bil", "oil"),
        ("under_score", "under score"),
        ("Cafe\u0301", "CAFÉ"),
        ("pump 🚀", "pump"),
        ("❤️ pump", "pump"),
    ],
)
def test_what_a_reader_would_not_call_a_difference_is_removed(text: str, same: str) -> None:
    assert normal(text) == normal(same)


def test_marks_that_are_part_of_a_script_stay() -> None:
    assert normal("नमस्ते दुनिया") == "नमस्ते दुनिया"


def test_two_different_emoji_are_different_texts() -> None:
    assert normal(" 🚀 ") == "🚀"
    assert len({normal(t) for t in ["🚀", "❤️", "☀️", "!?", "..."]}) == 5


def test_null_stays_null() -> None:
    frame = pl.DataFrame({"t": series([None, "a"])}).select(normalise(pl.col("t")))
    assert frame["t"].to_list() == [None, "a"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=20))
def test_normalising_twice_changes_nothing(texts: list[str]) -> None:
    once = pl.DataFrame({"t": series(list(texts))}).select(normalise(pl.col("t")))
    assert once.select(normalise(pl.col("t"))).equals(once)


# --- grams


def test_a_text_shorter_than_the_gram_has_one_gram() -> None:
    assert gram_sets(series(["", "ab", "abcde", "abcdef"]), ngram=5).size.tolist() == [1, 1, 1, 2]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=15).map(normal), max_size=8), ngrams)
def test_sets_share_exactly_the_grams_that_the_texts_share(texts: list[str], ngram: int) -> None:
    sets = gram_sets(series(list(texts)), ngram=ngram)
    rows = [set(sets.ids[a:b].tolist()) for a, b in zip(sets.start, sets.start[1:], strict=False)]
    for a, left in enumerate(texts):
        for b, right in enumerate(texts):
            assert len(rows[a] & rows[b]) == len(grams(left, ngram) & grams(right, ngram))


def test_a_large_alphabet_is_packed_without_collisions() -> None:
    # 256 characters: in 64 bits, the first of nine would be shifted out and all rows look alike
    alphabet = [chr(0x4E00 + i) for i in range(256)]
    sets = gram_sets(series([first + "".join(alphabet[:8]) for first in alphabet]), ngram=9)
    assert sets.grams == 256


def test_grams_run_from_rare_to_common() -> None:
    sets = gram_sets(series(["aaaaab", "aaaaac", "aaaaad"]), ngram=5)
    shared = sets.grams - 1
    assert [sets.ids[end - 1] for end in sets.start[1:]] == [shared] * 3


# --- near copies


@pytest.mark.usefixtures("block")
@settings(deadline=None, max_examples=40)
@given(many_texts, many_texts, thresholds, ngrams)
def test_near_copies_agree_with_brute_force(
    texts: list[str | None], reference: list[str | None], threshold: float, ngram: int
) -> None:
    found = near_copies(series(texts), series(reference), threshold=threshold, ngram=ngram)
    assert found.rows() == list(brute_near(texts, reference, threshold, ngram))


def test_a_similarity_equal_to_the_threshold_counts() -> None:
    # 4 of 5 grams, and 0.8 as a float lies above 4/5
    found = near_copies(series(["abcdefgh"]), series(["abcdefghi"]), threshold=0.8)
    assert found.rows() == [(0, 0, 0.8)]


def test_a_similarity_just_under_the_threshold_does_not_count() -> None:
    assert near_copies(series(["abcdefgh"]), series(["abcdefghi"]), threshold=0.8001).is_empty()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 2))
def test_every_rational_edge_is_met_exactly(shared: int, extra: int, off: int) -> None:
    # `shared` grams of `shared + extra`: a run of distinct characters and a longer one
    chars = "".join(chr(0x4E00 + i) for i in range(shared + extra + 4))
    exact = shared / (shared + extra)
    threshold = min(1.0, exact + off * 1e-6)
    found = near_copies(series([chars[: shared + 4]]), series([chars]), threshold=threshold)
    assert found.height == int(threshold == exact)


def test_an_identical_text_wins_over_an_earlier_one_with_the_same_grams() -> None:
    found = near_copies(series(["aaaaaaa"]), series(["aaaaaaaaa", "AAAAAAA"]), threshold=0.5)
    assert found.rows() == [(0, 1, 1.0)]


def test_the_lowest_index_is_named_among_equals() -> None:
    reference = series(["zzz", "pump leaks oil b", "pump leaks oil c", "pump leaks oil b"])
    assert near_copies(series(["pump leaks oil a"]), reference, threshold=0.5)["match"].item() == 1


def test_null_texts_match_nothing() -> None:
    assert near_copies(series([None]), series([None, ""]), threshold=0.1).is_empty()


@pytest.mark.parametrize(
    ("texts", "reference"), [([], []), ([], ["a"]), (["a"], []), ([None], [None])]
)
def test_nothing_in_gives_an_empty_table_with_its_types(
    texts: list[str | None], reference: list[str | None]
) -> None:
    found = near_copies(series(texts), series(reference), threshold=0.8)
    assert found.schema == {"row": pl.UInt32, "match": pl.UInt32, "similarity": pl.Float64}
    assert found.is_empty()


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        near_copies(series([]), series([]), threshold=threshold)
    with pytest.raises(UsageError, match="threshold"):
        greedy_unique(series([]), threshold=threshold)


def test_a_gram_without_characters_is_refused() -> None:
    with pytest.raises(UsageError, match="n-grams"):
        near_copies(series(["a"]), series(["b"]), threshold=0.5, ngram=0)


# --- greedy uniqueness


@pytest.mark.usefixtures("block")
@settings(deadline=None, max_examples=40)
@given(many_texts, thresholds, ngrams)
def test_greedy_drops_agree_with_brute_force(
    texts: list[str | None], threshold: float, ngram: int
) -> None:
    dropped = greedy_unique(series(texts), threshold=threshold, ngram=ngram)
    assert dropped.rows() == list(brute_greedy(texts, threshold, ngram))


def kept(texts: list[str | None], threshold: float, against: list[str | None]) -> list[str | None]:
    dropped = greedy_unique(series(texts), threshold=threshold, against=series(against))
    gone = set(dropped["row"].to_list())
    return [text for row, text in enumerate(texts) if row not in gone]


@settings(deadline=None)
@given(many_texts, many_texts, many_texts, thresholds)
def test_two_batches_keep_what_one_batch_keeps(
    first: list[str | None], second: list[str | None], outside: list[str | None], threshold: float
) -> None:
    once = kept([*first, *second], threshold, outside)
    early = kept(first, threshold, outside)
    assert [*early, *kept(second, threshold, [*outside, *early])] == once


def test_a_row_similar_only_to_a_dropped_row_is_kept() -> None:
    texts = ["abcdefgh", "abcdefghi", "abcdefghij"]
    dropped = greedy_unique(series(list(texts)), threshold=0.8)
    assert dropped.rows() == [(1, 0, 0.8, "self")]


def test_the_reference_is_named_before_an_earlier_row() -> None:
    texts = series(["pump leaks oil", "Pump leaks oil!"])
    against = series(["something else", "pump leaks oil"])
    dropped = greedy_unique(texts.slice(1), threshold=0.8, against=against)
    assert dropped.rows() == [(0, 1, 1.0, "against")]
    assert greedy_unique(texts, threshold=0.8).rows() == [(1, 0, 1.0, "self")]


def test_null_texts_are_kept() -> None:
    assert greedy_unique(series([None, None]), threshold=0.5, against=series([None])).is_empty()


def test_a_crowd_of_similar_texts_shrinks_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PAIRS_AT_ONCE", 500)
    crowd = [f"Item {i:03d} of the long list of items is broken" for i in range(600)]
    dropped = greedy_unique(series(list(crowd)), threshold=0.6)
    assert dropped["row"].to_list() == list(range(1, 600))
    assert set(dropped["match"].to_list()) == {0}
