"""Code versions: what of a declaration shapes which stage.

A stage's code version is the sha256 of (a) the declared values that shape it, (b) the texts of
the files it reads (prompt, hand-written seeds), (c) ``REVISIONS[stage]``, bumped by hand when the
stage's algorithm changes what it makes, and (d) ``FINGERPRINT_VERSION``. What comes from other
stages is not in it: that is the parents' data versions.

``EXCLUDED`` lists every declared value that shapes no data, and why. A value is in ``SHAPES`` or
in ``EXCLUDED``; a test walks the spec and holds both tables to that.

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

REVISIONS: dict[str, int] = {
    "human_raw": 1,
    "human": 1,
    "partition": 1,
    "seeds": 1,
    "plan": 1,
    "candidates": 1,
    "synthetic": 1,
    "blend": 1,
    "split": 1,
    "eval": 1,
    "contribution": 1,
    "release": 1,
}

SHAPES: dict[str, tuple[str, ...]] = {
    "human_raw": (
        "source.kind",
        "source.path",
        "source.package",
        "source.sha256",
        "source.member",
        "source.format",
        "source.encoding",
        "source.delimiter",
        "task.text",
        "task.label",
        "partition.group_by",
    ),
    "human": (
        "task.kind",
        "task.text",
        "task.label",
        "task.labels.*",
        "partition.group_by",
        "human.drop_labels",
        "human.min_rows_per_label",
        "validate.min_chars",
        "validate.max_chars",
    ),
    "partition": (
        "partition.holdout",
        "partition.validation",
        "partition.salt",
        "human.limit_train",
        "human.min_train_per_label",
        "validate.decontaminate",
    ),
    "seeds": ("seeds", "random_seed"),
    "plan": (
        "task.labels",
        "generate.prompt",
        "generate.system",
        "generate.target",
        "generate.attributes",
        "generate.rows_per_call",
        "generate.seeds_per_call",
        "generate.candidate_limit",
        "random_seed",
    ),
    "candidates": (
        "generate.model",
        "generate.endpoint",
        "generate.style",
        "generate.output",
        "generate.temperature",
        "generate.top_p",
        "generate.presence_penalty",
        "generate.frequency_penalty",
        "generate.max_tokens",
        "task.kind",
        "task.labels.*",
        "validate",
        "random_seed",
    ),
    "synthetic": ("task.kind", "task.labels.*", "validate"),
    "blend": ("blend", "random_seed"),
    "split": (),
    "eval": (),
    "contribution": ("measure", "random_seed"),
    "release": ("release", "description", "source.license"),
}

EXCLUDED: dict[str, str] = {
    "owners": "who is told, not what is made",
    "generate.concurrency": "order of arrival never reaches the data",
    "generate.requests_per_min": "pace only",
    "generate.tokens_per_min": "pace only",
    "generate.timeout_s": "decides whether an answer arrives, not what it says",
    "generate.prices": "accounting only; frozen into the ledger at call time",
}


def code_version(dataset: Dataset, stage: str) -> str:
    """First 16 hex digits of the sha256 over what shapes ``stage`` (a key of ``SHAPES``)."""
    declared = dataset.spec.model_dump(mode="json", by_alias=True)
    ingredients = {path: _value(declared, path) for path in SHAPES[stage]}
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


def declared_paths(dataset: Dataset) -> Iterator[str]:
    """Every declared value as a dotted path, e.g. ``generate.endpoint.base_url``."""
    yield from _paths(dataset.spec.model_dump(mode="json", by_alias=True), "")


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
    """The value at a dotted path (None: not declared); ``x.*`` is the sorted names below ``x``."""
    names_only = path.endswith(".*")
    node: Any = declared
    for part in path.removesuffix(".*").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return sorted(node) if names_only and node is not None else node
