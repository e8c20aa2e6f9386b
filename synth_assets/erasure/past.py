"""Names that a home knows and no folder declares: what a dataset was called before it was renamed.

Nothing says which dataset they were of. Their tables do say how their source rows were read, and
that is all that finding and deleting a row needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import polars as pl

from synth_assets.cells import GROUP_MARK, group_of, trimmed
from synth_assets.erasure.impact import read_table, versions_of
from synth_assets.lifecycle.tombstones import Reading
from synth_assets.settings import Home
from synth_assets.spec.load import Dataset, Discovery
from synth_assets.spec.model import DatasetSpec
from synth_assets.spec.prompt import PromptTemplate
from synth_assets.text import normalise
from synth_assets.upkeep.home import past_names

NO_FOLDER = "no folder declares it"


def past_datasets(home: Home, found: Discovery) -> dict[str, Dataset]:
    """Every name of the home that is declared nowhere, as a dataset that can be searched.

    Raises:
        SynthError: a table that tells how rows are read cannot be read itself.
    """
    return {name: past_dataset(home, name) for name in past_names(home, found)}


def past_dataset(home: Home, name: str) -> Dataset:
    """What is left of a dataset without a folder: its name, and how its source rows are read."""
    reading = reading_from_tables(home, name)
    spec = DatasetSpec.model_validate(
        {
            "task": {
                "kind": "classification",
                "text": reading.text,
                "label": f"not {reading.text}"[:200],
            },
            "source": {"kind": "files", "path": NO_FOLDER},
            "partition": {"group_by": list(reading.group_by)},
            "generate": {"model": "none", "target": {"per_label": 1}},
        }
    )
    folder = Path("/dev/null") / name  # where no file can ever be
    return Dataset(name, folder, spec, PromptTemplate(folder / "prompt", ""))


def is_past(dataset: Dataset) -> bool:
    """Whether it has no folder any more."""
    return not dataset.file.exists()


def reading_from_tables(home: Home, name: str) -> Reading:
    """Which source columns became the texts and the groups of ``human``, by what stands in both."""
    for raw, human in _pairs(home, name):
        cells = {column: f"raw {column}" for column in raw.columns if column[:1] != "_"}
        both = human.join(
            raw.rename(cells), left_on=["source", "source_row"], right_on=["_source", "_row"]
        )
        text = _same(both, cells, lambda name: trimmed(pl.col(name)), pl.col("text"))
        if both.height and text:
            return Reading(text, tuple(_groups(both, cells)))
    return Reading("text")


def _pairs(home: Home, name: str) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    for landed in versions_of(home, name, "human_raw"):
        for used in versions_of(home, name, "human"):
            human = read_table(used)
            if {"text", "group", "source", "source_row"} <= set(human.columns):
                yield read_table(landed), human


def _groups(both: pl.DataFrame, cells: Mapping[str, str]) -> Iterator[str]:
    """The columns that groups are made of, in order; none where a text is its own group."""
    grouped = both.filter(pl.col("group") != normalise(pl.col("text")))
    if grouped.is_empty():
        return
    for place in range(grouped["group"].str.count_matches(GROUP_MARK)[0] + 1):
        part = pl.col("group").str.split(GROUP_MARK).list.get(place, null_on_oob=True)
        column = _same(grouped, cells, lambda name: group_of([name]), part)
        if column is None:
            return
        yield column


def _same(
    both: pl.DataFrame,
    cells: Mapping[str, str],
    read: Callable[[str], pl.Expr],
    wanted: pl.Expr,
) -> str | None:
    """The first source column that, as it is read, says what is wanted in every row."""
    for column, renamed in cells.items():
        said = read(renamed)
        if both.select((said.fill_null("") == wanted.fill_null("")).all()).item():
            return column
    return None
