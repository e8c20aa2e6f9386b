"""Closed value sets of a dataset's payload columns, for contracts."""

from __future__ import annotations

from synth_assets.spec.load import Dataset
from synth_assets.tasks import task_for


def allowed_values(dataset: Dataset) -> dict[str, list[str]]:
    """Column -> allowed values, where the declaration closes them."""
    task = task_for(dataset.spec)
    strata = task.strata()
    return {} if strata is None else {task.stratum: sorted(strata)}
