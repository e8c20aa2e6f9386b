"""From YAML files to checked datasets, with every mistake located.

``discover`` finds dataset folders, ``load_dataset`` reads one. A folder that cannot be read gives
a :class:`SpecError` with file, line, key, value and fix, and never stands in the way of others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from synth_assets.errors import SpecError, SpecProblem, UsageError, shown
from synth_assets.spec.model import DatasetSpec
from synth_assets.spec.prompt import PromptTemplate, Trial
from synth_assets.tasks import task_for

DEFS_FILE = "defs.yaml"
DEFAULT_PROMPT = "prompt.md.j2"
COMPONENT_TYPES = (
    "synth_assets.SyntheticDataset",
    "synth_assets.components.SyntheticDataset",
    "synth_assets.components.synthetic_dataset.SyntheticDataset",
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
PATTERN_HINTS = {"owners": "write team:NAME or a mail address"}
_HINTS = {
    "string_type": "write a text",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number, without quotes",
    "bool_type": "write true or false",
    "list_type": "write a list: [a, b]",
    "dict_type": "write keys and values",
    "model_type": "write keys and values",
}


@dataclass(frozen=True)
class Dataset:
    """One declared dataset: the spec and the files beside it.

    Where nothing is generated the prompt is empty, and there are no seeds.
    """

    name: str
    folder: Path
    spec: DatasetSpec
    prompt: PromptTemplate
    handwritten_seeds: tuple[dict[str, str], ...] = ()

    @property
    def file(self) -> Path:
        return self.folder / DEFS_FILE


@dataclass(frozen=True)
class Broken:
    """A dataset folder that cannot be used. ``parsed``: whether its YAML could be read at all."""

    name: str
    folder: Path
    error: SpecError
    parsed: bool = True


@dataclass(frozen=True)
class Discovery:
    """Every dataset that was found: the good ones and what is wrong with the others."""

    datasets: dict[str, Dataset]
    broken: list[Broken]


class UnreadableSpecError(SpecError):
    """YAML that cannot be parsed: nothing is known of what it declares."""


def discover(
    roots: Sequence[Path], load: Callable[[Path], Dataset | None] | None = None
) -> Discovery:
    """Load every dataset folder below ``roots``; of two with one name the later is broken.

    ``load``: in place of :func:`load_dataset`, for who has read the folders before.
    """
    load = load or load_dataset
    found: dict[str, Dataset] = {}
    broken: list[Broken] = []
    for root in roots:
        if not root.is_dir():
            problem = SpecProblem(
                "SYNTH_DEFS", 1, "", "no such folder", value=str(root), fix="create or mend it"
            )
            broken.append(Broken(root.name, root, _error(root.name, problem)))
    for file in _defs_files(roots):
        folder, name = file.parent, file.parent.name
        try:
            dataset = load(folder)
            if dataset is not None and name in found:
                raise _error(name, _name_taken(file, found[name]))
        except SpecError as error:
            parsed = not isinstance(error, UnreadableSpecError)
            broken.append(Broken(name, folder, error, parsed))
        else:
            if dataset is not None:
                found[name] = dataset
    return Discovery(found, broken)


def _name_taken(file: Path, other: Dataset) -> SpecProblem:
    return SpecProblem(
        str(file),
        1,
        "",
        "a dataset of this name exists already",
        value=f"{other.name}, declared in {other.file}",
        fix="rename one of the two folders",
    )


def dataset_named(name: str, roots: Sequence[Path]) -> Dataset:
    """The dataset of that name below ``roots``.

    Raises:
        SpecError: it is there and broken.
        UsageError: there is none.
    """
    found = discover(roots)
    for b in found.broken:
        if b.name == name and name not in found.datasets:
            raise b.error
    if name not in found.datasets:
        raise no_such_dataset(name, found)
    return found.datasets[name]


def no_such_dataset(name: str, found: Discovery) -> UsageError:
    """The error that says which datasets there are."""
    names = sorted({*found.datasets, *(b.name for b in found.broken)})
    return UsageError(
        f"no dataset named {name!r}",
        fix=f"one of: {', '.join(names) or 'none found'}; SYNTH_DEFS adds folders",
    )


def load_dataset(folder: Path) -> Dataset | None:
    """The dataset declared in ``folder``; None when its YAML declares something else.

    Raises:
        SpecError: with every problem of the YAML, the prompt and the seeds file.
    """
    file = folder / DEFS_FILE
    name = folder.name
    positions, document = _parse(name, file)
    if not isinstance(document, dict) or document.get("type") not in COMPONENT_TYPES:
        return None
    if not _NAME.fullmatch(name):
        raise _error(
            name,
            SpecProblem(
                str(file),
                1,
                "",
                "the folder's name is the dataset's name: letters, digits and _ only",
                value=name,
                fix="rename the folder",
            ),
        )
    try:
        spec = DatasetSpec.model_validate(document.get("attributes") or {})
    except ValidationError as error:
        raise SpecError(name, list(_explain(error, file, positions, document))) from None
    return _with_files(name, folder, spec, positions)


def _with_files(name: str, folder: Path, spec: DatasetSpec, positions: _Positions) -> Dataset:
    if not spec.generates:  # nothing is asked: neither a prompt nor seeds are read
        return Dataset(name, folder, spec, PromptTemplate(folder / DEFAULT_PROMPT, ""))
    file = folder / DEFS_FILE
    task, generate = task_for(spec), spec.generation
    prompt_file = (folder / generate.prompt).resolve()
    problems: list[SpecProblem] = []
    prompt = PromptTemplate(prompt_file, "")
    try:
        prompt = PromptTemplate(prompt_file, prompt_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        line = positions.line(("attributes", "generate", "prompt"))
        problems.append(
            SpecProblem(
                str(file),
                line,
                "generate.prompt",
                "missing prompt",
                value=str(prompt_file),
                fix="write the prompt template in that file",
            )
        )
    except (OSError, UnicodeDecodeError) as error:
        problems.append(SpecProblem(str(prompt_file), 1, "", f"cannot be read: {error}"))
    else:
        trials = task.trials(
            rows=generate.rows_per_call,
            seeds_per_call=generate.seeds_per_call,
            attributes=generate.attributes,
        )
        problems.extend(prompt.problems(Trial(*trial) for trial in trials))
    seeds, seed_problems = _read_seeds(folder, spec, positions)
    problems.extend(seed_problems)
    if problems:
        raise SpecError(name, problems)
    return Dataset(name, folder, spec, prompt, tuple(seeds))


def _read_seeds(
    folder: Path, spec: DatasetSpec, positions: _Positions
) -> tuple[list[dict[str, str]], list[SpecProblem]]:
    path = folder / (spec.seeds.file or "seeds.jsonl")
    if not path.exists():
        if spec.seeds.file is None:
            return [], []
        line = positions.line(("attributes", "seeds", "file"))
        return [], [
            SpecProblem(
                str(folder / DEFS_FILE), line, "seeds.file", "missing seeds file", value=str(path)
            )
        ]
    task = task_for(spec)
    rows: list[dict[str, str]] = []
    problems: list[SpecProblem] = []
    for number, line_bytes in enumerate(path.read_bytes().splitlines(), start=1):
        if not line_bytes.strip():
            continue
        try:
            value = orjson.loads(line_bytes)
        except orjson.JSONDecodeError as error:
            problems.append(SpecProblem(str(path), number, "", f"not JSON: {error}"))
            continue
        trouble = task.seed_problem(value)
        if trouble is None:
            rows.append(task.seed(value))
        else:
            problems.append(
                SpecProblem(
                    str(path), number, trouble.key, trouble.problem, trouble.value, trouble.fix
                )
            )
    return rows, problems


def _defs_files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_dir():
            yield from sorted(root.rglob(DEFS_FILE))


def _error(dataset: str, problem: SpecProblem) -> SpecError:
    return SpecError(dataset, [problem])


def _unreadable(dataset: str, problem: SpecProblem) -> UnreadableSpecError:
    return UnreadableSpecError(dataset, [problem])


# --- positions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Positions:
    """Where keys stand in a YAML document."""

    root: yaml.Node | None

    def line(self, location: Sequence[str | int]) -> int:
        """1-based line of the deepest part of ``location`` that exists."""
        node, line = self.root, 1
        for part in location:
            found = self._child(node, part)
            if found is None:
                continue  # a union tag or a key that is missing: stay at the parent
            node, line = found
        return line

    @staticmethod
    def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, int] | None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    return value, key.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            return node.value[part], node.value[part].start_mark.line + 1
        return None


def _parse(name: str, file: Path) -> tuple[_Positions, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        duplicate = next((found for node in nodes for found in _duplicate_keys(node)), None)
        if duplicate is not None:
            raise _error(
                name,
                SpecProblem(
                    str(file),
                    duplicate.start_mark.line + 1,
                    duplicate.value,
                    "this key stands twice in one place",
                    fix="keep one",
                ),
            )
        documents = list(yaml.safe_load_all(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _unreadable(
            name,
            SpecProblem(
                str(file),
                mark.line + 1 if mark else 1,
                "",
                f"not valid YAML: {error.problem or error.context}",
                fix="check indentation, colons and quotes on this line and the one before",
            ),
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError) as error:
        raise _unreadable(name, SpecProblem(str(file), 1, "", f"cannot be read: {error}")) from None
    if len(documents) > 1 and any(_is_ours(document) for document in documents):
        raise _error(
            name,
            SpecProblem(
                str(file),
                nodes[1].start_mark.line + 1 if nodes[1] else 1,
                "",
                "one dataset per file: the folder's name is its name",
                fix="move each document into a folder of its own",
            ),
        )
    return _Positions(nodes[0] if nodes else None), documents[0] if documents else None


def _is_ours(document: object) -> bool:
    return isinstance(document, dict) and document.get("type") in COMPONENT_TYPES


def _duplicate_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicate_keys(value)


# --- explanations ---------------------------------------------------------------------------


def _explain(
    error: ValidationError, file: Path, positions: _Positions, document: dict[str, Any]
) -> Iterator[SpecProblem]:
    seen: set[tuple[int, str]] = set()
    for item in error.errors(include_url=False):
        context = dict(item.get("ctx") or {})
        location = _written_location(
            item["loc"], document.get("attributes"), missing=item["type"] == "missing"
        )
        if "key" in context:
            location = (*location, *str(context["key"]).split("."))
        key = ".".join(str(part) for part in location)
        line = positions.line(("attributes", *location))
        if (line, key) in seen:
            continue
        seen.add((line, key))
        kind = item["type"]
        if kind == "union_tag_not_found":
            kind, location, key = "missing", (*location, "kind"), f"{key}.kind"
        value = context.get("value", item["input"])
        yield SpecProblem(
            str(file),
            line,
            key,
            {"extra_forbidden": "unknown key", "missing": "this key is missing"}.get(
                kind, item["msg"]
            ),
            value="" if kind == "missing" or isinstance(value, dict) else shown(value),
            fix=str(context.get("fix") or _fix(kind, location, context, document)),
        )


def _written_location(
    location: tuple[str | int, ...], document: object, *, missing: bool
) -> tuple[str | int, ...]:
    """``location`` without the union tags that pydantic puts between and after the written keys.

    Only of a ``missing`` key is the last part a key although it is not written.
    """
    written: list[str | int] = []
    node = document
    for position, part in enumerate(location):
        absent = missing and position == len(location) - 1
        if isinstance(node, dict) and (part in node or absent):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        written.append(part)
    return tuple(written)


def _fix(
    kind: str, location: tuple[str | int, ...], context: dict[str, Any], document: dict[str, Any]
) -> str:
    if kind == "extra_forbidden":
        names = _keys_at(location[:-1], document.get("attributes"))
        close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        return f"did you mean {close[0]}?" if close else f"keys here: {', '.join(names)}"
    if kind == "missing":
        kinds = _kinds_at(location) if location[-1:] == ("kind",) else ""
        return f"add `{location[-1] if location else ''}:`{kinds}"
    if kind in {"literal_error", "union_tag_invalid"}:
        return f"use {context.get('expected') or context.get('expected_tags')}"
    if kind == "string_pattern_mismatch":
        return PATTERN_HINTS.get(str(location[0]), f"write it as {context.get('pattern')}")
    return _HINTS.get(kind, "")


def _keys_at(location: tuple[str | int, ...], written: object) -> list[str]:
    """Keys that may stand at ``location`` of ``written``: those of the declared kind, if it is."""
    models = _models_at(location)
    for part in location:
        inside = isinstance(written, dict) or (isinstance(written, list) and isinstance(part, int))
        written = written[part] if inside else None  # type: ignore[index]
    kind = written.get("kind") if isinstance(written, dict) else None
    models = [m for m in models if kind in _kinds_of(m)] or models
    return sorted({info.alias or name for m in models for name, info in m.model_fields.items()})


def _kinds_at(location: tuple[str | int, ...]) -> str:
    return f" one of {', '.join(k for m in _models_at(location[:-1]) for k in _kinds_of(m))}"


def _kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    info = model.model_fields.get("kind")
    return getattr(info.annotation, "__args__", ()) if info else ()


def _models_at(location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [DatasetSpec]
    for part in location:
        if isinstance(part, int):  # the place in a list
            continue
        models = [
            child
            for model in models
            for name, info in model.model_fields.items()
            if part in {name, info.alias}
            for child in _models_in(info.annotation)
        ]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]
