"""Starts and events by SQL functions: what they store is what the scheduler stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support.database import Database
from tests.support.endings import end_all
from zart import PostgresScheduler, zart_durable
from zart.store.migrate import migrate

START = "select zart.start_execution($1, $2)"
OFFER = "select zart.offer_event($1, $2)"


@zart_durable("timed", timeout="2h")
async def timed(data: Any) -> Any:
    return data


@pytest_asyncio.fixture
async def scheduler(database: Database) -> AsyncIterator[PostgresScheduler]:
    async with PostgresScheduler.connect(database.dsn) as made:
        yield made


async def rows(connection: asyncpg.Connection, schema: str) -> list[list[dict[str, Any]]]:
    """All that starts and events write, moments as the time since the start."""
    lanes = await connection.fetch(f"select * from {schema}.zart_lanes order by lane")
    records = await connection.fetch(
        f"select e.*, deadline - created_at as deadline, null as created_at from {schema}.zart_executions e order by id"
    )
    queued = await connection.fetch(
        f"select q.*, q.run_at - e.created_at as run_at from {schema}.zart_queue q"
        f" join {schema}.zart_executions e on e.id = q.id and e.bucket = q.bucket order by q.id"
    )
    events = await connection.fetch(f"select t.*, null as created_at from {schema}.zart_tasks t order by id, step_key")
    tokens = {"started_by", "offered_by"}  # a call in a transaction of the caller's is not sent again
    tables = (lanes, records, queued, events)
    return [[{key: row[key] for key in set(row.keys()) - tokens} for row in table] for table in tables]


@pytest.mark.parametrize("buckets", [1, 4])
async def test_they_store_what_the_scheduler_stores(empty_database: Database, buckets: int) -> None:
    connection = await empty_database.connect()
    await migrate(connection, "by_python", buckets)
    await migrate(connection, "by_sql", buckets)
    start = "select by_sql.start_execution("
    offer = "select by_sql.offer_event("
    async with PostgresScheduler.connect(empty_database.dsn, schema="by_python") as scheduler:
        await scheduler.start("a", "task", {"item": 3})
        await connection.execute(start + """'a', 'task', '{"item":3}')""")
        await scheduler.start("b", "task")
        await connection.execute(start + "'b', 'task')")
        await scheduler.start("c", "task", None, queue="slow", priority=7, delay="90m")
        await connection.execute(
            start + "'c', 'task', null::json, queue => 'slow', priority => 7, delay => '1 hour 30 min')"
        )
        await scheduler.start_for(timed, "d", [1.5, "é漢😀", None], delay="1s")
        await connection.execute(
            start + "'d', 'timed', '[1.5,\"é漢😀\",null]'::json, delay => '1 s', timeout => '2 h')"
        )
        for number in range(30):
            execution_id = f"order-é-{number}" + "x" * number
            await scheduler.start(execution_id, "task", number)
            await connection.execute(start + "$1, 'task', to_json($2::int))", execution_id, number)
        for execution_id in ("a", "b", "c", "d"):
            await scheduler.offer_event(execution_id, "approved-by-é", {"by": "grace"})
            await connection.execute(offer + """$1, 'approved-by-é', '{"by":"grace"}')""", execution_id)
            await scheduler.offer_event(execution_id, "n" * 100)
            await connection.execute(offer + "$1, repeat('n', 100))", execution_id)
    assert await rows(connection, "by_sql") == await rows(connection, "by_python")
    await connection.close()


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        ("null", None),
        ("""'{"b": [1, 2.50], "a": "x"}'""", {"b": [1, 2.5], "a": "x"}),
        ("""'{"a": 1}'::text""", {"a": 1}),
        ("""'{"a": 1}'::json""", {"a": 1}),
        ("jsonb_build_object('a', 1)", {"a": 1}),
        ("to_json(true)", True),
        ("'-9223372036854775808'", -(2**63)),
        ("'9223372036854775807'", 2**63 - 1),
        ("'[1e19, 1e300, 1e-300]'", [1e19, 1e300, 1e-300]),
        (r"""'"\ud83d\ude00 \\u0000 \\ud800"'""", "😀 \\u0000 \\ud800"),
        ("""'{"in": {"$zart": 1}}'""", {"in": {"$zart": 1}}),
        ("""'["[ zart \\" 99999999999999999999 1e999"]'""", ['[ zart " 99999999999999999999 1e999']),
        ("repeat('[', 200) || repeat(']', 200)", eval("[" * 200 + "]" * 200)),
        ("'[' || repeat('{},', 300) || '1]'", [*[{}] * 300, 1]),
        ("repeat('[', 199) || '[],{}' || repeat(']', 199)", eval("[" * 199 + "[],{}" + "]" * 199)),
    ],
)
async def test_json_of_any_type_is_kept_as_it_is(
    scheduler: PostgresScheduler, connection: asyncpg.Connection, data: str, kept: Any
) -> None:
    assert await connection.fetchval(f"select zart.start_execution('a', 'task', {data})")
    assert await connection.fetchval(f"select zart.offer_event('a', 'go', {data})") == "accepted"
    assert (await scheduler.status("a")).input == kept
    assert [step.result for step in await scheduler.history("a")] == [kept]


async def test_an_id_that_exists_is_left_as_it_is_whatever_its_state(
    scheduler: PostgresScheduler, database: Database, connection: asyncpg.Connection
) -> None:
    again = "select zart.start_execution('a', 'task', '2')"
    assert await connection.fetchval("select zart.start_execution('a', 'task', '1')")
    assert not await connection.fetchval(again)
    await end_all(database)
    assert not await connection.fetchval(again)
    assert (await scheduler.status("a")).input == 1


async def test_an_event_is_answered_as_the_scheduler_answers(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute(START, "a", "task")
    assert await connection.fetchval(OFFER, "a", "go") == "accepted"
    assert await connection.fetchval(OFFER, "a", "go") == "already_offered"
    await end_all(database)
    assert await connection.fetchval(OFFER, "a", "more") == "finished"
