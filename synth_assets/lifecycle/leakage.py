"""Whether evaluation data reached training data or a prompt.

Three questions, each a table that is empty when all is well: is a training row a copy of a holdout
row, or does it contain one (`leaks`), does a prompt show one (`prompt_leaks`), do groups such as
one machine's records stand on both sides of a partition (`group_overlap`).

Texts are compared by their words only: in doubt, a row is a copy. Where labels are known, a text
that is like a holdout text of another label is a copy only under the stricter rule of
``similarity``: opposites differ in one word, and training on a row of another label makes no model
look better on the holdout than it is. The same text, or one that contains it, is found whatever
the labels.

Limits: a holdout text that is rewritten in other words is not found; neither is one that is
shorter than 20 characters, or edited, in the middle of a longer line.
"""

from __future__ import annotations

import polars as pl

from synth_assets.errors import UsageError
from synth_assets.lifecycle.similarity import near_copies
from synth_assets.text import normalise

# Below this many normalised characters, standing inside a prompt is coincidence.
INSIDE_CHARS = 20
EXCERPT_CHARS = 160

# Unique lines compared at once: bounds memory, whatever the number of prompts.
LINES_AT_ONCE = 200_000

_LINE_BREAK = r"[\r\n\x0B\x0C\x{85}\x{2028}\x{2029}]+"
_LIST_MARK = r"^(?:(?:[\p{Pd}*+•‣◦·>#|]+|\(?\d{1,6}[.):\]]|\(?[A-Za-z][.)])\s+)+"
# A line that begins an item of a list. What ends one item and begins the next was never one text.
_NEW_ITEM = r"(?m)^(\s*(?:[-*+•‣◦·]|\d{1,6}[.)])\s)"
_ITEM_BREAK = "\x1e"
_FIELD_NAME = r"^[\p{Ps}\s\"']*[\p{L}_][\p{L}\p{N}_ ]{0,30}[\"']?\s*[:=]\s*"

PROMPT_LEAKS = pl.Schema(
    [
        ("prompt", pl.UInt32()),
        ("holdout_id", pl.String()),
        ("kind", pl.String()),
        ("similarity", pl.Float64()),
        ("excerpt", pl.String()),
    ]
)


def leaks(
    rows: pl.DataFrame,
    holdout: pl.DataFrame,
    *,
    text: str = "text",
    threshold: float,
    stratum: str | None = None,
) -> pl.DataFrame:
    """The rows whose text is like a holdout row's, or contains one: see ``copies``.

    Both frames have `record_id` (String), `text` (String) and the label `stratum`, if it is named.
    Returns `record_id`, `holdout_id`,
    `kind` and `similarity` (Float64), ordered by `record_id`.

    Raises `UsageError` for a missing column or a threshold outside (0, 1].
    """
    _need(rows, "record_id", text, *([stratum] if stratum else []))
    labels = rows[stratum] if stratum else None
    found = copies(
        rows[text], holdout, text=text, threshold=threshold, labels=labels, stratum=stratum
    )
    ids = rows["record_id"].cast(pl.String)[found["row"]].alias("record_id")
    return found.select(ids, "holdout_id", "kind", "similarity").sort("record_id")


def copies(
    texts: pl.Series,
    holdout: pl.DataFrame,
    *,
    text: str = "text",
    threshold: float,
    labels: pl.Series | None = None,
    stratum: str | None = None,
) -> pl.DataFrame:
    """The texts that would carry a holdout text along, at most one finding each.

    A text is a `near_copy` when it is the same as, or similar to, a holdout text (`similarity`
    and `threshold` are those of `similarity.near_copies`); it `contains` one when a prompt that
    shows it would (`prompt_leaks`): the holdout text is a line of it, or stands inside it.

    `labels` are those of the texts (null: not known), `stratum` is the column of the holdout's.

    Returns `row` (UInt32, index into `texts`), `holdout_id` (the most similar; the lowest id among
    equals), `kind`, `similarity` (Float64) and `other_label` (String: that of the holdout row,
    where it is another), ordered by `row`.
    """
    known = _by_id(holdout, text, stratum)
    near = near_copies(
        texts,
        known["text"],
        threshold=threshold,
        labels=labels,
        reference_labels=known["label"],
    )
    alike = near.select(
        "row",
        known["record_id"][near["match"]].alias("holdout_id"),
        pl.lit("near_copy").alias("kind"),
        "similarity",
    )
    shown = prompt_leaks(
        texts, holdout, text=text, threshold=threshold, labels=labels, stratum=stratum
    ).select(
        pl.col("prompt").alias("row"), "holdout_id", pl.lit("contains").alias("kind"), "similarity"
    )
    found = pl.concat([alike, shown]).unique("row", keep="first", maintain_order=True).sort("row")
    own = pl.Series([None] * len(texts), dtype=pl.String) if labels is None else labels
    return found.with_columns(
        other_label(own.cast(pl.String).gather(found["row"]), found["holdout_id"], known)
    )


def other_label(own: pl.Series, matches: pl.Series, known: pl.DataFrame) -> pl.Series:
    """`other_label`: the label of each matched row (`known`: record_id, label), where not `own`."""
    ids = matches.to_frame("record_id")
    theirs = ids.join(known.unique("record_id"), on="record_id", how="left", maintain_order="left")
    told = pl.when(pl.col("label") != pl.col("own")).then("label")
    pair = pl.DataFrame({"own": own, "label": theirs["label"]})
    return pair.select(told.alias("other_label")).to_series()


def detail_of(finding: str = "similarity") -> pl.Expr:
    """How alike (the column `finding`), to which row, and its label if that is another."""
    said = pl.format(", which has another label: {}", "other_label").fill_null("")
    alike = pl.col(finding).round(3) if finding == "similarity" else pl.col(finding)
    return pl.format("{} of {}{}", alike, "holdout_id", said)


def reason_of(name: str) -> pl.Expr:
    """Why a finding of ``copies`` (its `kind`) is refused, e.g. near_copy_of_holdout."""
    near, whole = pl.lit(f"near_copy_of_{name}"), pl.lit(f"contains_{name}")
    return pl.when(pl.col("kind") == "near_copy").then(near).otherwise(whole)


def prompt_leaks(
    prompts: pl.Series,
    holdout: pl.DataFrame,
    *,
    text: str = "text",
    threshold: float,
    labels: pl.Series | None = None,
    stratum: str | None = None,
) -> pl.DataFrame:
    """The holdout rows that prompts show.

    A prompt shows one when a line of it is similar to the holdout text, with or without its list
    mark ("- ", "12. ") and field name ("Text: "); or when the holdout text, if it has 20
    normalised characters or more, stands in the normalised prompt at word boundaries, across lines
    too, but not across the items of a list, unless the holdout text has several lines itself.
    `labels` are what the prompts ask for (null: not known), `stratum` is the column of the
    holdout's.

    Returns one row per prompt and holdout row, ordered by them: `prompt` (UInt32, index into
    `prompts`), `holdout_id` (String; the lowest of several with one normalised text), `kind`
    (String: "line", else "inside"), `similarity` (Float64; 1 for "inside") and `excerpt` (String,
    at most 160 characters: the line, or the normalised text found). A line is reported with its
    most similar holdout row only.

    Raises `UsageError` for a missing column or a threshold outside (0, 1].
    """
    known = _by_id(holdout, text, stratum)
    asked = pl.Series([None] * len(prompts), dtype=pl.String) if labels is None else labels
    numbered = pl.DataFrame(
        {"text": prompts.cast(pl.String), "label": asked.cast(pl.String)}
    ).with_row_index("prompt")
    # The same prompt is sent many times (several samples): look at each once.
    each = numbered.drop_nulls("text").group_by("text", "label").agg("prompt")
    each = each.with_row_index("each")
    lines = _shown_lines(each, known, threshold)
    inside = _shown_inside(each, known)
    found = pl.concat([lines, inside]).unique(
        ["each", "holdout_id"], keep="first", maintain_order=True
    )
    return (
        found.join(each.select("each", "prompt"), on="each")
        .explode("prompt")
        .select(pl.col(name).cast(dtype) for name, dtype in PROMPT_LEAKS.items())
        .sort("prompt", "holdout_id")
    )


def group_overlap(left: pl.DataFrame, right: pl.DataFrame, *, group: str) -> pl.DataFrame:
    """The groups that stand on both sides.

    Returns `group` (as in `left`), `left_rows` and `right_rows` (UInt32), ordered by group. Rows
    without a group belong to none. Raises `UsageError` when either side lacks the column.
    """
    sides = []
    for frame, count in ((left, "left_rows"), (right, "right_rows")):
        _need(frame, group)
        grouped = frame.select(group=pl.col(group)).drop_nulls().group_by("group")
        sides.append(grouped.agg(pl.len().cast(pl.UInt32).alias(count)))
    return sides[0].join(sides[1], on="group").sort("group")


def _shown_lines(each: pl.DataFrame, known: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """`each`, `holdout_id`, `kind`, `similarity`, `excerpt`: best line per prompt and holdout."""
    lines = (
        each.select(
            "each", "label", line=pl.col("text").str.replace_all(_LINE_BREAK, "\n").str.split("\n")
        )
        .explode("line")
        .with_columns(pl.col("line").str.strip_chars())
        .filter(pl.col("line") != "")
    )
    bare = pl.col("line").str.replace(_LIST_MARK, "")
    readings = (
        lines.select("line", "label")
        .unique(maintain_order=True)
        .with_columns(reading=pl.concat_list("line", bare, bare.str.replace(_FIELD_NAME, "")))
        .explode("reading")
        .unique(maintain_order=True)
    )
    parts = [_near_readings(part, known, threshold) for part in readings.iter_slices(LINES_AT_ONCE)]
    if not parts:
        parts = [_near_readings(readings, known, threshold)]
    return (
        lines.join(pl.concat(parts), on=["line", "label"], nulls_equal=True)
        .sort("each", "holdout_id", "similarity", "line", descending=[False, False, True, False])
        .unique(["each", "holdout_id"], keep="first", maintain_order=True)
        .select(
            "each",
            "holdout_id",
            "similarity",
            kind=pl.lit("line"),
            excerpt=pl.col("line").str.slice(0, EXCERPT_CHARS),
        )
    )


def _near_readings(readings: pl.DataFrame, known: pl.DataFrame, threshold: float) -> pl.DataFrame:
    found = near_copies(
        readings["reading"],
        known["text"],
        threshold=threshold,
        labels=readings["label"],
        reference_labels=known["label"],
    )
    return pl.DataFrame(
        {
            "line": readings["line"][found["row"]],
            "label": readings["label"][found["row"]],
            "holdout_id": known["record_id"][found["match"]],
            "similarity": found["similarity"],
        }
    )


def _shown_inside(each: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The same columns, for holdout texts that stand somewhere in a prompt.

    One pass of an Aho-Corasick automaton over all prompts; spaces around both sides make matches
    begin and end at word boundaries.
    """
    texts = (
        known.select(
            holdout_id="record_id",
            text=normalise(pl.col("text")),
            lines=pl.col("text").str.strip_chars().str.contains(_LINE_BREAK),
        )
        .filter(pl.col("text").str.len_chars() >= INSIDE_CHARS)
        .unique(["text", "lines"], keep="first", maintain_order=True)
        .with_columns(pattern=pl.format(" {} ", "text"))
    )
    plain = pl.col("text").str.replace_all(_LINE_BREAK, "\n")
    items = (
        plain.str.replace_all(_ITEM_BREAK, " ", literal=True)
        .str.replace_all(_NEW_ITEM, _ITEM_BREAK + "${1}")
        .str.split(_ITEM_BREAK)
    )
    found = [
        _standing_in(
            each.select("each", text=items).explode("text"), texts.filter(~pl.col("lines"))
        ),
        _standing_in(each.select("each", "text"), texts.filter("lines")),
    ]
    return pl.concat(found).unique(["each", "holdout_id"], keep="first", maintain_order=True)


def _standing_in(shown: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """Which of ``texts`` (holdout_id, text, pattern) stand in which of ``shown`` (each, text)."""
    # A typed literal: a list of no patterns would have no type.
    patterns = pl.lit(pl.Series([texts["pattern"]], dtype=pl.List(pl.String)))
    normal = pl.format(" {} ", normalise(pl.col("text")))
    return (
        shown.select("each", pattern=normal.str.extract_many(patterns, overlapping=True))
        .explode("pattern")
        .drop_nulls()
        .unique(maintain_order=True)
        .join(texts, on="pattern", maintain_order="left")
        .select(
            "each",
            "holdout_id",
            similarity=pl.lit(1.0),
            kind=pl.lit("inside"),
            excerpt=pl.col("text").str.slice(0, EXCERPT_CHARS),
        )
    )


def _by_id(holdout: pl.DataFrame, text: str, stratum: str | None) -> pl.DataFrame:
    """`record_id`, `text`, `label`, ordered by id: of equal matches the lowest id is named."""
    _need(holdout, "record_id", text, *([stratum] if stratum else []))
    label = pl.col(stratum) if stratum else pl.lit(None)
    return holdout.select(
        pl.col("record_id").cast(pl.String),
        pl.col(text).alias("text"),
        label.cast(pl.String).alias("label"),
    ).sort("record_id")


def _need(frame: pl.DataFrame, *columns: str) -> None:
    for name in columns:
        if name not in frame.columns:
            raise UsageError(
                f"there is no column {name!r} to compare", fix=f"have: {frame.columns}"
            )
