"""A migration under load: the schema first, then the runners, old and later ones side by side meanwhile.

The later version is a copy of this one with another migration and another tick function.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.invariants import violations, watch
from tests.chaos.load import Load
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start
from tests.support.later import KNOWN, make_later_zart
from tests.support.witness import make_witness
from zart import PostgresScheduler
from zart.errors import SchemaMismatch

_MIGRATE = "from zart.cli.main import main; main()"
_COLUMNS = """
alter table :schema.zart_executions add column note text;
alter table :schema.zart_queue add column note text not null default '';
alter table :schema.zart_tasks add column note text;
"""
_APP = "tests.chaos.app:registry"


async def _migrate(root: Path, database: Database) -> None:
    command = [sys.executable, "-c", _MIGRATE, "migrate", "--database-url", database.dsn]
    process = await asyncio.create_subprocess_exec(*command, cwd=root, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert (process.returncode, f"applied {KNOWN + 1:04}_later" in output.decode()) == (0, True), output


async def test_old_and_later_runners_side_by_side_over_a_migration_lose_and_fail_nothing(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await watch(connection)
    later = make_later_zart(tmp_path, serves_from=KNOWN, text=_COLUMNS)

    async def both_work(*pids: int) -> bool:
        began = "select distinct pid from effects where began > clock_timestamp() - interval '1 s'"
        return set(pids) <= {row["pid"] for row in await connection.fetch(began)}

    async with PostgresScheduler.connect(database.dsn) as scheduler:
        load = Load(scheduler, random.Random(1))
        starting = asyncio.create_task(load.run(per_second=40))
        with Fleet(database, procs=1, app=_APP) as old:
            (before,) = await old.ready()
            with Fleet(database, procs=1, app=_APP, root=later) as too_early:
                code, _, errors = too_early.end()
                assert (code, "run `zart migrate`" in errors) == (2, True), errors
            await eventually(lambda: both_work(before))
            await _migrate(later, database)
            with (
                Fleet(database, procs=1, app=_APP, root=later) as new,
                Fleet(database, procs=1, app=_APP) as old_again,
            ):
                (first,), (second,) = await new.ready(1), await old_again.ready(1)
                await eventually(lambda: both_work(before, first, second))
                load.stop()
                await starting
                assert await load.all_ended(within=60)
                ends = [await asyncio.to_thread(runner.stop) for runner in (old, new, old_again)]
        await load.close()
    assert [(code, words["DEATHS"]) for code, words, _ in ends] == [(0, 0)] * 3
    assert await violations(connection, load.accepted, [], 0) == []


async def test_a_migration_that_does_not_serve_an_old_runner_ends_it_with_one_clear_line(
    database: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await make_witness(connection)
    later = make_later_zart(tmp_path, serves_from=KNOWN + 1, text="drop function :schema.zart_tick_1;")
    with Fleet(database, procs=2) as old:
        await old.ready()
        await _migrate(later, database)
        await start(database, "sum", {f"s{number}": number for number in range(10)})
        code, _, errors = old.end()
    assert code == 3
    serves = f"schema 'zart' is at version {KNOWN + 1}, which serves a zart that knows version {KNOWN + 1} or later"
    assert f"zart-runner: {serves}; this zart knows only {KNOWN}; upgrade zart\n" in errors
    assert "UndefinedFunction" not in errors
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        with pytest.raises(SchemaMismatch, match="upgrade zart"):
            await scheduler.status("s1")
    with Fleet(database, procs=1, root=later) as new:
        await new.ready()
        await all_ended(database)
        assert new.stop()[0] == 0
