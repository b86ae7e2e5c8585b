"""Each thing that must not be is told when it is there."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from tests.chaos import app
from tests.chaos.claims import ClaimWatch
from tests.chaos.invariants import Accepted, Fault, violations, watch
from tests.support.database import Database
from tests.support.eventually import eventually
from zart import PostgresScheduler

ACCEPTED = [Accepted("banker-7", "banker", 7)]

_END = """
update zart.zart_executions set status = 1, output = '7', finished_at = now();
delete from zart.zart_queue;
insert into ledger values ('banker-7', 7);
insert into effects values (gen_random_uuid(), 'banker-7', 'book', 1, 0, 1, clock_timestamp());
insert into zart.zart_tasks(id, step_key, run, epoch, bucket, kind, status, name, created_at)
  select id, 1, 1, 1, bucket, 1, 1, 'book', clock_timestamp() from zart.zart_executions;
"""
_AGAIN = "insert into effects select gen_random_uuid(), execution_id, step, 2, 0, 1, {} from effects"
_CHILD = """
insert into zart.zart_executions(lane, bucket, execution_id, task_name, parent, parent_run, parent_key, status)
  select lane, bucket, 'zart:child', 'leaf', id, 1, 5, {} from zart.zart_executions
"""


async def _ended(database: Database, connection: asyncpg.Connection) -> None:
    await watch(connection)
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start_for(app.banker, "banker-7", 7)
    await connection.execute(_END)


async def test_a_clean_run_has_no_violations(database: Database, connection: asyncpg.Connection) -> None:
    await _ended(database, connection)
    assert await violations(connection, ACCEPTED, [], 0) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("update zart.zart_executions set output = '8'", "an accepted execution ends as its workflow says"),
        ("update zart.zart_executions set status = 2", "an accepted execution ends as its workflow says"),
        ("delete from zart.zart_executions", "an accepted execution ends as its workflow says"),
        ("update zart.zart_executions set finished_at = now() + interval '1 s'", "terminal rows never change"),
        ("delete from zart.zart_executions", "terminal rows never change"),
        ("update zart.zart_tasks set result = '1'", "terminal rows never change"),
        ("delete from zart.zart_tasks", "terminal rows never change"),
        ("delete from endings", "an execution ends exactly once"),
        ("insert into endings select * from endings", "an execution ends exactly once"),
        (_AGAIN.format("clock_timestamp()"), "no committed step starts again"),
        (_AGAIN.format("began - interval '1 s'"), "effects <= 1 + allowed tries + crashes"),
        ("insert into ledger select * from ledger", "a transaction's writes are there once"),
        ("delete from ledger", "a transaction's writes are there once"),
        ("insert into zart.zart_queue(id, lane, bucket) values (1, 1, 0)", "nothing is left in the queue"),
        ("insert into zart.zart_signals values (1, 1, 1, 0)", "no signals are left"),
        (_CHILD.format(0), "no child lives on without its parent"),
        (_CHILD.format(1), "a parent knows how its children ended"),
    ],
)
async def test_what_must_not_be_is_told(
    database: Database, connection: asyncpg.Connection, text: str, told: str
) -> None:
    await _ended(database, connection)
    await connection.execute(text)
    found = await violations(connection, ACCEPTED, [], 0)
    assert any(line.startswith(told) for line in found), found


@pytest.mark.parametrize(
    ("worker", "told"), [(7, "1 claims of the dead process 0"), (8, "1 claims are held by worker 7, which has no row")]
)
async def test_claims_that_outlive_their_worker_are_told(
    database: Database, connection: asyncpg.Connection, worker: int, told: str
) -> None:
    columns = "id, lease_until, pid, bucket, host, task_names"
    text = f"insert into zart.zart_workers({columns}) values ($1, now(), 0, 0, 'here', '{{}}')"
    await connection.execute(text, worker)
    await connection.execute("insert into zart.zart_queue(id, lane, bucket, worker) values (1, 1, 0, 7)")
    supervisor = await asyncpg.connect(database.dsn, server_settings={"application_name": "zart supervisor"})
    claims = ClaimWatch(database, lambda _: time.time() - 1, bound=0.5)
    watching = asyncio.create_task(claims.run())
    await eventually(lambda: claims.violations)
    watching.cancel()
    await supervisor.close()
    assert told in claims.violations[0]


async def test_a_fault_allows_a_step_to_begin_once_more(database: Database, connection: asyncpg.Connection) -> None:
    await _ended(database, connection)
    await connection.execute(_AGAIN.format("began - interval '1 s'"))
    now = time.time()
    assert await violations(connection, ACCEPTED, [Fault("worker killed", "1", now - 60, now)], 0) == []
    assert await violations(connection, ACCEPTED, [Fault("worker killed", "1", now - 60, now - 50)], 40) != []
