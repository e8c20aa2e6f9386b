"""``SyntheticDataset``: a folder with ``defs.yaml`` and a prompt becomes an asset graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster.components.core.context import ComponentLoadContext
from pydantic import BaseModel, ConfigDict

from synth_assets.assets.graph import dataset_definitions
from synth_assets.components.scaffold import SyntheticDatasetScaffolder
from synth_assets.errors import SpecError
from synth_assets.spec.load import load_dataset
from synth_assets.spec.model import DatasetSpec


class DatasetAttributes(BaseModel):
    """Accepts anything, documents :class:`DatasetSpec`.

    Dagster validates attributes while it loads the whole folder, reports a mistake without the
    key, and lets one broken dataset take every other down. So it is given this open door, with the
    exact JSON schema for editors and ``dg check yaml``, and the component validates for itself.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return DatasetSpec.model_json_schema(*args, **kwargs)


@dg.scaffold_with(SyntheticDatasetScaffolder)
class SyntheticDataset(dg.Component):
    """A training dataset made of human and generated rows, measured and released."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return DatasetAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: ComponentLoadContext) -> Self:
        path = Path(context.path)
        return cls(path if path.is_dir() else path.parent)

    @classmethod
    def get_code_references_for_yaml(
        cls, yaml_path: Path, source_position: Any, context: ComponentLoadContext
    ) -> list[Any]:
        """None: every asset names the declaration itself."""
        return []

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        try:
            dataset = load_dataset(self.folder)
        except SpecError as error:
            return broken_definitions(self.folder.name, error)
        return dg.Definitions() if dataset is None else dataset_definitions(dataset)


def broken_definitions(name: str, error: SpecError) -> dg.Definitions:
    """A dataset that cannot be loaded, visible in the graph instead of missing from it."""
    safe = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return dg.Definitions(
        assets=[
            dg.AssetSpec(
                key=[safe or "dataset", "broken_spec"],
                group_name=safe or "dataset",
                description=f"This dataset is not loaded:\n\n````text\n{error}\n````",
                kinds={"error"},
                metadata={"problems": len(error.problems), "error": str(error)},
            )
        ]
    )
