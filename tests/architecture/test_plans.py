"""Hot statements use the intended indexes, and touch few pages, whatever lies around the rows they are about."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database, drop_database, make_database
from tests.support.plans import Plans, Scan, recorded_plans
from tests.support.ticking import Checkpoint, Child, Claim, Move, TickingWorker, start
from zart.model import ExecutionStatus, Kind, Outcome, StoredStatus, Verb
from zart.store import executions, figures, journal, queue, transactions, workers
from zart.store.migrate import migrate

GROWN = 100_000
BATCH = 50

QUEUE_ID = Scan("zart_queue", "zart_queue_pkey")
QUEUE_DUE = Scan("zart_queue", "zart_queue_due")
QUEUE_HELD = Scan("zart_queue", "zart_queue_held")
QUEUE_TID = Scan("zart_queue", "tid")
RECORD_ID = Scan("zart_executions", "zart_executions_pkey")
RECORD_NAME = Scan("zart_executions", "zart_executions_execution_id_key")
RECORD_CHILD = Scan("zart_executions", "zart_executions_child")
JOURNAL = Scan("zart_tasks", "zart_tasks_pkey")
ATTEMPTS = Scan("zart_attempts", "zart_attempts_pkey")
FENCE = Scan("zart_workers", "zart_workers_pkey")
QUARANTINED = Scan("zart_quarantined", "zart_quarantined_pkey")

# Finished executions with one step each; an unknown task's backlog, more urgent and older than all else; parked ones.
_GROW = """
    insert into zart.zart_executions(bucket, execution_id, task_name, lane, status, input, output)
    select $1, 'finished ' || n, 'task', $2, 1, '1', '1' from generate_series(1, $3) n;
"""
_GROW_JOURNAL = """
    insert into zart.zart_tasks(bucket, id, run, step_key, epoch, kind, status, name, result)
    select $1, n, 1, 7, 1, 1, 1, 'step', '1' from generate_series(1, $2) n;
"""
_GROW_QUEUE = """
    insert into zart.zart_queue(bucket, id, lane, priority, run_at)
    select $1, -n, $2, 0, $3::text::timestamptz from generate_series($4::int + 1, $5::int) n;
"""


async def grow(connection: asyncpg.Connection, database: Database, lane: int) -> None:
    """Add what hot statements must not notice."""
    strange = (await queue.add_lanes(connection, database.schema, [("default", "unknown")]))["default", "unknown"]
    await connection.execute(_GROW, database.bucket, lane, GROWN)
    await connection.execute(_GROW_JOURNAL, database.bucket, GROWN)
    await connection.execute(_GROW_QUEUE, database.bucket, strange, "2020-01-01", 0, GROWN)
    await connection.execute(_GROW_QUEUE, database.bucket, lane, "infinity", GROWN, GROWN + GROWN // 10)


@pytest.fixture(scope="module")
def grown(server_dsn: str, template: str) -> Iterator[Database]:
    """A database with many finished executions and much work of an unknown task, analyzed. Tests roll back."""

    async def make() -> Database:
        made = await make_database(server_dsn, template)
        connection = await made.connect()
        lane = await start(made, connection, *(f"id {number:03}" for number in range(2 * BATCH)))
        await grow(connection, made, lane)
        await connection.execute("vacuum analyze")
        await connection.close()
        return made

    database = asyncio.run(make())
    yield database
    asyncio.run(drop_database(server_dsn, database))


@pytest_asyncio.fixture
async def worker(grown: Database) -> AsyncIterator[TickingWorker]:
    """A registered worker that serves the known task, in a transaction that is rolled back."""
    connection = await grown.connect()
    lanes = list(await queue.lanes_served(connection, grown.schema, ["task"], None))
    made = TickingWorker(connection, grown.schema, grown.bucket, lanes)
    transaction = connection.transaction()
    await transaction.start()
    await made.register()
    yield made
    await transaction.rollback()
    await connection.close()


def children(worker: TickingWorker, parents: list[Claim]) -> list[Child]:
    return [Child(claim.id, 1, 7, "child", "task", worker.lanes[0]) for claim in parents]


async def test_claims_read_only_their_own_lane(worker: TickingWorker) -> None:
    async with recorded_plans(worker.connection) as plans:
        claims = await worker.claim(BATCH)
    assert len(claims) == BATCH
    assert plans.scans() == {FENCE, QUEUE_DUE, QUEUE_TID}
    assert plans.pages() < 40 * BATCH


async def test_a_claim_that_finds_nothing_reads_next_to_nothing(worker: TickingWorker) -> None:
    await worker.claim(2 * BATCH)
    async with recorded_plans(worker.connection) as plans:
        assert await worker.claim(BATCH) == []
    assert plans.scans() == {FENCE, QUEUE_DUE, QUEUE_TID}
    assert plans.pages() < 500


async def test_a_claim_from_an_empty_bucket_does_not_read_the_work_of_others(empty_database: Database) -> None:
    connection = await empty_database.connect()
    await migrate(connection, empty_database.schema, 4)
    busy = dataclasses.replace(empty_database, buckets=4)
    lane = await start(busy, connection, *(f"id {number}" for number in range(5_000)))
    worker = TickingWorker(connection, busy.schema, busy.bucket - 1, [lane])
    await worker.register()
    async with recorded_plans(connection) as plans:
        assert await worker.claim(BATCH) == []
        assert await queue.ready_lanes(connection, busy.schema, worker.bucket, ["task"], None) == []
    assert plans.pages() < 50
    await connection.close()


async def test_checkpoints_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    sent = [Checkpoint(claim.id, 1, key) for claim in claims for key in (1, 2)]
    tried = [Checkpoint(claim.id, 1, 3, Kind.ATTEMPT, Outcome.FAILED) for claim in claims]
    late = [Checkpoint(claim.id, 1, 4, Kind.EVENT, Outcome.TIMED_OUT) for claim in claims]
    async with recorded_plans(worker.connection) as plans:
        assert (await worker.tick([*sent, *tried, *late])).checkpointed == 4 * BATCH
    assert plans.scans() <= {FENCE, QUEUE_ID, QUEUE_HELD}
    assert plans.pages() < 20 * 4 * BATCH


async def test_the_fence_of_a_steps_own_transaction_goes_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    await transactions.begin_trx(worker.connection, worker.schema, 5)
    async with recorded_plans(worker.connection) as plans:
        for claim in claims:
            fenced = await transactions.trx(
                worker.connection, worker.schema, worker.bucket, worker.id, claim.id, claim.epoch,
                key=8, name="step", attempts=1, seconds=0.1, result=b"1", timeout=5,
            )  # fmt: skip
            assert fenced == transactions.Fenced(True, True, True)
    assert plans.scans() <= {FENCE, QUEUE_ID, QUEUE_HELD}
    assert plans.pages() < 30 * BATCH


async def test_endings_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    async with recorded_plans(worker.connection) as plans:
        await worker.tick(moves=[Move(claim.id, 1, Verb.FINISH, output=b"1") for claim in claims])
    assert plans.scans() <= {FENCE, QUEUE_ID, QUEUE_HELD, RECORD_ID}
    assert plans.pages() < 30 * BATCH


async def test_parkings_children_and_their_endings_go_by_key(worker: TickingWorker) -> None:
    parents = await worker.claim(BATCH)
    await worker.connection.execute("update zart.zart_queue set priority = 9 where worker is null and id > 0")
    async with recorded_plans(worker.connection) as plans:
        await worker.tick(
            moves=[Move(claim.id, 1, Verb.PARK, done_at=1) for claim in parents], children=children(worker, parents)
        )
        held = await worker.claim(BATCH)
        await worker.tick(moves=[Move(claim.id, 1, Verb.FINISH, output=b"1") for claim in held])
        assert len(await worker.claim(BATCH)) == BATCH
    assert plans.scans() <= {FENCE, QUEUE_ID, QUEUE_HELD, QUEUE_DUE, QUEUE_TID, RECORD_ID}
    assert plans.pages() < 200 * BATCH


async def test_retries_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    failed = [Checkpoint(claim.id, 1, 1, Kind.STEP, Outcome.FAILED) for claim in claims]
    await worker.tick(failed, [Move(claim.id, 1, Verb.HOLD) for claim in claims], children(worker, claims))
    async with recorded_plans(worker.connection) as plans:
        await worker.tick(moves=[Move(claim.id, 1, Verb.RETRY) for claim in claims], children=children(worker, claims))
    allowed = {FENCE, QUEUE_ID, QUEUE_HELD, RECORD_ID, RECORD_CHILD, JOURNAL, ATTEMPTS, QUARANTINED}
    assert plans.scans() <= allowed
    assert plans.pages() < 60 * BATCH


async def test_failures_for_handlers_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    await worker.tick([], [Move(claim.id, 1, Verb.HOLD) for claim in claims], children(worker, claims))
    async with recorded_plans(worker.connection) as plans:
        await worker.tick(moves=[Move(claim.id, 1, Verb.HANDLE, error=b'"why"') for claim in claims])
    assert plans.scans() <= {FENCE, QUEUE_ID, QUEUE_HELD, RECORD_ID, RECORD_CHILD}
    assert plans.pages() < 60 * BATCH


async def test_what_follows_a_claim_goes_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    ids = [claim.id for claim in claims]
    zeros, ones = [0] * BATCH, [1] * BATCH
    place = worker.connection, worker.schema, worker.bucket
    async with recorded_plans(worker.connection) as plans:
        assert len(await queue.load_claims(*place, ids)) == BATCH
        assert len(await queue.load_journal(*place, ids, ones, worker.id)) == 2 * BATCH
        assert await queue.look(*place, worker.id, ids, ones, zeros, ones) == {}
        assert len(await queue.still_held(*place, worker.id, ids, ones)) == BATCH
        await queue.note_turns(*place, worker.id, ids, ones, ["00-a-b-01"] * BATCH)
        assert len(await queue.read_checkpoints(*place, ids, ones, [7] * BATCH)) == BATCH
        assert len(await queue.read_endings(*place, ids)) == BATCH
        assert len(await queue.read_deaths(*place, ids)) == BATCH
    assert plans.scans() <= {QUEUE_ID, QUEUE_HELD, RECORD_ID, RECORD_CHILD, JOURNAL, ATTEMPTS}
    assert plans.pages() < 40 * BATCH


async def test_starts_and_waits_go_by_name(worker: TickingWorker) -> None:
    ids = [f"fresh {number}" for number in range(BATCH)] + [f"finished {number + 1}" for number in range(BATCH)]
    place = worker.connection, worker.schema, worker.bucket
    async with recorded_plans(worker.connection) as plans:
        existing = await executions.start(
            *place, ids, ["1"] * len(ids), task_name="task", lane=worker.lanes[0], priority=2
        )
        ended = await executions.waited_for(*place, ids)
        await executions.status(*place, ids[0])
    assert len(existing) == len(ended) == BATCH
    assert plans.scans() <= {RECORD_NAME, RECORD_ID, QUEUE_ID, Scan("zart_lanes", "")}
    assert plans.pages() < 60 * BATCH


async def test_starts_and_events_by_sql_functions_go_by_name(worker: TickingWorker) -> None:
    async with recorded_plans(worker.connection) as plans:
        for number in range(BATCH):
            await worker.connection.execute(f"select zart.start_execution('fresh {number}', 'task')")
            await worker.connection.execute(f"select zart.start_execution('finished {number + 1}', 'task')")
            await worker.connection.execute(f"select zart.offer_event('fresh {number}', 'go')")
    lane = Scan("zart_lanes", "zart_lanes_pair")
    assert {scan for scan in plans.scans() if scan.table != "zart_workers"} <= {RECORD_NAME, QUEUE_ID, lane}
    assert plans.pages() < 100 * BATCH


async def test_ready_lanes_are_found_by_a_probe_each(worker: TickingWorker) -> None:
    async with recorded_plans(worker.connection) as plans:
        ready = await queue.ready_lanes(worker.connection, worker.schema, worker.bucket, ["task"], None)
    assert ready == worker.lanes
    assert {scan for scan in plans.scans() if scan.table == "zart_queue"} == {QUEUE_DUE}
    assert plans.pages() < 100


async def test_takeover_and_cancel_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    await worker.tick(moves=[Move(claims[0].id, 1, Verb.HOLD)], children=children(worker, claims[:1]))
    place = worker.connection, worker.schema, worker.bucket
    async with recorded_plans(worker.connection) as plans:
        await journal.offer_event(*place, "id 000", 9, "event", "1")
        await executions.cancel(*place, "id 000")
        blame = [claim.id for claim in claims]
        done = await workers.take_over_worker(*place, worker.id, proof=True, blame=blame, death="{}")
        await journal.deliver_signals(*place)
    assert len(done.freed) == len(done.apart) == BATCH - 1
    assert plans.scans() <= {
        *(FENCE, QUEUE_ID, QUEUE_HELD, RECORD_ID, RECORD_NAME, RECORD_CHILD),
        Scan("zart_signals", ""),
        Scan("zart_signals", "tid"),
    }
    assert plans.pages() < 40 * BATCH


async def test_releases_go_by_key(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    await worker.tick(moves=[Move(claims[0].id, 1, Verb.HOLD)], children=children(worker, claims[:1]))
    await worker.tick(moves=[Move(claims[0].id, 1, Verb.FINISH, status=StoredStatus.QUARANTINED)])
    name = await worker.connection.fetchval("select execution_id from zart.zart_executions where id = $1", claims[0].id)
    async with recorded_plans(worker.connection) as plans:
        done = await executions.release(worker.connection, worker.schema, worker.bucket, name)
    assert done.what == "released"
    assert plans.scans() <= {
        *(QUEUE_ID, QUEUE_HELD, RECORD_ID, RECORD_NAME, RECORD_CHILD, JOURNAL, QUARANTINED),
        Scan("zart_signals", ""),
    }
    assert plans.pages() < 1000


async def test_the_figures_of_the_queues_take_a_range_per_lane_and_no_finished_execution(worker: TickingWorker) -> None:
    claims = await worker.claim(BATCH)
    await worker.tick(moves=[Move(claims[0].id, 1, Verb.FINISH, status=StoredStatus.QUARANTINED)])
    async with recorded_plans(worker.connection) as plans:
        found = await figures.sample_queues(worker.connection, worker.schema, [worker.bucket])
    assert (found["default"].running, found["default"].quarantined) == (BATCH - 1, 1)
    large = {scan for scan in plans.scans() if scan.table in ("zart_queue", "zart_executions")}
    assert large == {QUEUE_DUE, QUEUE_HELD}
    assert plans.pages() < 2_000


async def test_live_executions_are_listed_without_reading_finished_ones(worker: TickingWorker) -> None:
    await worker.claim(BATCH)
    async with recorded_plans(worker.connection) as plans:
        page = await executions.list_executions(
            worker.connection, worker.schema, [worker.bucket], status=ExecutionStatus.RUNNING, limit=10
        )
    assert len(page.items) == 10
    assert plans.pages() < 1000


async def test_plans_made_on_empty_tables_stay_good_when_the_tables_grow(database: Database) -> None:
    connection = await database.connect()
    await connection.execute("alter table zart.zart_queue set (autovacuum_enabled = off)")
    await connection.execute("alter table zart.zart_executions set (autovacuum_enabled = off)")
    await connection.execute("alter table zart.zart_tasks set (autovacuum_enabled = off)")
    worker = TickingWorker(connection, database.schema, database.bucket, [])
    await worker.register()

    async def everything(name: str) -> Plans:
        """Every hot statement, about one execution."""
        worker.lanes = [await start(database, connection, name)]
        place = connection, database.schema, database.bucket
        async with recorded_plans(connection) as plans:
            await queue.ready_lanes(*place, ["task"], None)
            [claim] = await worker.claim()
            await queue.load_claims(*place, [claim.id])
            await queue.load_journal(*place, [claim.id], [1], worker.id)
            await queue.look(*place, worker.id, [claim.id], [1], [0], [1])
            finish = Move(claim.id, 1, Verb.FINISH, output=b"1")
            await worker.tick([Checkpoint(claim.id, 1, 1)], [finish])
            await executions.waited_for(*place, [name])
        return plans

    for number in range(8):
        await everything(f"before {number}")
    await grow(connection, database, worker.lanes[0])
    after = await everything("after")
    tables = {"zart_executions", "zart_queue", "zart_tasks", "zart_attempts"}
    assert {scan for scan in after.scans() if scan.table in tables and not scan.index} == set()
    assert after.pages() < 2_000
    await connection.close()


async def test_an_ending_rewrites_no_index_of_the_record(database: Database) -> None:
    connection = await database.connect()
    lane = await start(database, connection, *(f"id {number}" for number in range(BATCH)))
    worker = TickingWorker(connection, database.schema, database.bucket, [lane])
    await worker.register()
    for claim in await worker.claim(BATCH):
        await worker.tick(moves=[Move(claim.id, 1, Verb.FINISH, output=b'{"receipt": "0123456789"}')])
    await connection.execute("select pg_stat_force_next_flush()")
    row = await connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'zart_executions'"
    )
    assert row is not None
    assert tuple(row) == (BATCH, BATCH)
    await connection.close()
