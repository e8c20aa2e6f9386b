"""The model a dataset declares, ready to be asked: endpoint, ledger, limits."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from pydantic import SecretStr

from synth_assets.assets.workbench import Notify, Workbench
from synth_assets.errors import EndpointError
from synth_assets.generation import Channel, Dialect
from synth_assets.llm.allowance import allowance
from synth_assets.llm.answers import Tallies
from synth_assets.llm.batch.batch import BatchSettings
from synth_assets.llm.budget import Budget, Caps, Prices
from synth_assets.llm.embedded.models import PREFIX, model_identity, resolve
from synth_assets.llm.embedded.server import serve
from synth_assets.llm.endpoint import NO_KEY, Endpoint
from synth_assets.llm.formats import MODES, OutputMode, output_mode
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.location import ledger_location
from synth_assets.llm.prices import prices_of, require_prices
from synth_assets.llm.scheduler import Limits
from synth_assets.spec.load import Dataset

T = TypeVar("T")
MOST_POLL_S = 120.0
# Where the embedded server will listen is known once it runs; until then nothing is asked there.
NOT_YET = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class ModelAccess:
    """The declared model: who it is, how to reach it, what it may cost."""

    dataset: Dataset
    known: Endpoint
    connect: Callable[[], Endpoint]
    ledger: Ledger
    limits: Limits
    prices: Prices | None
    notify: Notify

    async def with_channel(self, use: Callable[[Dialect, Channel], Awaitable[T]]) -> T:
        """Call ``use`` with the way to write requests and a channel to ask them.

        Holds the dataset's budget, if it has one, until ``use`` is done.
        """
        generate = self.dataset.spec.generation
        tallies = Tallies()
        spending = allowance(
            self._caps(),
            prices=self.prices,
            ledger=self.ledger,
            dataset=self.dataset.name,
            on_wait=self.notify,
            but_open_batches=generate.mode == "batch",
        )
        async with spending as budget:
            mode: OutputMode = "list"
            if generate.style == "chat":
                mode = await output_mode(
                    endpoint=self.known,
                    connect=self.connect,
                    ledger=self.ledger,
                    wanted=generate.output,
                    sampling=generate.sampling(),
                    limits=self.limits,
                    dataset=self.dataset.name,
                    prices=self.prices,
                    budget=budget,
                    tallies=tallies,
                )
            return await use(self._dialect(mode), self.channel(budget=budget, tallies=tallies))

    def channel(self, *, budget: Budget | None = None, tallies: Tallies | None = None) -> Channel:
        """The way to the model; without a budget, it is not to be asked."""
        return Channel(
            known=self.known,
            connect=self.connect,
            ledger=self.ledger,
            limits=self.limits,
            prices=self.prices,
            dataset=self.dataset.name,
            budget=budget,
            batches=self._batches(),
            tallies=tallies or Tallies(),
        )

    def presumed_dialect(self) -> Dialect:
        """The way to write requests as far as it is known without asking.

        An endpoint that was never tried is taken to have structured output.
        """
        generate = self.dataset.spec.generation
        mode: OutputMode = "list"
        if generate.style == "chat":
            remembered = self.ledger.capability(self.known.identity, self.known.model)
            named = remembered if generate.output == "auto" else generate.output
            mode = next((known for known in MODES if known == named), "json_schema")
        return self._dialect(mode)

    def _dialect(self, mode: OutputMode) -> Dialect:
        generate = self.dataset.spec.generation
        return Dialect(
            model=self.known.model,
            style=generate.style,
            output=mode,
            sampling=generate.sampling(),
            seed=self.dataset.spec.random_seed,
        )

    def _caps(self) -> Caps | None:
        declared = self.dataset.spec.generation.budget
        if declared is None:
            return None
        if declared.usd is not None:
            require_prices(self.prices, model=self.known.model)
        return Caps(declared.usd, declared.tokens, declared.calls)

    def _batches(self) -> BatchSettings | None:
        generate = self.dataset.spec.generation
        if generate.mode != "batch":
            return None
        declared = generate.batches
        return BatchSettings(
            wait_s=declared.wait_s,
            poll_s=(declared.poll_s, MOST_POLL_S),
            max_requests=declared.max_requests,
            discount=declared.discount,
        )


@contextmanager
def model_access(dataset: Dataset, workbench: Workbench) -> Iterator[ModelAccess]:
    """Opens the ledger; ends the embedded server, if one was started, with the block.

    Raises:
        EndpointError: no address, no key, no such embedded model.
        LedgerError: the ledger cannot be opened.
    """
    generate = dataset.spec.generation
    limits = Limits(
        concurrency=workbench.concurrency or generate.concurrency,
        requests_per_min=generate.requests_per_min,
        tokens_per_min=generate.tokens_per_min,
        timeout_s=generate.timeout_s,
    )
    with ExitStack() as stack:
        if generate.model_name.startswith(PREFIX):
            known, connect = _embedded(dataset, workbench, stack)
        else:
            known = _outside(dataset)
            connect = partial(_itself, known)
        ledger = stack.enter_context(Ledger.open(ledger_location(workbench.home.ledger)))
        prices = _prices(dataset, known)
        yield ModelAccess(dataset, known, connect, ledger, limits, prices, workbench.notify)


def _itself(endpoint: Endpoint) -> Endpoint:
    return endpoint


def _prices(dataset: Dataset, endpoint: Endpoint) -> Prices | None:
    """As declared, else as known for the model at its provider."""
    generate = dataset.spec.generation
    declared = generate.prices
    return prices_of(
        Prices(declared.input_per_million, declared.output_per_million) if declared else None,
        address=endpoint.base_url,
        model=endpoint.model,
        embedded=generate.model_name.startswith(PREFIX),
        at=datetime.now(UTC),
    )


def _outside(dataset: Dataset) -> Endpoint:
    generate = dataset.spec.generation
    declared = generate.endpoint
    environ = dict(os.environ)
    if declared.base_url:
        environ[declared.base_url_env] = declared.base_url
    return Endpoint.from_env(
        model=generate.model_name,
        base_url_env=declared.base_url_env,
        api_key_env=declared.api_key_env,
        identity=declared.name or "",
        environ=environ,
    )


def _embedded(
    dataset: Dataset, workbench: Workbench, stack: ExitStack
) -> tuple[Endpoint, Callable[[], Endpoint]]:
    generate = dataset.spec.generation
    model = resolve(generate.model_name)
    if model.style == "continue" and generate.style == "chat":
        raise EndpointError(
            f"{generate.model_name} is a base model: it continues a text, it does not chat",
            where=f"{dataset.file}: generate.style",
            fix="style: continue, with a prompt that ends in an open list",
        )
    known = Endpoint(
        base_url=NOT_YET,
        model=model.name,
        api_key=SecretStr(NO_KEY),
        identity=model_identity(model),
    )
    running: list[Endpoint] = []

    def connect() -> Endpoint:
        if not running:
            server = stack.enter_context(
                serve(
                    model,
                    cache_dir=workbench.home.cache,
                    log_path=workbench.home.logs / "embedded.log",
                    notify=workbench.notify,
                )
            )
            running.append(replace(known, base_url=server.base_url))
        return running[0]

    return known, connect
