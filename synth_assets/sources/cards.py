"""The card of a Hugging Face dataset: what the whole numbers of a column stand for.

A card is a ``README.md`` that begins with YAML between two lines of ``---``. It is where an export
of this project, too, writes the names of its classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
# Cards name thousands of classes in their header; none is larger than this.
MAX_CARD_BYTES = 8 * 2**20


def class_names(card: Path) -> dict[str, list[str]]:
    """Column -> names, in order; nothing of a file that is no card, or names none.

    Where the configurations of a repository say different things of a column, it is left out.
    """
    found: dict[str, list[str]] = {}
    differing: set[str] = set()
    for info in _infos(card):
        for column, names in _classes(info.get("features")):
            if found.setdefault(column, names) != names:
                differing.add(column)
    return {column: names for column, names in found.items() if column not in differing}


def beside(file: Path) -> dict[str, list[str]]:
    """What the card in a file's folder, or in the one above it, says."""
    for folder in (file.parent, file.parent.parent):
        if (found := folder / CARD).is_file():
            return class_names(found)
    return {}


def _infos(card: Path) -> list[Mapping[str, Any]]:
    try:
        with card.open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
        if not text.startswith("---\n"):
            return []
        header = yaml.safe_load(text[4:].partition("\n---")[0])
    except (OSError, yaml.YAMLError, RecursionError):
        return []
    said = header.get("dataset_info") if isinstance(header, dict) else None
    return [one for one in (said if isinstance(said, list) else [said]) if isinstance(one, dict)]


def _classes(features: Any) -> Iterator[tuple[str, list[str]]]:
    for feature in features if isinstance(features, list) else []:
        if not isinstance(feature, dict):
            continue
        kinds = (feature.get(key) for key in ("dtype", "sequence", "list"))
        for kind in kinds:
            label = kind.get("class_label") if isinstance(kind, dict) else None
            names = label.get("names") if isinstance(label, dict) else None
            if isinstance(names, dict):
                names = [names.get(str(place), names.get(place)) for place in range(len(names))]
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                yield str(feature.get("name")), names
