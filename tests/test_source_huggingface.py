"""A dataset repository of a hub, which a loopback server stands in for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from synth_assets.errors import SourceError
from synth_assets.sources import http, huggingface
from synth_assets.sources.huggingface import HubDataset
from tests.source_server import Answer, Asked, Server, as_json, serving

ONE, TWO = "1" * 40, "2" * 40


@dataclass
class Hub:
    """Commits of one repository, the branch ``main``, and who may look."""

    server: Server
    commits: dict[str, dict[str, bytes]]
    main: str = ONE
    token: str = ""
    stored_at: str = ""
    refused: list[str] = field(default_factory=list)

    def respond(self, asked: Asked) -> Answer:
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return Answer(status=401)
        parts = asked.path.strip("/").split("/")
        if asked.path.startswith("/api/datasets/org/tickets/revision/"):
            commit = self.main if parts[-1] == "main" else parts[-1]
            if commit not in self.commits:
                return Answer(status=404)
            files = [{"rfilename": name} for name in self.commits[commit]]
            return as_json({"sha": commit, "siblings": files})
        if parts[:4] == ["datasets", "org", "tickets", "resolve"]:
            if self.stored_at:
                return Answer(status=302, headers={"Location": f"{self.stored_at}{asked.path}"})
            return Answer(self.commits[parts[4]]["/".join(parts[5:])])
        return Answer(status=404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(http, "BACKOFF_S", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as server:
        files = {"data/train-0.csv": b"text\none\n", "data/train-1.csv": b"text\ntwo\n"}
        made = Hub(server, {ONE: {**files, "README.md": b"#", "x/data/t.csv": b""}})
        server.respond = made.respond
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield made


def contents(revision: str, path: str, cache: Path) -> dict[str, bytes]:
    files, _ = huggingface.fetch(HubDataset("org/tickets", revision, path), cache=cache)
    return {name: file.read_bytes() for name, file in files}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/train-0.csv", ["data/train-0.csv"]),
        ("data/*.csv", ["data/train-0.csv", "data/train-1.csv"]),
        ("data/train-?.csv", ["data/train-0.csv", "data/train-1.csv"]),
        ("**/*.csv", ["data/train-0.csv", "data/train-1.csv", "x/data/t.csv"]),
        ("*.md", ["README.md"]),
    ],
)
def test_a_pattern_names_files_of_the_repository(
    hub: Hub, tmp_path: Path, pattern: str, names: list[str]
) -> None:
    assert list(contents("main", pattern, tmp_path)) == names


def test_a_pinned_commit_is_fetched_once_and_then_needs_no_network(
    hub: Hub, tmp_path: Path
) -> None:
    first = contents(ONE, "data/*.csv", tmp_path)
    asked = len(hub.server.asked)
    assert contents(ONE, "data/*.csv", tmp_path) == first
    assert len(hub.server.asked) == asked == 3


def test_a_branch_is_resolved_at_every_look_and_followed(hub: Hub, tmp_path: Path) -> None:
    contents("main", "data/train-0.csv", tmp_path)
    contents("main", "data/train-0.csv", tmp_path)
    assert [path.split("/")[1] for path in hub.server.paths] == ["api", "datasets", "api"]
    hub.commits[TWO] = {"data/train-0.csv": b"text\nmoved\n"}
    hub.main = TWO
    files, commit = huggingface.fetch(
        HubDataset("org/tickets", "main", "data/train-0.csv"), cache=tmp_path
    )
    assert (files[0][1].read_bytes(), commit) == (b"text\nmoved\n", TWO)


def test_a_token_opens_the_hub_and_does_not_follow_to_the_store(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-Zq81")
    hub.token = "hf-Zq81"
    with serving() as store:
        store.respond = lambda asked: Answer(b"text\nstored\n")
        hub.stored_at = store.url
        assert contents(ONE, "data/train-0.csv", tmp_path) == {
            "data/train-0.csv": b"text\nstored\n"
        }
        assert [request.headers.get("authorization") for request in store.asked] == [None]


def test_a_private_repository_without_a_token_says_which_variable(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf-Zq81"
    with pytest.raises(SourceError, match=r"answers 401 (?s:.*)check HF_TOKEN"):
        contents("main", "data/*.csv", tmp_path)


@pytest.mark.parametrize(
    ("revision", "path", "told"),
    [
        ("nope", "data/*.csv", "answers 404"),
        (TWO, "data/*.csv", "answers 404"),
        ("main", "data/*.parquet", "no file of the repository matches"),
    ],
)
def test_what_is_not_there_is_one_clear_error(
    hub: Hub, tmp_path: Path, revision: str, path: str, told: str
) -> None:
    with pytest.raises(SourceError, match=told) as caught:
        contents(revision, path, tmp_path)
    assert f"hf://datasets/org/tickets@{revision}/{path}" in str(caught.value)


def test_an_endpoint_that_is_no_hub_is_one_clear_error(hub: Hub, tmp_path: Path) -> None:
    hub.server.respond = lambda asked: as_json({"hello": "world"})
    with pytest.raises(SourceError, match="not a listing of a dataset repository"):
        contents("main", "a.csv", tmp_path)


def test_a_hub_that_answers_with_another_commit_than_the_pinned_is_refused(
    hub: Hub, tmp_path: Path
) -> None:
    hub.server.respond = lambda asked: as_json({"sha": TWO, "siblings": [{"rfilename": "a.csv"}]})
    with pytest.raises(SourceError, match="answers with commit"):
        contents(ONE, "a.csv", tmp_path)


def test_the_card_of_a_commit_is_fetched_once_where_there_is_one(hub: Hub, tmp_path: Path) -> None:
    dataset = HubDataset("org/tickets", ONE, "data/*.csv")
    _, commit = huggingface.fetch(dataset, cache=tmp_path)
    asked = len(hub.server.asked)
    for _ in range(2):
        card = huggingface.card(dataset, commit, cache=tmp_path)
        assert card is not None
        assert card.read_bytes() == b"#"
    assert len(hub.server.asked) == asked + 1
    hub.commits[TWO] = {"data/train-0.csv": b""}
    bare = HubDataset("org/tickets", TWO, "data/*.csv")
    _, commit = huggingface.fetch(bare, cache=tmp_path / "other")
    assert huggingface.card(bare, commit, cache=tmp_path / "other") is None
