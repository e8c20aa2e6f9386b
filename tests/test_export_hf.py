"""A Hugging Face folder loads in `datasets`, its classes named; the Hub's library reads its card.

Runs where `datasets` is installed; `test_export_libraries` makes such a place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from synth_assets.exports import huggingface
from tests.releases import ATTRIBUTES, LABELS, rows
from tests.test_export_card import SPLITS, exported

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
datasets = pytest.importorskip("datasets")
hub = pytest.importorskip("huggingface_hub")


def loaded(folder: Path, tmp_path: Path) -> Any:
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


def test_the_folder_loads_with_every_row_and_named_classes(tmp_path: Path) -> None:
    found = loaded(exported(tmp_path).folder, tmp_path)
    tables = {
        "train": rows(20),
        "validation": rows(split="validation", synthetic=False),
        "eval": rows(5, split="eval", synthetic=False),
    }
    assert list(found) == list(tables)
    for split, table in tables.items():
        got = found[split]
        assert got.features["label"].names == list(LABELS)
        names = got.features["label"].int2str(got["label"][:])
        assert names == table["label"].to_list()
        for column in table.columns:
            if column != "label":
                assert got[column][:] == table[column].to_list(), column
    assert found["eval"]["seed_ids"][:] == [None] * len(found["eval"])


def test_a_folder_that_lost_rows_does_not_load(tmp_path: Path) -> None:
    folder = exported(tmp_path).folder
    (shard,) = folder.glob("data/eval-*.parquet")
    shard.write_bytes(next(folder.glob("data/train-*.parquet")).read_bytes())
    with pytest.raises(Exception, match="eval"):
        loaded(folder, tmp_path)


def test_a_folder_streams_too(tmp_path: Path) -> None:
    found = datasets.load_dataset(
        str(exported(tmp_path).folder), streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert [row["text"] for row in found["train"]] == rows(20)["text"].to_list()


def test_the_hub_library_reads_the_card(tmp_path: Path) -> None:
    folder = exported(tmp_path).folder
    found = hub.DatasetCard.load(folder / "README.md").data.to_dict()
    assert found["license"] == "other"
    assert re.fullmatch(r"[a-z0-9-]+", found["license_name"])
    assert found["license_details"] == "Public domain --- license: x</td>|"
    assert found["tags"] == ["synthetic"]
    assert found["task_categories"] == ["text-classification"]
    assert found["size_categories"] == ["n<1K"]
    assert found["configs"][0]["data_files"] == [
        {"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS
    ]


def test_a_split_without_rows_does_not_stop_the_others(tmp_path: Path) -> None:
    empty = rows(split="validation", synthetic=False).head(0)
    found = loaded(exported(tmp_path, tables={"validation": empty}).folder, tmp_path)
    assert list(found) == ["train", "eval"]


def test_one_split_alone_has_its_own_columns(tmp_path: Path) -> None:
    found = loaded(exported(tmp_path, splits=("eval",)).folder, tmp_path)
    assert list(found["eval"].features) == rows(synthetic=False).columns


def test_many_shards_are_one_split_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 200_000)
    found = exported(tmp_path, tables={"train": rows(5_000)})
    assert len(list(found.folder.glob("data/train-*.parquet"))) > 2
    ids = loaded(found.folder, tmp_path)["train"]["record_id"][:]
    assert ids == rows(5_000)["record_id"].to_list()


def test_labels_that_nobody_declared_are_classes_in_order(tmp_path: Path) -> None:
    attributes = {**ATTRIBUTES, "task": {**ATTRIBUTES["task"], "labels": None}}
    found = loaded(exported(tmp_path, attributes=attributes).folder, tmp_path)
    assert found["train"].features["label"].names == sorted(LABELS)


def test_too_many_classes_stay_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MOST_CLASSES", 3)
    found = loaded(exported(tmp_path).folder, tmp_path)
    assert found["train"]["label"][:] == rows(20)["label"].to_list()
