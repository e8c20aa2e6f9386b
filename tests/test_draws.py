"""Training samples drawn again: which counts vary, what stays together, and what never matters."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.lifecycle.draws import clustered, counts_are_fixed, training_draws

DRAWS = 400


def rows(
    labels: list[str], *, human: bool = True, clusters: list[str] | None = None
) -> pl.DataFrame:
    names = clusters or [f"{human}-{place}" for place in range(len(labels))]
    return pl.DataFrame({"cluster": names, "label": labels}).with_columns(human=pl.lit(human))


def times(frame: pl.DataFrame, **options: int) -> np.ndarray:
    """(draws, rows): how often each row of ``frame`` is drawn."""
    draws = training_draws(frame, draws=DRAWS, seed=3, **options)
    return np.stack(list(draws.factors(frame["cluster"].to_list())))


def totals(frame: pl.DataFrame, label: str, **options: int) -> np.ndarray:
    """Rows of ``label`` in each draw."""
    return times(frame, **options)[:, (frame["label"] == label).to_numpy()].sum(axis=1)


NATURAL = rows(["a"] * 60 + ["b"] * 25 + ["c"] * 2)


def test_natural_labels_vary_as_samples_of_the_source_would() -> None:
    found = totals(NATURAL, "b")
    assert found.mean() == pytest.approx(25, abs=1)
    assert found.var() == pytest.approx(87 * 25 / 87 * 62 / 87, rel=0.25)
    assert (times(NATURAL).sum(axis=1) == 87).all()


def test_a_rare_natural_label_is_lost_as_often_as_chance_has_it() -> None:
    assert (totals(NATURAL, "c") == 0).mean() == pytest.approx((1 - 2 / 87) ** 87, abs=0.05)


def test_how_often_a_rare_label_comes_is_learnt_from_the_holdout_as_well() -> None:
    rare = rows(["a"] * 98 + ["b"] * 2)
    alike, other = {"a": 940, "b": 60}, {"a": 300, "b": 700}
    draws = {
        name: training_draws(rare, draws=DRAWS, seed=3, elsewhere=elsewhere)
        for name, elsewhere in (("alike", alike), ("other", other))
    }
    clusters = rare["cluster"].to_list()
    found = {name: np.stack(list(one.factors(clusters)))[:, 98:] for name, one in draws.items()}
    assert found["alike"].sum(axis=1).mean() == pytest.approx(100 * 62 / 1_100, abs=0.5)
    # A holdout of another source says nothing about these rows.
    assert found["other"].sum(axis=1).mean() == pytest.approx(2, abs=0.3)


def test_counts_that_were_chosen_stay() -> None:
    even = rows(["a"] * 15 + ["b"] * 15 + ["c"] * 15)
    assert all((totals(even, label) == 15).all() for label in "abc")
    assert times(even).var() > 0.5


def test_generated_counts_stay_since_a_plan_decided_them() -> None:
    calls = [f"call\x1f{place}" for place in range(34)]
    made = rows(["a"] * 30 + ["b"] * 4, human=False, clusters=calls)
    assert (totals(pl.concat([NATURAL, made]), "c") != 2).any()
    assert (totals(made, "b") == 4).all()


def test_imported_counts_vary_as_those_of_human_rows_do() -> None:
    made = rows(["a"] * 30 + ["b"] * 4, human=False)
    assert totals(made, "b").var() > 2
    assert (times(pl.concat([NATURAL, made]))[:, NATURAL.height :].sum(axis=1) == 34).all()


def test_rows_taken_of_each_label_first_stay_and_the_rest_varies() -> None:
    found = totals(NATURAL, "c", first_of_each=2)
    assert (found == 2).all()
    assert totals(NATURAL, "b", first_of_each=2).min() >= 2
    assert totals(NATURAL, "b", first_of_each=2).var() > 5
    assert totals(NATURAL, "b", first_of_each=2).mean() == pytest.approx(25, abs=1)


def test_rows_of_one_cluster_are_drawn_together() -> None:
    clusters = [f"call {place // 5}" for place in range(40)]
    found = times(rows(["a"] * 20 + ["b"] * 20, human=False, clusters=clusters))
    for place in range(40):
        assert (found[:, place] == found[:, place - place % 5]).all()


def test_a_child_is_drawn_with_its_parent() -> None:
    children = rows(["a"] * 6, human=False, clusters=[f"True-{place}" for place in range(6)])
    found = times(pl.concat([NATURAL, children]))
    assert (found[:, :6] == found[:, 87:]).all()


def test_the_order_of_rows_and_other_arms_do_not_matter() -> None:
    made = rows(["a"] * 30, human=False)
    both = pl.concat([NATURAL, made])
    shuffled = both.sample(fraction=1, shuffle=True, seed=1)
    names = NATURAL["cluster"].to_list()
    one = training_draws(both, draws=5, seed=1)
    other = training_draws(shuffled, draws=5, seed=1)
    alone = training_draws(NATURAL, draws=5, seed=1)
    for a, b, c in zip(one.factors(names), other.factors(names), alone.factors(names), strict=True):
        assert (a == b).all()
        assert (a == c).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    st.lists(st.sampled_from("abcd"), max_size=30),
    st.integers(0, 5),
)
def test_every_draw_has_as_many_clusters_as_the_sample(
    human: list[str], made: list[str], first: int
) -> None:
    frame = pl.concat([rows(human), rows(made, human=False)])
    draws = training_draws(frame, draws=3, seed=1, first_of_each=first)
    for factors in draws.factors(frame["cluster"].to_list()):
        assert factors.sum() == frame.height
        assert factors[: len(human)].sum() == len(human)


@pytest.mark.parametrize(
    ("counts", "fixed"),
    [
        ([15] * 12, True),
        ([15, 15, 15, 15, 14, 15, 15, 15, 15, 15, 15, 15], True),
        ([80, 40, 20, 10, 5, 1], False),
        ([12, 18, 15, 9, 21, 14, 16, 13, 17, 11, 15, 19], False),
        ([50], False),
        ([], False),
        ([30, 30], True),
        ([30, 34], False),
    ],
)
def test_counts_more_even_than_chance_are_taken_as_chosen(counts: list[int], fixed: bool) -> None:
    assert counts_are_fixed(counts) is fixed


def test_samples_of_equally_frequent_labels_are_rarely_taken_as_chosen() -> None:
    generator = np.random.default_rng(0)
    found = [
        counts_are_fixed(generator.multinomial(200, [0.1] * 10).tolist()) for _ in range(2_000)
    ]
    assert np.mean(found) < 0.02


TRAIN = pl.DataFrame(
    {
        "record_id": ["h1", "h2", "g1", "g2", "i1", "i2", "i3"],
        "request_id": [None, None, "r1", "r1", "import:x", "import:x", "import:x"],
        "seed_ids": [None, None, ["h1"], ["h1"], ["h1"], ["h2", "h1"], []],
    },
    schema_overrides={"seed_ids": pl.List(pl.String)},
)


def test_calls_and_parents_are_clusters() -> None:
    found = clustered(TRAIN, None)["cluster"].to_list()
    assert found[:2] == ["h1", "h2"]
    assert found[2] == found[3] != "r1"
    assert found[4] == "h1"
    assert found[5] == "h1\x1fh2"
    assert found[6] == "i3"


def test_a_group_takes_its_rows_and_their_children_along() -> None:
    groups = pl.DataFrame({"record_id": ["h1", "h2"], "group": ["m7", "m7"]})
    found = clustered(TRAIN, groups)["cluster"].to_list()
    assert found[0] == found[1] == found[4] != "h1"
    assert found[6] == "i3"
    assert clustered(TRAIN.select("record_id"), groups)["cluster"].to_list()[:2] == found[:2]
