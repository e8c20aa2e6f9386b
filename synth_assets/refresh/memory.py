"""What the sensor remembers from one look to the next: its cursor, kept by Dagster.

Only what no record holds: when sources were looked at, and which tick of a schedule was served.
A lost cursor costs a look at each source and forgets ticks that were owed; nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from synth_assets.refresh.looking import Look


@dataclass(frozen=True)
class Remembered:
    """Of one dataset. ``served``: the tick of ``schedule`` up to which all is done, epoch s."""

    look: Look | None = None
    schedule: str = ""
    served: float = 0.0


def written(memory: Mapping[str, Remembered]) -> str:
    return json.dumps({name: asdict(one) for name, one in sorted(memory.items())})


def read(cursor: str | None) -> dict[str, Remembered]:
    """What :func:`written` wrote; empty when it was another version of this, or nobody."""
    try:
        return {
            name: Remembered(
                Look(**one["look"]) if one["look"] else None, one["schedule"], one["served"]
            )
            for name, one in json.loads(cursor or "{}").items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
