"""A server or a worker that is only slow: work comes to its end, and nothing that was kept begins again."""

from __future__ import annotations

import asyncio
import collections
import threading
import time

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.store import journal, workers

BEGAN: collections.defaultdict[str, list[float]] = collections.defaultdict(list)


@pytest.fixture(autouse=True)
def _forget() -> None:
    BEGAN.clear()


@zart_step("effect")
async def effect() -> None:
    BEGAN[threading.current_thread().name].append(time.monotonic())


@zart_durable("stalls-here")
async def stalls_here() -> None:
    if threading.current_thread() is threading.main_thread():
        time.sleep(3)  # noqa: ASYNC251 - as when its process is paused
    await effect()


@zart_step("slow")
async def slow() -> int:
    return 1


@zart_step("writes")
async def writes() -> None:
    BEGAN["writes"].append(time.monotonic())
    conn = await zart.trx()
    await asyncio.sleep(6)
    await conn.execute("select")


@zart_durable("stored-slowly")
async def stored_slowly() -> int:
    return await slow()


@zart_durable("long-transaction")
async def long_transaction() -> None:
    await writes()


async def test_a_tick_that_the_server_needs_long_for_is_given_the_time(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zart.engine.ticker.STATEMENT_TIMEOUT", 0.5)
    await connection.execute(
        "create function slowly() returns trigger language plpgsql as $$"
        " begin perform pg_sleep(3.5); return new; end $$;"
        " create trigger slowly before insert on zart.zart_tasks for each row when (new.name = 'slow')"
        " execute function slowly()"
    )
    async with Engine(database, [stored_slowly, long_transaction], workers=1) as engine:
        await engine.start("b", long_transaction)
        await eventually(lambda: BEGAN["writes"])
        await engine.start("a", stored_slowly)
        assert (await engine.ended("a", within=30)).output == 1
        await engine.ended("b", within=30)
    assert len(BEGAN["writes"]) <= 2  # steps' transactions are left to a server that seems gone, but once


async def test_a_worker_trusts_its_claims_no_longer_than_its_lease(
    database: Database, connection: asyncpg.Connection
) -> None:
    """Nobody renews it, it stands still, and meanwhile others do its work."""
    config = WorkerConfig(lease_timeout=15, shutdown_timeout=1)
    ended: list[float] = []

    async def take_over() -> None:
        theirs = await database.connect()
        (lease,) = await workers.read_leases(theirs, database.schema, [database.bucket])

        async def gone() -> bool:
            done = await workers.take_over_worker(
                theirs, database.schema, database.bucket, lease.id, proof=False, blame=[]
            )
            return done.gone

        await eventually(gone)
        async with Engine(database, [stalls_here], config=config, workers=1) as other:
            await other.ended("a")
            ended.append(time.monotonic())
        await theirs.close()

    async with Engine(database, [stalls_here], config=config, workers=1) as engine:
        await eventually(lambda: engine.loops[0].place.ready)
        await connection.execute("update zart.zart_workers set lease_until = clock_timestamp() + interval '0.6 s'")
        await engine.start("a", stalls_here)
        elsewhere = threading.Thread(target=lambda: asyncio.run(take_over()), name="elsewhere")
        elsewhere.start()
        await eventually(lambda: not elsewhere.is_alive())
        await eventually(lambda: not engine.loops[0].turns)
    assert len(BEGAN["elsewhere"]) == 1
    assert [began for began in BEGAN["MainThread"] if began > ended[0]] == []


async def test_children_of_children_end_with_a_failed_execution_though_they_are_locked_meanwhile(
    database: Database, connection: asyncpg.Connection
) -> None:
    bucket = database.bucket
    async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start("p", "task", 1)
    row = await connection.fetchrow("select id, lane from zart.zart_executions")
    assert row is not None
    ids = [row["id"]]
    for name in ("child", "grandchild"):
        ids.append(
            await connection.fetchval(
                "with it as ("
                " insert into zart.zart_executions("
                " bucket, execution_id, task_name, lane, parent, parent_run, parent_key, step_name)"
                " values ($1, 'zart:' || $4, 'task', $2, $3, 1, 42, $4) returning id, bucket, lane)"
                " insert into zart.zart_queue(bucket, id, lane) select bucket, id, lane from it returning id",
                *(bucket, row["lane"], ids[-1], name),
            )
        )
    await connection.execute("delete from zart.zart_queue where id = $1", ids[0])
    await connection.execute("update zart.zart_executions set status = 2, finished_at = now() where id = $1", ids[0])
    await connection.execute("insert into zart.zart_signals(bucket, id, run, n) values ($1, $2, 1, -1)", bucket, ids[0])
    theirs = await database.connect()
    async with theirs.transaction():
        await theirs.execute("select from zart.zart_queue where id = $1 for update", ids[2])
        await journal.deliver_signals(connection, database.schema, bucket)
    await theirs.close()

    async def delivered() -> bool:
        seen, _ = await journal.deliver_signals(connection, database.schema, bucket)
        return not seen

    await eventually(delivered)
    statuses = await connection.fetch("select status from zart.zart_executions where id = any($1)", ids[1:])
    assert [each["status"] for each in statuses] == [4, 4]
    assert await connection.fetchval("select count(*) from zart.zart_queue") == 0
