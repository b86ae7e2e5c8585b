"""`trx()`: a step's own transaction, which is committed together with the step's checkpoint, or not at all.

begin -> the step's statements -> fence and checkpoint -> COMMIT
                               -> ROLLBACK, before anything is recorded of the failed try

The fence is taken last, so that ticks and takeovers never wait for user code. When the answer to COMMIT is lost, the
fence asked again on another connection tells what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from zart.config import WorkerConfig
from zart.engine.replay import Checkpoint, checkpoint_of
from zart.engine.session import FIRST_BACKOFF, LAST_BACKOFF, Session
from zart.errors import SerializationError, TransactionMisused
from zart.meters import BYTES_WRITTEN, DATABASE_ERRORS
from zart.postgres.connection import Connection, check_not_demoted
from zart.postgres.lending import DEADLINE, Lender, Loan
from zart.postgres.sqlstate import Fault, classify
from zart.store import queue
from zart.store.transactions import Fenced, begin_trx, trx

if TYPE_CHECKING:
    from zart.engine.turn import Turn

log = logging.getLogger("zart.engine")

# Longer than the fence waits for locks. COMMIT runs deferred constraints and triggers of the user.
FENCE_DEADLINE = 10.0
COMMIT_DEADLINE = 30.0

REGISTERED_CHECKED_EVERY = 0.02

_CONTENTION = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected


class RunAgain(Exception):
    """Nothing of a try was committed, through no fault of its code: it is run again, and uses no retry."""


class NotKept(Exception):
    """A try's value cannot be kept. Its cause says why."""

    def __init__(self, reason: SerializationError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Renamed(RunAgain):
    """The worker's identity changed meanwhile, so that a claim that is not its own may be its own after all."""


def is_run_again(error: BaseException) -> bool:
    """Whether a try that failed so in its transaction is run again: it lost against another transaction, as any may."""
    return isinstance(error, RunAgain) or getattr(error, "sqlstate", None) in _CONTENTION


@dataclass(frozen=True, slots=True)
class Row:
    """The checkpoint that goes with a transaction."""

    turn: Turn
    key: int
    name: str
    attempts: int
    seconds: float
    result: bytes

    def misused(self, what: str) -> TransactionMisused:
        """What the step is told that has done what it must not."""
        return TransactionMisused(
            f"step {self.name!r} {what}; zart itself commits the transaction of trx() when the step returns, and rolls"
            " it back when the step raises. Nothing was recorded as done"
        )


class Transaction:
    """The transaction of one try.

    Attributes:
        stored: after `commit`, the checkpoint that stands in the place of this try's own, None when it is this one.
        took: seconds of the try that was committed.
    """

    __slots__ = ("_all", "_committing", "_loan", "_over", "stored", "took")

    def __init__(self, transactions: Transactions) -> None:
        self._all = transactions
        self._loan: Loan | None = None
        self._committing = self._over = False
        self.stored: Checkpoint | None = None
        self.took = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the step has got its connection."""
        return self._loan is not None

    async def open(self) -> Connection:
        """Begin; what comes back is the step's until its try ends."""
        loan = await self._all.begin()
        if self._over:
            await self._all.end(loan)
            raise TransactionMisused("trx() was still waiting for a connection when its step ended; await it")
        self._loan = loan
        return loan.connection

    def was_lost(self) -> bool:
        """Whether its connection is gone, and not by the step's hand."""
        return self._loan is not None and self._loan.raw.is_closed() and not self._loan.raw.closed_by_hand

    async def commit(self, row: Row) -> None:
        """Commit with the checkpoint. When it is cancelled, what was begun still comes to its end.

        Raises:
            RunAgain: nothing was committed.
            NotKept: PostgreSQL refuses the value.
            TransactionMisused: the step has ended the transaction, or has made it unusable.
            Suspended: the claim is gone.
            asyncpg.PostgresError: the server refuses to commit, as by a deferred constraint.
        """
        assert self._loan is not None
        self._committing, self.took = True, row.seconds
        task: asyncio.Future[Checkpoint | None] = asyncio.ensure_future(self._all.commit(self._loan, row))
        row.turn.keep_late(task)
        task.add_done_callback(_let_go)
        self.stored = await asyncio.shield(task)

    async def roll_back(self) -> None:
        """End it, if it was not to be committed; returns when the server has, or has been left alone with it."""
        self._over = True
        if self._loan is not None and not self._committing:
            await self._all.end(self._loan)

    def drop(self) -> None:
        """As `roll_back`, from where nothing can be awaited."""
        self._over = True
        if self._loan is not None and not self._committing:
            self._loan.raw.terminate()


class Transactions:
    """The transactions of one worker's steps.

    Args:
        lose: told of turns whose claim turns out to be gone.
    """

    def __init__(self, session: Session, config: WorkerConfig, lose: Callable[[Turn], None]) -> None:
        self._session, self._lose = session, lose
        self._lender = Lender(
            session.dsn,
            application_name="zart trx",
            size=config.trx_pool_size,
            prepared_statements=config.prepared_statements,
        )
        self._endings: set[asyncio.Future[None]] = set()

    async def begin(self) -> Loan:
        """A connection in an open transaction; waits while none is free, or the database is away.

        Raises:
            DatabaseError, asyncpg.PostgresError: no waiting would help.
        """
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await self._begin()
            except Exception as error:
                if self._lender.closed or not _may_pass(error):
                    raise
                self._note(error, "a step's transaction cannot begin")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)

    async def _begin(self) -> Loan:
        loan = await self._lender.lend()
        try:
            async with asyncio.timeout(DEADLINE):
                await loan.raw.transaction().start()
                await begin_trx(loan.raw, self._session.schema, DEADLINE)
            check_not_demoted(loan.raw, "the database")
        except BaseException:
            loan.raw.terminate()
            raise
        return loan

    async def commit(self, loan: Loan, row: Row) -> Checkpoint | None:
        """Commit a step's transaction with its checkpoint; None, or the one that stands in its place.

        Raises: as Transaction.commit.
        """
        try:
            _check_in_transaction(loan, row)
            worker = await self._registered_for(row.turn)
            fenced = await self._fence(loan, row, worker)
            if not fenced.stored:
                return await self._what_stands(loan, row, worker, fenced)
            await self._send_commit(loan, row)
            self._session.place.add(BYTES_WRITTEN, len(row.result))
            return None
        except Exception as error:
            fault = classify(error)
            if fault is Fault.RETRY and not is_run_again(error):
                raise RunAgain from error
            if fault is not Fault.LOST:
                raise
            self._note(error, f"whether step {row.name!r} was committed is unknown")
            loan.raw.terminate()
        finally:
            await self.end(loan)
        return await self._find_out(row)

    async def end(self, loan: Loan) -> None:
        """Roll back and take the connection back. Goes on when the caller is cancelled."""
        ending: asyncio.Future[None] = asyncio.ensure_future(self._lender.take_back(loan))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)

    async def leave_server(self) -> None:
        """Close all connections: what is under way fails as when they are lost, and is run again."""
        await self._lender.drop()

    async def close(self) -> None:
        """End everything."""
        await self._lender.close()

    # -- parts of a commit

    async def _registered_for(self, turn: Turn) -> int:
        """The worker's id, when it is one under which the claim is held.

        Raises:
            Suspended: the turn is lost; its claim may be held again, but by another turn.
        """
        while self._session.lost:  # noqa: ASYNC110 - it says nothing when it has come back
            await asyncio.sleep(REGISTERED_CHECKED_EVERY)
        if turn.is_lost():
            raise turn.suspended()
        return self._session.worker_id

    async def _fence(self, loan: Loan, row: Row, worker: int) -> Fenced:
        turn = row.turn
        try:
            fenced = await trx(
                loan.raw,
                self._session.schema,
                turn.bucket,
                worker,
                turn.id,
                turn.epoch,
                key=row.key,
                name=row.name,
                attempts=row.attempts,
                seconds=row.seconds,
                result=row.result,
                timeout=FENCE_DEADLINE,
            )
        except asyncpg.InFailedSQLTransactionError as error:
            raise row.misused(
                "has caught an error of a statement, which leaves PostgreSQL's transaction good for nothing:"
                " run what may fail in `async with conn.transaction()`"
            ) from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise row.misused("has set a role that may not write its checkpoint: reset it before the end") from error
        except asyncpg.ReadOnlySQLTransactionError as error:
            raise row.misused("has made its transaction read-only, so that its checkpoint cannot be kept") from error
        except asyncpg.InterfaceError as error:
            if classify(error) is Fault.BUG:
                raise row.misused("has ended while its connection was still running a statement") from error
            raise
        except Exception as error:
            if classify(error) is Fault.DATA:
                state = getattr(error, "sqlstate", None) or "not encodable"
                text = f"PostgreSQL refused it (SQLSTATE {state}); return a smaller or simpler value"
                raise NotKept(SerializationError(text)) from error
            raise
        if not fenced.marked:
            raise row.misused("has committed or rolled back by hand")
        return fenced

    async def _send_commit(self, loan: Loan, row: Row) -> None:
        if not loan.raw.is_closed():
            _check_in_transaction(loan, row)  # of a task that the step has left behind
        if not await loan.raw.commit_all(COMMIT_DEADLINE):
            raise row.misused("has left a task behind that has spoilt the transaction")

    async def _what_stands(self, loan: Loan, row: Row, worker: int, fenced: Fenced) -> Checkpoint:
        """Roll back, and read what is there instead of this try's checkpoint.

        Raises:
            RunAgain: there is nothing.
        """
        turn, session = row.turn, self._session
        async with asyncio.timeout(2 * DEADLINE):
            await loan.raw.roll_back_all(DEADLINE)
            if fenced.held:
                found: list[Any] = await queue.read_checkpoints(
                    loan.raw, session.schema, turn.bucket, [turn.id], [turn.run], [row.key]
                )
                if not found:
                    raise RunAgain
                return checkpoint_of(found[0])
            held = await queue.still_held(loan.raw, session.schema, turn.bucket, worker, [turn.id], [turn.epoch])
        if worker != session.worker_id or session.lost:
            raise _Renamed
        if held:
            raise row.misused("has itself cancelled its execution in its transaction")
        self._lose(turn)
        raise turn.suspended()

    async def _find_out(self, row: Row) -> Checkpoint:
        """What became of a COMMIT without an answer. The fence waits for it, if it is still under way.

        Raises:
            RunAgain: it was not committed, and never will be.
        """
        backoff = FIRST_BACKOFF
        while not row.turn.is_interrupted():
            loan = await self.begin()
            try:
                worker = await self._registered_for(row.turn)
                fenced = await self._fence(loan, row, worker)
                return await self._what_stands(loan, row, worker, fenced)
            except _Renamed:
                continue
            except Exception as error:
                if isinstance(error, RunAgain) or not _may_pass(error):
                    raise
                self._note(error, f"whether step {row.name!r} was committed is still unknown")
            finally:
                await self.end(loan)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
        raise row.turn.suspended()

    def _note(self, error: Exception, what: str) -> None:
        self._session.place.add(DATABASE_ERRORS)
        state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else type(error).__name__
        log.warning("%s (%s)", what, state)


def _check_in_transaction(loan: Loan, row: Row) -> None:
    """The transaction is open, as far as the driver knows.

    Raises:
        TransactionMisused: the step has ended it.
        RunAgain: its connection is gone.
    """
    if loan.raw.closed_by_hand:
        raise row.misused("has closed its connection by hand")
    if loan.raw.is_closed():
        raise RunAgain
    if not loan.raw.is_in_transaction():
        raise row.misused("has committed or rolled back by hand")


def _let_go(task: asyncio.Future[Checkpoint | None]) -> None:
    """Of one that is not waited for any more, nobody asks how it ended: asyncio need not complain of it."""
    if not task.cancelled():
        task.exception()


def _may_pass(error: Exception) -> bool:
    return classify(error) in (Fault.LOST, Fault.RETRY)
