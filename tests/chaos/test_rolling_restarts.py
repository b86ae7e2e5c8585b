"""Runners replaced one after the other under load, as orchestrators do: SIGTERM for one once the next is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import asyncpg

from tests.chaos.invariants import RESUMED, percentile, violations, watch
from tests.chaos.load import Load
from tests.support.database import Database
from tests.support.fleet import Fleet
from zart import PostgresScheduler

RESTARTS = int(os.environ.get("ZART_TEST_RESTARTS", "50"))
SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
LONGEST_RESUME = 2.0


async def test_nothing_is_lost_or_run_again_and_work_resumes_within_two_seconds(
    database: Database, connection: asyncpg.Connection
) -> None:
    print(f"ZART_TEST_SEED={SEED}")
    await watch(connection)
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        load = Load(scheduler, random.Random(SEED))
        starting = asyncio.create_task(load.run(per_second=40))
        began, codes = time.time(), list[int]()
        async with contextlib.AsyncExitStack() as stack:
            runners = [await _started(database, stack), await _started(database, stack)]
            for _ in range(RESTARTS):
                runners.append(await _started(database, stack))
                codes.append((await asyncio.to_thread(runners.pop(0).stop))[0])
            load.stop()
            await starting
            assert await load.all_ended(within=60)
            codes += [(await asyncio.to_thread(runner.stop))[0] for runner in runners]
        await load.close()
    assert codes == [0] * (RESTARTS + 2)
    resumed = [row["seconds"] for row in await connection.fetch(RESUMED, began, time.time())]
    p99 = percentile(resumed, 0.99)
    print(
        f"{RESTARTS} restarts in {time.time() - began:.0f} s, {len(load.accepted)} executions,"
        f" {len(resumed)} handed over: p50 {percentile(resumed, 0.5):.3f} s, p99 {p99:.3f} s"
    )
    assert await violations(connection, load.accepted, [], 0) == []
    assert p99 < LONGEST_RESUME


async def _started(database: Database, stack: contextlib.AsyncExitStack) -> Fleet:
    """A runner whose worker is at work."""
    runner = Fleet(
        database, procs=1, app="tests.chaos.app:registry", config={"park_grace": 0.1}, options={"preload": True}
    )
    stack.enter_context(runner)
    await runner.ready()
    return runner
