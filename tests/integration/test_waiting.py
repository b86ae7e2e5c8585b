"""Waiting for results: what each ending comes back as, and what a wait survives."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.endings import Move, end_all, ready_worker
from tests.support.eventually import eventually
from zart.codec import bucket_of
from zart.durable import zart_durable
from zart.errors import (
    DatabaseError,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    InvalidArgument,
    SerializationError,
    WaitTimedOut,
)
from zart.model import ExecutionStatus, StoredStatus, Verb
from zart.scheduler import PostgresScheduler


@dataclass
class Receipt:
    total: int


@zart_durable("buy")
async def buy(item: str) -> Receipt:
    return Receipt(len(item))


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as made:
        yield made


async def cut_connections(connection: asyncpg.Connection) -> int:
    """End the scheduler's database sessions; gives back how many there were."""
    ended: int = await connection.fetchval(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
        " where application_name = 'zart scheduler' and datname = current_database()"
    )
    return ended


async def test_a_wait_gives_the_record_of_what_ended(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(scheduler.wait("a", timeout="20s"))
    await end_all(database, output=b'{"x": 1}')
    record = await wait
    assert (record.status, record.output) == (ExecutionStatus.COMPLETED, {"x": 1})


async def test_what_has_ended_before_is_given_at_once(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    await end_all(database, output=b"7")
    assert await scheduler.wait_completion("a", int, timeout="20s") == 7


async def test_a_handle_waits_for_the_result(scheduler: PostgresScheduler, database: Database) -> None:
    handle = await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(handle.result(timeout="20s"))
    await end_all(database, output=b'{"$zart": "decimal", "value": "1.50"}')
    assert str(await wait) == "1.50"


async def test_the_result_of_a_durable_function_comes_back_as_its_type(
    scheduler: PostgresScheduler, database: Database
) -> None:
    handle = await scheduler.start_for(buy, "a", "tea")
    await end_all(database, output=b'{"total": 3}')
    assert await handle.result(timeout="20s") == Receipt(3)
    assert await scheduler.wait_for(buy, "a", timeout="20s") == Receipt(3)
    assert await scheduler.wait_completion("a", Receipt, timeout="20s") == Receipt(3)


async def test_starting_and_waiting_is_one_call(scheduler: PostgresScheduler, database: Database) -> None:
    wait = asyncio.create_task(scheduler.start_and_wait_for(buy, "a", "tea", timeout="20s"))
    await eventually(lambda: end_all(database, output=b'{"total": 3}'))
    assert await wait == Receipt(3)


async def test_a_result_of_another_type_is_an_error_that_says_so(
    scheduler: PostgresScheduler, database: Database
) -> None:
    await scheduler.start("a", "task", 1)
    await end_all(database, output=b'"seven"')
    told = "result of execution 'a' at $: it does not fit int: Expected `int`, got `str`; wait with the type it was"
    with pytest.raises(SerializationError, match=re.escape(told)):
        await scheduler.wait_completion("a", int, timeout="20s")


async def test_a_failure_comes_with_its_error(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    error = b'{"type": "ValueError", "message": "no tea"}'
    await end_all(database, status=StoredStatus.FAILED, output=None, error=error)
    with pytest.raises(ExecutionFailed, match=r"'a' \(task\) failed: ValueError: no tea") as caught:
        await scheduler.wait_completion("a", int, timeout="20s")
    assert caught.value.error == {"type": "ValueError", "message": "no tea"}


async def test_a_quarantined_execution_has_failed(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    await end_all(database, status=StoredStatus.QUARANTINED, output=None)
    with pytest.raises(ExecutionFailed, match="quarantined"):
        await scheduler.wait_completion("a", int, timeout="20s")


async def test_a_cancel_ends_the_wait(scheduler: PostgresScheduler) -> None:
    handle = await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(handle.result(timeout="20s"))
    await scheduler.cancel("a")
    with pytest.raises(ExecutionCancelled, match="'a'"):
        await wait


async def test_a_wait_for_what_no_worker_takes_up_asks_whether_one_serves_it(scheduler: PostgresScheduler) -> None:
    handle = await scheduler.start("a", "task", 1)
    told = r"'a' is still pending after 0\.05 s: no worker has taken it up; is one serving 'task'\?"
    for wait in (
        scheduler.wait("a", timeout="50ms"),
        scheduler.wait_completion("a", int, timeout="50ms"),
        scheduler.wait_for(buy, "a", timeout="50ms"),
        handle.result(timeout="50ms"),
    ):
        with pytest.raises(WaitTimedOut, match=told) as caught:
            await wait
        assert (caught.value.task_name, caught.value.status) == ("task", "pending")


async def test_a_wait_for_what_runs_says_that_it_goes_on(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    (claim,) = await worker.claim()
    with pytest.raises(WaitTimedOut, match=r"'a' is still running after 0\.05 s; it goes on, wait again"):
        await scheduler.wait("a", timeout="50ms")
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PUT_OFF, due=0.0)])
    with pytest.raises(WaitTimedOut, match=r"'a' is still pending after 0\.05 s; it goes on, wait again"):
        await scheduler.wait("a", timeout="50ms")


async def test_an_execution_of_another_durable_function_is_not_waited_for_by_this_one(
    scheduler: PostgresScheduler, database: Database
) -> None:
    await scheduler.start("a", "task", 1)
    await end_all(database, output=b'"seven"')
    with pytest.raises(InvalidArgument, match=r"execution 'a' is of 'task', not of 'buy'"):
        await scheduler.wait_for(buy, "a", timeout="20s")
    with pytest.raises(ExecutionAlreadyExists, match=r"'a' already exists as 'task'.*'buy'"):
        await scheduler.start_and_wait_for(buy, "a", "tea", timeout="20s")


@pytest.mark.parametrize("timeout", ["soon", -1, float("inf")])
async def test_a_timeout_that_is_no_duration_is_refused(scheduler: PostgresScheduler, timeout: Any) -> None:
    await scheduler.start("a", "task", 1)
    with pytest.raises(InvalidArgument, match="timeout"):
        await scheduler.wait("a", timeout=timeout)
    with pytest.raises(InvalidArgument, match="timeout"):
        await scheduler.start_and_wait_for(buy, "b", "tea", timeout=timeout)


async def test_many_waits_need_one_connection(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    async with PostgresScheduler.connect(database.dsn) as starter:  # closed before: it sends a hint, too
        await starter.start_many("task", [(f"o{n}", n) for n in range(300)])
    await cut_connections(connection)
    waits = [asyncio.create_task(scheduler.wait_completion(f"o{n}", int, timeout="20s")) for n in range(300)]
    sessions = "select count(*) from pg_stat_activity where application_name = 'zart scheduler'"
    await eventually(lambda: connection.fetchval(f"{sessions} and datname = current_database()"))
    assert await end_all(database, output=b"1") == 300
    assert await asyncio.gather(*waits) == [1] * 300
    assert await connection.fetchval(f"{sessions} and datname = current_database()") == 1


async def test_a_wait_survives_the_loss_of_its_connection(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(scheduler.wait_completion("a", int, timeout="20s"))
    for _ in range(5):
        await eventually(lambda: cut_connections(connection))
    assert not wait.done()
    await end_all(database, output=b"1")
    assert await wait == 1


async def allow_connections(server_dsn: str, database: Database, allowed: bool) -> None:
    """Whether anybody may connect to the database; sessions that are there stay."""
    name = database.dsn.partition("?")[0].rpartition("/")[2]
    elsewhere = await asyncpg.connect(server_dsn)
    await elsewhere.execute(f"alter database {name} with allow_connections {allowed}")
    await elsewhere.close()


async def test_a_wait_survives_a_time_without_a_database(
    scheduler: PostgresScheduler,
    database: Database,
    connection: asyncpg.Connection,
    server_dsn: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(scheduler.wait_completion("a", int, timeout="20s"))
    await allow_connections(server_dsn, database, False)
    await cut_connections(connection)
    await eventually(lambda: "no answer" in caplog.text)
    await allow_connections(server_dsn, database, True)
    await end_all(database, output=b"1")
    assert await wait == 1


async def test_a_wait_without_a_database_ends_at_its_time(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection, server_dsn: str
) -> None:
    await scheduler.start("a", "task", 1)
    await allow_connections(server_dsn, database, False)
    await cut_connections(connection)
    with pytest.raises(WaitTimedOut, match=r"'a' did not end within 0\.2 s; it goes on"):
        await scheduler.wait("a", timeout="200ms")


async def test_closing_the_scheduler_ends_its_waits(database: Database) -> None:
    scheduler = await PostgresScheduler.connect(database.dsn)
    await scheduler.start("a", "task", 1)
    wait = asyncio.create_task(scheduler.wait("a"))
    await asyncio.sleep(0)
    await scheduler.close()
    with pytest.raises(DatabaseError, match="closed"):
        await wait
