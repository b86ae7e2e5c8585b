"""PostgresScheduler: starts executions, waits for them and looks at them, over a pool of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, overload

import asyncpg

from zart.codec import PLAIN, codec_for, step_key
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE, DEFAULT_SCHEMA
from zart.durable import DurableExecution
from zart.duration import Duration, seconds_of
from zart.errors import (
    DatabaseUnreachable,
    ExecutionAlreadyExists,
    ExecutionNotFound,
    InvalidArgument,
    SerializationError,
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
from zart.names import checked_name
from zart.postgres.connection import Connection, connect
from zart.postgres.pool import Database, translated
from zart.protocols import D, DurableScheduler, ExecutionHandle, R, Scheduler, T
from zart.starting import Chunk, StartTerms, buckets_of, checked_id, checked_own_id, chunks, terms_by_name, terms_of
from zart.store import executions, journal, migrate, queue, workers
from zart.store.executions import Started
from zart.store.statements import quoted, statement
from zart.waiting import Ending, EndingPoller, Found

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["DurableScheduler", "ExecutionHandle", "PostgresScheduler", "Scheduler"]

_START_TRIES = 3


class PostgresScheduler(DurableScheduler):
    """A DurableScheduler on PostgreSQL, for one event loop. Made by `connect`; its calls may run concurrently.

    Example:
        >>> async with PostgresScheduler.connect("postgresql://localhost/app") as scheduler:
        ...     await scheduler.migrate()
        ...     await scheduler.start("order-7", "fulfil", {"item": 3})
    """

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._schema = schema
        self._settings: migrate.Settings | None = None
        self._lanes: dict[tuple[str, str], int] = {}
        self._preparing = asyncio.Lock()
        self._hints = HintSender(self._send_hint)
        self._endings = EndingPoller(self._look)

    @classmethod
    def connect(
        cls, dsn: str | None = None, *, schema: str = DEFAULT_SCHEMA, min_pool_size: int = 0, max_pool_size: int = 10
    ) -> Connecting:
        """Connect to a database, with `async with` or `await` (then call `close`).

        Args:
            dsn: `postgresql://user:password@host:port/database`; None takes the environment's DATABASE_URL.
            schema: where zart's tables are.
            min_pool_size, max_pool_size: how many connections are kept open, and how many there may be.

        Raises:
            DatabaseUnreachable: no connection can be made.
            InvalidArgument: the schema's name or a size cannot be used.
        """
        return Connecting(cls, dsn, schema, min_pool_size, max_pool_size)

    @property
    def dsn(self) -> str:
        """The database's URL, password included: never print it."""
        return self._database.dsn

    @property
    def schema(self) -> str:
        return self._schema

    async def close(self) -> None:
        """End all waits with an error, send the hints that are due, and close the connections."""
        await self._endings.close()
        await self._hints.drain()
        await self._database.close()

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
        with translated("migrating", self._database.place):
            connection = await connect(self._database.dsn, application_name="zart migrate")
            try:
                return await migrate.migrate(connection, self._schema, buckets)
            finally:
                connection.terminate()

    # -- Scheduler

    async def tick(self, outgoing: Sequence[Any]) -> list[asyncpg.Record]:
        async with self._database.connection("ticking") as connection:
            return await connection.fetch(statement("tick", self._schema), *outgoing)

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
            terms_of(durable.spec, queue=queue, priority=priority, delay=delay), execution_id, data, conn
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
        terms = _terms(durable, queue, priority, delay)
        inputs = [(checked_own_id(execution_id), terms.encode(execution_id, data)) for execution_id, data in items]
        return await self._start_chunks(terms, chunks(inputs, await self._buckets()), conn)

    async def _start(
        self, terms: StartTerms, execution_id: str, data: Any, conn: Connection | None
    ) -> ExecutionHandle[Any]:
        text = terms.encode(checked_own_id(execution_id), data)
        (chunk,) = chunks([(execution_id, text)], await self._buckets())
        lane = await self._lane(terms)
        async with self._joining(conn, f"starting execution {execution_id!r}") as connection:
            for _ in range(_START_TRIES):  # an execution that was there may be purged before it can be read
                if found := await self._insert(connection, terms, lane, chunk):
                    break
            else:
                raise AssertionError(f"execution {execution_id!r} comes and goes")
            if conn is not None and found[0].created:
                await self._send_hint_on(conn, chunk.bucket, terms.queue, terms.task_name)
        if conn is None and found[0].created:
            self._hints.send(chunk.bucket, terms.queue, terms.task_name)

        async def result(timeout: Duration | None) -> Any:  # noqa: ASYNC109
            return await self._result(terms, execution_id, timeout)

        return ExecutionHandle(execution_id, found[0].created, result)
