"""Answers as models and gateways write them: thinking, prose around a list, half an emoji.

A quirk leaves the rows of an answer what they were and changes how they are said, but for those in
``LOSING``. A quirk is a function of the answer's body; ``HALF_EMOJI`` in a text goes over the wire
as the escape of a lone surrogate, which no JSON library writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

HALF_EMOJI = "\ue000"
THOUGHTS = (
    "The user wants new rows about this topic.\n- one could be about something urgent\n"
    '- another, like ["several rows"], or {"rows": ["a first idea that is a draft"]}\n'
    "1. I vary the wording.\nLet me write them now."
)
JUNK = ("urgent", "first idea", "Let me", "Here are", "hope", "think", "Batch", "Ticket", "| --")


def _edited(change: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    def edit(answer: dict[str, Any]) -> None:
        choice = answer["choices"][0]
        choice["message"]["content"] = change(choice["message"]["content"])

    return edit


def _items(content: str) -> list[str]:
    return [line.removeprefix("- ") for line in content.split("\n")]


def _as_list(shape: Callable[[int, str], str]) -> Callable[[dict[str, Any]], None]:
    return _edited(
        lambda content: "\n".join(shape(n, item) for n, item in enumerate(_items(content), 1))
    )


def _harmony(content: str) -> str:
    return (
        f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{content}<|return|>"
    )


def _chatty(content: str) -> str:
    items = _items(content)
    numbered = [f"{n}. **{item}**" for n, item in enumerate(items, 1)]
    half = len(items) // 2
    return "\n".join(
        [
            f"Sure! Here are {len(items)} new rows:\n\n## Batch one",
            *numbered[:half],
            "\nBatch two:\n",
            *numbered[half:],
            "\n---\nLet me know if you would like more of them!",
        ]
    )


def _table(content: str) -> str:
    rows = [f"| {n} | {item} |" for n, item in enumerate(_items(content), 1)]
    return "\n".join(["Here are they:", "", "| # | Ticket |", "| --- | --- |", *rows])


def _broken_lines(_: int, item: str) -> str:
    first, _gap, rest = item.partition(" ")
    return f"- {first}\n  {rest}" if rest else f"- {item}"


def _parts(answer: dict[str, Any]) -> None:
    message = answer["choices"][0]["message"]
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHTS}]}
    other = {"type": "reasoning", "text": THOUGHTS}
    message["content"] = [thinking, other, {"type": "text", "text": message["content"]}]
    message["reasoning_content"] = message["reasoning"] = THOUGHTS


def _other_list_first(content: str) -> str:
    notes = {"notes": ["vary the tone between polite and angry"]}
    return orjson.dumps(notes | orjson.loads(content)).decode()


def _calls(answer: dict[str, Any]) -> list[Any]:
    calls: list[Any] = answer["choices"][0]["message"]["tool_calls"]
    return calls


def _prose_beside_a_call(answer: dict[str, Any]) -> None:
    answer["choices"][0]["message"]["content"] = "I'll record the rows with the tool now."


def _several_calls(answer: dict[str, Any]) -> None:
    _prose_beside_a_call(answer)
    (call,) = _calls(answer)
    name, rows = call["function"]["name"], orjson.loads(call["function"]["arguments"])["rows"]
    parts = [(name, rows[:1]), ("think", ["a first idea"]), (f"functions.{name}", rows[1:])]
    answer["choices"][0]["message"]["tool_calls"] = [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": called, "arguments": orjson.dumps({"rows": part}).decode()},
        }
        for n, (called, part) in enumerate(parts)
    ]


def _cut(finish: str | None) -> Callable[[dict[str, Any]], None]:
    def edit(answer: dict[str, Any]) -> None:
        choice = answer["choices"][0]
        choice["message"]["content"] = choice["message"]["content"][:-8]
        choice["finish_reason"] = finish
        if finish is None:
            answer["usage"]["completion_tokens"] = 10**6

    return edit


def _thinking_cut(answer: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    choice["message"]["content"] = f"<think>\n{THOUGHTS}"
    choice["finish_reason"] = "length"


def _reasoning_only(answer: dict[str, Any]) -> None:
    answer["choices"][0]["message"] |= {"content": None, "reasoning_content": THOUGHTS}


LISTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "thinking": _edited(lambda said: f"<think>\n{THOUGHTS}\n</think>\n\n{said}"),
    "thinking that the template opened": _edited(lambda said: f"{THOUGHTS}\n</think>\n\n{said}"),
    "thinking in Mistral's marks": _edited(lambda said: f"[THINK]{THOUGHTS}[/THINK]{said}"),
    "thinking in a channel": _edited(_harmony),
    "thinking twice": _edited(lambda said: f"<think>\n\n</think>\n<THINK>hm</THINK>{said}"),
    "thinking in a part": _parts,
    "a preamble, headings, a closing offer": _edited(_chatty),
    "a fence": _edited(lambda said: f"Here are the rows:\n```text\n{said}\n```\nI hope it helps."),
    "a table": _edited(_table),
    "items of two lines": _as_list(_broken_lines),
    "labels": _as_list(lambda n, item: f"**Ticket {n}:** {item}"),
    "labels on lines of their own": _as_list(lambda n, item: f"### Ticket {n}\n\n{item}\n"),
    "quotes": _as_list(lambda n, item: f'{n}) "{item}"'),
    "no marks": _as_list(lambda _, item: item),
    "the mark of an end": _edited(lambda said: f"{said}<|im_end|>"),
    "half an emoji": _as_list(lambda _, item: f"- {item}{HALF_EMOJI}"),
}
JSON: dict[str, Callable[[dict[str, Any]], None]] = {
    "thinking": _edited(lambda said: f"<think>\n{THOUGHTS}\n</think>\n{said}"),
    "thinking that the template opened": _edited(lambda said: f"{THOUGHTS}\n</think>{said}"),
    "another list first": _edited(_other_list_first),
    "a fence": _edited(lambda said: f"```json\n{said}\n```"),
    "an object around it": _edited(lambda said: f'{{"result": {said}}}'),
    "half an emoji": _edited(lambda said: said.replace('"}', HALF_EMOJI + '"}')),
}
TOOLS: dict[str, Callable[[dict[str, Any]], None]] = {
    "prose beside a call": _prose_beside_a_call,
    "several calls": _several_calls,
}
LOSING: dict[str, Callable[[dict[str, Any]], None]] = {
    "thinking cut at the limit": _thinking_cut,
    "reasoning only": _reasoning_only,
    "a refusal in words": _edited(lambda _: "I'm sorry, but I can't help with that."),
    "cut: MAX_TOKENS": _cut("MAX_TOKENS"),
    "cut: max_tokens": _cut("max_tokens"),
    "cut: model_length": _cut("model_length"),
    "cut: no reason given": _cut(None),
}
QUIRKS = {
    **{f"list: {name}": edit for name, edit in LISTS.items()},
    **{f"json: {name}": edit for name, edit in JSON.items()},
    **{f"tool: {name}": edit for name, edit in TOOLS.items()},
    **{f"losing: {name}": edit for name, edit in LOSING.items()},
}


def on_the_wire(raw: bytes) -> bytes:
    """The body with halves of emoji in it."""
    return raw.replace(HALF_EMOJI.encode(), rb"\ud83d")
