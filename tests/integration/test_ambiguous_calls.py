"""Calls of the scheduler whose link is cut, before the server hears them or before its answer is heard."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.wire import Fate, Wire
from zart import PostgresScheduler
from zart.errors import DatabaseUnreachable
from zart.model import EventAnswer, ExecutionStatus
from zart.postgres import pool
from zart.store import executions

FATES = pytest.mark.parametrize("fate", [Fate.CUT_BEFORE, Fate.CUT_AFTER, Fate.SILENT], ids=lambda fate: fate.name)


class Once:
    """The fate of the first statement that calls a function; all others pass."""

    def __init__(self, function: str, fate: Fate) -> None:
        self._function, self._fate = function, fate
        self.armed = False

    def __call__(self, text: str) -> Fate:
        if not self.armed or self._function not in text:
            return Fate.PASS
        self.armed = False
        return self._fate


async def _start(scheduler: PostgresScheduler) -> Any:
    return (await scheduler.start("new", "task", 1)).created


async def _start_again(scheduler: PostgresScheduler) -> Any:
    return (await scheduler.start("there", "task", 1)).created


async def _start_many(scheduler: PostgresScheduler) -> Any:
    done = await scheduler.start_many("task", [("there", 1), *((f"m{n}", n) for n in range(1_500))])
    return done.created, done.existing


async def _offer(scheduler: PostgresScheduler) -> Any:
    return await scheduler.offer_event("there", "go", 1)


async def _offer_late(scheduler: PostgresScheduler) -> Any:
    return await scheduler.offer_event("there", "gone", 1)


async def _cancel(scheduler: PostgresScheduler) -> Any:
    return await scheduler.cancel("there")


async def _cancel_late(scheduler: PostgresScheduler) -> Any:
    return await scheduler.cancel("cancelled")


async def _release(scheduler: PostgresScheduler) -> Any:
    return await scheduler.release("quarantined")


async def _start_in_new_queue(scheduler: PostgresScheduler) -> Any:
    return (await scheduler.start("new", "task", 1, queue="unseen")).created


async def _status(scheduler: PostgresScheduler) -> Any:
    return (await scheduler.status("there")).status


CALLS: list[tuple[str, Callable[[PostgresScheduler], Awaitable[Any]], Any]] = [
    ("zart_start_1", _start, True),
    ("zart_start_1", _start_again, False),
    ("zart_start_1", _start_many, (1_500, ("there",))),
    ("COMMIT", _start_many, (1_500, ("there",))),
    ("zart_add_lanes_1", _start_in_new_queue, True),
    ("zart_offer_event_1", _offer, EventAnswer.ACCEPTED),
    ("zart_offer_event_1", _offer_late, EventAnswer.ALREADY_OFFERED),
    ("zart_cancel_1", _cancel, True),
    ("zart_cancel_1", _cancel_late, False),
    ("zart_release_1", _release, True),
    ("zart_migrations", _status, ExecutionStatus.PENDING),
]


@FATES
@pytest.mark.parametrize(("function", "call", "told"), CALLS, ids=lambda one: getattr(one, "__name__", None))
async def test_a_call_is_told_what_it_would_be_told_without_the_fault(
    database: Database,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    fate: Fate,
    function: str,
    call: Callable[[PostgresScheduler], Awaitable[Any]],
    told: Any,
) -> None:
    if fate is Fate.SILENT:
        monkeypatch.setattr(pool, "TRY_TIMEOUT", 1.0)
    once = Once(function, fate)
    async with PostgresScheduler.connect(database.dsn) as others:
        await others.start("there", "task", 1)
        await others.offer_event("there", "gone", 0)
        await others.start("cancelled", "task", 1)
        await others.cancel("cancelled")
        await others.start("quarantined", "task", 1)
    await connection.execute(
        "with it as (update zart.zart_executions set status = 5, crashes = 4, started_at = now(), finished_at = now()"
        " where execution_id = 'quarantined' returning id)"
        " delete from zart.zart_queue q using it where q.id = it.id"
    )
    async with Wire(database, once) as wire, PostgresScheduler.connect(wire.database.dsn) as scheduler:
        once.armed = True
        assert await call(scheduler) == told
        assert wire.cut + wire.silenced == 1
    twice = await connection.fetchval(
        "select count(*) from (select from zart.zart_tasks group by id having count(*) > 2) t"
    )
    assert twice == 0
    assert await connection.fetchval("select wakes from zart.zart_queue q where wakes > 2") is None


async def test_an_event_that_ended_its_execution_before_it_was_sent_again_is_accepted(
    database: Database, connection: asyncpg.Connection
) -> None:
    """It ends in the transaction that keeps the event."""
    once = Once("zart_offer_event_1", Fate.CUT_AFTER)
    async with Wire(database, once) as wire, PostgresScheduler.connect(wire.database.dsn) as scheduler:
        await scheduler.start("a", "task", 1)
        await connection.execute(
            "create function finish() returns trigger language plpgsql as $$ begin"
            " delete from zart.zart_queue where id = new.id;"
            " update zart.zart_executions set status = 1 where id = new.id; return null; end $$;"
            " create constraint trigger finish after insert on zart.zart_tasks initially deferred"
            " for each row execute function finish()"
        )
        once.armed = True
        assert await scheduler.offer_event("a", "go", 1) is EventAnswer.ACCEPTED
        assert wire.cut == 1
        assert await scheduler.offer_event("a", "go", 1) is EventAnswer.FINISHED


async def test_a_restart_that_is_sent_again_begins_one_run(database: Database, connection: asyncpg.Connection) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start("a", "task", 1)
        await scheduler.cancel("a")
        bucket = (await scheduler._tables.buckets_of("a"))[0]  # pyright: ignore[reportPrivateUsage]
        token = secrets.randbits(63)
        for _ in range(2):
            assert await executions.restart(connection, database.schema, bucket, "a", token)
        await scheduler.cancel("a")
        assert await executions.restart(connection, database.schema, bucket, "a", token)
        assert (await scheduler.status("a")).run == 2
        assert await executions.restart(connection, database.schema, bucket, "a", secrets.randbits(63))
        assert (await scheduler.status("a")).run == 3


async def test_a_cancel_that_waited_longer_than_a_try_is_told_that_it_was_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "TRY_TIMEOUT", 0.5)
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start("a", "task", 1)
        theirs = await database.connect()
        waiting = (
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        async with theirs.transaction():
            await theirs.execute("select from zart.zart_queue for update")
            cancelling = asyncio.create_task(scheduler.cancel("a"))
            watcher = await database.connect()

            async def both_wait() -> bool:
                return bool(await watcher.fetchval(waiting) >= 2)

            await eventually(both_wait)
            await watcher.close()
        assert await cancelling
        assert (await scheduler.status("a")).status is ExecutionStatus.CANCELLED
        await theirs.close()


async def test_a_cancel_that_is_sent_again_does_not_cancel_what_was_restarted_meanwhile(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start("a", "task", 1)
        bucket = (await scheduler._tables.buckets_of("a"))[0]  # pyright: ignore[reportPrivateUsage]
        token = secrets.randbits(63)
        assert (await executions.cancel(connection, database.schema, bucket, "a", token)).what == "cancelled"
        assert await executions.restart(connection, database.schema, bucket, "a")
        assert (await executions.cancel(connection, database.schema, bucket, "a", token)).what == "cancelled"
        assert (await scheduler.status("a")).status is ExecutionStatus.PENDING


async def test_a_database_that_stays_away_is_an_error_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CALL_TIMEOUT", 1.0)
    monkeypatch.setattr(pool, "TRY_TIMEOUT", 0.3)
    async with Wire(database, lambda _: Fate.PASS) as wire:
        scheduler = await PostgresScheduler.connect(wire.database.dsn)
        await scheduler.start("a", "task", 1)
        wire.open_hole()
        with pytest.raises(DatabaseUnreachable, match="did not answer in time while starting execution 'b'"):
            await scheduler.start("b", "task", 1)
        wire.close_hole()
        assert await eventually(lambda: _created(scheduler, "c"))
        await scheduler.close()


async def _created(scheduler: PostgresScheduler, execution_id: str) -> bool:
    return (await scheduler.start(execution_id, "task", 1)).created


async def test_many_rows_have_more_time_than_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start("a", "task", 0)  # it asks for the schema's version and the lane, which have no rows
        monkeypatch.setattr(pool, "TRY_TIMEOUT", 0.05)
        with monkeypatch.context() as patch:
            patch.setattr(pool, "CALL_TIMEOUT", 0.15)
            patch.setattr(pool, "LEAST_ROWS_PER_SECOND", 10**9)
            with pytest.raises(DatabaseUnreachable, match="while starting 20000 executions"):
                await scheduler.start_many("task", [(f"a{n}", n) for n in range(20_000)])
        started = await scheduler.start_many("task", [(f"b{n}", n) for n in range(20_000)])
        assert started.created == 20_000
