"""What automation costs: loading the code location, and one look of the sensor.

    python -m benchmarks.automation [--datasets 30] [--repeat 5] [--json FILE]

CPU seconds, in one process. ``--datasets`` datasets are made, run once in full (a server on
loopback answers), and then looked at while nothing is to be done:

- ``refresh``: this project's sensor. *first*: in a code location that was just loaded. *event*:
  something was recorded since the last look, so everything is read again. *steady*: nothing was.
- ``eager``, ``on_cron``: what Dagster's automation-condition sensor evaluates in a look, with that
  condition on every stage of the same graph; *first*, *event* and *steady* as above. It looks
  neither at sources nor at declarations on disk.

Medians over ``--repeat``; trust ratios, not seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from rich.console import Console
from rich.table import Table

from synth_assets.assets.graph import dataset_definitions
from synth_assets.assets.stages import STAGES
from synth_assets.assets.workbench import Workbench
from synth_assets.run import Session, run_dataset
from synth_assets.settings import defs_roots, home
from synth_assets.spec.load import Dataset, discover
from tests.openai_server import running_server
from tests.processes import Place

Look = Callable[[Any], Any]
Figures = dict[str, float]
CONDITIONS = {
    "eager": dg.AutomationCondition.eager,
    "on_cron": lambda: dg.AutomationCondition.on_cron("0 5 * * 1"),
}


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def location() -> dg.Definitions:
    from synth_assets.definitions import defs

    return defs() if not isinstance(defs, dg.Definitions) else defs


def made(place: Place, count: int) -> None:
    """``count`` complete datasets under automation."""
    for number in range(count):
        folder = place.dataset(f"d{number:03}")
        folder.attributes["generate"]["target"] = {"per_label": 5}
        folder.edit("refresh", {"policy": "on_change", "generate": "on_change"})
    with running_server() as server:
        os.environ |= place.environment(server)
        with dg.DagsterInstance.get() as instance:
            for name, dataset in datasets().items():
                done = run_dataset(Session.open(dataset, instance, Workbench(home())))
                if done.exit_code:
                    raise SystemExit(f"{name}: {'; '.join(done.problems)}")
                print(f"\r{name} is complete", end="", file=sys.stderr)
    print(file=sys.stderr)


def datasets() -> dict[str, Dataset]:
    found = discover(defs_roots()).datasets
    return {name: dataset for name, dataset in found.items() if dataset.spec.refresh.active}


def loading(repeat: int) -> float:
    def load() -> None:
        location().get_repository_def()

    return statistics.median(cpu(load)[0] for _ in range(repeat))


def refresh(instance: dg.DagsterInstance) -> Look:
    repository = location().get_repository_def()
    sensor = repository.get_sensor_def("refresh")

    def look(cursor: Any) -> Any:
        with dg.build_sensor_context(
            instance=instance,
            repository_def=repository,
            cursor=cursor,
            resources={"workbench": Workbench(home())},
        ) as context:
            found = sensor.evaluate_tick(context)
        if found.run_requests or found.skip_message != "nothing to do":
            raise SystemExit(f"refresh: something was to be done: {found.skip_message}")
        return str(found.cursor)

    return look


def condition(instance: dg.DagsterInstance, name: str) -> Look:
    """Dagster's own evaluation over the same graph.

    Not in a sensor: one that user code evaluates, as ours is, takes 500 stages at most.
    """
    rule = CONDITIONS[name]()
    parts = [dataset_definitions(dataset) for dataset in datasets().values()]
    assets = [
        asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=rule))
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable
        else asset
        for part in parts
        for asset in part.assets or []
    ]
    whole = dg.Definitions(
        assets=assets,
        asset_checks=[check for part in parts for check in part.asset_checks or []],
        resources=location().resources,
        executor=dg.in_process_executor,
    )
    whole.get_repository_def()  # made once, as a daemon keeps it

    def look(cursor: Any) -> Any:
        found = dg.evaluate_automation_conditions(whole, instance, cursor=cursor)
        if found.total_requested:
            raise SystemExit(f"{name}: {found.total_requested} stages were to be made")
        return found.cursor

    return look


def looked(look: Look, instance: dg.DagsterInstance, repeat: int) -> Figures:
    first, cursor = cpu(lambda: look(None))
    kinds: dict[str, list[float]] = {"steady": [], "event": []}
    for number in range(repeat):
        for kind in kinds:
            if kind == "event":
                happened(instance, number)
            seconds, cursor = cpu(partial(look, cursor))
            kinds[kind].append(seconds)
        _, cursor = cpu(partial(look, cursor))
    return {"first": first, **{kind: statistics.median(found) for kind, found in kinds.items()}}


def happened(instance: dg.DagsterInstance, number: int) -> None:
    """An event that changes nothing, as any run of another code location logs them."""
    instance.report_runless_asset_event(dg.AssetMaterialization(["elsewhere", str(number)]))


def show(loaded: float, rows: dict[str, Figures], count: int) -> None:
    print(f"{count} datasets, {count * len(STAGES)} stages; CPU s")
    print(f"definitions load: {loaded:.2f}")
    table = Table(box=None, header_style="bold")
    table.add_column("sensor")
    for column in ("first", "event", "steady"):
        table.add_column(column, justify="right")
    for name, found in rows.items():
        table.add_row(name, *(f"{found[column]:.3f}" for column in ("first", "event", "steady")))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.automation", description=__doc__)
    parser.add_argument("--datasets", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        made(Place.make(Path(folder)), options.datasets)
        loaded = loading(options.repeat)
        with dg.DagsterInstance.get() as instance:
            rows = {"refresh": looked(refresh(instance), instance, options.repeat)}
            for name in CONDITIONS:
                rows[name] = looked(condition(instance, name), instance, options.repeat)
    show(loaded, rows, options.datasets)
    if options.json:
        figures = {"datasets": options.datasets, "load": loaded, "looks": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
