"""Dagster's door to the store: saves a stage's frame, and makes its hash the data version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import polars as pl

from synth_assets.errors import Incomplete
from synth_assets.report.tables import markdown_table
from synth_assets.settings import Home
from synth_assets.store.content import ContentStore
from synth_assets.store.erasures import Log

IO_MANAGER_KEY = "synth_store"
PREVIEW_ROWS = 5
VOLATILE = ("_load_id",)
COLUMN_LINEAGE = "dagster/column_lineage"


class ContentIOManager(dg.IOManager):
    """Polars frames in and out of a home's store; asset keys are ``[dataset, stage]``.

    Nothing goes in or out while an erasure of the dataset is under way: a step would bring back
    what is being deleted.
    """

    def __init__(self, home: Home) -> None:
        self._home = home.root
        self._store = ContentStore(home.store)

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        key = context.asset_key
        dataset, stage = key.path
        self._unless_erasing(dataset)
        stored = self._store.put(dataset, stage, obj, volatile=VOLATILE)
        # Dagster's own default is not a content hash; this is what makes early cutoff work.
        context.step_context.set_data_version(key, dg.DataVersion(stored.data_version))
        context.add_output_metadata(
            {
                **_column_lineage(context, obj.columns),
                "dagster/row_count": stored.rows,
                "path": dg.MetadataValue.path(str(stored.path)),
                "bytes": stored.bytes,
                "preview": dg.MetadataValue.md(markdown_table(obj.head(PREVIEW_ROWS))),
                "dagster/column_schema": dg.TableSchema(
                    [dg.TableColumn(name, str(kind)) for name, kind in obj.schema.items()]
                ),
            }
        )

    def load_input(self, context: dg.InputContext) -> pl.DataFrame | pl.LazyFrame:
        dataset, stage = context.asset_key.path
        self._unless_erasing(dataset)
        frame = self._store.scan(dataset, stage, _version(context))
        wants_lazy = context.dagster_type.typing_type is pl.LazyFrame
        return frame if wants_lazy else frame.collect()

    def _unless_erasing(self, dataset: str) -> None:
        if Log(self._home, dataset).pending_path.exists():
            refused = Incomplete(
                "an erasure of it is under way",
                where=dataset,
                fix=f"let it end; what was cut short is finished by synth erase {dataset} --yes",
            )
            raise dg.Failure(
                str(refused), metadata={"exit_code": refused.exit_code}, allow_retries=False
            )


def _column_lineage(context: dg.OutputContext, columns: Sequence[str]) -> dict[str, Any]:
    """Of the declared lineage what is about columns that are there; nothing if the step told it."""
    if COLUMN_LINEAGE in context.output_metadata:
        return {}
    declared = context.definition_metadata.get(COLUMN_LINEAGE)
    found = getattr(declared, "value", declared)
    if not isinstance(found, dg.TableColumnLineage):
        return {}
    known = {c: found.deps_by_column[c] for c in columns if c in found.deps_by_column}
    return {COLUMN_LINEAGE: dg.TableColumnLineage(known)}


def _version(context: dg.InputContext) -> str:
    """The version that this step's lineage will name (outside a step: the latest)."""
    if context.has_input_name and getattr(context, "_step_context", None) is not None:
        info = context.step_context.maybe_fetch_and_get_input_asset_version_info(context.asset_key)
        if info is not None and info.data_version is not None:
            return info.data_version.value
    return latest_version(context.instance, context.asset_key)


def latest_version(instance: Any, key: dg.AssetKey) -> str:
    """The data version of the latest materialisation of ``key``.

    Raises:
        dg.Failure: when there is none yet.
    """
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    version = (materialization.tags or {}).get("dagster/data_version") if materialization else None
    if version is None:
        raise dg.Failure(
            f"{key.to_user_string()} has not been materialised yet", allow_retries=False
        )
    return str(version)
