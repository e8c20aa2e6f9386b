"""Training datasets out of human and LLM-made data, as a lineage-tracked Dagster project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synth_assets.components import SyntheticDataset

__version__ = "0.1.0"
__all__ = ["SyntheticDataset", "__version__"]


def __getattr__(name: str) -> Any:
    """``synth_assets.SyntheticDataset`` is the type in YAML; late, because it loads Dagster."""
    if name == "SyntheticDataset":
        from synth_assets.components import SyntheticDataset

        return SyntheticDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Dagster's registry looks for component types here."""
    return [*globals(), "SyntheticDataset"]
