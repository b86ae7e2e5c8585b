"""Executions that kill their process take no neighbour with them, and end in quarantine; nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import zart
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start, unfinished
from tests.support.poisons import DURABLES, noted
from tests.support.shell import output_of
from tests.support.witness import assert_each_completed_once, make_witness
from tests.support.workflows import STEPS, make_effects
from zart.model import ExecutionRecord, ExecutionStatus

APP = "tests.support.poisons:registry"
WAYS = [durable.spec.task_name for durable in DURABLES]
GOOD = 1_000
KILLS = 12
SEED = int(os.environ.get("ZART_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


def fleet_of(database: Database, acts: Path, procs: int = 2, **config: Any) -> Fleet:
    return Fleet(database, procs, app=APP, config=config, environment={"DEADLY_ACTS": str(acts)})


async def ended(scheduler: zart.PostgresScheduler, execution_id: str) -> ExecutionRecord:
    return await scheduler.wait(execution_id, timeout=30)


async def test_whatever_kills_its_process_is_found_and_quarantined(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    acts = tmp_path / "acts"
    await make_witness(connection)
    with fleet_of(database, acts, 3, max_crashes=1) as fleet:
        await fleet.ready()
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            for way in WAYS:
                await start(database, "sum", {f"{way}{n}": n for n in range(20)})
                await start(database, way, {way: {"me": way} if way == "input" else way})
                record = await ended(scheduler, way)
                if way in ("scheduled", "child"):  # their body goes on, and hears of it
                    assert record.status == ExecutionStatus.COMPLETED, way
                    assert "its process died 2 times, 1 of them with nothing else in it" in record.output
                    [record] = (await scheduler.list_executions(parent=way)).items
                assert (record.status, record.crashes, record.error["kind"]) == (
                    ExecutionStatus.QUARANTINED,
                    2,
                    "quarantined",
                ), way
                # A thread of its own is not seen: whoever runs on the loop just then is blamed, or all that are held.
                assert noted(acts)[way] >= 2 if way == "own-thread" else noted(acts)[way] == 2, way
        await all_ended(database)
        assert noted(acts)["handled"] == 0
        good = "select count(*) from zart.zart_executions where task_name = 'sum' and status = 1"
        assert await connection.fetchval(good) == 20 * len(WAYS)
        fleet.stop()


async def test_good_ones_beside_it_finish_and_random_kills_quarantine_none(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    print(f"ZART_TEST_SEED={SEED}")
    chance, kills = random.Random(SEED), 0
    acts = tmp_path / "acts"
    await make_witness(connection)
    naps = {f"nap{n}": 0.05 for n in range(20)}
    good = {f"good{n}": n for n in range(GOOD - len(naps))}
    with fleet_of(database, acts, 3) as fleet:
        await fleet.ready()
        await start(database, "naps", naps)
        await start(database, "sum", dict(list(good.items())[:500]))
        await start(database, "killed", {"poison": "poison"})
        await start(database, "sum", dict(list(good.items())[500:]))
        while await unfinished(database):
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            victims = sorted((await fleet.workers()).values())
            if victims and kills < KILLS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    kills += 1
        fleet.stop()
    print(f"{kills} kills, {noted(acts)}")
    poison = await connection.fetchrow("delete from zart.zart_executions where execution_id = 'poison' returning *")
    assert poison is not None
    assert (poison["status"], poison["crashes"]) == (5, 4)
    assert 1 <= noted(acts)["poison"] <= 4
    assert kills > 0
    await connection.execute("delete from endings where status = 5")
    await assert_each_completed_once(connection, {name: n + sum(range(STEPS)) for name, n in good.items()} | naps)


async def test_three_deaths_alone_and_how_it_is_told_and_mended(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    acts = tmp_path / "acts"
    await make_effects(connection)
    with fleet_of(database, acts) as fleet:
        await fleet.ready()
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            handle = await scheduler.start("mendable-1", "mendable", "me")
            with pytest.raises(
                zart.ExecutionFailed, match=r"was quarantined: .* in step 'exits' \(exit code 7\)"
            ) as failed:
                await handle.result(timeout=30)
            assert (failed.value.error["step"], failed.value.error["last_checkpoint"]) == ("exits", "first")
            assert noted(acts) == {"first": 1, "me": 4}
            assert (await scheduler.status("mendable-1")).crashes == 4
            told = "its process died 4 times, 3 of them with nothing else in it"
            here = {"DATABASE_URL": database.dsn}
            for line in ("zart status mendable-1", "zart history mendable-1"):
                assert told in await output_of(line, environment=here)
            assert "mendable-1" in await output_of("zart list --status quarantined", environment=here)

            (tmp_path / "mended").touch()
            assert await output_of("zart release mendable-1", environment=here) == "released mendable-1\n"
            assert await handle.result(timeout=30) == "mended, kept"
            assert noted(acts) == {"first": 1, "me": 4}
            record = await scheduler.status("mendable-1")
            assert (record.run, record.crashes, record.error) == (1, 0, None)
        log = fleet.stop()[2]
    assert "execution 'mendable-1' is set apart: its code ran when its process died (exit code 7)" in log
    [told] = [line for line in log.splitlines() if "execution 'mendable-1' is quarantined: " in line]
    assert told.partition(" [zart")[0].count("'exits'") == 1, told
    assert " task=mendable " in told


async def test_the_unlucky_run_alone_once_and_those_that_only_wait_are_not_blamed(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    acts = tmp_path / "acts"
    await make_effects(connection)
    with fleet_of(database, acts, 1) as fleet:
        [worker] = await fleet.ready()
        await start(database, "slow", {"waits": 1.0})
        await start(database, "naps", {"naps": 1.0})

        async def both_begun() -> bool:
            return noted(acts)["nap"] == 1 and await connection.fetchval("select count(*) from effects") == 1

        await eventually(both_begun)
        os.kill(worker, signal.SIGKILL)
        await all_ended(database)
        fleet.stop()
    rows = await connection.fetch("select execution_id, status, crashes from zart.zart_executions order by 1")
    assert [tuple(row) for row in rows] == [("naps", 1, 1), ("waits", 1, 0)]
    assert noted(acts)["nap"] == 2


async def test_what_is_set_apart_gets_its_turn_in_a_busy_fleet(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """Four turns by itself, each within two seconds: a poll, and the longest step of those beside it."""
    acts = tmp_path / "acts"
    await make_effects(connection)
    with fleet_of(database, acts, max_concurrent_tasks=8) as fleet:
        await fleet.ready()
        for part in range(8):  # more than they can do meanwhile
            await start(database, "slow", {f"slow{part}-{n}": 0.2 for n in range(250)})
        async with zart.PostgresScheduler.connect(database.dsn) as scheduler:
            await scheduler.start("poison", "killed", "poison", priority=0)
            began = time.monotonic()
            record = await ended(scheduler, "poison")
            took = time.monotonic() - began
        done = await connection.fetchval("select count(*) from zart.zart_executions where status = 1")
        print(f"quarantined after {took:.1f} s, {done} others done")
        assert (record.status, noted(acts)["poison"]) == (ExecutionStatus.QUARANTINED, 4)
        assert await unfinished(database) > 16  # the workers were never without other work
        assert took < 20
        assert done > 16
