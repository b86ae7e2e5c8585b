"""PostgresScheduler: starts executions, waits for them and looks at them, over a pool of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, overload

import asyncpg

from zart.codec import codec_for, step_key
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE, DEFAULT_SCHEMA, MAX_EXECUTION_ID_BYTES, check_flag
from zart.durable import DurableExecution
from zart.duration import Duration, seconds_of
from zart.errors import (
    DatabaseUnreachable,
    ExecutionNotFound,
    InvalidArgument,
    WaitTimedOut,
    ZartError,
    shown,
)
from zart.hints import HintSender
from zart.model import (
    EventAnswer,
    ExecutionRecord,
    ExecutionStatus,
    KeySpace,
    Page,
    StartedMany,
    StepRecord,
    StoredStatus,
)
from zart.names import checked_name, checked_text
from zart.postgres.connection import Connection, connect
from zart.postgres.pool import Database, translated
from zart.protocols import D, DurableScheduler, ExecutionHandle, R, Scheduler, T
from zart.starting import Starter
from zart.store import executions, journal, workers
from zart.store import migrate as migrations
from zart.store.statements import quoted, statement
from zart.tables import Tables
from zart.terms import (
    CHILD_PREFIX,
    StartTerms,
    check_moment,
    checked_id,
    checked_status,
    encoded_plain,
    spec_of,
    terms_by_name,
    terms_of,
)
from zart.waiting import Ending, EndingPoller, Found

if TYPE_CHECKING:
    from typing_extensions import TypeForm

# Longer than a healthy database takes for one row; a wait whose time is up ends at most so much later.
_LAST_LOOK = 1.0
# More than a PostgreSQL serves well.
MAX_POOL_SIZE = 10_000

__all__ = ["DurableScheduler", "ExecutionHandle", "PostgresScheduler", "Scheduler"]


class PostgresScheduler(DurableScheduler):
    """A DurableScheduler on PostgreSQL, for one event loop. Made by `connect`; its calls may run concurrently.

    Example:
        >>> async with PostgresScheduler.connect("postgresql://localhost/app") as scheduler:
        ...     await scheduler.migrate()
        ...     await scheduler.start("order-7", "fulfil", {"item": 3})
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._hints = HintSender(self._send_hint)
        self._starter = Starter(tables, self._hints)
        self._endings = EndingPoller(self._look)

    @classmethod
    def connect(
        cls,
        dsn: str | None = None,
        *,
        schema: str = DEFAULT_SCHEMA,
        min_pool_size: int = 0,
        max_pool_size: int = 10,
        prepared_statements: bool | None = None,
    ) -> Connecting:
        """Connect to a database, with `async with` or `await` (then call `close`).

        Args:
            dsn: `postgresql://user:password@host:port/database`; None takes the environment's DATABASE_URL.
            schema: where zart's tables are.
            min_pool_size, max_pool_size: how many connections are kept open, and how many there may be.
            prepared_statements: keep statements prepared on the server; None does so unless a pooler is in between.

        Raises:
            DatabaseUnreachable: no connection can be made.
            InvalidArgument: the schema's name or a setting cannot be used.
        """
        return Connecting(dsn, schema, min_pool_size, max_pool_size, prepared_statements)

    @property
    def dsn(self) -> str:
        """The database's URL, password included: never print it."""
        return self._tables.database.dsn

    @property
    def schema(self) -> str:
        return self._tables.schema

    async def close(self) -> None:
        """End all waits with an error, send the hints that are due, and close the connections."""
        await self._endings.close()
        await self._hints.close()
        await self._tables.database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def migrate(self, buckets: int | None = None) -> list[str]:
        """Bring the schema to this version of zart; safe to run by many processes at once, and again.

        Args:
            buckets: over how many buckets executions are spread, chosen once; None takes what is there, or 1.

        Returns:
            Names of the migrations that were applied.

        Raises:
            InvalidArgument: the schema was made with another number of buckets.
            SchemaMismatch: the schema is newer than this zart.
        """
        database = self._tables.database
        connection = await connect(  # without the deadline of a call
            self.dsn, application_name="zart migrate", prepared_statements=database.prepared_statements
        )
        try:
            with translated("migrating", database.place):
                return await migrations.migrate(connection, self.schema, buckets)
        finally:
            connection.terminate()

    # -- Scheduler

    async def tick(self, outgoing: Sequence[Any]) -> list[asyncpg.Record]:
        async with self._tables.connection("ticking") as connection:
            return await connection.fetch(statement("tick", self.schema), *outgoing)

    # -- starting

    async def start(
        self,
        execution_id: str,
        task_name: str,
        data: Any = None,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> ExecutionHandle[Any]:
        return await self._start(
            terms_by_name(task_name, queue=queue, priority=priority, delay=delay), execution_id, data, conn
        )

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
    async def start_for(
        self,
        durable: DurableExecution[Any, Any],
        execution_id: str,
        data: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> ExecutionHandle[Any]:
        return await self._start(
            terms_of(spec_of(durable), queue=queue, priority=priority, delay=delay), execution_id, data, conn
        )

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
    async def start_many(
        self,
        durable: DurableExecution[Any, Any] | str,
        items: Iterable[tuple[str, Any]],
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        conn: Connection | None = None,
    ) -> StartedMany:
        if isinstance(durable, str):
            terms = terms_by_name(
                durable,
                queue=DEFAULT_QUEUE if queue is None else queue,
                priority=DEFAULT_PRIORITY if priority is None else priority,
                delay=delay,
            )
        else:
            terms = terms_of(spec_of(durable), queue=queue, priority=priority, delay=delay)
        return await self._starter.start_many(terms, items, conn)

    # -- looking

    async def status(self, execution_id: str) -> ExecutionRecord:
        execution_id = checked_id(execution_id)
        buckets = await self._tables.buckets_of(execution_id)

        async def read(connection: Connection) -> ExecutionRecord:
            for bucket in buckets:
                if record := await executions.status(connection, self.schema, bucket, execution_id):
                    return record
            raise ExecutionNotFound(execution_id)

        return await self._tables.call(f"reading execution {execution_id!r}", read)

    async def history(self, execution_id: str) -> list[StepRecord]:
        execution_id = checked_id(execution_id)
        buckets = await self._tables.buckets_of(execution_id)

        async def read(connection: Connection) -> list[StepRecord]:
            for bucket in buckets:
                found = await journal.history(connection, self.schema, bucket, execution_id)
                if found is not None:
                    return found
            raise ExecutionNotFound(execution_id)

        return await self._tables.call(f"reading the history of execution {execution_id!r}", read)

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
        wanted = checked_status(status)
        check_moment("created_after", created_after)
        check_moment("created_before", created_before)
        task_name = None if task_name is None else checked_name(task_name, "the task")
        queue = None if queue is None else checked_name(queue, "the queue")
        if parent is None:
            buckets: Sequence[int] = range(await self._tables.buckets())
        else:
            parent = checked_text(parent, "parent", MAX_EXECUTION_ID_BYTES)
            buckets = await self._tables.buckets_of(parent)
        async with self._tables.connection("listing executions") as connection:
            return await executions.list_executions(
                connection,
                self.schema,
                buckets,
                status=wanted,
                task_name=task_name,
                queue=queue,
                parent=parent,
                created_after=created_after,
                created_before=created_before,
                limit=limit,
                after=after,
            )

    # -- waiting

    async def wait(self, execution_id: str, *, timeout: Duration | None = None) -> ExecutionRecord:
        await self._ending(execution_id, timeout)
        return await self.status(execution_id)

    async def wait_completion(self, execution_id: str, type: TypeForm[T], *, timeout: Duration | None = None) -> T:
        codec = codec_for(type, where=f"result of execution {checked_id(execution_id)!r}")
        result: T = (await self._ending(execution_id, timeout)).output_by(codec)
        return result

    async def wait_for(
        self, durable: DurableExecution[Any, R], execution_id: str, *, timeout: Duration | None = None
    ) -> R:
        spec = spec_of(durable)
        result: R = (await self._ending(execution_id, timeout)).output_of(spec.task_name, spec.output_codec)
        return result

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
    async def start_and_wait_for(
        self,
        durable: DurableExecution[Any, Any],
        execution_id: str,
        data: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        _seconds(timeout)
        handle = await self.start_for(durable, execution_id, data, queue=queue, priority=priority, delay=delay)
        return await handle.result(timeout=timeout)

    # -- changing

    async def cancel(self, execution_id: str, *, conn: Connection | None = None) -> bool:
        execution_id = checked_id(execution_id)
        buckets = await self._tables.buckets_of(execution_id)

        async def cancel(connection: Connection, token: int | None) -> bool:
            for bucket in buckets:
                done = await executions.cancel(connection, self.schema, bucket, execution_id, token)
                if done.what == "unknown":
                    continue
                if execution_id.startswith(CHILD_PREFIX):  # its parent may go on
                    if conn is None:
                        await journal.deliver_signals(connection, self.schema, bucket)
                    await self._hint(bucket, conn)
                return done.what == "cancelled"
            raise ExecutionNotFound(execution_id)

        return await self._tables.write(conn, f"cancelling execution {execution_id!r}", cancel)

    async def release(self, execution_id: str) -> bool:
        execution_id = checked_id(execution_id)
        buckets = await self._tables.buckets_of(execution_id)

        async def release(connection: Connection, token: int | None) -> bool:
            for bucket in buckets:
                done = await executions.release(connection, self.schema, bucket, execution_id, token)
                if done.what == "unknown":
                    continue
                if done.what == "told":
                    raise InvalidArgument(
                        f"execution {execution_id!r} cannot be released: its parent has met its end already; start the"
                        f" work of {done.root!r} again, under another id"
                    )
                if done.what == "released":
                    await self._hint(bucket, None)
                return done.what == "released"
            raise ExecutionNotFound(execution_id)

        return await self._tables.write(None, f"releasing execution {execution_id!r}", release)

    async def offer_event(
        self, execution_id: str, name: str, payload: Any = None, *, conn: Connection | None = None
    ) -> EventAnswer:
        execution_id, name = checked_id(execution_id), checked_name(name, "the event")
        where = f"event {name!r} of execution {execution_id!r}"
        text = encoded_plain(payload, f"payload of {where}")
        key = step_key(KeySpace.EVENT, name)
        buckets = await self._tables.buckets_of(execution_id)

        async def offer(connection: Connection, token: int | None) -> EventAnswer:
            for bucket in buckets:
                offered = await journal.offer_event(
                    connection, self.schema, bucket, execution_id, key, name, text, token
                )
                if offered.answer is None:
                    continue
                if offered.answer is EventAnswer.ACCEPTED and offered.worker is None:
                    await self._hint(bucket, connection if conn is not None else None)
                return offered.answer
            raise ExecutionNotFound(execution_id)

        return await self._tables.write(conn, f"offering {where}", offer)

    # -- how

    async def _hint(self, bucket: int, connection: Connection | None) -> None:
        """Tell idle workers that a parked execution may go on: with the caller's commit, or soon."""
        if connection is None:
            self._hints.send(bucket)
        else:
            await workers.hint(connection, self.schema, bucket)

    async def _send_hint(self, bucket: int, queue: str | None, task_name: str | None) -> None:
        async with self._tables.connection_for_all("sending a hint") as connection:
            await workers.hint(connection, self.schema, bucket, queue, task_name)

    async def _start(
        self, terms: StartTerms, execution_id: str, data: Any, conn: Connection | None
    ) -> ExecutionHandle[Any]:
        started = await self._starter.start(terms, execution_id, data, conn)

        async def result(timeout: Duration | None) -> Any:
            ending = await self._ending(execution_id, timeout, exists=conn is None)
            return ending.output_of(terms.task_name, terms.output_codec)

        return ExecutionHandle(started.execution_id, started.created, result)

    async def _ending(self, execution_id: str, timeout: Duration | None, *, exists: bool = False) -> Ending:
        """How an execution ends. One that does not in time is looked at once more, to say what it is doing."""
        try:
            execution_id = checked_id(execution_id)
            return await self._endings.wait(execution_id, _seconds(timeout), exists=exists)
        except WaitTimedOut as late:
            try:
                async with asyncio.timeout(_LAST_LOOK):
                    record = await self.status(execution_id)
                    if record.status.is_terminal:
                        return await self._endings.wait(execution_id, None, exists=True)
            except ExecutionNotFound as missing:
                raise missing from None
            except (ZartError, TimeoutError):
                raise late from None
            raise WaitTimedOut(
                execution_id,
                late.seconds,
                task_name=record.task_name,
                status=record.status,
                taken_up=record.started_at is not None,
            ) from None

    async def _look(self, ids: Sequence[str], unsure: Sequence[str]) -> Found:
        groups = await self._tables.by_bucket(ids)
        endings: dict[str, Ending] = {}
        async with self._tables.connection_for_all(f"waiting for {len(ids)} executions") as connection:
            for bucket, here in groups.items():
                for row in await executions.waited_for(connection, self.schema, bucket, here):
                    endings[row["execution_id"]] = Ending(
                        execution_id=row["execution_id"],
                        task_name=row["task_name"],
                        status=StoredStatus(row["status"]),
                        output=row["output"],
                        error=row["error"],
                    )
            missing = set(unsure) - endings.keys()
            for bucket, here in (await self._tables.by_bucket(missing)).items():
                missing -= await executions.existing(connection, self.schema, bucket, here)
        return Found(endings, missing)


class Connecting:
    """A connection being made: await it, or use it with `async with`."""

    def __init__(
        self,
        dsn: str | None,
        schema: str,
        min_pool_size: int,
        max_pool_size: int,
        prepared_statements: bool | None = None,
    ) -> None:
        self._dsn, self._schema, self._prepared_statements = dsn, schema, prepared_statements
        self._min_pool_size, self._max_pool_size = min_pool_size, max_pool_size
        self._scheduler: PostgresScheduler | None = None

    def __await__(self) -> Generator[Any, Any, PostgresScheduler]:
        return self._connect().__await__()

    async def __aenter__(self) -> PostgresScheduler:
        self._scheduler = await self._connect()
        return self._scheduler

    async def __aexit__(self, *_: object) -> None:
        assert self._scheduler is not None
        await self._scheduler.close()

    async def _connect(self) -> PostgresScheduler:
        dsn = self._dsn or os.environ.get("DATABASE_URL")
        if not dsn:
            raise DatabaseUnreachable("no database is named: pass its URL, or set DATABASE_URL")
        if not isinstance(dsn, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"dsn must be text, as postgresql://host/database, got a {type(dsn).__name__}")
        if not isinstance(self._schema, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"schema must be text, got {shown(self._schema)}")
        _check_pool(self._min_pool_size, self._max_pool_size)
        check_flag("prepared_statements", self._prepared_statements)
        quoted(self._schema)
        database = await Database.open(
            dsn,
            application_name="zart scheduler",
            min_size=self._min_pool_size,
            max_size=self._max_pool_size,
            prepared_statements=self._prepared_statements,
        )
        return PostgresScheduler(Tables(database, self._schema))


def _seconds(timeout: Duration | None) -> float | None:
    return None if timeout is None else seconds_of(timeout, "timeout")


def _check_pool(least: object, most: object) -> None:
    if type(least) is not int or type(most) is not int or not 0 <= least <= most or not 1 <= most <= MAX_POOL_SIZE:
        raise InvalidArgument(
            "min_pool_size and max_pool_size must be whole numbers, 0 <= min_pool_size <= max_pool_size and"
            f" 1 <= max_pool_size <= {MAX_POOL_SIZE}, got {shown(least)} and {shown(most)}"
        )
