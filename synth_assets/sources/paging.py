"""How the pages of an API follow each other: dlt's paginators, made to lose nothing.

dlt moves an offset by what was asked for, takes any empty page for the end, and counts nothing.
Here an offset moves by the rows that came, what the API says of its size is compared with what
came (``Pages.check``), and a page that says nothing new ends the paging.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dlt.common import jsonpath
from dlt.sources.helpers.rest_client import paginators

from synth_assets.errors import SourceError, shown

# So many empty pages in a row are the end, whatever a server says of more.
EMPTY_PAGES = 10
_TRUE, _FALSE = frozenset({"true", "1", "yes", "y"}), frozenset({"false", "0", "no", "n", ""})
# What answers of single pages have when there are more: at their top, or an object deeper.
_NEXT_KEYS = ("next", "next_page", "next_page_url", "next_cursor", "has_more")
_NEXT = frozenset(name.replace("_", "") for name in (*_NEXT_KEYS, "next_page_token", "next_link"))
_TOTAL = frozenset({"total", "totalcount", "totalresults", "totalitems", "totalrecords"})
_TOTAL_HEADERS = ("X-Total-Count", "X-Total", "Total-Count")


@dataclass
class Pages:
    """What was read so far. ``value``: the last answer; ``over``: it said that there is no more.

    ``rows`` and ``kept`` (pages) are counted by who reads; ``arrived``: in the last answer;
    ``beyond``: more was asked for than is declared, to see that there is none.
    """

    asked: int = 0
    kept: int = 0
    rows: int = 0
    empty: int = 0
    value: Any = None
    over: bool = False
    beyond: bool = False
    declared: list[int] = field(default_factory=list)
    unit: str = "records"
    told_more: bool = False
    arrived: int = 0
    notes: list[str] = field(default_factory=list)

    def declare(self, path: Any) -> int:
        """The number at ``path`` of the answer, kept; the last one where this page has none."""
        found = next(iter(jsonpath.find_values(path, self.value)), None)
        if found is not None:
            try:
                self.declared.append(int(float(str(found))))
            except OverflowError:
                raise ValueError(f"no number at {path}: {found}") from None
        if not self.declared:
            raise ValueError(f"no number at {path}")
        return self.declared[-1]

    def says_more(self, path: Any) -> bool | None:
        """What the answer says at ``path``; None where it says nothing any more."""
        found = jsonpath.find_values(path, self.value)
        if not found and self.told_more:
            return None
        if not found:
            raise ValueError(f"nothing at {path}")
        self.told_more = True
        said = "" if found[0] is None else str(found[0]).strip().lower()
        if said not in _TRUE | _FALSE:
            raise ValueError(f"neither true nor false at {path}: {found[0]}")
        return said in _TRUE

    def tired(self, rows: int) -> bool:
        """Whether too many empty pages came in a row, while a server goes on naming next ones."""
        self.empty = 0 if rows else self.empty + 1
        if self.empty < EMPTY_PAGES:
            return False
        self.notes.append(f"{self.empty} empty pages in a row are taken for the end")
        return True

    def look_for_next(self, response: Any) -> None:
        """Note what the first answer says of further pages, where none is going to be read."""
        if self.asked > 1:
            return
        said = ["a Link header"] if response.links.get("next") else []
        said += [f"{name}: {_said(told)}" for name, told in self._tell_more(response.headers)]
        if said:
            self.notes.append(
                f"the answer tells of further pages ({', '.join(said)}), which are not read: "
                "check pagination"
            )

    def _tell_more(self, headers: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
        value = self.value if isinstance(self.value, dict) else {}
        nested = [one for one in value.values() if isinstance(one, dict)]
        for name, told in [pair for place in (value, *nested) for pair in place.items()]:
            plain = name.rpartition(".")[2].replace("_", "").lower()
            if (plain in _NEXT and _truth(told)) or (plain in _TOTAL and self._above(told)):
                yield name, told
        told_above = (name for name in _TOTAL_HEADERS if self._above(headers.get(name)))
        yield from ((name, headers[name]) for name in told_above)

    def _above(self, told: Any) -> bool:
        """Whether that is a number above the records that came."""
        with suppress(ValueError, OverflowError):
            return int(float(str(told))) > self.rows + self.arrived
        return False

    def check(self, where: str) -> None:
        """Compare what was declared with what came. Raises ``SourceError`` if some is missing."""
        if not self.declared:
            return
        total, came = self.declared[-1], self.rows if self.unit == "records" else self.kept
        if came != total and len(set(self.declared)) > 1:
            self.notes.append(
                f"it changed while it was read: {self.declared[0]}, then {total} {self.unit} "
                f"declared; {came} arrived"
            )
        elif came > total and self.unit == "records":
            self.notes.append(f"{total} {self.unit} declared, {came} arrived: all are kept")
        elif came < total:
            told = "".join(f"; {note}" for note in self.notes)
            raise SourceError(
                f"the API declares {total} {self.unit}, {came} arrived{told}",
                where=where,
                fix="check pagination (its parameters and paths); leave the path of the number "
                "out if it counts something else",
            )


def _said(told: Any) -> str:
    return shown(told if isinstance(told, str) else json.dumps(told, default=str))[:80]


def _truth(said: Any) -> bool:
    return said is not None and str(said).strip().lower() not in _FALSE


def paginator(kind: str, paging: Mapping[str, Any], pages: Pages) -> Any:
    """The paginator of one kind; it reads the answers in ``pages``."""
    made: dict[str, Any] = {
        "single": _Single,
        "page_number": _PageNumbers,
        "offset": _Offsets,
        "cursor": _Cursors,
        "link_header": _HeaderLinks,
        "json_link": _JsonLinks,
    }
    built = made[kind](**paging)
    built.pages = pages
    return built


class _Single(paginators.SinglePagePaginator):
    pages: Pages

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        super().update_state(response, data)
        self.pages.look_for_next(response)


class _PageNumbers(paginators.PageNumberPaginator):
    pages: Pages

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        pages = self.pages
        self._has_next_page = False
        if pages.over:
            return
        self.current_value += 1
        more: bool | None = None
        if self.total_path and (data or pages.declared):
            pages.unit = "pages"
            more = self.current_value < pages.declare(self.total_path) + self.base_index
        elif self.has_more_path and pages.tired(len(data or ())):
            return
        if self.has_more_path and (data or _there(self.has_more_path, pages.value)):
            said = pages.says_more(self.has_more_path)
            more = more if said is None else said and more is not False
        self._has_next_page = bool(data) if more is None else more


class _Offsets(paginators.OffsetPaginator):
    pages: Pages
    largest = 0

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        pages, rows = self.pages, len(data or ())
        self._has_next_page = False
        if pages.over:
            return
        if self.total_path and (rows or _there(self.total_path, pages.value)):
            pages.declare(self.total_path)
        says_more = None
        if self.has_more_path and (rows or _there(self.has_more_path, pages.value)):
            says_more = pages.says_more(self.has_more_path)
        if not rows:
            if says_more:
                pages.notes.append("the API says that there are more records, and gives none")
            return
        self.current_value += rows
        self.largest = max(self.largest, rows)
        self._has_next_page = True if says_more is None else says_more
        reached = self.initial_value + pages.declared[-1] if pages.declared else None
        if says_more is None and reached is not None and self.current_value >= reached:
            # Said to be all. A page that is not full proves it; after a full one, one more look.
            full = rows >= min(self.limit, self.largest)
            self._has_next_page = pages.beyond = full or pages.beyond


class _Cursors(paginators.JSONResponseCursorPaginator):
    pages: Pages

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        self._has_next_page = False
        if self.pages.over or self.pages.tired(len(data or ())):
            return
        super().update_state(response, data)
        if not self._has_next_page:
            self.pages.look_for_next(response)


class _HeaderLinks(paginators.HeaderLinkPaginator):
    pages: Pages

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        link = response.links.get(self.links_next_key, {}).get("url")
        if self.pages.over or self.pages.tired(len(data or ())):
            link = None
        self._next_reference = link or None
        if not link:
            self.pages.look_for_next(response)


class _JsonLinks(paginators.JSONLinkPaginator):
    pages: Pages

    def update_state(self, response: Any, data: list[Any] | None = None) -> None:
        link = next(iter(jsonpath.find_values(self.next_url_path, self.pages.value)), None)
        if link and not isinstance(link, str):
            raise ValueError(f"no address at {self.next_url_path}: {shown(str(link))}")
        if self.pages.over or self.pages.tired(len(data or ())):
            link = None
        self._next_reference = link or None
        if not link:
            self.pages.look_for_next(response)


def _there(path: Any, value: Any) -> bool:
    return bool(jsonpath.find_values(path, value))
