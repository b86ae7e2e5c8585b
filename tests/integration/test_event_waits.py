"""An event of a later wait is not overlooked when that of an earlier one is heard."""

from __future__ import annotations

import asyncio

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import zart_durable
from zart.config import WorkerConfig


async def test_an_event_is_found_that_came_with_another_before_its_wait_began_again(database: Database) -> None:
    gate = asyncio.Event()
    gate.set()
    turns = 0

    @zart_durable("two-events")
    async def two_events() -> list[int]:
        nonlocal turns
        turns += 1

        async def late() -> int:
            await gate.wait()
            return await zart.wait_for_event("b", int)

        return list(await asyncio.gather(zart.wait_for_event("wake", int), zart.wait_for_event("a", int), late()))

    config = WorkerConfig(lease_timeout="1h", park_grace=0.2)
    async with Engine(database, [two_events], config=config) as engine:
        await engine.start("x", two_events)
        await eventually(lambda: engine.connection.fetchval("select bool_or(waiting) from zart.zart_queue"))
        gate.clear()
        await engine.offer("x", "wake", 1)
        await eventually(lambda: turns == 2)
        [turn] = engine.loops[0].turns.values()
        await eventually(lambda: len(turn.events) == 1)
        await engine.offer("x", "b", 2)
        await engine.offer("x", "a", 3)
        await eventually(lambda: not turn.events)
        gate.set()
        assert (await engine.ended("x", within=5)).output == [1, 3, 2]
