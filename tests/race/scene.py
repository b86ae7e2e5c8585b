"""What the interleavings are played with: workers, users and an observer, each on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import asyncpg

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.ticking import TickingWorker, start
from zart.store import workers
from zart.store.statements import in_schema, statement

T = TypeVar("T")


class Scene:
    """One database with its players. What must not happen is collected in `violations`."""

    def __init__(self, database: Database) -> None:
        self.database, self.schema, self.bucket = database, database.schema, database.bucket
        self.violations: list[str] = []
        self.lane = 0
        self._connections: list[asyncpg.Connection] = []

    async def __aenter__(self) -> Scene:
        self.observer = await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.terminate()

    async def connect(self) -> asyncpg.Connection:
        connection = await self.database.connect()
        self._connections.append(connection)
        return connection

    async def start(self, *execution_ids: str) -> None:
        """Start executions of the one task there is."""
        self.lane = await start(self.database, self.observer, *execution_ids)

    async def worker(self) -> TickingWorker:
        """A registered worker."""
        worker = TickingWorker(await self.connect(), self.schema, self.bucket, [self.lane])
        await worker.register()
        return worker

    async def take_over(self, worker: int) -> None:
        """What a supervisor does about a dead worker, until it is gone or its remaining rows are locked."""
        for _ in range(3):
            done = await workers.take_over_worker(
                self.observer, self.schema, self.bucket, worker, proof=True, blame=None
            )
            if done.gone:
                return

    async def fetchval(self, query: str, *arguments: object) -> Any:
        """One value, seen by the observer; `:schema.` stands before tables."""
        return await self.observer.fetchval(in_schema(query, self.schema), *arguments)

    async def run_at_of(self, id: int) -> str:
        """`due`, `later` or `never`: when an unfinished execution may be claimed; `gone` when it has ended."""
        found: str | None = await self.fetchval(
            "select case when run_at <= clock_timestamp() then 'due' when run_at = 'infinity' then 'never'"
            " else 'later' end from :schema.zart_queue where id = $1",
            id,
        )
        return found or "gone"

    async def stranded(self) -> int:
        """How many claims belong to a worker that is not registered or dead."""
        found: int = await self.fetchval(
            "select count(*) from :schema.zart_queue q where q.worker is not null and not exists"
            " (select from :schema.zart_workers w where w.bucket = q.bucket and w.id = q.worker and not w.dead)"
        )
        return found

    def must(self, holds: bool, violation: str) -> None:
        """Note a violation unless this holds."""
        if not holds:
            self.violations.append(violation)

    async def begin(self, connection: asyncpg.Connection, statement: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Send a statement on a connection; back when it is answered, or waits for a lock."""
        task = asyncio.ensure_future(statement)
        process = connection.get_server_pid()

        async def answered_or_waiting() -> bool:
            return task.done() or await self.fetchval(
                "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1", process
            )

        await eventually(answered_or_waiting)
        return task


async def put_in(database: Database, function: str, *replacements: tuple[str, str]) -> None:
    """Replace a function of the schema by its own text with a fault put in.

    Raises:
        AssertionError: a passage to be replaced is not in the text exactly once.
    """
    text = statement(function, database.schema).replace("create function", "create or replace function")
    for passage, fault in replacements:
        found, wanted = (in_schema(each, database.schema) for each in (passage, fault))
        assert text.count(found) == 1, f"{function} has {text.count(found)} times, not once: {found}"
        text = text.replace(found, wanted)
    connection = await database.connect()
    await connection.execute(text)
    await connection.close()
