"""Starts and events by SQL functions: in whose transaction, told to whom, allowed to whom."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import zart
from tests.support.database import Database
from tests.support.endings import end_all, ready_worker
from tests.support.eventually import eventually
from tests.support.pages import blocks_of
from tests.support.served import served
from tests.support.shell import ROOT
from zart import PostgresScheduler, WorkerConfig, zart_durable
from zart.store import workers
from zart.store.migrate import migrate

START = "select zart.start_execution($1, $2)"
OFFER = "select zart.offer_event($1, $2)"


@zart_durable("task")
async def task(data: Any) -> list[Any]:
    return [data, await zart.wait_for_event("go")]


@zart_durable("timed", timeout="2h")
async def timed(data: Any) -> Any:
    return data


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as made:
        yield made


# -- in the caller's transaction


async def test_what_is_rolled_back_was_never_there(connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(START, "a", "never seen before")
    await connection.execute(OFFER, "a", "go")
    await transaction.rollback()
    for table in ("lanes", "executions", "queue", "tasks"):
        assert await connection.fetchval(f"select count(*) from zart.zart_{table}") == 0


async def test_what_is_committed_is_run_by_a_worker(database: Database, connection: asyncpg.Connection) -> None:
    async with served(database, task, config=WorkerConfig(park_grace="50ms")) as scheduler:
        async with connection.transaction():
            await connection.execute("select zart.start_execution('a', 'task', '1')")
        await eventually(lambda: connection.fetchval("select waiting from zart.zart_queue"))
        async with connection.transaction():
            assert await connection.fetchval("select zart.offer_event('a', 'go', '2')") == "accepted"
        assert await scheduler.wait_completion("a", list[int], timeout="10s") == [1, 2]


@pytest.mark.parametrize(
    ("statement", "hints"),
    [
        ("select zart.start_execution('b', 'task')", 1),
        ("select zart.start_execution('a', 'task')", 0),
        ("select zart.start_execution('b', 'task', delay => '1 h')", 0),
        ("select zart.start_execution('b', 'not served')", 0),
        ("select zart.offer_event('a', 'go')", 1),
        ("select zart.offer_event('a', 'before')", 0),
    ],
)
async def test_idle_workers_hear_at_the_commit_of_what_they_can_do(
    database: Database, connection: asyncpg.Connection, statement: str, hints: int
) -> None:
    await connection.execute("select zart.start_execution('a', 'task'), zart.offer_event('a', 'before')")
    channel = workers.channel(database.schema)
    idle = [await ready_worker(database, bucket) for bucket in range(database.buckets)]
    for worker in idle:
        await workers.mark_idle(worker.connection, database.schema, worker.bucket, [worker.id], True)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await idle[0].connection.add_listener(channel, lambda *told: heard.put_nowait(told[3]))
    async with connection.transaction():
        await connection.execute(statement)
        await idle[0].connection.execute("select 1")
        assert heard.empty()
    await connection.execute(f"notify {channel}, 'no more'")
    told: list[str] = []
    while "no more" not in told:
        told.append(await heard.get())
    assert told == [""] * hints + ["no more"]
    for worker in idle:
        await worker.connection.close()


async def test_a_start_sees_what_a_rival_commits_meanwhile(database: Database, connection: asyncpg.Connection) -> None:
    rival = await database.connect()
    async with connection.transaction():
        await connection.execute(START, "a", "task")
        started = asyncio.create_task(rival.fetchval(START, "a", "task"))
        await eventually(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
    assert await started is False
    await rival.close()


async def test_transactions_that_begin_the_same_tasks_in_another_order_wait_for_nobody(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    rival = await database.connect()
    await rival.execute("set lock_timeout = '1ms'")
    async with connection.transaction(), rival.transaction():
        await connection.execute(START, "a", "first task")
        await rival.execute(START, "b", "second task")
        await connection.execute(START, "c", "second task")
        await rival.execute(START, "d", "first task")
        async with asyncio.timeout(10):
            await scheduler.start("e", "first task", 1)
            await scheduler.start("f", "first task", 1, conn=connection)
    assert await end_all(database) == 6
    await rival.close()


async def test_of_several_lanes_of_a_task_later_starts_take_the_lowest(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    rival = await database.connect()
    async with connection.transaction():
        await connection.execute(START, "a", "task")
        await rival.execute(START, "b", "task")
    await rival.execute(START, "c", "task")
    await scheduler.start("d", "task")
    lanes = await connection.fetch("select lane from zart.zart_executions order by execution_id")
    assert [row["lane"] for row in lanes] == [1, 2, 1, 1]
    await rival.close()


async def test_a_worker_serves_while_a_transaction_that_began_one_of_its_tasks_is_open(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        await connection.execute("select zart.start_execution('a', 'timed', '1')")
        async with served(database, task, timed) as scheduler:
            assert await scheduler.start_and_wait_for(timed, "b", 2, timeout="10s") == 2


# -- whoever calls


@pytest.mark.parametrize("schema", ["Other", 'my "odd" schema\'s'])
async def test_they_work_in_a_schema_of_any_name_and_with_any_search_path(
    empty_database: Database, schema: str
) -> None:
    connection = await empty_database.connect()
    await migrate(connection, schema, 3)
    name = '"' + schema.replace('"', '""') + '"'
    await connection.execute(
        "create schema mine;"
        " create function mine.now() returns timestamptz language sql return timestamptz '2000-01-01';"
        " create function mine.left(text, int) returns text language sql return text 'mine';"
        " create table mine.zart_lanes(); create table mine.zart_workers();"
        " set search_path = mine, pg_catalog"
    )
    assert await connection.fetchval(f"select {name}.start_execution('a', 'task', '1')")
    assert await connection.fetchval(f"select {name}.offer_event('a', 'go', '1')") == "accepted"
    assert await connection.fetchval(f"select created_at > '2001-01-01' from {name}.zart_executions")
    for refused in ("start_execution('a', 'b', '1e999')", "offer_event('a', 'go', '1e999')"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="of execution 'a': 1e999 is beyond"):
            await connection.execute(f"select {name}.{refused}")
    await connection.close()


def grants(role: str) -> list[str]:
    """What the documentation grants to the role `app`, to another and one by one, as "select on a to caller"."""
    page = ROOT / "docs" / "integration.md"
    text = next(block.text for block in blocks_of(page) if block.language == "sql" and "\ngrant" in block.text)
    return [
        f"{what} on {where} to {role}"
        for whats, wheres in re.findall(r"^grant (.*) on (.*) to app;$", text, re.MULTILINE)
        for what in whats.split(", ")
        for where in wheres.split(", ")
    ]


async def as_role(connection: asyncpg.Connection, role: str) -> None:
    async with connection.transaction():
        await connection.execute(f"set local role {role}")
        await connection.execute(START, "a", "task")
        await connection.execute(OFFER, "a", "go")


async def test_a_role_needs_the_grants_that_are_documented_and_no_other(
    database: Database, connection: asyncpg.Connection
) -> None:
    role = f"caller_of_{await connection.fetchval('select current_database()')}"
    await connection.execute(f"create role {role} login")
    given = grants(role)
    for each in given:
        await connection.execute(f"grant {each}")
    for each in given:
        await connection.execute(f"revoke {each.replace(' to ', ' from ')}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_role(connection, role)
        await connection.execute(f"grant {each}")
    await as_role(connection, role)
    await connection.execute(f"grant select on zart.zart_migrations, zart.zart_settings, zart.zart_records to {role}")
    async with PostgresScheduler.connect(database.dsn.replace("postgres@", f"{role}@")) as scheduler:
        await scheduler.start("b", "task", 1)
        assert await scheduler.offer_event("b", "go") == "accepted"
        assert (await scheduler.status("b")).input == 1
        await end_all(database)
        assert (await scheduler.wait("b", timeout="10s")).status == "completed"
    await connection.execute(f"drop owned by {role}; drop role {role}")
