"""Seeds cover their label, are typical of it, and depend on nothing but the rows."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import UsageError
from synth_assets.lifecycle import diversity
from synth_assets.lifecycle.diversity import Strategy, select_diverse

THEMES = {
    "oil": "oil leak at the main hydraulic pump of unit {}",
    "light": "left headlamp does not switch on, bulb {} blown",
    "seat": "operator seat torn, cushion number {} worn out",
    "radio": "two way radio has static on channel {}",
    "track": "track tension low, shoe {} missing bolts",
}


def themed(sizes: dict[str, int], label: str = "all") -> pl.DataFrame:
    rows = [
        (f"{label}-{theme}-{i:03d}", THEMES[theme].format(i * 7), label, theme)
        for theme, size in sizes.items()
        for i in range(size)
    ]
    return pl.DataFrame(rows, schema=["record_id", "text", "label", "theme"], orient="row")


def pick(
    rows: pl.DataFrame, count: int, strategy: Strategy = "diverse", seed: int = 1
) -> pl.DataFrame:
    return select_diverse(
        rows, text="text", stratum="label", per_stratum=count, seed=seed, strategy=strategy
    )


def distances(rows: pl.DataFrame, picks: pl.DataFrame) -> np.ndarray:
    vectors = diversity._vectors(rows["text"])
    chosen = rows.with_row_index().filter(pl.col("record_id").is_in(picks["record_id"].to_list()))
    return diversity._distances(vectors, chosen["index"].to_list()).min(axis=1)


def babble(count: int, seed: int) -> pl.DataFrame:
    """Texts of 25 themes of uneven size, each with a few words of its own and some of all."""
    rng = random.Random(seed)

    def words(number: int) -> list[str]:
        return [
            "".join(rng.choices("aeioubdgklmnprst", k=rng.randint(3, 8))) for _ in range(number)
        ]

    common, themes = words(80), [words(6) for _ in range(25)]
    sizes = [1 / (rank + 1) for rank in range(25)]
    texts = [
        " ".join(rng.sample(rng.choices(themes, sizes)[0], k=4) + rng.sample(common, k=3))
        for _ in range(count)
    ]
    ids = [f"r{i:04d}" for i in range(count)]
    return pl.DataFrame({"record_id": ids, "text": texts, "label": ["x"] * count})


def test_every_planted_cluster_gets_a_seed() -> None:
    rows = themed({"oil": 120, "light": 60, "seat": 20, "radio": 8, "track": 5})
    assert set(pick(rows, 5)["theme"].to_list()) == set(THEMES)


def test_the_first_seed_comes_from_the_largest_cluster() -> None:
    rows = themed({"light": 20, "oil": 120, "seat": 20})
    assert pick(rows, 3).sort("seed_rank")["theme"][0] == "oil"


def test_a_lone_oddity_of_a_large_stratum_is_no_seed() -> None:
    odd = themed({"oil": 1}).with_columns(
        record_id=pl.lit("0"), text=pl.lit("zqxj wvvw kkqz"), theme=pl.lit("odd")
    )
    rows = pl.concat([themed({"oil": 40, "light": 40}), odd])
    assert "odd" not in pick(rows, 6)["theme"].to_list()


def test_a_stratum_is_covered_better_than_by_chance() -> None:
    rows = babble(300, seed=5)
    chance = [distances(rows, pick(rows, 12, "random", seed)) for seed in range(12)]
    ours = distances(rows, pick(rows, 12))
    assert ours.mean() < min(one.mean() for one in chance)
    assert ours.max() <= np.mean([one.max() for one in chance])


def test_seeds_lie_closer_to_their_neighbours_than_random_rows() -> None:
    rows = babble(300, seed=6)
    lonely = diversity._loneliness(diversity._vectors(rows["text"]))
    chosen = rows["record_id"].is_in(pick(rows, 12)["record_id"].to_list()).to_numpy()
    assert lonely[chosen].mean() < lonely.mean()


@pytest.mark.parametrize("strategy", ["diverse", "random"])
@settings(deadline=None, max_examples=15)
@given(order=st.randoms(use_true_random=False), count=st.integers(1, 30))
def test_the_order_of_rows_does_not_matter(
    strategy: Strategy, order: random.Random, count: int
) -> None:
    rows = pl.concat([themed({"oil": 9, "light": 14}, "a"), themed({"seat": 12, "radio": 2}, "b")])
    places = list(range(rows.height))
    order.shuffle(places)
    assert pick(rows[places], count, strategy).equals(pick(rows, count, strategy))


@pytest.mark.parametrize("strategy", ["diverse", "random"])
def test_one_stratum_does_not_move_anothers_seeds(strategy: Strategy) -> None:
    a, b = themed({"oil": 30, "light": 30}, "a"), themed({"seat": 30, "oil": 9}, "b")
    together = pick(pl.concat([a, b]), 4, strategy)
    assert together.filter(label="a").equals(pick(a, 4, strategy))


@pytest.mark.parametrize("strategy", ["diverse", "random"])
def test_a_stratum_with_too_few_rows_gives_all(strategy: Strategy) -> None:
    rows = themed({"oil": 3, "seat": 1})
    assert set(pick(rows, 9, strategy)["record_id"]) == set(rows["record_id"])


@pytest.mark.parametrize("strategy", ["diverse", "random"])
def test_ranks_count_from_zero_in_each_stratum(strategy: Strategy) -> None:
    rows = pl.concat([themed({"oil": 30}, "b"), themed({"seat": 2}, "a")])
    picks = pick(rows, 4, strategy)
    assert picks.schema["seed_rank"] == pl.Int32
    assert picks.select("label", "seed_rank").rows() == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("b", 3)
    ]  # fmt: skip


def test_copies_of_a_text_come_last() -> None:
    copies = themed({"oil": 1}).select(
        pl.format("copy-{}", pl.int_range(5).alias("i")).alias("record_id"),
        *(pl.col(name).repeat_by(5).explode() for name in ("text", "label", "theme")),
    )
    rows = pl.concat([copies, themed({"light": 3})])
    assert set(pick(rows, 4)["theme"].to_list()[:4]) == {"oil", "light"}
    assert pick(rows, 4).filter(theme="oil").height == 1
    assert pick(rows, 6)["theme"].to_list()[4:] == ["oil", "oil"]


def test_texts_that_look_the_same_still_fill_the_seeds() -> None:
    ids = [f"r{i:02d}" for i in range(30)]
    rows = pl.DataFrame({"record_id": ids, "text": ["a" * (i + 3) for i in range(30)]})
    assert pick(rows.with_columns(label=pl.lit("x")), 5)["record_id"].n_unique() == 5


def test_a_large_stratum_is_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "POOL_ROWS", 40)
    rows = babble(400, seed=7)
    assert pick(rows, 4, seed=1).equals(pick(rows.reverse(), 4, seed=1))
    assert not pick(rows, 4, seed=1).equals(pick(rows, 4, seed=2))


def test_random_seeds_differ_by_seed_and_survive_new_rows() -> None:
    rows = babble(200, seed=8)
    assert not pick(rows, 9, "random", 1).equals(pick(rows, 9, "random", 2))
    few, all_rows = pick(rows.head(150), 150, "random"), pick(rows, 200, "random")
    old = all_rows.filter(pl.col("record_id").is_in(few["record_id"].to_list()))
    assert old["record_id"].to_list() == few["record_id"].to_list()


def test_rows_without_text_are_never_seeds() -> None:
    rows = themed({"oil": 3}).with_columns(
        pl.when(pl.col("record_id").str.ends_with("1")).then(None).otherwise("text").alias("text")
    )
    assert pick(rows, 3).height == 2


def test_no_rows_give_no_seeds() -> None:
    empty = themed({"oil": 1}).clear()
    assert pick(empty, 3).schema == {**empty.schema, "seed_rank": pl.Int32}


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UsageError, match="'label'"):
        pick(themed({"oil": 1}).drop("label"), 3)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="record_id"):
        pick(pl.concat([themed({"oil": 1})] * 2), 3)


def test_asking_for_no_seeds_is_refused() -> None:
    with pytest.raises(UsageError, match="0 seeds"):
        pick(themed({"oil": 1}), 0)
