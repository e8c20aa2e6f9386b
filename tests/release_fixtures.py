"""Two releases of one dataset, made once; every test works on a copy of everything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.datasets import DatasetFolder, write_csv
from tests.openai_server import running_server
from tests.release_support import KEY, SEED, Place
from tests.test_run import run, synth


@pytest.fixture(scope="session")
def two_releases(tmp_path_factory: pytest.TempPathFactory) -> Place:
    released = Place(tmp_path_factory.mktemp("releases"))
    for name in ("home", "dagster", "defs"):
        (released.root / name).mkdir()
    (released.root / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    folder = DatasetFolder(released.dataset)
    folder.write()
    (released.dataset / "data").mkdir()
    (released.dataset / "human.csv").unlink()
    write_csv(released.dataset / "data" / "people.csv", folder.rows)
    folder.edit("source.path", "data/*.csv")
    (released.dataset / "seeds.jsonl").write_text(json.dumps(SEED) + "\n")
    with pytest.MonkeyPatch.context() as patch, running_server(api_key=KEY) as server:
        released.enter(patch)
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_API_KEY", KEY)
        first = run()
        assert first.code == 0, first.errors
        prompt = released.dataset / "prompt.md.j2"
        prompt.write_text(prompt.read_text() + "Be inventive.\n")
        folder.edit("generate.endpoint", {})
        folder.edit("generate.temperature", 0.7)
        folder.edit("blend.weights", {"synthetic": 0.5})
        second = run()
        assert second.code == 0, second.errors
        # The first release's list of versions is in its manifest; nothing needs the table of it.
        spare = synth("gc", "--yes", "--json").json["items"]
        assert [Path(item["path"]).parent.name for item in spare] == ["release"]
    return released


@pytest.fixture
def released(two_releases: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of the two releases and all they came from; no model answers."""
    copy = Place(tmp_path / "copy")
    shutil.copytree(two_releases.root, copy.root)
    copy.enter(monkeypatch)
    return copy
