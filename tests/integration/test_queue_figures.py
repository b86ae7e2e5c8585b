"""The figures of the queues, held against rows in every state."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.ticking import Checkpoint, Move, TickingWorker, start
from zart.model import StoredStatus, Verb
from zart.store import executions, figures, queue, workers
from zart.store.figures import SAMPLE, QueueFigures


@pytest_asyncio.fixture
async def worker(database: Database, connection: asyncpg.Connection) -> AsyncIterator[TickingWorker]:
    """A registered worker that serves the task `task` in every queue."""
    lane = await start(database, connection)
    made = TickingWorker(await database.connect(), database.schema, database.bucket, [lane])
    await made.register()
    yield made
    await made.connection.close()


async def sampled(database: Database, connection: asyncpg.Connection) -> dict[str, QueueFigures]:
    return await figures.sample_queues(connection, database.schema, range(database.buckets))


async def begin(
    database: Database, connection: asyncpg.Connection, task_name: str, queue_name: str, *ids: str, priority: int = 2
) -> None:
    """Start executions of any task in any queue."""
    pair = queue_name, task_name
    lanes = await queue.add_lanes(connection, database.schema, [pair])
    place = connection, database.schema, database.bucket
    await executions.start(
        *place, list(ids), ["1"] * len(ids), task_name=task_name, lane=lanes[pair], priority=priority
    )


async def test_each_execution_is_counted_in_its_state(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await start(database, connection, *(f"id {number}" for number in range(9)))
    before = (await sampled(database, connection))["default"]
    assert before == QueueFigures(ready=9, oldest_ready=before.oldest_ready)
    parked, sleeping, finished, failed, *running = await worker.claim(7)
    await worker.tick(
        [Checkpoint(running[0].id, 1, 1)],
        [
            Move(parked.id, 1, Verb.PARK),
            Move(sleeping.id, 1, Verb.PARK, due=3600.0),
            Move(finished.id, 1, Verb.FINISH),
            Move(failed.id, 1, Verb.FINISH, status=StoredStatus.FAILED, error=b'"why"'),
        ],
    )
    found = (await sampled(database, connection))["default"]
    assert (found.ready, found.running, found.waiting) == (2, 3, 2)
    assert (found.expired, found.quarantined, found.unclaimable) == (0, 0, 0)


async def test_the_oldest_ready_execution_is_found_among_priorities_and_lanes(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await begin(database, connection, "task", "default", "urgent", priority=0)
    await begin(database, connection, "task", "default", "old", priority=9)
    await begin(database, connection, "other", "default", "younger")
    await begin(database, connection, "task", "default", "later")
    for name, ago in (("old", "90 s"), ("younger", "60 s"), ("later", "-1 h")):
        await connection.execute(
            "update zart.zart_queue q set run_at = now() - $2::text::interval from zart.zart_executions e"
            " where e.id = q.id and e.execution_id = $1", name, ago,
        )  # fmt: skip
    found = (await sampled(database, connection))["default"]
    assert (found.ready, found.waiting) == (3, 1)
    assert 90 <= found.oldest_ready < 110


async def test_what_no_live_worker_serves_in_that_queue_is_unclaimable(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await begin(database, connection, "task", "default", "a", "b")
    await begin(database, connection, "task", "mail", "c")
    await begin(database, connection, "unknown", "mail", "d", "e")
    found = await sampled(database, connection)
    assert {name: (one.ready, one.unclaimable) for name, one in found.items()} == {"default": (2, 0), "mail": (3, 2)}
    await connection.execute("update zart.zart_workers set queues = '{mail}'")
    assert {name: one.unclaimable for name, one in (await sampled(database, connection)).items()} == {
        "default": 2,
        "mail": 2,
    }
    await connection.execute("update zart.zart_workers set lease_until = now() - interval '1 s'")
    assert {name: one.unclaimable for name, one in (await sampled(database, connection)).items()} == {
        "default": 2,
        "mail": 3,
    }


async def test_what_a_worker_holds_whose_lease_has_run_out_is_expired_until_it_is_taken_over(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await start(database, connection, "a", "b", "c")
    assert len(await worker.claim(2)) == 2
    await connection.execute("update zart.zart_workers set lease_until = now() - interval '1 s'")
    found = (await sampled(database, connection))["default"]
    assert (found.ready, found.running, found.expired) == (1, 0, 2)
    await workers.take_over_worker(connection, database.schema, database.bucket, worker.id, proof=False, blame=())
    found = (await sampled(database, connection))["default"]
    assert (found.ready, found.running, found.expired) == (3, 0, 0)


async def test_what_is_set_apart_is_ready_in_its_queue(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await start(database, connection, "a")
    [claim] = await worker.claim()
    await workers.take_over_worker(
        connection, database.schema, database.bucket, worker.id, proof=True, blame=[claim.id]
    )
    assert await connection.fetchval("select lane from zart.zart_queue") < 0
    assert (await sampled(database, connection))["default"].ready == 1


@pytest.mark.parametrize("how", ["released", "restarted"])
async def test_quarantined_executions_are_counted_until_they_go_on(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker, how: str
) -> None:
    await start(database, connection, "guilty", "innocent")
    claims = await worker.claim(2)
    await worker.tick(
        moves=[
            Move(claims[0].id, 1, Verb.FINISH, status=StoredStatus.QUARANTINED, error=b'"why"'),
            Move(claims[1].id, 1, Verb.FINISH, status=StoredStatus.FAILED, error=b'"why"'),
        ]
    )
    assert (await sampled(database, connection))["default"] == QueueFigures(quarantined=1)
    name = await connection.fetchval("select execution_id from zart.zart_executions where status = 5")
    act = executions.release if how == "released" else executions.restart
    await act(connection, database.schema, database.bucket, name)
    found = (await sampled(database, connection))["default"]
    assert (found.quarantined, found.ready) == (0, 1)


async def test_large_queues_are_counted_up_to_a_limit_and_their_age_is_exact(
    database: Database, connection: asyncpg.Connection, worker: TickingWorker
) -> None:
    await begin(database, connection, "small", "mail", "m")
    lanes = await queue.add_lanes(connection, database.schema, [("default", "task"), ("default", "another")])
    text = """
        insert into zart.zart_queue(bucket, id, lane, run_at)
        select $1, -($4 + n), $2, now() - n * interval '1 s' from generate_series(1, $3::int) n
    """
    for number, lane in enumerate(lanes.values()):
        await connection.execute(text, database.bucket, lane, 25_000, 100_000 * number)
    found = await sampled(database, connection)
    counted = figures.COUNTED // database.buckets
    assert found["default"].ready == counted + 500
    assert found["default"].oldest_ready == pytest.approx(25_000, abs=30)
    assert found["mail"].ready == 1


async def test_one_holder_at_a_time_has_a_duty_until_it_lets_go_or_its_time_is_over(
    database: Database, connection: asyncpg.Connection
) -> None:
    async def held(holder: int, seconds: float = 3600.0) -> bool:
        return (await figures.hold_duty(connection, database.schema, SAMPLE, holder, seconds)).held

    assert [await held(1), await held(2), await held(1)] == [True, False, True]
    await figures.drop_duty(connection, database.schema, SAMPLE, 2)
    assert not await held(2)
    await figures.drop_duty(connection, database.schema, SAMPLE, 1)
    assert [await held(2, -1.0), await held(1), await held(2)] == [True, True, False]
