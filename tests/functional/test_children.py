"""Child executions: durable functions called in a body, with retries, deadlines and cancellation of their own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import is_waiting
from tests.support.steps import GATES, PARKED, RAN
from zart import BusinessErr, Ok, ZartErr, zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import ChildFailed, DuplicateStepName, NotInBody, StepFailed, StepNotRegistered
from zart.model import ExecutionStatus
from zart.store import executions

ONE_SLOT = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1)


@dataclass
class Parcel:
    order: str
    weight: float


@zart_step("weigh")
async def weigh(order: str) -> float:
    RAN[f"weigh {order}"] += 1
    return 1.5


@zart_durable("ship")
async def ship(order: str) -> Parcel:
    if order == "lost":
        raise ValueError("no such order")
    return Parcel(order, await weigh(order))


@zart_durable("wait-long")
async def wait_long() -> None:
    RAN["waits"] += 1
    await zart.sleep("long", "1h")


async def statuses(engine: Engine) -> dict[str, str]:
    """Status by name of the children."""
    rows = await engine.connection.fetch("select step_name, status from zart.zart_executions where parent is not null")
    return {row["step_name"]: {0: "live", 1: "completed", 2: "failed", 4: "cancelled"}[row["status"]] for row in rows}


async def test_a_childs_result_comes_back_as_its_type(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> list[Any]:
        one = await ship("a")
        two = await ship("b").named("second")
        assert isinstance(one, Parcel)
        return [one.order, one.weight, two.order]

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == ["a", 1.5, "b"]
        assert RAN == {"weigh a": 1, "weigh b": 1}
        assert await statuses(engine) == {"ship": "completed", "second": "completed"}


async def test_a_childs_failure_is_a_typed_error(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> list[Any]:
        with pytest.raises(ChildFailed, match="child execution 'ship' failed: ValueError: no such order") as raised:
            await ship("lost")
        failure = raised.value
        assert "raise ValueError" in failure.traceback_text
        return [failure.step, failure.type_name, failure.detail, failure.kind]

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == ["ship", "ValueError", "no such order", "body_failed"]


async def test_children_run_side_by_side_and_their_outcomes_are_told_apart(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> list[Any]:
        orders = ["a", "lost", "b"]
        handles = [zart.schedule(ship(order).named(f"ship-{order}")) for order in orders]
        found: list[Any] = []
        for outcome in await zart.wait(handles):
            match outcome:
                case BusinessErr():
                    raise AssertionError("durable functions declare no errors")
                case Ok(parcel):
                    found.append(parcel.order)
                case ZartErr(failure):
                    found.append(type(failure).__name__)
        return [*found, await zart.step_or(ship("lost").named("again"), None)]

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == ["a", "ChildFailed", "b", None]


async def test_a_child_that_nobody_handles_fails_its_parent(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> Parcel:
        return await ship("lost")

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        record = await engine.ended("p")
        assert record.status is ExecutionStatus.FAILED
        assert (record.error["kind"], record.error["step"]) == ("step_failed", "ship")


async def test_two_children_of_one_name_are_refused(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        await ship("a")
        with pytest.raises(DuplicateStepName, match="uses the name 'ship' twice"):
            await ship("b")
        return "refused"

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == "refused"


async def test_a_child_that_no_worker_serves_is_refused(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        with pytest.raises(StepNotRegistered, match="durable function 'ship' cannot run as an execution of its own"):
            await ship("a")
        return "refused"

    async with Engine(database, [parent]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == "refused"


async def test_a_step_calls_no_child(database: Database) -> None:
    @zart_step("outer")
    async def outer() -> str:
        with pytest.raises(NotInBody, match="inside step 'outer'"):
            await ship("a")
        return "refused"

    @zart_durable("parent")
    async def parent() -> str:
        return await outer()

    async with Engine(database, [parent, ship]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == "refused"


async def test_outside_an_execution_a_durable_function_runs_as_it_is() -> None:
    assert await ship("a") == Parcel("a", 1.5)
    with pytest.raises(StepFailed, match="no such order"):
        await ship("lost")


# -- slots


@zart_durable("tree")
async def tree(depth: int) -> int:
    if depth == 0:
        return 1
    handles = [zart.schedule(tree(depth - 1).named(f"branch-{number}")) for number in range(2)]
    return sum(outcome.unwrap() for outcome in await zart.wait(handles)) + await tree(depth - 1)


async def test_one_slot_is_enough_for_a_tree_of_children(database: Database) -> None:
    async with Engine(database, [tree], config=ONE_SLOT) as engine:
        await engine.start("p", tree, 3)
        assert (await engine.ended("p", within=60)).output == 27


async def test_a_parent_of_a_waiting_child_is_parked_with_it(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> None:
        await wait_long()

    async with Engine(database, [parent, wait_long], config=PARKED) as engine:
        await engine.start("p", parent)
        await eventually(lambda: is_waiting(engine, "p"))
        await eventually(lambda: not any(loop.turns for loop in engine.loops))
        assert await statuses(engine) == {"wait-long": "live"}
        await executions.cancel(engine.connection, engine.schema, engine.bucket("p"), "p")


# -- cancellation


@zart_durable("middle")
async def middle() -> None:
    await wait_long()


@zart_durable("top")
async def top() -> None:
    await middle()


@pytest.mark.parametrize("config", [PARKED, WorkerConfig(lease_timeout="1h", park_grace="1h")], ids=["parked", "held"])
async def test_children_are_cancelled_with_their_parent(database: Database, config: WorkerConfig) -> None:
    async with Engine(database, [top, middle, wait_long], config=config) as engine:
        await engine.start("p", top)
        await eventually(lambda: RAN["waits"])
        await executions.cancel(engine.connection, engine.schema, engine.bucket("p"), "p")
        assert (await engine.record("p")).status is ExecutionStatus.CANCELLED
        assert await statuses(engine) == {"middle": "cancelled", "wait-long": "cancelled"}
        await eventually(lambda: not any(loop.turns for loop in engine.loops), within=2)


async def test_a_child_that_is_cancelled_by_itself_is_a_failure_to_its_parent(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> str:
        with pytest.raises(ChildFailed, match="child execution 'wait-long' failed: it was cancelled") as raised:
            await wait_long()
        return raised.value.kind

    async with Engine(database, [parent, wait_long]) as engine:
        await engine.start("p", parent)
        await eventually(lambda: RAN["waits"])
        child = await engine.connection.fetchval("select execution_id from zart.zart_executions where parent = 1")
        await executions.cancel(engine.connection, engine.schema, engine.bucket("p"), child)
        assert (await engine.ended("p")).output == "cancelled"


async def test_children_of_children_are_cancelled_when_the_parent_fails(database: Database) -> None:
    @zart_durable("parent")
    async def parent() -> None:
        _ = zart.schedule(middle())
        while not RAN["waits"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        raise ValueError("no more")

    async with Engine(database, [parent, middle, wait_long]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).status is ExecutionStatus.FAILED
        await engine.all_ended(within=3)
        assert await statuses(engine) == {"middle": "cancelled", "wait-long": "cancelled"}


# -- retries and deadlines


async def test_a_child_has_retries_of_its_own(database: Database) -> None:
    @zart_durable("flaky", retry="fixed(2, 10ms)")
    async def flaky() -> int:
        RAN["passes"] += 1
        await weigh("x")
        if RAN["passes"] < 3:
            raise ValueError("not yet")
        return RAN["passes"]

    @zart_durable("parent")
    async def parent() -> int:
        return await flaky()

    async with Engine(database, [parent, flaky]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output >= 3
        assert RAN["weigh x"] == 1


async def test_a_childs_deadline_is_its_own_but_never_past_its_parents(database: Database) -> None:
    @zart_durable("short", timeout="1m")
    async def short() -> None:
        await zart.sleep("long", "1h")

    @zart_durable("long", timeout="9h")
    async def long() -> None:
        await zart.sleep("long", "1h")

    @zart_durable("parent", timeout="2h")
    async def parent() -> None:
        await zart.wait([zart.schedule(short()), zart.schedule(long())])

    async with Engine(database, [parent, short, long]) as engine:
        await engine.start("p", parent)
        await eventually(lambda: statuses(engine))
        rows = await engine.connection.fetch(
            "select coalesce(step_name, 'parent') as name, deadline from zart.zart_executions"
        )
        deadlines = {row["name"]: row["deadline"] for row in rows}
        assert deadlines["long"] == deadlines["parent"]
        assert timedelta(minutes=118) < deadlines["parent"] - deadlines["short"] <= timedelta(minutes=119)
        await executions.cancel(engine.connection, engine.schema, engine.bucket("p"), "p")


async def test_a_child_past_its_deadline_fails_and_its_parent_goes_on(database: Database) -> None:
    @zart_durable("short", timeout="100ms")
    async def short() -> None:
        await zart.sleep("long", "1h")

    @zart_durable("parent")
    async def parent() -> str:
        with pytest.raises(ChildFailed, match="deadline") as raised:
            await short()
        return raised.value.kind

    async with Engine(database, [parent, short]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == "deadline_exceeded"


async def test_a_retry_of_the_parent_runs_a_failed_child_again_and_no_other(database: Database) -> None:
    @zart_durable("sometimes")
    async def sometimes() -> str:
        RAN["sometimes"] += 1
        if RAN["sometimes"] == 1:
            raise ValueError("the first time")
        return "at last"

    @zart_durable("parent", retry="fixed(1, 10ms)")
    async def parent() -> list[Any]:
        return [(await ship("a")).order, await sometimes()]

    async with Engine(database, [parent, ship, sometimes]) as engine:
        await engine.start("p", parent)
        assert (await engine.ended("p")).output == ["a", "at last"]
        assert RAN["weigh a"] == 1


async def test_a_crash_makes_no_child_twice(database: Database) -> None:
    @zart_durable("gated")
    async def gated() -> str:
        await weigh("x")
        await GATES["x"].wait()
        return "x"

    @zart_durable("parent")
    async def parent() -> str:
        RAN["passes"] += 1
        return await gated()

    async with Engine(database, [parent, gated], workers=2) as engine:
        await engine.start("p", parent)
        await eventually(lambda: RAN["weigh x"] == 1)
        for loop in engine.loops:
            await engine.take_over(loop)
        GATES["x"].set()
        assert (await engine.ended("p")).output == "x"
        assert RAN["weigh x"] == 1
        assert await engine.connection.fetchval("select count(*) from zart.zart_executions") == 2
