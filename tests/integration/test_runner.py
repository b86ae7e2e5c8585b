"""The whole runner against PostgreSQL: serving, deaths, stopping, bad input."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import asyncpg
import pytest

from tests.support import workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, effects, start, unfinished


@pytest.fixture
async def made(database: Database, connection: asyncpg.Connection) -> Database:
    """The test's database with the table of effects."""
    await workflows.make_effects(connection)
    return database


async def _outputs(connection: asyncpg.Connection) -> dict[str, str | None]:
    rows = await connection.fetch("select execution_id, output::text from zart.zart_executions")
    return {row["execution_id"]: row["output"] for row in rows}


async def _begun(database: Database, count: int = 1) -> None:
    """Returns when so many steps have begun."""

    async def enough() -> bool:
        return await effects(database) >= count

    await eventually(enough)


async def test_a_runner_serves_what_is_started(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made) as fleet:
        await start(made, "sum", {f"s{n}": n for n in range(200)})
        await all_ended(made)
        assert fleet.stop()[0] == 0
    assert await _outputs(connection) == {f"s{n}": str(n + 3) for n in range(200)}
    assert await effects(made) == 200 * workflows.STEPS


async def test_preloaded_workers_serve_too(made: Database) -> None:
    with Fleet(made, options={"preload": True}) as fleet:
        await start(made, "sum", {"s": 1})
        await all_ended(made)
        assert fleet.stop()[0] == 0


async def test_a_stopped_runner_leaves_no_worker_and_no_claim(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made) as fleet:
        await fleet.ready()
        assert fleet.stop()[0] == 0
    assert await connection.fetchval("select count(*) from zart.zart_workers") == 0


async def test_steps_that_run_end_before_the_runner_does(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made) as fleet:
        await start(made, "slow", {"s": 0.5})
        await _begun(made)
        assert fleet.stop()[0] == 0
    assert await effects(made) == 1
    names = await connection.fetch("select name from zart.zart_tasks")
    assert [row["name"] for row in names] == ["linger"]


async def test_what_does_not_end_in_time_is_handed_back_without_a_crash(
    made: Database, connection: asyncpg.Connection
) -> None:
    with Fleet(made, config={"shutdown_timeout": 0.2}) as fleet:
        await start(made, "slow", {"s": 600})
        await _begun(made)
        code, words, _ = fleet.stop(15)
    assert (code, words["DEATHS"]) == (0, 0)
    row = await connection.fetchrow("select worker, crashes, lane from zart.zart_queue")
    assert row is not None
    assert (row["worker"], row["crashes"]) == (None, 0)
    assert row["lane"] > 0


async def test_a_second_stop_signal_hands_back_what_ran(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made) as fleet:
        await start(made, "slow", {"s": 600})
        await _begun(made)
        fleet.send(signal.SIGTERM)
        await eventually(lambda: "stopping" in fleet.log())
        fleet.send(signal.SIGTERM)
        assert fleet.end(15)[0] == 0
    row = await connection.fetchrow("select worker, crashes from zart.zart_queue")
    assert row is not None
    assert (row["worker"], row["crashes"]) == (None, 0)
    assert await connection.fetchval("select count(*) from zart.zart_workers") == 0


async def test_the_work_of_a_killed_worker_runs_again_long_before_its_lease_ends(
    made: Database, connection: asyncpg.Connection
) -> None:
    with Fleet(made) as fleet:
        await fleet.ready()
        await start(made, "slow", {f"s{n}": 1.0 for n in range(20)})
        await _begun(made, 20)
        victim = await connection.fetchval("select pid from effects group by pid order by count(*) desc limit 1")
        held = await connection.fetchval("select count(*) from effects where pid = $1", victim)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        await _begun(made, 20 + held)
        assert time.monotonic() - killed < 3.0
        await all_ended(made)
        assert fleet.stop()[1]["TAKEN_OVER"] == held


async def test_control_can_be_killed_at_any_time(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made, config={"lease_timeout": 2}) as fleet:
        before = await fleet.workers()
        control = await fleet.control()
        await start(made, "slow", {"long": 4.0})
        await _begun(made)
        os.kill(control, signal.SIGKILL)
        await start(made, "sum", {f"s{n}": n for n in range(50)})
        await all_ended(made)
        assert await fleet.workers() == before or not before
        assert fleet.stop()[1]["DEATHS"] == 0
    assert await effects(made) == 1 + 50 * workflows.STEPS


async def test_lost_connections_cost_nothing(made: Database, connection: asyncpg.Connection) -> None:
    with Fleet(made) as fleet:
        await fleet.ready()
        await start(made, "sum", {f"s{n}": n for n in range(500)})
        for _ in range(5):
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'zart %' and datname = current_database()"
            )
            await _begun(made, await effects(made) + 1 if await unfinished(made) else 0)
        await all_ended(made)
        assert fleet.stop()[1]["DEATHS"] == 0
    assert await _outputs(connection) == {f"s{n}": str(n + 3) for n in range(500)}


# Bad input


async def _refused(database: Database, **fields: Any) -> str:
    """What a runner that cannot start says."""
    with Fleet(database, **fields) as fleet:
        code, _, errors = fleet.end()
    assert code == 2, errors
    assert "Traceback" not in errors
    return errors


async def test_a_missing_module_is_named(database: Database) -> None:
    errors = await _refused(database, app="tests.support.no_such_module")
    assert errors.count("\n") == 1
    assert "no_such_module" in errors


async def test_a_module_without_durable_functions_is_named(database: Database) -> None:
    errors = await _refused(database, app="tests.support.eventually")
    assert errors.count("\n") == 1
    assert "has no durable functions" in errors


async def test_a_module_without_durable_functions_is_named_under_preload(database: Database) -> None:
    errors = await _refused(database, app="tests.support.eventually", options={"preload": True})
    assert "has no durable functions" in errors


async def test_a_missing_schema_is_named(empty_database: Database) -> None:
    errors = await _refused(empty_database)
    assert errors.count("\n") == 1
    assert "zart migrate" in errors


async def test_an_unreachable_database_is_named_without_its_password() -> None:
    errors = await _refused(Database("postgresql://user:hunter2@127.0.0.1:1/app"))
    assert errors.count("\n") == 1
    assert "127.0.0.1:1" in errors
    assert "hunter2" not in errors


async def test_log_lines_can_be_json(made: Database) -> None:
    with Fleet(made, options={"log_format": "json"}) as fleet:
        await fleet.ready()
        _, _, log = fleet.stop()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"serving", "stopping"} <= {line["event"].split()[0] for line in lines}
