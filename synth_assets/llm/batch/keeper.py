"""Brings batches on: drops, recovers, submits, polls and collects them, whoever began them.

Every step is safe to be killed in and to be done again:

- nothing is sent before the batch and all its requests are in the ledger;
- a batch that may have been created is looked up by its token before it is created again;
- an answer is in the ledger before its request leaves the batch.

What is left: a process that is frozen in the middle of creating a batch, for longer than the lease
of its claims, and a provider whose list of batches does not show one that was just created.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from synth_assets.errors import EndpointError
from synth_assets.llm.answers import decoded
from synth_assets.llm.attempts import unusable
from synth_assets.llm.batch import book
from synth_assets.llm.batch.book import OpenBatch
from synth_assets.llm.batch.files import URLS, Result, read_results, request_of, write_lines
from synth_assets.llm.batch.provider import Provider, Refused
from synth_assets.llm.batch.room import prices_of, worst_case
from synth_assets.llm.budget import Cost
from synth_assets.llm.errors import ErrorKind, Failure, failure_of_status, not_an_answer, one_line
from synth_assets.llm.identity import Request
from synth_assets.llm.ledger.ledger import Ledger
from synth_assets.llm.ledger.rows import CallRow, FailureRow
from synth_assets.llm.outcomes import Bought, GaveUp, call_row, failure_row

if TYPE_CHECKING:
    from openai.types import Batch

log = logging.getLogger(__name__)

CHUNK: Final = 500
PREFIX: Final = "synth-batch-"
# Downloads of one file before what is missing in it counts as not there.
DOWNLOADS: Final = 3
ENDED: Final = frozenset({"completed", "expired", "cancelled", "failed"})
# The request was never carried out: nothing to keep about it.
_UNANSWERED: Final = frozenset({"batch_expired", "batch_cancelled"})


@dataclass
class Harvest:
    """What came of one batch.

    ``stored`` answers went into the ledger, at ``cost``; ``failed`` requests were refused for
    good; ``returned`` ones may be asked again; ``unread`` lines were broken; ``skipped`` ones were
    of no request that the batch still held (said twice, unknown, or stored before a kill).
    """

    status: str = ""
    stored: int = 0
    failed: int = 0
    returned: int = 0
    unread: int = 0
    skipped: int = 0
    cost: Cost = field(default_factory=Cost)
    last_failure: Failure | None = None

    def __str__(self) -> str:
        return (
            f"{self.status}: {self.stored} answers, {self.failed} refused, "
            f"{self.returned} to be asked again"
            + (f", {self.unread} broken lines" if self.unread else "")
            + (f", {self.skipped} lines skipped" if self.skipped else "")
        )


class Keeper:
    """Work on batches of one endpoint. ``harvested`` is told what each collected batch gave."""

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        *,
        window: str = "24h",
        harvested: Callable[[OpenBatch, Harvest], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._window = window
        self._harvested = harvested

    async def visit(self, token: str, *, submitting: bool) -> bool:
        """Does for a batch what can be done now; True when it is not open (any more).

        ``submitting``: may submit one that was left on the way to the provider. Raises
        EndpointError.
        """
        row = book.batch(self._ledger, token)
        if row is None or row.state not in book.OPEN:
            return True
        try:
            if row.state != book.SUBMITTED:
                async with book.locked(self._ledger, token) as mine:
                    return await self._recovered(token, submitting) if mine else False
            if row.batch_id is None:
                raise ValueError(f"batch {token} was submitted and has no id")
            found = await self._provider.retrieve(row.batch_id)
            if found.status not in ENDED:
                await self._note(row, found)
                return False
            async with book.locked(self._ledger, token) as mine:
                return await self._collected(token, found) if mine else False
        except Refused as refused:
            if refused.failure.status != 404:
                raise unusable(self._provider.endpoint, refused.failure) from None
            raise EndpointError(
                f"batch {row.batch_id}, or a file of it, is not there ({refused.failure.detail})",
                where=self._provider.endpoint.host,
                fix="use the key of the account that submitted it, or cancel the batch here: its "
                "requests may be asked again then",
            ) from None

    async def submit(self, row: OpenBatch) -> None:
        """Sends a batch that is in the ledger with all its requests; its lock must be held.

        Raises EndpointError; when the provider refused the batch for good, it holds nothing then.
        """
        mark = await book.change(self._ledger, row.token, state=book.SUBMITTING, detail="")
        with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"{row.token}.jsonl"
            texts = book.all_texts(self._ledger, row.token)
            await asyncio.to_thread(write_lines, texts, path)
            try:
                file_id = await self._provider.upload(path)
                current = book.batch(self._ledger, row.token)
                if current is None or current.updated_at != mark:
                    # We were frozen for so long that another process took over.
                    return
                made = await self._provider.create(
                    row.token,
                    file_id=file_id,
                    url=URLS[row.kind],
                    window=self._window,
                    since=row.created_at,
                )
            except Refused as refused:
                await book.close(self._ledger, row.token, book.FAILED, refused.failure.detail)
                raise self._provider.refusal(refused) from None
        await self._submitted(row.token, made)

    # -- steps -------------------------------------------------------------------------------

    async def _recovered(self, token: str, submitting: bool) -> bool:
        """A batch whose process is gone, with its lock held; True when it is dropped."""
        row = book.batch(self._ledger, token)
        if row is None:
            return True
        if row.state == book.PREPARING:
            await book.drop(self._ledger, token)
            return True
        if row.state == book.SUBMITTING:
            found = await self._provider.find(token, since=row.created_at)
            if found is not None:
                await self._submitted(token, found)
            elif submitting:
                await self.submit(row)
        return False

    async def _submitted(self, token: str, found: Batch) -> None:
        await book.change(
            self._ledger,
            token,
            state=book.SUBMITTING,
            to=book.SUBMITTED,
            batch_id=found.id,
            input_file_id=found.input_file_id,
            detail=_shown(found),
        )

    async def _note(self, row: OpenBatch, found: Batch) -> None:
        if row.detail != (detail := _shown(found)):
            await book.change(self._ledger, row.token, state=book.SUBMITTED, detail=detail)

    async def _collected(self, token: str, found: Batch) -> bool:
        """Everything of an ended batch into the ledger, with its lock held."""
        row = book.batch(self._ledger, token)
        if row is None or row.state != book.SUBMITTED:
            return True
        harvest = Harvest(found.status)
        if found.status == "failed" and not found.output_file_id:
            await book.close(self._ledger, token, book.FAILED, _problems(found))
        else:
            await self._fetched(row, found, harvest)
            harvest.returned += await asyncio.to_thread(book.held, self._ledger, token)
            state = book.CANCELLED if found.status == "cancelled" else book.COLLECTED
            await book.close(self._ledger, token, state, str(harvest))
        log.info("batch %s: %s", found.id, harvest)
        if self._harvested is not None:
            self._harvested(row, harvest)
        return True

    async def _fetched(self, row: OpenBatch, found: Batch, harvest: Harvest) -> None:
        """Both result files; again when less is in them than the provider counted."""
        counts = found.request_counts
        promised = counts.completed if counts is not None else 0
        with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "results.jsonl"
            for number in range(DOWNLOADS):
                if number:
                    harvest.unread = harvest.skipped = 0
                # The output first: a good answer counts, whatever else is said of its request.
                good = 0
                for file_id in (found.output_file_id, found.error_file_id):
                    if file_id:
                        await self._provider.download(file_id, path)
                        good += await self._read(row, path, harvest)
                if good >= promised:
                    break

    async def _read(self, row: OpenBatch, path: Path, harvest: Harvest) -> int:
        """Stores the results of a file; how many good lines it has."""
        good = 0
        results = read_results(path)
        while chunk := await asyncio.to_thread(list, islice(results, CHUNK)):
            read = [result for result in chunk if result is not None]
            harvest.unread += len(chunk) - len(read)
            good += sum(result.status is not None and result.status < 300 for result in read)
            await self._store(row, read, harvest)
        return good

    async def _store(self, row: OpenBatch, results: Sequence[Result], harvest: Harvest) -> None:
        names = list(dict.fromkeys(result.custom_id for result in results))
        texts = await asyncio.to_thread(book.texts, self._ledger, row.token, names)
        calls: list[CallRow] = []
        costs: list[Cost] = []
        failures: list[FailureRow] = []
        done: list[str] = []
        for result in results:
            text = texts.pop(result.custom_id, None)
            if text is None:
                harvest.skipped += 1
                continue
            done.append(result.custom_id)
            request = request_of(text)
            outcome = self._outcome(row, request, result)
            if isinstance(outcome, Bought):
                call = call_row(request, outcome, dataset=row.dataset, prices=prices_of(row.prices))
                calls.append(replace(call, prices=row.prices))
                costs.append(_cost(call, request, row))
            else:
                harvest.last_failure = outcome
                harvest.returned += outcome.kind is not ErrorKind.PERMANENT
                if outcome.code not in _UNANSWERED:
                    gave_up = GaveUp(outcome, 1, row.created_at)
                    failures.append(failure_row(request, gave_up, dataset=row.dataset))
        kept = await asyncio.gather(*(self._ledger.put(call) for call in calls))
        await asyncio.gather(*(self._ledger.put_failure(failure) for failure in failures))
        # Only now: a kill in between leaves requests that are answered and held, which is seen.
        await book.let_go(self._ledger, row.token, done)
        harvest.stored += sum(kept)
        # What was there before was paid for and counted before.
        harvest.cost = sum((c for c, new in zip(costs, kept, strict=True) if new), harvest.cost)
        harvest.failed += sum(failure.kind == ErrorKind.PERMANENT for failure in failures)

    def _outcome(self, row: OpenBatch, request: Request, result: Result) -> Bought | Failure:
        body = self._provider.endpoint.scrubbed_bytes(result.body)
        if result.status is None:
            detail = one_line(f"{result.code}: {result.message}")
            return Failure(ErrorKind.TRANSIENT, detail, code=result.code)
        if not 200 <= result.status < 300:
            return failure_of_status(result.status, {}, body, now_s=time.time())
        parts = decoded(request.kind, body, request.body)
        if parts is None:
            return not_an_answer(body)
        return Bought(body, parts, result.status, 1, row.created_at, 0.0)


def _cost(call: CallRow, request: Request, row: OpenBatch) -> Cost:
    """What a stored answer cost; the worst case where the provider did not say."""
    if call.prompt_tokens is not None and call.completion_tokens is not None:
        return Cost(1, call.prompt_tokens + call.completion_tokens, call.cost_usd or 0.0)
    worst = worst_case(request.body, len(request.payload()), prices_of(row.prices))
    return worst or Cost(calls=1)


def _shown(found: Batch) -> str:
    counts = found.request_counts
    done = f" {counts.completed + counts.failed}/{counts.total}" if counts is not None else ""
    return f"{found.status}{done}"


def _problems(found: Batch) -> str:
    """What the provider said about a batch that it refused, on one line."""
    problems = (found.errors.data if found.errors else None) or []
    said = [
        f"{problem.code or 'error'}: {problem.message or ''}"
        + (f" (line {problem.line})" if problem.line is not None else "")
        for problem in problems[:3]
    ]
    return one_line("; ".join(said) or "the batch failed; the provider does not say why")
