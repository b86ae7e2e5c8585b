"""Worker loops in the test's own process, against the test's database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import asyncpg
import orjson

from tests.support.database import Database
from tests.support.modes import Mode
from tests.support.pooler import cut_clients
from zart.codec import bucket_of, step_key
from zart.config import WorkerConfig
from zart.durable import DurableExecution
from zart.engine.loop import WorkerLoop
from zart.engine.session import new_worker_id
from zart.metrics import ASKED, Place
from zart.model import EventAnswer, ExecutionRecord, KeySpace, StepRecord
from zart.registry import TaskRegistry
from zart.store import executions, journal, queue, workers

WAKE_EVERY = 0.02


class Engine:
    """Worker loops that serve durable functions and steps.

    Wakes them all the time, delivers signals and frees what dead workers still hold, as a supervisor's polling would.

    `workers` is how many; by default as many as the mode needs.
    """

    mode: ClassVar[Mode] = Mode.AS_IS

    def __init__(
        self,
        database: Database,
        durables: Sequence[Any],
        *,
        config: WorkerConfig | None = None,
        workers: int | None = None,
    ) -> None:
        self.database, self.schema = database, database.schema
        registry = TaskRegistry()
        for durable in durables:
            registry.register(durable)
        self.registry = registry.served
        self.config = config or WorkerConfig(lease_timeout="1h")
        self.loops = [self._new_loop() for _ in range(workers or self.mode.workers)]
        self.tasks: list[asyncio.Task[None]] = []

    def _new_loop(self) -> WorkerLoop:
        return self.mode.loop_class(
            dsn=self.database.dsn,
            schema=self.schema,
            registry=self.registry,
            config=self.config,
            place=Place.private(),
            worker_id=new_worker_id(),
        )

    async def __aenter__(self) -> Self:
        self.connection = await self.database.connect()
        self.lanes = await queue.add_lanes(
            self.connection, self.schema, [(spec.queue, spec.task_name) for spec in self.registry.values()]
        )
        self.tasks = [asyncio.create_task(loop.run()) for loop in self.loops]
        self._waker = asyncio.create_task(self._wake())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._waker.cancel()
        for loop in self.loops:
            loop.stop()
        if kind is not None:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        else:
            await asyncio.gather(*self.tasks)
        await self.connection.close()

    async def _wake(self) -> None:
        while True:
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.PostgresConnectionError):  # cut
                await self._wake_on(await self.database.connect())

    async def _wake_on(self, connection: asyncpg.Connection) -> None:
        while True:
            apart = await connection.fetchval(
                f"select exists (select from {self.schema}.zart_queue where lane < 0 and worker is null)"
            )
            for loop in self.loops:
                with contextlib.suppress(AttributeError):  # not registered yet
                    if apart and not loop.turns and not loop.place.alone:
                        loop.place.alone = ASKED
                    loop.wake()
            for bucket in range(self.database.buckets):
                await journal.deliver_signals(connection, self.schema, bucket)
            for lease in await workers.read_leases(connection, self.schema, list(range(self.database.buckets))):
                if lease.dead:  # what was locked when its heir came
                    await workers.take_over_worker(
                        connection, self.schema, lease.bucket, lease.id, proof=True, blame=[]
                    )
            await asyncio.sleep(WAKE_EVERY)

    # -- the caller's side

    def bucket(self, execution_id: str) -> int:
        return bucket_of(execution_id, self.database.buckets)

    async def start(
        self,
        execution_id: str,
        durable: DurableExecution[Any, Any],
        data: Any = None,
        *,
        connection: asyncpg.Connection | None = None,
    ) -> None:
        """Start an execution, in the connection's transaction if there is one."""
        spec = durable.spec
        mine = await self.database.connect() if connection is None else connection
        await executions.start(
            mine,
            self.schema,
            self.bucket(execution_id),
            [execution_id],
            [orjson.dumps(data).decode()],
            task_name=spec.task_name,
            lane=self.lanes[spec.queue, spec.task_name],
            priority=spec.priority,
            max_retries=spec.retry.retries,
            timeout=spec.timeout,
        )
        if connection is None:
            await mine.close()

    async def offer(
        self, execution_id: str, name: str, payload: Any, connection: asyncpg.Connection | None = None
    ) -> EventAnswer | None:
        """Offer an event, in the connection's transaction if there is one."""
        mine = await self.database.connect() if connection is None else connection
        key = step_key(KeySpace.EVENT, name)
        text = orjson.dumps(payload).decode()
        bucket = self.bucket(execution_id)
        offered = await journal.offer_event(mine, self.schema, bucket, execution_id, key, name, text)
        if connection is None:
            await mine.close()
        return offered.answer

    async def record(self, execution_id: str) -> ExecutionRecord:
        connection = await self.database.connect()
        found = await executions.status(connection, self.schema, self.bucket(execution_id), execution_id)
        await connection.close()
        assert found is not None
        return found

    async def history(self, execution_id: str) -> list[StepRecord]:
        connection = await self.database.connect()
        found = await journal.history(connection, self.schema, self.bucket(execution_id), execution_id)
        await connection.close()
        return found or []

    async def ended(self, execution_id: str, within: float = 20) -> ExecutionRecord:
        """The record, once the execution has ended."""
        async with asyncio.timeout(within):
            while not (record := await self.record(execution_id)).status.is_terminal:
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)
        return record

    async def all_ended(self, within: float = 60) -> None:
        """Nothing is left in the queue."""
        connection = await self.database.connect()
        async with asyncio.timeout(within):
            while await connection.fetchval("select count(*) from zart.zart_queue"):
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)
        await connection.close()

    # -- faults

    async def cut_connections(self, *of: str) -> int:
        """End the database sessions of these names, by default those in which workers tick."""
        if self.database.pooled:  # all that the pooler has
            await cut_clients(self.database.dsn)
            return len(self.loops)
        connection = await self.database.connect()
        count: int = await connection.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = any($1) and datname = current_database()",
            of or ["zart worker"],
        )
        await connection.close()
        return count

    async def take_over(self, loop: WorkerLoop) -> int:
        """Take a live worker's claims, as if it had been found dead."""
        freed, worker = 0, loop.place.worker_id  # it takes another identity as soon as it hears
        connection = await self.database.connect()
        for bucket in range(self.database.buckets):
            while True:
                done = await workers.take_over_worker(connection, self.schema, bucket, worker, proof=True, blame=[])
                freed += len(done.freed)
                if done.gone:
                    break
        await connection.close()
        return freed


async def refuse_results_like(connection: asyncpg.Connection, text: str) -> None:
    """Make PostgreSQL refuse journal results that contain this text."""
    await connection.execute(
        f"alter table zart.zart_tasks add constraint refused check (result is null or result::text not like '%{text}%')"
    )
