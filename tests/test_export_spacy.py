"""DocBin files read back in spaCy with exactly the texts, their categories and their spans."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from synth_assets.errors import SynthError
from synth_assets.exports import docbin
from synth_assets.exports.docbin import Annotation, as_cats, document, write_docbins
from synth_assets.spec.model import DatasetSpec
from synth_assets.tasks import task_for
from tests.releases import ATTRIBUTES, LABELS, rows

TASK = task_for(DatasetSpec.model_validate(ATTRIBUTES))


@pytest.fixture
def spacy() -> Any:
    return pytest.importorskip("spacy")


def read(spacy: Any, folder: Path) -> list[Any]:
    nlp, docs = spacy.blank("xx"), []
    for path in sorted(folder.iterdir()):
        docs += spacy.tokens.DocBin().from_disk(path).get_docs(nlp.vocab)
    return docs


def test_every_hostile_text_comes_back_with_its_category(spacy: Any, tmp_path: Path) -> None:
    table = rows(20)
    annotate = as_cats(TASK, tuple(LABELS))
    assert write_docbins(table.lazy(), tmp_path, text="text", annotate=annotate) == table.height
    docs = read(spacy, tmp_path)
    assert [doc.text for doc in docs] == table["text"].to_list()
    assert [max(doc.cats, key=doc.cats.get) for doc in docs] == table["label"].to_list()
    assert all(set(doc.cats) == set(LABELS) and sum(doc.cats.values()) == 1 for doc in docs)
    assert [doc.user_data["record_id"] for doc in docs] == table["record_id"].to_list()
    assert {doc.user_data["weight"] for doc in docs} == {1.0}


def test_files_are_cut_by_documents_and_by_text(
    spacy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(3_000)
    annotate = as_cats(TASK, tuple(LABELS))
    monkeypatch.setattr(docbin, "SHARD_DOCS", 1_000)
    write_docbins(table.lazy(), tmp_path / "docs", text="text", annotate=annotate)
    assert len(list((tmp_path / "docs").iterdir())) == 4
    assert [doc.text for doc in read(spacy, tmp_path / "docs")] == table["text"].to_list()
    monkeypatch.setattr(docbin, "SHARD_CHARS", 1)
    write_docbins(table.head(1).lazy(), tmp_path / "text", text="text", annotate=annotate)
    assert len(list((tmp_path / "text").iterdir())) == 1


def test_a_text_categoriser_trains_on_the_files(spacy: Any, tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "record_id": [str(n) for n in range(40)],
            "origin": "human",
            "weight": 1.0,
            "text": ["my invoice is wrong", "the parcel is late"] * 20,
            "label": ["billing", "no"] * 20,
        }
    )
    annotate = as_cats(TASK, ("billing", "no"))
    write_docbins(table.lazy(), tmp_path / "train", text="text", annotate=annotate)
    nlp = spacy.blank("xx")
    nlp.add_pipe("textcat")
    corpus = importlib.import_module("spacy.training").Corpus(tmp_path / "train")
    nlp.initialize(lambda: corpus(nlp))
    for _ in range(5):
        nlp.update(list(corpus(nlp)))
    assert nlp("the parcel is late").cats["no"] > 0.5


def test_spans_become_entities_and_span_groups(spacy: Any, tmp_path: Path) -> None:
    def annotate(row: Mapping[str, Any]) -> Annotation:
        return Annotation(spans=[(4, 8, "PART"), (4, 14, "PHRASE")])

    table = rows().head(1).with_columns(text=pl.lit("the pump leaked again"))
    write_docbins(table.lazy(), tmp_path, text="text", annotate=annotate)
    (doc,) = read(spacy, tmp_path)
    assert [(span.text, span.label_) for span in doc.spans["sc"]] == [
        ("pump", "PART"),
        ("pump leaked", "PHRASE"),
    ]
    assert [(span.text, span.label_) for span in doc.ents] == [("pump leaked", "PHRASE")]
    assert doc[0].ent_iob_ == "O"
    assert doc.cats == {}


def test_a_span_outside_its_text_is_named(spacy: Any) -> None:
    row = {"record_id": "7", "origin": "human", "weight": 1.0, "text": "short"}
    with pytest.raises(SynthError, match="record 7: an annotated span is not within its text"):
        document(
            spacy.blank("xx"),
            row,
            text="text",
            annotate=lambda _: Annotation(spans=[(50, 60, "PART")]),
        )


def test_without_spacy_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "spacy.tokens", None)
    with pytest.raises(SynthError, match=r"needs spaCy.*\n  fix: install it: pip install"):
        docbin.require_spacy()
