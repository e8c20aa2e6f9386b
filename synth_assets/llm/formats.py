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
from typing import Any, Final, Literal, get_args

import orjson

from synth_assets.errors import EndpointError, Incomplete, UsageError
from synth_assets.llm.answers import Answer, Tallies
from synth_assets.llm.budget import Budget, Prices
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.engine import ask
from synth_assets.llm.errors import ErrorKind
from synth_assets.llm.identity import Kind, Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.salvage import parse_plain_list, salvage_json_list
from synth_assets.llm.scheduler import Limits

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
PROBE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"rows": {"type": "array", "items": {"type": "string"}}},
    "required": ["rows"],
    "additionalProperties": False,
}
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


def items_of(text: str | None, mode: OutputMode, *, cut: bool) -> tuple[list[Any], bool]:
    """The rows in an answer's text, and whether all of what the model meant is there.

    ``cut``: the answer ended at its token limit. Rows are strings in ``list`` mode, else whatever
    the schema's list holds (unchecked: screening is another's work).
    """
    if not text:
        return [], False
    if mode == "list":
        rows = parse_plain_list(text, cut)
        return list(rows), not cut
    items, complete = salvage_json_list(text)
    return items, complete and not cut


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
    # character, which no instruction in words asked for.
    text = (answer.text or "").lstrip()
    items, complete = salvage_json_list(text)
    return text.startswith("{") and (complete or bool(items))


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
