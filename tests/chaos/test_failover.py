"""A replica becomes the primary, and the workers find it; those that the old one has become read-only for leave it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.servers import Server, a_server
from tests.support.trouble import Trouble
from zart import PostgresScheduler


def _both(one: Server, other: Server) -> Database:
    """The database of two servers in one URL."""
    hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
    return Database(f"postgresql://postgres@{hosts}/postgres?sslmode=disable", buckets=1)


async def _caught_up(primary: asyncpg.Connection) -> None:
    """Have commits wait for the standby, so that it lacks nothing."""
    await primary.execute("alter system set synchronous_standby_names = '*'")
    await primary.execute("select pg_reload_conf()")


async def _promote(replica: Server) -> Database:
    """Have the replica be the primary, which waits for no other."""
    replica.promote()
    database = Database(replica.dsn, buckets=1)
    connection = await database.connect()
    await connection.execute("alter system reset synchronous_standby_names")
    await connection.execute("select pg_reload_conf()")
    await connection.close()
    return database


async def _is_left(server: asyncpg.Connection) -> bool:
    """Nobody is connected any more, but for idle connections of the pool for steps' transactions, which end in time."""
    text = "select count(*) = 0 from pg_stat_activity where application_name like 'zart %' and application_name <> $1"
    left: bool = await server.fetchval(text, "zart trx")
    return left


async def test_the_primary_dies_and_its_replica_is_promoted(tmp_path: Path) -> None:
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            connection = await database.connect()
            await _caught_up(connection)
            async with Trouble(_both(first, second), database, tmp_path) as trouble:
                await trouble.load("before")
                await trouble.load("writing", 8, task_name="writing")
                first.stop("immediate")
                trouble.database = await _promote(second)
                print(f"{await trouble.back_at_work():.2f} s")
                await trouble.check()


async def test_a_primary_that_is_demoted_is_left(tmp_path: Path) -> None:
    """It goes on to answer, but takes no writes; nobody closes its connections."""
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            connection = await database.connect()
            await _caught_up(connection)
            scheduler = await PostgresScheduler.connect(_both(first, second).dsn)
            async with Trouble(_both(first, second), database, tmp_path) as trouble:
                await trouble.load("before")
                await trouble.load("writing", 8, task_name="writing")
                trouble.started.add((await scheduler.start("waited-for", "steady", 0.3)).execution_id)
                waiting = asyncio.create_task(scheduler.wait("waited-for", timeout="30s"))
                await connection.execute("alter system set default_transaction_read_only = on")
                await connection.execute("select pg_reload_conf()")
                trouble.database = await _promote(second)
                print(f"{await trouble.back_at_work():.2f} s")
                assert (await scheduler.start("client", "steady", 0)).created
                trouble.started.add("client")
                assert (await waiting).output == 15
                await trouble.check()
                await scheduler.close()
                await eventually(lambda: _is_left(connection))
            await connection.close()


async def test_no_turn_goes_on_from_what_the_promoted_replica_does_not_have(tmp_path: Path) -> None:
    """The replica had heard nothing for a while. What the primary kept meanwhile is gone, and is done again."""
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            primary, replica = await database.connect(), await asyncpg.connect(second.dsn)
            async with Trouble(_both(first, second), database, tmp_path) as trouble:
                await trouble.load("before", 30, 0.6)

                async def streamed() -> bool:
                    return bool(await replica.fetchval("select count(*) = 30 from zart.zart_queue where worker <> 0"))

                await eventually(streamed)
                await replica.execute("alter system set primary_conninfo = ''")
                await replica.execute("select pg_reload_conf()")

                async def deaf() -> bool:
                    return not await replica.fetchval("select count(*) from pg_stat_wal_receiver")

                await eventually(deaf)
                kept, before = "select count(*) from zart.zart_tasks", set(trouble.started)
                there = await replica.fetchval(kept)
                await trouble.load("lost", 4)

                async def far_ahead() -> bool:
                    return bool(await primary.fetchval(kept) >= there + 30)

                await eventually(far_ahead)
                first.stop("immediate")
                second.promote()
                trouble.started, trouble.database = before, Database(second.dsn, buckets=1)
                print(f"{await trouble.back_at_work():.2f} s")
                await trouble.check()
            await replica.close()
