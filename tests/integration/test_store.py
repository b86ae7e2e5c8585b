"""Executions and journals as the store keeps and shows them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib import resources

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.ticking import Checkpoint, Child, Move, TickingWorker, start
from zart.errors import InvalidArgument
from zart.model import EventAnswer, ExecutionRecord, ExecutionStatus, Kind, Outcome, StoredStatus, Verb
from zart.postgres.connection import Connection
from zart.store import executions, journal, queue
from zart.store.executions import Started
from zart.store.migrate import migrate
from zart.store.statements import statement


async def started(connection: Connection, database: Database, *ids: str, task: str = "task") -> list[Started]:
    lanes = await queue.add_lanes(connection, database.schema, [("default", task)])
    return await executions.start(
        connection,
        database.schema,
        database.bucket,
        ids,
        ["null"] * len(ids),
        task_name=task,
        lane=lanes["default", task],
        priority=2,
    )


async def status(connection: asyncpg.Connection, database: Database, execution_id: str) -> ExecutionRecord:
    record = await executions.status(connection, database.schema, database.bucket, execution_id)
    assert record is not None
    return record


async def worker_on(database: Database, connection: asyncpg.Connection, *ids: str) -> TickingWorker:
    """A registered worker for the executions started with these ids."""
    lane = await start(database, connection, *ids)
    worker = TickingWorker(connection, database.schema, database.bucket, [lane])
    await worker.register()
    return worker


class TestStart:
    async def test_an_existing_id_is_given_back_as_it_is(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        assert await started(connection, database, "a") == [Started("a", "task", True)]
        assert await started(connection, database, "a", task="other") == [Started("a", "task", False)]

    async def test_a_batch_names_only_those_that_existed(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        await started(connection, database, "b")
        assert await started(connection, database, "a", "b", "c", "c") == [Started("b", "task", False)]
        assert await executions.count_by_status(connection, database.schema, [database.bucket]) == {
            ExecutionStatus.PENDING: 3
        }

    async def test_500_concurrent_starts_of_one_id_make_one_execution(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        async with asyncpg.create_pool(database.dsn, min_size=20, max_size=20) as pool:

            async def one() -> bool:
                async with pool.acquire() as rival:
                    [answer] = await started(rival, database, "same")
                    return answer.created

            assert sum(await asyncio.gather(*(one() for _ in range(500)))) == 1

    async def test_batches_with_the_same_ids_in_any_order_never_deadlock(self, database: Database) -> None:
        ids = [f"id {number}" for number in range(300)]

        async def one(rival: Connection, order: list[str]) -> None:
            await started(rival, database, *order)

        async with asyncpg.create_pool(database.dsn, min_size=4, max_size=4) as pool:

            async def repeat(order: list[str]) -> None:
                async with pool.acquire() as rival:
                    for number in range(10):
                        await one(rival, [f"{each} {number}" for each in order])

            await asyncio.gather(repeat(ids), repeat(ids[::-1]), repeat(ids[150:] + ids[:150]))

    async def test_a_start_that_is_rolled_back_leaves_nothing(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        transaction = connection.transaction()
        await transaction.start()
        await started(connection, database, "a")
        await transaction.rollback()
        assert await executions.status(connection, database.schema, database.bucket, "a") is None
        assert await connection.fetchval("select count(*) from zart.zart_queue") == 0

    async def test_a_refused_input_leaves_nothing(self, database: Database, connection: asyncpg.Connection) -> None:
        lanes = await queue.add_lanes(connection, database.schema, [("default", "task")])
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await executions.start(
                connection,
                database.schema,
                database.bucket,
                ["a", "b"],
                ["1", "{"],
                task_name="task",
                lane=lanes["default", "task"],
                priority=2,
            )
        assert await connection.fetchval("select count(*) from zart.zart_executions") == 0

    async def test_a_delayed_start_keeps_its_whole_timeout(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        lanes = await queue.add_lanes(connection, database.schema, [("default", "task")])
        await executions.start(
            connection,
            database.schema,
            database.bucket,
            ["a"],
            ["1"],
            task_name="task",
            lane=lanes["default", "task"],
            priority=2,
            delay=3600.0,
            timeout=60.0,
        )
        record = await status(connection, database, "a")
        assert record.deadline is not None
        assert record.deadline - record.created_at == timedelta(seconds=3660)
        assert await queue.ready_lanes(connection, database.schema, database.bucket, ["task"], None) == []

    async def test_ids_of_other_buckets_are_not_seen(self, database: Database, connection: asyncpg.Connection) -> None:
        await started(connection, database, "a")
        assert await executions.status(connection, database.schema, database.bucket + 1, "a") is None
        assert await executions.waited_for(connection, database.schema, database.bucket + 1, ["a"]) == []
        assert await queue.ready_lanes(connection, database.schema, database.bucket + 1, ["task"], None) == []


class TestRecords:
    async def test_status_follows_an_execution_through_its_life(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        seen = [(await status(connection, database, "a")).status]
        [claim] = await worker.claim()
        seen.append((await status(connection, database, "a")).status)
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK)])
        seen.append((await status(connection, database, "a")).status)
        await journal.offer_event(connection, database.schema, database.bucket, "a", 1, "event", "1")
        [claim] = await worker.claim()
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.FINISH, output=b'{"n": 12345678901234567890}')])
        record = await status(connection, database, "a")
        assert [*seen, record.status] == ["pending", "running", "waiting", "completed"]
        assert record.output == {"n": 12345678901234567890}
        assert record.started_at is not None
        assert record.finished_at is not None
        assert record.created_at < record.started_at < record.finished_at

    async def test_only_ended_executions_are_waited_for(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a", "b")
        [claim] = await worker.claim()
        failed = Move(claim.id, claim.epoch, Verb.FINISH, status=StoredStatus.FAILED, error=b'{"type": "X"}')
        await worker.tick(moves=[failed])
        ended = await executions.waited_for(connection, database.schema, database.bucket, ["a", "b", "unknown"])
        assert [(row["execution_id"], row["status"], row["error"]) for row in ended] == [("a", 2, '{"type": "X"}')]

    async def test_lists_hide_children_unless_asked_for_those_of_one_parent(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        [parent] = await worker.claim()
        child = Child(parent.id, 1, 7, "provision/eu", "task", worker.lanes[0])
        await worker.tick(moves=[Move(parent.id, parent.epoch, Verb.HOLD)], children=[child])
        roots = await executions.list_executions(connection, database.schema, [database.bucket])
        children = await executions.list_executions(connection, database.schema, [database.bucket], parent="a")
        assert [record.execution_id for record in roots.items] == ["a"]
        assert [(record.execution_id, record.parent) for record in children.items] == [
            (f"zart:{parent.id}/1/provision/eu", "a")
        ]

    async def test_pages_follow_each_other_without_gap_or_repetition(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        ids = [f"id {number}" for number in range(7)]
        for execution_id in ids:
            await started(connection, database, execution_id)
        seen: list[str] = []
        after: str | None = None
        while True:
            page = await executions.list_executions(
                connection, database.schema, [database.bucket], limit=3, after=after
            )
            seen += [record.execution_id for record in page.items]
            after = page.after
            if after is None:
                break
        assert seen == ids[::-1]

    @pytest.mark.parametrize("wanted", ["pending", "running", "waiting", "completed", "cancelled"])
    async def test_lists_filter_by_every_status(
        self, database: Database, connection: asyncpg.Connection, wanted: str
    ) -> None:
        moves = {"completed": (Verb.FINISH, None), "waiting": (Verb.PARK, 3600.0), "running": (Verb.HOLD, None)}
        for execution_id, (verb, due) in moves.items():
            worker = await worker_on(database, connection, execution_id)
            [claim] = await worker.claim()
            await worker.tick(moves=[Move(claim.id, claim.epoch, verb, due=due)])
        await started(connection, database, "pending", "cancelled")
        await executions.cancel(connection, database.schema, database.bucket, "cancelled")
        found = await executions.list_executions(
            connection, database.schema, [database.bucket], status=ExecutionStatus(wanted)
        )
        assert [record.execution_id for record in found.items] == [wanted]

    @pytest.mark.parametrize(("limit", "after"), [(0, None), (10_001, None), (1, "x"), (1, "-1"), (1, "9" * 30)])
    async def test_a_page_that_cannot_be_is_refused(
        self, database: Database, connection: asyncpg.Connection, limit: int, after: str | None
    ) -> None:
        with pytest.raises(InvalidArgument):
            await executions.list_executions(connection, database.schema, [database.bucket], limit=limit, after=after)


class TestEvents:
    async def test_the_first_event_of_a_name_stays(self, database: Database, connection: asyncpg.Connection) -> None:
        await started(connection, database, "a")

        async def offer(execution_id: str, payload: str) -> EventAnswer | None:
            offered = await journal.offer_event(
                connection, database.schema, database.bucket, execution_id, 51, "approved", payload
            )
            return offered.answer

        assert await offer("a", "1") is EventAnswer.ACCEPTED
        assert await offer("a", "2") is EventAnswer.ALREADY_OFFERED
        assert await offer("unknown", "1") is None
        await executions.cancel(connection, database.schema, database.bucket, "a")
        assert await offer("a", "3") is EventAnswer.FINISHED
        steps = await journal.history(connection, database.schema, database.bucket, "a")
        assert steps is not None
        assert [(step.name, step.kind, step.result) for step in steps] == [("approved", "event", 1)]

    async def test_a_delayed_execution_is_not_started_by_an_event(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        [claim] = await worker.claim()
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PUT_OFF, due=3600.0)])
        await journal.offer_event(connection, database.schema, database.bucket, "a", 51, "event", "1")
        assert await worker.claim() == []


class TestHistory:
    async def test_an_unknown_execution_has_none_and_an_unstarted_one_an_empty_one(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        await started(connection, database, "a")
        assert await journal.history(connection, database.schema, database.bucket, "unknown") is None
        assert await journal.history(connection, database.schema, database.bucket, "a") == []

    async def test_it_tells_failed_tries_with_the_step_they_belong_to(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        [claim] = await worker.claim()

        def failed(key: int, attempt: int) -> Checkpoint:
            return Checkpoint(
                claim.id, claim.epoch, key, Kind.ATTEMPT, Outcome.FAILED, attempt, 1.0, 0.5, f"s{key}", None, b'"no"'
            )

        await worker.tick([failed(1, 1)])
        await worker.tick([Checkpoint(claim.id, claim.epoch, 1, attempts=2, seconds=0.25, name="s1", result=b"5")])
        await worker.tick([failed(2, 1)])
        steps = await journal.history(connection, database.schema, database.bucket, "a")
        assert steps is not None
        done, retrying = steps
        assert (done.name, done.status, done.attempts, done.result) == ("s1", "completed", 2, 5)
        assert [(each.attempt, each.error) for each in done.failed_attempts] == [(1, "no")]
        assert done.started_at is not None
        assert done.finished_at is not None
        assert done.finished_at - done.started_at >= timedelta(seconds=0.5)
        assert (retrying.name, retrying.status, retrying.error) == ("s2", "retrying", "no")
        assert retrying.due is not None

    async def test_a_restart_begins_an_empty_journal_and_keeps_the_record(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        [claim] = await worker.claim()
        await worker.tick(
            [Checkpoint(claim.id, claim.epoch, 1)], [Move(claim.id, claim.epoch, Verb.FINISH, output=b"1")]
        )
        assert await executions.restart(connection, database.schema, database.bucket, "a")
        assert not await executions.restart(connection, database.schema, database.bucket, "a")
        record = await status(connection, database, "a")
        assert (record.run, record.status, record.output) == (2, ExecutionStatus.PENDING, None)
        assert await journal.history(connection, database.schema, database.bucket, "a") == []
        [again] = await worker.claim()
        assert (again.run, again.epoch) == (2, 2)


class TestLanes:
    async def test_a_pair_keeps_its_number(self, database: Database, connection: asyncpg.Connection) -> None:
        first = await queue.add_lanes(connection, database.schema, [("default", "a"), ("other", "a")])
        again = await queue.add_lanes(connection, database.schema, [("other", "a"), ("default", "b")])
        assert again["other", "a"] == first["other", "a"]
        assert len({*first.values(), *again.values()}) == 3
        assert min(first.values()) >= 1

    async def test_workers_are_told_the_lanes_of_their_tasks_and_queues(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        lanes = await queue.add_lanes(connection, database.schema, [("default", "a"), ("other", "a"), ("default", "b")])
        served = await queue.lanes_served(connection, database.schema, ["a"], None)
        assert list(served.items()) == sorted(
            [(lanes["default", "a"], ("default", "a")), (lanes["other", "a"], ("other", "a"))]
        )
        served = await queue.lanes_served(connection, database.schema, ["a", "b"], ["other"])
        assert served == {lanes["other", "a"]: ("other", "a")}

    async def test_only_lanes_with_work_that_is_due_are_ready(
        self, database: Database, connection: asyncpg.Connection
    ) -> None:
        worker = await worker_on(database, connection, "a")
        await queue.add_lanes(connection, database.schema, [("default", "idle")])

        async def ready() -> list[int]:
            return await queue.ready_lanes(connection, database.schema, database.bucket, ["task", "idle"], None)

        assert await ready() == worker.lanes
        [claim] = await worker.claim()
        assert await ready() == []
        await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.PARK, due=3600.0)])
        assert await ready() == []


async def test_every_statement_prepares_in_a_schema_of_any_name(empty_database: Database) -> None:
    schema = 'my "odd" schema\'s'
    connection = await empty_database.connect()
    await migrate(connection, schema)
    folder = resources.files("zart.store").joinpath("sql")
    names = [entry.name.removesuffix(".sql") for entry in folder.iterdir()]
    for name in names:
        if not name.startswith(("zart_", "sql_")) and not name.endswith("_migration"):
            await connection.prepare(statement(name, schema))
    await connection.close()
