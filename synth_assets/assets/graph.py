"""One dataset's whole graph: every lane, every check."""

from __future__ import annotations

import dagster as dg

from synth_assets.assets.generating import synthetic_lane
from synth_assets.assets.human import human_lane
from synth_assets.assets.importing import import_lane
from synth_assets.assets.measuring import evidence_lane
from synth_assets.assets.planning import plan_checks, plan_lane
from synth_assets.assets.product import product_checks, product_lane
from synth_assets.assets.releasing import release_lane
from synth_assets.assets.source import source_assets
from synth_assets.spec.load import Dataset


def dataset_definitions(dataset: Dataset) -> dg.Definitions:
    """Assets and checks of ``dataset``; resources come from the code location."""
    assets = [
        *human_lane(dataset),
        *import_lane(dataset),
        *plan_lane(dataset),
        *synthetic_lane(dataset),
        *product_lane(dataset),
        *evidence_lane(dataset),
    ]
    checks = [*plan_checks(dataset), *product_checks(dataset)]
    declared = {spec.key: spec.blocking for made in (*assets, *checks) for spec in made.check_specs}
    return dg.Definitions(
        assets=[*source_assets(dataset), *assets, *release_lane(dataset, declared)],
        asset_checks=checks,
    )
