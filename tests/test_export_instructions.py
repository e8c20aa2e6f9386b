"""Tuning files follow the rules their readers document, whatever the texts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from pydantic import ConfigDict, TypeAdapter, ValidationError

from synth_assets.exports.instructions import write_alpaca, write_openai_chat
from synth_assets.spec.model import DatasetSpec
from synth_assets.tasks import task_for
from tests.releases import ATTRIBUTES, LABELS, rows

TASK = task_for(DatasetSpec.model_validate(ATTRIBUTES))
STRATA = tuple(LABELS)
STRICT = ConfigDict(extra="forbid", strict=True)
KEYS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "weight", "function_call", "tool_calls"},
}


def rule_breaks(example: Any) -> list[str]:
    """What OpenAI's documented rules for chat fine-tuning say against one line."""
    if not isinstance(example, dict) or set(example) - {"messages", "tools", "functions"}:
        return ["an example is an object with messages"]
    messages = example.get("messages")
    if not isinstance(messages, list) or not messages:
        return ["messages is a list that is not empty"]
    broken = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if role not in KEYS:
            broken.append(f"no such role: {role}")
        elif unknown := set(message) - KEYS[role]:
            broken.append(f"unknown keys: {unknown}")
        if not isinstance(message.get("content"), str) or not message["content"]:
            broken.append("content is a text that is not empty")
        if message.get("weight", 1) not in (0, 1):
            broken.append("a weight is 0 or 1")
        if role == "system" and place:
            broken.append("a system message comes first")
    if messages[-1].get("role") != "assistant":
        broken.append("the last message is the assistant's")
    if "user" not in [message.get("role") for message in messages]:
        broken.append("somebody asks")
    return broken


def lines(path: Path) -> list[dict[str, Any]]:
    found = path.read_bytes().split(b"\n")
    assert found.pop() == b""
    return [json.loads(line) for line in found]


@pytest.mark.parametrize("system", [None, "Be brief.\n\0"])
def test_every_chat_example_follows_the_rules(tmp_path: Path, system: str | None) -> None:
    table = rows(20)
    path = tmp_path / "train.jsonl"
    write_openai_chat(table.lazy(), path, task=TASK, strata=STRATA, system=system)
    examples = lines(path)
    assert [broken for example in examples for broken in rule_breaks(example)] == []
    for example, (text, label) in zip(
        examples, table.select("text", "label").iter_rows(), strict=True
    ):
        *before, user, assistant = example["messages"]
        assert [message["content"] for message in before] == ([system] if system else [])
        assert user["content"].endswith("\n\n" + text)
        assert all(f"- {name}" in user["content"] for name in LABELS)
        assert assistant == {"role": "assistant", "content": label}


class System(ChatCompletionSystemMessageParam):
    __pydantic_config__ = STRICT  # type: ignore[misc]


class User(ChatCompletionUserMessageParam):
    __pydantic_config__ = STRICT  # type: ignore[misc]


class Assistant(ChatCompletionAssistantMessageParam):
    __pydantic_config__ = STRICT  # type: ignore[misc]


def test_messages_are_what_the_client_library_declares(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_openai_chat(rows().lazy(), path, task=TASK, strata=STRATA, system="s")
    readers = {
        "system": TypeAdapter(System),
        "user": TypeAdapter(User),
        "assistant": TypeAdapter(Assistant),
    }
    with pytest.raises(ValidationError):
        readers["user"].validate_python({"role": "user", "content": "x", "weight": 1})
    for example in lines(path):
        for message in example["messages"]:
            readers[message["role"]].validate_python(message)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_alpaca_is_one_array_of_three_texts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.json"
    table = rows().head(count)
    write_alpaca(table.lazy(), path, task=TASK, strata=STRATA)
    found = json.loads(path.read_bytes())
    assert [set(one) for one in found] == [{"instruction", "input", "output"}] * count
    assert [one["input"] for one in found] == table["text"].to_list()


def test_alpaca_holds_every_hostile_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    table = rows(10_000)  # more than one batch
    write_alpaca(table.lazy(), path, task=TASK, strata=STRATA)
    found = pl.DataFrame(json.loads(path.read_bytes()))
    assert found["input"].equals(table["text"])
    assert found["output"].equals(table["label"])
    assert found["instruction"].n_unique() == 1


def test_a_task_without_input_asks_its_instruction_only(tmp_path: Path) -> None:
    class Asked:
        payload = ("q", "a")

        def as_instructions(self, rows: pl.DataFrame, *, strata: object) -> pl.DataFrame:
            return rows.select(instruction="q", input=pl.lit(""), output="a")

    table = pl.LazyFrame({"q": ["why?"], "a": ["because"], "weight": [1.0]})
    write_openai_chat(table, tmp_path / "a.jsonl", task=Asked(), strata=())  # type: ignore[arg-type]
    assert lines(tmp_path / "a.jsonl") == [
        {
            "messages": [
                {"role": "user", "content": "why?"},
                {"role": "assistant", "content": "because"},
            ]
        }
    ]
