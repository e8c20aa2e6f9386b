"""What descends from a row, what does not, and how rows are known again without their text."""

from __future__ import annotations

import polars as pl
import pytest

from synth_assets.lifecycle.descent import Known, Table, descent, normalised
from synth_assets.lifecycle.plan import PlanRules, make_plan
from synth_assets.lifecycle.seats import Seats, seated, seats_after
from synth_assets.lifecycle.tombstones import Reading, Tombstones, groups, mark, records

TEXT = "my pump leaks oil since the new seal"
HOW = Reading("body", ("person",))


def raw(*rows: tuple[str | None, str | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"body": [text for text, _ in rows], "person": [who for _, who in rows]},
        schema={"body": pl.String, "person": pl.String},
    ).with_columns(
        pl.lit("a.csv").alias("_source"),
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("_row"),
        pl.lit(None, pl.String).alias("_problem"),
        pl.lit(None, pl.String).alias("_raw"),
    )


def human(*ids: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"record_id": ids, "origin": "human", "text": [f"text of {one}" for one in ids]}
    )


def made(*rows: tuple[str, str, list[str]]) -> pl.DataFrame:
    """(record id, request id, seeds)."""
    return pl.DataFrame(
        {
            "record_id": [one for one, _, _ in rows],
            "origin": "synthetic",
            "text": TEXT,
            "request_id": [call for _, call, _ in rows],
            "item": 0,
            "seed_ids": [seeds for _, _, seeds in rows],
        },
        schema_overrides={"seed_ids": pl.List(pl.String)},
    )


def plan(*calls: tuple[list[str], str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "cell": "a",
            "ordinal": range(len(calls)),
            "seed_ids": [seeds for seeds, _ in calls],
            "prompt": [prompt for _, prompt in calls],
        },
        schema_overrides={"seed_ids": pl.List(pl.String)},
    )


def found(known: Known, *tables: tuple[str, pl.DataFrame]) -> dict[str, list[str]]:
    stages = [Table("d", stage, "v", HOW, frame) for stage, frame in tables]
    rows = descent(stages, known, dataset="d").select("stage", "ids").rows()
    return {stage: list(ids) for stage, ids in rows}


def test_descent_follows_the_row_to_prompts_calls_and_answers() -> None:
    known = Known(texts=normalised([TEXT]))
    rows = human("x", "y").with_columns(
        text=pl.when(pl.col("record_id") == "x").then(pl.lit(TEXT.upper())).otherwise("text")
    )
    calls = made(("s1", "call 1", ["x", "y"]), ("s2", "call 2", ["y"]))
    assert found(
        known,
        ("human_raw", raw((TEXT, "kim"), ("another", "lee"))),
        ("human", rows),
        ("plan", plan((["x", "y"], "..."), (["y"], f"so: {TEXT}!"), (["y"], "text of y"))),
        ("candidates", calls),
        ("train", pl.concat([rows, calls], how="diagonal").with_columns(split=pl.lit("train"))),
    ) == {
        "human_raw": ["a.csv:1"],
        "human": ["x"],
        "plan": ["a/0", "a/1"],
        "candidates": ["call 1/0"],
        "train": ["x", "s1"],
    }
    assert (known.ids, known.calls) == ({"x"}, {"call 1"})


def test_what_a_model_wrote_without_having_seen_the_row_is_no_descendant() -> None:
    known = Known(texts=normalised([TEXT]))
    assert found(known, ("candidates", made(("s", "call 9", ["y"])))) == {}


def test_a_short_text_counts_as_a_line_of_a_prompt_only() -> None:
    known = Known(texts=normalised(["no power"]))
    prompts = (([], "Write rows:\n- No power!\n"), ([], "there is no power in it"))
    assert found(known, ("plan", plan(*prompts))) == {"plan": ["a/0"]}


def test_a_row_that_quotes_the_text_in_any_cell_is_found() -> None:
    known = Known(texts=normalised([TEXT]))
    rows = raw((f"they wrote: {TEXT.title()}.", "lee"), ("x", f"{TEXT} (kim)"), ("y", "lee"))
    assert found(known, ("human_raw", rows)) == {"human_raw": ["a.csv:1", "a.csv:2"]}


def test_imported_rows_descend_through_their_parents_to_any_depth() -> None:
    known = Known(ids={"x"})
    rows = made(
        ("i3", "import:old.csv", ["i2"]),
        ("i2", "import:old.csv", ["i1"]),
        ("i1", "import:old.csv", ["x"]),
        ("i4", "import:old.csv", ["z"]),
    ).with_columns(item=pl.Series([3, 2, 1, 4]))
    assert found(known, ("imported", rows)) == {
        "imported": ["import:old.csv/3", "import:old.csv/2", "import:old.csv/1"]
    }
    assert known.calls == set()


def test_what_other_datasets_hold_leads_nowhere_in_ours() -> None:
    known = Known(texts=normalised([TEXT]))
    theirs = Table("other", "human", "v", None, human("o").with_columns(text=pl.lit(TEXT)))
    calls = Table("other", "candidates", "v", None, made(("s", "call o", ["o"])))
    ours = Table("d", "candidates", "v", None, made(("s", "call o", ["y"])))
    rows = descent([theirs, calls, ours], known, dataset="d")
    assert rows["dataset"].to_list() == ["other", "other"]
    assert (known.ids, known.calls) == (set(), set())


# --- tombstones ------------------------------------------------------------------------------


def stones(**values: list[str]) -> Tombstones:
    salt = "ab" * 32
    return Tombstones(
        salt,
        {kind: frozenset(mark(salt, kind, one) for one in these) for kind, these in values.items()},  # type: ignore[misc]
    )


@pytest.mark.parametrize(
    ("marks", "gone"),
    [
        pytest.param(stones(text=sorted(normalised([TEXT]))), [1], id="text"),
        pytest.param(stones(group=["lee"]), [2, 3], id="group"),
        pytest.param(stones(record=["person=kim"]), [4], id="record"),
        pytest.param(stones(), [], id="nothing"),
    ],
)
def test_erased_rows_keep_their_place_and_nothing_else(marks: Tombstones, gone: list[int]) -> None:
    rows = raw((f" {TEXT.upper()}!", "kim"), ("a", "lee"), ("b", "lee"), ("", "kim"), ("c", None))
    (redacted,) = marks.redact([rows], HOW)
    erased = redacted.filter(pl.col("_problem") == "erased")
    assert erased["_row"].to_list() == gone
    assert erased.select("body", "person", "_raw").null_count().row(0) == (len(gone),) * 3
    assert redacted.filter(pl.col("_problem").is_null()).equals(
        rows.filter(~pl.col("_row").is_in(gone))
    )


def test_a_record_on_a_line_becomes_a_stub_that_is_known_again() -> None:
    marks = stones(text=sorted(normalised([TEXT])))
    conceal = marks.conceal(HOW)
    line = f'{{"id":7,"body":"{TEXT}","person":null}}'
    stub = conceal(line)
    assert stub == conceal(line)
    assert "pump" not in stub
    assert conceal('{"body":"another"}') == '{"body":"another"}'
    assert conceal("not JSON") == "not JSON"
    landed = raw((None, None)).with_columns(_raw=pl.lit(stub), _problem=pl.lit("not_an_object"))
    (redacted,) = marks.redact([landed], HOW)
    assert redacted.select("_problem", "_raw").row(0) == ("erased", None)


def test_marks_tell_nothing_without_the_salt_and_their_digest_counts() -> None:
    assert mark("00" * 32, "text", "a") != mark("01" * 32, "text", "a")
    assert mark("00" * 32, "text", "a") != mark("00" * 32, "group", "a")
    assert stones().digest == ""
    assert stones(text=["a"]).digest != stones(text=["b"]).digest
    assert groups(raw(("a", "lee"), ("b", "")), HOW.group_by).to_list() == ["lee", None]
    assert records(raw(("a", "lee"))).to_list() == ["body=a\x1fperson=lee"]


# --- seats -----------------------------------------------------------------------------------

RULES = PlanRules(5, 3, 4.0, {}, 0)


def seeds_of(*ids: str) -> pl.DataFrame:
    ranks = pl.Series("seed_rank", range(len(ids)), pl.Int32)
    return human(*ids).with_columns(ranks, label=pl.lit("a"))


def prompts_of(seeds: pl.DataFrame) -> list[str]:
    made = make_plan(
        {"a": 40},
        seeds,
        RULES,
        stratum="label",
        render=lambda cell, shown, rows, attributes: "|".join(one["text"] for one in shown),
        system=None,
    )
    return made["prompt"].to_list()


def test_only_calls_that_showed_the_erased_seed_change_and_the_new_one_has_its_place() -> None:
    ids = [f"r{n}" for n in range(12)]
    before, chosen = seeds_of(*ids), seeds_of(*ids[:8])
    after = before.filter(pl.col("record_id") != "r3")
    (seats,) = seats_after(chosen, before, after, stratum="label", code="c")
    # Without the row, quite other rows would be chosen.
    anew = seeds_of("r9", "r8", "r7", "r6", "r5", "r4", "r2", "r10")
    kept = seated(anew, after, [seats], stratum="label", code="c")
    assert kept["record_id"].to_list() == ["r0", "r1", "r2", "r9", "r4", "r5", "r6", "r7"]
    was, now = prompts_of(chosen), prompts_of(kept)
    assert [p.replace("text of r3", "text of r9") for p in was] == now
    # One erasure after another.
    rest = after.filter(pl.col("record_id") != "r9")
    (again,) = seats_after(kept, after, rest, stratum="label", code="c")
    twice = seated(seeds_of("r8", "r10"), rest, [seats, again], stratum="label", code="c")
    assert prompts_of(twice) == [p.replace("text of r3", "text of r8") for p in was]
    assert Seats.from_dict(again.to_dict()) == again


def test_seats_lapse_when_the_label_or_the_declaration_changes() -> None:
    ids = [f"r{n}" for n in range(6)]
    before = seeds_of(*ids)
    after = before.filter(pl.col("record_id") != "r3")
    seats = seats_after(seeds_of(*ids[:4]), before, after, stratum="label", code="c")
    anew = seeds_of("r5", "r4", "r2", "r1")
    more = pl.concat([after, seeds_of("r7")])
    for train, code in ((more, "c"), (after, "d")):
        assert seated(anew, train, seats, stratum="label", code=code).equals(
            anew.sort("label", "seed_rank", "record_id")
        )
    assert seats_after(anew, before, before, stratum="label", code="c") == []


def test_a_label_without_a_spare_row_has_one_seed_less() -> None:
    before = seeds_of("r0", "r1", "r2")
    after = before.filter(pl.col("record_id") != "r1")
    seats = seats_after(before, before, after, stratum="label", code="c")
    kept = seated(after, after, seats, stratum="label", code="c")
    assert kept["record_id"].to_list() == ["r0", "r2"]
    assert "slot" not in kept.columns
