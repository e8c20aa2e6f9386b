"""What labels lack, said in sentences: rows, training rows, a measurement, seeds (pure).

Each function looks at one stage's counts and returns findings, the worst first. Stages put them
into checks, ``synth erase`` compares them before and after.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from synth_assets.errors import shown

LEAST_TRAIN: Final = 2
LEAST_HOLDOUT: Final = 5
# How alike two labels are (difflib's ratio) so that one may be meant by the other: a declared label
# that no row has is a mistake already, a row with a label of its own need not be one.
ALIKE_IF_MISSING: Final = 0.7
ALIKE_IF_OTHER: Final = 0.85
MOST_COMPARED: Final = 200
MOST_COMPARED_CHARS: Final = 100
MOST_NAMED: Final = 5
MOST_SENTENCES: Final = 8
KEY: Final = "generate.labels_without_human_rows"
# Reasons that are a rule of the declaration at work, where labels come from the data.
DROPPED: Final = "dropped_label"
RULES: Final = frozenset({DROPPED, "rare_label"})


@dataclass(frozen=True)
class Finding:
    """``kind`` and ``label`` ("" where it is about all) tell findings of a dataset apart."""

    kind: str
    label: str
    sentence: str
    fix: str = ""


def frame_of(findings: Sequence[Finding]) -> pl.DataFrame:
    """A row a finding, for a page: kind, label, finding, fix."""
    return pl.DataFrame(
        [(f.kind, f.label, f.sentence, f.fix) for f in findings],
        schema=dict.fromkeys(("kind", "label", "finding", "fix"), pl.String),
        orient="row",
    )


def lines_of(findings: Iterable[Finding]) -> list[str]:
    """A line for all findings of a kind that are mended alike; what is too much is counted."""
    alike: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        alike.setdefault((finding.kind, finding.fix), []).append(finding.sentence)
    lines = []
    for (_, fix), sentences in alike.items():
        more = len(sentences) - MOST_SENTENCES
        told = "; ".join(sentences[:MOST_SENTENCES]) + (f"; and {more:,} more" if more > 0 else "")
        lines.append(f"{told} (fix: {fix})" if fix else told)
    return lines


# --- what the source has -------------------------------------------------------------------------


def of_source(
    declared: Collection[str] | None, used: Mapping[str, int], rejects: pl.DataFrame
) -> list[Finding]:
    """Labels that no row has, that lost every row, or that seem to be misspelt.

    ``declared``: None where labels come from the data; ``used``: usable rows per label;
    ``rejects``: ``label`` (may be null) and ``reason`` of every row that was set aside.
    """
    lost = _lost(rejects)
    foreign = {
        label: sum(reasons.values())
        for label, reasons in lost.items()
        if label not in used and label not in (declared or ()) and DROPPED not in reasons
    }
    found, named = _without_rows([one for one in declared or () if one not in lost], used, foreign)
    if erased := rejects.filter(pl.col("reason") == "erased").height:
        more = f" ({_rows(erased)} erased, whose labels are not kept)"
        found = [replace(one, sentence=one.sentence + more) for one in found]
    found += _without_use(declared, used, lost)
    if declared is not None:
        found += _misspelt(declared, {k: n for k, n in foreign.items() if k not in named})
    if len(used) == 1:
        (label,) = used
        told = f"every usable row has the label {shown(label)}: there is nothing to tell it from"
        found.append(Finding("one_label", label, told, "rows of other labels"))
    return found


def _lost(rejects: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Label -> reason -> rows set aside, the commonest first."""
    counted = (
        rejects.filter(pl.col("label").fill_null("") != "")
        .group_by("label", "reason")
        .len()
        .sort("len", "label", "reason", descending=[True, False, False])
    )
    found: dict[str, dict[str, int]] = {}
    for label, reason, count in counted.iter_rows():
        found.setdefault(label, {})[reason] = count
    return found


def _without_rows(
    declared: Iterable[str], used: Mapping[str, int], foreign: Mapping[str, int]
) -> tuple[list[Finding], set[str]]:
    """A finding for each label that no row has, and the labels that are named as meant.

    ``used``, ``foreign``: rows per label, of labels with usable rows and of undeclared ones.
    """
    found, named = [], set[str]()
    counts, undeclared, known = {**foreign, **used}, Names.of(foreign), Names.of(used)
    there = f"; labels found: {_named(counts)}" if counts else ""
    for label in declared:
        if label in used:
            continue
        like = meant(label, undeclared) or meant(label, known)
        told = f"; did you mean {shown(like)} ({_rows(counts[like])})?" if like else there
        named |= {like} if like else set()
        sentence = f"no row has the declared label {shown(label)}{told}"
        fix = "correct task.labels or the source, or take it out"
        found.append(Finding("no_row", label, sentence, fix))
    return found, named


def _without_use(
    declared: Collection[str] | None, used: Mapping[str, int], lost: Mapping[str, Mapping[str, int]]
) -> list[Finding]:
    """Labels all of whose rows are set aside, but for those that a rule was meant to take out."""
    found = []
    for label, reasons in lost.items():
        counts = label in declared if declared is not None else reasons.keys() - RULES
        if label in used or not counts:
            continue
        count = sum(reasons.values())
        told = f"none of the {_rows(count)} with the label {shown(label)} is used: {_of(reasons)}"
        found.append(Finding("none_used", label, told, "see human_rejects"))
    return found


def _misspelt(declared: Collection[str], foreign: Mapping[str, int]) -> list[Finding]:
    """Labels of the source that are not declared, yet look like one that is."""
    names, found = Names.of(dict.fromkeys(declared, 0)), []
    ranked = sorted(foreign.items(), key=lambda item: (-item[1], item[0]))
    for place, (label, count) in enumerate(ranked):
        # Of free text in the label's column only the commonest is looked at closely.
        like = names.same(label) or (
            names.like(label, ALIKE_IF_OTHER, same_digits=True) if place < MOST_COMPARED else None
        )
        if like is not None:
            told = f"{_rows(count)} set aside with the label {shown(label)}, which is not declared"
            told += f"; did you mean {shown(like)}?"
            found.append(Finding("unknown_label", label, told, "correct task.labels or the source"))
    return found


@dataclass(frozen=True)
class Names:
    """Labels to look others up in. ``spelt``: letters -> name; ``ranked``: the commonest, spelt."""

    spelt: Mapping[str, str]
    ranked: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, labels: Mapping[str, int]) -> Names:
        """``labels``: name -> rows; of names that are alike the commonest is meant."""
        ranked = sorted(labels, key=lambda name: (-labels[name], name))
        letters = [(_letters(name), name) for name in ranked]
        short = [one for one in letters if len(one[0]) <= MOST_COMPARED_CHARS]
        return cls(dict(reversed(letters)), short[:MOST_COMPARED])

    def same(self, label: str) -> str | None:
        """The name that differs in case, blanks, marks or Unicode form only, if there is one."""
        return self.spelt.get(_letters(label))

    def like(self, label: str, least: float, *, same_digits: bool = False) -> str | None:
        """The name spelt most alike, from the ratio ``least`` on (see ``difflib``).

        ``same_digits``: names that differ in digits are not alike.
        """
        plain = _letters(label)
        if len(plain) > MOST_COMPARED_CHARS:
            return None
        matcher = difflib.SequenceMatcher(None, "", plain, autojunk=False)
        best, score = None, least
        for letters, name in self.ranked:
            if same_digits and _digits(letters) != _digits(plain):
                continue
            matcher.set_seq1(letters)
            if matcher.real_quick_ratio() < score or matcher.quick_ratio() < score:
                continue
            ratio = matcher.ratio()
            if ratio > score or (best is None and ratio == score):
                best, score = name, ratio
        return best


def meant(label: str, names: Names) -> str | None:
    """The one of ``names`` that ``label``, which does not exist, most likely stands for."""
    return names.same(label) or names.like(label, ALIKE_IF_MISSING)


def _letters(label: str) -> str:
    """A label without case, blanks, marks and the form that Unicode writes it in."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return "".join(one for one in folded if one.isalnum()) or folded.strip()


def _digits(text: str) -> str:
    return "".join(one for one in text if one.isdigit())


# --- what the sides have -------------------------------------------------------------------------


def counts_by_side(
    human: pl.DataFrame,
    human_train: pl.DataFrame,
    holdout: pl.DataFrame,
    set_aside: pl.DataFrame,
    *,
    stratum: str,
    labels: Iterable[str] = (),
) -> pl.DataFrame:
    """label, human, train, validation, holdout, set_aside (rows), reasons ("near_copy 2, ...").

    ``labels``: labels to count beside those of ``human``, which may have lost every row.
    """
    split = pl.col("split")
    sides = {
        "human": human,
        "train": human_train.filter(split == "train"),
        "validation": human_train.filter(split == "validation"),
        "holdout": holdout,
        "set_aside": set_aside,
    }
    names = sorted({*labels, *human[stratum].unique()})
    counts = pl.DataFrame({"label": names}, schema={"label": pl.String})
    for name, rows in sides.items():
        counted = rows.group_by(pl.col(stratum).alias("label")).len(name=name)
        counts = counts.join(counted, on="label", how="left", maintain_order="left")
    reasons = (
        set_aside.group_by(pl.col(stratum).alias("label"), "reason")
        .len()
        .sort("len", "reason", descending=[True, False])
        .group_by("label", maintain_order=True)
        .agg(pl.format("{} {}", "reason", "len").str.join(", ").alias("reasons"))
    )
    return counts.join(reasons, on="label", how="left", maintain_order="left").with_columns(
        pl.col(*sides).fill_null(0), pl.col("reasons").fill_null("")
    )


def of_sides(counts: pl.DataFrame) -> list[Finding]:
    """Labels with too few rows to learn from or to be measured on (``counts_by_side``)."""
    found: dict[str, list[Finding]] = {"train": [], "few": [], "holdout": [], "few_held": []}
    for row in counts.iter_rows(named=True):
        label, name, train, held = row["label"], shown(row["label"]), row["train"], row["holdout"]
        if not train:
            found["train"].append(_no_train(row))
        elif train < LEAST_TRAIN:
            told = f"{name} has only {_rows(train)} to train on"
            found["few"].append(Finding("few_train", label, told, "more human rows of it"))
        if row["human"] and not held:
            told = f"{name} has no holdout row: nothing about it is measured"
            found["holdout"].append(Finding("no_holdout", label, told, "more human rows of it"))
        elif held and held < LEAST_HOLDOUT:
            told = f"{name} has only {_rows(held)} held out: its score hangs on single rows"
            found["few_held"].append(Finding("few_holdout", label, told, "more human rows of it"))
    left = counts.filter(pl.col("train") > 0)["label"].to_list()
    one: list[Finding] = []
    if len(left) == 1 and counts.filter(pl.col("human") > 0).height > 1:
        told = (
            f"every training row has the label {shown(left[0])}: a classifier learns nothing, and "
            "what synthetic rows bring cannot be measured"
        )
        one = [Finding("one_label", left[0], told, "training rows of other labels")]
    return [*one, *(finding for kind in found.values() for finding in kind)]


def _no_train(row: Mapping[str, object]) -> Finding:
    label, name = str(row["label"]), shown(row["label"])
    if not row["human"]:
        return Finding("no_train", label, f"{name} has no usable human row", "human rows of it")
    places = {
        "held out": row["holdout"],
        "validation": row["validation"],
        f"set aside ({row['reasons']})": row["set_aside"],
    }
    went = ", ".join(f"{count} {place}" for place, count in places.items() if count)
    told = f"{name} has no training row: of {row['human']} human, {went}"
    limited = "beyond_limit_train" in str(row["reasons"])
    fix = "human.min_train_per_label" if limited else "more human rows, or another partition.salt"
    return Finding("no_train", label, told, fix)


# --- what is to be generated ---------------------------------------------------------------------


def of_plan(
    wanted: Mapping[str, int],
    left_out: Collection[str],
    train: Mapping[str, int],
    seeds: Mapping[str, int],
) -> list[Finding]:
    """Labels for which nothing is generated, or whose rows come from next to nothing.

    ``wanted``: rows per label; ``left_out``: labels that would be generated if the declaration
    allowed it; ``train``, ``seeds``: human training rows and seeds per label.
    """
    found = [
        Finding(
            "left_out",
            label,
            f"{shown(label)} has no human training row: no call is made for it",
            f"rows of it, its right name in task.labels, or {KEY}: generate",
        )
        for label in sorted(left_out)
    ]
    for label, count in sorted(wanted.items()):
        shows = seeds.get(label, 0)
        if not count or (train.get(label, 0) and shows != 1):
            continue
        of = f"{_rows(count)} of {shown(label)}"
        if not train.get(label, 0):
            told = f"{of} to be generated without any human training row, from {_seeds(shows)}"
            found.append(
                Finding("no_human_rows", label, told, "human rows of it, to measure it by")
            )
        else:
            fix = "more human rows of it, or hand-written seeds"
            found.append(Finding("one_seed", label, f"{of} to be made from one seed", fix))
    return found


def _seeds(count: int) -> str:
    if count == 1:
        return "one hand-written seed"
    return f"{count} hand-written seeds" if count else "no example"


def _of(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())


def _named(labels: Mapping[str, int]) -> str:
    ranked = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{shown(label)} {count:,}" for label, count in ranked[:MOST_NAMED])
    more = len(ranked) - MOST_NAMED
    return f"{named} and {more:,} more" if more > 0 else named


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
