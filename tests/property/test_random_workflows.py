"""Random workflows with random crashes: the same result, no kept step begins again, each name is there once."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.property.random_bodies import Workflow
from tests.property.random_workflows import Child, Fan, Guarded, Node, Step, events_of, trees, unawaited_of
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart.config import WorkerConfig
from zart.errors import ExecutionFailed
from zart.model import EventAnswer, ExecutionStatus, Kind, StepRecord
from zart.testing import Run
from zart.testing.crashes import Moment, Point

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = 3600.0

numbers = itertools.count(1)

# On which side of a write, and of which: in percent of the writes that there are without crashes.
deaths = st.lists(st.tuples(st.sampled_from(list(Moment)), st.integers(0, 99)), min_size=1, max_size=6)


# Its step ends before it fails, or does not.
CHANCY = Child((Fan((Step(0),), "never", 0, 0),), fails=True)


def new_run(nodes: tuple[Node, ...]) -> Run[Any]:
    run: Run[Any] = Run(Workflow(nodes, HOUR).durable, start=START)
    for name, units in events_of(nodes).items():
        if units:
            run.offer_event(name, name, after=units * HOUR)
        else:
            run.offer_event(name, name)
    return run


async def end_of(run: Run[Any]) -> Any:
    try:
        return await run.result()
    except ExecutionFailed as failed:
        return (failed.error["type"], failed.error["message"], failed.error.get("step"))


@settings(max_examples=200)
@example(nodes=(Guarded((CHANCY,), raises=False),), deaths=[(Moment.BEFORE, 0), (Moment.BEFORE, 40)])
@given(nodes=trees(may_race=True), deaths=deaths)
def test_random_workflows_come_to_the_same_end_whatever_crashes(
    nodes: tuple[Node, ...], deaths: Sequence[tuple[Moment, int]]
) -> None:
    asyncio.run(compare(nodes, deaths))


async def compare(nodes: tuple[Node, ...], deaths: Sequence[tuple[Moment, int]]) -> None:
    calm, crashed = new_run(nodes), new_run(nodes)
    wanted = await end_of(calm)
    writes = len(calm._plan.writes)
    crashed._plan.points += [Point(moment, number=1 + writes * percent // 100) for moment, percent in deaths]
    assert await end_of(crashed) == wanted
    event(f"crashes: {crashed.crashes}")
    assert crashed.elapsed == calm.elapsed
    for run in (calm, crashed):
        assert run._starts.again == []
        for history in histories_of(run).values():
            assert_each_once(record.name for record in history)
    by_chance = unawaited_of(nodes)
    assert kept_by_all(crashed, by_chance) == kept_by_all(calm, by_chance)
    begun = {name: count for name, count in calm.starts.items() if _last(name) not in by_chance}
    assert begun.keys() == {name for name in crashed.starts if _last(name) not in by_chance}
    assert all(crashed.starts[name] >= count for name, count in begun.items())


def histories_of(run: Run[Any]) -> dict[str, list[StepRecord]]:
    """Of it and of its children, by path."""
    return {each.path: each.journal.records() for each in run._execution.everyone()}


def kept_by_all(run: Run[Any], by_chance: set[str]) -> dict[str, dict[str, Any]]:
    """What the journals have, but for some names."""
    found = {path: kept(history) for path, history in histories_of(run).items() if _last(path) not in by_chance}
    return {
        path: {name: row for name, row in rows.items() if _last(name) not in by_chance} for path, rows in found.items()
    }


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def assert_each_once(names: Iterable[str]) -> None:
    assert [name for name, count in Counter(names).items() if count > 1] == []


def kept(history: Sequence[StepRecord]) -> dict[str, Any]:
    """What does not depend on time."""
    plain = [record for record in history if not record.name.startswith("now")]
    return {record.name: (record.kind, record.status, record.result, len(record.failed_attempts)) for record in plain}


# -- the same on PostgreSQL


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(nodes=trees(may_race=False), seed=st.integers(0, 2**32))
def test_random_workflows_come_to_the_same_end_on_postgresql(
    database: Database, nodes: tuple[Node, ...], seed: int
) -> None:
    asyncio.run(compare_with_postgres(database, nodes, random.Random(seed)))


async def compare_with_postgres(database: Database, nodes: tuple[Node, ...], chance: random.Random) -> None:
    wanted = await end_of(new_run(nodes))
    begun: list[tuple[str, float]] = []
    workflow = Workflow(nodes, 0.02, lambda name: begun.append((name, time.time())), has_database=True)
    execution_id = f"run-{next(numbers)}"
    durable = workflow.durable
    config = WorkerConfig(lease_timeout="1h", park_grace=chance.choice([0.0, 0.01, 1.0]))
    async with Engine(database, [durable, *workflow.elsewhere], config=config, workers=2) as engine:
        await engine.connection.execute("drop table if exists written; create table written(name text primary key)")
        await eventually(lambda: all(loop.place.ready for loop in engine.loops))
        events = events_of(nodes)
        async with engine.connection.transaction():
            await engine.start(execution_id, durable, connection=engine.connection)
            for name in (name for name, units in events.items() if units == 0):
                assert await engine.offer(execution_id, name, name, engine.connection) is EventAnswer.ACCEPTED
        offers = asyncio.create_task(offer(engine, execution_id, events))
        faults = asyncio.create_task(disturb(engine, chance))
        record = await engine.ended(execution_id)
        faults.cancel()
        await offers
        stored = await stored_by_family(engine, execution_id)
        written = await engine.connection.fetch("select name from written")
    if record.status is ExecutionStatus.COMPLETED:
        assert record.output == wanted
    else:
        assert record.status is ExecutionStatus.FAILED
        assert (record.error["type"], record.error["message"], record.error.get("step")) == wanted
    assert {row["name"] for row in written} <= stored.keys()
    assert [name for name, moment in begun if moment > stored.get(name, moment)] == []


async def stored_by_family(engine: Engine, execution_id: str) -> dict[str, float]:
    """When the results of it and all under it were stored, by name: no two of their operations share one.

    The result of a scheduled step that writes stands in its parent's journal, and, from its transaction on, in its own.
    """
    connection = await engine.database.connect()
    rows = await connection.fetch(
        "with recursive family as ("
        " select id, run, step_name from zart.zart_executions where execution_id = $1"
        " union all select e.id, e.run, e.step_name from zart.zart_executions e join family f"
        " on e.parent = f.id and e.parent_run = f.run)"
        " select t.name, t.created_at, t.name is not distinct from f.step_name as its_own"
        " from zart.zart_tasks t join family f on t.id = f.id and t.run = f.run"
        f" where t.kind not in ({Kind.SLEEP:d}, {Kind.WAIT:d}, {Kind.FAILURE:d})"
        " order by t.created_at desc",
        execution_id,
    )
    await connection.close()
    assert_each_once(row["name"] for row in rows if not row["its_own"])
    return {row["name"].removeprefix("on_failure/"): row["created_at"].timestamp() for row in rows}


async def offer(engine: Engine, execution_id: str, events: dict[str, int]) -> None:
    for name, units in sorted(events.items(), key=lambda each: each[1]):
        await asyncio.sleep(units * 0.02)
        if units:
            assert await engine.offer(execution_id, name, name) in (EventAnswer.ACCEPTED, EventAnswer.FINISHED)


async def disturb(engine: Engine, chance: random.Random) -> None:
    """A worker is taken over as if it were dead, or all lose their connections, also in steps, every now and then."""
    for _ in range(chance.randint(0, 5)):
        await asyncio.sleep(chance.random() * 0.08)
        if chance.random() < 0.7:
            await engine.take_over(chance.choice(engine.loops))
        else:
            await engine.cut_connections("zart worker", "zart trx")
