"""A worker beside the test, as a service embeds one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.database import Database
from zart import DurableExecution, PostgresScheduler, TaskRegistry, Worker, WorkerConfig


@asynccontextmanager
async def served(
    database: Database, *durables: DurableExecution[Any, Any], config: WorkerConfig | None = None
) -> AsyncGenerator[PostgresScheduler, None]:
    """A scheduler, and a worker that serves these until the block ends."""
    registry = TaskRegistry()
    for durable in durables:
        registry.register(durable)
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, registry, config or WorkerConfig())
        running = asyncio.create_task(worker.run())
        try:
            await worker.ready()
            yield scheduler
        finally:
            worker.stop()
            await running
