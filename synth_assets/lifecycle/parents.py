"""Which human rows imported rows were written from, and whether one of them must stay unseen.

A parent is named by a human row's declared id, by its ``record_id``, by its text, or by its place
(``SOURCE:ROW``, where the row is a number or an id). An id or a ``record_id`` that is written as it
stands means that row; any other spelling (see ``naming``) means every row that it may name.

A row whose parent is a holdout or validation row, is like one, or belongs to a group that is held
out, carries that row into training and is refused; so is one whose parents cell is such a text
itself. A row whose parent is any other human row that training does not use (beyond a limit, set
aside, a reject of the human side) would let the blend know what the human arm does not.

Limits: only human rows are looked up, so a parent that is itself an imported row leads no further.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from synth_assets.lifecycle.leakage import copies
from synth_assets.lifecycle.naming import (
    canonical,
    cut,
    is_cut_off,
    names_nobody,
    place_in,
    read_list,
    source_names,
)
from synth_assets.text import normalise

IDS: dict[str, pl.DataType] = {"key": pl.String(), "text": pl.String(), "group": pl.String()}
PLACES: dict[str, pl.DataType] = {"source": pl.String(), "source_row": pl.Int64(), **IDS}
UNUSED = "derived_from_unused"
# Of several refused parents one is told: the worst first.
REFUSED = ("derived_from_holdout", "derived_from_validation", UNUSED)
_PROBLEM = dict.fromkeys(("parent", "problem", "problem_detail"), pl.String)


def _no_places() -> pl.DataFrame:
    return pl.DataFrame(schema=PLACES)


@dataclass(frozen=True)
class HumanRows:
    """Whom a parent may be.

    ``ids``: source rows by declared id, usable or not (schema ``IDS``; group null where none is
    declared). ``rows``: usable rows (record_id, group, the text column). ``holdout`` and
    ``validation``: those of them that stay unseen; ``train``: those that training uses (None: who
    is used does not matter). ``places``: every source row by its place (schema ``PLACES``).
    ``text``: the text column's name; ``threshold``: Jaccard similarity from which a text is like
    another; ``stratum``: the column of the label, so that a training row that is the opposite of an
    unseen one may be a parent, as it may be trained on; ``unused_allowed``: rows made of unused
    rows are noted and not refused.
    """

    ids: pl.DataFrame
    rows: pl.DataFrame
    holdout: pl.DataFrame
    validation: pl.DataFrame
    text: str
    threshold: float
    stratum: str | None = None
    train: pl.DataFrame | None = None
    places: pl.DataFrame = field(default_factory=_no_places)
    unused_allowed: bool = False

    @cached_property
    def canonical_ids(self) -> pl.DataFrame:
        """key, form: every declared id with its canonical form."""
        keys = pl.concat([self.ids["key"], self.places["key"]]).drop_nulls().unique().sort()
        return pl.DataFrame({"key": keys, "form": _forms(keys)}, schema_overrides=_FORMS)

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Canonical name -> the sources that it may mean."""
        found: dict[str, list[str]] = {}
        for source in self.places["source"].unique().sort():
            for name in source_names(source):
                found.setdefault(name, []).append(source)
        return found

    @cached_property
    def names(self) -> frozenset[str]:
        """Everything that is an id: as declared, canonical, and record ids."""
        forms = self.canonical_ids
        return frozenset([*forms["key"], *forms["form"], *self.rows["record_id"]])

    def knows(self, reference: str) -> bool:
        """Whether a reference is an id, or a place in a source, in any spelling."""
        if reference in self.names or canonical(reference) in self.names:
            return True
        place = place_in(reference)
        return place is not None and place[0] in self.sources


@dataclass(frozen=True)
class Resolved:
    """``rows``: see ``resolve_parents``; ``named``: parents named; ``unknown``: parent, rows."""

    rows: pl.DataFrame
    named: int
    unknown: pl.DataFrame


def whole_cells(cells: pl.Series, human: HumanRows) -> pl.Series:
    """Parents cells as JSON lists, where commas between plain references would not say the same.

    A cell that is one id or one human text as a whole is one parent: commas stand between parents,
    and in texts as well. What begins with ``[`` and is no list is a text, unless it is cut off.
    """
    frame = pl.DataFrame({"cell": cells.cast(pl.String).str.strip_chars()})
    known = human.rows.select(normalise(pl.col(human.text))).to_series()
    text = frame.select(normalise(pl.col("cell")).is_in(known.implode())).to_series()
    unseen = pl.concat([human.holdout, human.validation], how="diagonal")
    like = copies(frame["cell"].fill_null(""), unseen, text=human.text, threshold=human.threshold)
    texts = set(text.fill_null(False).arg_true()) | set(like["row"])
    made = {
        (cell, place in texts): _listed(cell, place in texts, human)
        for place, cell in enumerate(frame["cell"])
        if cell
    }
    listed = [made[cell, n in texts] if cell else cell for n, cell in enumerate(frame["cell"])]
    return pl.Series(cells.name, listed, dtype=pl.String)


def resolve_parents(rows: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """``rows`` with record ids in ``seed_ids`` where a human row was found, and ``problem``.

    ``problem`` (String, null: none) is one of ``REFUSED``, ``problem_detail`` says which parent and
    why. Where unused rows are allowed, a row made of one has the detail without the problem.
    """
    return resolve(rows, human).rows


def resolve(rows: pl.DataFrame, human: HumanRows) -> Resolved:
    """As ``resolve_parents``, with the parents that name nobody."""
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
    told = {"nulls_last": True, "maintain_order": True}
    rank = pl.col("problem").replace_strict({name: n for n, name in enumerate(REFUSED)})
    per_row = (
        named.join(resolved, on="parent", how="left", maintain_order="left")
        .join(refused, on="parent", how="left", maintain_order="left")
        .with_columns(ids=pl.coalesce("ids", pl.concat_list("parent")), rank=rank)
        .group_by("place", maintain_order=True)
        .agg(
            seed_ids=pl.col("ids").explode().unique(maintain_order=True),
            problem=pl.col("problem").sort_by("rank", **told).first(),
            problem_detail=pl.col("problem_detail").sort_by("rank", **told).first(),
        )
    )
    done = (
        numbered.rename({"seed_ids": "written"})
        .join(per_row, on="place", how="left", maintain_order="left")
        .with_columns(seed_ids=pl.coalesce("seed_ids", "written"))
        .select(*rows.columns, "problem", "problem_detail")
    )
    if human.unused_allowed:
        refused_for = pl.when(pl.col("problem") != UNUSED).then("problem")
        done = done.with_columns(refused_for.alias("problem"))
    nobody = found.filter("unknown").select("parent")
    unknown = named.join(nobody, on="parent", how="semi").group_by("parent").len("rows")
    return Resolved(done, named.height, unknown.sort("rows", "parent", descending=[True, False]))


def _listed(cell: str, is_text: bool, human: HumanRows) -> str:
    """One parents cell as it is to be read."""
    if cell in human.names and cell not in _BRACKETS:
        return json.dumps([cell], ensure_ascii=False)
    try:
        listed = read_list(cell)
    except ValueError:
        return json.dumps([cell], ensure_ascii=False) if is_text else cell
    if listed is not None and (cell.startswith("[") or not is_text):
        return cell if _plain_json(cell, listed) else json.dumps(listed, ensure_ascii=False)
    if is_text:
        return json.dumps([cell], ensure_ascii=False)
    if is_cut_off(cell):
        return cell
    if names_nobody(cell):
        return "[]"
    parts = cut(cell, human.knows)
    if human.knows(cell):
        # "1,234" may be one id or two: it stands for all that are there.
        others = [part for part in parts if part != cell and human.knows(part)]
        return json.dumps([cell, *others], ensure_ascii=False)
    if cell.startswith("[") and not cell.endswith("]"):
        return json.dumps([cell], ensure_ascii=False)
    plain = [part.strip() for part in cell.split(",") if part.strip()]
    return cell if parts == plain else json.dumps(parts, ensure_ascii=False)


_BRACKETS = frozenset({"[]", "[", "]"})


def _plain_json(cell: str, listed: list[str]) -> bool:
    """Whether a cell is a JSON list of texts that need no other reading."""
    try:
        return bool(json.loads(cell) == listed)
    except (ValueError, RecursionError):
        return False


_FORMS: dict[str, pl.DataType] = {"key": pl.String(), "form": pl.String()}


def _forms(references: Iterable[str]) -> pl.Series:
    return pl.Series("form", [canonical(one) for one in references], dtype=pl.String)


def _found(parents: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """parent, text, group, known: what a parent names, by the first way that names anything.

    ``known``: a human row is named. A parent that names none is its own text (see ``_own_texts``):
    it may be one that no row has any more.
    """
    rows = human.rows.select("record_id", "group", text=human.text)
    loose = pl.concat(
        [
            parents.with_columns(key=normalise(pl.col("parent"))).join(
                rows.select("text", "group", key=normalise(pl.col("text"))), on="key"
            ),
            _by_form(parents, human),
            _by_place(parents, human),
        ],
        how="diagonal_relaxed",
    )
    ways = [
        parents.join(human.ids.drop_nulls("text"), left_on="parent", right_on="key"),
        parents.join(rows, left_on="parent", right_on="record_id"),
        loose,
    ]
    found = pl.concat(
        way.select("parent", "text", "group", way=pl.lit(rank, pl.Int32))
        for rank, way in enumerate(ways)
    )
    first = pl.col("way") == pl.col("way").min().over("parent")
    found = (
        found.filter(first)
        .drop("way")
        .unique()
        .with_columns(known=True, unknown=False, unused=False)
    )
    return pl.concat([found, _own_texts(parents.join(found, on="parent", how="anti"), human)]).sort(
        "parent", "text", "group"
    )


def _by_form(parents: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    forms = parents.with_columns(form=_forms(parents["parent"]))
    keys = forms.join(human.canonical_ids, on="form").select("parent", "key")
    return keys.join(human.ids.drop_nulls("text"), on="key").select("parent", "text", "group")


def _by_place(parents: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """Rows named by their source and, within it, by number or id."""
    meant = [
        (parent, source, place[1])
        for parent in parents["parent"]
        if (place := place_in(parent)) is not None
        for source in human.sources.get(place[0], ())
    ]
    named = pl.DataFrame(meant, schema=["parent", "source", "form"], orient="row").cast(pl.String)
    rows = human.places.join(named.select("source").unique(), on="source", how="semi")
    rows = rows.join(human.canonical_ids, on="key", how="left", maintain_order="left")
    by_number = rows.with_columns(form=pl.col("source_row").cast(pl.String))
    both = pl.concat([rows.select(by_number.columns), by_number]).drop_nulls("form")
    return named.join(both, on=["source", "form"]).select("parent", "text", "group")


def _own_texts(parents: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """Parents that name nobody, as their own texts.

    ``unknown``: those that are like no human row; ``unused``: nearer to one that is not used.
    """
    used = human.rows.clear() if human.train is None else human.train
    others = human.rows.join(used.select("record_id"), on="record_id", how="anti")
    like, nearest = (
        copies(parents["parent"], rows, text=human.text, threshold=human.threshold)
        for rows in (used, others)
    )
    rows = pl.concat([like["row"], nearest["row"]])
    place = pl.int_range(pl.len(), dtype=pl.UInt32)
    return parents.select(
        "parent",
        text="parent",
        group=pl.lit(None, pl.String),
        known=pl.lit(False),
        unknown=~place.is_in(rows.implode()),
        unused=place.is_in(_nearer(nearest, like)["row"].implode()),
    )


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
    """parent, problem, problem_detail of the parents that lead to a row that is not to be used."""
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
        detail = pl.format("{} of {}", pl.col("similarity").round(3), "holdout_id")
        parts.append(_problems(found["parent"].gather(like["row"]), name, like.select(detail)))
        groups = unseen.select("group").unique()
        shared = found.join(groups, on="group", how="semi", maintain_order="left")
        why = pl.DataFrame({"why": [f"its group is in {name}"] * shared.height})
        parts.append(_problems(shared["parent"], name, why))
    parts.append(_unused(found, human))
    refused = pl.concat(parts).unique("parent", keep="first", maintain_order=True)
    return refused.with_columns(
        problem_detail=pl.format(
            "parent {}: {}", pl.col("parent").str.slice(0, 80), "problem_detail"
        )
    )


def _problems(parents: pl.Series, name: str, why: pl.DataFrame) -> pl.DataFrame:
    problem = [f"derived_from_{name}"] * parents.len()
    columns = {"parent": parents, "problem": problem, "problem_detail": why.to_series()}
    return pl.DataFrame(columns, schema=_PROBLEM)


def _unused(found: pl.DataFrame, human: HumanRows) -> pl.DataFrame:
    """Parents that are a human row whose text training does not use, or only like such a row."""
    if human.train is None:
        return pl.DataFrame(schema=_PROBLEM)
    used = human.train.select(normalise(pl.col(human.text))).to_series()
    named = found.filter("known").filter(
        ~normalise(pl.col("text")).is_in(used.implode()).fill_null(False)
    )
    parents = pl.concat([named["parent"], found.filter("unused")["parent"]])
    why = pl.DataFrame({"why": ["a human row that training does not use"] * parents.len()})
    return _problems(parents, "unused", why)


def nearer(
    texts: pl.Series, these: pl.DataFrame, than: pl.DataFrame, *, text: str, by: float
) -> pl.DataFrame:
    """``copies`` of ``these`` among ``texts`` that are no copies, as near, of ``than``."""
    return _nearer(*(copies(texts, rows, text=text, threshold=by) for rows in (these, than)))


def _nearer(found: pl.DataFrame, than: pl.DataFrame) -> pl.DataFrame:
    """The findings of ``copies`` that are nearer than those of another look at the same texts."""
    other = than.select("row", near="similarity")
    both = found.join(other, on="row", how="left", maintain_order="left")
    return both.filter(pl.col("similarity") > pl.col("near").fill_null(0.0)).select(found.columns)
