"""Executions with thousands of steps and children: what one costs does not grow with how many there are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.meters import TICKS
from zart.store import queue

STEPS = 10_000


@zart_step("step-{number}")
async def each(number: int) -> int:
    return number


@zart_durable("wide")
async def wide(count: int) -> int:
    total = sum(await asyncio.gather(*(each(number) for number in range(count))))
    await zart.sleep("nap", 0.2)
    return total + await each(count)


@zart_durable("long")
async def long(count: int) -> int:
    total = 0
    for number in range(count):
        total += await each(number)
    return total


@zart_durable("fan-out")
async def fan_out(count: int) -> int:
    handles = [zart.schedule(each(number)) for number in range(count)]
    return sum(outcome.unwrap() for outcome in await zart.wait(handles))


async def commits_of_steps(engine: Engine) -> int:
    """How many transactions have stored steps."""
    return len(await engine.connection.fetch("select distinct created_at from zart.zart_tasks where kind = 1"))


async def test_a_resume_reads_its_journal_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    load = queue.load_journal

    async def counted(*place: Any) -> list[Any]:
        rows = await load(*place)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(queue, "load_journal", counted)
    async with Engine(database, [wide], config=WorkerConfig(lease_timeout="1h", park_grace=0)) as engine:
        await engine.start("a", wide, STEPS)
        assert (await engine.ended("a", within=60)).output == sum(range(STEPS + 1))
        assert read == [STEPS + 2]  # each step, the sleep, the counters


@pytest.mark.parametrize("count", [10, STEPS])
async def test_steps_side_by_side_share_ticks_however_many_there_are(database: Database, count: int) -> None:
    async with Engine(database, [wide]) as engine:
        await engine.start("a", wide, count)
        assert (await engine.ended("a", within=60)).output == sum(range(count + 1))
        assert await commits_of_steps(engine) < 5 + count / 500


async def test_a_step_after_a_thousand_others_takes_one_tick_as_the_first_did(database: Database) -> None:
    async with Engine(database, [long]) as engine:
        await engine.start("a", long, 1_000)
        assert (await engine.ended("a", within=60)).output == sum(range(1_000))
        assert await commits_of_steps(engine) == 1_000


async def test_what_is_scheduled_in_one_turn_is_made_by_one_statement(database: Database) -> None:
    async with Engine(database, [fan_out, each]) as engine:
        await engine.start("a", fan_out, 500)
        assert (await engine.ended("a")).output == sum(range(500))
        moments = "select distinct created_at from zart.zart_executions where parent is not null"
        assert len(await engine.connection.fetch(moments)) == 1


async def test_children_at_one_slot_cost_the_same_each(database: Database) -> None:
    ticks: list[int] = []
    one_slot = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1)
    async with Engine(database, [fan_out, each], config=one_slot) as engine:
        for count in (100, 1_000):
            before = engine.loops[0].place.words[TICKS]
            await engine.start(f"a{count}", fan_out, count)
            assert (await engine.ended(f"a{count}", within=60)).output == sum(range(count))
            ticks.append(engine.loops[0].place.words[TICKS] - before)
    assert ticks[1] / 1_000 < 1.5 * ticks[0] / 100 + 0.5
