"""Synthetic rows that exist already: shaped as our own, with where they are from."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from schemas.synthetic import PROVENANCE, synthetic_rows
from synth_assets.errors import SourceError
from synth_assets.lifecycle.imported import REJECTS, ImportRules, import_rows
from synth_assets.lifecycle.screen import References, ScreenRules, judge
from synth_assets.sources.files import read_batches
from synth_assets.sources.records import FileFormat
from synth_assets.tasks.classification import Classification

RULES = ImportRules({"text": "body", "label": "topic"}, "label", "classification")


def raw(folder: Path, content: bytes) -> pl.DataFrame:
    path = folder / "bought.csv"
    path.write_bytes(content)
    return pl.concat(
        list(read_batches([("bought", path)], FileFormat("csv"), required_columns=["body"]))
    )


def test_rows_keep_the_contract_of_synthetic_rows(tmp_path: Path) -> None:
    frame = raw(tmp_path, b"body,topic\n my parcel is lost ,delivery\nno refund yet,billing\n")
    rows, rejects = import_rows(frame, RULES)
    schema = synthetic_rows(["text", "label"], {"label": ["delivery", "billing"]})
    schema.validate(rows)
    assert rejects.schema == REJECTS
    assert rejects.is_empty()
    first = rows.row(0, named=True)
    assert first["text"] == "my parcel is lost"
    assert {name: first[name] for name in PROVENANCE} == {
        "request_id": "import:bought",
        "item": 1,
        "seed_ids": [],
        "prompt_version": "",
        "model": "unknown",
        "cell": "delivery",
        "attributes": "{}",
    }


def test_model_parents_and_attributes_come_from_their_columns(tmp_path: Path) -> None:
    content = (
        b"body,topic,by,from,tone\n"
        b'first text here,a,big-model,"7, 9",calm\n'
        b'second text here,a,,"[""x"", 5]",\n'
    )
    rules = ImportRules(
        {"text": "body", "label": "topic"},
        "label",
        "classification",
        model="house-model",
        model_column="by",
        parents_column="from",
        attributes_columns=["tone"],
    )
    rows, _ = import_rows(raw(tmp_path, content), rules)
    assert rows["model"].to_list() == ["big-model", "house-model"]
    assert rows["seed_ids"].to_list() == [["7", "9"], ["x", "5"]]
    assert rows["attributes"].to_list() == ['{"tone":"calm"}', "{}"]


def test_what_cannot_be_read_is_a_reject_with_its_reason_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    content = (
        b"body,topic,from\ngood text,a,1\n,a,1\nno label,,1\nodd parents,a,[1\nx,y\n\xff,a,1\n"
    )
    frame = raw(tmp_path, content)
    rules = ImportRules(
        {"text": "body", "label": "topic"}, "label", "classification", parents_column="from"
    )
    rows, rejects = import_rows(frame, rules)
    assert rows["text"].to_list() == ["good text"]
    assert rejects.select("source_row", "reason").rows() == [
        (2, "missing_text"),
        (3, "missing_label"),
        (4, "bad_parents"),
        (5, "wrong_field_count"),
        (6, "undecodable"),
    ]
    assert rejects["detail"].to_list() == [None, None, "[1", None, None]
    assert rejects["raw"].to_list()[3:] == ["x,y", r"\xff,a,1"]
    assert rows.height + rejects.height == frame.height


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    rules = ImportRules({"text": "words", "label": "topic"}, "label", "classification")
    with pytest.raises(SourceError, match="no column 'words'; found 'body', 'topic'"):
        import_rows(raw(tmp_path, b"body,topic\nx,y\n"), rules)


def test_imported_rows_pass_the_screen_that_generated_ones_pass(tmp_path: Path) -> None:
    content = (
        b"body,topic\nthe courier left my parcel in the rain,delivery\n"
        b"a text that the holdout has word for word,delivery\n"
        b"the courier left my parcel in the rain!,delivery\n"
    )
    rows, _ = import_rows(raw(tmp_path, content), RULES)
    human = pl.DataFrame(
        {
            "record_id": ["h1"],
            "text": ["a text that the holdout has word for word"],
            "label": ["delivery"],
        }
    )
    candidates = rows.select(*RULES.payload, *PROVENANCE).with_columns(
        pl.lit(0, pl.Int32).alias("round"),
        pl.lit(0, pl.Int32).alias("ordinal"),
        pl.lit(100, pl.Int32).alias("wanted"),
        *(pl.lit(None, pl.String).alias(name) for name in ("problem", "problem_detail", "raw")),
    )
    judged = judge(
        candidates,
        References(train=human.clear(), validation=human.clear(), holdout=human),
        ScreenRules(near_duplicate=0.8, decontaminate=0.6),
        Classification("body", "topic"),
    )
    assert judged["reason"].to_list() == [None, "near_copy_of_holdout", "near_duplicate"]
