"""A worker dies by SIGKILL at each point of an execution's life; each failure repeats with the point's name alone."""

from __future__ import annotations

import random
from pathlib import Path

import asyncpg
import pytest

from tests.chaos import points
from tests.chaos.app import ENDINGS
from tests.chaos.invariants import Fault, violations, watch
from tests.chaos.load import Load
from tests.support.database import Database
from tests.support.fleet import Fleet
from zart import PostgresScheduler

EACH = 2  # executions of each workflow
NUMBERS = random.Random(1)


@pytest.mark.parametrize("point", points.POINTS)
async def test_nothing_is_lost_or_done_twice_when_a_worker_dies(
    database: Database, connection: asyncpg.Connection, tmp_path: Path, point: str
) -> None:
    await watch(connection)
    fleet = Fleet(
        database,
        app="tests.chaos.app:registry",
        config={"park_grace": 0.05},
        options={"preload": True},
        environment={points.DIRECTORY: str(tmp_path)},
    )
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        with fleet:
            armed = points.arm(tmp_path, point)
            began = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
            load = Load(scheduler, NUMBERS)
            for task_name in [*ENDINGS] * EACH:
                await load.start(task_name)
            assert await load.all_ended(within=30), await connection.fetch("select * from zart.zart_records")
            assert not armed.exists(), "no worker came by this point"
            healed = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
            await fleet.ready()
            code, words, _ = fleet.stop()
        await load.close()
    assert (code, words["DEATHS"]) == (0, 1)
    assert await violations(connection, load.accepted, [Fault("kill", point, began, healed)], 0) == []
