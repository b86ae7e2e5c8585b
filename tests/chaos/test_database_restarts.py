"""The database stops, crashes, loses connections, refuses them; the same worker processes go on afterwards."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.support.database import Database
from tests.support.servers import Server, a_server
from tests.support.trouble import Trouble

SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


async def _shut_out(server: Server) -> None:
    """Let nobody into the database for a while."""
    connection = await asyncpg.connect(urlsplit(server.dsn)._replace(path="/template1").geturl())
    await connection.execute("alter database postgres allow_connections false")
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'postgres'")
    await asyncio.sleep(2)
    await connection.execute("alter database postgres allow_connections true")
    await connection.close()


async def test_stopped_crashed_or_closed_the_database_comes_back_to_the_same_workers(tmp_path: Path) -> None:
    with a_server() as server:
        database = await server.database()
        async with Trouble(database, database, tmp_path) as trouble:
            await trouble.load("before")
            await trouble.load("writing", 8, task_name="writing")
            for mode in ("fast", "immediate"):
                server.stop(mode)
                server.start()
                print(f"{mode}: {await trouble.back_at_work(mode):.2f} s")
            await trouble.check()


async def test_connections_killed_at_random(database: Database, tmp_path: Path) -> None:
    print(f"ZART_TEST_SEED={SEED}")
    chance, killed = random.Random(SEED), 0
    connection = await database.connect()
    async with Trouble(database, database, tmp_path) as trouble:
        await trouble.load("before", 100)
        await trouble.load("writing", 30, 0.1, task_name="writing")
        for _ in range(40):
            rows = await connection.fetch(
                "select pid from pg_stat_activity where application_name like 'zart %' and datname = current_database()"
            )
            victim = chance.choice([row["pid"] for row in rows] or [0])
            killed += await connection.fetchval("select pg_terminate_backend($1)::int", victim)
            await asyncio.sleep(chance.uniform(0, 0.15))
        print(f"{killed} killed, {await trouble.back_at_work():.2f} s")
        await trouble.check()
    assert killed > 20
    await connection.close()
