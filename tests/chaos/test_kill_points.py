"""Workers die by SIGKILL at each point of an execution's life, once at each; the name of the test says where."""

from __future__ import annotations

import random
import time
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

MOST_ROUNDS = 5  # one tick may carry what all executions of a round have to say


@pytest.mark.parametrize("where", points.POINTS)
async def test_nothing_is_lost_or_done_twice_when_workers_die(
    database: Database, connection: asyncpg.Connection, tmp_path: Path, where: str
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
            armed = [points.arm(tmp_path, point) for point in points.POINTS[where]]
            began, load = time.time(), Load(scheduler, random.Random(1))
            for _ in range(MOST_ROUNDS):
                for task_name in ENDINGS:
                    await load.start(task_name)
                assert await load.all_ended(within=30), await connection.fetch("select * from zart.zart_records")
                if not any(point.exists() for point in armed):
                    break
            else:
                raise AssertionError(f"no worker came by {[point.name for point in armed if point.exists()]}")
            deaths = [Fault("worker killed", point, began, time.time()) for point in points.POINTS[where]]
            await fleet.ready()
            code, words, _ = fleet.stop()
        await load.close()
    assert (code, words["DEATHS"]) == (0, len(deaths))
    assert await violations(connection, load.accepted, deaths, 0) == []
