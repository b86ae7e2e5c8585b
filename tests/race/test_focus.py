"""Two players at a time, thousands of random interleavings of the same two statements."""

from __future__ import annotations

import asyncio
import os
import random

from tests.race.scene import Scene
from tests.support.database import Database
from tests.support.ticking import Child, Claim, Move
from zart.model import Verb
from zart.store import executions

SECONDS = float(os.environ.get("ZART_RACE_SECONDS", "20")) / 4
SEED = int(os.environ.get("ZART_RACE_SEED") or random.getrandbits(32))


async def test_no_child_outlives_a_cancelled_parent(database: Database) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with Scene(database) as scene:
        await scene.start("warm up")
        worker, user = await scene.worker(), await scene.connect()
        await executions.cancel(user, scene.schema, scene.bucket, "warm up")

        async def add_children(parent: Claim) -> bool:
            await asyncio.sleep(chance.random() * 0.0015)
            children = [Child(parent.id, 1, key, f"child {key}", "task", scene.lane) for key in range(30)]
            answer = await worker.tick(moves=[Move(parent.id, 1, Verb.PARK, done_at=30)], children=children)
            return bool(answer.applied)

        async def cancel(name: str) -> None:
            await asyncio.sleep(chance.random() * 0.0025)
            await executions.cancel(user, scene.schema, scene.bucket, name)

        added = 0
        end = asyncio.get_running_loop().time() + SECONDS
        while asyncio.get_running_loop().time() < end:
            name = f"parent {chance.getrandbits(60)}"
            await scene.start(name)
            [parent] = await worker.claim()
            was_added, _ = await asyncio.gather(add_children(parent), cancel(name))
            added += was_added
            left = await scene.fetchval("select count(*) from :schema.zart_queue")
            assert left == 0, f"{left} children of a cancelled parent live on, seed {SEED}"
    assert added > 0
