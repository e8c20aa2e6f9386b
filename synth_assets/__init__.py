"""Training datasets out of human and LLM-made data, as a lineage-tracked Dagster project."""

from __future__ import annotations

__version__ = "0.1.0"
