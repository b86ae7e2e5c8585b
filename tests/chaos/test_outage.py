"""The database is away for longer than a lease."""

from __future__ import annotations

import asyncio

import asyncpg

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, effects, start
from tests.support.workflows import make_effects

LEASE = 6.0
EXECUTIONS = 20


async def _shut_out(server_dsn: str, name: str, seconds: float) -> None:
    """Refuse every connection to a database for so long."""
    server = await asyncpg.connect(server_dsn)
    await server.execute(f"alter database {name} allow_connections false")
    await server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
    await asyncio.sleep(seconds)
    await server.execute(f"alter database {name} allow_connections true")
    await server.close()


async def test_after_an_outage_nobody_is_dead(database: Database, server_dsn: str) -> None:
    connection = await database.connect()
    await make_effects(connection)
    name = await connection.fetchval("select current_database()")
    await connection.close()
    config = {"lease_timeout": LEASE}
    with Fleet(database, procs=2, config=config) as first, Fleet(database, procs=2, config=config) as second:
        await first.ready()
        await second.ready(2)
        await start(database, "slow", {f"s{n}": LEASE + 4 for n in range(EXECUTIONS)})

        async def all_begun() -> bool:
            return await effects(database) == EXECUTIONS

        await eventually(all_begun)
        await _shut_out(server_dsn, name, LEASE + 1)
        await all_ended(database)
        assert await effects(database) == EXECUTIONS
        assert (first.stop()[1]["DEATHS"], second.stop()[1]["DEATHS"]) == (0, 0)
    connection = await database.connect()
    rows = await connection.fetch("select status, crashes from zart.zart_executions")
    assert [tuple(row) for row in rows] == [(1, 0)] * EXECUTIONS
    await connection.close()
