"""Starts and events by SQL functions: they refuse what the scheduler refuses, and say why."""

from __future__ import annotations

import re
from datetime import timedelta

import asyncpg
import pytest

from tests.support.database import Database
from zart import PostgresScheduler
from zart.config import MAX_EXECUTION_ID_BYTES
from zart.durable import MAX_PRIORITY
from zart.errors import InvalidArgument, SerializationError
from zart.names import MAX_NAME_BYTES
from zart.terms import MAX_INPUT_BYTES

START = "select zart.start_execution($1, $2)"
OFFER = "select zart.offer_event($1, $2)"


@pytest.mark.parametrize(
    ("arguments", "state", "said"),
    [
        ("null, 'task'", "22004", "execution_id must not be null"),
        ("'a', null", "22004", "task_name must not be null"),
        ("'', 'task'", "22023", "execution_id must not be empty"),
        ("'a', ''", "22023", "task_name must not be empty"),
        ("'a', 'task', queue => ''", "22023", "queue must not be empty"),
        ("'a', 'task', queue => null", "22004", "queue must not be null"),
        ("repeat('é', 257), 'task'", "22023", "execution_id has 514 bytes, at most 512 are allowed, got 'éé"),
        ("'a', repeat('t', 513)", "22023", "task_name has 513 bytes, at most 512 are allowed"),
        ("'a', 'task', queue => repeat('q', 513)", "22023", "queue has 513 bytes, at most 512 are allowed"),
        ("'zart:1/1/x', 'task'", "22023", "execution_id 'zart:1/1/x' begins with 'zart:', which zart keeps"),
        ("'a', 'task', priority => 1001", "22023", "priority must be a whole number, 0 (first) to 1000 (last), got 10"),
        ("'a', 'task', priority => -1", "22023", "priority must be a whole number"),
        ("'a', 'task', priority => null", "22023", "priority must be a whole number"),
        ("'a', 'task', delay => '-1 s'", "22023", "delay must be from 0 seconds to 100 years, got -00:00:01"),
        (
            "'a', 'task', delay => '100 years 1 s'",
            "22023",
            "delay must be from 0 seconds to 100 years, got 100 years 0",
        ),
        ("'a', 'task', timeout => '101 years'", "22023", "timeout must be from 0 seconds to 100 years"),
        ("'a', 'task', timeout => '0'", "22023", "timeout must be more than 0 seconds; null means the task's own"),
    ],
)
async def test_a_start_that_the_scheduler_would_refuse_is_refused(
    connection: asyncpg.Connection, arguments: str, state: str, said: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match=f"^{re.escape(said)}") as caught:
        await connection.execute(f"select zart.start_execution({arguments})")
    assert caught.value.sqlstate == state
    assert await connection.fetchval("select count(*) from zart.zart_executions") == 0


@pytest.mark.parametrize(
    "data",
    [
        r'"\u0000"',
        r'{"\u0000": 1}',
        r'"\\\u0000"',
        r'"\ud800"',
        r'"\udc00\ud83d"',
        r'["\ud83d\ude00", "\ud83d"]',
        '{"$zart": "uuid"}',
        r'{"\u0024zart": null}',
        r'{"$\u007aart": 1}',
        "9223372036854775808",
        "-9223372036854775809",
        '{"a": [99999999999999999999]}',
        "9" * 200_000,
        "1e400",
        "-1E+400",
        "1e-400",
        "9" * 400 + ".5",
        "[" * 201 + "]" * 201,
        '{"a":' * 201 + "1" + "}" * 201,
    ],
    ids=lambda data: data[:20],
)
async def test_a_value_that_would_not_come_back_as_it_is_is_refused(connection: asyncpg.Connection, data: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match=r"^data of execution 'a': .*; "):
        await connection.execute("select zart.start_execution('a', 'task', $1::json)", data)
    await connection.execute(START, "a", "task")
    with pytest.raises(asyncpg.InvalidParameterValueError, match=r"^payload of event 'go' of execution 'a': .*; "):
        await connection.execute("select zart.offer_event('a', 'go', $1::json)", data)


async def test_a_value_of_more_bytes_than_allowed_is_refused(connection: asyncpg.Connection) -> None:
    size = MAX_INPUT_BYTES + 1
    with pytest.raises(asyncpg.ProgramLimitExceededError, match=f"^data of execution 'a': {size} bytes are more"):
        await connection.execute("select zart.start_execution('a', 'task', to_json(repeat('x', $1)))", size - 2)


async def test_the_id_of_another_task_is_refused(connection: asyncpg.Connection) -> None:
    await connection.execute(START, "a", "task")
    with pytest.raises(
        asyncpg.UniqueViolationError, match=r"already exists as 'task', .* started as 'other'"
    ) as caught:
        await connection.execute(START, "a", "other")
    assert caught.value.hint == "Use another id."


@pytest.mark.parametrize(
    ("arguments", "state", "said"),
    [
        ("'nobody', 'go'", "P0002", "no execution has the id 'nobody'"),
        ("'zart:1/1/nobody', 'go'", "P0002", "no execution has the id 'zart:1/1/nobody'"),
        ("null, 'go'", "22004", "execution_id must not be null"),
        ("'a', null", "22004", "the name of the event must not be null"),
        ("'a', ''", "22023", "the name of the event must not be empty"),
        ("'a', repeat('n', 513)", "22023", "the name of the event has 513 bytes"),
    ],
)
async def test_an_event_that_the_scheduler_would_refuse_is_refused(
    connection: asyncpg.Connection, arguments: str, state: str, said: str
) -> None:
    await connection.execute(START, "a", "task")
    with pytest.raises(asyncpg.PostgresError, match=f"^{said}") as caught:
        await connection.execute(f"select zart.offer_event({arguments})")
    assert caught.value.sqlstate == state
    assert await connection.fetchval("select count(*) from zart.zart_tasks") == 0


async def test_the_limits_are_those_of_the_scheduler(database: Database, connection: asyncpg.Connection) -> None:
    longest, name = "i" * MAX_EXECUTION_ID_BYTES, "n" * MAX_NAME_BYTES
    await connection.execute(
        "select zart.start_execution($1, $2, queue => $2, priority => $3, delay => '100 y', timeout => '100 y')",
        longest, name, MAX_PRIORITY,
    )  # fmt: skip
    assert await connection.fetchval(OFFER, longest, name) == "accepted"
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        for refused in (
            scheduler.start(longest + "i", "task"),
            scheduler.start("a", name + "n"),
            scheduler.start("a", "task", queue=name + "n"),
            scheduler.start("a", "task", priority=MAX_PRIORITY + 1),
            scheduler.start("a", "task", delay=timedelta(days=36525, seconds=1)),
            scheduler.offer_event(longest, name + "n"),
        ):
            with pytest.raises((InvalidArgument, SerializationError)):
                await refused
