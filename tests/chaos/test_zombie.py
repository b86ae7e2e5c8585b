"""Processes that stand still past their lease and then go on."""

from __future__ import annotations

import os
import signal

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, effects, start
from tests.support.witness import (
    assert_each_completed_once,
    assert_no_committed_step_began_again,
    make_witness,
    state_of,
)
from tests.support.workflows import STEPS

LEASE = 1.0
EXECUTIONS = 20

_BUSIEST = """
    select w.pid from zart.zart_queue q join zart.zart_workers w on w.id = q.worker
    group by w.pid order by count(*) desc limit 1
"""


async def _wait_for_a_word_from(connection: asyncpg.Connection, pid: int, before: set[int]) -> None:
    """Returns when a process has registered under an id that it did not have before."""

    async def back() -> bool:
        rows = await connection.fetch("select id from zart.zart_workers where pid = $1 and not dead", pid)
        return any(row["id"] not in before for row in rows)

    await eventually(back)


async def test_a_worker_that_stood_still_past_its_lease_writes_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    await make_witness(connection)
    inputs = {f"s{n}": 1.0 for n in range(EXECUTIONS)}
    with Fleet(database, procs=2, config={"lease_timeout": LEASE}, options={"stall_timeout": 3600}) as fleet:
        await fleet.ready()
        await start(database, "slow", inputs)

        async def all_begun() -> bool:
            return await effects(database) == EXECUTIONS

        await eventually(all_begun)
        ids = {pid: worker_id for worker_id, pid in (await fleet.workers()).items()}
        zombie = await connection.fetchval("select pid from effects group by pid order by count(*) desc limit 1")
        os.kill(zombie, signal.SIGSTOP)
        await all_ended(database)
        before = await state_of(connection)
        os.kill(zombie, signal.SIGCONT)
        await _wait_for_a_word_from(connection, zombie, {ids[zombie]})
        assert await state_of(connection) == before
        assert fleet.stop()[0] == 0
        assert await state_of(connection) == before
    await assert_each_completed_once(connection, inputs)


async def test_a_whole_runner_that_stood_still_past_its_leases_writes_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    await make_witness(connection)
    inputs = {f"s{n}": 1.0 for n in range(EXECUTIONS)}
    config = {"lease_timeout": LEASE}
    with Fleet(database, procs=2, config=config) as asleep:
        workers = await asleep.ready()
        before_sleep = set(await asleep.workers())
        await start(database, "slow", inputs)

        async def all_begun() -> bool:
            return await effects(database) == EXECUTIONS

        await eventually(all_begun)
        holders = {row["pid"] for row in await connection.fetch("select distinct pid from effects")}
        for pid in (asleep.pid, *asleep.members()):
            os.kill(pid, signal.SIGSTOP)
        with Fleet(database, procs=2, config=config) as awake:
            await all_ended(database)
            before = await state_of(connection)
            for pid in (*asleep.members(), asleep.pid):
                os.kill(pid, signal.SIGCONT)
            for pid in holders:
                await _wait_for_a_word_from(connection, pid, before_sleep)
            assert holders <= set(workers)
            assert asleep.stop()[1]["DEATHS"] == 0
            assert await state_of(connection) == before
            assert awake.stop()[0] == 0
    await assert_each_completed_once(connection, inputs)


@pytest.mark.parametrize(
    ("task_name", "under_way"),
    [
        ("dawdling", "select count(*) from zart.zart_queue where worker is not null"),
        ("stumbling", "select count(*) from zart.zart_attempts"),
    ],
)
async def test_a_worker_that_stood_still_past_its_lease_starts_no_step_that_others_have_committed(
    database: Database, connection: asyncpg.Connection, task_name: str, under_way: str
) -> None:
    await make_witness(connection)
    names = [f"s{n}" for n in range(EXECUTIONS)]
    config = {"lease_timeout": LEASE, "park_grace": 60}
    with Fleet(database, procs=2, config=config, options={"stall_timeout": 3600}) as fleet:
        await fleet.ready()
        ids = {pid: worker_id for worker_id, pid in (await fleet.workers()).items()}
        await start(database, task_name, dict.fromkeys(names))

        async def all_begun() -> bool:
            return bool(await connection.fetchval(under_way) == EXECUTIONS)

        await eventually(all_begun)
        zombie = await connection.fetchval(_BUSIEST)
        os.kill(zombie, signal.SIGSTOP)
        await all_ended(database)
        os.kill(zombie, signal.SIGCONT)
        await _wait_for_a_word_from(connection, zombie, {ids[zombie]})
        assert fleet.stop()[0] == 0
    await assert_each_completed_once(connection, dict.fromkeys(names, STEPS))
    await assert_no_committed_step_began_again(connection)
