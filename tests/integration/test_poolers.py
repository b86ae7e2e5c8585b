"""Everything through PgBouncer in transaction mode, with fewer sessions than clients. One sentence each."""

from __future__ import annotations

import asyncio
import configparser
import dataclasses
import os
import re
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import asyncpg.connection
import pytest

import zart
from tests.support import shell, workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import APP, Fleet, all_ended, effects, start
from tests.support.pooler import MISSING, Pooler, order, sharing
from tests.support.served import served
from tests.support.shell import ROOT
from tests.support.ticking import TickingWorker
from zart import zart_durable, zart_step
from zart.postgres.connection import ServerConnection, connect
from zart.postgres.lending import Lender
from zart.store import workers

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SESSIONS = 2


@pytest.fixture
def between(server_dsn: str) -> Iterator[Pooler]:
    """A pooler with few sessions."""
    with Pooler(server_dsn, sharing(SESSIONS)) as pooler:
        yield pooler


@pytest.fixture
def pooled(database: Database, between: Pooler) -> Database:
    """The test's database, through the pooler."""
    return dataclasses.replace(database, dsn=between.before(database.dsn), pooled=True)


async def reach(database: Database, **options: Any) -> ServerConnection:
    return await connect(database.dsn, application_name="zart test", **options)


async def session_of(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval("select pg_backend_pid() where $1::int is not null", 1)
    return found


# -- a connection


async def test_a_connection_knows_whether_a_pooler_is_in_between(database: Database, pooled: Database) -> None:
    direct, through = await reach(database), await reach(pooled)
    assert (direct.pooled, through.pooled) == (False, True)
    await direct.close()
    await through.close()


async def test_statements_of_many_clients_share_few_sessions_and_stay_prepared_in_none(
    pooled: Database, connection: asyncpg.Connection
) -> None:
    clients = [await reach(pooled) for _ in range(5 * SESSIONS)]

    async def ask(client: ServerConnection) -> set[int]:
        return {await session_of(client) for _ in range(50)}

    first, *others = clients
    async with first.transaction():  # it keeps a session to itself meanwhile
        seen = {await session_of(first)}.union(*await asyncio.gather(*map(ask, others)))
    assert len(seen) == SESSIONS
    assert max([await client.fetchval("select count(*) from pg_prepared_statements") for client in clients]) == 0
    for client in clients:
        await client.close()


async def test_prepared_statements_may_be_kept_all_the_same(pooled: Database) -> None:
    client = await reach(pooled, prepared_statements=True)
    assert client.pooled
    await client.fetchval("select 4711")
    assert await client.fetchval("select count(*) from pg_prepared_statements where statement = 'select 4711'") == 1
    await client.close()


async def test_cursors_and_prepared_statements_of_two_processes_do_not_meet(
    server_dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pooler(server_dsn, sharing(1)) as pooler:
        for _ in range(2):
            monkeypatch.setattr(asyncpg.connection, "_uid", 0)  # as in a process that has just begun
            client = await connect(pooler.before(database.dsn), application_name="zart test")
            async with client.transaction():
                statement = await client.prepare("select $1::int + 1")
                assert await statement.fetchval(1) == 2
                assert [row[0] async for row in client.cursor("select generate_series(1, 3)")] == [1, 2, 3]
            await client.close()


async def test_migrating_through_a_pooler_by_many_at_once(empty_database: Database, between: Pooler) -> None:
    dsn = between.before(empty_database.dsn)

    async def migrate() -> list[str]:
        async with zart.PostgresScheduler.connect(dsn) as scheduler:
            return await scheduler.migrate()

    applied = await asyncio.gather(*(migrate() for _ in range(3)))
    assert sorted(map(bool, applied)) == [False, False, True]


async def test_the_settings_that_the_documentation_shows(server_dsn: str, database: Database) -> None:
    (shown,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "poolers.md").read_text(), re.DOTALL)
    parser = configparser.ConfigParser()
    parser.read_string(shown)
    with Pooler(server_dsn, dict(parser["pgbouncer"])) as pooler:
        direct, through = (
            await reach(database),
            await connect(pooler.before(database.dsn), application_name="zart test"),
        )
        assert through.pooled
        assert await session_of(through) != direct.get_server_pid()
        await through.close()
        await direct.close()


async def test_a_statement_that_is_given_up_ends_its_connection_and_sends_no_cancel_request(
    server_dsn: str, database: Database
) -> None:
    with Pooler(server_dsn, sharing(1)) as pooler:
        dsn = pooler.before(database.dsn)
        slow = await connect(dsn, application_name="zart test", command_timeout=0.2)
        other = await connect(dsn, application_name="zart test", command_timeout=10)
        with pytest.raises(TimeoutError):
            await slow.fetchval("select pg_sleep(60)")
        with pytest.raises(asyncpg.InterfaceError, match="closed"):
            await slow.fetchval("select 1")
        given_up = asyncio.create_task(other.fetchval("select pg_sleep(60)"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await eventually(other.is_closed)
        last = await connect(dsn, application_name="zart test")
        assert await last.fetchval("select 1") == 1
        await last.close()
        assert "cancel" not in (pooler.directory / "log").read_text()


# -- sessions that belong to others


async def test_the_session_that_a_worker_registered_in_is_not_ended_for_its_sake(
    pooled: Database, connection: asyncpg.Connection
) -> None:
    client, other = await reach(pooled), await reach(pooled)
    worker = TickingWorker(client, pooled.schema, pooled.bucket, [])
    await worker.register()
    async with other.transaction():
        held = await session_of(other)
        assert not await workers.evict_backend(connection, pooled.schema, pooled.bucket, worker.id)
        assert await session_of(other) == held
    direct = TickingWorker(connection, pooled.schema, pooled.bucket, [])
    await direct.register()
    rows = await connection.fetch("select id, backend from zart.zart_workers")
    noted = {row["id"]: row["backend"] for row in rows}
    assert noted == {worker.id: None, direct.id: connection.get_server_pid()}
    await client.close()
    await other.close()


async def test_a_connection_that_comes_back_resets_nothing_in_a_session_of_others(
    server_dsn: str, database: Database
) -> None:
    with Pooler(server_dsn, sharing(1)) as pooler:
        dsn = pooler.before(database.dsn)
        other = await connect(dsn, application_name="zart test")
        await other.execute("set work_mem = '77MB'")  # as the pooler's own connect_query would
        lender = Lender(dsn, application_name="zart trx", size=1)
        loan = await lender.lend()
        await loan.raw.transaction().start()
        await lender.take_back(loan)
        assert await other.fetchval("show work_mem") == "77MB"
        await lender.close()
        await other.close()


# -- steps


@zart_step("pay-{n}")
async def pay(n: int) -> int:
    conn = await zart.trx()
    sessions: set[int] = set()
    for _ in range(5):
        sessions.add(await conn.fetchval("select pg_backend_pid()"))
        await conn.execute("insert into paid values ($1)", n)
        await asyncio.sleep(0)
    return len(sessions)


@zart_durable("payments")
async def payments(first: int) -> list[int]:
    return list(await asyncio.gather(*(pay(first + n) for n in range(3))))


async def test_the_transaction_of_a_step_stays_in_one_session(pooled: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("create table paid(n int)")
    async with served(pooled, payments) as scheduler:
        starts = (scheduler.start_and_wait_for(payments, f"p{n}", 3 * n, timeout=30) for n in range(10))
        assert await asyncio.gather(*starts) == [[1, 1, 1]] * 10
    rows = await connection.fetch("select n, count(*) from paid group by n order by n")
    assert [tuple(row) for row in rows] == [(n, 5) for n in range(30)]


# -- the runner


@pytest.fixture
async def made(database: Database, connection: asyncpg.Connection) -> Database:
    """The test's database with the table of effects."""
    await workflows.make_effects(connection)
    return database


def fleet_through(pooler: Pooler, made: Database, **config: Any) -> Fleet:
    """A runner that reaches the database through the pooler; what its steps note goes past it."""
    pooled = dataclasses.replace(made, dsn=pooler.before(made.dsn), pooled=True)
    return Fleet(pooled, config={"poll_interval": 0.1, **config}, environment={"EFFECTS_DSN": made.dsn})


async def _sessions_that_listen(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%'"
    )
    return count


async def _completed(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("select count(*) from zart.zart_executions where status = 1")
    return count


async def test_a_runner_with_fewer_sessions_than_clients_survives_the_death_of_a_worker(
    made: Database, between: Pooler, connection: asyncpg.Connection
) -> None:
    with fleet_through(between, made) as fleet:
        await start(made, "slow", {f"s{n}": 1 for n in range(10)})

        async def all_begun() -> bool:
            return await effects(made) == 10

        await eventually(all_begun)
        os.kill(await connection.fetchval("select pid from effects limit 1"), signal.SIGKILL)
        await start(made, "sum", {f"n{n}": n for n in range(50)})
        await all_ended(made)
        assert await _sessions_that_listen(connection) == 0
        code, words, errors = fleet.stop()
    assert (code, words["DEATHS"]) == (0, 1)
    assert "through a pooler" in errors
    assert await _completed(connection) == 60


async def test_with_a_listen_url_work_is_heard_of_past_the_pooler(
    made: Database, between: Pooler, connection: asyncpg.Connection
) -> None:
    dsn = between.before(made.dsn)
    line = (
        f"zart-runner --procs 2 --app {APP} --database-url '{dsn}' --listen-url '{made.dsn}' --poll-interval 1h"
        " --no-prepared-statements"
    )

    async with shell.running(line, environment={"EFFECTS_DSN": made.dsn}) as runner:
        idle = (
            "select count(distinct id) = 2 and bool_and(idle) from zart.zart_workers"  # a row of each in every bucket
        )
        await eventually(lambda: connection.fetchval(idle))
        assert await _sessions_that_listen(connection) == 1
        async with zart.PostgresScheduler.connect(dsn, prepared_statements=False) as scheduler:
            await scheduler.start_and_wait_for(workflows.sum_up, "s", 1, timeout=30)
        runner.terminate()
        assert await runner.wait() == 0


async def test_a_listen_url_of_another_database_is_refused(made: Database) -> None:
    other = urlsplit(made.dsn)._replace(path="/postgres").geturl()
    line = f"zart-runner --app {APP} --database-url '{made.dsn}' --listen-url '{other}'"
    output = await shell.output_of(line, environment={"EFFECTS_DSN": made.dsn}, code=2)
    assert output == "zart-runner: --listen-url leads to another database than the database URL; name the same one\n"


@pytest.mark.parametrize("through", [True, False])
async def test_a_listen_url_where_nobody_can_listen_is_refused(made: Database, between: Pooler, through: bool) -> None:
    dsn = between.before(made.dsn)
    url, reason = (
        (dsn, " leads through a pooler") if through else ("postgresql:///x?host=/nowhere", ": cannot connect to")
    )
    line = f"zart-runner --app {APP} --database-url '{dsn}' --listen-url '{url}'"
    output = await shell.output_of(line, environment={"EFFECTS_DSN": made.dsn}, code=2)
    assert output.startswith(f"zart-runner: --listen-url{reason}")
    assert output.count("\n") == 1


async def test_the_fleet_comes_back_when_the_pooler_pauses_kills_or_ends(
    made: Database, between: Pooler, connection: asyncpg.Connection
) -> None:
    name = await connection.fetchval("select current_database()")
    started = 0

    async def more() -> None:
        nonlocal started
        await start(made, "sum", {f"n{n}": n for n in range(started, started + 5)})
        started += 5

    with fleet_through(between, made) as fleet:
        await fleet.ready()
        for orders in (("PAUSE", "RESUME"), (f"KILL {name}", f"RESUME {name}")):
            await more()
            await order(between.before(made.dsn), *orders)
            await all_ended(made)
        await more()
        between.stop()
        between.start()
        await all_ended(made)
        code, words, _ = fleet.stop()
    assert (code, words["DEATHS"]) == (0, 0)
    assert await _completed(connection) == started
