"""Which process of the cluster takes the figures of the queues, and what becomes of them when it cannot."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import pytest

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.shell import ROOT
from tests.support.ticking import start
from tests.support.wire import Fate, Wire
from zart.engine import sampling
from zart.engine.sampling import Sampler
from zart.runner.queues import MOST_QUEUES, OTHER, QueueCollector
from zart.store import figures, queue
from zart.store.figures import SAMPLE

INTERVAL = 0.4

_SAMPLER = """
import asyncio, sys
from zart.engine import sampling
sampling.INTERVAL = float(sys.argv[3])
asyncio.run(sampling.Sampler(sys.argv[1], sys.argv[2]).run())
"""


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "INTERVAL", INTERVAL)


@asynccontextmanager
async def sampling_by(sampler: Sampler) -> AsyncIterator[Sampler]:
    """The sampler runs until the block ends."""
    running = asyncio.create_task(sampler.run())
    try:
        yield sampler
    finally:
        await cancelled(running)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def a_sampler(database: Database, *, elected: bool = True) -> Sampler:
    return Sampler(database.dsn, database.schema, elected=elected)


async def holder(connection: asyncpg.Connection) -> int:
    """Who has the duty at this moment, 0 nobody."""
    text = "select coalesce(max(holder), 0) from zart.zart_duties where until > clock_timestamp()"
    found: int = await connection.fetchval(text)
    return found


async def test_one_of_several_samples_and_when_it_ends_another_one_does(
    database: Database, connection: asyncpg.Connection
) -> None:
    await start(database, connection, "a", "b")
    samplers = [a_sampler(database) for _ in range(3)]
    running = [asyncio.create_task(one.run()) for one in samplers]
    for left in (3, 2, 1):
        await eventually(lambda: all(one.fault is None for one in samplers) and any(one.sample for one in samplers))
        [chosen] = [one for one in samplers if one.sample]
        assert chosen.sample is not None
        assert chosen.sample.queues["default"].ready == 2
        assert 0 <= chosen.sample.age < 60
        assert len(samplers) == left
        index = samplers.index(chosen)
        samplers.remove(chosen)
        await cancelled(running.pop(index))
        assert await holder(connection) in (0, *(one.holder for one in samplers))


async def test_when_the_sampler_is_killed_another_one_takes_over(
    database: Database, connection: asyncpg.Connection
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SAMPLER, database.dsn, database.schema, str(INTERVAL), cwd=ROOT
    )
    killed = await eventually(partial(holder, connection))
    async with sampling_by(a_sampler(database)) as other:
        await eventually(lambda: other.fault is None)
        assert other.sample is None
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert await holder(connection) == killed
        await eventually(lambda: other.sample)
        assert await holder(connection) == other.holder


async def test_no_two_show_figures_when_the_link_of_one_falls_silent(database: Database) -> None:
    fate = Fate.PASS
    async with Wire(database, lambda _: fate) as wire, sampling_by(a_sampler(wire.database)) as cut_off:
        await eventually(lambda: cut_off.sample)
        async with sampling_by(a_sampler(database)) as other:
            await eventually(lambda: other.fault is None)
            fate = Fate.SILENT

            def taken_over() -> bool:
                assert cut_off.sample is None or other.sample is None
                return other.sample is not None

            await eventually(taken_over)
            assert cut_off.sample is None
            await eventually(lambda: cut_off.fault is not None)
            fate = Fate.PASS
            await eventually(lambda: cut_off.fault is None)
            assert cut_off.sample is None


async def test_one_that_is_not_elected_samples_beside_the_one_that_is(database: Database) -> None:
    async with sampling_by(a_sampler(database)) as one, sampling_by(a_sampler(database, elected=False)) as other:
        await eventually(lambda: one.sample and other.sample)


async def test_figures_that_take_too_long_are_left_out_and_taken_less_often(
    database: Database,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sampling, "_PATIENCE", 0.1)
    await start(database, connection, "a")
    async with sampling_by(a_sampler(database)) as sampler:
        await eventually(lambda: sampler.sample)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock table zart.zart_quarantined in access exclusive mode")
        await eventually(lambda: sampler.sample is None)
        await eventually(lambda: "the figures of the queues take longer than 0.1 s" in caplog.text)
        assert sampler.fault is None
        await transaction.rollback()
        await eventually(lambda: sampler.sample)
    assert caplog.text.count("take longer") <= 2


async def test_a_schema_that_is_missing_or_too_new_is_a_fault(
    database: Database, connection: asyncpg.Connection
) -> None:
    async with sampling_by(Sampler(database.dsn, "nowhere")) as sampler:
        await eventually(lambda: "run `zart migrate`" in (sampler.fault or ""))
    async with sampling_by(a_sampler(database)) as sampler:
        await eventually(lambda: sampler.sample)
        await connection.execute("insert into zart.zart_migrations(version, name, serves_from) values (99, 'x', 99)")
        await eventually(lambda: "upgrade zart" in (sampler.fault or ""))


async def test_queues_past_the_bound_share_one_label(database: Database, connection: asyncpg.Connection) -> None:
    names = [f"q{number:03}" for number in range(MOST_QUEUES + 10)]
    lanes = await queue.add_lanes(connection, database.schema, [(name, "task") for name in names])
    text = (
        "insert into zart.zart_queue(bucket, id, lane) select $1, n, l from unnest($2::int[]) with ordinality u(l, n)"
    )
    await connection.execute(text, database.bucket, [lane for _, lane in sorted(lanes.items())])
    async with sampling_by(a_sampler(database)) as sampler:
        await eventually(lambda: sampler.sample)
        families = {family.name: family.samples for family in QueueCollector(sampler).collect()}
    ready = {
        one.labels["queue"]: one.value for one in families["zart_queue_executions"] if one.labels["state"] == "ready"
    }
    assert len(ready) == MOST_QUEUES + 1
    assert ready[OTHER] == 10
    assert sum(ready.values()) == len(names)
    assert list(QueueCollector(a_sampler(database)).collect()) == []


async def test_a_duty_that_somebody_has_locked_is_waited_for_by_nobody(
    database: Database, connection: asyncpg.Connection
) -> None:
    theirs = await database.connect()
    async with theirs.transaction():
        await theirs.execute("select from zart.zart_duties for update")
        async with asyncio.timeout(5):
            assert not (await figures.hold_duty(connection, database.schema, SAMPLE, 1, 10.0)).held
    await theirs.close()
    assert (await figures.hold_duty(connection, database.schema, SAMPLE, 1, 10.0)).held


async def test_a_duty_is_free_when_the_clock_has_gone_back(database: Database, connection: asyncpg.Connection) -> None:
    assert (await figures.hold_duty(connection, database.schema, SAMPLE, 1, 10.0)).held
    assert not (await figures.hold_duty(connection, database.schema, SAMPLE, 2, 10.0)).held
    await connection.execute("update zart.zart_duties set until = clock_timestamp() + interval '1 h'")
    assert (await figures.hold_duty(connection, database.schema, SAMPLE, 2, 10.0)).held
