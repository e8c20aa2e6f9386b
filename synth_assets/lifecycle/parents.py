"""Which human rows imported rows were written from, and whether one of them must stay unseen.

A parent is named by a human row's declared id, by its ``record_id`` or by its text. What names no
human row stays as it is written. A row whose parent is a holdout or validation row, is like one,
or belongs to a group that is held out, carries that row into training and is refused; so is one
whose parents cell is such a text itself.

Limits: only human rows are looked up, so a parent that is itself an imported row leads no further;
an id that several sources use stands for all rows that have it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import polars as pl

from synth_assets.lifecycle.leakage import copies
from synth_assets.text import normalise

IDS: dict[str, pl.DataType] = {"key": pl.String(), "text": pl.String(), "group": pl.String()}


@dataclass(frozen=True)
class HumanRows:
    """Whom a parent may be.

    ``ids``: source rows by declared id, usable or not (schema ``IDS``; group null where none is
    declared). ``rows``: usable rows (record_id, group, the text column). ``holdout`` and
    ``validation``: those of them that stay unseen. ``text``: the text column's name;
    ``threshold``: Jaccard similarity from which a text is like an unseen one; ``stratum``: the
    column of the label, so that a training row that is the opposite of an unseen one may be a
    parent, as it may be trained on.
    """

    ids: pl.DataFrame
    rows: pl.DataFrame
    holdout: pl.DataFrame
    validation: pl.DataFrame
    text: str
    threshold: float
    stratum: str | None = None


def whole_cells(cells: pl.Series, human: HumanRows) -> pl.Series:
    """Parents cells, with each that is one id or one human text as a whole made a list of one.

    Commas stand between parents, and in texts as well.
    """
    frame = pl.DataFrame({"cell": cells.cast(pl.String).str.strip_chars()})
    known = human.rows.select(normalise(pl.col(human.text))).to_series()
    one = frame.select(
        pl.col("cell").is_in(human.ids["key"].implode())
        | normalise(pl.col("cell")).is_in(known.implode())
    ).to_series()
    unseen = pl.concat([human.holdout, human.validation], how="diagonal")
    like = copies(frame["cell"].fill_null(""), unseen, text=human.text, threshold=human.threshold)
    places = set(one.fill_null(False).arg_true()) | set(like["row"])
    made = [
        json.dumps([cell]) if place in places and cell and not cell.startswith("[") else cell
        for place, cell in enumerate(frame["cell"])
    ]
    return pl.Series(cells.name, made, dtype=pl.String)


def resolve_parents(rows: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """``rows`` with record ids in ``seed_ids`` where a human row was found, and ``problem``.

    ``problem`` (String, null: none) is derived_from_holdout or derived_from_validation,
    ``problem_detail`` says which parent and why.
    """
    numbered = rows.with_row_index("place")
    named = numbered.select("place", parent="seed_ids").explode("parent").drop_nulls()
    parents = named.select(pl.col("parent").unique(maintain_order=True))
    found = _found(parents, human)
    normal = human.rows.select("record_id", normal=normalise(pl.col(human.text)))
    resolved = (
        found.with_columns(normal=normalise(pl.col("text")))
        .join(normal, on="normal")
        .group_by("parent")
        .agg(ids=pl.col("record_id").unique().sort())
    )
    refused = _refused(found, human)
    # Of several refused parents one is told: of the holdout first, then the first one written.
    told = {"nulls_last": True, "maintain_order": True}
    per_row = (
        named.join(resolved, on="parent", how="left", maintain_order="left")
        .join(refused, on="parent", how="left", maintain_order="left")
        .with_columns(ids=pl.coalesce("ids", pl.concat_list("parent")))
        .group_by("place", maintain_order=True)
        .agg(
            seed_ids=pl.col("ids").explode().unique(maintain_order=True),
            problem=pl.col("problem").sort_by("problem", **told).first(),
            problem_detail=pl.col("problem_detail").sort_by("problem", **told).first(),
        )
    )
    return (
        numbered.rename({"seed_ids": "written"})
        .join(per_row, on="place", how="left", maintain_order="left")
        .with_columns(seed_ids=pl.coalesce("seed_ids", "written"))
        .select(*rows.columns, "problem", "problem_detail")
    )


def _found(parents: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """parent, text, group: what a parent names, by the first way that names something.

    A parent that names nothing is its own text: it may be one that no row has any more.
    """
    rows = human.rows.select("record_id", "group", text=human.text)
    texts = rows.select("text", "group", key=normalise(pl.col("text")))
    ways = [
        parents.join(human.ids.drop_nulls("text"), left_on="parent", right_on="key"),
        parents.join(rows, left_on="parent", right_on="record_id"),
        parents.with_columns(key=normalise(pl.col("parent"))).join(texts, on="key"),
        parents.with_columns(text="parent", group=pl.lit(None, pl.String)),
    ]
    found = pl.concat(
        way.select("parent", "text", "group", way=pl.lit(rank, pl.Int32))
        for rank, way in enumerate(ways)
    )
    first = pl.col("way") == pl.col("way").min().over("parent")
    return found.filter(first).drop("way").unique().sort("parent", "text", "group")


def _labels(texts: pl.Series, human: HumanRows) -> pl.Series:
    """The label of the human rows with each text; null when there is no such row, or several."""
    if human.stratum is None:
        return pl.Series([None] * len(texts), dtype=pl.String)
    known = (
        human.rows.select(key=normalise(pl.col(human.text)), label=human.stratum)
        .group_by("key")
        .agg(pl.when(pl.col("label").n_unique() == 1).then(pl.col("label").first()))
    )
    asked = pl.DataFrame({"text": texts}).select(key=normalise(pl.col("text")))
    return asked.join(known, on="key", how="left", maintain_order="left")["label"]


def _refused(found: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """parent, problem, problem_detail of the parents that lead to an unseen row."""
    parts = []
    labels = _labels(found["text"], human)
    for name, unseen in (("holdout", human.holdout), ("validation", human.validation)):
        like = copies(
            found["text"],
            unseen,
            text=human.text,
            threshold=human.threshold,
            labels=labels,
            stratum=human.stratum,
        )
        parts.append(
            pl.DataFrame(
                {
                    "parent": found["parent"].gather(like["row"]),
                    "problem": pl.repeat(f"derived_from_{name}", like.height, eager=True),
                    "problem_detail": like.select(
                        pl.format("{} of {}", pl.col("similarity").round(3), "holdout_id")
                    ).to_series(),
                },
                schema=dict.fromkeys(("parent", "problem", "problem_detail"), pl.String),
            )
        )
        groups = unseen.select("group").unique()
        parts.append(
            found.join(groups, on="group", how="semi", maintain_order="left").select(
                "parent",
                problem=pl.lit(f"derived_from_{name}"),
                problem_detail=pl.lit(f"its group is in {name}"),
            )
        )
    refused = pl.concat(parts).unique("parent", keep="first", maintain_order=True)
    return refused.with_columns(
        problem_detail=pl.format(
            "parent {}: {}", pl.col("parent").str.slice(0, 80), "problem_detail"
        )
    )
