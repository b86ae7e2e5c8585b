"""Hosts whose wall clocks are two days apart, and neither is right."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.support.clock import environment
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, effects, start
from tests.support.witness import assert_each_completed_once, make_witness

LEASE, POLL = 3.0, 1.0
EXECUTIONS = 20


def host_with_clock(database: Database, days: int) -> Fleet:
    config = {"lease_timeout": LEASE, "poll_interval": POLL}
    return Fleet(database, procs=1, config=config, environment=environment(days))


def days_ahead(log: str) -> int:
    """How far ahead the clock was that a log has its times from."""
    began = datetime.fromisoformat(log.split(maxsplit=1)[0])
    return round((began - datetime.now(UTC)) / timedelta(days=1))


def open_gate(gate: Path, pid: int) -> None:
    """Let executions of `gated` end in that process."""
    Path(f"{gate}.{pid}").touch()


@pytest.mark.parametrize(("first", "second"), [(1, -1), (-1, 1)])
async def test_a_host_loses_its_work_once_it_is_gone_and_not_before_whatever_the_clocks_say(
    database: Database, connection: asyncpg.Connection, tmp_path: Path, first: int, second: int
) -> None:
    await make_witness(connection)
    gate = tmp_path / "gate"

    async def begun(count: int) -> datetime:
        async def all_begun() -> bool:
            return await effects(database) >= count

        await eventually(all_begun)
        found: datetime = await connection.fetchval("select clock_timestamp()")
        return found

    async def passed(since: datetime) -> bool:
        gone: timedelta = await connection.fetchval("select clock_timestamp() - $1", since)
        return gone.total_seconds() > LEASE + POLL

    with host_with_clock(database, first) as mortal, ExitStack() as stack:
        await mortal.ready()
        await start(database, "gated", {f"s{n}": str(gate) for n in range(EXECUTIONS)})
        await begun(EXECUTIONS)
        other = stack.enter_context(host_with_clock(database, second))
        (heir,) = await other.ready()
        open_gate(gate, heir)
        met_at = await connection.fetchval("select clock_timestamp()")
        await eventually(lambda: passed(met_at))
        assert await effects(database) == EXECUTIONS

        mortal.send(signal.SIGKILL)
        killed_at = await connection.fetchval("select clock_timestamp()")
        late = (await begun(2 * EXECUTIONS) - killed_at).total_seconds()
        assert late <= LEASE + POLL
        await all_ended(database)
        logs = mortal.end()[2], other.stop()[2]
    assert [days_ahead(log) for log in logs] == [first, second]
    await assert_each_completed_once(connection, {f"s{n}": 1.0 for n in range(EXECUTIONS)})
