"""Datasets for tests: a folder as a user would write it, and human rows made from a grammar."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WORDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "billing": (
        ["my invoice", "the last payment", "a refund", "the monthly charge", "my credit card"],
        [
            "was charged twice",
            "is missing from the statement",
            "shows the wrong amount",
            "was declined without reason",
            "has not been returned yet",
        ],
        ["since monday", "for order 1182", "in euro", "after the upgrade", "on my account"],
    ),
    "delivery": (
        ["the parcel", "my shipment", "the courier", "a second box", "the tracking page"],
        [
            "never arrived at the door",
            "was left with a neighbour",
            "is stuck in customs",
            "went to my old address",
            "came with a broken seal",
        ],
        ["this morning", "two weeks late", "in the rain", "without a call", "near the harbour"],
    ),
    "login": (
        ["the reset mail", "my password", "the second factor", "the sign-in page", "a new phone"],
        [
            "does not let me in",
            "expires before i can use it",
            "asks for a code forever",
            "locks the profile again",
            "shows an empty screen",
        ],
        ["on android", "with the office network", "after the update", "in safari", "every time"],
    ),
}
PROMPT = """\
Write {{ rows }} new support tickets about "{{ label }}" ({{ label_description }}).
{% for example in examples %}
- {{ example }}
{% endfor %}
"""
COUNTS = {"billing": 60, "delivery": 40, "login": 20}


def human_rows(counts: dict[str, int] | None = None, *, seed: int = 1) -> list[dict[str, str]]:
    """Distinct plausible tickets, imbalanced."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    for label, count in (counts or COUNTS).items():
        seen: set[str] = set()
        subjects, verbs, ends = WORDS[label]
        while len(seen) < count:
            seen.add(f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(ends)}")
        rows += [{"body": text, "topic": label} for text in sorted(seen)]
    rng.shuffle(rows)
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class DatasetFolder:
    """A dataset folder that a test can write, change and write again."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=human_rows)
    prompt: str = PROMPT
    attributes: dict[str, Any] = field(
        default_factory=lambda: {
            "description": "Support tickets by topic",
            "task": {
                "kind": "classification",
                "text": "body",
                "label": "topic",
                "labels": {"billing": "money", "delivery": "parcels", "login": "access"},
            },
            "source": {"kind": "files", "path": "human.csv"},
            "partition": {"holdout": 0.3, "validation": 0.1},
            "seeds": {"per_label": 8},
            "generate": {
                "model": "test-model",
                "target": {"per_label": 20},
                "endpoint": {"name": "test-server"},
                "rows_per_call": 5,
                "seeds_per_call": 4,
                "candidate_limit": 8.0,
            },
            "measure": {"repeats": 4},
        }
    )

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def defs_file(self) -> Path:
        return self.folder / "defs.yaml"

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.attributes["task"]["labels"])

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_spec()
        self.write_prompt(self.prompt)
        write_csv(self.folder / "human.csv", self.rows)

    def write_spec(self) -> None:
        document = {"type": "synth_assets.SyntheticDataset", "attributes": self.attributes}
        self.defs_file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def write_prompt(self, text: str) -> None:
        self.prompt = text
        (self.folder / "prompt.md.j2").write_text(text, encoding="utf-8")

    def edit(self, path: str, value: Any) -> None:
        """Set a dotted key of the spec and write it."""
        *parents, last = path.split(".")
        node = self.attributes
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        self.write_spec()


def text_of(body: dict[str, Any]) -> str:
    """The prompt of a chat request."""
    return str(body["messages"][-1]["content"])


def labels_in(prompts: Iterable[str]) -> set[str]:
    """Labels that prompts ask for."""
    return {label for text in prompts for label in WORDS if f'tickets about "{label}"' in text}
