"""What generation will cost and take, before a single call.

Calls come from the plan and the yield of the last generation, tokens from the ledger or a
tokenizer, money from the prices that hold, time from the pace at which the model answered before.
Every figure says where it comes from. Calls that the ledger holds cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import polars as pl

from synth_assets.assets.model import model_access
from synth_assets.assets.screening import judged_imports, references
from synth_assets.assets.stages import key
from synth_assets.counting import PromptSample, answer_tokens, counters
from synth_assets.errors import EndpointError
from synth_assets.generation import FIRST_YIELD, Channel, Dialect, outline, request_of
from synth_assets.lifecycle.expect import PLAN_COLUMNS, Expected, LastTime, expected, last_time
from synth_assets.lifecycle.imported import is_imported
from synth_assets.lifecycle.refill import remaining
from synth_assets.lifecycle.screen import accepted
from synth_assets.llm.answers import Tallies
from synth_assets.llm.budget import Prices
from synth_assets.llm.embedded.cores import usable_cores
from synth_assets.llm.embedded.models import PREFIX, resolve
from synth_assets.llm.estimate import Cores, Estimate, Work, estimate, forecast_error
from synth_assets.llm.ledger import sql as ledger_sql
from synth_assets.llm.ledger.history import pace, past_calls
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.tokens import LlamaTokens, TokenCounter
from synth_assets.spec.load import Dataset
from synth_assets.store.content import ContentStore
from synth_assets.store.io_manager import latest_version
from synth_assets.tasks import Task, task_for

if TYPE_CHECKING:
    from synth_assets.run import Session

__all__ = ["Forecast", "forecast", "forecast_error", "forecast_of", "last_generation", "spent_of"]

CHUNK: Final = 400
# A first call to an endpoint of unknown abilities, and what it takes at most.
_PROBE = Work((1,), 0, 60, 20)


@dataclass(frozen=True)
class Forecast:
    """An estimate and, per cell, rows wanted (but for those given), calls expected and allowed."""

    estimate: Estimate
    prices: Prices | None
    cells: list[tuple[str, int, int, int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.estimate.to_dict(),
            "rows": sum(wanted for _, wanted, _, _ in self.cells),
        }

    def sentence(self) -> str:
        """For a person: the figures, and how each was found."""
        found = self.estimate
        cost = f", {found.usd:.4f} USD" if found.usd is not None else ""
        figures = (
            f"expected: {found.calls} calls ({found.cached_calls} of them already in the ledger), "
            f"about {found.prompt_tokens:,} tokens read and {found.completion_tokens:,} written"
            f"{cost}, {_duration(found.seconds)}"
        )
        return "\n".join([figures, *(f"  {name}: {how}" for name, how in found.how.items())])


def forecast(session: Session) -> Forecast:
    """The forecast for the plan as it now stands (``plan`` must be materialised). Asks no model."""
    dataset, workbench = session.dataset, session.workbench
    if not dataset.spec.generates:
        return Forecast(Estimate(0, 0, 0, 0, 0.0, 0.0), None)
    store = ContentStore(workbench.home.store)

    def table(stage: str) -> pl.LazyFrame:
        version = latest_version(session.instance, key(dataset, stage))
        return store.scan(dataset.name, stage, version)

    plan = table("plan")
    given = _given(session, plan, table)
    with model_access(dataset, workbench) as access:
        return forecast_of(
            plan,
            dataset=dataset,
            dialect=access.presumed_dialect(),
            channel=access.channel(),
            human=table("human_train"),
            last=last_generation(plan, dataset, store, session.instance, given),
            cache=workbench.home.cache,
            given=given,
        )


def _given(
    session: Session, plan: pl.LazyFrame, table: Callable[[str], pl.LazyFrame]
) -> dict[str, int]:
    """Accepted imported rows per cell, if they have been read as they are now."""
    fresh = {status.stage for status in session.statuses() if status.status == "fresh"}
    if "imported" not in fresh:
        return {}
    sides = references(table("human_train").collect(), table("holdout").collect())
    rows = table("imported").collect()
    return accepted(judged_imports(session.dataset, rows, outline(plan), sides))


def forecast_of(
    plan: pl.DataFrame | pl.LazyFrame,
    *,
    dataset: Dataset,
    dialect: Dialect,
    channel: Channel,
    human: pl.DataFrame | pl.LazyFrame,
    last: LastTime | None,
    cache: Path,
    given: Mapping[str, int],
) -> Forecast:
    """The forecast of one generation, by the same rules as ``generate`` will run it.

    ``human``: the training rows; ``last``: see ``last_generation``; ``cache``: where a model file
    would be; ``given``: rows per cell that are there already. Asks no model; an embedded server
    that is not running is started for its tokenizer when the ledger cannot tell tokens, but no
    model is fetched.

    Raises:
        LedgerError: when the ledger cannot be read.
    """
    task, plan, endpoint = task_for(dataset.spec), plan.lazy(), channel.known
    slim = remaining(plan.select(PLAN_COLUMNS).collect(), given)
    calls = expected(slim, last, first_yield=FIRST_YIELD[dialect.style])
    sample, asked, cached = _read(plan, calls, dialect, endpoint.identity, task, channel.ledger)
    of_model = past_calls(channel.ledger, endpoint.identity, endpoint.model)
    mine = past_calls(channel.ledger, endpoint.identity, endpoint.model, dataset=channel.dataset)
    counting = counters(
        dialect,
        of_dataset=mine,
        of_model=of_model,
        tokenizer=_tokenizer(dataset, channel, cache, needed=sample.calls > 0),
    )
    prompt_tokens, read_by = sample.tokens(counting)
    written, written_by = answer_tokens(
        asked,
        human.lazy().select(task.payload).collect(),
        task=task,
        dialect=dialect,
        of_dataset=mine,
        counting=counting,
    )
    told = calls.how + (f"; {sum(given.values()):,} imported rows need none" if given else "")
    how = {"calls": told, "prompt_tokens": read_by, "completion_tokens": written_by}
    work = Work(calls.rounds, cached, prompt_tokens, written)
    if sample.calls and _is_probed(dataset, channel):
        work, how["calls"] = _with_probe(work), f"{told}, and one that tries the endpoint"
    model_name = dataset.spec.generation.model_name
    prices = channel.prices
    if prices is not None and channel.batches is not None:
        prices = prices.discounted(channel.batches.discount)
    return Forecast(
        estimate(
            work,
            limits=channel.limits,
            prices=prices,
            pace=pace(of_model),
            cores=_cores(model_name, cache),
            how=how,
        ),
        prices,
        list(_cells(slim, calls)),
    )


def last_generation(
    plan: pl.DataFrame | pl.LazyFrame,
    dataset: Dataset,
    store: ContentStore,
    instance: Any,
    given: Mapping[str, int],
) -> LastTime | None:
    """What the last generation of ``dataset`` made of its calls; None when there was none.

    What it had and what is now ``given`` counts as not wanted: with the same plan but other
    imported rows, other calls are to be expected.
    """
    found = []
    for stage in ("candidates", "synthetic", "rejects"):
        try:
            version = latest_version(instance, key(dataset, stage))
        except dg.Failure:
            return None
        if not store.path(dataset.name, stage, version).exists():
            return None
        found.append(store.scan(dataset.name, stage, version))
    candidates, synthetic, rejects = found
    before = synthetic.filter(is_imported()).group_by("cell").len().collect()
    return last_time(
        remaining(plan.lazy(), given),
        remaining(candidates, dict(before.iter_rows())),
        synthetic.filter(~is_imported()),
        rejects.filter(~is_imported()),
    )


def spent_of(tallies: Tallies, *, priced: bool) -> dict[str, float | None]:
    """What a generation took, under the names of ``forecast_error``."""
    return {
        "calls": tallies.bought + tallies.replayed,
        "prompt_tokens": tallies.prompt_tokens,
        "completion_tokens": tallies.completion_tokens,
        "usd": tallies.usd if priced else None,
        "seconds": tallies.seconds,
    }


def _read(
    plan: pl.LazyFrame,
    calls: Expected,
    dialect: Dialect,
    identity: str,
    task: Task,
    ledger: Ledger,
) -> tuple[PromptSample, Counter[int], int]:
    """The expected calls, a chunk at a time: prompts of those to ask, how many of them ask for how
    many rows, and how many calls the ledger holds."""
    sample, asked, cached = PromptSample(), Counter[int](), 0
    for chunk in _chunks(plan, calls.stops):
        calls_of = chunk.iter_rows(named=True)
        requests = [request_of(call, dialect, identity, task) for call in calls_of]
        held = _held(ledger, [request.request_id for request in requests])
        cached += sum(request.request_id in held for request in requests)
        for request, rows in zip(requests, chunk["rows"], strict=True):
            if request.request_id not in held:
                sample.add(request.body)
                asked[rows] += 1
    return sample, asked, cached


def _chunks(plan: pl.LazyFrame, stops: Mapping[str, int]) -> Iterator[pl.DataFrame]:
    """The first calls of each cell in the plan's order; prompts are never all in memory."""
    stop = pl.col("cell").replace_strict(dict(stops), default=0, return_dtype=pl.Int64)
    wanted = plan.filter(pl.col("ordinal") < stop).drop("seed_ids", "attributes")
    for batch in wanted.collect_batches(chunk_size=CHUNK, maintain_order=True):
        yield from batch.iter_slices(CHUNK)


def _held(ledger: Ledger, ids: list[str]) -> set[str]:
    return {name for (name,) in ledger.query(ledger_sql.select_answered(len(ids)), ids)}


def _tokenizer(
    dataset: Dataset, channel: Channel, cache: Path, *, needed: bool
) -> Callable[[], TokenCounter | None]:
    """The embedded model's own tokenizer, for which its server is started; None for others."""

    def tokenizer() -> TokenCounter | None:
        name = dataset.spec.generation.model_name
        if not needed or _file_mb(name, cache) is None:
            return None
        try:
            return LlamaTokens(channel.connect().base_url)
        except EndpointError:
            # Generation will say so; a forecast can do with less.
            return None

    return tokenizer


def _file_mb(model_name: str, cache: Path) -> float | None:
    """Size of an embedded model's file; None for other models, and for a file not fetched yet."""
    if not model_name.startswith(PREFIX):
        return None
    model = resolve(model_name)
    path = model.path or cache / "assembled" / model.sha256 / model.filename
    return path.stat().st_size / 1e6 if path.is_file() else None


def _cores(model_name: str, cache: Path) -> Cores | None:
    if not model_name.startswith(PREFIX):
        return None
    size = _file_mb(model_name, cache) or float(resolve(model_name).download_mb)
    return Cores(usable_cores(), size)


def _is_probed(dataset: Dataset, channel: Channel) -> bool:
    """Whether a first call will find out which structured output the endpoint has."""
    generate, endpoint = dataset.spec.generation, channel.known
    return (
        generate.style == "chat"
        and generate.output == "auto"
        and channel.ledger.capability(endpoint.identity, endpoint.model) is None
    )


def _with_probe(work: Work) -> Work:
    return Work(
        (*_PROBE.rounds, *work.rounds),
        work.cached_calls,
        work.prompt_tokens + _PROBE.prompt_tokens,
        work.completion_tokens + _PROBE.completion_tokens,
    )


def _cells(plan: pl.DataFrame, calls: Expected) -> Iterator[tuple[str, int, int, int]]:
    allowed = plan.group_by("cell").agg(pl.col("wanted").first(), pl.len().alias("allowed"))
    for cell, wanted, most in allowed.sort("cell").iter_rows():
        yield cell, wanted, calls.stops.get(cell, 0), most


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
