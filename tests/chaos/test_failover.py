"""A replica becomes the primary, and the workers find it; those that the old one has become read-only for leave it."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from tests.support.database import Database
from tests.support.servers import Server, a_server
from tests.support.trouble import Trouble


def _both(one: Server, other: Server) -> Database:
    """The database of two servers in one URL."""
    hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
    return Database(f"postgresql://postgres@{hosts}/postgres?sslmode=disable", buckets=1)


async def _caught_up(primary: asyncpg.Connection) -> None:
    """Have commits wait for the standby, so that it lacks nothing."""
    await primary.execute("alter system set synchronous_standby_names = '*'")
    await primary.execute("select pg_reload_conf()")


async def test_the_primary_dies_and_its_replica_is_promoted(tmp_path: Path) -> None:
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            promoted = Database(second.dsn, buckets=1)
            connection = await database.connect()
            await _caught_up(connection)
            async with Trouble(_both(first, second), database, tmp_path) as trouble:
                await trouble.load("before")
                await trouble.load("writing", 8, task_name="writing")
                first.stop("immediate")
                second.promote()
                trouble.database = promoted
                reset = await promoted.connect()
                await reset.execute("alter system reset synchronous_standby_names")
                await reset.execute("select pg_reload_conf()")
                await reset.close()
                print(f"{await trouble.back_at_work():.2f} s")
                await trouble.check()


async def test_a_primary_that_is_demoted_is_left(tmp_path: Path) -> None:
    """It goes on to answer, but takes no writes; nobody closes its connections."""
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            promoted = Database(second.dsn, buckets=1)
            connection = await database.connect()
            await _caught_up(connection)
            async with Trouble(_both(first, second), database, tmp_path) as trouble:
                await trouble.load("before")
                await trouble.load("writing", 8, task_name="writing")
                await connection.execute("alter system set default_transaction_read_only = on")
                await connection.execute("select pg_reload_conf()")
                second.promote()
                trouble.database = promoted
                reset = await promoted.connect()
                await reset.execute("alter system reset synchronous_standby_names")
                await reset.execute("select pg_reload_conf()")
                await reset.close()
                print(f"{await trouble.back_at_work():.2f} s")
                await trouble.check()
                left = "select count(*) from pg_stat_activity where application_name like 'zart %'"
                assert await connection.fetchval(left) == 0
            await connection.close()
