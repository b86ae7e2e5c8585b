"""PostgresScheduler: what it starts, finds, lists and cancels, against a real server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.endings import Child, Move, end_all, ready_worker
from tests.support.eventually import eventually
from tests.support.junk import shown
from zart.codec import bucket_of, step_key
from zart.durable import zart_durable
from zart.errors import (
    DatabaseError,
    DatabaseUnreachable,
    ExecutionAlreadyExists,
    ExecutionNotFound,
    InvalidArgument,
    SchemaMismatch,
    SchemaMissing,
    SerializationError,
)
from zart.model import EventAnswer, ExecutionStatus, KeySpace, StoredStatus, Verb
from zart.scheduler import PostgresScheduler
from zart.store import workers


@dataclass
class Order:
    item: str
    count: int


@zart_durable("fulfil", queue="orders", priority=7, max_retries=3, timeout="10m")
async def fulfil(order: Order) -> str:
    return order.item


@zart_durable("sweep")
async def sweep() -> int:
    return 1


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as made:
        yield made


async def count(connection: asyncpg.Connection, table: str = "zart_executions") -> int:
    found: int = await connection.fetchval(f"select count(*) from zart.{table}")
    return found


async def nothing_is_stored(connection: asyncpg.Connection) -> bool:
    return (await count(connection), await count(connection, "zart_queue")) == (0, 0)


# -- starting one


async def test_a_started_execution_is_pending_with_what_it_was_started_with(scheduler: PostgresScheduler) -> None:
    handle = await scheduler.start("a", "task", {"x": [1, None]}, queue="slow", priority=5)
    record = await scheduler.status("a")
    assert (handle.execution_id, handle.created) == ("a", True)
    assert (record.task_name, record.queue, record.priority, record.input) == ("task", "slow", 5, {"x": [1, None]})
    assert (record.status, record.run, record.parent) == (ExecutionStatus.PENDING, 1, None)


async def test_a_start_by_durable_function_takes_its_queue_priority_retries_and_timeout(
    scheduler: PostgresScheduler,
) -> None:
    await scheduler.start_for(fulfil, "a", Order("tea", 2))
    record = await scheduler.status("a")
    assert (record.task_name, record.queue, record.priority, record.max_retries) == ("fulfil", "orders", 7, 3)
    assert record.input == {"item": "tea", "count": 2}
    assert record.deadline == record.created_at + timedelta(minutes=10)


async def test_a_durable_function_without_parameter_is_started_without_data(scheduler: PostgresScheduler) -> None:
    assert (await scheduler.start_for(sweep, "a")).created


@pytest.mark.parametrize("status", [StoredStatus.COMPLETED, StoredStatus.FAILED, StoredStatus.CANCELLED])
async def test_an_existing_id_is_given_back_whatever_its_state(
    scheduler: PostgresScheduler, database: Database, status: StoredStatus
) -> None:
    await scheduler.start("a", "task", 1)
    assert not (await scheduler.start("a", "task", 2)).created
    await end_all(database, status=status)
    assert not (await scheduler.start("a", "task", 3)).created
    assert (await scheduler.status("a")).input == 1


async def test_500_concurrent_starts_of_one_id_make_one_execution(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    async with PostgresScheduler.connect(database.dsn) as other:
        handles = await asyncio.gather(*((scheduler, other)[n % 2].start("a", "task", n) for n in range(500)))
    assert sum(handle.created for handle in handles) == 1
    assert (await count(connection), await count(connection, "zart_queue")) == (1, 1)


async def test_the_id_of_another_task_is_refused(scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task", 1)
    with pytest.raises(ExecutionAlreadyExists, match=r"'task'.*'other'"):
        await scheduler.start("a", "other", 1)


async def test_a_delayed_execution_is_not_ready_before_its_time(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1, delay="1h")
    assert await end_all(database) == 0
    assert await connection.fetchval("select run_at - now() > interval '59 min' from zart.zart_queue")


async def test_its_timeout_counts_from_the_end_of_the_delay(scheduler: PostgresScheduler) -> None:
    await scheduler.start_for(fulfil, "a", Order("tea", 2), delay="1h")
    record = await scheduler.status("a")
    assert record.deadline == record.created_at + timedelta(minutes=70)


@pytest.mark.parametrize(
    ("execution_id", "task_name", "data", "options"),
    [
        ("", "task", 1, {}),
        ("zart:1", "task", 1, {}),
        ("a", "", 1, {}),
        ("a", "task", 1, {"queue": ""}),
        ("a", "task", 1, {"priority": 1001}),
        ("a", "task", 1, {"delay": "soon"}),
        ("a", "task", float("nan"), {}),
        ("a", "task", object(), {}),
        ("a", "task", 1, {"conn": "postgresql://localhost"}),
    ],
    ids=shown,
)
async def test_what_cannot_be_used_is_refused_and_nothing_is_stored(
    scheduler: PostgresScheduler,
    connection: asyncpg.Connection,
    execution_id: str,
    task_name: str,
    data: Any,
    options: dict[str, Any],
) -> None:
    with pytest.raises((InvalidArgument, SerializationError)) as caught:
        await scheduler.start(execution_id, task_name, data, **options)
    assert "\n" not in str(caught.value)
    assert await nothing_is_stored(connection)


# -- in the caller's transaction


async def test_a_start_in_a_transaction_that_rolls_back_leaves_nothing(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    assert (await scheduler.start("a", "task", 1, conn=connection)).created
    assert (await scheduler.start_many("task", [("b", 1), ("c", 2)], conn=connection)).created == 2
    await transaction.rollback()
    assert await nothing_is_stored(connection)


async def test_a_start_in_a_transaction_is_there_when_it_commits(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        await scheduler.start("a", "task", 1, conn=connection)
        with pytest.raises(ExecutionNotFound):
            await scheduler.status("a")
    assert (await scheduler.status("a")).input == 1


async def test_the_result_of_a_start_that_was_rolled_back_is_not_waited_for(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    handle = await scheduler.start("a", "task", 1, conn=connection)
    await transaction.rollback()
    with pytest.raises(ExecutionNotFound):
        await handle.result(timeout="20s")


async def test_a_connection_of_a_pool_can_be_joined(scheduler: PostgresScheduler, database: Database) -> None:
    async with (
        asyncpg.create_pool(database.dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        await scheduler.start("a", "task", 1, conn=connection)
    assert (await scheduler.status("a")).input == 1


async def test_a_connection_outside_of_a_transaction_cannot_be_joined(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    with pytest.raises(InvalidArgument, match="transaction"):
        await scheduler.start("a", "task", 1, conn=connection)
    assert await nothing_is_stored(connection)


async def test_a_start_waits_for_an_open_transaction_that_starts_the_same_id(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, database: Database
) -> None:
    watcher = await database.connect()
    async with connection.transaction():
        await scheduler.start("a", "task", 1, conn=connection)
        rival = asyncio.create_task(scheduler.start("a", "task", 2))
        await eventually(lambda: watcher.fetchval("select count(*) from pg_locks where not granted"))
    assert not (await rival).created
    await watcher.close()


async def test_a_transaction_that_starts_the_first_of_a_task_holds_up_no_other(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, database: Database
) -> None:
    async with PostgresScheduler.connect(database.dsn) as other, connection.transaction():
        await scheduler.start("a", "never seen before", 1, conn=connection)
        async with asyncio.timeout(10):
            assert (await other.start("b", "never seen before", 1)).created


async def test_a_transaction_that_holds_a_queue_row_delays_no_other_execution(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, database: Database
) -> None:
    await scheduler.start_many("task", [("a", 1), ("b", 2), ("c", 3)])
    async with connection.transaction():
        await scheduler.offer_event("a", "go", conn=connection)
        async with asyncio.timeout(10):
            assert await end_all(database) == 2
            assert (await scheduler.wait("b")).status is ExecutionStatus.COMPLETED
            assert (await scheduler.wait("c")).status is ExecutionStatus.COMPLETED


async def test_a_serialization_error_of_the_callers_transaction_comes_as_it_is(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    await connection.fetchval("select 1 from pg_class limit 1")
    await scheduler.start("a", "task", 1)
    with pytest.raises(asyncpg.SerializationError):
        await scheduler.start("a", "task", 1, conn=connection)
    await transaction.rollback()


# -- starting many


async def test_many_are_started_in_one_call(scheduler: PostgresScheduler, connection: asyncpg.Connection) -> None:
    answer = await scheduler.start_many(fulfil, [(f"o{n}", Order("tea", n)) for n in range(2500)])
    assert (answer.created, answer.existing) == (2500, ())
    assert (await scheduler.status("o2499")).input == {"item": "tea", "count": 2499}
    assert (await count(connection), await count(connection, "zart_queue")) == (2500, 2500)


async def test_ids_that_exist_are_listed_and_left_as_they_are(scheduler: PostgresScheduler) -> None:
    await scheduler.start_many("task", [("a", 1), ("b", 1)])
    answer = await scheduler.start_many("task", [("c", 2), ("b", 2), ("a", 2)])
    assert (answer.created, sorted(answer.existing)) == (1, ["a", "b"])
    assert (await scheduler.status("a")).input == 1


async def test_an_id_given_twice_is_started_once_with_its_first_data(scheduler: PostgresScheduler) -> None:
    answer = await scheduler.start_many("task", [("a", 1), ("b", 2), ("a", 3)])
    assert (answer.created, answer.existing) == (2, ())
    assert (await scheduler.status("a")).input == 1


@pytest.mark.parametrize("items", [[("m1",)], [("m", 1, 2)], ["ab"], "ab", {"ab": 1}, [None], [("a", 1), 7]], ids=repr)
async def test_items_that_are_no_pairs_are_refused_and_none_is_started(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, items: Any
) -> None:
    with pytest.raises(InvalidArgument, match=r"items must be a pair \(execution_id, data\), number \d is"):
        await scheduler.start_many("task", items)
    assert await nothing_is_stored(connection)


@pytest.mark.parametrize("items", [None, 7])
async def test_items_that_cannot_be_gone_through_are_refused(scheduler: PostgresScheduler, items: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"items must be pairs \(execution_id, data\), got"):
        await scheduler.start_many("task", items)


async def test_starting_none_is_no_error(scheduler: PostgresScheduler) -> None:
    assert (await scheduler.start_many("task", [])).created == 0


async def test_an_id_of_another_task_among_many_starts_none_of_them(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("o1500", "other", 1)
    with pytest.raises(ExecutionAlreadyExists, match="'o1500'"):
        await scheduler.start_many("task", [(f"o{n}", n) for n in range(3000)])
    assert await count(connection) == 1


async def test_a_refused_call_leaves_the_callers_transaction_usable(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "other", 1)
    async with connection.transaction():
        with pytest.raises(ExecutionAlreadyExists):
            await scheduler.start_many("task", [("b", 1), ("a", 1)], conn=connection)
        await scheduler.start("c", "task", 1, conn=connection)
    assert (await scheduler.status("c")).input == 1
    with pytest.raises(ExecutionNotFound):
        await scheduler.status("b")


async def test_one_bad_value_among_many_starts_none_of_them(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    with pytest.raises(SerializationError, match="'b'"):
        await scheduler.start_many("task", [("a", 1), ("b", float("inf"))])
    assert await nothing_is_stored(connection)


async def test_overlapping_calls_never_deadlock(scheduler: PostgresScheduler, connection: asyncpg.Connection) -> None:
    await asyncio.gather(*(scheduler.cancel("none") for _ in range(8)), return_exceptions=True)  # all connect first
    ids = [f"o{n}" for n in range(4000)]
    shuffled = [random.Random(seed).sample(ids, len(ids)) for seed in range(8)]
    answers = await asyncio.gather(*(scheduler.start_many("task", [(each, 1) for each in some]) for some in shuffled))
    assert sum(answer.created for answer in answers) == len(ids) == await count(connection)
    assert sum(len(answer.existing) for answer in answers) == 7 * len(ids)


# -- hints


async def idle_worker(database: Database, bucket: int) -> asyncio.Queue[str]:
    """A registered worker that serves the task `task`, and the hints that are sent."""
    worker = await ready_worker(database, bucket)
    await workers.mark_idle(worker.connection, database.schema, bucket, [worker.id], True)
    heard: asyncio.Queue[str] = asyncio.Queue()

    def hear(connection: object, pid: int, channel: str, payload: object) -> None:
        heard.put_nowait(channel)

    await worker.connection.add_listener(workers.channel(database.schema), hear)
    return heard


async def test_an_idle_worker_hears_of_a_start(scheduler: PostgresScheduler, database: Database) -> None:
    heard = await idle_worker(database, bucket_of("a", database.buckets))
    await scheduler.start("a", "task", 1)
    async with asyncio.timeout(10):
        await heard.get()


async def test_a_start_in_a_transaction_is_heard_of_after_its_commit(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    heard = await idle_worker(database, bucket_of("a", database.buckets))
    async with connection.transaction():
        await scheduler.start("a", "task", 1, conn=connection)
        await connection.fetchval("select pg_notify('other', '')")
        assert heard.empty()
    async with asyncio.timeout(10):
        await heard.get()


async def test_a_hint_that_cannot_be_sent_fails_no_start(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await connection.execute("alter table zart.zart_workers rename to elsewhere")
    assert (await scheduler.start("a", "task", 1)).created
    assert (await scheduler.start_many("task", [("b", 1)])).created == 1


# -- looking


async def test_an_unknown_id_is_not_found(scheduler: PostgresScheduler) -> None:
    for question in (scheduler.status("no"), scheduler.history("no"), scheduler.cancel("no"), scheduler.wait("no")):
        with pytest.raises(ExecutionNotFound, match="'no'"):
            await question


async def test_a_held_execution_is_running(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    await worker.claim()
    assert (await scheduler.status("a")).status is ExecutionStatus.RUNNING


async def test_a_child_is_found_by_its_id(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    worker = await ready_worker(database, bucket_of("a", database.buckets))
    (claim,) = await worker.claim()
    part = Child(claim.id, claim.run, 77, "part", "task", worker.lanes[0])
    await worker.tick(moves=[Move(claim.id, claim.epoch, Verb.HOLD)], children=[part])
    child = f"zart:{claim.id}/1/part"
    assert (await scheduler.status(child)).parent == "a"
    assert [each.execution_id for each in (await scheduler.list_executions(parent="a")).items] == [child]
    assert [each.execution_id for each in (await scheduler.list_executions()).items] == ["a"]
    assert await scheduler.cancel(child)


async def test_a_list_goes_on_where_its_page_ended(scheduler: PostgresScheduler) -> None:
    for n in range(5):
        await scheduler.start(f"o{n}", "task", n)
    first = await scheduler.list_executions(limit=3)
    rest = await scheduler.list_executions(limit=3, after=first.after)
    assert [each.execution_id for each in first.items + rest.items] == ["o4", "o3", "o2", "o1", "o0"]
    assert rest.after is None


async def test_a_list_can_be_narrowed(scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task", 1, queue="slow")
    await scheduler.start("b", "other", 1)
    await scheduler.cancel("b")
    found = [
        await scheduler.list_executions(queue="slow"),
        await scheduler.list_executions(task_name="task"),
        await scheduler.list_executions(status="pending"),
        await scheduler.list_executions(status=ExecutionStatus.CANCELLED),
        await scheduler.list_executions(created_after=datetime.now(UTC) + timedelta(hours=1)),
    ]
    assert [[each.execution_id for each in page.items] for page in found] == [["a"], ["a"], ["a"], ["b"], []]


@pytest.mark.parametrize(
    "options",
    [{"status": "lost"}, {"created_after": datetime(2020, 1, 1)}, {"limit": 0}, {"after": "x"}, {"parent": ""}],
    ids=shown,
)
async def test_a_list_that_cannot_be_made_is_refused(scheduler: PostgresScheduler, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await scheduler.list_executions(**options)


# -- changing


async def test_only_the_first_cancel_cancels(scheduler: PostgresScheduler, connection: asyncpg.Connection) -> None:
    await scheduler.start("a", "task", 1)
    assert [await scheduler.cancel("a"), await scheduler.cancel("a")] == [True, False]
    assert (await scheduler.status("a")).status is ExecutionStatus.CANCELLED
    assert await count(connection, "zart_queue") == 0


async def test_a_cancel_in_a_transaction_that_rolls_back_cancels_nothing(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1)
    transaction = connection.transaction()
    await transaction.start()
    assert await scheduler.cancel("a", conn=connection)
    await transaction.rollback()
    assert (await scheduler.status("a")).status is ExecutionStatus.PENDING


async def test_the_first_event_of_a_name_is_kept(scheduler: PostgresScheduler, database: Database) -> None:
    await scheduler.start("a", "task", 1)
    assert await scheduler.offer_event("a", "go", {"by": "x"}) is EventAnswer.ACCEPTED
    assert await scheduler.offer_event("a", "go", 2) is EventAnswer.ALREADY_OFFERED
    assert [(each.name, each.kind, each.result) for each in await scheduler.history("a")] == [
        ("go", "event", {"by": "x"})
    ]
    await end_all(database)
    assert await scheduler.offer_event("a", "more", 2) is EventAnswer.FINISHED


async def test_an_event_is_kept_under_the_key_of_its_name(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1)
    await scheduler.offer_event("a", "go")
    assert await connection.fetchval("select step_key from zart.zart_tasks") == step_key(KeySpace.EVENT, "go")


async def test_a_payload_that_would_not_come_back_is_refused_with_the_event_named(scheduler: PostgresScheduler) -> None:
    await scheduler.start("a", "task", 1)
    with pytest.raises(SerializationError, match=r"^payload of event 'go' of execution 'a' at \$: "):
        await scheduler.offer_event("a", "go", float("nan"))


# -- the schema


async def test_a_database_without_schema_says_to_migrate(empty_database: Database) -> None:
    async with PostgresScheduler.connect(empty_database.dsn) as scheduler:
        with pytest.raises(SchemaMissing, match="zart migrate") as caught:
            await scheduler.start("a", "task", 1)
        assert "\n" not in str(caught.value)


async def test_a_migrated_schema_can_be_used_at_once(empty_database: Database) -> None:
    async with PostgresScheduler.connect(empty_database.dsn, schema="My schema") as scheduler:
        with pytest.raises(SchemaMissing):
            await scheduler.status("a")
        assert await scheduler.migrate(buckets=3)
        assert await scheduler.migrate() == []
        assert (await scheduler.start("a", "task", 1)).created


async def test_a_newer_schema_is_refused(scheduler: PostgresScheduler, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into zart.zart_migrations values (9999, 'later', 9999)")
    with pytest.raises(SchemaMismatch, match="upgrade"):
        await scheduler.start("a", "task", 1)


async def test_a_schema_that_went_away_says_to_migrate(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1)
    await connection.execute("drop schema zart cascade")
    with pytest.raises(SchemaMissing, match="zart migrate"):
        await scheduler.status("a")


# -- the connections


async def test_a_scheduler_can_be_awaited_and_closed(database: Database) -> None:
    scheduler = await PostgresScheduler.connect(database.dsn)
    await scheduler.start("a", "task", 1)
    await scheduler.close()
    with pytest.raises(DatabaseError, match=r"^the scheduler is closed; reading execution 'a' needs an open one$"):
        await scheduler.status("a")
    with pytest.raises(DatabaseError, match=r"^the scheduler is closed; waiting for execution 'a' needs an open one$"):
        await scheduler.wait("a")


async def test_the_url_comes_from_the_environment_when_none_is_given(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    async with PostgresScheduler.connect() as scheduler:
        assert scheduler.dsn == database.dsn


async def test_no_url_at_all_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(DatabaseUnreachable, match="DATABASE_URL"):
        await PostgresScheduler.connect()


@pytest.mark.parametrize("options", [{"max_pool_size": 0}, {"min_pool_size": 11}, {"schema": ""}], ids=repr)
async def test_options_that_cannot_be_used_are_refused(database: Database, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await PostgresScheduler.connect(database.dsn, **options)


async def test_one_connection_is_enough_for_everything(database: Database) -> None:
    async with PostgresScheduler.connect(database.dsn, max_pool_size=1) as scheduler, asyncio.timeout(20):
        handles = await asyncio.gather(*(scheduler.start(f"o{n}", "task", n) for n in range(50)))
        waits = asyncio.gather(*(handle.result() for handle in handles))
        await end_all(database, output=b"5")
        assert await waits == [5] * 50


async def test_a_scheduler_goes_on_after_its_connections_were_cut(
    scheduler: PostgresScheduler, connection: asyncpg.Connection
) -> None:
    await scheduler.start("a", "task", 1)
    await connection.fetch(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'zart scheduler'"
    )

    async def answers() -> bool:
        try:
            return bool((await scheduler.status("a")).input)
        except DatabaseUnreachable:
            return False

    await eventually(answers)
