"""An execution that kills its process takes no neighbour with it, and ends in quarantine."""

from __future__ import annotations

import asyncpg

from tests.support.database import Database
from tests.support.fleet import Fleet, all_ended, start
from tests.support.witness import make_witness


async def test_only_the_execution_that_kills_its_process_is_quarantined(
    database: Database, connection: asyncpg.Connection
) -> None:
    await make_witness(connection)
    with Fleet(database, procs=2, config={"max_crashes": 2}) as fleet:
        await fleet.ready()
        await start(database, "sum", {f"good{n}": n for n in range(500)})
        await start(database, "deadly", {"deadly": None})
        await start(database, "sum", {f"good{n}": n for n in range(500, 1000)})
        await all_ended(database)
        rows = await connection.fetch(
            "select execution_id like 'good%' as good, status, count(*), max(crashes) as crashes"
            " from zart.zart_executions group by 1, 2 order by 1"
        )
        assert [tuple(row) for row in rows] == [(False, 5, 1, 3), (True, 1, 1000, 0)]
        error = await connection.fetchval("select error::text from zart.zart_executions where status = 5")
        assert "its process died, 3 times" in error
        fleet.stop()
