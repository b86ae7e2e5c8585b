"""Many parents and their children on several workers, while connections are cut and workers taken over.

Each parent must be woken by its last child, whoever ends it and whatever dies meanwhile; else it waits for ever.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.modes import Mode
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.store import workers

SEED = int(os.environ.get("SEED", random.randrange(10**6)))
PARENTS = int(os.environ.get("PARENTS", 20))


@zart_step("leaf-{parent}-{number}")
async def leaf(parent: int, number: int) -> int:
    if number % 3 == 0:
        await asyncio.sleep(random.random() * 0.02)
    return number


@zart_durable("twig")
async def twig(number: int) -> int:
    first, second = zart.schedule(leaf(number, 100)), zart.schedule(leaf(number, 101))
    return await second - await first + number


@zart_durable("tree")
async def tree(number: int) -> int:
    leaves = [zart.schedule(leaf(number, each)) for each in range(6)]
    twigs = [zart.schedule(twig(each).named(f"twig-{each}")) for each in range(2)]
    last_two = await zart.wait(leaves[4:])
    rest = await zart.wait([*leaves[:4]])
    return sum(outcome.unwrap() for outcome in [*last_two, *rest]) + await twigs[0] + await twigs[1]


async def disturb(engine: Engine, chance: random.Random) -> None:
    """Until cancelled: a cut connection, a takeover of a live worker, or a held row, one after the other."""
    while True:
        await asyncio.sleep(chance.random() * 0.1)
        match chance.randrange(4):
            case 0:
                await engine.cut_connections()
            case 1:
                await engine.take_over(chance.choice(engine.loops))
            case _:
                await hold_a_row(engine, chance)
        await bury(engine)


async def bury(engine: Engine) -> None:
    """Free what identities of the past still hold, as an observer does: their rows were locked when they were left."""
    known = {id for loop in engine.loops for id in (loop.place.worker_id, loop.place.previous_id)}
    for row in await engine.connection.fetch("select id from zart.zart_workers"):
        if row["id"] not in known:
            await workers.take_over_worker(engine.connection, engine.schema, 0, row["id"], proof=True, blame=[])


async def hold_a_row(engine: Engine, chance: random.Random) -> None:
    """Lock a few queue rows for a moment, as an offer in a user's open transaction does."""
    connection: asyncpg.Connection = await engine.database.connect()
    async with connection.transaction():
        await connection.execute(
            "select from zart.zart_queue where id % 7 = $1 for no key update skip locked", chance.randrange(7)
        )
        await asyncio.sleep(chance.random() * 0.05)
    await connection.close()


@pytest.mark.parametrize("config", [{}, {"park_grace": 0}, {"max_concurrent_tasks": 3}], ids=str)
@pytest.mark.parametrize("mode", [Mode.AS_IS, Mode.ALTERNATING])
async def test_the_last_child_wakes_its_parent_whatever_happens(
    database: Database, config: dict[str, Any], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"SEED={SEED} PARENTS={PARENTS}")
    chance = random.Random(SEED)
    monkeypatch.setattr(Engine, "mode", mode)
    settings = WorkerConfig(lease_timeout="1h", **config)
    async with Engine(database, [tree, twig, leaf], config=settings, workers=3) as engine:
        await eventually(lambda: all(loop.place.ready for loop in engine.loops))
        trouble = asyncio.create_task(disturb(engine, chance))
        for number in range(PARENTS):
            await engine.start(f"t{number}", tree, number)
        for number in range(PARENTS):
            assert (await engine.ended(f"t{number}", within=60)).output == 15 + 1 + 2, number
        assert not trouble.done()
        trouble.cancel()
        await asyncio.wait([trouble])
        await engine.all_ended()
        made = await engine.connection.fetchval("select count(*) from zart.zart_executions")
        assert made == PARENTS * (1 + 6 + 2 * 3)
        twice = "select count(*) from zart.zart_executions where run > 1 or status <> 1"
        assert await engine.connection.fetchval(twice) == 0
