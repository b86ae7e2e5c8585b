"""The example of transfers, while its worker processes die by SIGKILL: every balance is exact."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from dataclasses import asdict
from typing import Any

import asyncpg

from examples.transfer import Transfer
from tests.support.database import Database
from tests.support.fleet import Fleet, all_ended, start, unfinished

OWNERS = ("ada", "bob", "eve", "grace")
OPENED_WITH = 1_000_000
TRANSFERS = 600  # each prints a line, and a pipe takes 64 KiB
SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


async def test_every_balance_is_exact_though_workers_are_killed(
    database: Database, connection: asyncpg.Connection
) -> None:
    print(f"ZART_TEST_SEED={SEED}")
    chance, kills = random.Random(SEED), 0
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set deadlock_timeout = '50ms'")
    balances = dict.fromkeys(OWNERS, OPENED_WITH)
    orders: dict[str, Any] = {}
    for n in range(TRANSFERS):
        source, target = chance.sample(OWNERS, 2)
        order = Transfer(source, target, chance.randint(1, 500))
        balances[source] -= order.amount
        balances[target] += order.amount
        orders[f"transfer-{n}"] = asdict(order)
    with Fleet(database, procs=3, app="examples.transfer") as fleet:
        await fleet.ready()
        await start(database, "open-accounts", {"bank": dict.fromkeys(OWNERS, OPENED_WITH)})
        await all_ended(database)
        await start(database, "transfer", orders)
        kill_below = TRANSFERS  # the next one after some more were done: killed all the time, they come to nothing
        while left := await unfinished(database):
            await asyncio.sleep(chance.uniform(0, 0.1))
            victims = sorted((await fleet.workers()).values()) if left < kill_below else []
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    kills, kill_below = kills + 1, left - chance.randint(20, 100)
        await fleet.ready()
        fleet.send(signal.SIGTERM)
        assert await asyncio.to_thread(fleet.process.wait, 30) == 0
    resumed = await connection.fetchval("select count(*) from zart.zart_executions where epoch > 1")
    print(f"{kills} kills, {resumed} executions resumed")
    rows = await connection.fetch("select owner, balance from accounts")
    assert {row["owner"]: row["balance"] for row in rows} == balances
    assert await connection.fetchval("select count(*) from zart.zart_executions where status <> 1") == 0
    assert kills > 0
    assert resumed > 0
