"""Workers die by SIGKILL, again and again, under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal

import asyncpg

from tests.support.database import Database
from tests.support.fleet import Fleet, all_ended, start, unfinished
from tests.support.witness import assert_each_completed_once, assert_no_committed_step_began_again, make_witness
from tests.support.workflows import STEPS

EXECUTIONS = 5_000
PROCS = 4
SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


async def test_every_execution_completes_once_and_no_committed_step_starts_again(
    database: Database, connection: asyncpg.Connection
) -> None:
    print(f"ZART_TEST_SEED={SEED}")
    chance, kills = random.Random(SEED), 0
    await make_witness(connection)
    inputs = {f"s{n}": n for n in range(EXECUTIONS)}
    with Fleet(database, procs=PROCS) as fleet:
        await fleet.ready()
        await start(database, "sum", inputs)
        while await unfinished(database):
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            if victims := sorted((await fleet.workers()).values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    kills += 1
        await all_ended(database)
        await fleet.ready()
        code, words, _ = fleet.stop()
    print(f"{kills} kills, {words}")
    assert code == 0
    assert words["TAKEN_OVER"] > 0
    await assert_each_completed_once(connection, {name: n + sum(range(STEPS)) for name, n in inputs.items()})
    await assert_no_committed_step_began_again(connection)
