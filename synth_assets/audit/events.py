"""Finished Dagster runs as OpenLineage events, for catalogs that gather lineage from many tools.

An option: nothing is sent, and the client library is not imported, unless its own settings say
where to (``OPENLINEAGE_URL``, ``OPENLINEAGE_CONFIG``, ``OPENLINEAGE__...``, ``openlineage.yml``).
``synth run`` sends at its end, Dagster's daemon by a sensor for the runs that it launched.

A Dagster run is one OpenLineage run and each of its steps another, whose parent it is: a step
START, then COMPLETE with what it made, FAIL, or ABORT where a kill left no word. Datasets are
``DATASET.STAGE``; their version is the data version. Ids are made from Dagster's, so that sending
twice says the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import dagster as dg

from synth_assets.assets.stages import SOURCE, STAGES

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent, RunState

NAMESPACE_ENV, DEFAULT_NAMESPACE = "OPENLINEAGE_NAMESPACE", "synth_assets"
_INPUT = "dagster/input_data_version/"
_ENDS = {
    dg.DagsterRunStatus.SUCCESS: "COMPLETE",
    dg.DagsterRunStatus.FAILURE: "FAIL",
    dg.DagsterRunStatus.CANCELED: "ABORT",
}


def configured() -> bool:
    """Whether the client library's own settings say where events go."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    named = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
    files = (Path("openlineage.yml"), Path("~/.openlineage/openlineage.yml").expanduser())
    return (
        any(os.environ.get(name) for name in named)
        or any(name.startswith("OPENLINEAGE__") for name in os.environ)
        or any(path.is_file() for path in files)
    )


def events_of(instance: dg.DagsterInstance, run_id: str) -> list[RunEvent]:
    """Everything a finished run has to say, in order of time; nothing of one that is not over."""
    record = instance.get_run_record_by_id(run_id)
    if record is None or record.dagster_run.status not in _ENDS:
        return []
    logs = instance.all_logs(run_id)
    steps: dict[str, _Step] = {}
    for log in logs:
        if log.dagster_event is not None and log.step_key is not None:
            steps.setdefault(log.step_key, _Step(log.step_key)).note(log, log.dagster_event)
    known = [step for step in steps.values() if step.stages]
    if not known:
        return []
    began = record.start_time or record.create_timestamp.timestamp()
    ended = record.end_time or max((log.timestamp for log in logs), default=began)
    whole = _Job(run_id, known[0].dataset, parent=None)
    state = _ENDS[record.dagster_run.status]
    events = [whole.event("START", began)]
    for step in known:
        job = _Job(str(uuid5(UUID(run_id), step.key)), step.key.replace("__", ".", 1), parent=whole)
        start = step.started or began
        events.append(job.event("START", start, inputs=step.inputs()))
        end = step.state or ("ABORT" if state != "COMPLETE" else "COMPLETE")
        events.append(
            job.event(
                end,
                step.ended or ended,
                inputs=step.inputs(),
                outputs=[_output(made) for made in step.made],
                error=step.error,
            )
        )
    error = next((step.error for step in known if step.error), "")
    return [*events, whole.event(state, ended, error=error)]


def send(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> int:
    """Send the events of finished runs with the library's client; how many were sent.

    Raises whatever the client's transport raises.
    """
    from openlineage.client import OpenLineageClient

    client, sent = OpenLineageClient(), 0
    try:
        for run_id in run_ids:
            for event in events_of(instance, run_id):
                client.emit(event)
                sent += 1
    finally:
        client.close()
    return sent


@contextmanager
def reported(
    instance: dg.DagsterInstance, dataset: str, notify: Callable[[str], None]
) -> Iterator[None]:
    """Send the events of the runs of a dataset that this process made in the block, however it
    ends. A catalog that cannot be reached costs a line of text, never a run."""
    if not configured():
        yield
        return
    began = datetime.fromtimestamp(time.time(), UTC)
    try:
        yield
    finally:
        filters = dg.RunsFilter(tags={"synth/dataset": dataset}, created_after=began)
        runs = [one for one in instance.get_runs(filters) if one.remote_job_origin is None]
        _try_to_send(instance, [one.run_id for one in reversed(runs)], notify)


def lineage_sensors() -> list[dg.SensorDefinition]:
    """Sensors that report runs which Dagster launched; none unless events have somewhere to go."""
    if not configured():
        return []

    def sensor(status: dg.DagsterRunStatus) -> dg.SensorDefinition:
        @dg.run_status_sensor(
            run_status=status,
            name=f"openlineage_{status.value.lower()}",
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def report(context: dg.RunStatusSensorContext) -> None:
            _try_to_send(context.instance, [context.dagster_run.run_id], context.log.warning)

        return report

    return [sensor(status) for status in _ENDS]


def _try_to_send(
    instance: dg.DagsterInstance, run_ids: Sequence[str], notify: Callable[[str], None]
) -> None:
    try:
        send(instance, run_ids)
    except ImportError:
        notify("OpenLineage is configured and not installed: pip install synth_assets[openlineage]")
    except Exception as error:
        # Of the error the kind only: its text may hold an address with a password.
        notify(f"OpenLineage events could not be sent ({type(error).__name__})")


# --- building events ------------------------------------------------------------------------


class _Step:
    """What the log says of one step."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.dataset, _, first = key.rpartition("__")
        declared = STAGES.get(first)
        shape = declared and (declared.shaped_by, declared.parents)
        self.stages = [s for s in STAGES.values() if (s.shaped_by, s.parents) == shape]
        self.started = self.ended = 0.0
        self.state, self.error = "", ""
        self.made: list[dg.AssetMaterialization] = []

    def note(self, log: dg.EventLogEntry, event: dg.DagsterEvent) -> None:
        if event.is_step_materialization:
            self.made.append(event.step_materialization_data.materialization)
        elif event.is_step_start:
            self.started = log.timestamp
        elif event.is_step_success:
            self.ended, self.state = log.timestamp, "COMPLETE"
        elif event.is_step_failure:
            self.ended, self.state = log.timestamp, "FAIL"
            told = event.step_failure_data.error
            self.error = told.message.strip() if told else "failed"

    def inputs(self) -> list[InputDataset]:
        """The parents; with the versions that were read, where a table was made."""
        tags: Mapping[str, str] = next((made.tags or {} for made in self.made), {})
        stage = self.stages[0]
        parents = [stage.source if parent == SOURCE else parent for parent in stage.parents]
        read = {parent: tags.get(f"{_INPUT}{self.dataset}/{parent}") for parent in parents}
        # A dataset need not have every stage: a parent that was not there has no version.
        return [
            _input(self.dataset, parent, version)
            for parent, version in read.items()
            if version is not None or not any(read.values())
        ]


class _Job:
    """One OpenLineage run and the job it is of."""

    def __init__(self, run_id: str, name: str, *, parent: _Job | None) -> None:
        self.run_id, self.name, self.parent = run_id, name, parent

    def event(
        self,
        state: str,
        at: float,
        *,
        inputs: Sequence[InputDataset] = (),
        outputs: Sequence[OutputDataset] = (),
        error: str = "",
    ) -> RunEvent:
        from openlineage.client import event_v2
        from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run

        run: dict[str, Any] = {}
        if self.parent is not None:
            run["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(runId=self.parent.run_id),
                job=parent_run.Job(namespace=_namespace(), name=self.parent.name),
            )
        if error and state == "FAIL":
            run["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=error, programmingLanguage="python"
            )
        kind = job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="DAGSTER", jobType="STEP" if self.parent else "RUN"
        )
        reached: RunState = event_v2.RunState[state]
        return event_v2.RunEvent(
            eventType=reached,
            eventTime=datetime.fromtimestamp(at, UTC).isoformat(),
            run=event_v2.Run(runId=self.run_id, facets=run),
            job=event_v2.Job(namespace=_namespace(), name=self.name, facets={"jobType": kind}),
            producer=f"urn:x-synth-assets:{version('synth_assets')}",
            inputs=list(inputs),
            outputs=list(outputs),
        )


def _input(dataset: str, stage: str, data_version: str | None) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset

    facets = {"version": _version(data_version)} if data_version else {}
    return InputDataset(namespace=_namespace(), name=f"{dataset}.{stage}", facets=facets)


def _output(made: dg.AssetMaterialization) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import (
        column_lineage_dataset,
        output_statistics_output_dataset,
        schema_dataset,
    )

    facets: dict[str, Any] = {}
    told = {name: value.value for name, value in made.metadata.items()}
    columns = told.get("dagster/column_schema")
    if isinstance(columns, dg.TableSchema):
        facets["schema"] = schema_dataset.SchemaDatasetFacet(
            fields=[
                schema_dataset.SchemaDatasetFacetFields(name=c.name, type=c.type)
                for c in columns.columns
            ]
        )
    lineage = told.get("dagster/column_lineage")
    if isinstance(lineage, dg.TableColumnLineage):
        facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(
            fields={
                column: column_lineage_dataset.Fields(
                    inputFields=[
                        column_lineage_dataset.InputField(
                            namespace=_namespace(),
                            name=".".join(dep.asset_key.path),
                            field=dep.column_name,
                        )
                        for dep in deps
                    ]
                )
                for column, deps in lineage.deps_by_column.items()
                if deps
            }
        )
    data_version = (made.tags or {}).get("dagster/data_version")
    if data_version:
        facets["version"] = _version(data_version)
    rows, size = told.get("dagster/row_count"), told.get("bytes")
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=rows if isinstance(rows, int) else None,
        size=size if isinstance(size, int) else None,
    )
    return OutputDataset(
        namespace=_namespace(),
        name=".".join(made.asset_key.path),
        facets=facets,
        outputFacets={"outputStatistics": statistics},
    )


def _version(data_version: str) -> Any:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=data_version)


def _namespace() -> str:
    return os.environ.get(NAMESPACE_ENV, "").strip() or DEFAULT_NAMESPACE
