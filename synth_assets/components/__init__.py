"""Component types: what a ``defs.yaml`` can declare."""

from synth_assets.components.synthetic_dataset import SyntheticDataset

__all__ = ["SyntheticDataset"]
