"""Labels without rows, training rows or seeds, and rows lost in large shares: all of it is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_assets.assets.generating import rejected_shares
from synth_assets.assets.planning import plan_findings, rows_wanted
from synth_assets.errors import SynthError
from synth_assets.lifecycle.losses import (
    MOST_OF_A_LABEL,
    MOST_SET_ASIDE,
    SCHEMA,
    Rows,
    lost_shares,
)
from synth_assets.lifecycle.records import unit
from synth_assets.lifecycle.support import (
    MOST_SENTENCES,
    Finding,
    Names,
    counts_by_side,
    lines_of,
    meant,
    of_plan,
    of_sides,
    of_source,
)
from synth_assets.spec.load import Dataset, load_dataset
from synth_assets.text import normalise
from tests.datasets import DatasetFolder, human_rows, write_csv
from tests.erase_support import Place, copied, made, synth
from tests.openai_server import ServerState, running_server
from tests.processes import Finished

# Names as Unicode writes them: one letter, or a letter and its mark.
COMPOSED, APART = "Kühlung", "Ku\u0308hlung"


def rejects(**reasons: Mapping[str, int]) -> pl.DataFrame:
    """``reason={label: rows}``; the label "" stands for none."""
    rows = [
        (label or None, reason)
        for reason, labels in reasons.items()
        for label, count in labels.items()
        for _ in range(count)
    ]
    return pl.DataFrame(rows, schema={"label": pl.String, "reason": pl.String}, orient="row")


def told(findings: list[Finding], kind: str) -> dict[str, str]:
    return {one.label: one.sentence for one in findings if one.kind == kind}


# --- the source ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("billing", "Billing"),
        ("billing", "BILLING"),
        ("billing", "bill ing"),
        ("billing", "bil-ling"),
        ("billing", "billling"),
        ("billing", "biling"),
        ("refunds", "refund"),
        (COMPOSED, APART),
        (COMPOSED, "Kuehlung"),
        ("fi", "ﬁ"),
        ("Straße", "STRASSE"),
        ("final drive", "Final_Drive"),
        ("+1", "+1 "),
    ],
)
def test_a_declared_label_that_no_row_has_names_the_one_that_is_meant(
    declared: str, found: str
) -> None:
    lost = rejects(unknown_label={found: 7, "something else entirely": 90})
    said = told(of_source([declared, "other"], {"other": 3}, lost), "no_row")
    assert list(said) == [declared]
    assert f"did you mean {found!r} (7 rows)?" in said[declared]


def test_a_declared_label_like_none_that_there_is_lists_what_there_is() -> None:
    lost = rejects(unknown_label={"zzz": 4}, erased={"": 2})
    (said,) = told(of_source(["outage", "other"], {"other": 3}, lost), "no_row").values()
    assert said.startswith("no row has the declared label 'outage'; labels found: 'zzz' 4, 'other'")
    assert "did you mean" not in said
    assert "2 rows erased" in said


def test_a_declared_label_that_differs_from_another_declared_one_by_a_letter_is_told_so() -> None:
    for lost in (rejects(), rejects(unknown_label={"weather": 9})):
        (said,) = told(of_source(["billing", "biling"], {"billing": 3}, lost), "no_row").values()
        assert "did you mean 'billing' (3 rows)?" in said


def test_a_label_from_outside_cannot_write_on_a_terminal() -> None:
    lost = rejects(unknown_label={"bil\x1b[31mling\n": 4})
    (said,) = told(of_source(["billing", "b"], {"b": 3}, lost), "no_row").values()
    assert "bil\\x1b[31mling\\n" in said
    assert said.isprintable()


def test_rows_whose_label_is_nearly_declared_are_told_of_once() -> None:
    lost = rejects(
        unknown_label={"Billing": 3, "refund": 4, "weather": 50, "label_2": 9},
        dropped_label={"label_1_billing": 5, "BILLING": 2},
    )
    found = of_source(["billing", "refunds", "label_1"], {"billing": 9, "label_1": 9}, lost)
    assert told(found, "unknown_label").keys() == {"Billing"}
    assert told(found, "no_row").keys() == {"refunds"}


@pytest.mark.parametrize(
    ("declared", "reason", "said"),
    [
        (["a", "b"], "rare_label", True),
        (["a", "b"], "dropped_label", True),
        (["a", "b"], "duplicate", True),
        (None, "duplicate", True),
        # Where labels come from the data, these rules are there to take labels out.
        (None, "rare_label", False),
        (None, "dropped_label", False),
    ],
)
def test_a_label_none_of_whose_rows_is_used_is_said_but_where_a_rule_means_it(
    declared: list[str] | None, reason: str, said: bool
) -> None:
    found = told(of_source(declared, {"a": 5, "c": 1}, rejects(**{reason: {"b": 12}})), "none_used")
    assert (
        f"none of the 12 rows with the label 'b' is used: {reason} 12" in found.values()
    ) is said


def test_one_label_only_is_said() -> None:
    assert told(of_source(None, {"a": 5}, rejects()), "one_label").keys() == {"a"}
    assert not of_source(None, {"a": 5, "b": 1}, rejects())


def test_one_meant_label_is_found_among_thousands_that_are_sentences() -> None:
    foreign = {
        f"{n:06} a sentence that stands where a label should be" * 5: 1 for n in range(9_000)
    }
    lost = rejects(unknown_label=foreign | {"BILLING": 1})
    found = of_source(["billing", "delivery"], {"delivery": 5}, lost)
    assert "did you mean 'BILLING'" in told(found, "no_row")["billing"]


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_labels_with_the_same_normal_form_are_alike_and_nothing_is_made_up(
    one: str, other: str
) -> None:
    found = meant(one, Names.of({other: 1}))
    assert found in (None, other)
    assert Names.of({one: 1, other: 2}).same(one) is not None
    normal = pl.DataFrame({"x": [one, other]}).select(normalise(pl.col("x")))["x"]
    if one.isalnum() and other.isalnum() and normal[0] == normal[1]:
        assert found == other


# --- the sides -------------------------------------------------------------------------------


def sides(label: str, **rows: int) -> pl.DataFrame:
    """Counts of one label beside two that have plenty."""

    def of(side: str, split: str = "") -> pl.DataFrame:
        labels = [label] * rows.get(side, 0) + ["plenty", "much"] * 20
        return pl.DataFrame({"label": labels}).with_columns(split=pl.lit(split or side))

    aside = pl.DataFrame(
        [(label, reason) for reason in ("near_copy_of_holdout", "beyond_limit_train")
         for _ in range(rows.get(reason, 0))],
        schema={"label": pl.String, "reason": pl.String}, orient="row",
    )  # fmt: skip
    human = pl.concat([of("train"), of("validation"), of("holdout")]).select("label")
    train = pl.concat([of("train"), of("validation")])
    whole = pl.concat([human, aside.select("label")])
    return counts_by_side(whole, train, of("holdout"), aside, stratum="label", labels=[label])


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ({"holdout": 9, "validation": 2}, "no_train", "of 11 human, 9 held out, 2 validation"),
        ({"holdout": 5, "near_copy_of_holdout": 3}, "no_train",
         "of 8 human, 5 held out, 3 set aside (near_copy_of_holdout 3)"),
        ({"holdout": 5, "beyond_limit_train": 3}, "no_train", "beyond_limit_train 3"),
        ({}, "no_train", "has no usable human row"),
        ({"train": 1, "holdout": 5}, "few_train", "has only 1 row to train on"),
        ({"train": 9}, "no_holdout", "has no holdout row"),
        ({"train": 9, "holdout": 4}, "few_holdout", "has only 4 rows held out"),
    ],
)  # fmt: skip
def test_a_label_that_lost_its_rows_is_told_where_they_went(
    rows: dict[str, int], kind: str, words: str
) -> None:
    found = of_sides(sides("login", **rows))
    assert [(one.kind, one.label) for one in found] == [(kind, "login")]
    assert words in found[0].sentence


def test_a_label_with_enough_rows_on_both_sides_is_not_spoken_of() -> None:
    assert not of_sides(sides("login", train=2, holdout=5))


def test_a_limit_that_took_a_label_names_the_key_that_keeps_some_of_each() -> None:
    (found,) = of_sides(sides("login", holdout=5, beyond_limit_train=3))
    assert found.fix == "human.min_train_per_label"


def test_one_label_left_to_train_on_is_said() -> None:
    counts = sides("login", holdout=9).with_columns(
        train=pl.when(pl.col("label") == "plenty").then("train").otherwise(0)
    )
    found = of_sides(counts)
    assert [one.kind for one in found] == ["one_label", "no_train", "no_train"]
    assert "every training row has the label 'plenty'" in found[0].sentence


# --- the plan --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "seeds", "said"),
    [
        (9, 1, "20 rows of 'x' to be made from one seed"),
        (1, 1, "20 rows of 'x' to be made from one seed"),
        (0, 0, "without any human training row, from no example"),
        (0, 1, "without any human training row, from one hand-written seed"),
        (0, 5, "without any human training row, from 5 hand-written seeds"),
        (9, 2, ""),
        (9, 0, ""),  # prompts that show no seeds by declaration
    ],
)
def test_a_class_made_from_next_to_nothing_is_said(train: int, seeds: int, said: str) -> None:
    found = of_plan({"x": 20, "y": 0}, [], {"x": train, "y": 0}, {"x": seeds, "y": 1})
    assert [said in one.sentence for one in found] == ([True] if said else [])


TARGETS: list[tuple[dict[str, Any], dict[str, int], int]] = [
    ({"per_label": 20}, {"billing": 20, "delivery": 20}, 20),
    ({"at_least": 5}, {"billing": 1, "delivery": 2}, 5),
    ({"balance": "to_largest"}, {"billing": 0, "delivery": 1}, 4),
    ({"per_label": {"billing": 3, "login": 7}}, {"billing": 3}, 7),
    ({"synthetic_share": 0.5}, {"billing": 3, "delivery": 4}, 4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    folder = DatasetFolder(tmp_path_factory.mktemp("declared") / "tickets")
    folder.write()
    return folder


def loaded(folder: DatasetFolder, target: dict[str, Any], allowed: str | None) -> Dataset:
    key = {"labels_without_human_rows": allowed} if allowed else {}
    old = dict(folder.attributes["generate"])
    folder.attributes["generate"] = old | {"target": target} | key
    folder.write_spec()
    folder.attributes["generate"] = old
    dataset = load_dataset(folder.folder)
    assert dataset is not None
    return dataset


@pytest.mark.parametrize(("target", "others", "login"), TARGETS)
def test_nothing_is_wanted_of_a_label_without_human_rows_unless_the_key_allows_it(
    folder: DatasetFolder, target: dict[str, Any], others: dict[str, int], login: int
) -> None:
    # Rows to tune on and to measure by are none to learn from.
    train = pl.DataFrame(
        {"label": ["billing"] * 4 + ["delivery"] * 3 + ["login"] * 9,
         "split": ["train"] * 7 + ["validation"] * 9}
    )  # fmt: skip
    seeds = pl.DataFrame({"label": ["billing", "delivery"] * 2, "record_id": list("abcd")})
    refused = rows_wanted(loaded(folder, target, None), train)
    assert {name: count for name, count in refused.items() if count} == {
        name: count for name, count in others.items() if count
    }
    weak = plan_findings(loaded(folder, target, None), seeds, train)
    assert told(weak, "left_out").keys() == {"login"}
    assert "generate.labels_without_human_rows: generate" in weak[0].fix
    allowed = loaded(folder, target, "generate")
    wanted = rows_wanted(allowed, train)
    assert wanted["login"] == login
    # The label stays among those that prompts name, so that they are the same.
    assert wanted.keys() == refused.keys()
    assert told(plan_findings(allowed, seeds, train), "no_human_rows").keys() == {"login"}


def test_a_target_that_names_a_misspelt_label_of_the_data_is_told_which_is_meant(
    tmp_path: Path,
) -> None:
    folder = DatasetFolder(tmp_path / "tickets")
    del folder.attributes["task"]["labels"]
    folder.write()
    train = pl.DataFrame({"label": ["login"], "split": ["train"]})
    with pytest.raises(SynthError, match="lacks: \\['Login'\\] \\(did you mean 'login'\\?\\)"):
        rows_wanted(loaded(folder, {"per_label": {"Login": 3}}, None), train)


# --- shares ----------------------------------------------------------------------------------


def rows_of(counts: Mapping[tuple[str, str | None], int]) -> pl.DataFrame:
    rows = [(label, reason) for (label, reason), count in counts.items() for _ in range(count)]
    places = [(label, reason, f"human.csv:{n}") for n, (label, reason) in enumerate(rows, 1)]
    return pl.DataFrame(places, schema=SCHEMA, orient="row")


def shares(counts: Mapping[tuple[str, str | None], int], **more: Any) -> dict[str, str]:
    rows = Rows("source rows", "set aside", "human_rejects", rows_of(counts), ("dropped_label",))
    return {f.label: f.sentence for f in lost_shares(rows, most=MOST_SET_ASIDE, **more)}


def test_a_share_above_the_threshold_is_said_with_reasons_and_where() -> None:
    counts = {("a", None): 70, ("a", "duplicate"): 20, ("b", None): 70, ("b", "too_short"): 16}
    assert shares(counts) == {
        "": "36 of 176 source rows (20%) are set aside: duplicate 20 (e.g. human.csv:71), "
        "too_short 16 (e.g. human.csv:161)"
    }
    assert not shares({("a", None): 80, ("a", "duplicate"): 20}), "at the threshold"


def test_what_the_declaration_asks_for_is_neither_lost_nor_counted() -> None:
    assert not shares({("a", None): 10, ("x", "dropped_label"): 900})
    said = shares({("a", None): 10, ("a", "duplicate"): 10, ("x", "dropped_label"): 900})
    assert said[""].startswith("10 of 20 source rows (50%)")


def test_a_label_that_loses_nearly_all_is_said_though_the_whole_is_fine() -> None:
    counts = {("a", None): 500, ("b", None): 1, ("b", "duplicate"): 9}
    assert shares(counts).keys() == {"b"}
    assert not shares(counts, labels=["a"])
    assert not shares({("a", None): 500, ("b", "duplicate"): 4}), "a handful"


def test_rows_without_a_label_count_in_the_whole_only() -> None:
    rows = rows_of({("a", None): 5, ("", "missing_label"): 50}).with_columns(
        label=pl.when(pl.col("label") != "").then("label")
    )
    found = lost_shares(Rows("rows", "lost", "t", rows), most=MOST_SET_ASIDE)
    assert [one.label for one in found] == [""]


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from([None, "x", "y", "dropped_label"])),
        st.integers(1, 30),
        min_size=1,
    )
)
def test_a_share_is_said_exactly_when_it_is_above_the_threshold(
    counts: dict[tuple[str, str | None], int],
) -> None:
    said = shares(counts)
    mine = {at: n for at, n in counts.items() if at[1] != "dropped_label"}
    lost = sum(n for (_, reason), n in mine.items() if reason)
    assert ("" in said) == (lost > MOST_SET_ASIDE * sum(mine.values()))
    for label in "abc":
        own = {reason: n for (name, reason), n in mine.items() if name == label}
        gone, total = sum(n for reason, n in own.items() if reason), sum(own.values())
        assert (label in said) == (total >= 5 and gone > MOST_OF_A_LABEL * total)


def judged(*rows: tuple[str, str, str | None]) -> pl.DataFrame:
    schema = {"request_id": pl.String, "cell": pl.String, "reason": pl.String}
    made = pl.DataFrame(rows, schema=schema, orient="row")
    return made.with_columns(item=1, problem=pl.lit(None, pl.String))


def test_generated_and_imported_rows_are_each_measured_by_themselves() -> None:
    good = [("call", "a", None)] * 50
    bad = [("import:desk", "a", "near_duplicate")] * 3 + [("import:desk", "a", None)] * 2
    (found,) = rejected_shares(judged(*good, *bad), pl.Series(["a"]))
    assert found.sentence.startswith("3 of 5 imported rows (60%) are rejected: near_duplicate 3")
    (other,) = rejected_shares(judged(*good, *[("call", "a", "blank")] * 60), pl.Series(["a"]))
    assert other.sentence.startswith("60 of 110 generated rows (55%)")


def test_surplus_is_no_loss_but_where_nobody_may_make_the_label() -> None:
    rows = judged(*[("import:desk", "new", "surplus")] * 6, *[("import:desk", "a", None)] * 9)
    assert not rejected_shares(rows, pl.Series(["new", "a"]))
    found = rejected_shares(rows, pl.Series(["a"]))
    assert [one.label for one in found] == ["new"]
    assert "surplus (no human row) 6" in found[0].sentence


def test_findings_of_a_kind_share_a_line_and_none_is_uncounted() -> None:
    many = [Finding("few", str(n), f"label {n}", "more rows") for n in range(MOST_SENTENCES + 3)]
    lines = lines_of([*many, Finding("one", "x", "another")])
    assert lines[0].startswith("label 0; label 1; ")
    assert lines[0].endswith("; and 3 more (fix: more rows)")
    assert lines[1:] == ["another"]


# --- through the command line ----------------------------------------------------------------


def side(text: str) -> str:
    place = unit("partition", "1", text)
    return "holdout" if place < 0.3 else "validation" if place < 0.4 else "train"


def rows_on(name: str, count: int, label: str) -> list[dict[str, str]]:
    """Texts unlike each other whose hash puts them on that side."""
    words = [f"{label} {unit('word', str(n))} {unit('more', str(n))}" for n in range(200)]
    texts = [" ".join(text.replace(".", " ").split()) for text in words]
    return [{"body": t, "topic": label} for t in texts if side(t) == name][:count]


@dataclass(frozen=True)
class Told:
    """A dataset in which every label lacks something, and what was said of it."""

    place: Place
    folder: DatasetFolder
    plan: Finished
    row: str


@pytest.fixture(scope="module")
def server() -> Iterator[ServerState]:
    with running_server() as state:
        yield state


@pytest.fixture(scope="module")
def lacking(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Told:
    place = made(tmp_path_factory.mktemp("lacking"))
    folder = DatasetFolder(place.defs / "tickets")
    rows = human_rows({"billing": 30})
    single = rows_on("train", 1, "login") + rows_on("holdout", 3, "login")
    rows += rows_on("train", 8, "delivery") + rows_on("holdout", 6, "delivery") + single
    rows += rows_on("holdout", 2, "kept back")
    rows += [{"body": f"{n} coins back", "topic": "refund"} for n in range(4)]
    rows += [dict(rows[0]) for _ in range(30)]
    folder.rows = rows
    labels = ("billing", "delivery", "login", "kept back", "refunds")
    folder.attributes["task"]["labels"] = dict.fromkeys(labels, "")
    folder.write()
    told = synth(place, server, "plan", "tickets", COLUMNS="80")
    return Told(place, folder, told, f"human.csv:{rows.index(single[0]) + 1}")


SAID = (
    "human/label_support: no row has the declared label 'refunds'; did you mean 'refund' (4 rows)?",
    "duplicate 30 (e.g. human.csv:",
    "human_train/label_support: 'kept back' has no training row: of 2 human, 2 held out",
    "plan/label_support: 'kept back' has no human training row: no call is made for it; "
    "'refunds' has no human training row: no call is made for it",
    "20 rows of 'login' to be made from one seed",
)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_plan_says_what_labels_lack_in_eighty_columns_and_goes_on(lacking: Told) -> None:
    assert lacking.plan.code == 0
    assert [words for words in SAID if words not in flat(lacking.plan.out)] == []
    block = lacking.plan.out[lacking.plan.out.index("warnings (") :]
    assert max(map(len, block.splitlines())) <= 80


def test_the_status_says_the_same_to_people_and_to_scripts(
    lacking: Told, server: ServerState
) -> None:
    found = synth(lacking.place, server, "status", "tickets", "--json").json["warnings"]
    assert [words for words in SAID if words not in "\n".join(found)] == []
    table = synth(lacking.place, server, "status", "tickets", COLUMNS="80")
    assert [words for words in SAID if words not in flat(table.out)] == []


def test_no_call_is_planned_for_a_label_without_human_rows_before_the_key_allows_it(
    lacking: Told, server: ServerState, tmp_path: Path
) -> None:
    place = copied(lacking.place, tmp_path / "place")
    plan = place.table(_versions(place, server), "plan")
    assert set(plan["cell"]) == {"billing", "delivery", "login"}
    folder = DatasetFolder(place.defs / "tickets", attributes=lacking.folder.attributes)
    key = {"labels_without_human_rows": "generate"}
    folder.attributes = {
        **folder.attributes,
        "generate": folder.attributes["generate"] | key,
    }
    folder.write_spec()
    told = synth(place, server, "plan", "tickets", "--json")
    assert told.code == 0, told.errors
    after = place.table(_versions(place, server), "plan")
    assert set(after["cell"]) == {*plan["cell"], "kept back", "refunds"}
    # What was planned for the others is asked in the same words.
    same = after.filter(pl.col("cell").is_in(plan["cell"].unique().implode()))
    assert same.equals(plan)
    warned = "\n".join(told.json["warnings"])
    assert "20 rows of 'refunds' to be generated without any human training row, from no" in warned


def test_an_erasure_says_which_label_loses_its_last_training_row_before_and_afterwards(
    lacking: Told, server: ServerState, tmp_path: Path
) -> None:
    place = copied(lacking.place, tmp_path / "place")
    words = "'login' loses its last training row (3 human left, 3 of them held out)"
    selected = ("tickets", "--source-row", lacking.row)
    impact = synth(place, server, "impact", *selected)
    assert words in flat(impact.out)
    assert "'refunds'" not in impact.out, "that is so already"
    before = synth(place, server, "erase", *selected, "--json")
    assert any(words in line for line in before.json["warnings"])
    done = synth(place, server, "erase", *selected, "--yes", "--no-rebuild")
    assert words in flat(done.out[: done.out.index("deleted\n")])
    after = synth(place, server, "plan", "tickets", "--json")
    warned = "\n".join(after.json["warnings"])
    assert "'login' has no training row: of 3 human, 3 held out" in warned
    assert "'login' has no human training row: no call is made for it" in warned


@pytest.mark.slow
def test_a_run_ends_well_and_says_all_of_it_in_its_summary(
    lacking: Told, server: ServerState, tmp_path: Path
) -> None:
    place = copied(lacking.place, tmp_path / "place")
    count = server.request_count
    ran = synth(place, server, "run", "tickets", COLUMNS="80")
    assert ran.code == 0, ran.errors
    assert [words for words in SAID if words not in flat(ran.out)] == []
    asked = str([info.body for info in server.requests[count:]])
    assert '"refunds"' not in asked.replace("\\", "").split("tickets about")[0]
    assert not [label for label in ("refunds", "kept back") if f'about "{label}"' in asked]
    again = place.run(server)
    assert (again.code, again.json["ran"]) == (0, [])
    assert [words for words in SAID if words not in "\n".join(again.json["warnings"])] == []
    (release,) = (place.home / "releases" / "tickets").glob("*/manifest.json")
    assert '"human/label_support": false' in release.read_text()


def _versions(place: Place, server: ServerState) -> dict[str, str]:
    return {stage: found["data_version"] for stage, found in place.statuses(server).items()}


def test_a_source_none_of_whose_labels_is_declared_is_told_which_are_meant(
    server: ServerState, tmp_path: Path
) -> None:
    place = made(tmp_path)
    folder = place.dataset()
    rows = [row | {"topic": row["topic"].title()} for row in folder.rows]
    write_csv(folder.folder / "human.csv", rows)
    ran = synth(place, server, "plan", "tickets")
    assert ran.code == 1
    assert "no usable row among 120" in ran.errors
    assert "no row has the declared label 'login'; did you mean 'Login' (20 rows)?" in ran.errors


def test_the_plan_of_a_dataset_that_generates_nothing_says_what_labels_lack(
    server: ServerState, tmp_path: Path
) -> None:
    place = made(tmp_path)
    folder = place.dataset()
    del folder.attributes["generate"]
    folder.edit("task.labels", dict.fromkeys(("billing", "delivery", "logins"), ""))
    told = synth(place, server, "plan", "tickets")
    assert told.code == 0, told.errors
    assert "nothing to generate" in told.out
    assert "declared label 'logins'; did you mean 'login' (20 rows)?" in flat(told.out)
    found = synth(place, server, "plan", "tickets", "--json").json["warnings"]
    assert any("did you mean 'login'" in line for line in found)
