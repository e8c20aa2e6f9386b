"""One request until it has an answer or a final failure: retries, waits, and giving up early."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from synth_assets.errors import EndpointError, shown
from synth_assets.llm.answers import Decoded, Tallies, decoded
from synth_assets.llm.budget import Budget, Cost, Reservation, completion_limit
from synth_assets.llm.client import Client
from synth_assets.llm.endpoint import Endpoint
from synth_assets.llm.errors import CallFailed, ErrorKind, Failure, not_an_answer
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import UnseenRow
from synth_assets.llm.outcomes import Bought, GaveUp
from synth_assets.llm.scheduler import Gate, Limits, Pacer, backoff_s

log = logging.getLogger(__name__)

# How many alike failures in a row, without a success between, speak for the whole endpoint.
HANDFUL: Final = 5
# Tries and seconds before an address that never answered counts as unreachable.
FIRST_TRIES: Final = 3
FIRST_TRIES_S: Final = 4.0
MALFORMED_TRIES: Final = 3
_FIRST_WAIT_S: Final = 0.3
_BYTES_PER_TOKEN: Final = 3
_TOKENS_EXPECTED: Final = 256


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth showing while a run goes on.

    ``name``: bought, replayed, failed, retry, throttled, waiting (for another process), stopping.
    """

    name: str
    request_id: str
    detail: str
    tallies: Tallies


class Breaker:
    """Notices when every call fails alike, so that a run ends after a handful instead of all."""

    def __init__(self) -> None:
        self.reached = False
        self.succeeded = False
        self.last: Failure | None = None
        self._alike = 0

    def success(self) -> None:
        self.succeeded = True
        self._alike = 0

    def hopeless(self, failure: Failure) -> bool:
        """Counts a final failure; True when the rest would fail in the same way."""
        if self.last is not None and self.last.signature != failure.signature:
            self._alike = 0
        self.last = failure
        self._alike += 1
        if failure.kind is ErrorKind.PERMANENT and self.succeeded and not failure.whole_endpoint:
            return False
        certain = failure.code == "tls" or (failure.status == 401 and not self.succeeded)
        return certain or self._alike >= HANDFUL

    def nothing_worked(self) -> bool:
        """At the end of a short run: no success, and the endpoint itself was the reason."""
        last = self.last
        return (
            not self.succeeded
            and last is not None
            and (last.whole_endpoint or last.code == "unreachable")
        )


class Attempts:
    """Asks requests of one endpoint under shared limits. One per run, in one event loop."""

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        ledger: Ledger,
        dataset: str,
        limits: Limits,
        budget: Budget | None,
        tallies: Tallies,
        notify: Callable[[str, Request, str], None],
    ) -> None:
        self.gate = Gate(limits.concurrency)
        self.breaker = Breaker()
        self.in_flight: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._client: Client | None = None
        self._endpoint = endpoint
        self._ledger = ledger
        self._dataset = dataset
        self._limits = limits
        self._budget = budget
        self._tallies = tallies
        self._notify = notify
        self._requests = Pacer(limits.requests_per_min)
        self._tokens = Pacer(limits.tokens_per_min)
        self._began = time.monotonic()
        self._last_success = self._began
        # Jitter only: no answer depends on it.
        self._rng = random.Random()  # noqa: S311

    def use(self, client: Client, endpoint: Endpoint) -> None:
        """Asks there from now on; before, nothing can be asked."""
        self._client, self._endpoint = client, endpoint

    @property
    def most_open(self) -> int:
        """How many requests may be under way, those that wait for a retry included.

        Until a first success no more than a window: if every call fails, few have been made.
        """
        window = int(self.gate.limit)
        return 2 * window if self.breaker.succeeded else window

    async def reserved(self, request: Request, payload: bytes) -> Reservation | None:
        """Room in the budget for one attempt; None when the budget is reached."""
        if self._budget is None:
            return Reservation(Cost())
        return await self._budget.reserve(self._budget.worst_case(request.body, payload))

    async def admitted(self, request: Request, payload: bytes) -> Reservation | None:
        """Room in the budget and a place among the calls; None when the budget is reached."""
        reservation = await self.reserved(request, payload)
        if reservation is None:
            return None
        try:
            await self.gate.enter()
        except asyncio.CancelledError:
            if self._budget is not None:
                self._budget.refund(reservation)
            raise
        return reservation

    async def asked(
        self, request: Request, payload: bytes, reservation: Reservation
    ) -> Bought | GaveUp:
        """Enter with a place in the gate and a reservation; both are given back.

        Ends when the request is answered or given up. Raises EndpointError when no request can
        succeed; CancelledError on a stop.
        """
        began = time.time()
        attempts = failures = throttles = malformed = 0
        inside = True
        try:
            while True:
                attempts += 1
                self._mark(request, reservation)
                outcome = await self._attempt(request, payload)
                self.gate.leave()
                inside = False
                if isinstance(outcome, Bought):
                    self._settle(reservation, outcome.parts)
                    return replace(outcome, attempts=attempts, started_at=began)
                await self._book(request, reservation, outcome)
                throttled = outcome.kind is ErrorKind.THROTTLED
                throttles += throttled
                failures += not throttled
                malformed += outcome.kind is ErrorKind.MALFORMED
                given_up = malformed >= MALFORMED_TRIES
                wait = self._wait_s(
                    outcome, failures=failures, throttles=throttles, given_up=given_up
                )
                if wait is None or self.stopping:
                    if self.stopping and outcome.kind is not ErrorKind.PERMANENT:
                        raise asyncio.CancelledError
                    return GaveUp(outcome, attempts, began)
                self._report(request, outcome)
                await asyncio.sleep(wait)
                renewed = reservation if reservation.open else await self.reserved(request, payload)
                if renewed is None:
                    gone = replace(outcome, kind=ErrorKind.BUDGET, detail="the budget is reached")
                    return GaveUp(gone, attempts, began)
                reservation = renewed
                await self.gate.enter()
                inside = True
        finally:
            if inside:
                self.gate.leave()
            if self._budget is not None and reservation.open:
                # Cancelled: in the middle of a call it may be billed, between calls it is not.
                if inside:
                    await self._spent_unseen(request, reservation, "stopped")
                else:
                    self._budget.refund(reservation)

    async def _attempt(self, request: Request, payload: bytes) -> Bought | Failure:
        client = self._client
        if client is None:
            raise RuntimeError("asked before there is a client")
        expected = self._expected_tokens(request, payload)
        await self._requests.enter()
        await self._tokens.enter(expected)
        # A Retry-After may have come while we queued for our moment.
        await self.gate.wait_out_pause()
        self._tallies.calls += 1
        task = asyncio.current_task()
        if task is not None:
            self.in_flight.add(task)
        try:
            reply = await client.call(request.kind, payload)
        except CallFailed as failed:
            self._left_flight(task)
            if failed.failure.status is not None:
                self.breaker.reached = True
            return self._scrubbed(failed.failure)
        self.breaker.reached = True
        body = self._endpoint.scrubbed_bytes(reply.body)
        parts = decoded(request.kind, body, request.body)
        if parts is None:
            self._left_flight(task)
            return not_an_answer(body)
        self.gate.succeeded()
        self._last_success = time.monotonic()
        self.breaker.success()
        if parts.prompt_tokens is not None and parts.completion_tokens is not None:
            self._tokens.settle(parts.prompt_tokens + parts.completion_tokens - expected)
        return Bought(body, parts, reply.status, 0, 0.0, reply.latency_ms)

    def _left_flight(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self.in_flight.discard(task)

    def _wait_s(
        self, failure: Failure, *, failures: int, throttles: int, given_up: bool
    ) -> float | None:
        """Seconds until the next attempt; None to give up. Raises EndpointError."""
        if failure.congested:
            self.gate.congested()
        asked = failure.retry_after_s
        patience = self._limits.patience_s
        now = time.monotonic()
        most = 1 if failure.kind is ErrorKind.PERMANENT else self._limits.max_attempts
        if (asked or 0.0) > patience or now - self._last_success > patience:
            raise unusable(self._endpoint, failure, why="did not answer for too long")
        if failure.unreached and not self.breaker.reached:
            if failures >= FIRST_TRIES or now - self._began > FIRST_TRIES_S:
                raise unusable(self._endpoint, failure)
            return _FIRST_WAIT_S * failures
        if asked is not None and failure.congested:
            self.gate.pause_until(now + asked)
        if failure.kind is ErrorKind.THROTTLED:
            return asked if asked is not None else backoff_s(throttles, rng=self._rng)
        if failures >= most or given_up:
            if self.breaker.hopeless(failure):
                raise unusable(self._endpoint, failure)
            return None
        return max(asked or 0.0, backoff_s(failures, rng=self._rng))

    def _settle(self, reservation: Reservation, parts: Decoded) -> None:
        if self._budget is None:
            return
        prompt, completion = parts.prompt_tokens, parts.completion_tokens
        if prompt is None or completion is None:
            self._budget.settle(reservation, None)
            return
        prices = self._budget.prices
        usd = prices.cost(prompt, completion) if prices else 0.0
        self._budget.settle(reservation, Cost(1, prompt + completion, usd))

    def _mark(self, request: Request, reservation: Reservation) -> None:
        """Under a budget a kill must not hide a call: what it may cost is known before it goes."""
        if self._budget is not None:
            worst = reservation.worst
            self._ledger.mark_asked(
                request.request_id, dataset=self._dataset, tokens=worst.tokens, usd=worst.usd
            )

    async def _book(self, request: Request, reservation: Reservation, failure: Failure) -> None:
        """A failed attempt that may have been billed stays spent; its retry reserves anew."""
        if self._budget is not None and failure.may_be_billed:
            await self._spent_unseen(request, reservation, failure.code or failure.kind.value)

    async def _spent_unseen(self, request: Request, reservation: Reservation, reason: str) -> None:
        """Nobody saw an answer, somebody may be billed: spent in full, in later runs as well."""
        if self._budget is None:
            return
        self._budget.settle(reservation, None)
        worst = reservation.worst
        await self._ledger.put_unseen(
            UnseenRow(request.request_id, self._dataset, worst.tokens, worst.usd, reason)
        )

    def _report(self, request: Request, failure: Failure) -> None:
        if failure.kind is ErrorKind.THROTTLED:
            self._tallies.throttled += 1
            self._notify("throttled", request, failure.detail)
        else:
            self._tallies.retried += 1
            self._notify("retry", request, failure.detail)

    def _expected_tokens(self, request: Request, payload: bytes) -> float:
        if self._limits.tokens_per_min is None:
            return 0.0
        most = completion_limit(request.body)
        return len(payload) / _BYTES_PER_TOKEN + (_TOKENS_EXPECTED if most is None else most)

    def _scrubbed(self, failure: Failure) -> Failure:
        """A server may echo the key into its error."""
        return replace(
            failure,
            detail=self._endpoint.scrubbed(failure.detail),
            body=self._endpoint.scrubbed_bytes(failure.body),
        )


def unusable(endpoint: Endpoint, failure: Failure, *, why: str = "") -> EndpointError:
    """The one error of an endpoint that cannot answer: where, what, and what to do."""
    key, url = endpoint.api_key_env, endpoint.base_url_env
    where = f"model {shown(endpoint.model)} at {endpoint.host}"
    problem, fix = {
        401: ("the key was not accepted", f"set {key} to a valid key of this endpoint"),
        403: ("the key may not use it", f"use a key ({key}) with access to the model"),
        404: (
            "the address or the model is unknown there",
            f"check the model's name, and that {url} ends in the path of the API, mostly /v1",
        ),
    }.get(failure.status or 0, ("every call fails in the same way", "see the server's message"))
    if failure.unreached and failure.code != "tls":
        problem = "no server answers"
        fix = f"start the server, or set {url} to the address of one that runs"
    elif failure.kind is ErrorKind.MALFORMED:
        problem = "what answers there does not speak the OpenAI protocol"
        fix = f"check that {url} ends in the path of the API, mostly /v1"
    elif failure.kind is ErrorKind.PERMANENT and failure.status == 429:
        problem = "the quota of the account is used up"
        fix = "top it up and run again: answers already paid for are not asked again"
    elif failure.kind in (ErrorKind.TRANSIENT, ErrorKind.THROTTLED):
        problem = f"the endpoint {why or 'stopped answering'}"
        fix = "run again later: answers already paid for are not asked again"
    return EndpointError(f"{problem} ({failure.detail})", where=where, fix=fix)
