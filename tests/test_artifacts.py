"""Files come out of pinned packages unchanged, or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synth_assets.errors import SourceError
from synth_assets.sources import artifacts
from synth_assets.sources.artifacts import PackageArtifact, assemble, extract_member, fetch
from tests.wheels import make_wheel, only_links, seeded

ROOT = Path(__file__).resolve().parent.parent
CSV = b"text,label\nreplace hose,Radiator\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_links(tmp_path / "links", monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def package(links: Path) -> PackageArtifact:
    return make_wheel(links, "facts", {"facts/data/rows.csv": CSV, "facts/data/odd.csv": b"x"})


def test_a_member_is_fetched_without_installing_or_running_the_package(
    package: PackageArtifact, cache: Path
) -> None:
    path = extract_member(package, "facts/data/rows.csv", cache_dir=cache)
    assert path == cache / "members" / package.sha256 / "facts/data/rows.csv"
    assert path.read_bytes() == CSV
    assert files_below(cache) == [
        f"artifacts/{package.sha256}/facts-1.0-py3-none-any.whl",
        f"members/{package.sha256}/facts/data/rows.csv",
    ]


def test_a_cached_wheel_is_used_without_pip(
    package: PackageArtifact, links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(package, links, cache)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert fetch(package, cache_dir=cache).name == "facts-1.0-py3-none-any.whl"


def test_a_spoiled_cached_wheel_is_fetched_again(
    package: PackageArtifact, links: Path, cache: Path
) -> None:
    seeded(package, links, cache)
    wheel = next((cache / "artifacts" / package.sha256).glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-7])
    assert artifacts.file_sha256(fetch(package, cache_dir=cache)) == package.sha256


def test_a_wheel_with_another_hash_is_refused_with_both_hashes(
    package: PackageArtifact, links: Path, cache: Path
) -> None:
    wheel = links / "facts-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(SourceError) as caught:
        fetch(package, cache_dir=cache)
    assert f"expected {package.sha256}" in str(caught.value)
    assert f"got {artifacts.file_sha256(wheel)}" in str(caught.value)
    assert files_below(cache) == []


def test_a_package_that_pip_cannot_find_names_the_requirement_and_the_way_out(
    links: Path, cache: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(PackageArtifact("absent==2.0", "0" * 64), cache_dir=cache)
    message = str(caught.value)
    assert "package absent==2.0: pip could not fetch it: No matching distribution" in message
    assert "index, mirror or proxy" in message
    assert files_below(cache) == []


def test_an_unreachable_index_is_told_apart_and_shows_no_password() -> None:
    stderr = (
        "WARNING: Retrying after connection broken by 'NewConnectionError': /simple/x/\n"
        "ERROR: Could not find x at https://me:secret@mirror.example/simple\n"
    )
    error = artifacts._pip_error(stderr, PackageArtifact("x==1", "0" * 64), "package x==1")
    assert "could not reach its index: Could not find x at https://***@mirror" in str(error)
    assert "secret" not in str(error)


def test_a_python_without_pip_is_told_how_to_get_it(
    package: PackageArtifact, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(SourceError, match="-m ensurepip"):
        fetch(package, cache_dir=cache)


def test_a_missing_member_lists_similar_names(
    package: PackageArtifact, links: Path, cache: Path
) -> None:
    seeded(package, links, cache)
    with pytest.raises(SourceError) as caught:
        extract_member(package, "facts/dat/rows.csv", cache_dir=cache)
    assert "has no such file" in str(caught.value)
    assert "similar names: facts/data/rows.csv" in str(caught.value)


@pytest.mark.parametrize(
    "member", ["../evil", "a/../../evil", "/etc/passwd", "a\\..\\b", "C:/x", "", "folder/"]
)
def test_a_member_that_would_leave_its_folder_is_refused(
    package: PackageArtifact, links: Path, cache: Path, member: str
) -> None:
    with pytest.raises(SourceError, match="relative path"):
        extract_member(package, member, cache_dir=cache)


def test_a_member_with_another_hash_is_refused_and_not_kept(
    package: PackageArtifact, links: Path, cache: Path
) -> None:
    seeded(package, links, cache)
    with pytest.raises(SourceError, match=sha256(CSV)):
        extract_member(package, "facts/data/rows.csv", cache_dir=cache, sha256="0" * 64)
    assert files_below(cache / "members") == []


def test_a_pinned_member_outlives_its_wheel(
    package: PackageArtifact, links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded(package, links, cache)
    pin = sha256(CSV)
    first = extract_member(package, "facts/data/rows.csv", cache_dir=cache, sha256=pin)
    next((cache / "artifacts").rglob("*.whl")).unlink()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert extract_member(package, "facts/data/rows.csv", cache_dir=cache, sha256=pin) == first


def test_an_edited_extracted_member_is_extracted_again(
    package: PackageArtifact, links: Path, cache: Path
) -> None:
    seeded(package, links, cache)
    path = extract_member(package, "facts/data/rows.csv", cache_dir=cache)
    path.write_bytes(CSV.replace(b"hose", b"nose"))
    assert extract_member(package, "facts/data/rows.csv", cache_dir=cache).read_bytes() == CSV


def test_a_wheel_that_is_no_zip_file_is_a_clear_error(links: Path, cache: Path) -> None:
    path = links / "junk-1.0-py3-none-any.whl"
    path.write_bytes(b"this is no zip file")
    junk = PackageArtifact("junk==1.0", artifacts.file_sha256(path))
    seeded(junk, links, cache)
    with pytest.raises(SourceError, match="not a readable zip"):
        extract_member(junk, "a", cache_dir=cache)


@pytest.mark.parametrize(
    ("requirement", "digest"),
    [
        ("facts>=1.0", "0" * 64),
        ("facts==1.0 --index-url x", "0" * 64),
        ("facts==1.0\n-e .", "0" * 64),
        ("facts==1.0", "0" * 63),
        ("facts==1.0", "A" * 64),
    ],
)
def test_only_an_exact_pin_and_hash_is_accepted(requirement: str, digest: str) -> None:
    with pytest.raises(SourceError, match=r"pinned as|64 lowercase"):
        PackageArtifact(requirement, digest)


@pytest.fixture
def parts(links: Path, cache: Path) -> list[tuple[PackageArtifact, str]]:
    """A file in three parts, in order, larger than one chunk; the wheels are in the cache."""
    made = []
    for number in range(3):
        data = bytes([number]) * (artifacts.CHUNK + number)
        artifact = make_wheel(links, f"part{number}", {f"part{number}/blob": data})
        seeded(artifact, links, cache)
        made.append((artifact, f"part{number}/blob"))
    return made


WHOLE = b"".join(bytes([number]) * (artifacts.CHUNK + number) for number in range(3))


def test_parts_are_joined_in_order_and_verified(
    parts: list[tuple[PackageArtifact, str]], cache: Path
) -> None:
    said: list[str] = []
    path = assemble(
        parts, sha256=sha256(WHOLE), filename="m.gguf", cache_dir=cache, on_progress=said.append
    )
    assert path == cache / "assembled" / sha256(WHOLE) / "m.gguf"
    assert path.read_bytes() == WHOLE
    assert said == [f"m.gguf: part {number} of 3" for number in (1, 2, 3)]


def test_an_assembled_file_is_not_made_twice(
    parts: list[tuple[PackageArtifact, str]], cache: Path
) -> None:
    pin = sha256(WHOLE)
    assemble(parts, sha256=pin, filename="m.gguf", cache_dir=cache, discard_wheels=True)
    assert files_below(cache) == [f"assembled/{pin}/m.gguf"]
    said: list[str] = []
    assemble(parts, sha256=pin, filename="m.gguf", cache_dir=cache, on_progress=said.append)
    assert said == []


def test_parts_in_another_order_are_refused_and_leave_nothing(
    parts: list[tuple[PackageArtifact, str]], cache: Path
) -> None:
    with pytest.raises(SourceError, match="does not match"):
        assemble(parts[::-1], sha256=sha256(WHOLE), filename="m.gguf", cache_dir=cache)
    assert files_below(cache / "assembled") == []


def test_an_interrupted_assembly_leaves_nothing_and_can_be_repeated(
    parts: list[tuple[PackageArtifact, str]], cache: Path
) -> None:
    def interrupt(line: str) -> None:
        if "part 3" in line:
            raise KeyboardInterrupt

    pin = sha256(WHOLE)
    with pytest.raises(KeyboardInterrupt):
        assemble(parts, sha256=pin, filename="m", cache_dir=cache, on_progress=interrupt)
    assert files_below(cache / "assembled") == []
    assert assemble(parts, sha256=pin, filename="m", cache_dir=cache).read_bytes() == WHOLE


def test_what_a_killed_process_left_half_written_is_replaced(
    parts: list[tuple[PackageArtifact, str]], links: Path, cache: Path
) -> None:
    pin = sha256(WHOLE)
    left = cache / "assembled" / pin / "m.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    wheel_left = cache / "artifacts" / parts[0][0].sha256 / ".part"
    wheel_left.mkdir()
    next(wheel_left.parent.glob("*.whl")).replace(wheel_left / "half.whl")
    assert assemble(parts, sha256=pin, filename="m", cache_dir=cache).read_bytes() == WHOLE
    assert not any(".part" in name for name in files_below(cache))


FETCH_ONCE = """
import sys
from pathlib import Path
from synth_assets.sources.artifacts import PackageArtifact, extract_member
artifact = PackageArtifact(sys.argv[1], sys.argv[2])
print(extract_member(artifact, sys.argv[3], cache_dir=Path(sys.argv[4])).read_bytes())
"""


def test_two_processes_fetching_at_once_both_get_the_file(
    package: PackageArtifact, cache: Path
) -> None:
    command = [sys.executable, "-c", FETCH_ONCE, package.requirement, package.sha256]
    command += ["facts/data/rows.csv", str(cache)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in running]
    assert outputs == [repr(CSV)] * 2
    assert len(files_below(cache)) == 2
