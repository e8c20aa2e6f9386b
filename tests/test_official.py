"""Official folds: the data says which side a row is on; its test set is not changed silently."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.assets.planning import choose_seeds
from synth_assets.errors import SpecError
from synth_assets.lifecycle.leakage import leaks
from synth_assets.lifecycle.partition import KEPT, Giving, Partitioned, PartitionRules, partition
from synth_assets.lifecycle.records import with_record_id
from synth_assets.lifecycle.release import partition_text
from synth_assets.spec.load import Dataset, load_dataset
from synth_assets.spec.model import DatasetSpec
from synth_assets.spec.partition import Partition
from synth_assets.tasks.classification import Classification
from synth_assets.tasks.official import HOLDOUT_FIRST, Official
from tests.datasets import DatasetFolder, human_rows

FOLDS = {"test": "holdout", "dev": "validation"}
OFFICIAL = Official("fold", FOLDS, "train")
Row = tuple[str, str, str | None]  # text, label, fold


def raw(rows: list[Row], source: str = "people") -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"body": text, "topic": label, "fold": fold, "_source": source, "_row": n}
            for n, (text, label, fold) in enumerate(rows, 1)
        ],
        schema_overrides=dict.fromkeys(("body", "topic", "fold", "_source"), pl.String),
    ).with_columns(_problem=pl.lit(None, pl.String), _raw=pl.lit(None, pl.String))


def read(rows: list[Row], official: Official = OFFICIAL) -> dict[int, str]:
    """Row -> its side, or the reason why it is not used."""
    kept, rejects = Classification("body", "topic", official=official).read_human(raw(rows))
    assert kept.height + rejects.height == len(rows)
    return dict(kept.select("source_row", "side").iter_rows()) | dict(
        rejects.select("source_row", "reason").iter_rows()
    )


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("one text", "a", "test"), ("two text", "a", " train ")], ["holdout", "train"]),
        ([("one text", "a", "dev"), ("two text", "a", "0")], ["validation", "train"]),
        ([("one text", "a", "Test"), ("two text", "a", None)], ["train", "missing_fold"]),
        ([("one text", "a", " "), ("two text", "a", "")], ["missing_fold"] * 2),
        ([("one text", "a", "nan"), ("two text", "a", "\u200b")], ["missing_fold"] * 2),
        ([("one text", "a", "\ufefftest\u200b"), ("two", "a", "te\xadst")], ["holdout"] * 2),
        ([("", "a", "test"), ("ok text", "", "test")], ["missing_text", "missing_label"]),
        # One text on two sides: the row of the test set stays, wherever it stands in the file.
        ([("A t!", "a", "train"), ("a  t", "a", "test")], ["duplicate_of_holdout", "holdout"]),
        ([("a text", "a", "test"), ("a text", "a", "dev")], ["holdout", "duplicate_of_holdout"]),
        ([("a t", "a", "train"), ("a t", "a", "dev")], ["duplicate_of_validation", "validation"]),
        ([("a t", "b", "train"), ("a t", "a", "test")], ["conflicts_with_holdout", "holdout"]),
        ([("a t", "b", "train"), ("a t", "a", "dev")], ["conflicts_with_validation", "validation"]),
        # Among themselves, those of the test set are judged as rows always are.
        ([("a text", "a", "test"), ("a text", "a", "test")], ["holdout", "duplicate"]),
        ([("a text", "a", "test"), ("a text", "b", "test")], ["conflicting_labels"] * 2),
        (
            [("a text", "a", "test"), ("a text", "b", "test"), ("a text", "a", "train")],
            ["conflicting_labels"] * 3,
        ),
        ([("a text", "a", "train"), ("a text", "b", "train")], ["conflicting_labels"] * 2),
        # A row that is not used stands in nobody's way.
        ([("a text", "", "test"), ("a text", "a", "train")], ["missing_label", "train"]),
    ],
)  # fmt: skip
def test_a_row_is_on_the_side_of_its_fold_or_says_why_not(rows: list[Row], told: list[str]) -> None:
    assert list(dict(sorted(read(rows).items())).values()) == told


def test_the_values_of_a_fold_are_compared_in_one_form() -> None:
    """A test row whose cell another program wrote is no training row."""
    fold = Partition.model_validate(
        {"column": "fold", "holdout": ["pru\u0308fung", "None"], "validation": ["2  a"]}
    )
    listed = {value: side for side, values in fold.folds.items() for value in values}
    official = Official("fold", listed, "train")
    cells = ["pr\xfcfung", "pru\u0308fung\xa0", "None", "2\xa0a", "none", "other"]
    rows: list[Row] = [(f"text number {n}", "a", cell) for n, cell in enumerate(cells)]
    sides = ["holdout"] * 3 + ["validation", "missing_fold", "train"]
    assert list(dict(sorted(read(rows, official).items())).values()) == sides
    with pytest.raises(ValueError, match="listed in holdout already"):
        Partition.model_validate({"column": "f", "holdout": ["\xe9"], "validation": ["e\u0301"]})


@pytest.mark.parametrize(
    ("listed", "cell"), [("test", "Test"), ("test", "ｔｅｓｔ"), ("1", "1.0"), ("1", "01")]
)
def test_a_value_beside_a_listed_one_is_not_trained_on(listed: str, cell: str) -> None:
    rows: list[Row] = [("one", "a", listed), ("two", "a", cell), ("three", "a", "2")]
    told = Official("fold", {listed: "holdout"}, "train").no_such_value(raw(rows))
    assert told is not None
    assert told[:2] == (
        "holdout",
        f"column 'fold' has {cell!r} (1 rows) beside {listed!r}",
    )
    both = Official("fold", {listed: "holdout", cell: "train"}, "train")
    assert both.no_such_value(raw(rows)) is None


def test_with_training_folds_named_a_row_of_another_fold_is_set_aside() -> None:
    official = Official("fold", FOLDS | {"train": "train"})
    rows: list[Row] = [("one text", "a", "train"), ("two text", "a", "spare")]
    assert read(rows, official) == {1: "train", 2: "other_fold"}


def test_where_the_training_side_goes_first_its_row_of_an_equal_text_stays() -> None:
    official = Official("fold", FOLDS, "train", HOLDOUT_FIRST[::-1])
    rows: list[Row] = [("a text", "a", "test"), ("a text", "a", "train"), ("a text", "b", "dev")]
    assert read(rows, official) == {1: "duplicate_of_train", 2: "train", 3: "conflicts_with_train"}


def test_every_row_of_a_source_is_on_the_side_that_its_source_says() -> None:
    official = Official("", {"old": "train", "new": "holdout"})
    both = pl.concat(
        [raw([("one text", "a", None)], "old"), raw([("two", "a", None)], "new/x.csv")]
    )
    kept, rejects = Classification("body", "topic", official=official).read_human(both)
    assert dict(kept.select("source", "side").iter_rows()) == {
        "old": "train",
        "new/x.csv": "holdout",
    }
    assert rejects.is_empty()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["one text", "One  text!", "two text", "three text"]),
            st.sampled_from("ab"),
            st.sampled_from(["test", "dev", "train", "old", "", None]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([HOLDOUT_FIRST, HOLDOUT_FIRST[::-1]]),
)
@settings(max_examples=60, deadline=None)
def test_of_one_text_the_first_side_decides_and_keeps_one_row(
    rows: list[Row], first: tuple[str, ...]
) -> None:
    found = read(rows, Official("fold", FOLDS, "train", first))
    sides = {n: FOLDS.get(fold, "train") for n, (_, _, fold) in enumerate(rows, 1) if fold}
    assert {n for n, told in found.items() if told == "missing_fold"} == {
        n for n in range(1, len(rows) + 1) if n not in sides
    }
    texts = {
        n: text.lower().replace("  ", " ").rstrip("!") for n, (text, _, _) in enumerate(rows, 1)
    }
    for text in set(texts.values()):
        here = [n for n in sides if texts[n] == text]
        best = next((side for side in first if side in {sides[n] for n in here}), "")
        deciding = [n for n in here if sides[n] == best]
        labels = {rows[n - 1][1] for n in deciding}
        kept = [n for n in here if found[n] in first]
        assert kept == (deciding[:1] if len(labels) == 1 else [])
        if len(labels) > 1:
            assert {found[n] for n in here} == {"conflicting_labels"}
        else:
            for n in set(here) - set(deciding):
                same = rows[n - 1][1] in labels
                assert found[n] == f"{'duplicate_of' if same else 'conflicts_with'}_{best}"


# --- sides ------------------------------------------------------------------------------------


def human(folds: list[str]) -> pl.DataFrame:
    """Rows of a grammar, many of them near-copies of each other, with sides in turn."""
    rows: list[Row] = [
        (row["body"], row["topic"], folds[n % len(folds)]) for n, row in enumerate(human_rows())
    ]
    kept, _ = Classification("body", "topic", official=OFFICIAL).read_human(raw(rows))
    return with_record_id(kept, ["text", "label"], kind="c").with_columns(origin=pl.lit("human"))


def sides(rows: pl.DataFrame, near_copies: Giving = "drop_train", **more: Any) -> Partitioned:
    rules = PartitionRules(0.0, 0.0, "1", 0.6, official=True, near_copies=near_copies)
    return partition(rows, PartitionRules(**(vars(rules) | more)), text="text", stratum="label")


def like(rows: pl.DataFrame, unseen: pl.DataFrame) -> set[str]:
    return set(leaks(rows, unseen, threshold=0.6)["record_id"])


@given(
    st.lists(st.sampled_from(["test", "dev", "train"]), min_size=1, max_size=7),
    st.sampled_from(["drop_train", "drop_holdout", "keep"]),
)
@settings(max_examples=20, deadline=None)
def test_near_copies_on_different_sides_are_treated_as_declared(
    folds: list[str], rule: Giving
) -> None:
    rows = human(folds)
    parts = sides(rows, rule)
    ids = [record for part in parts for record in part["record_id"]]
    assert sorted(ids) == sorted(rows["record_id"])
    train, validation = (parts.human_train.filter(split=name) for name in ("train", "validation"))
    official = {name: set(rows.filter(side=name)["record_id"]) for name in HOLDOUT_FIRST}
    if rule == "drop_train":
        assert set(parts.holdout["record_id"]) == official["holdout"]
    if rule == "drop_holdout":
        assert set(train["record_id"]) == official["train"]
    copies = like(parts.human_train, parts.holdout) | like(train, validation)
    if rule == "keep":
        assert parts.set_aside.is_empty()
        assert set(parts.human_train.drop_nulls(KEPT)["record_id"]) == copies
    else:
        assert copies == set()
        assert KEPT not in parts.human_train.columns
        assert parts.set_aside["reason"].str.contains("_(holdout|validation|train)$").all()


def test_a_share_of_the_training_fold_is_validation_and_moves_no_other_row() -> None:
    rows = human(["test", "train", "train"])
    parts, fewer = sides(rows, validation=0.3), sides(rows[::2], validation=0.3)
    assert set(parts.holdout["record_id"]) == set(rows.filter(side="holdout")["record_id"])
    where = dict(parts.human_train.select("record_id", "split").iter_rows())
    assert set(where.values()) == {"train", "validation"}
    again = dict(fewer.human_train.select("record_id", "split").iter_rows())
    assert all(where.get(record, split) == split for record, split in again.items())


@pytest.mark.parametrize(
    ("rule", "reason", "left"),
    [
        ("drop_train", "group_in_holdout", ("t",)),
        ("drop_holdout", "group_in_train", ("s", "t")),
        ("keep", "group_in_holdout", ("s", "t")),
    ],
)
def test_a_group_on_two_sides_is_treated_as_near_copies_are(
    rule: Giving, reason: str, left: tuple[str, ...]
) -> None:
    rows = pl.DataFrame(
        {
            "record_id": ["r1", "r2", "r3", "r4", "r5"],
            "text": ["sun over the hill", "my invoice is wrong", "a mule", "where is it", "who"],
            "label": ["a"] * 5,
            "group": ["s", "t", "s", "", "\x1f "],
            "side": ["train", "train", "holdout", "train", "holdout"],
        }
    )
    parts = sides(rows, rule)
    # A blank cell is no group: the rows without one are left alone.
    assert set(parts.human_train["group"]) == {*left, ""}
    assert parts.holdout.height == (1 if rule == "drop_holdout" else 2)
    told = parts.human_train.drop_nulls(KEPT)[KEPT] if rule == "keep" else parts.set_aside["reason"]
    assert told.to_list() == [reason]


def test_a_limit_takes_from_the_training_side_only() -> None:
    rows = human(["test", "train", "dev", "train"])
    parts = sides(rows, "keep", limit_train=12, min_train_per_stratum=3)
    train = parts.human_train.filter(split="train")
    assert train.height == 12
    assert min(count for _, count in train.group_by("label").len().iter_rows()) >= 3
    assert Counter(parts.set_aside["reason"]) == {
        "beyond_limit_train": rows.filter(side="train").height - 12
    }
    assert parts.holdout.height == rows.filter(side="holdout").height


def test_what_a_limit_leaves_out_takes_nothing_from_the_test_set() -> None:
    rows = human(["test", "train"])
    parts = sides(rows, "drop_holdout", limit_train=8)
    train = parts.human_train
    assert train.height == 8
    gone = set(rows.filter(side="holdout")["record_id"]) - set(parts.holdout["record_id"])
    told = parts.set_aside.filter(pl.col("reason") != "beyond_limit_train")
    assert gone == set(told["record_id"])
    assert all(detail.split(" of ")[1] in set(train["record_id"]) for detail in told["detail"])
    assert 0 < len(gone) < sides(rows, "drop_holdout").set_aside.height


def test_a_row_that_is_kept_though_it_is_like_an_unseen_one_is_no_seed(tmp_path: Path) -> None:
    tickets = DatasetFolder(tmp_path / "tickets")
    tickets.write()
    dataset = load_dataset(tickets.folder)
    assert dataset is not None
    parts = sides(human(["test", "train", "dev"]), "keep")
    train = parts.human_train.filter(split="train")
    seeds, kept = choose_seeds(dataset, train), train.drop_nulls(KEPT)
    assert 0 < kept.height < train.height
    assert seeds.height > 0
    assert set(seeds["record_id"]).isdisjoint(kept["record_id"])


# --- declaring it -----------------------------------------------------------------------------


def loaded(folder: DatasetFolder, **attributes: Any) -> Dataset | str:
    """The dataset, or the text of what is wrong with it."""
    folder.attributes |= attributes
    folder.attributes = {name: one for name, one in folder.attributes.items() if one is not None}
    if "sources" in attributes and "partition" not in attributes:
        del folder.attributes["partition"]
    folder.write()
    try:
        found = load_dataset(folder.folder)
        assert found is not None
        return found
    except SpecError as error:
        return str(error)


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(tmp_path / "tickets")


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"column": "fold"}, "partition.holdout: with partition.column, the holdout is a list"),
        ({"column": "fold", "holdout": 0.3}, "(found 0.3)\n  fix: holdout: [test]"),
        ({"column": "fold", "holdout": "test"}, "partition.holdout: write a share (0.3) or, with"),
        ({"column": "fold", "holdout": []}, "partition.holdout: List should have at least 1 item"),
        ({"column": "fold", "holdout": [1]}, "partition.holdout.0: a value of the column is"),
        ({"column": "fold", "holdout": [True]}, "fix: put it in quotes"),
        ({"column": "fold", "holdout": [" "]}, "partition.holdout.0: a blank cell belongs to no"),
        ({"holdout": ["test"]}, "partition.holdout: these are values of a column, and none is"),
        ({"validation": ["dev"]}, "fix: add partition.column"),
        ({"train": ["old"]}, "partition.train: these are values of a column, and none is named"),
        (
            {"column": "fold", "holdout": ["a"], "validation": ["b", "a "]},
            "partition.validation.1: this value is listed in holdout already (found 'a')",
        ),
        ({"column": "fold", "holdout": ["a"], "validation": 1.0}, "should be less than 1"),
        ({"near_copies": "drop"}, "fix: use 'drop_train', 'drop_holdout' or 'keep'"),
    ],
)  # fmt: skip
def test_a_fold_that_makes_no_sense_is_one_error_with_its_key_and_a_fix(
    folder: DatasetFolder, declared: dict[str, Any], told: str
) -> None:
    found = loaded(folder, partition=declared)
    assert isinstance(found, str)
    assert told in found
    assert found.count("defs.yaml:") == 1


HUMAN_SOURCE = {"kind": "files", "path": "human.csv"}


@pytest.mark.parametrize(
    ("splits", "partition", "told"),
    [
        (("train", None), {}, "sources.1.split: one human source says which side"),
        (("train", "validation"), {}, "sources: no human source is the holdout"),
        (("holdout", "validation"), {}, "sources: no human source is left to train on"),
        (("train", "holdout"), {"holdout": 0.3}, "partition.holdout: `split` of the sources"),
        (("train", "holdout"), {"column": "f", "holdout": ["a"]}, "partition.column: `split` of"),
        (("train", "holdout", "validation"), {"validation": 0.2}, "partition.validation: `split`"),
        ((None, None), {"validation": 0.8}, "holdout + validation leave nothing to train on"),
    ],
)
def test_sides_of_sources_that_make_no_sense_are_one_error(
    folder: DatasetFolder, splits: tuple[str | None, ...], partition: dict[str, Any], told: str
) -> None:
    sources = [
        HUMAN_SOURCE | {"name": f"s{n}"} | ({"split": split} if split else {})
        for n, split in enumerate(splits)
    ]
    found = loaded(folder, source=None, sources=sources, partition=partition)
    assert isinstance(found, str)
    assert told in found
    assert found.count("defs.yaml:") == 1


def test_a_share_of_the_training_source_may_be_large(folder: DatasetFolder) -> None:
    """The default share of a holdout is none of it: the holdout is another source."""
    sources = [HUMAN_SOURCE | {"name": side, "split": side} for side in ("train", "holdout")]
    found = loaded(folder, source=None, sources=sources, partition={"validation": 0.8})
    assert isinstance(found, Dataset)


@pytest.mark.parametrize(
    "attributes",
    [
        {"partition": {"column": "fold", "holdout": ["test"]}},
        {
            "partition": {
                "column": "fold",
                "holdout": ["test"],
                "validation": ["dev"],
                "train": ["a"],
            }
        },
        {"sources": [HUMAN_SOURCE | {"name": s, "split": s} for s in HOLDOUT_FIRST]},
        {"sources": [HUMAN_SOURCE | {"name": s, "split": s} for s in ("train", "holdout")]},
        {"generate": None},
    ],
)
def test_what_a_release_writes_of_a_declaration_can_be_read_as_one(
    folder: DatasetFolder, attributes: dict[str, Any]
) -> None:
    found = loaded(folder, **attributes, **({"source": None} if "sources" in attributes else {}))
    assert isinstance(found, Dataset)
    written = found.spec.model_dump(mode="json", by_alias=True)
    again = DatasetSpec.model_validate(written)
    assert again.model_dump(mode="json", by_alias=True) == written
    assert Official.from_spec(again) == Official.from_spec(found.spec)


def test_a_declared_value_that_no_row_has_is_told_with_what_there_is() -> None:
    rows: list[Row] = [("one", "a", "test"), ("two", "a", "Dev"), ("three", "a", "train")]
    side, problem, fix = OFFICIAL.no_such_value(raw(rows)) or ("", "", "")
    assert (side, problem) == ("validation", "no row has 'dev' in column 'fold'")
    assert (
        fix == "did you mean 'Dev'? values found: 'Dev' (1 rows), 'test' (1 rows), 'train' (1 rows)"
    )
    assert OFFICIAL.no_such_value(raw([rows[0], rows[2], ("four", "a", " dev")])) is None


# --- what a release says ----------------------------------------------------------------------


def test_a_card_says_what_decided_the_sides_and_what_was_removed() -> None:
    made = {
        "by": "column",
        "column": "fold",
        "holdout": ["test"],
        "validation": 0.1,
        "salt": "1",
        "group_by": [],
        "near_copies": "drop_train",
        "sides": {
            "train": {"rows": 90, "not_used": {"near_copy_of_holdout": 4}},
            "validation": {"rows": 10, "not_used": {}},
            "holdout": {"rows": 1497, "not_used": {"duplicate": 3, "<b>": 1}},
        },
    }
    told = partition_text({"partition": made})
    assert "Official test split: column fold = test (1,497 rows)." in told
    assert "Rows of the official test split that are not used: duplicate 3, " in told
    assert "<b>" not in told
    made |= {"by": "sources", "holdout": ["new"], "validation": ["dev"]}
    assert "Official test split: source new (1,497 rows). Validation rows: source dev" in (
        partition_text({"partition": made})
    )
    hashed = made | {"by": "hash", "holdout": 0.3, "sides": {k: {"rows": 5} for k in HOLDOUT_FIRST}}
    assert "by salted hash, share 0.3, salt 1 (5 rows)" in partition_text({"partition": hashed})
    assert partition_text({}) == ""  # a release of before
