"""The model a dataset declares, ready to be asked: endpoint, ledger, limits."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import SecretStr

from synth_assets.assets.workbench import Workbench
from synth_assets.errors import EndpointError
from synth_assets.generation import Channel, Dialect
from synth_assets.llm.budget import Prices
from synth_assets.llm.embedded import serve
from synth_assets.llm.embedded_models import PREFIX, EmbeddedModel, model_identity, resolve
from synth_assets.llm.endpoint import NO_KEY, Endpoint
from synth_assets.llm.formats import OutputMode, output_mode
from synth_assets.llm.ledger import Ledger
from synth_assets.llm.scheduler import Limits
from synth_assets.spec.load import Dataset

T = TypeVar("T")
# Where the embedded server will listen is known once it runs; until then nothing is asked there.
NOT_YET = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class ModelAccess:
    """A channel to the declared model, and the way to write requests to it."""

    dataset: Dataset
    channel: Channel

    async def with_dialect(
        self, use: Callable[[Dialect], Awaitable[T]], *, may_ask: bool = True
    ) -> T:
        """Call ``use`` with the way to write requests, once the endpoint's abilities are known.

        Without ``may_ask`` an endpoint that was never tried is taken to have structured output.
        """
        generate = self.dataset.spec.generate
        mode: OutputMode = "list"
        if generate.style == "chat":
            mode = await self._output_mode(may_ask)
        return await use(
            Dialect(
                model=self.channel.endpoint(False).model,
                style=generate.style,
                output=mode,
                sampling=generate.sampling(),
                seed=self.dataset.spec.random_seed,
            )
        )

    async def _output_mode(self, may_ask: bool) -> OutputMode:
        generate, channel = self.dataset.spec.generate, self.channel
        known = channel.endpoint(False)
        if generate.output != "auto":
            return generate.output
        remembered = channel.ledger.capability(known.identity, known.model)
        if remembered is None and not may_ask:
            return "json_schema"
        return await output_mode(
            endpoint=known if remembered else channel.endpoint(True),
            ledger=channel.ledger,
            sampling=generate.sampling(),
            limits=channel.limits,
            dataset=channel.dataset,
            prices=channel.prices,
            tallies=channel.tallies,
        )


@contextmanager
def model_access(dataset: Dataset, workbench: Workbench) -> Iterator[ModelAccess]:
    """Opens the ledger; ends the embedded server, if one was started, with the block.

    Raises:
        EndpointError: no address, no key, no such embedded model.
    """
    generate = dataset.spec.generate
    limits = Limits(
        concurrency=workbench.concurrency or generate.concurrency,
        requests_per_min=generate.requests_per_min,
        tokens_per_min=generate.tokens_per_min,
        timeout_s=generate.timeout_s,
    )
    declared = generate.prices
    prices = Prices(declared.input_per_million, declared.output_per_million) if declared else None
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(workbench.home.ledger))
        if generate.model_name.startswith(PREFIX):
            model = resolve(generate.model_name)
            if model.style == "continue" and generate.style == "chat":
                raise EndpointError(
                    f"{generate.model_name} is a base model: it continues a text, it does not chat",
                    where=f"{dataset.file}: generate.style",
                    fix="style: continue, with a prompt that ends in an open list",
                )
            endpoint = _embedded(model, workbench, stack)
        else:
            outside = _outside(dataset)

            def endpoint(_: bool) -> Endpoint:
                return outside

        channel = Channel(endpoint, ledger, limits, prices, dataset.name)
        yield ModelAccess(dataset, channel)


def _outside(dataset: Dataset) -> Endpoint:
    generate = dataset.spec.generate
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
    model: EmbeddedModel, workbench: Workbench, stack: ExitStack
) -> Callable[[bool], Endpoint]:
    known = Endpoint(
        base_url=NOT_YET,
        model=model.name,
        api_key=SecretStr(NO_KEY),
        identity=model_identity(model),
    )
    running: list[Endpoint] = []

    def endpoint(needed: bool) -> Endpoint:
        if running:
            return running[0]
        if not needed:
            return known
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

    return endpoint
