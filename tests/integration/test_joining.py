"""A body that only waits gives its slot back, in whatever way of asyncio it waits for its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import ExecutionStatus, WorkerConfig, zart_durable


async def by_await() -> None:
    await asyncio.create_task(zart.sleep("one", "1h"))


async def by_gather() -> None:
    await asyncio.gather(zart.sleep("one", "1h"), zart.sleep("two", "1h"))


async def by_wait() -> None:
    await asyncio.wait([asyncio.create_task(zart.sleep("one", "1h"))])


async def by_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(zart.sleep("one", "1h"))
        group.create_task(zart.sleep("two", "1h"))


async def by_groups_in_tasks() -> None:
    await asyncio.gather(by_group(), zart.sleep("three", "1h"))


@pytest.mark.parametrize("wait", [by_await, by_gather, by_wait, by_group, by_groups_in_tasks])
async def test_a_body_that_waits_for_sleeping_tasks_is_put_down(
    database: Database, wait: Callable[[], Awaitable[None]]
) -> None:
    @zart_durable("waits")
    async def waits() -> None:
        await wait()

    config = WorkerConfig(lease_timeout="1h", park_grace="50ms")
    async with Engine(database, [waits], config=config) as engine:
        await engine.start("w", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        await eventually(lambda: not engine.loops[0].turns, within=5)
        assert (await engine.record("w")).status is ExecutionStatus.WAITING
