"""A supervised fleet against PostgreSQL: a blocked event loop, new code, recycling, shared memory."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support import workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import ROOT, Fleet, all_ended, effects, start
from zart.runner import child
from zart.runner.board import Board
from zart.runner.options import RunnerOptions
from zart.runner.process import fork

_NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"
_APP = """
import asyncio, zart

@zart.zart_step("work-{{n}}")
async def work(n: int) -> str:
    await asyncio.sleep(0.2)
    return {answer!r}

@zart.zart_durable("ask")
async def ask(steps: int) -> str:
    return [await work(n) for n in range(steps)][-1]
"""


@pytest.fixture
async def made(database: Database, connection: asyncpg.Connection) -> Database:
    """The test's database with the table of effects."""
    await workflows.make_effects(connection)
    return database


def _fleet_of(tmp_path: Path, database: Database, text: str, **fields: Any) -> Fleet:
    """A runner that serves a module with this text."""
    (tmp_path / "written.py").write_text(text)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return Fleet(database, app="written", environment=environment, **fields)


async def _outputs(connection: asyncpg.Connection, like: str) -> dict[str | None, int]:
    """How many executions have which output."""
    text = "select output::text, count(*) from zart.zart_executions where execution_id like $1 group by 1"
    return {row["output"]: row["count"] for row in await connection.fetch(text, like)}


async def _assert_nobody_noticed(connection: asyncpg.Connection) -> None:
    """Nothing was tried again, and no crash was counted."""
    row = await connection.fetchrow("select max(attempt) as attempt, max(crashes) as crashes from zart.zart_executions")
    assert row is not None
    assert (row["attempt"], row["crashes"]) == (0, 0)
    assert await connection.fetchval("select count(*) from zart.zart_tasks where attempts > 1") == 0


async def test_a_blocked_loop_is_reported_then_its_worker_killed_then_its_claims_released(
    made: Database, connection: asyncpg.Connection
) -> None:
    with Fleet(made, config={"lease_timeout": 30}, options={"stall_timeout": 1.0, "log_format": "json"}) as fleet:
        await fleet.ready()
        await start(made, "blocking", {"b": 600.0})
        await eventually(lambda: "took over" in fleet.log())
        told = [json.loads(line) for line in fleet.log().splitlines()]
        fleet.send(signal.SIGQUIT)
        assert fleet.end()[1]["DEATHS"] >= 1
    events = [line["event"] for line in told]
    report = next(line for line in told if "its event loop has been blocked" in line["event"])
    assert f'File "{workflows.__file__}"' in report["stack"]
    assert " in block\n" in report["stack"]
    victim = await connection.fetchval("select pid from effects order by began limit 1")
    assert report["worker_pid"] == victim
    assert report["executions"] == [await connection.fetchval("select id from zart.zart_executions")]
    killed = next(event for event in events if event.endswith("ended (signal SIGKILL)"))
    freed = f"took over 1 execution of worker {report['worker_id']}"
    assert events.index(report["event"]) < events.index(killed) < events.index(freed)


async def test_new_code_comes_in_worker_by_worker_and_broken_code_does_not(
    tmp_path: Path, database: Database, connection: asyncpg.Connection
) -> None:
    with _fleet_of(tmp_path, database, _APP.format(answer="one")) as fleet:
        old = await fleet.ready()
        await start(database, "ask", {f"old{n}": 5 for n in range(20)})
        (tmp_path / "written.py").write_text(_APP.format(answer="three"))
        fleet.send(signal.SIGHUP)
        await eventually(lambda: "reloaded: 2 workers" in fleet.log())
        await start(database, "ask", {f"new{n}": 1 for n in range(20)})
        await all_ended(database)
        young = await fleet.ready()
        assert not set(old) & set(young)
        (tmp_path / "written.py").write_text("import nothing_of_this_name")
        fleet.send(signal.SIGHUP)
        await eventually(lambda: "not reloaded, the workers keep the old code: importing written failed" in fleet.log())
        await start(database, "ask", {"kept": 1})
        await all_ended(database)
        assert await fleet.ready() == young
        assert fleet.stop()[:2] == (0, {"TAKEN_OVER": 0, "DEATHS": 0, "FORKS": 4})
    assert await _outputs(connection, "new%") == {'"three"': 20}
    assert await _outputs(connection, "kept") == {'"three"': 1}
    assert None not in await _outputs(connection, "old%")
    await _assert_nobody_noticed(connection)


async def test_recycled_workers_lose_nothing_and_run_no_step_twice(
    made: Database, connection: asyncpg.Connection
) -> None:
    with Fleet(made, config={"max_concurrent_tasks": 4}, options={"max_executions": 5}) as fleet:
        await start(made, "slow", {f"s{n}": 0.4 for n in range(60)})
        await all_ended(made)
        code, words, log = fleet.stop()
    assert (code, words["TAKEN_OVER"], words["DEATHS"]) == (0, 0, 0)
    assert words["FORKS"] > 2, log
    assert await _outputs(connection, "s%") == {"0.4": 60}
    assert await effects(made) == 60
    await _assert_nobody_noticed(connection)


async def test_preloaded_workers_share_the_memory_of_the_application(tmp_path: Path, database: Database) -> None:
    text = _APP.format(answer="one") + "DATA = [[n] for n in range(500_000)]\n"
    private: list[int] = []
    for preload in (False, True):
        with _fleet_of(tmp_path, database, text, procs=1, options={"preload": preload}) as fleet:
            [worker] = await fleet.ready()
            private.append(_private_bytes(worker))
            fleet.stop()
    print(f"{private[0] / 2**20:.1f} MiB of its own, {private[1] / 2**20:.1f} MiB with --preload")
    assert private[0] - private[1] > 30 * 2**20


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


async def test_threads_that_preloading_started_are_named(tmp_path: Path, database: Database) -> None:
    thread = "threading.Thread(target=time.sleep, args=[600], name='exporter', daemon=True).start()"
    text = _APP.format(answer="one") + f"import threading, time\n{thread}\n"
    with _fleet_of(tmp_path, database, text, procs=1, options={"preload": True}) as fleet:
        await fleet.ready()
        assert "importing written started threads (exporter), which workers will not have" in fleet.log()
        fleet.stop()


@pytest.mark.parametrize(("is_there", "code"), [(False, child.EXIT_NO_DATABASE), (True, child.EXIT_CANNOT_START)])
def test_a_lifespan_that_fails_for_want_of_the_database_is_no_failed_start(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_there: bool, code: int
) -> None:
    monkeypatch.setenv("EFFECTS_DSN", _NOWHERE)  # the lifespan opens a pool of its own
    options = RunnerOptions(dsn=database.dsn if is_there else _NOWHERE, app="tests.support.workflows:registry")
    _, status = os.waitpid(fork(lambda: child.main(options, Board(2), 0, os.eventfd(0))), 0)
    assert os.waitstatus_to_exitcode(status) == code
