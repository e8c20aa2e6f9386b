"""The source: real data outside the project, seen as a content hash."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

from pathlib import Path

import dagster as dg

from synth_assets.assets.stages import SOURCE, key
from synth_assets.assets.workbench import Workbench
from synth_assets.settings import Home
from synth_assets.sources.artifacts import PackageArtifact, extract_member
from synth_assets.sources.files import expand, fingerprint
from synth_assets.sources.records import FileFormat
from synth_assets.spec.load import Dataset
from synth_assets.spec.model import FilesSource


def source_files(dataset: Dataset, home: Home) -> list[tuple[str, Path]]:
    """(display name, path) of every source file, fetched if need be.

    Raises:
        SourceError: no such file, or a package that cannot be had.
    """
    source = dataset.spec.source
    if isinstance(source, FilesSource):
        return expand(source.path, base=dataset.folder)
    artifact = PackageArtifact(source.package, source.sha256)
    member = extract_member(artifact, source.member, cache_dir=home.cache)
    return [(f"{source.package}/{source.member}", member)]


def source_format(dataset: Dataset) -> FileFormat:
    """Declared format, or the one that the file's name says (CSV when it says nothing)."""
    source = dataset.spec.source
    name = source.path if isinstance(source, FilesSource) else source.member
    suffixes = [part for part in Path(name).suffixes if part != ".gz"]
    guessed = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
    chosen = source.format or guessed.get(suffixes[-1] if suffixes else "", "csv")
    return FileFormat(chosen, encoding=source.encoding, delimiter=source.delimiter)  # type: ignore[arg-type]


def source_version(dataset: Dataset, home: Home) -> str:
    """Content hash of the source as it is now."""
    return fingerprint(source_files(dataset, home), source_format(dataset))


def source_asset(dataset: Dataset) -> dg.AssetsDefinition:
    @dg.observable_source_asset(
        key=key(dataset, SOURCE),
        group_name=dataset.name,
        description=f"{dataset.spec.source.kind} source; its version is its content.",
        tags={"synth/lane": "human"},
        required_resource_keys={"workbench"},
    )
    def observe(context: dg.OpExecutionContext) -> dg.DataVersion:
        workbench: Workbench = context.resources.workbench
        return dg.DataVersion(source_version(dataset, workbench.home))

    return observe  # type: ignore[return-value]
