"""Suspension is safe: whatever a body does while it is put down, it neither goes on nor records anything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import crash, has, left_in_queue, operation, operations, parked
from tests.support.steps import GATES, PARKED, RAN, note
from zart import PostgresScheduler, zart_durable, zart_step
from zart.config import WorkerConfig
from zart.model import ExecutionStatus


@zart_step("gated")
async def gated() -> str:
    RAN["gated"] += 1
    await GATES["gated"].wait()
    return "gated"


async def do_everything() -> None:
    """Each zart call there is; all of them would leave something in the journal."""
    await note("cleaned up")
    await zart.sleep("cleaning nap", 0)
    await zart.capture("cleaning value", lambda: 1)
    await zart.now("cleaning time")
    with contextlib.suppress(zart.EventTimeout):
        await zart.wait_for_event("cleaning event", timeout=0)


CLEANED = {"note-cleaned up", "cleaning nap", "cleaning value", "cleaning time", "cleaning event"}


# -- ways to write a body that is suspended in `wait`


async def excepts_exception(wait: Callable[[], Awaitable[None]]) -> str:
    try:
        await wait()
    except Exception:
        await do_everything()
        return "swallowed"
    return "waited"


async def excepts_base_exception(wait: Callable[[], Awaitable[None]]) -> str:
    try:
        await wait()
    except BaseException:
        await do_everything()
        return "swallowed"
    return "waited"


async def swallows_everything(wait: Callable[[], Awaitable[None]]) -> str:
    text = "waited"
    try:
        await wait()
    except BaseException:
        text = "swallowed"
    with contextlib.suppress(BaseException):
        await note("cleaned up")
    with contextlib.suppress(BaseException):
        await zart.sleep("cleaning nap", 0)
    with contextlib.suppress(BaseException):
        await zart.capture("cleaning value", lambda: 1)
    with contextlib.suppress(BaseException):
        await zart.now("cleaning time")
    with contextlib.suppress(BaseException):
        await zart.wait_for_event("cleaning event", timeout=0)
    return text


async def calls_zart_in_finally(wait: Callable[[], Awaitable[None]]) -> str:
    try:
        await wait()
    finally:
        await do_everything()
    return "waited"


async def returns_in_finally(wait: Callable[[], Awaitable[None]]) -> str:
    text = "swallowed"
    try:
        await wait()
        text = "waited"
    finally:
        return text  # noqa: B012


async def suppresses_base_exception(wait: Callable[[], Awaitable[None]]) -> str:
    text = "swallowed"
    with contextlib.suppress(BaseException):
        await wait()
        text = "waited"
    await do_everything()
    return text


class CleansUp:
    async def __aenter__(self) -> None:
        RAN["entered"] += 1

    async def __aexit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> bool:
        await do_everything()
        return True


async def leaves_a_context(wait: Callable[[], Awaitable[None]]) -> str:
    async with CleansUp():
        await wait()
        return "waited"
    return "swallowed"


@contextlib.asynccontextmanager
async def cleaning_up() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await do_everything()


async def leaves_a_generated_context(wait: Callable[[], Awaitable[None]]) -> str:
    async with cleaning_up(), contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(note, "popped")
        await wait()
    return "waited"


async def suppresses_in_a_task(wait: Callable[[], Awaitable[None]]) -> str:
    return await asyncio.create_task(suppresses_base_exception(wait))


async def tries_for_ever(wait: Callable[[], Awaitable[None]]) -> str:
    while True:
        try:
            await wait()
        except BaseException:
            continue
        return "waited"


async def tries_for_ever_in_a_task(wait: Callable[[], Awaitable[None]]) -> str:
    return await asyncio.create_task(tries_for_ever(wait))


async def rests_in_between(wait: Callable[[], Awaitable[None]]) -> str:
    """It swallows, and goes on with something that is no zart call."""
    text = "waited"
    try:
        await wait()
    except BaseException:
        text = "swallowed"
        await asyncio.sleep(0.2)
    await do_everything()
    return text


SHAPES: dict[str, tuple[Callable[[Callable[[], Awaitable[None]]], Awaitable[str]], set[str]]] = {
    "except Exception": (excepts_exception, set()),
    "except BaseException": (excepts_base_exception, set()),
    "swallows everything": (swallows_everything, CLEANED),
    "finally": (calls_zart_in_finally, CLEANED),
    "return in finally": (returns_in_finally, set()),
    "suppress": (suppresses_base_exception, CLEANED),
    "async with": (leaves_a_context, CLEANED),
    "async generator": (leaves_a_generated_context, CLEANED | {"note-popped"}),
    "in a task": (suppresses_in_a_task, CLEANED),
    "goes on otherwise": (rests_in_between, CLEANED),
    "for ever": (tries_for_ever, set()),
    "for ever in a task": (tries_for_ever_in_a_task, set()),
}


async def wait_for_go() -> None:
    assert await zart.wait_for_event("go") == "went"


async def nap() -> None:
    await zart.sleep("nap", "1200ms")


def _is_silent(caplog: pytest.LogCaptureFixture) -> bool:
    """Nothing was logged of tasks that nobody asks, and nothing as bad."""
    gc.collect()
    noise = [each for each in caplog.records if each.name == "asyncio" or each.levelno >= logging.ERROR]
    assert not noise, [each.getMessage() for each in noise]
    return True


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_body_that_is_parked_in_an_event_wait_neither_goes_on_nor_records(
    database: Database, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    body, more = SHAPES[shape]

    @zart_durable("suspended")
    async def suspended() -> str:
        await note("before")
        return await body(wait_for_go)

    async with Engine(database, [suspended], config=PARKED) as engine:
        await engine.start("a", suspended)
        await parked(engine, "a")
        assert await operations(engine, "a") == ["go", "note-before"]
        assert (await operation(engine, "a", "go", "waiting")) is not None
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a")).output == "waited"
        assert await operations(engine, "a") == sorted({"go", "note-before"} | more)
        assert set(RAN.values()) <= {1} or RAN["entered"] > 1
    assert _is_silent(caplog)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_body_that_is_parked_in_a_sleep_neither_goes_on_nor_records(
    database: Database, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    body, more = SHAPES[shape]

    @zart_durable("suspended")
    async def suspended() -> str:
        await note("before")
        return await body(nap)

    async with Engine(database, [suspended], config=PARKED) as engine:
        await engine.start("a", suspended)
        await parked(engine, "a")
        if await has(engine, "a", "nap", "waiting"):  # else the machine was slow
            assert await operations(engine, "a") == ["nap", "note-before"]
        assert (await engine.ended("a")).output == "waited"
        assert await operations(engine, "a") == sorted({"nap", "note-before"} | more)
    assert _is_silent(caplog)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_body_that_is_parked_between_two_tries_neither_goes_on_nor_records(
    database: Database, shape: str
) -> None:
    body, more = SHAPES[shape]

    @zart_step("second-time", retry="fixed(1, 1200ms)")
    async def second_time() -> None:
        RAN["second-time"] += 1
        if RAN["second-time"] == 1:
            raise ValueError("not yet")

    @zart_durable("suspended")
    async def suspended() -> str:
        return await body(second_time)

    async with Engine(database, [suspended], config=PARKED) as engine:
        await engine.start("a", suspended)
        await parked(engine, "a")
        if await has(engine, "a", "second-time", "retrying"):
            assert await operations(engine, "a") == ["second-time"]
        assert (await engine.ended("a")).output == "waited"
        assert await operations(engine, "a") == sorted({"second-time"} | more)
        assert RAN["second-time"] == 2


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_body_that_is_handed_back_neither_goes_on_nor_records(database: Database, shape: str) -> None:
    """At the drain of its worker: what runs is kept, nothing else is begun."""
    body, more = SHAPES[shape]

    @zart_durable("suspended")
    async def suspended() -> str:
        await note("before")
        await gated()
        return await body(lambda: note("then"))  # type: ignore[arg-type, return-value]

    async with Engine(database, [suspended]) as engine:
        await engine.start("a", suspended)
        await eventually(lambda: RAN["gated"])
        for loop in engine.loops:
            loop.stop()
        GATES["gated"].set()
        await asyncio.gather(*engine.tasks)
        assert await operations(engine, "a") == ["gated", "note-before"]
        assert (await engine.record("a")).status == ExecutionStatus.PENDING
    async with Engine(database, [suspended]) as engine:
        assert (await engine.ended("a")).output == "waited"
        assert await operations(engine, "a") == sorted({"gated", "note-before", "note-then"} | more)


async def test_a_body_that_never_stops_swallowing_is_parked_at_once_and_costs_nothing(database: Database) -> None:
    """It is given up as soon as it insists, and the event loop is free for others."""

    @zart_durable("insists")
    async def insists() -> str:
        while True:
            try:
                RAN["calls"] += 1
                await wait_for_go()
            except BaseException:
                continue
            return "waited"

    async with Engine(database, [insists], config=PARKED) as engine:
        await engine.start("a", insists)
        await parked(engine, "a", within=2)
        await asyncio.sleep(0.2)
        calls = RAN["calls"]
        await asyncio.sleep(0.5)
        assert RAN["calls"] == calls
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a")).output == "waited"


# -- what runs beside


async def test_running_steps_of_a_body_that_is_handed_back_end_and_are_kept(database: Database) -> None:
    """Though the body wants to begin another one meanwhile, and is refused."""

    @zart_step("quick")
    async def quick() -> str:
        RAN["quick"] += 1
        await GATES["quick"].wait()
        return "quick"

    async def one_after_the_other() -> list[str]:
        return [await quick(), await note("next")]

    @zart_durable("side-by-side")
    async def side_by_side() -> list[Any]:
        return list(await asyncio.gather(gated(), one_after_the_other()))

    async with Engine(database, [side_by_side], workers=1) as engine:
        await engine.start("a", side_by_side)
        await eventually(lambda: RAN["gated"] and RAN["quick"])
        engine.loops[0].stop()
        GATES["quick"].set()
        await eventually(lambda: has(engine, "a", "quick"))
        await asyncio.sleep(0.2)
        GATES["gated"].set()
        await engine.tasks[0]
        assert await operations(engine, "a") == ["gated", "quick"]
    async with Engine(database, [side_by_side]) as engine:
        assert (await engine.ended("a")).output == ["gated", ["quick", "next"]]
        assert RAN == {"gated": 1, "quick": 1, "next": 1}


# -- noise


@pytest.fixture
def busy() -> Any:
    """A body with all kinds of tasks in it."""

    async def helper(name: str) -> str:
        await zart.wait_for_event(f"go-{name}")
        return name

    @zart_durable("busy")
    async def busy() -> list[Any]:
        await note("before")
        left_over = asyncio.create_task(helper("left over"))
        waited = asyncio.wait([asyncio.create_task(helper("waited"))])
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(helper("grouped"))
            group.create_task(zart.sleep("nap", "1h"))
        return [
            grouped.result(),
            await asyncio.gather(helper("gathered"), waited, asyncio.shield(left_over), return_exceptions=True),
        ]

    return busy


@pytest.mark.parametrize("how", ["eviction", "cancel", "drain", "takeover", "deadline"])
async def test_a_body_with_many_tasks_that_is_stopped_leaves_no_noise_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture, busy: Any, how: str
) -> None:
    config = PARKED if how == "eviction" else WorkerConfig(lease_timeout="1h", park_grace="1h")
    if how == "deadline":
        body = busy.function

        @zart_durable("busy", timeout="1s")
        async def busy_for_a_while() -> list[Any]:
            told: list[Any] = await body()
            return told

        busy = busy_for_a_while
    async with Engine(database, [busy], config=config) as engine:
        await engine.start("a", busy)
        await eventually(lambda: has(engine, "a", "nap"))
        await eventually(lambda: has(engine, "a", "go-grouped"))
        if how == "eviction":
            await parked(engine, "a")
            await engine.offer("a", "go-left over", None)
            await parked(engine, "a")
        elif how == "cancel":
            async with PostgresScheduler.connect(database.dsn) as scheduler:
                await scheduler.cancel("a")
            await eventually(lambda: not any(loop.turns for loop in engine.loops), within=2)
        elif how == "takeover":
            await crash(engine)
            await eventually(lambda: all(loop.place.loop_count for loop in engine.loops))
        elif how == "deadline":
            await engine.ended("a", within=5)
            assert await left_in_queue(engine) == 0
    assert _is_silent(caplog)


async def test_a_task_that_failed_before_its_body_was_parked_leaves_no_noise_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    @zart_step("fails")
    async def fails() -> None:
        raise ValueError("on purpose")

    @zart_durable("asks-later")
    async def asks_later() -> str:
        task = asyncio.create_task(fails())
        await wait_for_go()
        try:
            await task
        except zart.StepFailed as failure:
            return failure.detail
        return "no failure"

    async with Engine(database, [asks_later], config=PARKED) as engine:
        await engine.start("a", asks_later)
        await eventually(lambda: has(engine, "a", "fails"))
        await parked(engine, "a")
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a")).output == "on purpose"
    assert _is_silent(caplog)


async def test_a_body_that_waits_for_a_task_that_was_refused_is_handed_back(database: Database) -> None:
    """At the drain of its worker: an ordinary await for what does not come any more does not keep it."""

    @zart_durable("fed")
    async def fed() -> list[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def feed() -> None:
            queue.put_nowait(await gated())
            queue.put_nowait(await note("next"))

        task = asyncio.create_task(feed())
        told = [await queue.get(), await queue.get()]
        await task
        return told

    async with Engine(database, [fed], workers=1) as engine:
        await engine.start("a", fed)
        await eventually(lambda: RAN["gated"])
        engine.loops[0].stop()
        GATES["gated"].set()
        async with asyncio.timeout(5):
            await asyncio.shield(engine.tasks[0])
        assert await operations(engine, "a") == ["gated"]
    async with Engine(database, [fed]) as engine:
        assert (await engine.ended("a")).output == ["gated", "next"]


async def test_a_body_that_waits_durably_beside_a_task_that_was_refused_is_handed_back(database: Database) -> None:
    async def one_after_the_other() -> str:
        return await gated() + await note("next")

    @zart_durable("side-by-side")
    async def side_by_side() -> list[Any]:
        return list(await asyncio.gather(one_after_the_other(), wait_for_go(), return_exceptions=True))

    config = WorkerConfig(lease_timeout="1h", park_grace="1h")
    async with Engine(database, [side_by_side], workers=1, config=config) as engine:
        await engine.start("a", side_by_side)
        await eventually(lambda: RAN["gated"])
        await eventually(lambda: has(engine, "a", "go"))
        engine.loops[0].stop()
        GATES["gated"].set()
        async with asyncio.timeout(5):
            await asyncio.shield(engine.tasks[0])
        assert await operations(engine, "a") == ["gated", "go"]
    async with Engine(database, [side_by_side]) as engine:
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a")).output == ["gatednext", None]
