"""Finished runs as OpenLineage events, received by a real HTTP endpoint."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest

from synth_assets.audit.events import configured, events_of, lineage_sensors
from synth_assets.terminal import opened_instance
from tests.datasets import DatasetFolder
from tests.test_run import run, synth

HUMAN_STEPS = ["tickets.human", "tickets.human_raw"]


class Catalog:
    """An HTTP endpoint that keeps what is posted to it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.paths: set[str] = set()
        catalog = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                catalog.paths.add(self.path)
                catalog.events.append(json.loads(body))
                self.send_response(201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def ended(self, name: str) -> dict[str, Any]:
        (found,) = [
            e for e in self.events if e["job"]["name"] == name and e["eventType"] != "START"
        ]
        return found


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    made = Catalog()
    # The client writes what it understands of its variables back into the environment.
    with mock.patch.dict(os.environ, {"OPENLINEAGE_URL": made.url}):
        yield made
    made.close()


def by_name(datasets: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in datasets}


def test_a_run_is_told_with_its_steps_inputs_outputs_and_versions(
    tickets: DatasetFolder, catalog: Catalog
) -> None:
    ran = run("tickets", "--until", "human")
    assert ran.code == 0, ran.errors
    assert catalog.paths == {"/api/v1/lineage"}
    told = [(e["eventType"], e["job"]["name"]) for e in catalog.events]
    runs = [kind for kind, name in told if name == "tickets"]
    assert runs == ["START", "COMPLETE"] * (len(runs) // 2)
    assert sorted(name for kind, name in told if kind == "START" and name != "tickets") == (
        HUMAN_STEPS
    )
    versions = {
        s["stage"]: s["data_version"] for s in synth("status", "tickets", "--json").json["stages"]
    }
    ended = catalog.ended("tickets.human")
    assert ended["eventType"] == "COMPLETE"
    (read,) = ended["inputs"]
    assert read["name"] == "tickets.human_raw"
    assert read["facets"]["version"]["datasetVersion"] == versions["human_raw"]
    outputs = by_name(ended["outputs"])
    assert set(outputs) == {"tickets.human", "tickets.human_rejects"}
    human = outputs["tickets.human"]
    assert human["namespace"] == "synth_assets"
    assert human["facets"]["version"]["datasetVersion"] == versions["human"]
    assert human["outputFacets"]["outputStatistics"]["rowCount"] == len(tickets.rows)
    assert {"name": "text", "type": "String"}.items() <= human["facets"]["schema"]["fields"][
        1
    ].items()
    (cell,) = human["facets"]["columnLineage"]["fields"]["text"]["inputFields"]
    assert (cell["name"], cell["field"]) == ("tickets.human_raw", "body")


def test_a_step_names_the_run_it_was_a_part_of(tickets: DatasetFolder, catalog: Catalog) -> None:
    assert run("tickets", "--until", "human").code == 0
    whole = {e["run"]["runId"] for e in catalog.events if e["job"]["name"] == "tickets"}
    for event in catalog.events:
        parent = event["run"]["facets"].get("parent")
        if event["job"]["name"] == "tickets":
            assert parent is None
        else:
            assert parent["run"]["runId"] in whole
            assert (parent["job"]["namespace"], parent["job"]["name"]) == (
                "synth_assets",
                "tickets",
            )
        assert event["eventTime"]
    with opened_instance() as instance:
        assert whole == {one.run_id for one in instance.get_runs()}


def test_a_failed_step_is_told_with_its_error(tickets: DatasetFolder, catalog: Catalog) -> None:
    (tickets.folder / "human.csv").write_text("body,topic\nhello there,weather\n")
    assert run("tickets", "--until", "human").code == 1
    ended = catalog.ended("tickets.human")
    assert ended["eventType"] == "FAIL"
    assert "no usable row" in ended["run"]["facets"]["errorMessage"]["message"]
    assert ended["outputs"] == []
    assert catalog.events[-1]["job"]["name"] == "tickets"
    assert catalog.events[-1]["eventType"] == "FAIL"


def test_telling_twice_says_the_same(tickets: DatasetFolder) -> None:
    from openlineage.client.serde import Serde

    assert run("tickets", "--until", "human").code == 0
    with opened_instance() as instance:
        for one in instance.get_runs():
            first, second = (
                [Serde.to_json(event) for event in events_of(instance, one.run_id)]
                for _ in range(2)
            )
            assert first == second != []


def test_without_settings_nothing_is_sent_and_no_client_is_loaded(
    tickets: DatasetFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not configured()
    assert lineage_sensors() == []
    ran = run("tickets", "--until", "human")
    assert ran.code == 0
    assert "eventType" not in ran.result.output + capfd.readouterr().out


def test_a_disabled_client_is_not_configured(catalog: Catalog) -> None:
    assert configured()
    with mock.patch.dict(os.environ, {"OPENLINEAGE_DISABLED": "true"}):
        assert not configured()


def test_the_clients_own_file_says_where_events_go(tickets: DatasetFolder, tmp_path: Path) -> None:
    log, config = tmp_path / "events.jsonl", tmp_path / "openlineage.yml"
    config.write_text(
        json.dumps({"transport": {"type": "file", "log_file_path": str(log), "append": True}})
    )
    named = {"OPENLINEAGE_CONFIG": str(config), "OPENLINEAGE_NAMESPACE": "plant"}
    with mock.patch.dict(os.environ, named):
        assert run("tickets", "--until", "human").code == 0
    events = [json.loads(line) for line in log.read_text().splitlines() if line]
    assert {event["job"]["namespace"] for event in events} == {"plant"}
    assert {event["eventType"] for event in events} == {"START", "COMPLETE"}


def test_a_catalog_that_refuses_costs_a_line_and_no_run(
    tickets: DatasetFolder, tmp_path: Path
) -> None:
    config = tmp_path / "openlineage.yml"
    config.write_text(
        json.dumps(
            {
                "transport": {
                    "type": "http",
                    "url": "http://someone:hidden-word@127.0.0.1:9",
                    "retry": {"total": 0},
                }
            }
        )
    )
    with mock.patch.dict(os.environ, {"OPENLINEAGE_CONFIG": str(config)}):
        ran = run("tickets", "--until", "human")
    assert ran.code == 0
    assert "could not be sent" in ran.errors
    assert "hidden-word" not in ran.errors + ran.result.stdout


def test_a_sensor_tells_of_the_runs_that_dagster_launched(
    tickets: DatasetFolder, catalog: Catalog
) -> None:
    assert run("tickets", "--until", "human").code == 0
    sensors = {sensor.name: sensor for sensor in lineage_sensors()}
    assert set(sensors) == {"openlineage_success", "openlineage_failure", "openlineage_canceled"}
    earlier = list(catalog.events)
    with opened_instance() as instance:
        (one, *_) = instance.get_runs()
        (record,) = [
            log for log in instance.all_logs(one.run_id)
            if log.dagster_event is not None
            and log.dagster_event.event_type == dg.DagsterEventType.RUN_SUCCESS
        ]  # fmt: skip
        assert record.dagster_event is not None
        context = dg.build_run_status_sensor_context(
            "openlineage_success", record.dagster_event, instance, one
        )
        sensors["openlineage_success"](context)
    told = catalog.events[len(earlier) :]
    assert told
    assert all(event in earlier for event in told)
