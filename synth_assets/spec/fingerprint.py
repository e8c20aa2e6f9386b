"""Code versions: what of a declaration shapes which stage.

A stage's code version is the sha256 of (a) the declared values that shape it, (b) the texts of
the files it reads (prompt, hand-written seeds), (c) ``REVISIONS[stage]``, bumped by hand when the
stage's algorithm changes what it makes, and (d) ``FINGERPRINT_VERSION``. What comes from other
stages is not in it: that is the parents' data versions.

``EXCLUDED`` lists every declared value that shapes no data, and why. A value is in ``SHAPES`` or
in ``EXCLUDED``; a test walks the spec and holds both tables to that. ``source.X`` is also the ``X``
of every one of several ``sources``, in their order.

Limitations. Values that the environment gives (the address behind ``OPENAI_BASE_URL``) are not in
a code version, because the processes of one deployment need not share an environment; they are in
every request's identity, so a new address never gets an old answer once ``candidates`` runs.
Library versions are not in it either: a release records them, and ``REVISIONS`` is bumped when an
upgrade changes results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from synth_assets.spec.load import Dataset

FINGERPRINT_VERSION = 1
_ONE, _SEVERAL, _IMPORT = "source", "sources", "import"

REVISIONS: dict[str, int] = {
    # 2: NaN in a column of Parquet that is read is no value; class numbers may be floats.
    "human_raw": 2,
    "human": 2,
    "partition": 2,
    "imported_raw": 2,
    "imported": 2,
    "seeds": 1,
    "plan": 3,
    "candidates": 2,
    "synthetic": 2,
    "blend": 1,
    "split": 1,
    "eval": 1,
    # 2: rows drawn again as they were drawn, in clusters; the control for class balance.
    "contribution": 2,
    "release": 1,
}

# What of a source's declaration shapes the rows that are landed of it.
_LANDED = (
    "kind",
    "name",
    "columns",
    "extra_columns",
    "path",
    "package",
    "sha256",
    "member",
    "repo",
    "revision",
    "format",
    "encoding",
    "delimiter",
    "url_env",
    "table",
    "query",
    "cursor",
    "primary_key",
    "base_url",
    "records",
    "params",
    "pagination",
    "auth",
    "role",
)
# ``source.X`` stands for X of the human sources, be it one or several; ``import.X`` for X of those
# whose rows are synthetic. Sources of one role do not touch the stages of the other.
SHAPES: dict[str, tuple[str, ...]] = {
    "human_raw": (
        *(f"{_ONE}.{name}" for name in (*_LANDED, "id_column")),
        "task.text",
        "task.label",
        "partition.group_by",
        "partition.column",
    ),
    "human": (
        "task.kind",
        "task.text",
        "task.label",
        "task.labels.*",
        "partition.group_by",
        "human.drop_labels",
        "human.min_rows_per_label",
        "validate.same_text",
        "validate.min_chars",
        "validate.max_chars",
        # Which rows the official folds hold, and which of two equal ones stays.
        "source.split",
        "partition.column",
        "partition.holdout.*",
        "partition.validation.*",
        "partition.train",
        "partition.near_copies",
    ),
    "partition": (
        "partition.holdout",
        "partition.validation",
        "partition.near_copies",
        "partition.salt",
        "human.limit_train",
        "human.min_train_per_label",
        "validate.decontaminate",
    ),
    "imported_raw": (
        *(f"{_IMPORT}.{name}" for name in (*_LANDED, "provenance")),
        "task.text",
        "task.label",
    ),
    "imported": (
        "source.name",
        "source.id_column",
        "import.name",
        "import.provenance",
        "task.kind",
        "task.text",
        "task.label",
        "task.labels.*",
        "partition.group_by",
        "validate.decontaminate",
        "validate.derived_from_unused",
    ),
    # A leak check has a threshold; another threshold needs another verdict, and a verdict is made
    # together with its stage.
    "seeds": ("seeds", "random_seed", "validate.decontaminate"),
    "plan": (
        "validate.decontaminate",
        "validate.derived_from_unused",
        "task.labels",
        "generate.prompt",
        "generate.system",
        "generate.target",
        "generate.labels_without_human_rows",
        "generate.attributes",
        "generate.rows_per_call",
        "generate.seeds_per_call",
        "generate.candidate_limit",
        "random_seed",
    ),
    "candidates": (
        "generate.model",
        "generate.endpoint.base_url",
        "generate.endpoint.base_url_env",
        "generate.endpoint.name",
        "generate.style",
        "generate.output",
        "generate.temperature",
        "generate.top_p",
        "generate.presence_penalty",
        "generate.frequency_penalty",
        "generate.max_tokens",
        # A reached budget gives fewer rows. Another budget for a complete dataset replays its
        # answers, comes out the same, and nothing below runs.
        "generate.budget",
        "task.kind",
        "task.labels.*",
        "validate",
        "random_seed",
    ),
    "synthetic": ("task.kind", "task.labels.*", "validate"),
    "blend": ("blend", "random_seed"),
    "split": ("validate.decontaminate",),
    "eval": (),
    "contribution": (
        "measure",
        "random_seed",
        "blend.weights",
        "partition.group_by",
        "human.min_train_per_label",
        # What the sentence warns of.
        "partition.near_copies",
        "validate.derived_from_unused",
    ),
    "release": ("release", "description", "source.license", "import.license"),
}

# Keys that came later. At these values they change nothing, and are left out of code versions, so
# that datasets made before are not made again.
ADDED: dict[str, Any] = {
    "validate.derived_from_unused": "reject",
    "import.provenance.unknown_parents": {"warn_above": 0.05, "block_above": 0.5},
    "blend.class_weights": None,
    "source.split": None,
    "partition.column": None,
    "partition.holdout.*": None,
    "partition.validation.*": None,
    "partition.train": None,
    "partition.near_copies": "drop_train",
}
# Stages that are made from less where nothing is generated: that alone makes them anew.
ONLY_WHERE_GENERATED = frozenset({"synthetic", "blend", "release"})

EXCLUDED: dict[str, str] = {
    "source.provenance": "of imported rows; a human source has none",
    "import.id_column": "of human rows, which imported ones name as parents",
    "import.split": "of human rows; imported ones are training rows",
    **{
        f"{root}.{name}": why
        for root in (_ONE, _IMPORT)
        for name, why in {
            "version_query": "how a change is noticed, not what changed",
            "full_every": "when everything is read again; what was read is the source's version",
            "retries": "decides whether an answer arrives, not what it says",
            "timeout_s": "decides whether an answer arrives, not what it says",
            "max_pages": "more pages end the load, they are never cut off",
        }.items()
    },
    "owners": "who is told, not what is made",
    "generate.endpoint.api_key_env": "who pays, not what is asked",
    "generate.concurrency": "order of arrival never reaches the data",
    "generate.requests_per_min": "pace only",
    "generate.tokens_per_min": "pace only",
    "generate.timeout_s": "decides whether an answer arrives, not what it says",
    "generate.prices": "accounting only; frozen into the ledger at call time",
    "generate.mode": "how a request travels; the same request has the same answer",
    "generate.batches": "how requests are bundled, and who waits",
    "refresh": "when stages run and how old a release may be, not what they make",
}


def code_version(dataset: Dataset, stage: str) -> str:
    """First 16 hex digits of the sha256 over what shapes ``stage`` (a key of ``SHAPES``)."""
    declared = _without_added(dataset.spec.model_dump(mode="json", by_alias=True))
    found = {path: _value(declared, path) for path in SHAPES[stage]}
    ingredients = {path: value for path, value in found.items() if not _unsaid(path, value)}
    if stage in ONLY_WHERE_GENERATED and not dataset.spec.generates:
        ingredients["generates"] = False
    if stage == "contribution" and _counts_copies(dataset):
        ingredients["validate.decontaminate"] = _at(declared, "validate.decontaminate")
    files: dict[str, Any] = {}
    if stage == "plan":
        files["prompt"] = dataset.prompt.text
        ingredients.pop("generate.prompt")  # its text counts, not what the file is called
    if stage == "seeds":
        files["handwritten"] = list(dataset.handwritten_seeds)
    body = {
        "fingerprint": FINGERPRINT_VERSION,
        "stage": stage,
        "revision": REVISIONS[stage],
        "declared": ingredients,
        "files": files,
    }
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _counts_copies(dataset: Dataset) -> bool:
    """Whether the contribution's sentence counts rows that are like others, by their threshold."""
    spec = dataset.spec
    allowed = spec.validation.derived_from_unused == "allow"
    return allowed or spec.partition.near_copies == "keep"


def _unsaid(path: str, value: Any) -> bool:
    """Whether a key that came later is at its default, in every source where it is a source's."""
    if path not in ADDED:
        return False
    several = path.startswith((f"{_ONE}.", f"{_IMPORT}.")) and isinstance(value, list)
    return all(one is None or one == ADDED[path] for one in (value if several else [value]))


def declared_paths(dataset: Dataset) -> Iterator[str]:
    """Every declared value as a dotted path, e.g. ``generate.endpoint.base_url``.

    Those of one of several ``sources`` are named as a single ``source``'s are, those of synthetic
    ones ``import.X``.
    """
    declared = dataset.spec.model_dump(mode="json", by_alias=True)
    single, several = declared.pop(_ONE), declared.pop(_SEVERAL)
    for source in several or [single]:
        yield from _paths(source, _root(source))
    yield from _paths(declared, "")


def covered(path: str, by: str) -> bool:
    """Whether the table entry ``by`` stands for ``path``."""
    by = by.removesuffix(".*")
    return path == by or path.startswith(by + ".")


def _paths(value: object, prefix: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _paths(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix


def _value(declared: dict[str, Any], path: str) -> Any:
    """The value at a path of the tables; of sources, the list of what each one has there."""
    root, _, rest = path.partition(".")
    if root not in (_ONE, _IMPORT):
        return _at(declared, path)
    if root == _ONE and declared[_ONE]:
        return _at(declared, path)
    return [_at(source, rest) for source in declared[_SEVERAL] if _root(source) == root]


def _without_added(declared: dict[str, Any]) -> dict[str, Any]:
    """``declared`` without the values of ``ADDED`` that are still what they are there."""
    for path, default in ADDED.items():
        root, _, rest = path.partition(".")
        several = root in (_ONE, _IMPORT)
        own = [one for one in (declared[_ONE], *declared[_SEVERAL]) if one and _root(one) == root]
        for node in own if several else [declared]:
            *sections, last = (rest if several else path).split(".")
            inner: Any = node
            for section in sections:
                inner = inner.get(section) if isinstance(inner, dict) else None
            if isinstance(inner, dict) and inner.get(last) == default:
                del inner[last]
    return declared


def _root(source: dict[str, Any]) -> str:
    return _ONE if source["role"] == "human" else _IMPORT


def _at(declared: dict[str, Any], path: str) -> Any:
    """The value at a dotted path (None: not declared); ``x.*`` is the sorted names below ``x``.

    Of a list those that it lists, of anything else None.
    """
    names_only = path.endswith(".*")
    node: Any = declared
    for part in path.removesuffix(".*").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if names_only:
        return sorted(node) if isinstance(node, dict | list) else None
    return node
