"""Runners on several hosts, of which one loses its network, and gets it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest

from tests.support.database import SCHEMA, Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start
from tests.support.hosts import Host, refusal
from tests.support.witness import assert_each_completed_once, make_witness, state_of
from zart.embedded import EmbeddedPostgres
from zart.store.migrate import migrate

LEASE, POLL = 4.0, 1.0
EXECUTIONS = 20


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if reason := refusal():
        pytest.skip(reason)
    with Host(1) as first, Host(2) as second:
        yield first, second


@pytest.fixture(scope="module")
def server(hosts: tuple[Host, Host]) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that both hosts reach."""
    addresses = ",".join(host.way_out for host in hosts)
    with EmbeddedPostgres(settings={"listen_addresses": addresses}) as server:

        async def prepare() -> None:
            connection = await asyncpg.connect(server.dsn)
            admit(Path(await connection.fetchval("show hba_file")))
            await connection.execute("select pg_reload_conf()")
            await migrate(connection, SCHEMA)
            await make_witness(connection)
            await connection.close()

        asyncio.run(prepare())
        yield server


def admit(rules: Path) -> None:
    """Let the hosts in."""
    with rules.open("a") as file:
        file.write("host all all samenet trust\n")


def runner_on(host: Host, server: EmbeddedPostgres) -> Fleet:
    """A runner with one worker there, which takes its share of the work and no more."""
    url = f"postgresql://postgres@{host.way_out}:5432/postgres"
    return Fleet(
        Database(server.dsn, buckets=1),
        procs=1,
        config={"lease_timeout": LEASE, "poll_interval": POLL, "max_concurrent_tasks": EXECUTIONS},
        options={"dsn": url},
        environment={"EFFECTS_DSN": url},
        under=host.command,
    )


async def test_a_host_that_is_cut_off_loses_its_work_writes_nothing_and_works_again(
    hosts: tuple[Host, Host], server: EmbeddedPostgres, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(server.dsn)
    database, gate = Database(server.dsn, buckets=1), tmp_path / "gate"

    def opened(pid: int) -> None:
        Path(f"{gate}.{pid}").touch()

    async def begun_by(pid: int, like: str, count: int) -> datetime:
        """When the last of so many steps of these executions began in this process, once they all have."""

        async def all_begun() -> datetime | None:
            row = await connection.fetchrow(
                "select count(*), max(began) from effects where pid = $1 and execution_id like $2", pid, like
            )
            assert row is not None
            return row["max"] if row["count"] >= count else None

        found = await eventually(all_begun, within=30)
        assert found is not None
        return found

    with runner_on(hosts[0], server) as cut, ExitStack() as stack:
        (zombie,) = await cut.ready()
        before = set(await cut.workers())
        await start(database, "gated", {f"a{n}": str(gate) for n in range(EXECUTIONS)})
        await begun_by(zombie, "a%", EXECUTIONS)
        other = stack.enter_context(runner_on(hosts[1], server))
        (heir,) = await other.ready()
        hosts[0].cut_off()
        cut_at = await connection.fetchval("select clock_timestamp()")
        late = (await begun_by(heir, "a%", EXECUTIONS) - cut_at).total_seconds()
        print(f"all {EXECUTIONS} executions of the host that was cut off ran elsewhere {late:.2f} s later")
        assert late <= LEASE + POLL

        opened(zombie)
        await eventually(Path(f"{gate}.{zombie}.passed").exists)
        before_it_speaks = await state_of(connection)
        hosts[0].reconnect()  # what it has sent in vain comes now: its results, under the claims it had

        async def registered_anew() -> bool:
            return any(pid == zombie and id not in before for id, pid in (await cut.workers()).items())

        await eventually(registered_anew, within=30)
        assert await state_of(connection) == before_it_speaks
        opened(heir)
        await all_ended(database)
        written = await connection.fetch("select distinct epoch from zart.zart_tasks")
        assert [row["epoch"] for row in written] == [2]

        await start(database, "slow", {f"b{n}": 0.5 for n in range(2 * EXECUTIONS)})
        await begun_by(zombie, "b%", 1)
        await all_ended(database)
        assert (cut.stop()[0], other.stop()[0]) == (0, 0)
    outputs = {f"a{n}": 1.0 for n in range(EXECUTIONS)} | {f"b{n}": 0.5 for n in range(2 * EXECUTIONS)}
    await assert_each_completed_once(connection, outputs)
    await connection.close()
