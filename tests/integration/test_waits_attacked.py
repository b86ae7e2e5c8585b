"""Waits under attack: what came between a look and a park, slots that are all but taken, rows that others hold."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import WorkerConfig, zart_durable, zart_step
from zart.engine.turn import Turn
from zart.meters import TICKS
from zart.store import queue


async def is_parked(engine: Engine) -> bool:
    """The one execution there is waits in the queue, and no worker holds it."""
    return bool(await engine.connection.fetchval("select waiting and worker is null from zart.zart_queue"))


# -- an event that is heard


@pytest.mark.parametrize(
    "config",
    [
        WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1),
        WorkerConfig(lease_timeout="1h", park_grace=0),
    ],
    ids=["all slots taken", "no grace"],
)
async def test_an_event_that_came_before_its_wait_is_heard_when_waiting_bodies_are_put_down_at_once(
    database: Database, config: WorkerConfig
) -> None:
    began, gate = asyncio.Event(), asyncio.Event()

    @zart_durable("late-wait")
    async def late_wait() -> int:
        began.set()
        await gate.wait()
        return await zart.wait_for_event("go", int)

    async with Engine(database, [late_wait], config=config) as engine:
        await engine.start("x", late_wait)
        await began.wait()
        await engine.offer("x", "go", 7)
        gate.set()
        assert (await engine.ended("x", within=5)).output == 7


async def test_a_body_that_has_just_heard_its_event_is_not_put_down(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beat may come between the moment an event is heard and the moment the body goes on."""
    hear = Turn.hear

    def hear_and_rest(turn: Turn, wakes: int, found: Any, looked_for: Any) -> None:
        hear(turn, wakes, found, looked_for)
        if found:
            turn.rest(turn.loop.time() + 3600)

    monkeypatch.setattr(Turn, "hear", hear_and_rest)

    @zart_durable("waits")
    async def waits() -> int:
        return await zart.wait_for_event("go", int)

    async with Engine(database, [waits], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("x", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        await engine.offer("x", "go", 7)
        assert (await engine.ended("x", within=5)).output == 7


@pytest.mark.parametrize("rounds", range(6))
async def test_an_event_that_is_read_while_its_body_is_being_put_down_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """A beat comes so many rounds of the loop before the answer with the events."""
    read, armed = queue.read_checkpoints, False

    async def read_and_rest(*arguments: Any) -> Sequence[Any]:
        nonlocal armed
        rows: Sequence[Any] = await read(*arguments)
        if armed and rows:
            armed = False
            [turn] = engine.loops[0].turns.values()
            turn.rest(turn.loop.time() + 3600)
            for _ in range(rounds):
                await asyncio.sleep(0)
        return rows

    monkeypatch.setattr(queue, "read_checkpoints", read_and_rest)

    @zart_durable("waits")
    async def waits() -> int:
        try:
            return await zart.wait_for_event("go", int)
        finally:
            await asyncio.sleep(0.2)  # as a context manager that closes something

    async with Engine(database, [waits], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("x", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        [turn] = engine.loops[0].turns.values()
        await eventually(lambda: turn.events and not turn.unread)
        armed = True
        await engine.offer("x", "go", 7)
        assert (await engine.ended("x", within=5)).output == 7


async def test_an_event_is_heard_whose_wait_begins_again_while_others_are_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, gate = queue.read_checkpoints, asyncio.Event()
    gate.set()
    turns, armed, heard = 0, False, asyncio.Event()

    async def read_late(*arguments: Any) -> Sequence[Any]:
        nonlocal armed
        if armed:
            armed = False
            gate.set()
            await eventually(lambda: any(len(turn.events) == 2 for turn in engine.loops[0].turns.values()))
        rows: Sequence[Any] = await read(*arguments)
        return rows

    monkeypatch.setattr(queue, "read_checkpoints", read_late)

    @zart_durable("two-events")
    async def two_events() -> list[int]:
        nonlocal turns
        turns += 1

        async def late() -> int:
            await gate.wait()
            found = await zart.wait_for_event("b", int)
            heard.set()
            return found

        return list(await asyncio.gather(zart.wait_for_event("wake", int), zart.wait_for_event("a", int), late()))

    config = WorkerConfig(lease_timeout="1h", park_grace=0.2)
    async with Engine(database, [two_events], config=config) as engine:
        await engine.start("x", two_events)
        await eventually(lambda: is_parked(engine))
        gate.clear()
        await engine.offer("x", "wake", 1)
        await eventually(lambda: turns == 2)
        [turn] = engine.loops[0].turns.values()
        await eventually(lambda: len(turn.events) == 1 and not turn.unread)
        armed = True
        await engine.offer("x", "b", 2)
        async with asyncio.timeout(5):
            await heard.wait()
        await engine.offer("x", "a", 3)
        assert (await engine.ended("x", within=5)).output == [1, 3, 2]


# -- a timeout


async def test_a_timeout_that_meets_an_offer_in_an_open_transaction_does_not_spin(database: Database) -> None:
    @zart_durable("waits")
    async def waits() -> str:
        try:
            return await zart.wait_for_event("go", str, timeout="400ms")
        except zart.EventTimeout:
            return "late"

    async with Engine(database, [waits], config=WorkerConfig(lease_timeout="1h")) as engine:
        await engine.start("x", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        theirs = await database.connect()
        async with theirs.transaction():
            await engine.offer("x", "go", "early", theirs)
            [turn] = engine.loops[0].turns.values()
            await eventually(lambda: turn.storing)
            before = engine.loops[0].place.words[TICKS]
            await asyncio.sleep(1)
            ticks = engine.loops[0].place.words[TICKS] - before
        await theirs.close()
        assert (await engine.ended("x", within=5)).output == "early"
    assert ticks < 200


# -- slots


async def test_bodies_that_wait_give_back_slots_that_are_too_few_to_claim_for(database: Database) -> None:
    @zart_durable("waits")
    async def waits() -> int:
        return await zart.wait_for_event("go", int)

    @zart_durable("quick")
    async def quick() -> int:
        return 1

    config = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=16, park_grace="1h")
    async with Engine(database, [waits, quick], config=config) as engine:
        for number in range(15):
            await engine.start(f"w{number}", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) = 15 from zart.zart_tasks"))
        await engine.start("q", quick)
        assert (await engine.ended("q", within=5)).output == 1


async def by_nested_gather() -> None:
    await asyncio.gather(asyncio.gather(zart.sleep("one", "1h")), zart.sleep("two", "1h"))


async def by_wait_of_gather() -> None:
    await asyncio.wait([asyncio.gather(zart.sleep("one", "1h"))])


async def by_async_generator() -> None:
    async def generate() -> AsyncIterator[int]:
        await asyncio.gather(zart.sleep("one", "1h"), zart.sleep("two", "1h"))
        yield 1

    async for one in generate():
        assert one


@pytest.mark.parametrize("wait", [by_nested_gather, by_wait_of_gather, by_async_generator])
async def test_a_body_that_only_waits_is_put_down_in_less_common_ways(
    database: Database, wait: Callable[[], Awaitable[None]]
) -> None:
    @zart_durable("waits")
    async def waits() -> None:
        await wait()

    async with Engine(database, [waits], config=WorkerConfig(lease_timeout="1h", park_grace="50ms")) as engine:
        await engine.start("w", waits)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        await eventually(lambda: is_parked(engine), within=3)


@pytest.mark.parametrize("limit", ["wait_for", "lock"])
async def test_a_body_that_waits_under_a_limit_of_its_own_is_handed_back_at_once(
    database: Database, limit: str
) -> None:
    began = asyncio.Event()

    async def locked(lock: asyncio.Lock, name: str) -> None:
        async with lock:
            await zart.wait_for_event(name)

    @zart_durable("limited")
    async def limited() -> None:
        began.set()
        if limit == "wait_for":
            await asyncio.wait_for(zart.wait_for_event("go"), 3600)
        else:
            lock = asyncio.Lock()
            await asyncio.gather(locked(lock, "one"), locked(lock, "two"))

    config = WorkerConfig(lease_timeout="1h", shutdown_timeout="30s")
    async with Engine(database, [limited], config=config) as engine:
        await engine.start("x", limited)
        await began.wait()
        await eventually(lambda: any(turn.waits for turn in engine.loops[0].turns.values()))
        engine.loops[0].stop()
        async with asyncio.timeout(3):
            await asyncio.wait([engine.tasks[0]])


# -- a body that still does something


async def test_a_body_whose_task_group_has_a_task_of_another_context_is_not_put_down(database: Database) -> None:
    gate, begun = asyncio.Event(), 0

    async def work() -> None:
        await gate.wait()

    @zart_durable("foreign")
    async def foreign() -> int:
        nonlocal begun
        begun += 1
        async with asyncio.TaskGroup() as group:
            group.create_task(work(), context=contextvars.Context())
            group.create_task(zart.sleep("nap", "300ms"))
        return begun

    async with Engine(database, [foreign], config=WorkerConfig(lease_timeout="1h", park_grace="50ms")) as engine:
        await engine.start("x", foreign)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_tasks"))
        await asyncio.sleep(0.6)
        gate.set()
        assert (await engine.ended("x", within=5)).output == 1


async def test_a_body_whose_task_has_just_ended_goes_on_before_it_is_put_down(database: Database) -> None:
    @zart_step("after")
    async def after() -> int:
        return 1

    @zart_durable("goes-on")
    async def goes_on() -> int:
        turn = next(iter(engine.loops[0].turns.values()))

        async def work() -> None:
            await eventually(lambda: turn.waits)
            turn.loop.call_soon(turn.rest, turn.loop.time() + 3600)  # as a beat may

        event = asyncio.create_task(zart.wait_for_event("go", int))
        await asyncio.create_task(work())
        await after()
        return await event

    async with Engine(database, [goes_on], config=WorkerConfig(lease_timeout="1h", park_grace="1m")) as engine:
        await engine.start("x", goes_on)
        await eventually(
            lambda: engine.connection.fetchval("select count(*) = 1 from zart.zart_tasks where name = 'after'"),
            within=5,
        )
        await engine.offer("x", "go", 2)
        assert (await engine.ended("x", within=5)).output == 2


# -- a loop that begins tasks at once


def begin_at_once(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """What `asyncio.eager_task_factory` of Python 3.12 does: the first step of a task runs inside of `create_task`."""
    tasks: Any = asyncio.tasks
    first: list[Any] = []

    def keep(call: Any, *arguments: Any, context: Any = None) -> None:
        first.append((call, arguments, context))

    vars(loop)["call_soon"] = keep
    try:
        task: asyncio.Task[Any] = tasks._PyTask(coro, loop=loop, **options)
    finally:
        del vars(loop)["call_soon"]
    [(call, arguments, context)] = first
    maker = asyncio.current_task(loop)
    if maker is not None:
        tasks._leave_task(loop, maker)
    try:
        context.run(call, *arguments)
    finally:
        if maker is not None:
            tasks._enter_task(loop, maker)
    return task


async def test_a_body_ends_in_a_loop_whose_tasks_begin_at_once(database: Database) -> None:
    @zart_step("one")
    async def one() -> int:
        return 1

    @zart_durable("eager")
    async def eager() -> int:
        await zart.sleep("nap", "200ms")
        return sum(await asyncio.gather(one(), asyncio.create_task(zart.wait_for_event("go", int))))

    loop = asyncio.get_running_loop()
    async with Engine(database, [eager], config=WorkerConfig(lease_timeout="1h", park_grace="50ms")) as engine:
        await eventually(lambda: engine.loops[0].place.ready)
        follower: Any = await eventually(loop.get_task_factory)
        follower.before = getattr(asyncio, "eager_task_factory", begin_at_once)
        try:
            await engine.start("x", eager)
            await engine.offer("x", "go", 2)
            assert (await engine.ended("x", within=5)).output == 3
        finally:
            follower.before = None
            for turn in list(engine.loops[0].turns.values()):
                turn.lose()  # else nothing ends it
                assert turn.main is not None
                turn.main.cancel()


# -- memory


async def test_turns_that_are_put_down_are_forgotten_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zart.engine.life.ABANDON_AFTER", 1_000.0)  # a timer that keeps them would do so for long

    @zart_durable("sleeps")
    async def sleeps() -> None:
        await zart.sleep("long", "1h")

    async with Engine(database, [sleeps], config=WorkerConfig(lease_timeout="1h")) as engine:
        for number in range(20):
            await engine.start(f"s{number}", sleeps)
        await eventually(
            lambda: engine.connection.fetchval(
                "select count(*) = 20 from zart.zart_queue where waiting and worker is null"
            )
        )

        def turns() -> int:
            gc.collect()
            return sum(1 for thing in gc.get_objects() if type(thing) is Turn and thing.host in engine.loops)

        await eventually(lambda: turns() == 0)


# -- late ticks


async def test_a_park_that_is_sent_late_does_not_move_the_moment_it_is_due(database: Database) -> None:
    began, gate = asyncio.Event(), asyncio.Event()

    @zart_durable("sleeps")
    async def sleeps() -> None:
        began.set()
        await gate.wait()
        await zart.sleep("nap", "3s")

    async with Engine(database, [sleeps], config=WorkerConfig(lease_timeout="1h", park_grace="1s")) as engine:
        theirs = await database.connect()
        await engine.start("x", sleeps)
        await began.wait()
        async with theirs.transaction():
            await theirs.execute("select from zart.zart_queue for no key update")
            gate.set()
            [turn] = engine.loops[0].turns.values()
            await eventually(lambda: turn.ended)
            await asyncio.sleep(2)
        await theirs.close()
        await eventually(lambda: is_parked(engine))
        late = await engine.connection.fetchval(
            "select extract(epoch from q.run_at - t.due) from zart.zart_queue q, zart.zart_tasks t"
        )
        assert late < 0.5
