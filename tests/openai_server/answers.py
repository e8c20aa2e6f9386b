"""Answer bodies: values that satisfy a JSON schema, chat completions, continued lists, usage."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tests.openai_server import grammar

Json = dict[str, Any]
CHARS_PER_TOKEN = 4
CREATED = 1_700_000_000  # a fixed time: the same request must give the same bytes
LEGACY_MAX_TOKENS = 16
MAX_DEPTH = 12
TEXT_KEYS = frozenset(
    {"text", "short_text", "sentence", "message", "question", "body", "content", "utterance"}
)
_LAST_NUMBER = re.compile(r"(?:^|\n)\s*(\d{1,4})([.)])[ \t]*$")


def tokens(text: str) -> int:
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def prompt_text(body: Mapping[str, Any]) -> str:
    """All text of a chat request, in order."""
    parts: list[str] = []
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
    return "\n".join(parts)


def chat(body: Mapping[str, Any], *, identity: str, seeded_by: str, default_rows: int) -> Json:
    """A chat completion; its content follows ``response_format`` or the forced tool."""
    prompt = prompt_text(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    tool = forced_tool(body)
    choices, spent = [], 0
    for index in range(_choices(body)):
        seed = _seed(seeded_by, index)
        text = _chat_text(body, prompt, tool, seed=seed, default_rows=default_rows)
        text, finish = _limited(text, stop=body.get("stop"), max_tokens=limit)
        spent += tokens(text)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if tool is not None:
            function = {"name": tool["name"], "arguments": text}
            call = {"id": f"call_{identity[:16]}{index}", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
            # A tool that was named leaves the model no choice: the API says "stop" then.
            if finish == "stop" and body["tool_choice"] == "required":
                finish = "tool_calls"
        choices.append(
            {"index": index, "message": message, "finish_reason": finish, "logprobs": None}
        )
    asked = tokens(prompt) + 4 * len(body.get("messages") or ())
    return _envelope(body, identity, "chat.completion", choices, (asked, spent))


def forced_tool(body: Mapping[str, Any]) -> Json | None:
    """The function that ``tool_choice`` forces the model to call; None when it is free."""
    functions: list[Json] = [
        tool["function"]
        for tool in body.get("tools") or ()
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    choice = body.get("tool_choice")
    if choice == "required":
        return functions[0] if functions else None
    if not isinstance(choice, dict):
        return None
    name = (choice.get("function") or {}).get("name")
    return next((one for one in functions if one.get("name") == name), None)


def completion(
    body: Mapping[str, Any], *, identity: str, seeded_by: str, default_rows: int
) -> Json:
    """A legacy completion: the prompt's list goes on, as a base model would write it."""
    given = body["prompt"]
    prompt = given if isinstance(given, str) else "".join(given)
    seed = _seed(seeded_by, 0)
    limit = body.get("max_tokens", LEGACY_MAX_TOKENS)
    read = grammar.read_prompt(prompt)
    spread = random.Random(seed).randrange(default_rows + 1)
    count = read.rows or default_rows + spread
    text = _continued(prompt, itertools.islice(grammar.rows(read, seed=seed), count))
    text, finish = _limited(text, stop=body.get("stop"), max_tokens=limit)
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
    usage = (tokens(prompt), tokens(text))
    return _envelope(body, identity, "text_completion", [choice], usage)


def _envelope(
    body: Mapping[str, Any], identity: str, kind: str, choices: list[Json], usage: tuple[int, int]
) -> Json:
    prefix = "cmpl-" if kind == "text_completion" else "chatcmpl-"
    return {
        "id": prefix + identity[:24],
        "object": kind,
        "created": CREATED,
        "model": body["model"],
        "choices": choices,
        "usage": {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        },
    }


def _seed(identity: str, index: int) -> int:
    return int(identity[:16], 16) + index


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) and 1 <= n <= 128 else 1


def _chat_text(
    body: Mapping[str, Any], prompt: str, tool: Json | None, *, seed: int, default_rows: int
) -> str:
    read = grammar.read_prompt(prompt)
    made = grammar.rows(read, seed=seed)
    wanted = body.get("response_format") or {}
    kind = wanted.get("type")
    if tool is not None or kind == "json_schema":
        named = tool.get("parameters") if tool else (wanted.get("json_schema") or {}).get("schema")
        schema = named or {}
        walker = SchemaWalker(schema, made, rows=read.rows, default_rows=default_rows, seed=seed)
        return orjson.dumps(walker.value()).decode()
    texts = list(itertools.islice(made, read.rows or default_rows))
    if kind == "json_object":
        return orjson.dumps({"rows": [{"text": text} for text in texts]}).decode()
    return "\n".join(f"- {text}" for text in texts)


def _continued(prompt: str, texts: Iterator[str]) -> str:
    """The text after the prompt: its last line may be an open list marker."""
    numbered = _LAST_NUMBER.search(prompt)
    if numbered:
        lead = "" if prompt[-1] in " \t" else " "
        start, mark = int(numbered[1]), numbered[2]
        joined = "".join(
            text if not at else f"\n{start + at}{mark} {text}" for at, text in enumerate(texts)
        )
        return lead + joined
    last = prompt.rstrip(" \t")
    if last.endswith(("-", "*")):
        lead = " " if prompt == last else ""
        return lead + f"\n{last[-1]} ".join(texts)
    return ("" if prompt.endswith("\n") else "\n") + "\n".join(f"- {text}" for text in texts)


def _limited(text: str, *, stop: object, max_tokens: object) -> tuple[str, str]:
    """The text up to the first stop sequence or the token limit, and the finish reason."""
    sequences = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    found = [at for at in (text.find(one) for one in sequences if one) if at >= 0]
    if found:
        text = text[: min(found)]
    if isinstance(max_tokens, int) and len(text) > max_tokens * CHARS_PER_TOKEN:
        return text[: max_tokens * CHARS_PER_TOKEN], "length"
    return text, "stop"


@dataclass
class SchemaWalker:
    """One value for a JSON schema, its text taken from the grammar.

    Covers what structured output allows: objects, arrays, strings, numbers, enums, const,
    ``$ref``, anyOf/oneOf/allOf and the usual bounds. ``pattern`` is not honoured.
    """

    schema: Json
    texts: Iterator[str]
    rows: int | None
    default_rows: int
    seed: int

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed ^ 0x5EED)

    def value(self) -> Any:
        return self._value(self.schema, key="", depth=0, in_array=False)

    def _value(self, schema: Any, *, key: str, depth: int, in_array: bool) -> Any:
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(schema["enum"])
        kind = _kind(schema)
        if kind == "object":
            return self._object(schema, depth=depth, in_array=in_array)
        if kind == "array":
            return self._array(schema, depth=depth, in_array=in_array)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return self._rng.random() < 0.5
        return None if kind == "null" else self._string(schema)

    def _resolved(self, given: Any, depth: int) -> Json:
        schema: Json = given if isinstance(given, dict) else {"type": "string"}
        for _ in range(MAX_DEPTH):
            if "$ref" in schema:
                schema = self._pointed(schema["$ref"])
            elif schema.get("allOf"):
                merged = {name: item for name, item in schema.items() if name != "allOf"}
                for part in schema["allOf"]:
                    merged |= self._resolved(part, depth)
                schema = merged
            elif schema.get("anyOf") or schema.get("oneOf"):
                options = schema.get("anyOf") or schema["oneOf"]
                nulls = [one for one in options if isinstance(one, dict) and _kind(one) == "null"]
                # Deep in a recursive schema the way out is the null branch.
                real = [one for one in options if one not in nulls]
                schema = (nulls if depth > MAX_DEPTH and nulls else real or nulls)[0]
            else:
                break
        return schema

    def _pointed(self, ref: str) -> Json:
        found: Any = self.schema
        for step in ref.removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if step and isinstance(found, dict) else found
        return found if isinstance(found, dict) else {}

    def _object(self, schema: Json, *, depth: int, in_array: bool) -> Json:
        wanted = schema.get("properties") or {}
        required = set(schema.get("required") or wanted)
        return {
            name: self._value(part, key=name, depth=depth + 1, in_array=in_array)
            for name, part in wanted.items()
            if name in required or depth <= MAX_DEPTH
        }

    def _array(self, schema: Json, *, depth: int, in_array: bool) -> list[Any]:
        low = schema.get("minItems") or 0
        high = schema.get("maxItems") or max(low, grammar.MAX_ROWS)
        if in_array:
            count = 2 if depth <= MAX_DEPTH else 0
        elif self.rows is not None:
            count = self.rows
        elif "maxItems" in schema:
            count = schema["maxItems"]
        else:
            count = self.default_rows if low <= 1 else low
        items = schema.get("items", {"type": "string"})
        return [
            self._value(items, key="", depth=depth + 1, in_array=True)
            for _ in range(max(low, min(count, high)))
        ]

    def _string(self, schema: Json) -> str:
        fixed = {
            "date": f"2024-{self._rng.randrange(1, 13):02}-{self._rng.randrange(1, 29):02}",
            "date-time": f"2024-03-{self._rng.randrange(1, 29):02}T08:00:00Z",
            "time": f"{self._rng.randrange(24):02}:00:00Z",
            "email": f"person{self._rng.randrange(1000)}@example.com",
            "uuid": f"{self._rng.getrandbits(128):032x}",
            "uri": f"https://example.com/{self._rng.randrange(1000)}",
        }.get(schema.get("format", ""))
        if fixed:
            hexed = schema.get("format") == "uuid"
            spans = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
            return "-".join(fixed[a:b] for a, b in spans) if hexed else fixed
        text = next(self.texts)
        while len(text) < (schema.get("minLength") or 0):
            text += " " + next(self.texts)
        return text[: schema.get("maxLength") or len(text)]

    def _number(self, schema: Json, *, whole: bool) -> float | int:
        step = schema.get("multipleOf") or (1 if whole else 0.01)
        low, high = schema.get("minimum"), schema.get("exclusiveMaximum")
        if low is None:
            above = schema.get("exclusiveMinimum")
            low = above + step if above is not None else None
        high = high - step if high is not None else schema.get("maximum")
        low = low if low is not None else (0 if high is None else min(0, high - 10 * step))
        high = high if high is not None else low + 100 * step
        first = math.ceil(low / step - 1e-9)
        drawn = self._rng.randint(first, max(first, math.floor(high / step + 1e-9)))
        value = drawn * step
        return round(value) if whole else round(value, 9)


def _kind(schema: Json) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def repeated_first(content: str) -> str:
    """The content with its first row in the place of every row."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        lines = content.split("\n")
        return "\n".join(f"- {lines[0].lstrip('-* ')}" for _ in lines)
    return orjson.dumps(_all_alike(parsed)).decode()


def _all_alike(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _all_alike(item) for key, item in value.items()}
    return [value[0]] * len(value) if isinstance(value, list) and value else value
