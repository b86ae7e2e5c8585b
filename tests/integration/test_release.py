"""Release: an execution comes out of quarantine, and its run goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine

import asyncpg
import pytest
import pytest_asyncio

import zart
from tests.support.database import Database
from tests.support.endings import end_all
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.ticking import start
from zart import zart_durable, zart_step
from zart.engine import failure
from zart.errors import ExecutionFailed, ExecutionNotFound, InvalidArgument
from zart.model import ExecutionRecord, ExecutionStatus, StoredStatus
from zart.scheduler import PostgresScheduler
from zart.store import executions

CONFIG = zart.WorkerConfig(lease_timeout="1h", park_grace=0)
RAN: Counter[str] = Counter()
GATES: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    RAN.clear()
    GATES["slow-child"] = asyncio.Event()


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as connected:
        yield connected


@zart_step("counted")
async def counted() -> str:
    RAN["counted"] += 1
    return "kept"


@zart_step("slow-child")
async def slow_child() -> str:
    RAN["slow-child"] += 1
    await GATES["slow-child"].wait()
    return "slow"


@zart_step("quick-child")
async def quick_child() -> str:
    RAN["quick-child"] += 1
    return "quick"


@zart_durable("waits")
async def waits() -> str:
    first = await counted()
    return first + await zart.wait_for_event("go", str)


@zart_durable("family")
async def family() -> list[str]:
    handles = [zart.schedule(quick_child()), zart.schedule(slow_child())]
    return [outcome.unwrap() for outcome in await zart.wait(handles)]


@zart_durable("mother")
async def mother() -> str:
    try:
        return await waits()
    except zart.ChildFailed as failed:
        return failed.kind


async def quarantine(connection: asyncpg.Connection, name: str) -> None:
    """As if an execution that nobody holds had killed its process too often: a worker claims it, and ends it so."""
    changed = await connection.execute(
        "update zart.zart_queue q set lane = -abs(q.lane), crashes = 99, run_at = now() from zart.zart_executions e"
        " where e.id = q.id and e.execution_id = $1 and q.worker is null",
        name,
    )
    assert changed == "UPDATE 1"


async def waiting(engine: Engine, name: str) -> ExecutionRecord:
    async def there() -> bool:
        return (await engine.record(name)).status == ExecutionStatus.WAITING

    await eventually(there)
    return await engine.record(name)


async def test_the_same_run_goes_on_and_kept_steps_do_not_run_again(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with Engine(database, [waits], config=CONFIG) as engine:
        await engine.start("a", waits)
        await waiting(engine, "a")
        await quarantine(connection, "a")
        assert (await engine.ended("a")).status == ExecutionStatus.QUARANTINED
        epoch = await connection.fetchval("select epoch from zart.zart_executions")
        assert await scheduler.release("a")
        assert not await scheduler.release("a")
        record = await waiting(engine, "a")
        assert (record.run, record.crashes, record.error, record.finished_at) == (1, 0, None, None)
        assert await connection.fetchval("select epoch from zart.zart_queue where lane > 0") > epoch
        await engine.offer("a", "go", "!")
        assert (await engine.ended("a")).output == "kept!"
    assert RAN["counted"] == 1


async def test_children_that_ended_are_known_and_those_cancelled_with_it_run_again(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with Engine(database, [family, quick_child, slow_child], config=CONFIG, workers=2) as engine:
        await engine.start("a", family)

        async def half_done() -> bool:
            found = await connection.fetchval("select count(*) from zart.zart_queue where done = 1 and waiting")
            return found == 1 and RAN["slow-child"] == 1

        await eventually(half_done)
        await quarantine(connection, "a")
        assert (await engine.ended("a")).status == ExecutionStatus.QUARANTINED
        await engine.all_ended()
        assert await scheduler.release("a")
        await eventually(lambda: RAN["slow-child"] == 2)
        GATES["slow-child"].set()
        assert (await engine.ended("a")).output == ["quick", "slow"]
    assert RAN["quick-child"] == 1


async def test_a_child_whose_parent_has_heard_of_it_is_refused(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with Engine(database, [mother, waits], config=CONFIG) as engine:
        await engine.start("a", mother)

        async def waiting_child() -> str | None:
            name: str | None = await connection.fetchval(
                "select e.execution_id from zart.zart_executions e join zart.zart_queue q using (id)"
                " where e.parent is not null and q.waiting and q.worker is null"
            )
            return name

        name = await eventually(waiting_child)
        assert name is not None
        await quarantine(connection, name)
        assert (await engine.ended("a")).output == "quarantined"
        with pytest.raises(InvalidArgument, match="its parent has met its end already; start the work of 'a' again"):
            await scheduler.release(name)
        assert (await scheduler.status(name)).status == ExecutionStatus.QUARANTINED


async def test_the_time_in_quarantine_does_not_count(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task")
    await connection.execute("update zart.zart_executions set deadline = now() + interval '1 h'")
    await end_all(database, status=StoredStatus.QUARANTINED, output=None)
    await connection.execute(
        "update zart.zart_executions set deadline = deadline - interval '1 d',"
        " started_at = started_at - interval '1 d', finished_at = finished_at - interval '1 d'"
    )
    assert await scheduler.release("a")
    row = await connection.fetchrow(
        "select extract(epoch from e.deadline - now())::float8 as ahead,"
        " extract(epoch from now() - q.started_at)::float8 as ago"
        " from zart.zart_executions e join zart.zart_queue q using (id)"
    )
    assert row is not None
    assert 3500 < row["ahead"] <= 3600
    assert 0 <= row["ago"] < 60


@pytest.mark.parametrize("status", [StoredStatus.COMPLETED, StoredStatus.FAILED, None])
async def test_only_what_is_quarantined_is_released(
    database: Database, scheduler: PostgresScheduler, status: StoredStatus | None
) -> None:
    await scheduler.start("a", "task")
    if status is not None:
        await end_all(database, status=status, output=None)
    before = await scheduler.status("a")
    assert not await scheduler.release("a")
    assert await scheduler.status("a") == before


async def test_an_unknown_id_is_told(scheduler: PostgresScheduler) -> None:
    with pytest.raises(ExecutionNotFound):
        await scheduler.release("nobody")


async def test_what_waits_for_it_is_told_why_and_what_to_do(database: Database, scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task")
    error = failure.encode({"kind": "quarantined", "type": "Quarantined", "message": "its process died"})
    await end_all(database, status=StoredStatus.QUARANTINED, output=None, error=error)
    with pytest.raises(ExecutionFailed, match=r"was quarantined: its process died; .* `zart release`") as failed:
        await scheduler.wait_completion("a", int, timeout="20s")
    assert failed.value.error["kind"] == "quarantined"


# -- one winner


Rival = Callable[[asyncpg.Connection, Database], Coroutine[None, None, bool]]


async def release(connection: asyncpg.Connection, database: Database) -> bool:
    return (await executions.release(connection, database.schema, database.bucket, "a")).what == "released"


async def restart(connection: asyncpg.Connection, database: Database) -> bool:
    return await executions.restart(connection, database.schema, database.bucket, "a")


async def purge(connection: asyncpg.Connection, database: Database) -> bool:
    """As one who takes away what has ended."""
    return await connection.execute("delete from zart.zart_executions where status <> 0") == "DELETE 1"


@pytest.mark.parametrize("rival", [release, restart, purge])
@pytest.mark.parametrize("release_is_first", [True, False])
async def test_of_two_at_once_one_wins(
    database: Database, connection: asyncpg.Connection, rival: Rival, release_is_first: bool
) -> None:
    await _start_and_quarantine(database)
    first, second = (release, rival) if release_is_first else (rival, release)
    other, watcher = await database.connect(), await database.connect()
    transaction = connection.transaction()
    await transaction.start()
    assert await first(connection, database)
    later, process = asyncio.create_task(second(other, database)), other.get_server_pid()

    async def waits_for_lock() -> bool:
        text = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
        return later.done() or bool(await watcher.fetchval(text, process))

    await eventually(waits_for_lock)
    await transaction.commit()
    assert not await later
    left = [row["status"] for row in await connection.fetch("select status from zart.zart_executions")]
    assert left == ([] if first is purge else [0])
    assert await connection.fetchval("select count(*) from zart.zart_queue") == len(left)
    await other.close()
    await watcher.close()


async def test_a_cancel_at_the_same_time_comes_too_early_or_ends_what_was_released(
    database: Database, scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await _start_and_quarantine(database)
    transaction = connection.transaction()
    await transaction.start()
    assert await release(connection, database)
    assert not await scheduler.cancel("a")
    await transaction.commit()
    assert await scheduler.cancel("a")
    assert (await scheduler.status("a")).status == ExecutionStatus.CANCELLED
    assert not await scheduler.release("a")


async def _start_and_quarantine(database: Database) -> None:
    """An execution in the test's bucket."""
    connection = await database.connect()
    await start(database, connection, "a")
    await connection.close()
    assert await end_all(database, status=StoredStatus.QUARANTINED, output=None) == 1
