"""Durable timers: how long they last, whatever happens meanwhile, and what they refuse."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import DuplicateStepName, InvalidArgument, NotInBody, NotInExecution
from zart.model import ExecutionStatus

RAN: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


@zart_step("note-{text}")
async def note(text: str) -> str:
    RAN.append(text)
    return text


@zart_durable("naps")
async def naps(seconds: float) -> float:
    before = await zart.now("before")
    await zart.sleep("nap", seconds)
    await note("woke")
    return ((await zart.now("after")) - before).total_seconds()


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.3])
async def test_a_sleep_lasts_as_long_as_it_says(database: Database, seconds: float) -> None:
    async with Engine(database, [naps]) as engine:
        await engine.start("a", naps, seconds)
        slept = (await engine.ended("a")).output
        assert seconds <= slept < seconds + 1
        assert RAN == ["woke"]


async def test_a_sleep_is_one_row_of_the_journal_with_its_due_time(database: Database) -> None:
    async with Engine(database, [naps]) as engine:
        await engine.start("a", naps, 0.3)
        await engine.ended("a")
        [nap] = [step for step in await engine.history("a") if step.name == "nap"]
        assert (nap.kind, nap.status) == ("sleep", "completed")
        assert nap.due is not None
        assert nap.started_at is not None
        assert nap.due - nap.started_at == pytest.approx(timedelta(seconds=0.3), abs=timedelta(milliseconds=1))


async def test_a_sleeper_holds_no_slot_and_costs_one_queue_row(database: Database) -> None:
    async with Engine(database, [naps]) as engine:
        await engine.start("a", naps, 3600)
        await eventually(lambda: _is_waiting(engine, "a"))
        await eventually(lambda: not any(loop.turns for loop in engine.loops))
        row = await engine.connection.fetchrow("select worker, waiting, run_at - now() as left from zart.zart_queue")
        assert row is not None
        assert (row["worker"], row["waiting"]) == (None, True)
        assert timedelta(minutes=59) < row["left"] <= timedelta(hours=1)
        sleeping = (await engine.history("a"))[-1]
        assert (sleeping.kind, sleeping.name, sleeping.status) == ("sleep", "nap", "waiting")


async def test_many_sleepers_do_not_keep_others_from_running(database: Database) -> None:
    config = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=4)
    async with Engine(database, [naps], config=config) as engine:
        for number in range(24):
            await engine.start(f"sleeps {number}", naps, 3600)
        await engine.start("short", naps, 0.01)
        assert (await engine.ended("short", within=10)).status == ExecutionStatus.COMPLETED


async def test_a_crash_in_mid_sleep_makes_it_no_longer(database: Database) -> None:
    async with Engine(database, [naps]) as engine:
        await engine.start("a", naps, 2)
        await eventually(lambda: _has(engine, "a", "nap"))
        due = [step.due for step in await engine.history("a") if step.name == "nap"]
        for loop in engine.loops:
            await engine.take_over(loop)
        assert (await engine.ended("a")).output >= 2
        assert [step.due for step in await engine.history("a") if step.name == "nap"] == due


async def test_workers_that_are_all_away_when_a_sleep_ends_only_delay_it(database: Database) -> None:
    async with Engine(database, [naps]) as engine:
        await engine.start("a", naps, 1.2)
        await eventually(lambda: _has(engine, "a", "nap"))
    connection = await database.connect()
    await eventually(lambda: connection.fetchval("select run_at < clock_timestamp() from zart.zart_queue"))
    await connection.close()
    async with Engine(database, [naps]) as engine:
        assert (await engine.ended("a")).status == ExecutionStatus.COMPLETED
        assert RAN == ["woke"]


@zart_durable("naps-until")
async def naps_until(when: datetime) -> float:
    await zart.sleep_until("moment", when)
    return ((await zart.now("after")) - when).total_seconds()


async def test_sleep_until_ends_at_its_moment_in_any_timezone(database: Database) -> None:
    async with Engine(database, [naps_until]) as engine:
        moment = (await engine.connection.fetchval("select clock_timestamp()")) + timedelta(seconds=1.2)
        await engine.start("utc", naps_until, moment.isoformat())
        await engine.start("east", naps_until, moment.astimezone(timezone(timedelta(hours=9))).isoformat())
        for name in ("utc", "east"):
            assert 0 <= (await engine.ended(name)).output < 1


async def test_sleep_until_a_moment_in_the_past_ends_at_once(database: Database) -> None:
    async with Engine(database, [naps_until]) as engine:
        await engine.start("a", naps_until, datetime(1970, 1, 1, tzinfo=UTC).isoformat())
        assert (await engine.ended("a", within=5)).status == ExecutionStatus.COMPLETED


@pytest.mark.parametrize(
    "duration", [-1, -0.001, math.nan, math.inf, 1e12, "1 week", "", None, True, timedelta(days=-1)]
)
async def test_a_duration_that_makes_no_sense_is_refused_before_anything_is_stored(
    database: Database, duration: Any
) -> None:
    @zart_durable("refused")
    async def refused() -> str:
        try:
            await zart.sleep("nap", duration)
        except InvalidArgument as error:
            return str(error)
        return "slept"

    async with Engine(database, [refused]) as engine:
        await engine.start("a", refused)
        assert "the duration of sleep 'nap' must be" in (await engine.ended("a")).output
        assert await engine.history("a") == []


@pytest.mark.parametrize(
    ("when", "told"),
    [
        (datetime(2030, 1, 1), "says nothing of its timezone"),
        (datetime(9000, 1, 1, tzinfo=UTC), "at most 100 years ahead"),
        ("2030-01-01", "takes a datetime"),
        (3600, "sleep() takes a duration"),
    ],
)
async def test_a_moment_that_makes_no_sense_is_refused_before_anything_is_stored(
    database: Database, when: Any, told: str
) -> None:
    @zart_durable("refused")
    async def refused() -> str:
        try:
            await zart.sleep_until("moment", when)
        except InvalidArgument as error:
            return str(error)
        return "slept"

    async with Engine(database, [refused]) as engine:
        await engine.start("a", refused)
        assert told in (await engine.ended("a")).output
        assert await engine.history("a") == []


async def test_sleeps_in_parallel_last_as_long_as_the_longest(database: Database) -> None:
    @zart_durable("naps-thrice")
    async def naps_thrice() -> float:
        before = await zart.now("before")
        async with asyncio.TaskGroup() as group:
            group.create_task(zart.sleep("a", 0.5))
            group.create_task(zart.sleep("b", "1.2s"))
        await asyncio.gather(zart.sleep("c", 0.1), note("beside"))
        return ((await zart.now("after")) - before).total_seconds()

    async with Engine(database, [naps_thrice]) as engine:
        await engine.start("a", naps_thrice)
        assert (await engine.ended("a")).output >= 1.3
        due = {step.name: step.due for step in await engine.history("a") if step.due is not None}
        assert due["b"] - due["a"] == pytest.approx(timedelta(seconds=0.7), abs=timedelta(seconds=0.3))  # else 1.2 s
        assert due["c"] - due["b"] >= timedelta(seconds=0.1)
        assert RAN == ["beside"]


async def test_a_step_beside_a_long_sleep_runs_at_once(database: Database) -> None:
    @zart_durable("beside")
    async def beside() -> None:
        await asyncio.gather(zart.sleep("long", "1h"), note("at once"))

    async with Engine(database, [beside]) as engine:
        await engine.start("a", beside)
        await eventually(lambda: _has(engine, "a", "note-at once"), within=5)
        await eventually(lambda: _is_waiting(engine, "a"))
        assert RAN == ["at once"]


async def test_steps_and_sleeps_share_one_namespace(database: Database) -> None:
    @zart_durable("twice")
    async def twice() -> str:
        await note("x")
        try:
            await zart.sleep("note-x", 0)
        except DuplicateStepName as error:
            return str(error)
        return "slept"

    async with Engine(database, [twice]) as engine:
        await engine.start("a", twice)
        assert "'note-x'" in (await engine.ended("a")).output


async def test_a_sleep_inside_a_step_is_refused(database: Database) -> None:
    @zart_step("sleepy")
    async def sleepy() -> str:
        try:
            await zart.sleep("nap", 1)
        except NotInBody as error:
            return str(error)
        return "slept"

    @zart_durable("has-sleepy")
    async def has_sleepy() -> str:
        return await sleepy()

    async with Engine(database, [has_sleepy]) as engine:
        await engine.start("a", has_sleepy)
        assert "inside step 'sleepy'" in (await engine.ended("a")).output


async def test_a_sleep_outside_an_execution_is_refused() -> None:
    with pytest.raises(NotInExecution, match=r"sleep\('nap'\)"):
        await zart.sleep("nap", 1)


async def _is_waiting(engine: Engine, execution_id: str) -> bool:
    return (await engine.record(execution_id)).status == ExecutionStatus.WAITING


async def _has(engine: Engine, execution_id: str, name: str) -> bool:
    return any(step.name == name for step in await engine.history(execution_id))
