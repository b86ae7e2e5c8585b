"""Deadlines of executions: reached in any state, they end it at once, and nothing is recorded after it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import crash, has, left_in_queue, operations, parked
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.model import ExecutionRecord, ExecutionStatus

RAN: collections.Counter[str] = collections.Counter()
RELEASED = threading.Event()

KEPT = WorkerConfig(lease_timeout="1h", park_grace="1h")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    RAN.clear()
    RELEASED.clear()
    yield
    RELEASED.set()


@zart_step("note-{text}")
async def note(text: str) -> str:
    RAN[text] += 1
    return text


@zart_step("endless")
async def endless() -> None:
    RAN["endless"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        RAN["interrupted"] += 1
        raise


@zart_step("blocked")
def blocked() -> str:
    RAN["blocked"] += 1
    RELEASED.wait(30)
    return "late"


@zart_step("retried", retry="fixed(9, 1h)")
async def retried() -> None:
    RAN["retried"] += 1
    raise ValueError("not yet")


async def sleeping() -> None:
    await zart.sleep("nap", "1h")


async def waiting() -> None:
    await zart.wait_for_event("go")


async def waiting_with_timeout() -> None:
    await zart.wait_for_event("go", timeout="1h")


async def running() -> None:
    await endless()


async def running_in_a_thread() -> None:
    await blocked()


async def backing_off() -> None:
    await retried()


async def doing_all_of_it() -> None:
    await asyncio.gather(sleeping(), waiting(), running(), running_in_a_thread(), backing_off())


async def awaiting_something_else() -> None:
    RAN["else"] += 1
    await asyncio.Event().wait()


STATES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "sleeping": (sleeping, {"nap"}),
    "waiting for an event": (waiting, {"go"}),
    "waiting with a timeout": (waiting_with_timeout, {"go"}),
    "running an async step": (running, set()),
    "running a plain-function step": (running_in_a_thread, set()),
    "between two tries": (backing_off, {"retried"}),
    "all of these": (doing_all_of_it, {"nap", "go", "retried"}),
    "an ordinary await": (awaiting_something_else, set()),
}


def _is_past_deadline(record: ExecutionRecord) -> bool:
    return record.status == ExecutionStatus.FAILED and record.error["kind"] == "deadline_exceeded"


def _late_by(record: ExecutionRecord) -> timedelta:
    assert record.deadline is not None
    assert record.finished_at is not None
    return record.finished_at - record.deadline


@pytest.mark.parametrize("config", [KEPT, WorkerConfig(lease_timeout="1h", park_grace=0)], ids=["in memory", "parked"])
@pytest.mark.parametrize("state", STATES)
async def test_a_deadline_ends_an_execution_at_once_whatever_it_does(
    database: Database, state: str, config: WorkerConfig
) -> None:
    do, recorded = STATES[state]

    @zart_durable("limited", timeout="1s")
    async def limited() -> str:
        await note("before")
        with contextlib.suppress(BaseException):
            await do()
        await note("after")
        return "done"

    async with Engine(database, [limited], config=config) as engine:
        await engine.start("a", limited)
        record = await engine.ended("a", within=5)
        assert _is_past_deadline(record)
        assert timedelta(0) <= _late_by(record) < timedelta(seconds=1)
        assert await left_in_queue(engine) == 0
        assert await operations(engine, "a") == sorted({"note-before"} | recorded)
        assert RAN["after"] == 0
        RELEASED.set()
        await eventually(lambda: not any(loop.turns for loop in engine.loops))
        assert (await engine.record("a"), await operations(engine, "a")) == (
            record,
            sorted({"note-before"} | recorded),
        )


async def test_a_running_step_is_interrupted_at_the_deadline(database: Database) -> None:
    @zart_durable("limited", timeout="600ms")
    async def limited() -> None:
        await running()

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        await engine.ended("a", within=5)
        await eventually(lambda: RAN["interrupted"] == RAN["endless"] == 1, within=1)


async def test_a_deadline_that_passes_in_the_queue_fails_the_execution_before_its_body_runs(
    database: Database,
) -> None:
    @zart_durable("limited", timeout="300ms")
    async def limited() -> None:
        RAN["body"] += 1

    async with Engine(database, [limited]) as engine:
        pass
    async with Engine(database, []) as idle:
        idle.lanes |= engine.lanes
        await idle.start("a", limited)
        late = "select bool_and(deadline < clock_timestamp()) from zart.zart_executions"
        await eventually(lambda: idle.connection.fetchval(late))
    async with Engine(database, [limited]) as engine:
        assert _is_past_deadline(await engine.ended("a", within=5))
        assert await left_in_queue(engine) == 0
        assert RAN["body"] == 0


async def test_a_deadline_passes_between_two_passes(database: Database) -> None:
    @zart_durable("limited", timeout="1s", retry="fixed(9, 1h)")
    async def limited() -> None:
        RAN["body"] += 1
        raise ValueError("not yet")

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        record = await engine.ended("a", within=5)
        assert _is_past_deadline(record)
        assert _late_by(record) < timedelta(seconds=1)
        assert RAN["body"] == 1
        assert await left_in_queue(engine) == 0


async def test_a_deadline_is_not_moved_by_crashes(database: Database) -> None:
    @zart_durable("limited", timeout="2s")
    async def limited() -> None:
        await running()

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        for number in (1, 2, 3):
            await eventually(lambda number=number: RAN["endless"] >= number)  # type: ignore[misc]
            await crash(engine)
        record = await engine.ended("a", within=5)
        assert _is_past_deadline(record)
        assert record.deadline == record.created_at + timedelta(seconds=2)
        assert _late_by(record) < timedelta(seconds=1)


async def test_a_deadline_that_passes_while_all_workers_are_away_fails_what_is_parked(database: Database) -> None:
    @zart_durable("limited", timeout="1500ms")
    async def limited() -> None:
        await waiting()
        RAN["after"] += 1

    config = WorkerConfig(lease_timeout="1h", park_grace=0)
    async with Engine(database, [limited], config=config) as engine:
        await engine.start("a", limited)
        await parked(engine, "a")
    connection = await database.connect()
    late = "select bool_and(deadline < clock_timestamp()) from zart.zart_executions"
    await eventually(lambda: connection.fetchval(late))
    async with Engine(database, [limited], config=config) as engine:
        await engine.offer("a", "go", None)
        assert _is_past_deadline(await engine.ended("a", within=5))
        assert RAN["after"] == 0
    await connection.close()


async def test_what_ends_before_its_deadline_completes(database: Database) -> None:
    @zart_durable("limited", timeout="20s")
    async def limited() -> str:
        await zart.sleep("nap", "300ms")
        return await note("in time")

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        record = await engine.ended("a")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, "in time")


async def test_a_deadline_is_not_retried(database: Database) -> None:
    @zart_durable("limited", timeout="1s", retry="fixed(9, 1ms)")
    async def limited() -> None:
        RAN["body"] += 1
        await awaiting_something_else()

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        record = await engine.ended("a", within=5)
        assert _is_past_deadline(record)
        assert (record.attempt, RAN["body"]) == (0, 1)


async def test_steps_that_ended_before_the_deadline_are_kept(database: Database) -> None:
    @zart_durable("limited", timeout="1s")
    async def limited() -> None:
        await note("kept")
        await endless()

    async with Engine(database, [limited]) as engine:
        await engine.start("a", limited)
        await engine.ended("a", within=5)
        assert await has(engine, "a", "note-kept", "completed")
        assert RAN["kept"] == 1
