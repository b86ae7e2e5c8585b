"""What steps leave behind: a row for each try that began, and for nothing else.

Each is written on a connection of its own and committed at once, so that no crash hides it. Its time is that of the
first instruction of the step, by the clock of the machine, which is the database's clock too.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

import zart

TABLE = """
create table effects(
  note uuid primary key, execution_id text not null, step text not null, pid int not null, attempt int not null,
  tries int not null, began timestamptz not null
)
"""
_INSERT = "insert into effects values ($1, $2, $3, $4, $5, $6, to_timestamp($7)) on conflict do nothing"
LOST = OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
"""What asyncpg says of a server that is stopped, killed or cut off."""

_AGAIN_AFTER = 0.05
_DEADLINE = 5.0

_pool: asyncpg.Pool | None = None


@asynccontextmanager
async def open_pool() -> AsyncIterator[None]:
    """The lifespan of the application: a pool per worker process, to the database that EFFECTS_DSN names."""
    global _pool
    _pool = await asyncpg.create_pool(os.environ["EFFECTS_DSN"], min_size=0, max_size=2, command_timeout=_DEADLINE)
    try:
        yield
    finally:
        _pool.terminate()


async def leave_effect(step: str, tries: int = 1) -> None:
    """Note that a try of a step has begun; returns when that is committed, however long the database is away.

    Args:
        step: the name that its checkpoint gets.
        tries: how often it may begin if nothing dies.
    """
    began, note, info = time.time(), uuid.uuid4(), zart.context()
    while True:
        try:
            assert _pool is not None
            await _pool.execute(_INSERT, note, info.execution_id, step, os.getpid(), info.current_attempt, tries, began)
            return
        except LOST:
            await asyncio.sleep(_AGAIN_AFTER)
