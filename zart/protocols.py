"""What a scheduler promises: to workers (`Scheduler`), and to programs (`DurableScheduler`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from asyncpg import Record

from zart.durable import DurableExecution
from zart.duration import Duration
from zart.model import EventAnswer, ExecutionRecord, ExecutionStatus, Page, StartedMany, StepRecord
from zart.postgres.connection import Connection

if TYPE_CHECKING:
    from typing_extensions import TypeForm

D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class ExecutionHandle(Generic[R_co]):
    """A started execution.

    Attributes:
        execution_id: its id.
        created: False when an execution of this id existed before, in whatever state.
    """

    __slots__ = ("_result", "created", "execution_id")

    def __init__(self, execution_id: str, created: bool, result: Callable[[Duration | None], Awaitable[R_co]]) -> None:
        self.execution_id, self.created, self._result = execution_id, created, result

    async def result(self, *, timeout: Duration | None = None) -> R_co:
        """Wait for the execution's end and give its result.

        Raises:
            ExecutionFailed, ExecutionCancelled: it ended without one.
            WaitTimedOut: it was still going.
        """
        return await self._result(timeout)

    def __repr__(self) -> str:
        return f"ExecutionHandle({self.execution_id!r}, created={self.created})"


class Scheduler(Protocol):
    """All that the engine of a worker needs of a database."""

    async def tick(self, outgoing: Sequence[Any]) -> list[Record]:
        """One group commit: checkpoints and endings out, claims in.

        Args:
            outgoing: the arguments of `zart_tick_1`.

        Returns:
            Its rows.
        """
        ...


class DurableScheduler(Protocol):
    """Starts executions, waits for them, and looks at them.

    Every method raises DatabaseError (DatabaseUnreachable, SchemaMissing, SchemaMismatch) when the database cannot
    serve, and InvalidArgument for a value that cannot be used. `timeout` and `delay` are durations: seconds, timedelta
    or text such as "1.5s".

    A call whose answer is lost, or whose database is away, is sent again for 30 seconds at most, and then returns what
    it would have returned without that (`list_executions` raises at once). After DatabaseUnreachable it is unknown
    whether it was done: call again.

    `conn=` joins the caller's open asyncpg transaction: what the call writes is there when that commits, and never when
    it rolls back. Until it ends, calls of others with the same id wait. Errors of that connection come as asyncpg makes
    them: in REPEATABLE READ or SERIALIZABLE, an id that another transaction has started meanwhile is an
    asyncpg.SerializationError, after which the transaction is run again.
    """

    async def start(
        self,
        execution_id: str,
        task_name: str,
        data: Any = None,
        *,
        queue: str = ...,
        priority: int = ...,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> ExecutionHandle[Any]:
        """Start a durable function by name; this process need not know it.

        Args:
            execution_id: the idempotency key, up to 512 bytes. An existing execution is returned as it is.
            task_name: the registered name.
            data: any JSON value, a datetime, date, timedelta, UUID, Decimal or bytes.
            queue: which workers may run it.
            priority: 0 (first) to 1000 (last). A lower number always goes first, so a full one starves those after it.
            delay: earliest begin, from now.
            conn: an asyncpg connection in a transaction to join.

        Raises:
            ExecutionAlreadyExists: the id belongs to another task.
            SerializationError: the data cannot be kept as it is.

        Example:
            >>> handle = await scheduler.start("order-7", "fulfil", {"item": 3})
            >>> await handle.result(timeout="1m")
        """
        ...

    @overload
    async def start_for(
        self,
        durable: DurableExecution[None, R],
        execution_id: str,
        data: None = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> ExecutionHandle[R]: ...
    @overload
    async def start_for(
        self,
        durable: DurableExecution[D, R],
        execution_id: str,
        data: D,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> ExecutionHandle[R]: ...
    async def start_for(self, durable: Any, execution_id: str, data: Any = None, **options: Any) -> Any:
        """Start a durable function, as `start`; queue and priority default to what it declares.

        Example:
            >>> handle = await scheduler.start_for(onboarding, "user-7", OnboardingData("a@b.c"))
        """
        ...

    @overload
    async def start_many(
        self,
        durable: DurableExecution[D, Any],
        items: Iterable[tuple[str, D]],
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> StartedMany: ...
    @overload
    async def start_many(
        self,
        durable: str,
        items: Iterable[tuple[str, Any]],
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> StartedMany: ...
    async def start_many(self, durable: Any, items: Iterable[tuple[str, Any]], **options: Any) -> StartedMany:
        """Start many executions of one durable function, or of one name, in one transaction: all of them or none.

        Ids that exist are left as they are and listed in the answer; of an id given twice the first data counts.

        Raises:
            ExecutionAlreadyExists: an id belongs to another task. Nothing was started.
        """
        ...

    async def status(self, execution_id: str) -> ExecutionRecord:
        """The execution as it is now.

        Raises:
            ExecutionNotFound: there is none of this id.
        """
        ...

    async def history(self, execution_id: str) -> list[StepRecord]:
        """The journal of its current run, oldest first.

        Raises:
            ExecutionNotFound: there is none of this id.
        """
        ...

    async def wait(self, execution_id: str, *, timeout: Duration | None = None) -> ExecutionRecord:
        """Wait for its end, whatever that is. One query at a time serves all waits of a scheduler.

        Raises:
            ExecutionNotFound: there is none of this id.
            WaitTimedOut: it was still going.
        """
        ...

    async def wait_completion(self, execution_id: str, type: TypeForm[T], *, timeout: Duration | None = None) -> T:
        """Wait for its result and decode it as `type`.

        Raises:
            ExecutionFailed, ExecutionCancelled: it ended without one.
            ExecutionNotFound, WaitTimedOut: as `wait`.
            SerializationError: the result is not of this type.
        """
        ...

    async def wait_for(
        self, durable: DurableExecution[Any, R], execution_id: str, *, timeout: Duration | None = None
    ) -> R:
        """Wait for the result of an execution of this durable function; raises as `wait_completion`.

        Raises:
            InvalidArgument: the execution is one of another durable function.
        """
        ...

    @overload
    async def start_and_wait_for(
        self,
        durable: DurableExecution[None, R],
        execution_id: str,
        data: None = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
    ) -> R: ...
    @overload
    async def start_and_wait_for(
        self,
        durable: DurableExecution[D, R],
        execution_id: str,
        data: D,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
    ) -> R: ...
    async def start_and_wait_for(self, durable: Any, execution_id: str, data: Any = None, **options: Any) -> Any:
        """`start_for`, then `wait_for`; `timeout` is for the wait."""
        ...

    async def cancel(self, execution_id: str, *, conn: Connection | None = None) -> bool:
        """End it and its unfinished children as cancelled. True if this call did, False if it had ended before.

        Raises:
            ExecutionNotFound: there is none of this id.
        """
        ...

    async def release(self, execution_id: str) -> bool:
        """Take it out of quarantine: its run goes on where it stood, and kept steps do not run again.

        Its deaths count from 0 again, and the time in quarantine does not count for its timeout. Children that ended
        with it as cancelled run again.

        Returns:
            True if this call did, False if it is not quarantined.

        Raises:
            ExecutionNotFound: there is none of this id.
            InvalidArgument: it is a child whose end its parent has already.
        """
        ...

    async def offer_event(
        self, execution_id: str, name: str, payload: Any = None, *, conn: Connection | None = None
    ) -> EventAnswer:
        """Offer an event to an execution; it may come before the execution waits for it. The first of a name is kept.

        Args:
            payload: plain JSON values; a dataclass, msgspec Struct or pydantic model; or one datetime, date,
                timedelta, UUID, Decimal or bytes.
            conn: the caller's connection, whose transaction it joins.

        Returns:
            `accepted`; `already_offered` when another one was first, or the wait for it had timed out; `finished` when
            the execution had ended.

        Raises:
            ExecutionNotFound: there is no execution of this id.
            SerializationError: the payload cannot be kept as it is.
        """
        ...

    async def list_executions(
        self,
        *,
        status: ExecutionStatus | str | None = None,
        task_name: str | None = None,
        queue: str | None = None,
        parent: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[ExecutionRecord]:
        """One page of executions, newest first. Children are listed only for a `parent`.

        Args:
            status, task_name, queue: only these.
            parent: only the children of this execution id.
            created_after, created_before: bounds of the start's time, with time zone.
            limit: how many at most, 1 to 10,000.
            after: `Page.after` of the page before.
        """
        ...
