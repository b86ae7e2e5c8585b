"""`Worker`: the engine inside any asyncio program, with nobody else to help it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from zart import PostgresScheduler, TaskRegistry, Worker, WorkerConfig, zart_durable, zart_step
from zart.errors import DatabaseError, RegistrationError
from zart.meters import TICKS
from zart.model import ExecutionStatus

RAN: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@zart_step("greet")
async def greet(name: str) -> str:
    RAN["greet"] += 1
    return f"hello {name}"


@zart_step("dawdle")
async def dawdle() -> int:
    RAN["dawdle"] += 1
    await asyncio.sleep(0.5)
    RAN["dawdled"] += 1
    return RAN["dawdle"]


@zart_durable("greeting")
async def greeting(name: str) -> str:
    return await greet(name)


@zart_durable("dawdling")
async def dawdling() -> str:
    await dawdle()
    return await greet("late")


def registry(**options: object) -> TaskRegistry:
    made = TaskRegistry(**options)  # type: ignore[arg-type]
    made.register(greeting)
    made.register(dawdling)
    return made


async def test_a_start_is_picked_up_run_and_awaited(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, registry(), WorkerConfig())
        running = asyncio.create_task(worker.run())
        await worker.ready()
        assert worker.place.ready
        assert await scheduler.start_and_wait_for(greeting, "g", "ada", timeout=10) == "hello ada"
        worker.stop()
        await asyncio.wait_for(running, 5)


async def test_an_idle_worker_hears_of_a_start_without_waiting_for_its_poll(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, registry(), WorkerConfig(poll_interval="30s"))
        running = asyncio.create_task(worker.run())
        await scheduler.start_and_wait_for(greeting, "warm", "up", timeout=10)
        connection = await database.connect()
        await eventually(lambda: connection.fetchval("select bool_and(idle) from zart.zart_workers"))
        await connection.close()
        began = time.monotonic()
        await scheduler.start_and_wait_for(greeting, "g", "ada", timeout=10)
        assert time.monotonic() - began < 5
        worker.stop()
        await asyncio.wait_for(running, 5)


async def test_with_every_hint_lost_work_is_found_by_polling(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        connection = await database.connect()
        worker = Worker(scheduler, registry(), WorkerConfig(poll_interval="200ms"))
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.place.ready)
        async with connection.transaction():  # a start in a transaction that began before the worker was idle
            handle = await scheduler.start_for(greeting, "g", "ada", conn=connection)
            await connection.execute("select pg_sleep(0.3)")
        assert await handle.result(timeout=5) == "hello ada"
        worker.stop()
        await asyncio.wait_for(running, 5)
        await connection.close()


async def test_cancelling_run_drains(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        running = asyncio.create_task(Worker(scheduler, registry()).run())
        await scheduler.start_for(dawdling, "d")
        await eventually(lambda: RAN["dawdle"])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert RAN["dawdled"] == 1
        assert [step.name for step in await scheduler.history("d")] == ["dawdle"]
        assert (await scheduler.status("d")).status is ExecutionStatus.PENDING


async def test_the_lifespan_is_entered_before_the_first_claim_and_left_after_the_last(database: Database) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        assert not RAN["greet"]
        RAN["entered"] += 1
        yield
        RAN["left"] += RAN["greet"]

    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start_for(greeting, "g", "ada")
        worker = Worker(scheduler, registry(lifespan=lifespan))
        running = asyncio.create_task(worker.run())
        await scheduler.wait("g", timeout=10)
        worker.stop()
        await running
        assert RAN == {"entered": 1, "greet": 1, "left": 1}


async def test_a_worker_that_handles_signals_drains_on_sigterm(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, registry())
        running = asyncio.create_task(worker.run(handle_signals=True))
        await eventually(lambda: worker.place.ready)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 5)


async def test_a_blocked_event_loop_loses_its_lease_and_its_work(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        config = WorkerConfig(lease_timeout="1s", poll_interval="100ms")
        blocked = Worker(scheduler, registry(), config)
        running = asyncio.create_task(blocked.run())
        await eventually(lambda: blocked.place.ready)
        identity = blocked.place.worker_id
        connection = await database.connect()
        lease = await connection.fetchval("select lease_until from zart.zart_workers where id = $1", identity)
        await eventually(
            lambda: connection.fetchval("select lease_until > $2 from zart.zart_workers where id = $1", identity, lease)
        )
        time.sleep(2.5)  # noqa: ASYNC251, a blocked loop is what this is about
        assert not await connection.fetchval(
            "select lease_until > clock_timestamp() from zart.zart_workers where id = $1", identity
        )
        assert await scheduler.start_and_wait_for(greeting, "after", "all", timeout=10) == "hello all"
        await connection.close()
        blocked.stop()
        await asyncio.wait_for(running, 5)


async def test_a_registry_without_durables_and_a_database_without_schema_are_refused(
    empty_database: Database,
) -> None:
    async with PostgresScheduler.connect(empty_database.dsn) as scheduler:
        with pytest.raises(RegistrationError, match="no durable function"):
            Worker(scheduler, TaskRegistry())
        worker = Worker(scheduler, registry())
        running = asyncio.create_task(worker.run())
        with pytest.raises(DatabaseError, match="zart migrate"):
            await worker.ready()
        with pytest.raises(DatabaseError, match="zart migrate"):
            await running


async def test_a_worker_that_is_busy_takes_up_what_comes_meanwhile(database: Database) -> None:
    @zart_step("step-{number}")
    async def step(number: int) -> None: ...

    @zart_durable("endless")
    async def endless() -> None:
        for number in itertools.count():
            await step(number)

    served = registry()
    served.register(endless)
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, served)
        running = asyncio.create_task(worker.run())
        await scheduler.start_for(endless, "busy")
        await eventually(lambda: worker.place.words[TICKS] > 20)
        await asyncio.sleep(1.5)  # nobody thinks any more that it is idle
        for number in range(8):  # in each bucket some
            await scheduler.start_and_wait_for(greeting, f"g{number}", "ada", timeout=3)
        await scheduler.cancel("busy")
        worker.stop()
        await asyncio.wait_for(running, 5)


async def test_an_open_transaction_that_holds_a_queue_row_delays_no_other_execution(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        worker = Worker(scheduler, registry())
        running = asyncio.create_task(worker.run())
        await scheduler.start_for(dawdling, "held")
        await eventually(lambda: RAN["dawdle"])
        connection = await database.connect()
        transaction = connection.transaction()
        await transaction.start()
        await scheduler.offer_event("held", "anything", 1, conn=connection)  # holds the row until the end
        handles = [await scheduler.start_for(greeting, f"g{n}", "ada") for n in range(50)]
        await asyncio.gather(*(handle.result(timeout=5) for handle in handles))
        await eventually(lambda: RAN["greet"] == 51)  # "held" has come to its end too, and cannot be written down
        ticks = worker.place.words[TICKS]
        await asyncio.sleep(0.5)
        assert worker.place.words[TICKS] - ticks < 50, "a busy row is asked for all the time"
        assert (await scheduler.status("held")).status is ExecutionStatus.RUNNING
        await transaction.rollback()
        assert await scheduler.wait_for(dawdling, "held", timeout=5) == "hello late"
        await connection.close()
        worker.stop()
        await asyncio.wait_for(running, 5)
