"""Human rows that training does not use, and what is made of them.

A synthetic row that a model made of such a row tells the blend what the human arm was not told:
what is measured as its contribution would be that of more human rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from synth_assets.lifecycle.imported import is_imported
from synth_assets.lifecycle.parents import nearer


def unused_rows(set_aside: pl.DataFrame, rejects: pl.DataFrame, *, text: str) -> pl.DataFrame:
    """record_id and the text column: rows of neither side; a reject's id is its place."""
    aside = set_aside.select("record_id", text)
    place = pl.format("{}:{}", "source", "source_row").alias("record_id")
    return pl.concat([aside, rejects.select(place, text).drop_nulls()]).sort("record_id")


def says_unused(
    texts: Sequence[str], unused: pl.DataFrame, train: pl.DataFrame, *, text: str, threshold: float
) -> pl.DataFrame:
    """The texts that are, or contain, an unused row, and are no copies as near of a training row.

    Returns ``row`` (index into ``texts``), ``unused_id``, ``similarity`` and ``excerpt``.
    """
    series = pl.Series("text", list(texts), dtype=pl.String)
    found = nearer(series, unused, train, text=text, by=threshold)
    excerpt = series.gather(found["row"]).str.slice(0, 160).alias("excerpt")
    return found.select("row", pl.col("holdout_id").alias("unused_id"), "similarity", excerpt)


def lines_of(*texts: str | None) -> list[str]:
    """The filled lines of texts such as a prompt's template."""
    return [line.strip() for one in texts for line in (one or "").splitlines() if line.strip()]


def made_of_unused(
    synthetic: pl.DataFrame, imported: pl.DataFrame | None, shown: Sequence[str], *, always: bool
) -> int:
    """How many ``synthetic`` rows (request_id, item, seed_ids) are made of unused human rows.

    ``imported``: as stored, where a detail without a problem notes such a parent. ``shown``: ids of
    seeds that say an unused row; ``always``: every prompt does.
    """
    count = 0
    if imported is not None:
        noted = imported.filter(pl.col("problem").is_null(), pl.col("problem_detail").is_not_null())
        count = synthetic.join(noted, on=["request_id", "item"], how="semi").height
    generated = synthetic.filter(~is_imported())
    if always:
        return count + generated.height
    ids = pl.lit(pl.Series([sorted(shown)], dtype=pl.List(pl.String)))
    seen = pl.col("seed_ids").list.set_intersection(ids).list.len() > 0
    return count + generated.filter(seen.fill_null(False)).height


def caution(count: int, of: int) -> str:
    """What a measurement's sentence says of them; "" for none."""
    if not count:
        return ""
    are = "is" if count == 1 else "are"
    return (
        f"Of {of:,} synthetic rows, {count:,} {are} made of human rows that training does not use; "
        "the difference is partly theirs."
    )
