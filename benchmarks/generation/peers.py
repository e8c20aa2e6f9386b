"""Other projects' generators, asked the same questions; each needs an environment of its own.

    python3 -m venv /tmp/curator && /tmp/curator/bin/pip install bespokelabs-curator==0.1.31
    python3 -m venv /tmp/distilabel && /tmp/distilabel/bin/pip install 'distilabel[openai]==1.5.3'
    python3 -m venv /tmp/data_designer && /tmp/data_designer/bin/pip install data-designer==0.9.6
    python -m benchmarks.generation --peer curator=/tmp/curator/bin/python \
        --peer distilabel=/tmp/distilabel/bin/python \
        --peer data_designer=/tmp/data_designer/bin/python

This file is run by those interpreters and imports nothing of this project. Every peer gets the
concurrency it is asked for, no rate limit that could slow it, telemetry off, and a fresh cache.
Curator wants a tokenizer file from the internet for its own rate limiter; where there is none, one
that counts four characters as a token stands in, which costs it less than the real one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

SYSTEM = "You write realistic support tickets. " * 4
_clock = (0.0, 0.0)


def prompt_of(number: int) -> str:
    return f"Write 8 new support tickets about delivery, batch {number}.\n" + "- an example\n" * 6


def start_clock() -> None:
    global _clock
    _clock = (time.perf_counter(), time.process_time())


def curator(url: str, requests: int, concurrency: int) -> int:
    os.environ |= {"OPENAI_API_KEY": "no-key", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    os.environ["CURATOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="bench-curator-")
    import tiktoken

    class FourCharacters:
        def encode(self, text: str, **_: Any) -> list[int]:
            return [0] * (len(text) // 4)

    tiktoken.get_encoding = lambda name: FourCharacters()
    tiktoken.encoding_for_model = lambda name: FourCharacters()
    from bespokelabs import curator as library

    class Tickets(library.LLM):
        def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
            return [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": row["prompt"]},
            ]

        def parse(self, row: dict[str, Any], response: str) -> dict[str, str]:
            return {"text": response}

    generator = Tickets(
        model_name="gpt-4o-mini",  # it looks up the output limit of a name it must know
        backend="openai",
        backend_params={
            "base_url": url,
            "max_concurrent_requests": concurrency,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "in_mtok_cost": 0.0,
            "out_mtok_cost": 0.0,
        },
    )
    rows = [{"prompt": prompt_of(number)} for number in range(requests)]
    start_clock()
    made = generator(rows)
    return len(getattr(made, "dataset", made))


def distilabel(url: str, requests: int, concurrency: int) -> int:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    rows = [{"instruction": prompt_of(number)} for number in range(requests)]
    with Pipeline(name="bench", cache_dir=tempfile.mkdtemp(prefix="bench-distilabel-")) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=concurrency)
        generate = TextGeneration(
            llm=OpenAILLM(
                model="bench",
                base_url=url,
                api_key="no-key",
                generation_kwargs={"max_new_tokens": 512, "temperature": 1.0},
            ),
            system_prompt=SYSTEM,
            input_batch_size=concurrency,
        )
        load >> generate
    start_clock()
    made = pipeline.run(use_cache=False)
    return sum(bool(row["generation"]) for row in made["default"]["train"])


def data_designer(url: str, requests: int, concurrency: int) -> int:
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    folder = tempfile.mkdtemp(prefix="bench-designer-")
    os.environ["BENCH_KEY"] = "no-key"
    seeds = os.path.join(folder, "seeds.parquet")  # noqa: PTH118
    pd.DataFrame({"prompt": [prompt_of(n) for n in range(requests)]}).to_parquet(seeds)
    designer = DataDesigner(
        artifact_path=folder,
        model_providers=[
            dd.ModelProvider(
                name="bench", endpoint=url, provider_type="openai", api_key="BENCH_KEY"
            )
        ],
    )
    builder = dd.DataDesignerConfigBuilder(
        model_configs=[
            dd.ModelConfig(
                alias="bench",
                model="bench",
                provider="bench",
                skip_health_check=True,
                inference_parameters=dd.ChatCompletionInferenceParams(
                    temperature=1.0, max_tokens=512, max_parallel_requests=concurrency
                ),
            )
        ]
    )
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=seeds))
    builder.add_column(
        dd.LLMTextColumnConfig(
            name="text", prompt="{{ prompt }}", system_prompt=SYSTEM, model_alias="bench"
        )
    )
    start_clock()
    made = designer.create(builder, num_records=requests)
    return len(made.load_dataset())


PEERS: dict[str, Callable[[str, int, int], int]] = {
    "curator": curator,
    "distilabel": distilabel,
    "data_designer": data_designer,
}


def main() -> None:
    name, url, requests, concurrency = sys.argv[1:5]
    # Frameworks print; only the last line of standard output is ours.
    good = PEERS[name](url, int(requests), int(concurrency))
    seconds, cpu = time.perf_counter() - _clock[0], time.process_time() - _clock[1]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "client": name,
                "good": good,
                "seconds": seconds,
                "cpu": cpu + children.ru_utime + children.ru_stime,
                "peak_mb": (peak + children.ru_maxrss) / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
