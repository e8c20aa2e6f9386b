"""When two texts are one text: signs count, opposites are no copies, and a reject says whose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.assets.screening import screen_rules
from synth_assets.lifecycle.leakage import leaks, prompt_leaks
from synth_assets.lifecycle.parents import IDS, HumanRows, resolve_parents
from synth_assets.lifecycle.partition import PartitionRules, partition
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.screen import References, ScreenRules, judge
from synth_assets.lifecycle.similarity import greedy_unique, near_copies
from synth_assets.spec.fingerprint import SHAPES, code_version
from synth_assets.spec.load import load_dataset
from synth_assets.tasks.classification import Classification
from synth_assets.text import FORMS, SameText, normalise, with_signs
from tests.datasets import DatasetFolder
from tests.test_lifecycle import candidates, raw

TASK = Classification("body", "topic", min_chars=1)


def form(text: str, name: SameText = "signs") -> str:
    return str(pl.DataFrame({"t": [text]}).select(FORMS[name](pl.col("t"))).item())


# --- the form -------------------------------------------------------------------------------------

APART = [
    (":)", ":("), ("I love it :)", "I love it :("), (":)", ";)"), (":-)", ":)"), ("<3", "</3"),
    ("👍", "👎"), ("great 👍", "great 👎"), ("great👍", "great👎"), ("♥ it", "💔 it"),
    ("🤷‍♂️ who", "🤷‍♀️ who"), ("🇩🇪", "🇫🇷"), ("🏴󠁧󠁢󠁥󠁮󠁧󠁿 won", "🏴󠁧󠁢󠁳󠁣󠁴󠁿 won"), ("✓ done", "✗ done"),
    ("C++", "C#"), ("I write C++.", "I write C."), (".NET", "net"), ("a == b", "a != b"),
    ("a == b", "a = b"), ("a > b", "a < b"), ("x ≤ y", "x ≥ y"), ("a & b", "a | b"), ("!x", "x"),
    ("x_y", "x y"), ("a/b", "a b"), ("A&B", "A B"), ("->", "<-"), ("[x] done", "[ ] done"),
    ("-3.5", "3.5"), ("it is -3.5 outside", "it is 3.5 outside"), ("+5", "-5"), ("3.5", "3,5"),
    ("3.5", "35"), (".5", "5"), ("5%", "5"), ("$5", "€5"), ("10:30", "10.30"), ("5!", "5"),
    ("5'", "5"), ("5'", '5"'), ("10⁵", "105"), ("1/2", "1-2"), ("~5", "5"), ("±5", "5"),
    ("No!", "No?"), ("You can do it.", "You can do it?"), ("don't", "dont"), ("#1", "1"),
]  # fmt: skip
ALIKE = [
    ("Hello.", "hello"), ("Same  text!", "same text"), ("Yes, no", "yes no"), ("yes,no", "yes no"),
    ("“Hi” there", '"hi" there'), ("'hello'!", "hello"), ("it’s", "it's"), ("«oui»", "oui"),
    ("a – b", "a - b"), ("−3.5", "-3.5"), ("−3.5.", "–3.5"), ("top-up", "Top up"),
    ("e‑mail", "e mail"),
    ("wait… what", "wait what"), ("Note: call me", "note call me"), ("what ?", "What??"),
    ("（see above）。", "(see above)"), ("Ｃ＋＋", "c++"), ("Straße", "STRASSE"), ("e\u0301", "é"),
    ("❤️ it", "❤ it"), ("hi 👍🏽", "hi👍"), ("exam\u00adple", "example"), ("a\tb\u3000c", "a b c"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), APART)
def test_texts_that_differ_in_a_sign_are_two(one: str, other: str) -> None:
    assert form(one) != form(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_ways_to_write_the_same_are_one(one: str, other: str) -> None:
    assert form(one) == form(other)


def test_null_stays_null_and_nothing_becomes_nothing() -> None:
    texts = pl.DataFrame({"t": [None, "", " ... ", "?"]}).select(with_signs(pl.col("t")))["t"]
    assert texts.to_list() == [None, "", "...", "?"]


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("words", "C++", "C#", True),
        ("signs", "US", "us", True),
        ("exact", "US", "us", False),
        ("exact", "it.", "it", False),
        ("exact", "e\u0301 ", " é", True),
    ],
)
def test_a_key_chooses_the_form(name: SameText, one: str, other: str, same: bool) -> None:
    assert (form(one, name) == form(other, name)) is same


SIGNS = st.text(list("aBß5 .,;:!?'\"-_+=()<>#👍🏽❤⁵½\u200d\u00ad…“’–，。\u0301\n"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(SIGNS, st.text(max_size=12)), min_size=1, max_size=30))
def test_the_form_is_stable_and_finer_than_the_words(texts: list[str]) -> None:
    once = pl.DataFrame({"t": texts}).with_columns(s=with_signs(pl.col("t")))
    assert once.select(with_signs(pl.col("s"))).to_series().equals(once["s"])
    # Groups are words: what is one text is never on two sides.
    usual = once.filter(~pl.col("t").str.contains(r"[\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}]"))
    words = usual.select("s", w=normalise(pl.col("t"))).filter(pl.col("w").str.contains(r"\pL|\pN"))
    assert words.select(normalise(pl.col("s"))).to_series().equals(words["w"], null_equal=True)


# --- human rows -----------------------------------------------------------------------------------


def read(rows: list[tuple[str, str]], same_text: SameText = "signs") -> list[str | None]:
    """The reasons of the rows, in order."""
    task = Classification("body", "topic", min_chars=1, same_text=same_text)
    kept, rejects = task.read_human(raw([{"body": b, "topic": t} for b, t in rows]))
    assert kept.height + rejects.height == len(rows)
    found = dict(rejects.select("source_row", "reason").iter_rows())
    return [found.get(place) for place in range(1, len(rows) + 1)]


@pytest.mark.parametrize(("one", "other"), APART)
def test_rows_that_differ_in_a_sign_neither_conflict_nor_repeat(one: str, other: str) -> None:
    assert read([(one, "a"), (other, "b")]) == [None, None]
    assert read([(one, "a"), (other, "a")]) == [None, None]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_rows_of_one_text_conflict_or_repeat(one: str, other: str) -> None:
    assert read([(one, "a"), (other, "b")]) == ["conflicting_labels"] * 2
    assert read([(one, "a"), (other, "a")]) == [None, "duplicate"]


def test_the_key_decides_what_conflicts() -> None:
    rows = [("I write C++", "a"), ("I write C#", "b"), ("US", "a"), ("us", "b")]
    assert read(rows) == [None, None, "conflicting_labels", "conflicting_labels"]
    assert read(rows, "words") == ["conflicting_labels"] * 4
    assert read(rows, "exact") == [None] * 4


def test_texts_of_the_same_words_stay_in_one_group() -> None:
    kept, _ = TASK.read_human(
        raw([{"body": ":) ok", "topic": "a"}, {"body": ":( ok", "topic": "b"}])
    )
    assert kept["group"].to_list() == ["ok", "ok"]


# --- near-copies across labels --------------------------------------------------------------------

UP, DOWN = "increase the volume", "decrease the volume"
LONG = (
    "hello, since the last update of the app my speaker in the kitchen starts to play the radio "
    "every morning at seven although nobody asked it to and i would like to {} that"
)
OPPOSITES = [
    (UP, DOWN), ("turn on the lights in the kitchen", "turn off the lights in the kitchen"),
    ("please lock the front door", "please unlock the front door"),
    ("i can log in to my account", "i cannot log in to my account"),
    ("i was charged before the trial", "i was charged after the trial"),
    ("move money from savings to checking", "move money from checking to savings"),
    ("请把客厅的音量调高一点好吗", "请把客厅的音量调低一点好吗"),
    ("it runs if x == y in the first loop", "it runs if x != y in the first loop"),
    ("the new version is out today :)", "the new version is out today :("),
]  # fmt: skip


def rows(*texts: tuple[str, str]) -> pl.DataFrame:
    made = pl.DataFrame(list(texts), schema={"text": pl.String, "label": pl.String}, orient="row")
    return with_record_id(made, TASK.payload, kind="c")


USUAL = ScreenRules(0.8, 0.6)


def judged(
    texts: list[tuple[str, str]],
    rules: ScreenRules = USUAL,
    side: str = "",
    known: pl.DataFrame | None = None,
) -> list[tuple[str | None, str | None]]:
    """Reason and detail of each text; ``known``: the rows of one side."""
    sides = dict.fromkeys(("train", "validation", "holdout"), rows())
    if known is not None:
        sides[side] = known
    made = candidates([(0, label, text) for text, label in texts])
    found = judge(made, References(**sides), rules, TASK)
    verdicts = found.select("text", "reason", "detail").iter_rows()
    told = {text: (reason, detail) for text, reason, detail in verdicts}
    return [told[text] for text, _ in texts]


@pytest.mark.parametrize(("one", "other"), OPPOSITES)
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_opposites_of_another_label_are_no_copies_of_each_other(
    one: str, other: str, threshold: float
) -> None:
    rules = ScreenRules(threshold, threshold)
    assert judged([(one, "a"), (other, "b")], rules) == [(None, None)] * 2
    assert judged([(one, "a")], rules, "train", rows((other, "b"))) == [(None, None)]
    if form(one, "words") != form(other, "words"):
        for side in ("holdout", "validation"):
            unseen = rows((other, "b"))
            assert judged([(one, "a")], rules, side, unseen) == [(None, None)]
        assert leaks(rows((one, "a")), unseen, threshold=threshold, stratum="label").is_empty()


def test_a_sign_apart_of_one_label_is_one_text_only_by_its_words() -> None:
    texts = [("x == y", "a"), ("x != y", "a")]
    assert judged(texts) == [(None, None)] * 2
    [_, (reason, detail)] = judged(texts, ScreenRules(0.8, 0.6, "words"))
    assert (reason, (detail or "").startswith("1.000 of ")) == ("near_duplicate", True)


def test_a_copy_of_one_label_is_refused_as_before() -> None:
    text = "turn the volume of the radio up a bit"
    [(reason, detail)] = judged([(text + " now", "a")], side="train", known=rows((text, "a")))
    assert reason == "near_copy_of_human"
    assert "another label" not in str(detail)
    assert (
        judged([(DOWN, "a")], side="holdout", known=rows((UP, "a")))[0][0] == "near_copy_of_holdout"
    )


@pytest.mark.parametrize("side", ["train", "validation", "holdout"])
@pytest.mark.parametrize(
    ("text", "of"), [(UP, UP.upper()), (LONG.format("stop"), LONG.format("end"))]
)
def test_a_reject_against_a_row_of_another_label_says_so(side: str, text: str, of: str) -> None:
    known = rows((of, "b"))
    [(reason, detail)] = judged([(text, "a")], side=side, known=known)
    assert reason == f"near_copy_of_{side.replace('train', 'human')}"
    assert str(detail).endswith(f" of {known['record_id'][0]}, which has another label: b")


def test_a_repeat_of_an_earlier_row_of_another_label_says_so() -> None:
    [_, (reason, detail)] = judged([(UP, "a"), (UP + ".", "b")])
    assert reason == "near_duplicate"
    assert str(detail).endswith("which has another label: a")


def test_the_same_label_is_named_first_among_equals() -> None:
    known = rows((UP, "b"), (UP + ".", "a"))
    [(_, detail)] = judged([(UP + "!", "a")], side="train", known=known)
    assert "another label" not in str(detail)


# --- the same rule everywhere ---------------------------------------------------------------------


def test_opposites_are_used_on_both_sides_and_no_check_objects() -> None:
    pairs = [
        (f"{verb} the {what}", label)
        for what in ("volume", "brightness", "heating", "speed", "contrast", "bass", "fan", "flow")
        for verb, label in (("increase", "up"), ("decrease", "down"))
    ]
    human = rows(*pairs).with_columns(group="text", origin=pl.lit("human"))
    parts = partition(human, PartitionRules(0.4, 0.2, "1", 0.7), text="text", stratum="label")
    assert parts.set_aside.is_empty()
    train = parts.human_train.filter(pl.col("split") == "train")
    unseen = pl.concat([parts.holdout, parts.human_train.filter(pl.col("split") == "validation")])
    # The case is there, and it would be set aside if labels did not count.
    assert leaks(train, unseen, threshold=0.7).height
    assert leaks(train, unseen, threshold=0.7, stratum="label").is_empty()
    prompts = pl.Series([f"Write one like these.\n- {text}" for text in train["text"]])
    told = {"threshold": 0.7, "labels": train["label"], "stratum": "label"}
    assert prompt_leaks(prompts, unseen, threshold=0.7).height
    assert prompt_leaks(prompts, unseen, **told).is_empty()  # type: ignore[arg-type]
    said = HumanRows(
        pl.DataFrame(schema=IDS), human, parts.holdout,
        parts.human_train.filter(pl.col("split") == "validation"), "text", 0.7, "label",
    )  # fmt: skip
    imported = train.select(seed_ids=pl.concat_list("text"))
    assert resolve_parents(imported, said)["problem"].null_count() == train.height


def test_a_prompt_that_shows_the_very_text_leaks_whatever_the_label() -> None:
    prompts, labels = pl.Series([f"- {UP}", f"- {UP}"]), pl.Series(["a", "b"])
    found = prompt_leaks(prompts, rows((UP, "b")), threshold=0.6, labels=labels, stratum="label")
    assert found["prompt"].to_list() == [0, 1]


# --- exactness ------------------------------------------------------------------------------------

words = st.sampled_from(["oil", "leak", "leaks", "no", "pump", "漏", "水"])
labelled = st.lists(
    st.tuples(st.lists(words, max_size=8).map(" ".join), st.sampled_from(["a", "b", None])),
    max_size=12,
)


def grams(text: str) -> set[str]:
    padded = text.ljust(5)
    return {padded[i : i + 5] for i in range(len(padded) - 4)}


def neighbours(text: str) -> set[tuple[str, str]]:
    spaced = "".join(f" {c} " if c in "漏水" else c for c in text)
    said = ["<", *spaced.split(), ">"]
    return set(pairwise(said))


def alike(one: tuple[str, str | None], other: tuple[str, str | None], threshold: float) -> bool:
    (text, label), (text2, label2) = one, other
    a, b = grams(text), grams(text2)
    if len(a & b) < round(threshold * len(a | b), 9):
        return False
    if label is None or label2 is None or label == label2:
        return True
    c, d = neighbours(text), neighbours(text2)
    return 20 * len(c & d) >= 17 * len(c | d)


def kept(texts: list[tuple[str, str | None]], threshold: float) -> Iterator[int]:
    so_far: list[tuple[str, str | None]] = []
    for place, one in enumerate(texts):
        if not any(alike(one, other, threshold) for other in so_far):
            so_far.append(one)
            yield place


@settings(deadline=None, max_examples=60)
@given(labelled, labelled, st.sampled_from([0.2, 0.5, 0.8]))
def test_labels_are_compared_exactly(
    texts: list[tuple[str, str | None]], known: list[tuple[str, str | None]], threshold: float
) -> None:
    def column(pairs: list[tuple[str, str | None]], place: int) -> pl.Series:
        return pl.Series([pair[place] for pair in pairs], dtype=pl.String)

    found = near_copies(
        column(texts, 0),
        column(known, 0),
        threshold=threshold,
        labels=column(texts, 1),
        reference_labels=column(known, 1),
    )
    expected = [n for n, t in enumerate(texts) if any(alike(t, k, threshold) for k in known)]
    assert found["row"].to_list() == expected
    for row, match, _ in found.rows():
        assert alike(texts[row], known[match], threshold)
    dropped = greedy_unique(column(texts, 0), threshold=threshold, labels=column(texts, 1))
    assert sorted({*range(len(texts))} - {*dropped["row"]}) == list(kept(texts, threshold))


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["signs", "words", "exact"])
def test_the_key_reaches_human_rows_and_the_screen_and_no_leak_check(
    tmp_path: Path, chosen: SameText
) -> None:
    folder = DatasetFolder(tmp_path / "tickets")
    folder.write()
    before = load_dataset(folder.folder)
    folder.edit("validate.same_text", chosen)
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    assert before is not None
    assert Classification.from_spec(dataset.spec).same_text == chosen
    assert screen_rules(dataset).same_text == chosen
    moved = {s for s in SHAPES if code_version(before, s) != code_version(dataset, s)}
    assert moved == (set() if chosen == "signs" else {"human", "candidates", "synthetic"})
