"""Files of a dataset repository on the Hugging Face Hub, by plain HTTPS.

``HF_ENDPOINT`` names another hub (a mirror), ``HF_TOKEN`` opens private and gated repositories.
A branch or tag is resolved to its commit at every look. A commit never changes, so its files are
fetched once, and a repository pinned by commit is seen without any network afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from synth_assets.errors import SourceError, shown
from synth_assets.sources import http
from synth_assets.sources.cards import CARD
from synth_assets.sources.snapshots import Shelf

if TYPE_CHECKING:
    import requests

ENDPOINT, ENDPOINT_ENV, TOKEN_ENV = "https://huggingface.co", "HF_ENDPOINT", "HF_TOKEN"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, which never changes."""
    return _COMMIT.fullmatch(revision) is not None


@dataclass(frozen=True)
class HubDataset:
    """``repo`` is ORG/NAME, ``revision`` a commit, branch or tag, ``path`` a file or pattern."""

    repo: str
    revision: str
    path: str

    @property
    def where(self) -> str:
        return f"hf://datasets/{self.repo}@{self.revision}/{self.path}"


def fetch(dataset: HubDataset, *, cache: Path) -> tuple[list[tuple[str, Path]], str]:
    """((display name, local copy) of every file that matches, sorted; the commit they are from).

    Raises ``SourceError``: no such repository, revision or file; no access; no answer.
    """
    endpoint = os.environ.get(ENDPOINT_ENV, "").strip().rstrip("/") or ENDPOINT
    folder = cache / "objects" / _key(endpoint, dataset.repo)
    with http.session() as client:
        hub = _Hub(client, endpoint, dataset, os.environ.get(TOKEN_ENV, "").strip())
        commit, names = _listing(hub, Shelf(folder / "listing"))
        wanted = sorted(name for name in names if _matches(name, dataset.path))
        if not wanted:
            some = ", ".join(shown(name) for name in sorted(names)[:20])
            raise SourceError(
                "no file of the repository matches",
                where=dataset.where,
                fix=f"name one of its files, or a pattern: {some}",
            )
        return [(name, _file(hub, commit, name, folder)) for name in wanted], commit


def card(dataset: HubDataset, commit: str, *, cache: Path) -> Path | None:
    """The repository's card at a commit that ``fetch`` has given, if it has one.

    Raises ``SourceError``.
    """
    endpoint = os.environ.get(ENDPOINT_ENV, "").strip().rstrip("/") or ENDPOINT
    folder = cache / "objects" / _key(endpoint, dataset.repo)
    listing = Shelf(folder / "listing").newest()
    if listing is None or CARD not in json.loads(listing.path.read_bytes()):
        return None
    with http.session() as client:
        hub = _Hub(client, endpoint, dataset, os.environ.get(TOKEN_ENV, "").strip())
        return _file(hub, commit, CARD, folder)


@dataclass(frozen=True)
class _Hub:
    client: requests.Session
    endpoint: str
    dataset: HubDataset
    token: str

    def url(self, *parts: str) -> str:
        return "/".join((self.endpoint, *parts))


def _listing(hub: _Hub, shelf: Shelf) -> tuple[str, list[str]]:
    """The commit that the revision means now, and the names of its files."""
    dataset = hub.dataset
    with shelf.locked(dataset.where):
        kept = shelf.newest()
        if kept and is_commit(dataset.revision) and kept.facts.get("commit") == dataset.revision:
            return dataset.revision, json.loads(kept.path.read_bytes())
        url = hub.url("api/datasets", dataset.repo, "revision", quote(dataset.revision, safe=""))
        found = http.get_json(
            hub.client, url, where=dataset.where, key=hub.token, key_env=TOKEN_ENV
        )
        try:
            commit, names = (
                str(found["sha"]),
                [str(file["rfilename"]) for file in found["siblings"]],
            )
        except (KeyError, TypeError):
            raise SourceError(
                "the answer is not a listing of a dataset repository",
                where=dataset.where,
                fix=f"check {ENDPOINT_ENV}",
            ) from None
        if not is_commit(commit) or (is_commit(dataset.revision) and commit != dataset.revision):
            raise SourceError(
                f"the hub answers with commit {shown(commit)}", where=dataset.where, fix="check it"
            )

        def write(stream: IO[bytes]) -> dict[str, Any]:
            stream.write(json.dumps(sorted(names)).encode())
            return {"commit": commit}

        shelf.put(write, file="names.json", where=dataset.where)
        return commit, names


def _file(hub: _Hub, commit: str, name: str, folder: Path) -> Path:
    where = f"hf://datasets/{hub.dataset.repo}@{commit}/{name}"
    shelf = Shelf(folder / _key(commit, name))
    with shelf.locked(where):
        kept = shelf.newest()
        if kept:
            return kept.path

        def write(stream: IO[bytes]) -> dict[str, Any]:
            url = hub.url("datasets", hub.dataset.repo, "resolve", commit, quote(name))
            http.download(
                hub.client, url, stream, where=where, known={}, key=hub.token, key_env=TOKEN_ENV
            )
            return {"commit": commit}

        file = "data.gz" if name.endswith(".gz") else "data"
        return shelf.put(write, file=file, where=where).path


def _matches(name: str, pattern: str) -> bool:
    """As a shell: ``*`` and ``?`` stay within a folder, ``**`` does not."""
    magic = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    regex = "".join(magic.get(part) or re.escape(part) for part in parts)
    return name == pattern or re.fullmatch(regex, name) is not None


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
