"""Cancellation: in every state it ends an execution at once, and what was cancelled stays so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import has, left_in_queue, operations, parked
from tests.support.steps import GATES, KEPT, PARKED, RAN, RELEASED, blocked, endless, note, retried, sleeping, waiting
from zart import PostgresScheduler, zart_durable, zart_step
from zart.cli.main import answer
from zart.config import WorkerConfig
from zart.errors import ExecutionCancelled
from zart.model import ExecutionStatus


async def running() -> None:
    await endless()


async def running_in_a_thread() -> None:
    await blocked()


async def backing_off() -> None:
    await retried()


async def doing_all_of_it() -> None:
    await asyncio.gather(sleeping(), waiting(), running(), running_in_a_thread(), backing_off())


Reached = Callable[[Engine], Awaitable[bool]]


def _recorded(*names: str) -> Reached:
    async def reached(engine: Engine) -> bool:
        return all([await has(engine, "a", name) for name in names])

    return reached


def _ran(*names: str) -> Reached:
    async def reached(engine: Engine) -> bool:
        return all(RAN[name] for name in names)

    return reached


async def _all_of_it(engine: Engine) -> bool:
    recorded = _recorded("nap", "go", "retried")
    return await recorded(engine) and RAN["endless"] > 0 and RAN["blocked"] > 0


STATES: dict[str, tuple[Callable[[], Awaitable[Any]], Reached, set[str]]] = {
    "sleeping": (sleeping, _recorded("nap"), {"nap"}),
    "waiting for an event": (waiting, _recorded("go"), {"go"}),
    "running an async step": (running, _ran("endless"), set()),
    "running a plain-function step": (running_in_a_thread, _ran("blocked"), set()),
    "between two tries": (backing_off, _recorded("retried"), {"retried"}),
    "all of these": (doing_all_of_it, _all_of_it, {"nap", "go", "retried"}),
}


async def _cancel(database: Database, execution_id: str = "a") -> bool:
    async with PostgresScheduler.connect(database.dsn) as scheduler:
        return await scheduler.cancel(execution_id)


async def _is_cancelled_for_good(engine: Engine, recorded: set[str]) -> None:
    """It is over within a second, for callers and for workers, and nothing is recorded any more."""
    async with asyncio.timeout(1):
        record = await engine.record("a")
        assert record.status == ExecutionStatus.CANCELLED
        assert await left_in_queue(engine) == 0
        assert RAN["after"] == 0
        await eventually(lambda: RAN["interrupted"] == RAN["endless"], within=1)
        await eventually(lambda: not any(turn.is_running() for loop in engine.loops for turn in loop.turns.values()))
    RELEASED.set()
    await eventually(lambda: RAN["unblocked"] == RAN["blocked"] and not any(loop.turns for loop in engine.loops))
    assert await operations(engine, "a") == sorted(recorded)
    assert await engine.record("a") == record
    assert RAN["after"] == 0


# -- in every state


@pytest.mark.parametrize("config", [KEPT, PARKED], ids=["in memory", "parked"])
@pytest.mark.parametrize("state", STATES)
async def test_a_cancel_ends_an_execution_within_a_second_whatever_it_does(
    database: Database, state: str, config: WorkerConfig
) -> None:
    do, reached, recorded = STATES[state]

    @zart_durable("cancelled")
    async def cancelled() -> str:
        await note("before")
        await do()
        await note("after")
        return "done"

    async with Engine(database, [cancelled], config=config) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: reached(engine))
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, {"note-before"} | recorded)


async def test_a_cancelled_execution_that_is_parked_is_not_taken_up_again(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        RAN["passes"] += 1
        await zart.sleep("nap", "1500ms")
        await note("after")

    async with Engine(database, [cancelled], config=PARKED) as engine:
        await engine.start("a", cancelled)
        await parked(engine, "a")
        passes = RAN["passes"]
        assert await _cancel(database)
        await eventually(lambda: engine.connection.fetchval("select clock_timestamp() > due from zart.zart_tasks"))
        await _is_cancelled_for_good(engine, {"nap"})
        assert RAN["passes"] == passes


@pytest.mark.parametrize("delay", ["0s", "1h"])
async def test_a_queued_execution_never_begins_after_its_cancel(database: Database, delay: str) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        RAN["after"] += 1

    @zart_durable("next")
    async def following() -> str:
        return "next"

    async with PostgresScheduler.connect(database.dsn) as scheduler:
        await scheduler.start_for(cancelled, "a", delay=delay)
        assert await scheduler.cancel("a")
        async with Engine(database, [cancelled, following]) as engine:
            assert await left_in_queue(engine) == 0
            await engine.start("b", following)
            await engine.ended("b")
            await _is_cancelled_for_good(engine, set())


async def test_an_execution_between_two_passes_is_cancelled(database: Database) -> None:
    @zart_durable("cancelled", retry="fixed(9, 1h)")
    async def cancelled() -> None:
        RAN["passes"] += 1
        raise ValueError("not yet")

    async def is_between(engine: Engine) -> bool:
        return (await engine.record("a")).attempt == 1

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: is_between(engine))
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, set())
        assert RAN["passes"] == 1


# -- what user code makes of it


async def test_a_step_that_swallows_its_cancellation_cannot_make_it_a_success(database: Database) -> None:
    @zart_step("stubborn")
    async def stubborn() -> str:
        RAN["endless"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            RAN["interrupted"] += 1
        return "success"

    @zart_durable("cancelled")
    async def cancelled() -> str:
        text = await stubborn()
        RAN["after"] += 1
        return text

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"])
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, set())


async def test_a_body_that_swallows_its_cancellation_cannot_make_it_a_success(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> str:
        with contextlib.suppress(BaseException):
            await endless()
        with contextlib.suppress(BaseException):
            await note("after")
        with contextlib.suppress(BaseException):
            await zart.sleep("after", 0)
        with contextlib.suppress(BaseException):
            await zart.wait_for_event("after", timeout=0)
        with contextlib.suppress(BaseException):
            await zart.capture("captured after", lambda: 1)
        with contextlib.suppress(BaseException):
            await zart.now("now after")
        return "success"

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"])
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, set())


async def test_a_body_stops_at_its_next_zart_call_though_it_swallowed_the_cancel(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        RAN["endless"] += 1
        try:
            await GATES["never"].wait()
        except asyncio.CancelledError:
            RAN["interrupted"] += 1
        await note("after")

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"])
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, set())


async def test_steps_in_tasks_of_the_body_are_interrupted_too(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        tasks = [asyncio.create_task(endless().named(f"endless-{n}")) for n in range(3)]
        RAN["made"] += len(tasks)
        await asyncio.Event().wait()

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"] == 3)
        assert await _cancel(database)
        await _is_cancelled_for_good(engine, set())
        assert RAN["interrupted"] == 3


# -- against its end


async def test_a_checkpoint_that_comes_after_the_cancel_is_not_stored(database: Database) -> None:
    @zart_step("gated")
    async def gated() -> str:
        RAN["gated"] += 1
        await GATES["gated"].wait()
        return "too late"

    @zart_durable("cancelled")
    async def cancelled() -> str:
        text = await gated()
        RAN["after"] += 1
        return text

    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["gated"])
        assert await _cancel(database)
        GATES["gated"].set()
        await _is_cancelled_for_good(engine, set())


async def test_what_has_ended_is_not_cancelled(database: Database) -> None:
    @zart_durable("quick")
    async def quick() -> str:
        return await note("whole")

    async with Engine(database, [quick]) as engine:
        await engine.start("a", quick)
        record = await engine.ended("a")
        assert not await _cancel(database)
        assert await engine.record("a") == record


async def test_a_cancel_that_races_the_end_has_one_winner(database: Database) -> None:
    """Cancelled at random moments, each execution is either cancelled or completed, and it stays so."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    count = 150

    @zart_step("some-{n}")
    async def some(n: int) -> int:
        await asyncio.sleep(chance.random() * 0.03)
        RAN[f"step of {zart.context().execution_id}"] += 1
        return n

    @zart_durable("short")
    async def short(number: int) -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(some(n) for n in range(3)))
        await zart.sleep("nap", 0.01)
        RAN[f"body {number}"] += 1
        return number

    async def cancel_some_time(scheduler: PostgresScheduler, number: int) -> bool:
        """Cancel at once, after some of its steps, or when its body has come to its end."""
        steps = chance.randrange(5)
        if steps == 4:
            await eventually(lambda: RAN[f"body {number}"], every=0.002)
        else:
            await eventually(lambda: RAN[f"step of {ids[number]}"] >= steps, every=0.002)
        return await scheduler.cancel(ids[number])

    async with (
        Engine(database, [short]) as engine,
        PostgresScheduler.connect(database.dsn) as scheduler,
    ):
        ids = [f"execution {n}" for n in range(count)]
        await scheduler.start_many(short, [(each, n) for n, each in enumerate(ids)])
        won = await asyncio.gather(*(cancel_some_time(scheduler, number) for number in range(count)))
        await engine.all_ended(within=30)
        records = [await engine.record(each) for each in ids]
        for number, (cancelled, record) in enumerate(zip(won, records, strict=True)):
            expected = (ExecutionStatus.CANCELLED, None) if cancelled else (ExecutionStatus.COMPLETED, number)
            assert (record.status, record.output) == expected, f"seed {seed}: {record}"
            assert cancelled or RAN[f"body {number}"], f"seed {seed}: {record}"
        journals = [await engine.history(each) for each in ids]
        assert not any(await asyncio.gather(*(scheduler.cancel(each) for each in ids)))
        await eventually(lambda: not any(loop.turns for loop in engine.loops), within=2)
        assert [await engine.record(each) for each in ids] == records
        assert [await engine.history(each) for each in ids] == journals
        assert {won.count(True), won.count(False)} != {0, count}, f"seed {seed}: it was no race"


# -- how it is asked for


async def test_the_one_who_waits_for_it_is_told(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        await endless()

    async with Engine(database, [cancelled]) as engine, PostgresScheduler.connect(database.dsn) as scheduler:
        handle = await scheduler.start_for(cancelled, "a")
        await eventually(lambda: RAN["endless"])
        result = asyncio.create_task(handle.result(timeout=5))
        await scheduler.cancel("a")
        with pytest.raises(ExecutionCancelled, match="'a'"):
            await result
        await _is_cancelled_for_good(engine, set())


async def test_a_cancel_in_a_transaction_holds_from_its_commit_on(database: Database) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        await endless()

    async with Engine(database, [cancelled]) as engine, PostgresScheduler.connect(database.dsn) as scheduler:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"])
        connection = await database.connect()
        async with connection.transaction():
            assert await scheduler.cancel("a", conn=connection)
            assert (await engine.record("a")).status == ExecutionStatus.RUNNING
            assert RAN["interrupted"] == 0
        await connection.close()
        await _is_cancelled_for_good(engine, set())


async def test_zart_cancel_cancels(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @zart_durable("cancelled")
    async def cancelled() -> None:
        await endless()

    monkeypatch.setenv("DATABASE_URL", database.dsn)
    async with Engine(database, [cancelled]) as engine:
        await engine.start("a", cancelled)
        await eventually(lambda: RAN["endless"])
        assert await asyncio.to_thread(answer, ["cancel", "a"]) == 0
        assert capsys.readouterr().out == "cancelled a\n"
        await _is_cancelled_for_good(engine, set())
        assert await asyncio.to_thread(answer, ["cancel", "a"]) == 1
