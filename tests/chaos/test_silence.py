"""Links to the database fall silent, and nobody says so: no packet comes back, not even a refusal.

`ZART_TEST_BLACK_HOLE` is how long all of them are silent, in seconds: 5 by default, so that what is under way when they
fall silent is given up only after it is over; 60 shows that it does not matter how long.
"""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import start
from tests.support.proxy import Proxy
from tests.support.trouble import Trouble

SECONDS = float(os.environ.get("ZART_TEST_BLACK_HOLE", "5"))


async def test_a_black_hole_between_the_workers_and_the_database(database: Database, tmp_path: Path) -> None:
    async with Proxy(database) as proxy, Trouble(proxy.database, database, tmp_path) as trouble:
        await trouble.load("before")
        await trouble.load("writing", 8, task_name="writing")
        proxy.open_hole()
        await asyncio.sleep(SECONDS)
        proxy.close_hole()
        print(f"{SECONDS:g} s: {await trouble.back_at_work(since=asyncio.get_running_loop().time()):.2f} s")
        await trouble.check()


@pytest.mark.skipif(SECONDS < 15, reason="idle workers hear of it from their supervisor: ZART_TEST_BLACK_HOLE=15")
async def test_a_black_hole_while_the_workers_are_idle(database: Database, tmp_path: Path) -> None:
    """Links on which nobody waits are dead as well."""
    async with Proxy(database) as proxy, Trouble(proxy.database, database, tmp_path) as trouble:
        proxy.open_hole()
        await asyncio.sleep(SECONDS)
        proxy.close_hole()
        print(f"{SECONDS:g} s: {await trouble.back_at_work(since=asyncio.get_running_loop().time()):.2f} s")
        await trouble.check()


async def test_only_the_connection_that_listens_is_dead(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """Work is found within a poll interval all the same, and the connection is made again."""
    listening = (
        "select pid from pg_stat_activity where application_name = 'zart listen' and datname = current_database()"
    )
    async with Proxy(database) as proxy, Trouble(proxy.database, database, tmp_path) as trouble:
        before = await connection.fetchval(listening)
        proxy.silence_all_of("zart listen")
        assert proxy.silenced == 1
        for number in range(3):
            name = f"unheard-{number}"
            await start(database, "steady", {name: 0})
            trouble.started.add(name)
            await eventually(functools.partial(trouble.has_begun, name), within=2)

        async def again() -> bool:
            return any(row["pid"] != before for row in await connection.fetch(listening))

        await eventually(again, within=15)
        await trouble.check()
