"""Scheduled steps: run by any worker, awaited without a slot, made once whatever happens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import is_waiting, parked
from tests.support.steps import GATES, PARKED, RAN
from zart import BusinessErr, Ok, ZartErr, zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import (
    DuplicateStepName,
    InvalidArgument,
    NotInBody,
    NotInExecution,
    RetryExhausted,
    SerializationError,
    StepFailed,
    StepNotRegistered,
    StepTimedOut,
)
from zart.model import ExecutionStatus
from zart.store import executions

HANDLES: list[Any] = []

ONE_SLOT = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1)


@pytest.fixture(autouse=True)
def _forget() -> None:
    HANDLES.clear()


class Refused(Exception):
    pass


@zart_step("double-{number}", raises=Refused)
async def double(number: int) -> int:
    RAN[f"double-{number}"] += 1
    if number == 13:
        raise Refused("unlucky")
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@zart_step("gated-{name}")
async def gated(name: str) -> str:
    RAN[f"began {name}"] += 1
    await GATES[name].wait()
    RAN[f"ended {name}"] += 1
    return name


@zart_step("inline")
async def inline() -> str:
    RAN["inline"] += 1
    return "inline"


async def outcomes_of(handles: list[Any]) -> list[Any]:
    found: list[Any] = []
    for outcome in await zart.wait(handles):
        match outcome:
            case Ok(value):
                found.append(value)
            case BusinessErr(error):
                found.append(f"refused: {error}")
            case ZartErr(failure):
                found.append(f"{type(failure).__name__}: {failure}")
    return found


@zart_durable("fan-out")
async def fan_out(numbers: list[int]) -> list[Any]:
    return await outcomes_of([zart.schedule(double(number)) for number in numbers])


# -- outcomes


async def test_outcomes_come_in_the_order_given_failures_included(database: Database) -> None:
    async with Engine(database, [fan_out, double]) as engine:
        await engine.start("a", fan_out, [3, 13, -1, 1])
        assert (await engine.ended("a")).output == [
            6,
            "refused: unlucky",
            "StepFailed: step 'double--1' failed: ValueError: negative",
            2,
        ]
        assert RAN == {"double--1": 1, "double-1": 1, "double-13": 1, "double-3": 1}


async def test_to_wait_for_nothing_gives_nothing(database: Database) -> None:
    async with Engine(database, [fan_out, double]) as engine:
        await engine.start("a", fan_out, [])
        assert (await engine.ended("a")).output == []


async def test_a_thousand_children_of_one_parent_each_run_once(database: Database) -> None:
    async with Engine(database, [fan_out, double]) as engine:
        numbers = [number for number in range(1000) if number != 13]
        await engine.start("a", fan_out, numbers)
        assert (await engine.ended("a", within=60)).output == [2 * number for number in numbers]
        assert {f"double-{number}": 1 for number in numbers} == RAN


async def test_one_slot_is_enough_for_a_parent_and_its_children(database: Database) -> None:
    async with Engine(database, [fan_out, double], config=ONE_SLOT) as engine:
        await engine.start("a", fan_out, [1, 2, 3])
        assert (await engine.ended("a")).output == [2, 4, 6]


async def test_a_handle_is_awaited_by_itself_and_in_gather_as_often_as_one_likes(database: Database) -> None:
    @zart_durable("many-ways")
    async def many_ways() -> list[Any]:
        one, two, bad = zart.schedule(double(1)), zart.schedule(gated("x")), zart.schedule(double(-1))
        GATES["x"].set()
        first = await one
        await zart.sleep("nap", 0.05)
        mixed = await asyncio.gather(one, two)
        errors = [await failure_of(bad), await failure_of(bad)]
        return [first, *mixed, await one, *errors, await outcomes_of([two, one, two])]

    async def failure_of(handle: Any) -> str:
        with pytest.raises(StepFailed) as raised:
            await handle
        return str(raised.value)

    async with Engine(database, [many_ways, double, gated]) as engine:
        await engine.start("a", many_ways)
        failed = "step 'double--1' failed: ValueError: negative"
        assert (await engine.ended("a")).output == [2, 2, "x", 2, failed, failed, ["x", 2, "x"]]
        assert RAN["double-1"] == RAN["ended x"] == RAN["double--1"] == 1


async def test_some_of_the_handles_can_be_awaited_before_the_others(database: Database) -> None:
    @zart_durable("in-parts")
    async def in_parts() -> list[Any]:
        handles = [zart.schedule(double(number)) for number in range(10)]
        slow = zart.schedule(gated("slow"))
        last = await outcomes_of(handles[:6:-1])
        await inline()
        GATES["slow"].set()
        first = await outcomes_of(handles[:3])
        return [last, first, await slow, await handles[5]]

    async with Engine(database, [in_parts, double, gated]) as engine:
        await engine.start("a", in_parts)
        assert (await engine.ended("a")).output == [[18, 16, 14], [0, 2, 4], "slow", 10]
        assert all(RAN[f"double-{number}"] == 1 for number in range(10))


async def test_handles_that_are_never_awaited_are_waited_for_at_the_end(database: Database) -> None:
    @zart_durable("forgets")
    async def forgets() -> str:
        _ = zart.schedule(gated("x"))
        return "done"

    async with Engine(database, [forgets, gated]) as engine:
        await engine.start("a", forgets)
        await eventually(lambda: RAN["began x"] == 1)
        assert (await engine.record("a")).status is not ExecutionStatus.COMPLETED
        GATES["x"].set()
        assert (await engine.ended("a")).output == "done"
        assert RAN["ended x"] == 1


async def test_the_failure_of_one_that_is_never_awaited_fails_the_execution(database: Database) -> None:
    @zart_durable("forgets")
    async def forgets() -> str:
        _ = zart.schedule(double(-1))
        return "done"

    async with Engine(database, [forgets, double]) as engine:
        await engine.start("a", forgets)
        record = await engine.ended("a")
        assert (record.status, record.error["step"]) == (ExecutionStatus.FAILED, "double--1")


async def test_retries_and_timeouts_are_the_scheduled_steps_own(database: Database) -> None:
    @zart_step("flaky", retry="fixed(3, 10ms)")
    async def flaky() -> int:
        RAN["flaky"] += 1
        if RAN["flaky"] < 3:
            raise ValueError("not yet")
        return zart.context().current_attempt

    @zart_step("hopeless", retry="fixed(2, 10ms)")
    async def hopeless() -> None:
        RAN["hopeless"] += 1
        raise ValueError("never")

    @zart_step("endless", timeout="50ms")
    async def endless() -> None:
        await asyncio.Event().wait()

    @zart_durable("parent")
    async def parent() -> list[Any]:
        handles = [zart.schedule(flaky()), zart.schedule(hopeless()), zart.schedule(endless())]
        value, used_up, late = await zart.wait(handles)
        assert isinstance(used_up, ZartErr)
        assert isinstance(late, ZartErr)
        assert isinstance(used_up.error, RetryExhausted)
        assert isinstance(late.error, StepTimedOut)
        return [value.unwrap(), used_up.error.attempts, used_up.error.detail]

    async with Engine(database, [parent, flaky, hopeless, endless]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == [2, 3, "never"]
        assert (RAN["flaky"], RAN["hopeless"]) == (3, 3)


async def test_a_scheduled_step_sees_the_id_name_and_data_of_its_parent(database: Database) -> None:
    @zart_step("look-around")
    async def look_around() -> list[Any]:
        seen = zart.context()
        return [seen.execution_id, seen.task_name, seen.data, seen.current_attempt]

    @zart_durable("parent")
    async def parent(data: dict[str, int]) -> list[Any]:
        return await zart.schedule(look_around())

    async with Engine(database, [parent, look_around]) as engine:
        await engine.start("a", parent, {"n": 1})
        assert (await engine.ended("a")).output == ["a", "parent", {"n": 1}, 0]


@dataclass
class Order:
    sku: str
    count: int = 1


async def test_arguments_come_back_as_their_annotations_say(database: Database) -> None:
    @zart_step("take")
    async def take(order: Order, *rest: int, rush: bool = False, **more: str) -> list[Any]:
        assert isinstance(order, Order)
        return [order.sku, order.count, list(rest), rush, more]

    @zart_durable("parent")
    async def parent() -> list[Any]:
        full = zart.schedule(take(Order("a", 2), 3, 4, rush=True, note="x"))
        bare = zart.schedule(take(Order("b")).named("bare"))
        return [await full, await bare]

    async with Engine(database, [parent, take]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == [["a", 2, [3, 4], True, {"note": "x"}], ["b", 1, [], False, {}]]


@dataclass
class Triple(zart.ZartStep[int]):
    number: int

    def step_name(self) -> str:
        return f"triple-{self.number}"

    async def run(self) -> int:
        return 3 * self.number


async def test_a_step_written_as_a_class_can_be_scheduled(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> int:
        return await zart.schedule(Triple(4))

    async with Engine(database, [parent, Triple]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == 12


async def test_a_plain_function_can_be_scheduled(database: Database) -> None:
    @zart_step("plain")
    def plain(number: int) -> int:
        return number + 1

    @zart_durable("parent")
    async def parent() -> int:
        return await zart.schedule(plain(4))

    async with Engine(database, [parent, plain]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == 5


# -- without a slot


async def test_a_parent_that_waits_is_parked(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        return await zart.schedule(gated("x"))

    async with Engine(database, [parent, gated], config=PARKED) as engine:
        await engine.start("a", parent)
        await eventually(lambda: is_waiting(engine, "a"))
        await eventually(lambda: RAN["began x"])
        assert await is_waiting(engine, "a")
        GATES["x"].set()
        assert (await engine.ended("a")).output == "x"


async def test_the_queue_of_a_step_is_where_it_waits(database: Database) -> None:
    @zart_step("heavy", queue="gpu")
    async def heavy() -> str:
        return "heavy"

    @zart_durable("parent")
    async def parent() -> list[str]:
        return [await zart.schedule(heavy()), await zart.schedule(inline())]

    served = WorkerConfig(lease_timeout="1h", queues=("default",))
    async with Engine(database, [parent, heavy, inline], config=served) as engine:
        await engine.start("a", parent)
        await parked(engine, "a")
        child = await engine.connection.fetchrow("select task_name, queue, status from zart.zart_records where id = 2")
        assert child is not None
        assert tuple(child) == ("heavy", "gpu", 0)


# -- refusals


async def test_what_cannot_be_scheduled_is_refused_by_name(database: Database) -> None:
    @zart_step("takes-anything")
    async def takes_anything(value: Any) -> None: ...

    @zart_durable("parent")
    async def parent() -> list[str]:
        texts: list[str] = []
        calls: list[Any] = [inline, takes_anything(object()), takes_anything("x" * 5_000_000), inline(), 5]
        for call in calls:
            with pytest.raises((StepNotRegistered, SerializationError, InvalidArgument)) as raised:
                _ = zart.schedule(call)
            texts.append(f"{type(raised.value).__name__}: {raised.value}")
        await asyncio.sleep(0)
        return texts

    async with Engine(database, [parent, takes_anything]) as engine:
        await engine.start("a", parent)
        bare, unkept, big, unknown, number = (await engine.ended("a")).output
        assert bare.startswith("InvalidArgument: schedule() takes a call of a step or of a durable function")
        assert unkept.startswith("SerializationError: arguments of step 'takes-anything' at $.value: ")
        assert "the limit is 4,194,304" in big
        assert unknown.startswith("StepNotRegistered: step 'inline' cannot run as an execution of its own")
        assert number.startswith("InvalidArgument: schedule() takes")
        assert await engine.connection.fetchval("select count(*) from zart.zart_executions") == 1


async def test_a_step_that_is_started_as_an_execution_fails_and_harms_nobody(database: Database) -> None:
    async with Engine(database, [fan_out, double]) as engine:
        await executions.start(
            engine.connection,
            engine.schema,
            engine.bucket("wrong"),
            ["wrong"],
            ['{"number": 1}'],
            task_name="double-{number}",
            lane=engine.lanes["default", "double-{number}"],
            priority=2,
        )
        record = await engine.ended("wrong")
        assert record.status is ExecutionStatus.FAILED
        assert (
            "'double-{number}' is a step, which only the body of an execution can schedule" in record.error["message"]
        )
        await engine.start("a", fan_out, [1])
        assert (await engine.ended("a")).output == [2]


async def test_one_name_is_scheduled_once(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        _ = zart.schedule(inline())
        with pytest.raises(DuplicateStepName, match="uses the name 'inline' twice"):
            _ = zart.schedule(inline())
        with pytest.raises(DuplicateStepName, match="uses the name 'inline' twice"):
            await inline()
        return "refused"

    async with Engine(database, [parent, inline]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == "refused"


async def test_a_step_schedules_nothing(database: Database) -> None:
    @zart_step("outer")
    async def outer() -> str:
        with pytest.raises(NotInBody, match=r"schedule\('inline'\) was called inside step 'outer'"):
            _ = zart.schedule(inline())
        return "refused"

    @zart_durable("parent")
    async def parent() -> str:
        return await outer()

    async with Engine(database, [parent, inline]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == "refused"


async def test_outside_an_execution_nothing_is_scheduled() -> None:
    with pytest.raises(NotInExecution, match=r"zart\.testing"):
        _ = zart.schedule(inline())


async def test_handles_belong_to_the_execution_that_made_them(database: Database) -> None:
    @zart_durable("maker")
    async def maker() -> None:
        HANDLES.append(zart.schedule(double(1)))
        await HANDLES[-1]

    @zart_durable("taker")
    async def taker() -> str:
        with pytest.raises(InvalidArgument, match="the handle of 'double-1' was awaited"):
            await HANDLES[-1]
        with pytest.raises(InvalidArgument, match="wait"):
            await zart.wait([HANDLES[-1]])
        with pytest.raises(InvalidArgument, match=r"wait\(\) takes handles"):
            await zart.wait([5])  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="one handle is awaited by itself"):
            await zart.wait(HANDLES[-1])
        return "refused"

    async with Engine(database, [maker, taker, double]) as engine:
        await engine.start("a", maker)
        await engine.ended("a")
        await engine.start("b", taker)
        assert (await engine.ended("b")).output == "refused"


# -- crashes and ends


async def test_a_crash_of_the_parent_makes_no_child_twice(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> list[Any]:
        handles = [zart.schedule(double(1)), zart.schedule(gated("x"))]
        RAN["passes"] += 1
        return await outcomes_of(handles)

    async with Engine(database, [parent, double, gated], workers=2) as engine:
        await engine.start("a", parent)
        await eventually(lambda: RAN["began x"] >= 1 and RAN["double-1"] == 1)
        for loop in engine.loops:
            await engine.take_over(loop)
        passes = RAN["passes"]
        GATES["x"].set()
        assert (await engine.ended("a")).output == [2, "x"]
        assert RAN["passes"] > passes
        assert RAN["double-1"] == 1
        assert await engine.connection.fetchval("select count(*) from zart.zart_executions") == 3


async def test_children_of_a_body_that_fails_are_cancelled(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> None:
        _ = zart.schedule(gated("x"))
        await zart.sleep("until it runs", 0.1)
        raise ValueError("no more")

    async with Engine(database, [parent, gated]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).status is ExecutionStatus.FAILED
        await engine.all_ended(within=3)
        assert await engine.connection.fetchval("select status from zart.zart_executions where parent = 1") == 4
        assert RAN["ended x"] == 0


async def test_an_execution_retry_runs_only_failed_children_again(database: Database) -> None:
    @zart_step("sometimes")
    async def sometimes() -> str:
        RAN["sometimes"] += 1
        if RAN["sometimes"] == 1:
            raise ValueError("the first time")
        return "at last"

    @zart_durable("parent", retry="fixed(2, 10ms)")
    async def parent() -> list[Any]:
        handles = [zart.schedule(double(1)), zart.schedule(sometimes())]
        return [outcome.unwrap() for outcome in await zart.wait(handles)]

    async with Engine(database, [parent, double, sometimes]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == [2, "at last"]
        assert (RAN["double-1"], RAN["sometimes"]) == (1, 2)
