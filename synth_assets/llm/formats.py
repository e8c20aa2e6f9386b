"""The body of a call for each style and output mode, and the rows in its answer.

============  =============================================  ===================================
mode          what is asked                                  where it works
============  =============================================  ===================================
json_schema   ``response_format`` with a strict JSON schema  OpenAI, vLLM, llama.cpp, most others
json_object   ``response_format`` JSON, schema in words      older servers
tool          one forced tool call                           servers with tools only
list          a plain list, in words                         everywhere
============  =============================================  ===================================

``auto`` finds out with one tiny request per mode, best first, through the same ledger; what it
found is remembered per endpoint and model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import orjson

from synth_assets.errors import EndpointError, Incomplete, UsageError
from synth_assets.llm.answers import CALL_SEPARATOR, Answer, Tallies
from synth_assets.llm.budget import Budget, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.engine import ask
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.identity import Kind, Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.list_marks import open_mark
from synth_assets.llm.plain_list import PlainList, read_plain_list
from synth_assets.llm.salvage import salvage_json_list
from synth_assets.llm.scheduler import Limits
from synth_assets.llm.thinking import without_thinking

Style = Literal["continue", "chat"]
OutputMode = Literal["json_schema", "json_object", "tool", "list"]
Wanted = Literal["auto", "json_schema", "json_object", "tool", "list"]

MODES: Final[tuple[OutputMode, ...]] = get_args(OutputMode)
SCHEMA_NAME: Final = "rows"
# What this module decides; a sampling dictionary may not.
_RESERVED = frozenset(
    {"model", "messages", "prompt", "response_format", "tools", "tool_choice", "stream", "seed"}
)
_ABOUT_FORMAT = re.compile(
    r"response_?format|json|schema|structured|grammar|tool|function|not supported|unsupported"
    r"|unrecognized|unknown|not permitted|extra",
    re.IGNORECASE,
)
_REFUSING_STATUSES = frozenset({400, 404, 415, 422, 500, 501})
_AS_LIST = "Answer with a plain list: one item per line, each line starting with '- '."
_AS_JSON = "Answer with one JSON object and nothing else. It fits this JSON schema: "
_PROBE_KEY: Final = "rows"
PROBE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {_PROBE_KEY: {"type": "array", "items": {"type": "string"}}},
    "required": [_PROBE_KEY],
    "additionalProperties": False,
}
_DOCUMENT: Final = re.compile(r'\s*(?:\{\s*"|\[\s*[{"])')
# Each is looked for to the end of the text.
MOST_FENCES: Final = 20
_FENCES: Final = re.compile(
    r"^[ \t]*(?P<mark>`{3,}|~{3,})[\w+-]*[ \t]*\n(?P<inner>.*?)\n[ \t]*(?P=mark)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
# A document of several lines; inside a line, a list of words may be part of the text.
_BRACKET_LINE: Final = re.compile(r"^[ \t]*[\[{][ \t]*$", re.MULTILINE)
_FENCE_LINE: Final = re.compile(r"(`{3,}|~{3,})[\w+-]*[ \t\r]*")
# Lines without marks that are as many as were asked for may still be a refusal.
_APOLOGY: Final = (
    r"(?:(?:i['\u2019]?m|i am|we['\u2019]re)\s+(?:very |so |really )?sorry|sorry|i apologi[sz]e"
    r"|my apologies|unfortunately)\W*(?:but\s+)?"
)
_CANNOT: Final = (
    r"(?:i|we)(?:['\u2019]m|\s+am)?\s*"
    r"(?:can(?:no|['\u2019])t|can not|won['\u2019]t|will not|not able to|unable to)\s+(?:to\s+)?"
)
_DOING: Final = r"(?:help|assist|provide|create|write|generate|fulfil|continue|produce|engage)"
# Without an apology it may be a customer who says what he cannot do: "I can't create an account".
_REFUSAL: Final = re.compile(
    rf"{_APOLOGY}{_CANNOT}(?:{_DOING}|comply|do that)|(?:{_APOLOGY})?(?:as an ai\b"
    rf"|{_CANNOT}(?:comply|do that|{_DOING}\b[^.!?\n]{{0,20}}\b(?:this|that|these|such|your request"
    r"|the request|requests?|content|messages|examples)\b))",
    re.IGNORECASE,
)
_PROBE_PROMPT = "Give one row that says: ok"


def kind_of(style: Style) -> Kind:
    """Continuing a text is a completion; everything else a chat."""
    return "completion" if style == "continue" else "chat"


def build_body(
    *,
    style: Style,
    mode: OutputMode,
    model: str,
    user: str,
    system: str = "",
    schema: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The complete JSON body of one call.

    ``continue``: ``user`` is the text to go on with (``system`` before it), ``mode`` must be
    ``list``. ``schema``: a JSON schema of an object, needed by every mode but ``list``.
    ``sampling``: parameters sent as they are (temperature, max_tokens, stop, ...).
    Raises UsageError for contradictions.
    """
    options = dict(sampling or {})
    clash = sorted(_RESERVED & options.keys())
    if clash:
        raise UsageError(f"{', '.join(clash)} cannot be set here", where="sampling")
    body: dict[str, Any] = {"model": model}
    if style == "continue":
        if mode != "list":
            raise UsageError(f"style continue writes plain lists, not {mode}", where="output")
        body["prompt"] = f"{system}\n\n{user}" if system else user
    else:
        if mode != "list" and schema is None:
            raise UsageError(f"output {mode} needs a schema", where="output")
        body["messages"] = _messages(system, user, mode, schema)
        body |= _format_fields(mode, schema)
    body |= options
    if seed is not None:
        body["seed"] = seed
    return body


@dataclass(frozen=True)
class Asked:
    """What an answer is read against.

    ``rows``: how many were asked for; ``key``: the schema's list of them, ``fields``: what each of
    them must have, where they are objects; ``continued``: the mark at the end of the text that the
    answer goes on with ("" for none), None for a chat.
    """

    rows: int | None = None
    key: str = ""
    fields: frozenset[str] = frozenset()
    continued: str | None = None


class Items(NamedTuple):
    """The rows in an answer, and what of it was set aside.

    ``items`` are strings in ``list`` mode, else whatever the schema's list holds (unchecked:
    screening is another's work). ``complete``: all of what the model meant is there. ``problem``
    (a word, "" mostly) and ``detail`` say why something is no row, ``aside`` is its text.
    """

    items: list[Any]
    complete: bool
    problem: str = ""
    detail: str = ""
    aside: str = ""


# The problem of lines that are no rows beside others that are.
UNMARKED_LINES: Final = "unmarked_lines"


def asked_for(request: Request, schema: Mapping[str, Any], rows: int) -> Asked:
    """What a request asks for, by the schema of its answer and how many rows it names."""
    if request.kind == "completion":
        return Asked(continued=open_mark(str(request.body.get("prompt", ""))))
    members: Mapping[str, Any] = schema["properties"]
    key = next((name for name, one in members.items() if one.get("type") == "array"), "")
    each = members[key].get("items", {}) if key else {}
    return Asked(rows, key, frozenset(each.get("required", ())))


def items_of(text: str | None, mode: OutputMode, *, cut: bool, asked: Asked | None = None) -> Items:
    """The rows in an answer's text. ``cut``: the answer ended at its token limit.

    A model's thinking is taken off first; what thinks and does not end has no rows in it.
    """
    if not text:
        return Items([], False)
    asked = asked or Asked()
    if asked.continued is not None:
        return _listed(read_plain_list(text, cut=cut, continued=asked.continued), asked, cut=cut)
    said = without_thinking(text)
    cut_here = cut and not said.unclosed
    if mode == "list":
        read = _from_list(said.text, asked, cut=cut_here)
    else:
        read = _from_json(said.text, asked, cut=cut_here)
    if said.unclosed:
        aside = "\n".join(part for part in (read.aside, said.unclosed) if part)
        detail = "thinking that does not end"
        return read._replace(
            complete=False, problem="unclosed_thinking", detail=detail, aside=aside
        )
    if not said.text.strip():
        return Items([], not cut, "no_rows", "the answer is nothing but thinking")
    return read


def _from_json(text: str, asked: Asked, *, cut: bool) -> Items:
    """The items of a JSON answer; of all calls of the function, in tool mode."""
    items: list[Any] = []
    complete = True
    for part in text.split(CALL_SEPARATOR):
        more, whole = salvage_json_list(part, key=asked.key, fields=asked.fields)
        items += more
        complete = complete and whole
    if not complete and not cut:
        return Items(items, False, "malformed", "the answer is not the list that was asked for")
    if not items:
        return Items([], complete and not cut, "no_rows", "the answer is an empty list")
    return Items(items, complete and not cut)


def _from_list(text: str, asked: Asked, *, cut: bool) -> Items:
    document = _without_fence(text)
    if _DOCUMENT.match(document):
        # Some models answer in JSON whatever they are asked for.
        items, complete = salvage_json_list(document, key=asked.key, fields=asked.fields)
        if items and (complete or cut):
            return Items(items, complete and not cut)
    found = read_plain_list(text, cut=cut, rows=asked.rows)
    if not found.marked:
        inside = _in_prose(text, asked, cut=cut)
        if inside is not None:
            return inside
    return _listed(found, asked, cut=cut)


def _in_prose(text: str, asked: Asked, *, cut: bool) -> Items | None:
    """The rows of the one code fence, or the JSON, that prose stands around; None for neither."""
    marks = text.count("```") + text.count("~~~")
    fences = [*_FENCES.finditer(text)] if marks <= MOST_FENCES else []
    if len(fences) == 1 and text.replace(fences[0][0], "").strip():
        inner = fences[0]["inner"]
        read = _from_list(inner, asked, cut=False)
        if read.items:
            return read
    items, complete = salvage_json_list(text, key=asked.key, fields=asked.fields)
    likely = (
        len(items) == asked.rows != 1
        or not all(isinstance(item, str) for item in items)
        or _BRACKET_LINE.search(text)
    )
    return Items(items, not cut) if items and complete and likely else None


def _listed(found: PlainList, asked: Asked, *, cut: bool) -> Items:
    aside, lines = "\n".join(found.aside), len(found.aside)
    counted = f"{lines} line{'s' if lines != 1 else ''}"
    alone = not found.marked or (len(found.rows) == 1 and asked.rows != 1)
    if found.rows and alone and _REFUSAL.match(found.rows[0]) and asked.rows is not None:
        refusal = "\n".join(found.rows)
        return Items([], not cut, ErrorKind.REFUSED.value, "the model declined", refusal)
    if not found.rows and lines:
        detail = f"{counted} without list marks, {asked.rows} rows were asked for"
        return Items([], not cut, "unmarked_answer", detail, aside)
    if not found.rows:
        return Items([], not cut, "no_rows", "the answer is an empty list")
    if lines:
        return Items(found.rows, not cut, UNMARKED_LINES, f"{counted} that are no items", aside)
    return Items(found.rows, not cut)


def _without_fence(text: str) -> str:
    """The text without a code fence around the whole of it."""
    text = text.strip()
    first, _, rest = text.partition("\n")
    opened = _FENCE_LINE.fullmatch(first)
    return rest.rstrip().removesuffix(opened[1]).strip() if opened and rest else text


async def output_mode(
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    connect: Callable[[], Endpoint] | None = None,
    wanted: Wanted = "auto",
    sampling: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    dataset: str = "",
    prices: Prices | None = None,
    budget: Budget | None = None,
    tallies: Tallies | None = None,
) -> OutputMode:
    """The best output mode that the endpoint and model understand.

    What is wanted by name is taken at its word. ``sampling`` should be what later calls use, so
    that a probe is refused for the format only. Raises EndpointError when even a plain list is
    refused, Incomplete when the budget has no room for a probe. Probes count in ``tallies``.
    """
    if wanted != "auto":
        return wanted
    remembered = await asyncio.to_thread(ledger.capability, endpoint.identity, endpoint.model)
    for mode in MODES:
        if remembered == mode:
            return mode
    for mode in MODES:
        body = build_body(
            style="chat",
            mode=mode,
            model=endpoint.model,
            user=_PROBE_PROMPT,
            schema=PROBE_SCHEMA,
            sampling=sampling,
        )
        probe = Request("chat", endpoint.identity, body)
        stream = ask(
            [probe],
            endpoint=endpoint,
            connect=connect,
            ledger=ledger,
            limits=limits,
            dataset=dataset,
            prices=prices,
            budget=budget,
            tallies=tallies,
        )
        answers = [answer async for answer in stream]
        answer = answers[0]
        if _works(answer, mode):
            await ledger.remember(endpoint.identity, endpoint.model, mode)
            return mode
        _check_refusal(answer, mode, endpoint)
    raise EndpointError(
        "no output mode works", where=f"model {endpoint.model!r} at {endpoint.host}"
    )


def _works(answer: Answer, mode: OutputMode) -> bool:
    if answer.error is not None and not answer.error.is_content:
        return False
    if mode == "list":
        return True
    # Some servers accept the parameter and ignore it: the text must be JSON from its first
    # character, which no instruction in words asked for. In a fence it must have the key as well.
    said = without_thinking(answer.text or "").text.strip()
    text = _without_fence(said)
    items, complete = salvage_json_list(text, key=_PROBE_KEY)
    fits = text == said or f'"{_PROBE_KEY}"' in text
    return text.startswith("{") and fits and (complete or bool(items))


def _check_refusal(answer: Answer, mode: OutputMode, endpoint: Endpoint) -> None:
    """Passes when the answer means "not this format"; raises for any other failure."""
    error = answer.error
    if error is None or error.is_content:
        return
    if error is ErrorKind.BUDGET:
        raise Incomplete("the budget has no room for a first call", where="budget")
    about = _ABOUT_FORMAT.search(answer.error_detail + answer.raw[:2000].decode("utf-8", "replace"))
    if mode != "list" and answer.status in _REFUSING_STATUSES and about:
        return
    raise EndpointError(
        f"a first call failed ({answer.error_detail})",
        where=f"model {endpoint.model!r} at {endpoint.host}",
        fix="see the server's message; sampling parameters it does not know are a common cause",
    )


def _messages(
    system: str, user: str, mode: OutputMode, schema: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    words = {"list": _AS_LIST, "json_object": _AS_JSON}.get(mode, "")
    if mode == "json_object":
        words += orjson.dumps(dict(schema or {})).decode()
    instruction = "\n\n".join(part for part in (system, words) if part)
    head = [{"role": "system", "content": instruction}] if instruction else []
    return [*head, {"role": "user", "content": user}]


def _format_fields(mode: OutputMode, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if mode == "json_schema":
        described = {"name": SCHEMA_NAME, "strict": True, "schema": dict(schema or {})}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    if mode == "json_object":
        return {"response_format": {"type": "json_object"}}
    if mode == "tool":
        function = {"name": SCHEMA_NAME, "parameters": dict(schema or {}), "strict": True}
        return {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": SCHEMA_NAME}},
        }
    return {}
