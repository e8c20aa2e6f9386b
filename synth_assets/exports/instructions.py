"""Examples as instruction, input and output: what language models are tuned on.

Neither format can weigh an example (OpenAI's ``weight`` says whether a message is trained on at
all, 0 or 1), so weights stay behind; ``lost_weights`` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from synth_assets.exports.batches import batches
from synth_assets.tasks import Task

# Fewer training examples than this and OpenAI refuses the file.
OPENAI_LEAST_EXAMPLES = 10


def write_openai_chat(
    rows: pl.LazyFrame, file: Path, *, task: Task, strata: Sequence[str], system: str | None = None
) -> None:
    """OpenAI's chat fine-tuning JSON lines: ``{"messages": [system?, user, assistant]}``.

    The user message is the instruction, a blank line and the input.
    """
    both = pl.col("instruction") + "\n\n" + pl.col("input")
    user = pl.when(pl.col("input") == "").then("instruction").otherwise(both)
    messages = [_message("user", user), _message("assistant", pl.col("output"))]
    if system is not None:
        messages.insert(0, _message("system", pl.lit(system)))
    with file.open("wb") as out:
        for examples in _examples(rows, task, strata):
            examples.select(messages=pl.concat_list(messages)).write_ndjson(out)


def _message(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(role=pl.lit(role), content=content)


def write_alpaca(rows: pl.LazyFrame, file: Path, *, task: Task, strata: Sequence[str]) -> None:
    """A JSON array of ``{"instruction", "input", "output"}``, one object a line."""
    with file.open("wb") as out:
        start = b"[\n"
        for examples in _examples(rows, task, strata):
            # No text can hold a line end here: JSON escapes it.
            objects = examples.write_ndjson().encode().rstrip(b"\n").replace(b"\n", b",\n")
            out.write(start + objects)
            start = b",\n"
        out.write(b"[]\n" if start == b"[\n" else b"\n]\n")


def _examples(rows: pl.LazyFrame, task: Task, strata: Sequence[str]) -> Iterator[pl.DataFrame]:
    for batch in batches(rows.select(task.payload)):
        yield task.as_instructions(batch, strata=strata).select("instruction", "input", "output")


def lost_weights(rows: pl.LazyFrame) -> int:
    """Rows whose weight is not 1."""
    return int(rows.select((pl.col("weight") != 1).sum()).collect().item())
