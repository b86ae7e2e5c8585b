"""How many connections a runner takes: what docs/operations.md says, held against pg_stat_activity."""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
import pytest

from tests.support import borrowers
from tests.support.connections import of_a_runner
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start

PROCS, LENT, MORE = 2, 3, 4


async def taken(connection: asyncpg.Connection) -> Counter[str]:
    """Sessions in this database besides the asker's, by the name they give themselves."""
    rows = await connection.fetch(
        "select application_name from pg_stat_activity"
        " where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    return Counter(row["application_name"] for row in rows)


@pytest.mark.parametrize("options", [{}, {"http_port": 0}], ids=["without an endpoint", "with one"])
async def test_a_runner_takes_what_the_formula_says_idle_and_when_all_that_can_be_lent_is_lent(
    database: Database, connection: asyncpg.Connection, options: dict[str, Any]
) -> None:
    least, most = of_a_runner(PROCS, LENT, endpoint="http_port" in options)
    config = {"trx_pool_size": LENT, "max_concurrent_tasks": LENT + MORE}
    with Fleet(database, PROCS, app="tests.support.borrowers", config=config, options=options) as fleet:
        await fleet.ready()

        async def idle() -> bool:
            return (await taken(connection)).total() == least

        await eventually(idle)
        await connection.execute("select pg_advisory_lock($1)", borrowers.LOCK)
        wanted = PROCS * (LENT + MORE)  # as many as all workers have slots for, so each of them is full
        await start(database, borrowers.borrowing.spec.task_name, {f"b-{n}": None for n in range(wanted)})

        async def lent() -> bool:
            return (await taken(connection))["zart trx"] == PROCS * LENT

        await eventually(lent)
        found = await taken(connection)
        assert found.total() == most, found
        assert await connection.fetchval("select count(*) from zart.zart_queue") == wanted  # more would borrow
        await connection.execute("select pg_advisory_unlock($1)", borrowers.LOCK)
        await all_ended(database)
        assert (await taken(connection)).total() <= most
