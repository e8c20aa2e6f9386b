"""Files behind URLs: object stores by fsspec, HTTP by conditional requests.

A file is copied to the cache and fetched again only when the store says that it is another one:
by ETag or generation, else by size and time of change where that is old enough to be trusted.
What the store says saves a transfer; the version of the source is always the hash of the bytes.

``s3://`` needs the package s3fs, ``gs://`` gcsfs, ``az://`` adlfs; each finds its credentials in
its own environment variables and files. ``https://`` names one file, without patterns.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from synth_assets.errors import SourceError, shown
from synth_assets.sources import http
from synth_assets.sources.snapshots import Shelf

CHUNK = 1 << 20
# A file may change again within the resolution of its time stamp.
TRUSTED_AGE_S = 2.0
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def is_url(path: str) -> bool:
    """Whether a path leads elsewhere; ``file://`` does not."""
    return "://" in path and not path.startswith("file://")


def local(path: str) -> str:
    """A path without ``file://`` and its escapes."""
    return unquote(path.removeprefix("file://")) if path.startswith("file://") else path


def fetch(url: str, *, cache: Path) -> list[tuple[str, Path]]:
    """(display name, local copy) of every file that ``url`` (or its pattern) names, sorted.

    Raises ``SourceError``: no such file or store, no access, a missing package, a broken transfer.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return [_fetch_http(url, cache)]
    where = http.without_secrets(url) if not glob.has_magic(url) else url
    with _told(where):
        return _fetch_store(url, cache, where)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever a store raises (each has errors of its own) as one message without secrets."""
    try:
        yield
    except SourceError:
        raise
    except ImportError as error:
        scheme = where.partition("://")[0]
        raise SourceError(
            f"{scheme}:// needs a package that is not installed",
            where=where,
            fix=f"pip install {_PACKAGES.get(scheme, str(error))}",
        ) from None
    except Exception as error:
        told = http.scrubbed(str(error), [os.environ.get(name, "") for name in _SECRETS])
        raise SourceError(
            f"cannot be read: {type(error).__name__}: {shown(told)}",
            where=where,
            fix="check the URL, the store's credentials and the network",
        ) from error


def _fetch_http(url: str, cache: Path) -> tuple[str, Path]:
    where = http.without_secrets(url)
    name = PurePosixPath(urlsplit(url).path).name or "data"
    shelf = Shelf(cache / "objects" / _key(url))
    with shelf.locked(where), http.session() as client:
        copy = shelf.newest()
        known = copy.facts if copy else {}

        def write(stream: IO[bytes]) -> dict[str, Any]:
            facts = http.download(client, url, stream, where=where, known=known)
            if facts is None:
                raise _Unchanged
            return facts

        try:
            return name, shelf.put(write, file=_file_name(name), where=where).path
        except _Unchanged:
            assert copy is not None
            return name, copy.path


class _Unchanged(Exception):
    """The newest copy is still what the server has."""


def _fetch_store(url: str, cache: Path, where: str) -> list[tuple[str, Path]]:
    import fsspec

    # Instances are cached by fsspec, with the listings they have seen: those may be old.
    store, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    found = {p: i for p, i in _matches(store, path).items() if i.get("type") != "directory"}
    if not found:
        raise SourceError(
            "no file matches", where=where, fix="check the path; a folder: add /*.csv"
        )
    parts = PurePosixPath(path).parts
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    fixed = PurePosixPath(*parts[:magic])
    files = []
    for name, info in sorted(found.items()):
        relative = PurePosixPath(name)
        display = relative.relative_to(fixed) if relative.is_relative_to(fixed) else relative.name
        shelf = Shelf(cache / "objects" / _key(store.unstrip_protocol(name)))
        files.append((str(display), _fetch_object(store, name, info, shelf)))
    return files


def _matches(store: Any, path: str) -> dict[str, Mapping[str, Any]]:
    if glob.has_magic(path):
        return dict(store.glob(path, detail=True))
    try:
        return {path: store.info(path)}
    except FileNotFoundError:
        return {}


def _fetch_object(store: Any, name: str, info: Mapping[str, Any], shelf: Shelf) -> Path:
    identity = identity_of(info, now=time.time())
    with shelf.locked(name):
        copy = shelf.newest()
        if copy and identity and copy.facts.get("identity") == identity:
            return copy.path

        def write(stream: IO[bytes]) -> dict[str, Any]:
            size = sum(stream.write(chunk) for chunk in _chunks(store, name))
            if info.get("size") not in (None, size):
                raise SourceError(
                    f"{size} bytes arrived, {info['size']} were announced",
                    where=name,
                    fix="run it again: the file changed or the transfer broke off",
                )
            return {"identity": identity}

        return shelf.put(write, file=_file_name(name), where=name).path


def _chunks(store: Any, name: str) -> Iterator[bytes]:
    with _told(name), store.open(name, "rb") as remote:
        while chunk := remote.read(CHUNK):
            yield chunk


def identity_of(info: Mapping[str, Any], *, now: float) -> str | None:
    """What changes whenever the file does, as far as the store tells; None: not to be trusted."""
    for key in ("ETag", "etag", "generation"):
        if info.get(key) and not str(info[key]).startswith("W/"):
            return f"{key} {info[key]}"
    for key in ("mtime", "modified", "LastModified", "last_modified"):
        changed = info.get(key)
        if isinstance(changed, datetime):
            changed = changed.timestamp()
        if isinstance(changed, int | float) and now - changed >= TRUSTED_AGE_S:
            return f"{key} {changed} size {info.get('size')}"
    return None


def _key(url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    identity = f"{endpoint if url.startswith('s3') else ''} {url}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _file_name(name: str) -> str:
    """Readers look at nothing but whether a file is packed."""
    return "data.gz" if name.endswith(".gz") else "data"
