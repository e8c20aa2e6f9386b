"""What every database behind the ledger does alike: one transaction per batch, claims, reading.

A backend brings its connections, its ``Transaction`` and what it does about damage or a lost
server. The statements (``sql``) and their order are here and are the same for all, and so
is what they promise: transactions that write follow each other, never overlap, and are on the
disk when ``write`` returns.
"""

# ruff: noqa: S608 - what is formatted in are our own names; values are always parameters
from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from synth_assets.llm.ledger import sql
from synth_assets.llm.ledger.owners import is_gone
from synth_assets.llm.ledger.rows import (
    Batch,
    CallRow,
    Claims,
    Committed,
    FailureRow,
    LedgerError,
    Owner,
    Spent,
    StoredAnswer,
    Written,
    storable,
)

log = logging.getLogger(__name__)

_NO_CLAIMS = Claims(frozenset(), frozenset(), frozenset())


class Transaction(ABC):
    """Statements with ``?`` marks, seen by others all at once or never."""

    @abstractmethod
    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a reading statement finds; it sees what was run before it."""

    @abstractmethod
    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None: ...

    @abstractmethod
    def run_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None: ...

    @abstractmethod
    def changed(self, statement: str, rows: Sequence[Sequence[Any]]) -> list[bool]:
        """Runs a statement per row; for each, whether it changed anything."""

    @property
    @abstractmethod
    def now(self) -> float:
        """Unix seconds, by the clock that all who share this database share."""


class Backend(ABC):
    """A database that keeps a ledger; synchronous; for any thread; raises LedgerError only.

    ``place`` says where it is, fit to be shown: no password.
    """

    def __init__(self, place: str, *, lease_s: float) -> None:
        self.place = place
        self._lease_s = lease_s

    # -- each database's own ---------------------------------------------------------------------

    @abstractmethod
    def write(self, batch: Batch) -> Written:
        """One transaction, durable on return; written once even if the connection was lost."""

    @abstractmethod
    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement."""

    @abstractmethod
    def leave(self, owner: Owner) -> None:
        """Gives back whatever a living owner still claims; never raises."""

    @abstractmethod
    def size_bytes(self) -> int:
        """What the ledger takes on its disk."""

    def shrink(self) -> str:
        """Gives space of deleted rows back, as far as others are not held up; says what it did."""
        return "the database uses the space again by itself"

    @abstractmethod
    def scrub(self) -> None:
        """Leaves no byte of deleted rows in the ledger's own files. Raises LedgerError."""

    @abstractmethod
    def close(self) -> None: ...

    # -- reading ---------------------------------------------------------------------------------

    def answers(self, ids: Sequence[str]) -> dict[str, StoredAnswer]:
        """The stored answers among ``ids``; damaged ones are left out with a warning."""
        found: dict[str, StoredAnswer] = {}
        for chunk in sql.chunks(ids):
            for row in self._readable(chunk):
                answer = StoredAnswer._make(row)
                if answer.intact:
                    found[answer.request_id] = answer
                else:
                    log.warning("ledger: damaged answer of %s skipped", answer.request_id)
        return found

    def call(self, request_id: str) -> CallRow | None:
        query = f"SELECT {sql.CALL_COLUMNS} FROM calls WHERE request_id = ?"
        rows = self.query(query, (request_id,))
        return CallRow(*sql.with_request_bytes(rows[0])) if rows else None

    def failures(self, request_id: str | None = None) -> list[FailureRow]:
        where = " WHERE request_id = ?" if request_id else ""
        query = f"SELECT {sql.FAILURE_COLUMNS} FROM failures{where} ORDER BY started_at"
        rows = self.query(query, (request_id,) if request_id else ())
        return [FailureRow(*sql.with_request_bytes(row)) for row in rows]

    def spent(self, dataset: str | None = None) -> Spent:
        if dataset is None:
            return Spent(*self.query(sql.SPENT.format(where=""))[0])
        statement = sql.SPENT.format(where=" WHERE dataset = ?")
        return Spent(*self.query(statement, (storable(dataset),) * 2)[0])

    def committed(self, dataset: str) -> Committed:
        """Counts what owners that are gone had on its way, too."""
        self.sweep()
        return Committed(*self.query(sql.COMMITTED, (storable(dataset),) * 4)[0])

    def sweep(self) -> None:
        """Takes the claims from owners that are gone; writes only when there are any."""
        now = self._now()
        owners = self.query(sql.OWNERS)
        if any(self._is_gone(Owner(*who), beat, now=now) for *who, beat in owners):
            self.write(Batch(sweep=True))

    def capability(self, endpoint: str, model: str) -> str | None:
        query = "SELECT mode FROM capabilities WHERE endpoint = ? AND model = ?"
        rows = self.query(query, (storable(endpoint), storable(model)))
        return str(rows[0][0]) if rows else None

    def version(self) -> int:
        return int(self.query("SELECT max(version) FROM schema_version")[0][0])

    def _readable(self, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        names = sql.filled(ids)
        return self.query(sql.select_answers(len(names)), names)

    @abstractmethod
    def _now(self) -> float:
        """As ``Transaction.now``, outside one."""

    # -- inside a transaction --------------------------------------------------------------------

    def _migrate(self, transaction: Transaction, *, version: int) -> None:
        """From ``version`` (0: no tables) to the newest. Raises LedgerError when newer still."""
        if version > sql.SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger has version {version}; this program knows {sql.SCHEMA_VERSION}",
                where=self.place,
                fix="upgrade the program, or name another ledger",
            )
        if not version:
            transaction.run(sql.VERSION_TABLE)
        for step in range(version + 1, sql.SCHEMA_VERSION + 1):
            for statement in sql.MIGRATIONS[step]:
                transaction.run(statement)
            transaction.run("INSERT INTO schema_version (version) VALUES (?)", (step,))

    def _transact(self, transaction: Transaction, batch: Batch) -> Written:
        run_many = transaction.run_many
        owner = batch.owner
        if owner is not None and batch.marks:
            run_many(sql.MARK_CLAIM, [sql.mark_values(mark, owner) for mark in batch.marks])
        kept = self._inserted_calls(transaction, batch.calls)
        run_many(sql.DROP_CLAIM, [(call.request_id,) for call in batch.calls])
        run_many(sql.INSERT_FAILURE, [sql.failure_values(failure) for failure in batch.failures])
        if batch.unseen:
            now = transaction.now
            run_many(sql.INSERT_UNSEEN, [sql.unseen_values(row, now=now) for row in batch.unseen])
        run_many(sql.DROP_CLAIM, [(name,) for name in batch.releases])
        for row in batch.capabilities:
            transaction.run(sql.REMEMBER, (*map(storable, row), transaction.now))
        for statement, parameters in batch.statements:
            transaction.run(statement, parameters)
        if batch.sweep:
            self._drop_gone_owners(transaction)
        claims = _NO_CLAIMS
        if owner is not None:
            beat = (owner.token, owner.host, owner.pid, owner.born, transaction.now)
            transaction.run(sql.HEARTBEAT, beat)
            if batch.claims:
                claims = self._claimed(transaction, owner, batch.claims)
        return Written(kept=kept, claims=claims)

    def _inserted_calls(self, transaction: Transaction, calls: Sequence[CallRow]) -> list[bool]:
        """For each call whether it is the one stored now: the first is, unless it is damaged."""
        values = [sql.call_values(call) for call in calls]
        kept = transaction.changed(sql.INSERT_CALL, values)
        for at, is_new in enumerate(kept):
            if not is_new and not self._is_stored_intact(transaction, calls[at].request_id):
                transaction.run("DELETE FROM calls WHERE request_id = ?", (calls[at].request_id,))
                transaction.run(sql.INSERT_CALL, values[at])
                kept[at] = True
        return kept

    def _is_stored_intact(self, transaction: Transaction, request_id: str) -> bool:
        rows = transaction.rows(sql.select_answers(1), (request_id,))
        return bool(rows) and StoredAnswer._make(rows[0]).intact

    def _claimed(self, transaction: Transaction, owner: Owner, ids: Sequence[str]) -> Claims:
        in_batches = _among(transaction, sql.select_in_batches, ids)
        free = [name for name in ids if name not in in_batches]
        granted = _inserted_claims(transaction, owner, free)
        if len(granted) < len(free):
            self._drop_gone_owners(transaction)
            rest = [name for name in free if name not in granted]
            granted |= _inserted_claims(transaction, owner, rest)
        # After the insert: an answer written before it is visible now, one written later cannot
        # be, since writing it takes the claim that we hold.
        answered = _among(transaction, sql.select_answered, ids)
        transaction.run_many(sql.DROP_CLAIM, [(name,) for name in granted & answered])
        return Claims(
            granted=frozenset(granted - answered),
            answered=frozenset(answered),
            held=frozenset(set(ids) - granted - answered),
        )

    def _drop_gone_owners(self, transaction: Transaction) -> None:
        now = transaction.now
        for *who, heartbeat_at in transaction.rows(sql.OWNERS):
            owner = Owner(*who)
            if self._is_gone(owner, heartbeat_at, now=now):
                transaction.run(sql.ASKED_TO_UNSEEN, (now, owner.token))
                self._left(transaction, owner)

    def _is_gone(self, owner: Owner, heartbeat_at: float, *, now: float) -> bool:
        return is_gone(owner, heartbeat_at=heartbeat_at, now=now, lease_s=self._lease_s)

    def _left(self, transaction: Transaction, owner: Owner) -> None:
        transaction.run(sql.DROP_CLAIMS_OF, (owner.token,))
        transaction.run(sql.DROP_OWNER, (owner.token,))


def _among(transaction: Transaction, select: Any, ids: Sequence[str]) -> set[str]:
    """The ids that a select by ids finds."""
    found: set[str] = set()
    for chunk in sql.chunks(ids):
        names = sql.filled(chunk)
        found.update(row[0] for row in transaction.rows(select(len(names)), names))
    return found


def _inserted_claims(transaction: Transaction, owner: Owner, ids: Sequence[str]) -> set[str]:
    """The ids that nobody had: ours now."""
    new = transaction.changed(sql.INSERT_CLAIM, [(name, owner.token) for name in ids])
    return {name for name, is_new in zip(ids, new, strict=True) if is_new}
