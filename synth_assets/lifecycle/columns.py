"""Which columns of which parents every column of every stage comes from.

``CARRIED`` names columns that come through as they are; ``COMPUTED`` names what the values of a
column are made from, which is everything that can change them. A column of neither has no parent:
it is a constant, a number in a row, or comes from the declaration or the model. Names with a star
stand for columns that the task or the source names:

=============  =====================================================================
``*payload``   the task's columns, one by one
``*text``      the task's text
``*stratum``   the task's stratum
``*cells``     the source columns that the payload is read from
``*group``     the source columns that keep rows together on one side
``*fold``      the source column that says the official side, or the row's source
=============  =====================================================================

A test holds the tables to what is stored: every stored column is here, every parent is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.synthetic import PROVENANCE

Parent = tuple[str, str]  # stage, column

PAYLOAD = "*payload"
_CALL = ("cell", "ordinal", "wanted", "seed_ids", "prompt_version", "attributes")
_CANDIDATE = ("round", "cell", "ordinal", "item", "raw", "request_id", "seed_ids",
              "prompt_version", "model", "attributes", PAYLOAD)  # fmt: skip
_HUMAN = ("record_id", PAYLOAD, "source", "source_row", "group", "origin")
_MADE = tuple(PROVENANCE)
_BLEND = ("record_id", "origin", PAYLOAD, "weight", "split", "source", "source_row")
_SCREENED = ("candidates.problem", "candidates.*text", "plan.wanted", "human_train.*text",
             "human_train.split", "holdout.*text")  # fmt: skip
_SCORES = ("train.*payload", "train.origin", "train.weight", "eval.*payload")

# stage -> parent -> columns that are the parent's.
CARRIED: dict[str, dict[str, tuple[str, ...]]] = {
    "human_train": {"human": _HUMAN},
    "holdout": {"human": _HUMAN},
    "set_aside": {"human": _HUMAN},
    "seeds": {"human_train": ("record_id", "origin", PAYLOAD)},
    "candidates": {"plan": _CALL},
    "synthetic": {"candidates": (PAYLOAD, *_MADE)},
    "rejects": {"candidates": _CANDIDATE},
    "blend": {
        "human_train": ("record_id", "origin", PAYLOAD, "split", "source", "source_row"),
        "synthetic": ("record_id", "origin", PAYLOAD, *_MADE),
    },
    "train": {"blend": (*_BLEND, *_MADE)},
    "validation": {"blend": _BLEND},
    "eval": {"holdout": ("record_id", "origin", PAYLOAD, "source", "source_row")},
}

# stage -> column -> "parent.column" that its values are made from.
COMPUTED: dict[str, dict[str, tuple[str, ...]]] = {
    "human": {
        "record_id": ("human_raw.*cells",),
        "source": ("human_raw._source",),
        "source_row": ("human_raw._row",),
        "group": ("human_raw.*group",),
        "origin": (),
    },
    "human_rejects": {
        "source": ("human_raw._source",),
        "source_row": ("human_raw._row",),
        "reason": ("human_raw._problem", "human_raw.*cells"),
        "detail": ("human_raw.*cells",),
    },
    "human_train": {"split": ("human.group",)},
    "holdout": {"split": ("human.group",)},
    "set_aside": {
        "split": ("human.group",),
        "reason": ("human.*text", "human.group"),
        "detail": ("human.*text", "human.record_id"),
    },
    "seeds": {"seed_rank": ("human_train.*text", "human_train.*stratum")},
    "plan": {
        "cell": ("seeds.*stratum", "human_train.*stratum"),
        "ordinal": ("human_train.*stratum",),
        "wanted": ("human_train.*stratum",),
        "rows": (),
        "attributes": (),
        "seed_ids": ("seeds.record_id", "seeds.seed_rank"),
        "system": (),
        "prompt": ("seeds.*payload",),
        "prompt_version": ("seeds.*payload",),
        "sample": ("seeds.*payload",),
    },
    "candidates": {
        "round": ("plan.wanted", "human_train.*text", "holdout.*text"),
        "item": (),
        "problem": ("plan.prompt",),
        "problem_detail": ("plan.prompt",),
        "raw": ("plan.prompt",),
        "request_id": ("plan.prompt", "plan.system", "plan.sample"),
        "model": (),
        PAYLOAD: ("plan.prompt", "plan.system", "plan.sample", "plan.cell"),
    },
    "synthetic": {"record_id": ("candidates.*payload",), "origin": ()},
    "rejects": {
        "record_id": ("candidates.*payload",),
        "reason": _SCREENED,
        "detail": (
            *("candidates.problem_detail", "candidates.*text", "human_train.*text"),
            *("human_train.record_id", "holdout.*text", "holdout.record_id"),
        ),
    },
    "blend": {"weight": ()},
    "eval": {"weight": (), "split": ()},
    "contribution": {
        "scope": (),
        "label": ("train.*stratum", "eval.*stratum"),
        "arm": (),
        "metric": (),
        **dict.fromkeys(("value", "low", "high", "note"), _SCORES),
        "n": ("train.*stratum", "eval.*stratum"),
    },
    "release": {"stage": (), "data_version": (), "code_version": (), "rows": ()},
}

# The same where synthetic rows are imported: these are added.
_FOUND_IN = ("source", "source_row", "_load_id")
IMPORT_CARRIED: dict[str, dict[str, tuple[str, ...]]] = {
    "synthetic": {"imported": (PAYLOAD, *_MADE, *_FOUND_IN)},
    "rejects": {"imported": (*_CANDIDATE, *_FOUND_IN)},
    "blend": {"synthetic": ("source", "source_row")},
}
# The same with official folds, and where near-copies on different sides are kept.
OFFICIAL_COMPUTED: dict[str, dict[str, tuple[str, ...]]] = {
    "human": {"side": ("human_raw.*fold",)},
    "human_rejects": {"side": ("human_raw.*fold",)},
    "human_train": {"split": ("human.side",)},
    "holdout": {"split": ("human.side",)},
    "set_aside": {"split": ("human.side",)},
}
KEEPING_COMPUTED: dict[str, dict[str, tuple[str, ...]]] = {
    "human_train": {"kept_despite": ("human.*text", "human.group")},
}
_AS_READ = ("imported_raw.*cells", "imported_raw._problem")
_PARENTS = ("imported_raw._row", "human.record_id", "human.*text", "human_raw.*cells")
IMPORT_COMPUTED: dict[str, dict[str, tuple[str, ...]]] = {
    "imported": {
        "round": (),
        "cell": _AS_READ,
        "ordinal": (),
        "item": ("imported_raw._row",),
        "problem": (*_AS_READ, "holdout.*text", "human_train.*text", "human_train.split"),
        "problem_detail": (*_AS_READ, "holdout.*text", "human_train.*text"),
        "raw": ("imported_raw._raw",),
        "request_id": ("imported_raw._source",),
        "seed_ids": _PARENTS,
        "prompt_version": (),
        "model": ("imported_raw._row",),
        "attributes": ("imported_raw._row",),
        "source": ("imported_raw._source",),
        "source_row": ("imported_raw._row",),
        "_load_id": ("imported_raw._load_id",),
    },
    "synthetic": {"record_id": ("imported.*payload",)},
    "rejects": {"record_id": ("imported.*payload",), "reason": ("imported.problem",)},
}


@dataclass(frozen=True)
class Names:
    """What the task and the source call their columns. ``cells``: payload -> source column.

    ``imports``: whether synthetic rows are imported; ``generates``: whether any are generated.
    ``official``: whether rows say their side, by the column ``fold`` (None: by their source);
    ``keeps_copies``: whether near-copies on different sides are kept.
    """

    payload: Sequence[str]
    text: str
    stratum: str
    cells: Mapping[str, str]
    group: Sequence[str]
    imports: bool = False
    generates: bool = True
    fold: str | None = None
    official: bool = False
    keeps_copies: bool = False

    @property
    def absent(self) -> set[str]:
        """Stages that nothing can come from, because the dataset does not have them."""
        if self.generates:
            return set()
        generating = {"seeds", "plan", "candidates"}
        return generating if self.imports else generating | {"synthetic", "rejects"}

    def spelled(self, column: str) -> list[str]:
        """The columns that a name of the tables stands for."""
        starred = {
            PAYLOAD: list(self.payload),
            "*text": [self.text],
            "*stratum": [self.stratum],
            "*cells": list(dict.fromkeys(self.cells.values())),
            "*group": list(self.group),
            "*fold": [self.fold or "_source"],
        }
        return starred.get(column, [column])


def column_parents(stage: str, names: Names) -> dict[str, list[Parent]]:
    """Every column of a stage -> the parents' columns it comes from, in order.

    Not of landed stages, whose columns are whatever the source has: ``raw_parents``.
    """
    found: dict[str, list[Parent]] = {}
    carried, computed = [CARRIED], [COMPUTED]
    if names.imports:
        carried, computed = [CARRIED, IMPORT_CARRIED], [COMPUTED, IMPORT_COMPUTED]
    computed += [OFFICIAL_COMPUTED] if names.official else []
    computed += [KEEPING_COMPUTED] if names.keeps_copies else []
    for column, parents in ((c, p) for one in computed for c, p in one.get(stage, {}).items()):
        for name in names.spelled(column):
            found.setdefault(name, []).extend(
                (parent, own)
                for parent, _, of in (one.partition(".") for one in parents)
                for own in names.spelled(of)
            )
    for parent, columns in ((p, c) for one in carried for p, c in one.get(stage, {}).items()):
        for name in (own for column in columns for own in names.spelled(column)):
            found.setdefault(name, []).append((parent, name))
    if stage in ("human", "human_rejects", "imported"):
        landed = "imported_raw" if stage == "imported" else "human_raw"
        for name, cell in names.cells.items():
            raw = [(landed, "_raw")] if stage == "human_rejects" and name == names.text else []
            found[name] = [(landed, cell), *raw]
    absent = names.absent
    return {
        column: [parent for parent in parents if parent[0] not in absent]
        for column, parents in found.items()
    }


def raw_parents(columns: Sequence[str], *, source: str) -> dict[str, list[Parent]]:
    """Columns of a landed stage: those of the source come from it; a row's own are made here."""
    return {name: [] if name.startswith("_") else [(source, name)] for name in columns}
