"""A dataset card says what it is; no text of others breaks its header, its tables or its fences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_assets.errors import SynthError
from synth_assets.exports import huggingface
from synth_assets.exports.card import LICENSES, fenced, header, origin
from synth_assets.exports.formats import Options
from synth_assets.exports.huggingface import Classes, card_features, common_schema, write_shards
from synth_assets.exports.source import open_release
from synth_assets.exports.write import Exported, export
from tests.releases import ATTRIBUTES, LABELS, PROMPT, publish, rows

SPLITS = ("train", "validation", "eval")
# A header as the Hub's own library finds it.
HEADER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")


def exported(tmp_path: Path, *, splits: tuple[str, ...] = SPLITS, **published: Any) -> Exported:
    publish(tmp_path / "releases", **published)
    release = open_release(tmp_path / "releases", "tickets")
    return export(release, "hf", tmp_path / "out", splits=splits, options=Options())


def card_of(found: Exported) -> str:
    return (found.folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    found = HEADER.match(card)
    assert found
    return dict(yaml.safe_load(found[2]))


def test_rows_and_class_numbers_are_in_the_shards(tmp_path: Path) -> None:
    folder = exported(tmp_path).folder / "data"
    found = pl.read_parquet(folder / "train-00000-of-00001.parquet")
    names = pl.Series(LABELS.keys())
    assert found.with_columns(label=names.gather(found["label"])).equals(rows(20))
    human = pl.read_parquet(folder / "eval-00000-of-00001.parquet")
    assert human.schema == found.schema
    assert human["seed_ids"].null_count() == human.height


def test_shards_are_cut_by_their_text_and_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 200_000)
    table = rows(5_000)
    assert write_shards(table.lazy(), tmp_path, "train", schema=table.schema) == table.height
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 2
    assert names == [f"train-{n:05}-of-{len(names):05}.parquet" for n in range(len(names))]
    assert pl.concat(map(pl.read_parquet, [tmp_path / name for name in names])).equals(table)


def test_a_split_without_rows_is_left_out_and_said(tmp_path: Path) -> None:
    empty = rows(split="validation", synthetic=False).head(0)
    found = exported(tmp_path, tables={"validation": empty})
    assert found.record["notes"] == ["validation has no rows and is left out"]
    assert "left out: validation" in card_of(found)
    splits = [one["split"] for one in front_matter(card_of(found))["configs"][0]["data_files"]]
    assert splits == ["train", "eval"]


def test_human_rows_alone_are_not_called_synthetic(tmp_path: Path) -> None:
    assert "tags" not in front_matter(card_of(exported(tmp_path, splits=("eval",))))


def test_hostile_text_breaks_neither_header_nor_tables_nor_fence(tmp_path: Path) -> None:
    card = card_of(exported(tmp_path))
    head = front_matter(card)
    names = head["dataset_info"]["features"][3]["dtype"]["class_label"]["names"]
    assert list(names.values()) == list(LABELS)
    body = card.split("\n---\n", 1)[1]
    fence = re.search(r"^(`{5,})jinja\n(.*?)\n\1$", body, flags=re.MULTILINE | re.DOTALL)
    assert fence
    assert fence[2] == PROMPT.replace("\0", " ").rstrip()
    rest = body.replace(fence[0], "")
    assert "\n---\n" not in rest
    assert "<" not in rest
    tables = [line for line in rest.split("\n") if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths == {5, 7}  # composition, strata, contribution: none has a row of its own width
    assert "NOT PASSED: eval/contract" in rest
    assert "0.750" in rest


def test_several_sources_are_named_by_what_they_hold(tmp_path: Path) -> None:
    source = {"kind": "files", "path": "s3://bucket/secret-folder/desk.csv", "license": "CC0-1.0"}
    attributes = {name: value for name, value in ATTRIBUTES.items() if name != "source"}
    attributes["sources"] = [
        source | {"name": "desk"},
        source | {"name": "phone", "path": "phone.csv"},
        source | {"name": "bought", "path": "a|b.csv", "license": "", "role": "synthetic"},
    ]
    card = card_of(exported(tmp_path, attributes=attributes))
    assert front_matter(card)["license"] == "cc0-1.0"
    human = "Human rows come from desk.csv (licence: CC0-1.0), phone.csv (licence: CC0-1.0)."
    assert human in card
    assert "existed before. They come from\na\\|b.csv (no licence declared);" in card
    assert "secret-folder" not in card
    assert "import:" not in card_of(exported(tmp_path / "alone"))


def sources(*licences: tuple[str, str]) -> dict[str, Any]:
    """ATTRIBUTES with a source of a name for each (name, licence)."""
    several = [
        {"kind": "files", "path": f"{name}.csv", "name": name, "license": licence}
        for name, licence in licences
    ]
    return {key: value for key, value in ATTRIBUTES.items() if key != "source"} | {
        "sources": several
    }


def test_a_mix_of_licences_is_told_as_a_mix_with_its_sources_and_rows(tmp_path: Path) -> None:
    attributes = sources(("desk", "CC BY 4.0"), ("phone", "MIT"), ("walk-in", "mit"))
    train = rows(20)
    human = train.filter(pl.col("origin") == "human").height
    named = train.with_columns(source=pl.when(pl.col("origin") == "human").then(pl.lit("desk/a")))
    card = card_of(exported(tmp_path, attributes=attributes, tables={"train": named}))
    found = front_matter(card)
    told = f"CC BY 4.0: desk, {human} rows; MIT: phone, walk-in, 0 rows"
    assert (found["license"], found["license_name"]) == ("other", "mixed")
    assert found["license_details"] == told
    assert f"The licences are mixed: {told}." in card


def test_a_source_without_a_licence_is_not_under_that_of_another(tmp_path: Path) -> None:
    card = card_of(exported(tmp_path, attributes=sources(("desk", "MIT"), ("phone", ""))))
    found = front_matter(card)
    assert found["license"] == "mit"
    assert found["license_details"] == "MIT: desk, 0 rows; none declared: phone, 0 rows"
    assert "The licences are mixed: MIT: desk, 0 rows; none declared" in card


@pytest.mark.parametrize("licences", [("MIT", "MIT"), ("mit", "MIT "), ("CC BY 4.0", "cc-by-4.0")])
def test_one_licence_in_two_spellings_is_no_mix(tmp_path: Path, licences: tuple[str, str]) -> None:
    attributes = sources(*zip(("desk", "phone"), licences, strict=True))
    card = card_of(exported(tmp_path, attributes=attributes))
    assert front_matter(card)["license"] in {"mit", "cc-by-4.0"}
    assert "license_details" not in front_matter(card)
    assert "mixed" not in card


def test_the_card_counts_human_and_synthetic_rows(tmp_path: Path) -> None:
    card = card_of(exported(tmp_path))
    made = rows(20)["origin"].value_counts().sort("origin")["count"].to_list()
    assert f"| train | {made[0]} | {made[1]} | {sum(made)} |" in card


def test_a_column_without_a_type_there_says_so() -> None:
    schema = common_schema([pl.LazyFrame({"when": [None]}, schema={"when": pl.Date})])
    with pytest.raises(SynthError, match="when: the hf format has no type for Date"):
        card_features(schema, None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), unique=True, min_size=1, max_size=4), st.text())
def test_any_label_and_licence_survive_the_header(labels: list[str], licence: str) -> None:
    table = pl.LazyFrame({"label": ["x"]})
    features = card_features(table.collect_schema(), Classes("label", tuple(labels)))
    text = header(
        manifest={"dataset": "d", "declared": {"source": {"license": licence}}},
        kind="classification",
        rows={"train": 1},
        features=features,
        synthetic=True,
    )
    found = front_matter(text + "\nbody\n---\nlicense: y\n")
    names = found["dataset_info"]["features"][0]["dtype"]["class_label"]["names"]
    assert list(names.values()) == labels
    assert found["license"] in {"unknown", "other", *LICENSES}
    assert text.isascii()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "unknown"),
        ("MIT", "mit"),
        ("Apache 2.0", "apache-2.0"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("公有领域", "other"),
        ("ask us", "other"),
    ],
)
def test_a_licence_is_one_the_hub_knows_or_other(text: str, expected: str) -> None:
    made = header(
        manifest={"dataset": "d", "declared": {"source": {"license": text}}},
        kind="another",
        rows={"train": 2_000_000},
        features=[],
        synthetic=False,
    )
    found = front_matter(made)
    assert found["license"] == expected
    assert ("license_details" in found) == (expected == "other")
    assert found["size_categories"] == ["1M<n<10M"]
    assert "task_categories" not in found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "package", "package": "a==1"}, "a==1"),
        ({"kind": "files", "path": "/home/me/secret/human.csv"}, "human.csv"),
        ({"kind": "files", "path": "C:\\me\\human.csv"}, "human.csv"),
        ({"kind": "sql", "url": "postgresql://me:password@host/db"}, "a sql source"),
    ],
)
def test_a_card_names_no_folder_and_no_address(source: dict[str, str], said: str) -> None:
    assert origin(source) == said


@given(st.text(alphabet="`~a\n\r\0\u202e\u2028 -"))
def test_nothing_ends_a_fence_but_its_own_end(text: str) -> None:
    first, *inside, last = fenced(text).split("\n")
    assert inside
    assert first == last + "jinja"
    assert set(last) == {"`"}
    assert not [line for line in inside if line.strip().startswith(last)]
    assert not re.search("[\0\r\u202e\u2028]", "".join(inside))
