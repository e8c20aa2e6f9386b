"""The pure middle: partition, plan, refill, screen, blend."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.lifecycle.blend import blend, split_rows
from synth_assets.lifecycle.partition import Partitioned, PartitionRules, partition
from synth_assets.lifecycle.plan import PlanRules, balance_to_largest, fill_share, make_plan
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.refill import CellState, next_round, shortfall, update
from synth_assets.lifecycle.screen import References, ScreenRules, accepted, judge
from synth_assets.lifecycle.similarity import near_copies
from synth_assets.tasks.classification import Classification
from tests.datasets import human_rows

TASK = Classification("body", "topic", min_chars=3)
RULES = PartitionRules(holdout=0.3, validation=0.1, salt="1", decontaminate=0.6)


def raw(rows: list[dict[str, str | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {**row, "_source": "f", "_row": n, "_problem": None, "_raw": None}
            for n, row in enumerate(rows, 1)
        ],
        schema_overrides=dict.fromkeys(("body", "topic", "_problem", "_raw"), pl.String),
    )


def human(seed: int = 1) -> pl.DataFrame:
    kept, _ = TASK.read_human(raw([*human_rows(seed=seed)]))
    return with_record_id(kept, TASK.payload, kind="c").with_columns(origin=pl.lit("human"))


def sides(rows: pl.DataFrame, rules: PartitionRules = RULES) -> Partitioned:
    return partition(rows, rules, text="text", stratum="label")


# --- reading human rows -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        ([{"body": None, "topic": "a"}], ["missing_text"]),
        ([{"body": " \t ", "topic": "a"}], ["missing_text"]),
        ([{"body": "ab", "topic": "a"}], ["too_short"]),
        ([{"body": "x" * 30_000, "topic": "a"}], ["too_long"]),
        ([{"body": "fine text", "topic": ""}], ["missing_label"]),
        (
            [{"body": "Same  text!", "topic": "a"}, {"body": "same text", "topic": "a"}],
            ["duplicate"],
        ),
        (
            [{"body": "same text", "topic": "a"}, {"body": "Same text", "topic": "b"}],
            ["conflicting_labels", "conflicting_labels"],
        ),
    ],
)
def test_an_unusable_row_is_set_aside_with_its_reason(
    rows: list[dict[str, str | None]], reasons: list[str]
) -> None:
    kept, rejects = TASK.read_human(raw([*rows, {"body": "a good row", "topic": "a"}]))
    assert rejects["reason"].to_list() == reasons
    assert kept.height + rejects.height == len(rows) + 1


def test_labels_are_dropped_by_pattern_and_rare_ones_by_count() -> None:
    task = Classification("body", "topic", drop_labels=("NA", "*_*"), min_rows_per_label=2)
    rows = [("one row", "x"), ("two rows", "x"), ("three", "y"), ("four", "NA"), ("five", "x_y")]
    kept, rejects = task.read_human(raw([{"body": b, "topic": t} for b, t in rows]))
    assert kept["label"].to_list() == ["x", "x"]
    assert dict(rejects.select("label", "reason").iter_rows()) == {
        "y": "rare_label",
        "NA": "dropped_label",
        "x_y": "dropped_label",
    }


def test_emoji_and_other_scripts_are_kept_as_written() -> None:
    rows = [{"body": "päckchen 📦 fehlt", "topic": "a"}, {"body": "包裹没有到", "topic": "a"}]
    kept, rejects = TASK.read_human(raw([*rows]))
    assert kept["text"].to_list() == [row["body"] for row in rows]
    assert rejects.is_empty()


# --- partition --------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 119), max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_removing_and_reordering_rows_moves_no_row_to_another_side(
    removed: set[int], rng: random.Random
) -> None:
    rows = human()
    kept = [n for n in range(rows.height) if n not in removed] or [0]
    rng.shuffle(kept)

    def side(parts: Partitioned) -> dict[str, str]:
        everything = pl.concat(
            [parts.human_train, parts.holdout, parts.set_aside.drop("reason", "detail")]
        )
        return dict(everything.select("record_id", "split").iter_rows())

    whole, part = side(sides(rows)), side(sides(rows[kept]))
    assert all(whole[record] == split for record, split in part.items())


def test_no_near_copy_of_the_holdout_is_left_to_train_on() -> None:
    parts = sides(human())
    copies = near_copies(parts.human_train["text"], parts.holdout["text"], threshold=0.6)
    assert copies.is_empty()
    assert parts.set_aside["reason"].str.contains(r"^(near_copy_of|contains)_").all()


def test_every_human_row_is_on_one_side_or_set_aside() -> None:
    rows = human()
    parts = sides(rows)
    ids = [record for part in parts for record in part["record_id"]]
    assert sorted(ids) == sorted(rows["record_id"])


def test_rows_of_one_group_stay_on_one_side() -> None:
    rows = human().with_columns(group=pl.Series([f"g{n % 9}" for n in range(human().height)]))
    parts = sides(rows)
    assert not set(parts.holdout["group"]) & set(parts.human_train["group"])


def test_a_limit_takes_the_wanted_rows_of_every_label_first() -> None:
    rules = PartitionRules(0.3, 0.1, "1", 0.99, limit_train=20, min_train_per_stratum=5)
    train = sides(human(), rules).human_train.filter(pl.col("split") == "train")
    assert train.height == 20
    assert train.group_by("label").len()["len"].min() >= 5


# --- plan -------------------------------------------------------------------------------------


def plan(wanted: dict[str, int], **changes: object) -> pl.DataFrame:
    seeds = human().with_columns(seed_rank=pl.int_range(pl.len(), dtype=pl.Int32).over("label"))
    rules = PlanRules(
        **{
            "rows_per_call": 5,
            "seeds_per_call": 4,
            "candidate_limit": 2.0,  # type: ignore[arg-type]
            "attributes": {},
            "seed": 0,
            **changes,
        }
    )
    return make_plan(
        wanted,
        seeds.filter(pl.col("seed_rank") < 6),
        rules,
        stratum="label",
        render=lambda cell, examples, rows, attributes: (
            f"{cell} {rows} {sorted(attributes.items())} " + " | ".join(e["text"] for e in examples)
        ),
        system=None,
    )


def test_labels_take_turns_in_a_plan() -> None:
    calls = plan({"billing": 30, "login": 30})
    assert calls["cell"].head(6).to_list() == ["billing", "login"] * 3
    assert calls["ordinal"].is_sorted()


def test_balance_lifts_every_label_to_the_largest() -> None:
    assert balance_to_largest({"a": 10, "b": 4}) == {"a": 0, "b": 6}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), min_size=1),
    st.floats(0.05, 0.95),
)
def test_a_share_is_filled_exactly_and_poorest_labels_first(
    counts: dict[str, int], share: float
) -> None:
    wanted = fill_share(counts, share)
    humans = sum(counts.values())
    assert sum(wanted.values()) == math.ceil(humans * share / (1 - share) - 1e-9)
    lifted = {name: counts[name] + more for name, more in wanted.items() if more}
    assert all(level <= min(lifted.values()) + 1 for level in lifted.values())


def test_a_plan_allows_the_declared_number_of_candidates() -> None:
    calls = plan({"billing": 12, "login": 3, "delivery": 0})
    assert calls.group_by("cell").agg(pl.col("rows").sum()).sort("cell").rows() == [
        ("billing", 25),
        ("login", 10),
    ]


def test_seeds_are_used_evenly_and_never_twice_in_one_call() -> None:
    calls = plan({"billing": 60})
    assert all(len(set(ids)) == len(ids) == 4 for ids in calls["seed_ids"])
    uses = calls["seed_ids"].explode().value_counts()["count"]
    assert uses.max() - uses.min() <= 2


def test_attributes_rotate_through_the_calls_evenly() -> None:
    calls = plan({"billing": 60}, attributes={"tone": ["calm", "cross"], "size": ["s", "m", "l"]})
    assert calls["attributes"].n_unique() == 6
    assert calls["attributes"].value_counts()["count"].to_list() == [4] * 6


def test_an_identical_prompt_is_another_sample() -> None:
    calls = plan({"billing": 60}, seeds_per_call=0)
    assert calls["prompt"].n_unique() == 1
    assert calls["sample"].to_list() == list(range(calls.height))


# --- screening and refilling ------------------------------------------------------------------


def candidates(texts: list[tuple[int, str, str]], wanted: int = 100) -> pl.DataFrame:
    """(round, label, text) rows; item counts within a label."""
    return pl.DataFrame(
        [
            {
                "round": r,
                "cell": label,
                "ordinal": n,
                "item": 0,
                "wanted": wanted,
                "text": text,
                "label": label,
                "problem": None,
                "problem_detail": None,
            }
            for n, (r, label, text) in enumerate(texts)
        ],
        schema_overrides={"problem": pl.String, "problem_detail": pl.String, "text": pl.String},
    )


def references() -> References:
    parts = sides(human())
    train, validation = (
        parts.human_train.filter(pl.col("split") == split) for split in ("train", "validation")
    )
    return References(train, validation, parts.holdout)


SCREEN = ScreenRules(near_duplicate=0.8, decontaminate=0.6)


def verdicts(texts: list[tuple[int, str, str]], wanted: int = 100) -> list[str | None]:
    return judge(candidates(texts, wanted), references(), SCREEN, TASK)["reason"].to_list()


def test_copies_of_human_rows_are_named_by_the_side_they_copy() -> None:
    refs = references()
    texts = [
        (0, "billing", frame["text"][0].upper())
        for frame in (refs.holdout, refs.validation, refs.train)
    ]
    assert verdicts(texts) == [
        "near_copy_of_holdout",
        "near_copy_of_validation",
        "near_copy_of_human",
    ]


def test_a_repeat_is_refused_and_the_first_one_kept() -> None:
    text = "the warehouse lost a pallet of blue folders"
    assert verdicts([(0, "delivery", text), (0, "delivery", text + "!")]) == [
        None,
        "near_duplicate",
    ]


def test_what_a_cell_does_not_need_is_surplus() -> None:
    texts = [
        "the warehouse lost a pallet",
        "a drone dropped it on the roof",
        "wrong colour was packed",
    ]
    assert verdicts([(0, "delivery", t) for t in texts], wanted=2) == [None, None, "surplus"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "blank"),
        ("12 34 56 78 90 11", "no_words"),
        ("bell \x07 rings twice today", "control_characters"),
        ("x" * 4000, "too_long"),
        ("abc", "too_short"),
    ],
)
def test_implausible_rows_are_refused(text: str, reason: str) -> None:
    assert verdicts([(0, "billing", text)]) == [reason]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["billing", "login"]),
            st.lists(
                st.sampled_from(
                    ["refund", "late", "screen", "code", "box", "blue", "mail", "harbour"]
                ),
                min_size=2,
                max_size=5,
            ).map(" ".join),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_judging_round_by_round_is_judging_everything_at_once(
    texts: list[tuple[int, str, str]], wanted: int
) -> None:
    refs, rows = references(), candidates(texts, wanted)
    whole = judge(rows, refs, SCREEN, TASK)
    parts: pl.DataFrame | None = None
    for number in sorted(set(rows["round"])):
        judged = judge(rows.filter(pl.col("round") == number), refs, SCREEN, TASK, earlier=parts)
        parts = judged if parts is None else pl.concat([parts, judged])
    assert parts is not None
    columns = ["round", "cell", "ordinal", "item", "reason"]
    assert parts.select(columns).rows() == whole.select(columns).rows()


def test_rounds_ask_for_what_is_missing_and_stop_at_the_limit() -> None:
    calls = plan({"billing": 12, "login": 3})  # 5 calls and 2 calls allowed
    first = next_round(calls, {}, first_yield=0.8)
    assert dict(first.group_by("cell").len().iter_rows()) == {"billing": 3, "login": 1}
    states = update({}, first, {"billing": 6, "login": 3})
    assert states["billing"] == CellState(calls=3, asked=15, accepted=6)
    second = next_round(calls, states, first_yield=0.8)
    assert second["cell"].unique().to_list() == ["billing"]
    assert second["ordinal"].to_list() == [3, 4]
    states = update(states, second, {"billing": 9, "login": 3})
    assert next_round(calls, states, first_yield=0.8).is_empty()


def test_a_shortfall_names_the_cell_its_counts_and_the_reasons_of_its_rejects() -> None:
    plan = pl.DataFrame({"cell": ["a"] * 3 + ["b"] * 2 + ["c"], "wanted": [4] * 3 + [1] * 2 + [2]})
    judged = pl.DataFrame(
        {
            "cell": ["a", "a", "a", "a", "b"],
            "request_id": ["1", "1", "2", "2", "3"],
            "reason": [None, "too_short", "near_duplicate", "near_duplicate", None],
        }
    )
    assert shortfall(plan, judged).rows() == [
        ("a", 4, 1, 2, 3, "near_duplicate 2, too_short 1"),
        ("c", 2, 0, 0, 1, ""),
    ]
    assert shortfall(plan, None)["accepted"].to_list() == [0, 0, 0]


def test_accepted_counts_rows_without_a_reason() -> None:
    judged = judge(
        candidates([(0, "login", "the pin pad ignores my card")]), references(), SCREEN, TASK
    )
    assert accepted(judged) == {"login": 1}


# --- blend ------------------------------------------------------------------------------------


def synthetic(count: int, label: str) -> pl.DataFrame:
    made = pl.DataFrame(
        {"text": [f"made up {label} row {n}" for n in range(count)], "label": label}
    )
    return with_record_id(made, TASK.payload, kind="c").with_columns(
        pl.lit("r").alias("request_id"),
        pl.lit(0).alias("item"),
        pl.lit(["s"]).alias("seed_ids"),
        pl.lit("v").alias("prompt_version"),
        pl.lit("m").alias("model"),
        pl.lit(label).alias("cell"),
        pl.lit("{}").alias("attributes"),
    )


def blended(share: float | None, *, balance_classes: bool = False) -> pl.DataFrame:
    made = pl.concat([synthetic(200, "billing"), synthetic(12, "login")])
    return blend(
        sides(human()).human_train,
        made,
        payload=TASK.payload,
        stratum="label",
        synthetic_share=share,
        human_weight=1.0,
        synthetic_weight=0.5,
        seed=0,
        balance_classes=balance_classes,
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_caps_the_synthetic_rows(share: float) -> None:
    train = split_rows(blended(share), "train")
    made = train.filter(pl.col("origin") == "synthetic").height
    assert made / train.height <= share
    assert (made + 1) / (train.height + 1) > share


def test_class_weights_give_every_label_the_same_total_and_leave_validation_alone() -> None:
    plain, balanced = blended(None), blended(None, balance_classes=True)
    train, before = split_rows(balanced, "train"), split_rows(plain, "train")
    totals = train.group_by("label").agg(pl.col("weight").sum())["weight"].to_list()
    assert len(totals) > 1
    assert totals == pytest.approx([before["weight"].sum() / len(totals)] * len(totals))
    # Within a label, a synthetic row still counts half of a human one.
    ratio = (
        train.group_by("label", "origin")
        .agg(pl.col("weight").first())
        .pivot("origin", index="label", values="weight")
    )
    both = ratio.drop_nulls()
    assert (both["synthetic"] / both["human"]).to_list() == pytest.approx([0.5] * both.height)
    assert split_rows(balanced, "validation").equals(split_rows(plain, "validation"))
    assert balanced.drop("weight").equals(plain.drop("weight"))


def test_a_cap_takes_from_every_label_in_turn() -> None:
    made = split_rows(blended(0.2), "train").filter(pl.col("origin") == "synthetic")
    counts = dict(made.group_by("label").len().iter_rows())
    assert abs(counts["billing"] - counts["login"]) <= 1


def test_validation_holds_human_rows_only_and_weights_follow_origin() -> None:
    rows = blended(None)
    assert set(split_rows(rows, "validation")["origin"]) == {"human"}
    assert dict(rows.group_by("origin").agg(pl.col("weight").first()).iter_rows()) == {
        "human": 1.0,
        "synthetic": 0.5,
    }
