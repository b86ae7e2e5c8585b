"""Lanes of children that their worker has not met: found between two ticks, while bodies go on scheduling."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from zart import zart_durable, zart_step
from zart.store import queue


async def test_what_is_scheduled_while_lanes_are_asked_for_is_made_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()
    add_lanes = queue.add_lanes

    async def add_slowly(connection: Any, schema: str, pairs: Any) -> Any:
        if set(pairs) == {("here", "first")}:  # not those that a worker begins with
            asked.set()
            await may_answer.wait()
        return await add_lanes(connection, schema, pairs)

    @zart_step("first", queue="here")
    async def first() -> int:
        return 1

    @zart_step("second", queue="there")
    async def second() -> int:
        return 2

    @zart_durable("parent")
    async def parent() -> int:
        one = zart.schedule(first())
        await asked.wait()
        two = zart.schedule(second())
        asyncio.get_running_loop().call_later(0.01, may_answer.set)
        return await one + await two

    monkeypatch.setattr(queue, "add_lanes", add_slowly)
    async with Engine(database, [parent, first, second]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == 3
