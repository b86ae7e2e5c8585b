"""The arbiter dies by SIGKILL under load."""

from __future__ import annotations

import signal

import asyncpg

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, effects, is_alive, start, unfinished
from tests.support.witness import assert_each_completed_once, assert_no_committed_step_began_again, make_witness
from tests.support.workflows import STEPS

EXECUTIONS = 2_000


async def test_no_orphan_goes_on_and_the_next_runner_finishes(
    database: Database, connection: asyncpg.Connection
) -> None:
    await make_witness(connection)
    inputs = {f"s{n}": n for n in range(EXECUTIONS)}
    with Fleet(database, procs=3, config={"lease_timeout": 2}) as first:
        await first.ready()
        members = first.members()
        await start(database, "sum", inputs)

        async def under_way() -> bool:
            return await effects(database) > 500

        await eventually(under_way)
        first.send(signal.SIGKILL)
        await eventually(lambda: not any(is_alive(pid) for pid in members))

    async def without_sessions() -> bool:
        text = (
            "select count(*) from pg_stat_activity"
            " where application_name like 'zart %' and datname = current_database()"
        )
        return not await connection.fetchval(text)

    await eventually(without_sessions)
    left, begun = await unfinished(database), await effects(database)
    assert left > 0
    claims = "select count(*) from zart.zart_queue where worker is not null"
    held = await connection.fetchrow(claims)

    with Fleet(database, procs=3, config={"lease_timeout": 2}) as second:
        await all_ended(database)
        assert second.stop()[0] == 0
    assert held is not None
    assert held["count"] > 0
    assert await effects(database) > begun
    await assert_each_completed_once(connection, {name: n + sum(range(STEPS)) for name, n in inputs.items()})
    await assert_no_committed_step_began_again(connection)
    assert await connection.fetchval("select max(crashes) from zart.zart_executions") == 0  # nobody was blamed
