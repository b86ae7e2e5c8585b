"""The supervisor against real rows: leases, takeovers, wakes, signals, lost connections."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncpg
import pytest

from tests.support import fleet
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.ticking import Move, TickingWorker, start
from zart.config import WorkerConfig
from zart.engine.supervisor import Supervisor
from zart.metrics import Place
from zart.model import Verb
from zart.store import workers

LEASE = 1.0


@dataclass(slots=True)
class Supervised:
    """A running supervisor, and the places it woke, in order."""

    supervisor: Supervisor
    woken: list[int] = field(default_factory=list[int])


@asynccontextmanager
async def supervised(
    database: Database, places: Sequence[Place], *, lease: float = LEASE, poll: float = 0.05
) -> AsyncIterator[Supervised]:
    woken: list[int] = []
    supervisor = Supervisor(
        dsn=database.dsn,
        schema=database.schema,
        config=WorkerConfig(lease_timeout=lease, poll_interval=poll, max_concurrent_tasks=8),
        places=places,
        wake=woken.append,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield Supervised(supervisor, woken)
    finally:
        supervisor.stop()
        await task


@asynccontextmanager
async def registered(
    database: Database, *execution_ids: str, lease: float = 3600.0
) -> AsyncIterator[tuple[TickingWorker, Place]]:
    """A worker that has claimed the given executions, and its place."""
    connection = await database.connect()
    lane = await start(database, connection, *execution_ids) if execution_ids else 0
    worker = TickingWorker(connection, database.schema, database.bucket, [lane])
    await _register_everywhere(worker, database.buckets, lease)
    if execution_ids:
        assert len(await worker.claim(len(execution_ids))) == len(execution_ids)
    try:
        yield worker, _place(worker.id)
    finally:
        with suppress(OSError, asyncpg.InterfaceError):
            await connection.close()


async def _register_everywhere(worker: TickingWorker, buckets: int, lease: float) -> None:
    served = worker.bucket
    for worker.bucket in range(buckets):
        await worker.register(lease=lease)
    worker.bucket = served


def _place(worker_id: int) -> Place:
    place = Place.private()
    place.worker_id, place.ready, place.idle = worker_id, 1, 1
    return place


@asynccontextmanager
async def beating(*places: Place) -> AsyncIterator[None]:
    """Loop counters that rise, as those of healthy workers do."""

    async def beat() -> None:
        while True:
            for place in places:
                place.loop_count += 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(beat())
    yield
    task.cancel()


async def _remaining(connection: asyncpg.Connection, worker_id: int) -> float | None:
    """Seconds until a worker's lease passes, None when it is not registered."""
    found: float | None = await connection.fetchval(
        "select min(extract(epoch from lease_until - clock_timestamp())::float8) from zart.zart_workers"
        " where id = $1 and not dead",
        worker_id,
    )
    return found


async def _held(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("select count(*) from zart.zart_queue where worker is not null"))


# Leases


async def test_leases_of_live_workers_are_renewed(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database, "a", lease=LEASE) as (worker, place), beating(place):
        first = await connection.fetchval("select max(lease_until) from zart.zart_workers")
        async with supervised(database, [place]):

            async def renewed_thrice() -> bool:
                query = "select min(lease_until) > $1::timestamptz + interval '1 second' from zart.zart_workers"
                return bool(await connection.fetchval(query, first))

            await eventually(renewed_thrice)
            assert await worker.tick() is not None
            assert await _held(connection) == 1


async def test_a_worker_whose_loop_stands_still_loses_its_work(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "a", lease=LEASE) as (worker, place), supervised(database, [place]):

        async def freed() -> bool:
            return await _held(connection) == 0

        await eventually(freed)
        assert (await worker.tick()).fenced


async def test_a_dead_place_is_not_renewed(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database, "a", lease=LEASE) as (worker, place), supervised(database, [place]):
        place.clear()

        async def forgotten() -> bool:
            return await _remaining(connection, worker.id) is None

        await eventually(forgotten)


async def test_expired_workers_of_other_hosts_are_taken_over_and_nobody_is_blamed(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "a", "b", lease=0.2), supervised(database, []):

        async def freed() -> bool:
            return await _held(connection) == 0

        await eventually(freed)
        assert await connection.fetchval("select max(crashes) from zart.zart_queue") == 0
        assert await connection.fetchval("select min(lane) from zart.zart_queue") > 0


async def test_workers_whose_leases_are_renewed_by_others_are_left_alone(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "a", lease=LEASE) as (healthy, _), registered(database, lease=0.1) as (dead, _):

        async def renew() -> None:
            while True:
                for bucket in range(database.buckets):
                    await workers.renew_leases(connection, database.schema, bucket, [healthy.id], LEASE)
                await asyncio.sleep(LEASE / 5)

        renewing = asyncio.create_task(renew())
        watching = await database.connect()
        async with supervised(database, []):

            async def dead_one_is_gone() -> bool:
                return await _remaining(watching, dead.id) is None

            await eventually(dead_one_is_gone)
            assert await _held(watching) == 1
        renewing.cancel()
        await watching.close()


# Deaths


async def test_a_reported_death_frees_the_claims_at_once(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database, "a", "b", "c") as (worker, place), supervised(database, [place]) as running:
        place.clear()
        assert await running.supervisor.report_death([worker.id], []) == 3
        assert await _held(connection) == 0
        assert await _remaining(connection, worker.id) is None


async def test_what_was_executing_at_a_death_is_set_apart(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database, "a", "b") as (worker, _), supervised(database, []) as running:
        guilty = await connection.fetchval("select id from zart.zart_executions where execution_id = 'a'")
        await running.supervisor.report_death([worker.id], [guilty])
        rows = await connection.fetch("select id, crashes, lane < 0 as apart from zart.zart_queue")
        assert {row["id"]: (row["crashes"], row["apart"]) for row in rows} == {
            row["id"]: (1, True) if row["id"] == guilty else (0, False) for row in rows
        }


async def test_an_unknown_worker_is_no_obstacle(database: Database) -> None:
    async with supervised(database, []) as running:
        assert await running.supervisor.report_death([12345], None) == 0


async def test_a_change_of_identity_under_way_loses_nothing(database: Database, connection: asyncpg.Connection) -> None:
    """The worker died after it sent its registration as another, whose transaction is still open."""
    async with registered(database, "a", "b") as (worker, _), supervised(database, []) as running:
        other = TickingWorker(await database.connect(), database.schema, database.bucket, worker.lanes)
        transaction = other.connection.transaction()
        await transaction.start()
        assert len(await other.register(old=worker.id)) == 2
        report = asyncio.create_task(running.supervisor.report_death([worker.id, other.id], []))
        await _tried_to_take_over(connection)
        assert not report.done()
        await transaction.commit()
        assert await report == 2
        assert await _held(connection) == 0
        await other.connection.close()


async def _tried_to_take_over(connection: asyncpg.Connection) -> None:
    """Returns when the supervisor has begun with a takeover."""

    async def tried() -> bool:
        text = (
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name = 'zart supervisor' and query like '%zart_take_over_worker_1%'"
        )
        return bool(await connection.fetchval(text))

    await eventually(tried)


async def test_a_worker_that_keeps_its_last_tick_open_is_evicted(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "a") as (worker, _), supervised(database, []) as running:
        await worker.connection.execute("begin")
        await worker.tick()
        assert await running.supervisor.report_death([worker.id], []) == 1
        assert await _held(connection) == 0


async def test_a_users_open_transaction_holds_up_its_own_execution_only(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "a", "b", "c") as (worker, _), supervised(database, []) as running:
        user = await database.connect()
        await user.execute("begin")
        await user.execute("select from zart.zart_queue order by id limit 1 for update")
        report = asyncio.create_task(running.supervisor.report_death([worker.id], []))

        async def others_are_free() -> bool:
            return await _held(connection) == 1

        await eventually(others_are_free)
        assert not report.done()
        await user.execute("rollback")
        assert await report == 3
        await user.close()


# Work


async def test_an_idle_worker_is_woken_when_there_is_work(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database) as (_, place), beating(place), supervised(database, [place]) as running:
        await start(database, connection, "a")
        await eventually(lambda: running.woken)


async def test_no_worker_is_woken_without_work(database: Database, connection: asyncpg.Connection) -> None:
    async with (
        registered(database) as (_, idle),
        registered(database) as (_, busy),
        beating(idle, busy),
        supervised(database, [idle, busy]) as running,
    ):
        busy.idle, busy.held = 0, 8
        await _marked(connection, idle.worker_id)
        assert running.woken in ([], [0])  # at most for the hint that may have come before it listened
        await start(database, connection, "a")
        await eventually(lambda: running.woken[-1:] == [0])
        assert 1 not in running.woken


async def test_work_of_tasks_that_nobody_here_serves_wakes_nobody(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database) as (_, place), beating(place), supervised(database, [place]) as running:
        await _marked(connection, place.worker_id)
        running.woken.clear()
        await fleet.start(database, "other", {"a": None})
        await _marked(connection, place.worker_id)
        assert running.woken == []
        await start(database, connection, "b")
        await eventually(lambda: running.woken)


async def test_a_hint_wakes_an_idle_worker_long_before_the_poll(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with (
        registered(database) as (_, place),
        beating(place),
        supervised(database, [place], poll=3600, lease=60) as running,
    ):
        await _marked(connection, place.worker_id)
        await start(database, connection, "a")

        async def hinted() -> bool:
            await workers.hint(connection, database.schema, database.bucket, "default", "task")
            return bool(running.woken)

        await eventually(hinted)


async def test_work_that_became_ready_before_the_mark_is_found_without_a_hint(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database) as (_, place):
        await start(database, connection, "a")
        async with beating(place), supervised(database, [place], poll=3600, lease=60) as running:
            await eventually(lambda: running.woken)


async def test_a_worker_that_becomes_busy_is_unmarked(database: Database, connection: asyncpg.Connection) -> None:
    async with registered(database) as (_, place), beating(place), supervised(database, [place]):
        await _marked(connection, place.worker_id)
        place.idle, place.held = 0, 8
        await _marked(connection, place.worker_id, idle=False)


async def _marked(connection: asyncpg.Connection, worker_id: int, *, idle: bool = True) -> None:
    async def is_marked() -> bool:
        text = "select bool_and(idle = $2) from zart.zart_workers where id = $1"
        return bool(await connection.fetchval(text, worker_id, idle))

    await eventually(is_marked)


async def test_freed_work_wakes_the_survivors(database: Database) -> None:
    async with (
        registered(database, "a", "b") as (dead, _),
        registered(database) as (_, place),
        beating(place),
        supervised(database, [place], poll=3600, lease=60) as running,
    ):
        await running.supervisor.report_death([dead.id], [])
        await eventually(lambda: running.woken)


async def test_signals_left_for_a_locked_parent_are_delivered(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with registered(database, "parent") as (worker, _):
        (claim,) = await connection.fetch("select id, epoch from zart.zart_queue")
        await worker.tick(moves=[Move(claim["id"], claim["epoch"], Verb.PARK, done_at=1)])
        await connection.execute(
            "insert into zart.zart_signals(id, run, n, bucket) values ($1, 1, 1, $2)", claim["id"], database.bucket
        )
        async with supervised(database, []):

            async def woken() -> bool:
                return bool(await connection.fetchval("select done = 1 and run_at <= now() from zart.zart_queue"))

            await eventually(woken)
        assert await connection.fetchval("select count(*) from zart.zart_signals") == 0


# Outages


async def test_lost_connections_are_made_again(database: Database, connection: asyncpg.Connection) -> None:
    chance = random.Random(3)
    async with (
        registered(database, lease=LEASE) as (worker, place),
        beating(place),
        supervised(database, [place]) as running,
    ):
        for _ in range(5):
            await _marked(connection, place.worker_id)
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'zart %' and datname = current_database()"
            )
            await asyncio.sleep(chance.random() / 10)
        place.clear()
        assert await running.supervisor.report_death([worker.id], []) == 0


async def test_a_lost_connection_is_told_by_what_it_is_for(
    database: Database, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zart.supervisor")
    async with registered(database) as (_, place), supervised(database, [place]):
        await _marked(connection, place.worker_id)
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'zart supervisor' and datname = current_database()"
        )
        await eventually(lambda: "connection for polling works again" in caplog.text)
        assert "the supervisor has no connection for polling, trying again" in caplog.text


@pytest.mark.parametrize(
    ("ids", "words"), [(("a",), "took over 1 execution of"), (("a", "b"), "took over 2 executions of")]
)
async def test_a_takeover_is_told_in_the_right_number(
    database: Database, caplog: pytest.LogCaptureFixture, ids: tuple[str, ...], words: str
) -> None:
    caplog.set_level(logging.INFO, "zart.takeover")
    async with registered(database, *ids) as (worker, _), supervised(database, []) as running:
        await running.supervisor.report_death([worker.id], [])
    assert words in caplog.text


async def test_a_supervisor_waits_for_a_schema_that_is_not_there(empty_database: Database) -> None:
    async with supervised(empty_database, [Place.private()]) as running:
        report = asyncio.create_task(running.supervisor.report_death([1], []))
        admin = await empty_database.connect()

        async def tried() -> bool:
            text = "select count(*) from pg_stat_activity where datname = current_database()"
            return int(await admin.fetchval(text)) > 1

        await eventually(tried)
        assert not report.done()
        report.cancel()
        await admin.close()
