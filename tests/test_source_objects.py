"""Files behind URLs: fetched once, fetched again when they are others, never half."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from synth_assets.errors import SourceError
from synth_assets.sources import http, objects
from tests.source_server import Answer, Asked, Server, serving

ROWS = b"text,label\none,A\n"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A folder of fsspec's memory store, and the store."""
    store = fsspec.filesystem("memory")
    folder = f"/{uuid.uuid4().hex}"
    for name in ("b.csv", "a.csv", "sub/c.csv", "note.txt"):
        store.pipe_file(f"{folder}/{name}", ROWS + name.encode())
    yield store, f"memory:/{folder}"
    store.rm(folder, recursive=True)


def contents(url: str, cache: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in objects.fetch(url, cache=cache)}


# --- stores ---


def test_a_pattern_gives_sorted_names_relative_to_its_fixed_part(
    bucket: Any, tmp_path: Path
) -> None:
    _, url = bucket
    assert list(contents(f"{url}/*.csv", tmp_path)) == ["a.csv", "b.csv"]
    assert list(contents(f"{url}/**/*.csv", tmp_path)) == ["a.csv", "b.csv", "sub/c.csv"]
    assert contents(f"{url}/a.csv", tmp_path) == {"a.csv": ROWS + b"a.csv"}


def test_a_changed_object_is_fetched_again(bucket: Any, tmp_path: Path) -> None:
    store, url = bucket
    contents(f"{url}/*.csv", tmp_path)
    store.pipe_file(f"{url}/a.csv".removeprefix("memory:/"), b"text\nother\n")
    assert contents(f"{url}/*.csv", tmp_path)["a.csv"] == b"text\nother\n"


def test_a_file_url_is_a_path() -> None:
    assert objects.local("file:///data/a%20b.csv") == "/data/a b.csv"
    assert objects.local("data/a%20b.csv") == "data/a%20b.csv"
    assert not objects.is_url("file:///data/a.csv")


@pytest.mark.parametrize("name", ["nothing.csv", "*.parquet", "sub"])
def test_no_match_is_an_error_with_the_fix(bucket: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"no file matches\n  fix: check the path"):
        objects.fetch(f"{bucket[1]}/{name}", cache=tmp_path)


def test_an_unknown_store_and_a_missing_package_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nosuch"):
        objects.fetch("nosuch://bucket/a.csv", cache=tmp_path)
    try:
        import adlfs  # noqa: F401
    except ImportError:
        with pytest.raises(SourceError, match="pip install adlfs"):
            objects.fetch("az://bucket/a.csv", cache=tmp_path)


NOW = 1_700_000_000.0
OLD = datetime.fromtimestamp(NOW - 60, UTC)


@pytest.mark.parametrize(
    ("info", "trusted"),
    [
        ({"ETag": '"abc"', "size": 1}, True),
        ({"etag": "abc", "LastModified": None}, True),
        ({"ETag": 'W/"abc"', "size": 1}, False),
        ({"generation": 7}, True),
        ({"mtime": NOW - 60, "size": 1}, True),
        ({"LastModified": OLD, "size": 1}, True),
        ({"mtime": NOW - 0.5, "size": 1}, False),  # it may change again within the same second
        ({"created": OLD, "size": 1}, False),
        ({"size": 1}, False),
    ],
)
def test_only_what_cannot_miss_a_change_saves_a_transfer(
    info: dict[str, Any], trusted: bool
) -> None:
    assert (objects.identity_of(info, now=NOW) is not None) == trusted


# --- HTTP ---


def test_an_etag_saves_the_second_transfer(server: Server, tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if asked.headers.get("if-none-match") == '"v1"':
            return Answer(status=304)
        return Answer(ROWS, headers={"ETag": '"v1"'})

    server.respond = respond
    url = f"{server.url}/data/human.csv?sig=secret"
    assert contents(url, tmp_path) == {"human.csv": ROWS}
    assert contents(url, tmp_path) == {"human.csv": ROWS}
    assert [bool(r.headers.get("if-none-match")) for r in server.asked] == [False, True]
    server.respond = lambda asked: Answer(b"text\nnew\n", headers={"ETag": '"v2"'})
    assert contents(url, tmp_path) == {"human.csv": b"text\nnew\n"}


@pytest.mark.parametrize(
    ("validator", "asks"),
    [
        ({"ETag": 'W/"weak"'}, None),
        (timedelta(), None),
        (timedelta(days=1), "if-modified-since"),
    ],
    ids=["weak", "just changed", "long unchanged"],
)
def test_a_validator_that_may_miss_a_change_is_not_used(
    server: Server, tmp_path: Path, validator: dict[str, str] | timedelta, asks: str | None
) -> None:
    if isinstance(validator, timedelta):
        changed = format_datetime(datetime.now(UTC) - validator, usegmt=True)
        headers = {"Last-Modified": changed}
    else:
        headers = validator
    server.respond = lambda asked: Answer(ROWS, headers=headers)
    for _ in range(2):
        contents(f"{server.url}/a.csv", tmp_path)
    conditions = {name for name in server.asked[1].headers if name.startswith("if-")}
    assert conditions == ({asks} if asks else set())


def test_a_damaged_copy_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: Answer(ROWS, headers={"ETag": '"v1"'})
    [(_, path)] = objects.fetch(f"{server.url}/a.csv", cache=tmp_path)
    path.write_bytes(b"text,label\ntorn")
    assert contents(f"{server.url}/a.csv", tmp_path) == {"a.csv": ROWS}
    assert "if-none-match" not in server.asked[1].headers


def test_a_packed_file_stays_packed(server: Server, tmp_path: Path) -> None:
    packed = gzip.compress(ROWS)
    server.respond = lambda asked: Answer(packed)
    [(name, path)] = objects.fetch(f"{server.url}/a.csv.gz", cache=tmp_path)
    assert (name, path.suffix, path.read_bytes()) == ("a.csv.gz", ".gz", packed)


def test_a_transfer_that_breaks_off_is_repeated_and_then_an_error(
    server: Server, tmp_path: Path
) -> None:
    server.respond = lambda asked: Answer(ROWS, cut=10 if len(server.asked) == 1 else 0)
    assert contents(f"{server.url}/a.csv", tmp_path) == {"a.csv": ROWS}
    server.respond = lambda asked: Answer(b"text\nhal", cut=10)
    with pytest.raises(SourceError, match="no usable answer"):
        objects.fetch(f"{server.url}/a.csv", cache=tmp_path)
    server.respond = lambda asked: Answer(ROWS)
    assert contents(f"{server.url}/a.csv", tmp_path) == {"a.csv": ROWS}


def test_an_error_names_the_url_without_its_secrets(server: Server, tmp_path: Path) -> None:
    server.respond = lambda asked: Answer(status=403)
    with pytest.raises(SourceError, match="answers 403") as caught:
        objects.fetch(f"{server.url}/a.csv?sig=topsecret", cache=tmp_path)
    assert "/a.csv" in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_old_copies_do_not_pile_up(server: Server, tmp_path: Path) -> None:
    for number in range(5):
        body = ROWS + str(number).encode()
        server.respond = lambda asked, body=body: Answer(body)  # type: ignore[misc]
        contents(f"{server.url}/a.csv", tmp_path)
    assert len([path for path in tmp_path.rglob("data") if path.is_file()]) == 2


# --- S3, against moto's server in this process ---


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s3-secret-Zq81")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="human")
        yield client
    server.stop()


def transfers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = objects._chunks
    monkeypatch.setattr(objects, "_chunks", lambda s, n: (seen.append(n), real(s, n))[1])
    return seen


def test_an_s3_object_is_fetched_once_per_content(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t/a.csv", "t/b.csv"):
        s3.put_object(Bucket="human", Key=name, Body=ROWS + name.encode())
    seen = transfers(monkeypatch)
    for _ in range(2):
        found = contents("s3://human/t/*.csv", tmp_path)
        assert found == {"a.csv": ROWS + b"t/a.csv", "b.csv": ROWS + b"t/b.csv"}
    assert seen == ["human/t/a.csv", "human/t/b.csv"]
    s3.put_object(Bucket="human", Key="t/b.csv", Body=b"text\nnew\n")
    s3.put_object(Bucket="human", Key="t/c.csv", Body=ROWS)
    assert contents("s3://human/t/*.csv", tmp_path)["b.csv"] == b"text\nnew\n"
    assert seen[2:] == ["human/t/b.csv", "human/t/c.csv"]


def test_an_s3_bucket_that_is_not_there_is_one_clear_error(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"s3://nowhere/a\.csv") as caught:
        objects.fetch("s3://nowhere/a.csv", cache=tmp_path)
    assert "s3-secret" not in str(caught.value)
