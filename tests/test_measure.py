"""What synthetic rows are worth: the verdict, its intervals, and what must not change them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from synth_assets.errors import UsageError
from synth_assets.lifecycle import students
from synth_assets.lifecycle.contribution import ARMS, Contribution
from synth_assets.lifecycle.measure import measure
from synth_assets.lifecycle.resample import (
    Estimate,
    drawn_scores,
    exponential,
    fit_scores,
    interval,
    keys_of,
    weighted_scores,
)
from synth_assets.lifecycle.verdicts import verdict_of
from synth_assets.report.picture import contribution_markdown

WORDS = {
    "Engine": "engine oil smoke misfire piston idle",
    "Bucket": "bucket tooth lip shroud crack weld",
    "Radiator": "radiator coolant fan overheat core cap",
}
FILLER = "replace check lh rh needs repair leaking on the found broken"


def rows(counts: dict[str, int], *, seed: int, origin: str, weight: float = 1.0) -> pl.DataFrame:
    """Short word salads, a word of the label's among filler and, now and then, of another's."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for label, count in counts.items():
        for _ in range(count):
            other = generator.choice(list(WORDS))
            spoken = label if generator.random() < 0.9 else other
            own = generator.choice(WORDS[spoken].split(), 1)
            texts.append(" ".join([*own, *generator.choice(FILLER.split(), 3)]))
            labels.append(label)
    return frame(texts, labels, origin=f"{origin}{seed}", weight=weight)


def frame(texts: list[str], labels: list[str], *, origin: str, weight: float = 1.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "record_id": pl.Series(
                [f"{origin}-{place}" for place in range(len(texts))], dtype=pl.String
            ),
            "text": pl.Series(texts, dtype=pl.String),
            "label": pl.Series(labels, dtype=pl.String),
            "weight": pl.Series([weight] * len(texts), dtype=pl.Float64),
            "origin": pl.Series([origin] * len(texts), dtype=pl.String),
        }
    )


NONE = frame([], [], origin="none")
HUMAN = rows({"Engine": 40, "Bucket": 25, "Radiator": 1}, seed=1, origin="human")
HOLDOUT = rows({"Engine": 60, "Bucket": 40, "Radiator": 40}, seed=2, origin="human")
GOOD = rows({"Radiator": 30}, seed=3, origin="synthetic")


def measured(
    human: pl.DataFrame = HUMAN,
    synthetic: pl.DataFrame = GOOD,
    holdout: pl.DataFrame = HOLDOUT,
    *,
    student: str = "tfidf_logreg",
    repeats: int = 10,
    seed: int = 5,
) -> Contribution:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measure(
            human,
            synthetic,
            pl.concat([human, synthetic]),
            holdout,
            text="text",
            label="label",
            student=student,
            repeats=repeats,
            seed=seed,
        )


def arm(found: Contribution, name: str) -> dict[str, object]:
    return found.arms.row(by_predicate=pl.col("arm") == name, named=True)


def difference(found: Contribution, name: str = "blend - human") -> dict[str, float]:
    chosen = (pl.col("comparison") == name) & (pl.col("metric") == "macro_f1")
    return found.differences.row(by_predicate=chosen, named=True)


# --- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("student", list(students.STUDENTS))
def test_informative_rows_for_a_rare_class_help(student: str) -> None:
    found = measured(student=student)
    assert found.verdict == "helps"
    assert difference(found)["low"] > 0
    radiator = found.labels.row(by_predicate=pl.col("label") == "Radiator", named=True)
    assert radiator["delta_low"] > 0


@pytest.mark.parametrize("student", list(students.STUDENTS))
def test_rows_with_shuffled_labels_hurt(student: str) -> None:
    human = rows({"Engine": 30, "Bucket": 30, "Radiator": 30}, seed=1, origin="human")
    made = rows({"Engine": 200, "Bucket": 200, "Radiator": 200}, seed=4, origin="synthetic")
    shuffled = made.with_columns(pl.col("label").shuffle(seed=9))
    found = measured(human, shuffled, student=student)
    assert found.verdict == "hurts"
    assert difference(found)["high"] < 0
    assert "Caution" in found.sentence
    assert "got worse" in found.sentence


@pytest.mark.parametrize("student", list(students.STUDENTS))
def test_a_copy_of_the_human_rows_makes_no_measurable_difference(student: str) -> None:
    human = rows({"Engine": 30, "Bucket": 20, "Radiator": 10}, seed=1, origin="human")
    copies = human.with_columns(pl.format("copy-{}", "record_id").alias("record_id"))
    found = measured(human, copies, student=student)
    assert found.verdict == "no_measurable_difference"


def test_copies_equal_human_rows_of_the_same_total_weight() -> None:
    copies = HUMAN.with_columns(pl.format("copy-{}", "record_id").alias("record_id"))
    found = measured(HUMAN, copies, student="tfidf_nb")
    control = difference(found, "blend - human_upsampled")
    assert control["value"] == 0
    assert "2 times" in str(arm(found, "human_upsampled")["note"])


def test_a_gain_that_volume_explains_is_said_to_be_volume() -> None:
    # The rows add nothing but weight; a student under strong regularisation gains by that alone.
    human = rows({"Engine": 60, "Bucket": 8, "Radiator": 5}, seed=1, origin="human", weight=0.05)
    copies = human.with_columns(
        pl.format("copy-{}", "record_id").alias("record_id"), weight=pl.lit(2.0)
    )
    found = measured(human, copies)
    assert difference(found)["low"] > 0
    assert found.verdict == "no_measurable_difference"
    assert found.sentence.startswith("No measurable gain beyond volume and class balance:")
    assert "may be volume alone" in found.sentence


def test_a_gain_that_class_weights_give_is_said_to_be_class_balance() -> None:
    # Copies of the rare rows bring no information, only another balance of the classes.
    human = rows({"Engine": 160, "Bucket": 120, "Radiator": 10}, seed=1, origin="human")
    rare = human.filter(pl.col("label") == "Radiator")
    copies = pl.concat(
        rare.with_columns(
            pl.format("copy{}-{}", pl.lit(n), "record_id").alias("record_id"),
            cluster=pl.col("record_id"),
        )
        for n in range(12)
    )
    found = measured(human.with_columns(cluster="record_id"), copies)
    assert difference(found)["low"] > 0
    assert abs(difference(found, "blend - human_balanced")["value"]) < 0.01
    assert found.verdict == "no_measurable_difference"
    assert "balance of the classes" in found.sentence
    assert "class weights on the human rows give it without a synthetic row" in found.sentence
    assert "No measurable gain beyond class balance" in contribution_markdown(found)


def test_balanced_human_rows_have_the_label_totals_of_the_blend() -> None:
    # Without any text to tell labels apart, only their weights decide what is predicted.
    human = frame(["same text"] * 12, ["Engine"] * 10 + ["Bucket"] * 2, origin="human")
    made = frame(["same text"] * 20, ["Bucket"] * 20, origin="synthetic")
    held = frame(["same text"] * 20, ["Bucket"] * 20, origin="held")
    found = measured(human, made, held)
    assert arm(found, "human")["accuracy"] == 0
    assert arm(found, "human_upsampled")["accuracy"] == 0
    assert arm(found, "human_balanced")["accuracy"] == arm(found, "blend")["accuracy"] == 1
    assert "by 1 to 11" in str(arm(found, "human_balanced")["note"])


def test_a_label_without_human_rows_cannot_be_balanced_and_is_counted() -> None:
    made = rows({"Radiator": 20}, seed=3, origin="synthetic")
    human = rows({"Engine": 30, "Bucket": 20}, seed=1, origin="human")
    note = str(arm(measured(human, made), "human_balanced")["note"])
    assert "1 labels of the blend have no human row" in note


def test_one_held_out_row_cannot_make_a_verdict() -> None:
    # The only held-out Radiator flips from F1 0 to 1 in every draw: a third of macro-F1.
    human = frame(
        ["engine oil", "engine smoke", "bucket tooth", "bucket lip"] * 5,
        ["Engine", "Engine", "Bucket", "Bucket"] * 5,
        origin="human",
    )
    made = frame(["radiator fan leak", "radiator core leak"] * 10, ["Radiator"] * 20, origin="made")
    held = frame(
        ["engine oil"] * 20 + ["bucket lip"] * 20 + ["radiator fan leak"],
        ["Engine"] * 20 + ["Bucket"] * 20 + ["Radiator"],
        origin="held",
    )
    found = measured(human, made, held)
    assert difference(found)["value"] > 0.3
    assert found.verdict == "no_measurable_difference"
    assert "cannot carry a verdict" in found.sentence


def test_few_held_out_rows_are_cautioned_against() -> None:
    held = rows({"Engine": 12, "Bucket": 8, "Radiator": 2}, seed=2, origin="human")
    sentence = measured(holdout=held).sentence
    assert "22 held-out human rows" in sentence
    assert "fewer than 30 held-out rows" in sentence
    assert "Radiator 2" in sentence


def test_a_label_in_the_sentence_is_one_bounded_line() -> None:
    nasty = "bad\nlabel\x00" + "x" * 500
    held = pl.concat([HOLDOUT, frame(["radiator"], [nasty], origin="nasty")])
    sentence = measured(holdout=held).sentence
    assert sentence.isprintable()
    assert "x" * 60 not in sentence


# --- arms that cannot be measured, and odd ones -----------------------------------------------


def test_without_synthetic_rows_there_is_no_difference_and_the_arm_says_why() -> None:
    found = measured(synthetic=NONE)
    assert arm(found, "synthetic")["macro_f1"] is None
    assert arm(found, "synthetic")["note"] == "no training rows"
    assert found.verdict == "no_measurable_difference"
    assert difference(found)["value"] == difference(found)["low"] == difference(found)["high"] == 0


def test_without_human_rows_nothing_is_measurable() -> None:
    found = measured(human=NONE)
    assert found.verdict == "not_measurable"
    assert "human arm: no training rows" in found.sentence
    assert arm(found, "blend")["macro_f1"] is not None


def test_without_held_out_rows_nothing_is_measurable() -> None:
    found = measured(holdout=NONE)
    assert found.verdict == "not_measurable"
    assert found.arms["macro_f1"].null_count() == len(ARMS)
    assert found.labels["delta"].null_count() == found.labels.height


def test_nothing_at_all_is_not_measurable() -> None:
    found = measured(NONE, NONE, NONE)
    assert found.verdict == "not_measurable"
    assert found.labels.is_empty()


def test_an_arm_of_one_label_predicts_it() -> None:
    found = measured()
    assert arm(found, "synthetic")["note"] == "a single label, predicted for every row"
    assert arm(found, "synthetic")["accuracy"] == round(40 / 140, 6)


def test_a_held_out_label_never_trained_on_scores_zero() -> None:
    held = pl.concat(
        [
            HOLDOUT,
            rows({"Radiator": 10}, seed=8, origin="human").with_columns(label=pl.lit("Hydraulics")),
        ]
    )
    found = measured(holdout=held)
    row = found.labels.row(by_predicate=pl.col("label") == "Hydraulics", named=True)
    assert (row["human_rows"], row["synthetic_rows"], row["holdout_rows"]) == (0, 0, 10)
    assert row["f1_blend"] == row["delta"] == 0


def test_a_label_without_held_out_rows_is_listed_and_not_scored() -> None:
    held = HOLDOUT.filter(pl.col("label") != "Radiator")
    found = measured(holdout=held)
    row = found.labels.row(by_predicate=pl.col("label") == "Radiator", named=True)
    assert (row["human_rows"], row["synthetic_rows"], row["holdout_rows"]) == (1, 30, 0)
    assert row["f1_blend"] is None
    assert "Not scored, for want of held-out rows: Radiator" in found.sentence


def test_unusable_rows_are_left_out_and_counted() -> None:
    bad = frame(["engine"] * 4, ["Engine"] * 4, origin="bad").with_columns(
        weight=pl.Series([0.0, float("nan"), -1.0, None])
    )
    found = measured(human=pl.concat([HUMAN, bad]))
    assert arm(found, "human")["rows"] == HUMAN.height
    assert "4 rows without id, text, label or positive weight left out" in str(
        arm(found, "human")["note"]
    )


def test_texts_without_a_single_feature_are_a_note_not_a_crash() -> None:
    blank = frame(["", " ", ""], ["Engine", "Bucket", "Engine"], origin="blank")
    found = measured(human=blank)
    assert arm(found, "human")["note"] == "no word or character sequence in any text"
    assert found.verdict == "not_measurable"


def test_a_fit_that_does_not_converge_is_a_note_not_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(students, "MAX_ITERATIONS", 1)
    assert arm(measured(), "human")["note"] == "stopped at 1 iterations before converging"


def test_an_unknown_student_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="tfidf_logreg, tfidf_nb"):
        measured(student="bert")


def test_one_repeat_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        measured(repeats=1)


# --- determinism ------------------------------------------------------------------------------


def table_hash(found: Contribution) -> str:
    return found.table().write_json()


def test_row_order_does_not_matter() -> None:
    shuffled = [one.sample(fraction=1, shuffle=True, seed=3) for one in (HUMAN, GOOD, HOLDOUT)]
    assert table_hash(measured(*shuffled)) == table_hash(measured())


def test_another_seed_moves_the_intervals_and_not_the_estimates() -> None:
    one, other = measured(seed=1), measured(seed=2)
    assert one.arms["macro_f1"].equals(other.arms["macro_f1"])
    assert not one.arms["macro_f1_low"].equals(other.arms["macro_f1_low"])


def test_the_number_of_threads_does_not_matter() -> None:
    program = (
        "from tests.test_measure import measured, table_hash\n"
        "import hashlib; print(hashlib.sha256(table_hash(measured()).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ
            | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), n)
            | {"PYTHONHASHSEED": n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    }
    assert len(seen) == 1


def test_the_verdict_can_be_read_back_from_the_table() -> None:
    for found in (measured(), measured(holdout=NONE)):
        assert verdict_of(found.table()) == (found.verdict, found.sentence)


def test_the_table_keeps_every_score_under_a_label_called_overall() -> None:
    renamed = [
        one.with_columns(pl.col("label").replace("Engine", "overall"))
        for one in (HUMAN, GOOD, HOLDOUT)
    ]
    table = measured(*renamed).table()
    assert table.select("scope", "label", "arm", "metric").is_unique().all()
    overall = table.filter(scope="overall")
    assert overall["label"].null_count() == overall.height


def test_fits_of_one_arm_do_not_depend_on_each_other() -> None:
    codes = np.array([0, 1] * 30, dtype=np.int64)
    texts = HUMAN["text"].head(60).to_list()
    draws = [np.random.default_rng(n).exponential(size=60) for n in (1, 2)]
    for student in students.STUDENTS.values():
        arms = [student.prepare(texts, codes, np.ones(60)) for _ in range(2)]
        features = arms[0].encode(HOLDOUT["text"].to_list())
        straight = [arms[0].fit(draw).predict(features) for draw in draws]
        backward = [arms[1].fit(draw).predict(features) for draw in reversed(draws)]
        assert all((a == b).all() for a, b in zip(straight, reversed(backward), strict=True))


def test_a_refit_moves_away_from_its_warm_start() -> None:
    # Under a slack tolerance every refit would stop where it starts, and intervals collapse.
    texts, codes = HUMAN["text"].to_list(), np.arange(HUMAN.height, dtype=np.int64) % 3
    prepared = students.student("tfidf_logreg").prepare(texts, codes, np.ones(len(texts)))
    features = prepared.encode(HOLDOUT["text"].to_list())
    draw = np.random.default_rng(0).exponential(size=len(texts))
    assert (prepared.fit().predict(features) != prepared.fit(draw).predict(features)).any()


# --- draws, scores, intervals -----------------------------------------------------------------


@dataclass(frozen=True)
class Exam:
    truth: np.ndarray
    predicted: np.ndarray
    weights: np.ndarray
    labels: int


@st.composite
def exams(draw: st.DrawFn) -> Exam:
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, labels = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    truth = generator.integers(0, labels, size)
    predicted = generator.integers(-1, labels, (draw(st.integers(1, 3)), size))
    weights = generator.exponential(size=(size, draw(st.integers(1, 3))))
    return Exam(truth, predicted, weights, labels)


@settings(max_examples=50, deadline=None)
@given(exams())
def test_weighted_scores_equal_those_of_scikit_learn(exam: Exam) -> None:
    found = weighted_scores(exam.truth, exam.predicted, exam.weights, labels=exam.labels)
    for fit, predicted in enumerate(exam.predicted):
        for column, weights in enumerate(exam.weights.T):
            per_label = f1_score(
                exam.truth,
                predicted,
                labels=range(exam.labels),
                average=None,
                sample_weight=weights,
                zero_division=0.0,
            )
            np.testing.assert_allclose(found.f1[fit, :, column], per_label, atol=1e-12)
            np.testing.assert_allclose(found.macro_f1[fit, column], per_label.mean(), atol=1e-12)
            accuracy = accuracy_score(exam.truth, predicted, sample_weight=weights)
            np.testing.assert_allclose(found.accuracy[fit, column], accuracy, atol=1e-12)


def test_scores_do_not_depend_on_how_many_rows_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = np.arange(50) % 3
    keys = keys_of([str(n) for n in truth], seed=1, stream="x")
    whole = drawn_scores(truth, truth[None, ::-1], keys, labels=3, draws=20)
    monkeypatch.setattr("synth_assets.lifecycle.resample.CELLS_AT_ONCE", 100)
    parts = drawn_scores(truth, truth[None, ::-1], keys, labels=3, draws=20)
    np.testing.assert_allclose(whole.f1, parts.f1, rtol=1e-12)


def test_draws_are_standard_exponential_and_unrelated() -> None:
    keys = keys_of([f"row {n}" for n in range(20_000)], seed=1, stream="train")
    one, two = exponential(keys, 1), exponential(keys, 2)
    assert abs(one.mean() - 1) < 0.03
    assert abs(one.var() - 1) < 0.08
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert (one > 0).all()


def test_a_draw_belongs_to_the_record_and_not_to_its_place() -> None:
    both = exponential(keys_of(["a", "b"], seed=1, stream="train"), 7)
    alone = exponential(keys_of(["b"], seed=1, stream="train"), 7)
    assert both[1] == alone[0]
    assert both[1] != exponential(keys_of(["b"], seed=2, stream="train"), 7)[0]


def test_a_lead_by_a_handful_of_rows_does_not_clear_zero() -> None:
    keys = keys_of([f"row {n}" for n in range(200)], seed=3, stream="holdout")
    truth = np.zeros(200, dtype=np.int64)
    lows = {}
    for lead in (1, 4, 7):
        worse = truth.copy()
        worse[:lead] = -1
        scores = drawn_scores(truth, np.stack([truth, worse]), keys, labels=1, draws=4000)
        lead_drawn = scores.accuracy[0] - scores.accuracy[1]
        found = Estimate(lead_drawn, np.full(3, lead_drawn[0]))
        lows[lead] = interval(found, lowest=-1.0, difference=True).low
    assert lows[1] < 0
    assert lows[4] < 0
    assert lows[7] > 0


def test_refits_that_all_do_worse_widen_an_interval_without_moving_it() -> None:
    refits = 0.6 + np.linspace(-0.01, 0.01, 10)
    found = interval(Estimate(np.full(101, 0.8), refits), lowest=0.0)
    assert found.value == 0.8
    assert found.low < 0.8 < found.high
    assert found.low + found.high == pytest.approx(1.6)


def test_fewer_repeats_mean_wider_intervals() -> None:
    def width(repeats: int) -> float:
        refits = 0.5 + np.tile([-0.01, 0.01], repeats // 2)
        found = interval(Estimate(np.full(201, 0.5), refits), lowest=0.0)
        return found.high - found.low

    assert width(2) > width(4) > width(20)


def test_the_spread_of_a_label_of_few_rows_is_not_taken_for_small() -> None:
    truth = np.array([0, 1, 2] * 4)
    generator = np.random.default_rng(0)
    predicted = generator.integers(0, 3, (9, 12))
    keys = keys_of([str(n) for n in range(12)], seed=1, stream="holdout")

    def spread(*sizes: int) -> list[float]:
        scores = fit_scores(truth, predicted, keys, sizes=np.array(sizes), draws=5)
        return [float(scores.f1(code).refits.std()) for code in range(3)]

    plain = spread(0, 0, 0)  # labels without rows are left as they are
    assert spread(1, 2, 5) == pytest.approx(
        [plain[0] * 2**0.5, plain[1] * 2**0.5, plain[2] * 1.25**0.5]
    )


def test_a_label_is_as_scarce_as_in_the_scarcer_arm() -> None:
    truth = np.array([0, 1] * 5)
    predicted = np.random.default_rng(0).integers(0, 2, (7, 10))
    keys = keys_of([str(n) for n in range(10)], seed=1, stream="holdout")
    few, many = (
        fit_scores(truth, predicted, keys, sizes=np.array(sizes), draws=5)
        for sizes in ([2, 3], [200, 300])
    )
    assert np.abs(many.minus(few, "macro_f1").refits).max() == 0
    assert np.abs(many.f1_minus(few, 1).refits).max() == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Truth: the mean difference over fresh training samples, scored on a large fresh holdout.
    share = {"Engine": 20, "Bucket": 12, "Radiator": 4}
    large = rows({label: 10 * n for label, n in share.items()}, seed=7, origin="big")
    estimates, limits = [], []
    for trial in range(24):
        human = rows(share, seed=100 + trial, origin="human")
        made = rows({"Radiator": 8}, seed=900 + trial, origin="synthetic")
        held = rows({label: 3 * n for label, n in share.items()}, seed=500 + trial, origin="held")
        truth = measured(human, made, large, student="tfidf_nb", repeats=2)
        estimates.append(difference(truth)["value"])
        found = difference(measured(human, made, held, student="tfidf_nb", repeats=8))
        limits.append((found["low"], found["high"]))
    covered = np.mean([low <= np.mean(estimates) <= high for low, high in limits])
    # 20 of 24 or fewer has a probability of 3 % at 95 % coverage.
    assert covered >= 0.875
