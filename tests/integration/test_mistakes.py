"""Mistakes of the program: each error says which operation, where in the source, and what to do."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import DurableExecution, NotInExecution, StepFailed, zart_durable, zart_step

HERE = os.path.basename(__file__)
TASKS: list[asyncio.Task[Any]] = []


def at(function: Callable[..., Any], mark: str = "# here") -> str:
    """The place of the marked line of a function, as errors give it."""
    lines, first = inspect.getsourcelines(function)
    return f"{HERE}:{first + next(number for number, line in enumerate(lines) if mark in line)}"


async def failure(database: Database, durable: DurableExecution[None, Any]) -> dict[str, Any]:
    """The error that an execution ends with."""
    async with Engine(database, [durable]) as engine:
        await engine.start("order-7", durable)
        error: dict[str, Any] = (await engine.ended("order-7")).error
    return error


@zart_step("mail-{to}")
async def mail(to: str) -> str:
    return to


# -- DuplicateStepName


def _is_duplicate(error: dict[str, Any], place: str) -> bool:
    words = ["execution 'order-7'", "'mail-x'", place, '.named("mail-x-2")', '"mail-x-{item}"']
    return error["type"] == "zart.errors.DuplicateStepName" and all(word in error["message"] for word in words)


async def test_a_name_used_twice_is_told_with_the_line_of_the_second_use(database: Database) -> None:
    async def body() -> None:
        await mail("x")
        await mail("x")  # here

    error = await failure(database, zart_durable("twice")(body))
    assert _is_duplicate(error, f" at {at(body)};")


async def test_a_name_used_twice_in_a_helper_is_told_with_the_line_of_the_helper(database: Database) -> None:
    async def helper() -> str:
        return await zart.require(mail("x"))  # here

    @zart_durable("twice")
    async def twice() -> None:
        await helper()
        await helper()

    assert _is_duplicate(await failure(database, twice), f" at {at(helper)};")


async def test_a_name_used_twice_under_gather_is_told_with_the_line_where_the_body_waits(database: Database) -> None:
    async def body() -> None:
        await asyncio.gather(mail("x"), mail("x"))  # here

    error = await failure(database, zart_durable("twice")(body))
    assert _is_duplicate(error, f" while the body waits at {at(body)};")


async def test_a_name_used_twice_by_tasks_of_the_body_is_told_with_the_line_in_the_task(database: Database) -> None:
    async def helper() -> str:
        return await mail("x")  # here

    @zart_durable("twice")
    async def twice() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(helper())
            group.create_task(helper())

    error = await failure(database, twice)
    assert error["type"] == "ExceptionGroup"
    assert f" at {at(helper)};" in error["causes"][0]


async def test_a_capture_and_a_step_of_one_name_are_told_too(database: Database) -> None:
    async def body() -> None:
        await mail("x")
        await zart.capture("mail-x", lambda: 1)  # here

    error = await failure(database, zart_durable("twice")(body))
    assert _is_duplicate(error, f" at {at(body)};")


# -- StepDiverged


async def test_an_operation_of_another_kind_is_told_with_both_kinds_and_its_line(database: Database) -> None:
    """The code changed between two deployments."""

    @zart_step("stop-here", retry="fixed(1, 1h)")
    async def stop_here() -> None:
        raise ValueError("not yet")

    @zart_durable("deployed")
    async def before() -> None:
        await zart.capture("mail-x", lambda: 1)
        await stop_here()

    async def body() -> None:
        await mail("x")  # here

    after = zart_durable("deployed")(body)
    async with Engine(database, [before]) as engine:
        await engine.start("order-7", before)
        await eventually(lambda: engine.connection.fetchval("select count(*) from zart.zart_attempts"))
    async with Engine(database, [after]) as engine:
        await engine.connection.execute("update zart.zart_queue set run_at = now()")
        error = (await engine.ended("order-7")).error
    assert error["type"] == "zart.errors.StepDiverged"
    assert error["message"] == (
        f"the journal has capture 'mail-x' where the code now has step 'mail-x' at {at(body)};"
        " give the changed operation a name of its own"
    )


# -- NotInBody


@pytest.mark.parametrize(
    ("misplace", "shown"),
    [
        (lambda: zart.capture("id", lambda: 1), "capture('id')"),
        (lambda: zart.now("then"), "now('then')"),
        (lambda: zart.sleep("nap", 1), "sleep('nap')"),
        (lambda: zart.wait_for_event("go"), "wait_for_event('go')"),
    ],
)
async def test_a_call_that_belongs_in_the_body_is_told_with_its_step_and_its_line(
    database: Database, misplace: Callable[[], Any], shown: str
) -> None:
    async def function() -> None:
        await misplace()  # here

    misplaced = zart_step("charge-{n}")(_with_n(function))

    @zart_durable("misplaces")
    async def misplaces() -> None:
        await misplaced(5)

    error = await failure(database, misplaces)
    assert error["message"].startswith(
        f"step 'charge-5' failed: zart.errors.NotInBody: {shown} was called inside step 'charge-5' at {at(function)};"
    )
    assert "in the body" in error["message"]


def _with_n(function: Callable[[], Any]) -> Callable[[int], Any]:
    async def with_n(n: int) -> None:
        await function()

    return with_n


# -- NotInExecution


@pytest.mark.parametrize(
    "call",
    [
        lambda: zart.capture("id", lambda: 1),
        lambda: zart.now("then"),
        lambda: zart.sleep("nap", 1),
        lambda: zart.wait_for_event("go"),
    ],
)
async def test_a_call_outside_an_execution_is_told_with_its_line(call: Callable[[], Any]) -> None:
    async def outside() -> None:
        await call()  # here

    with pytest.raises(NotInExecution) as caught:
        await outside()
    assert f"was called outside an execution at {at(outside)};" in str(caught.value)
    assert "@zart_durable" in str(caught.value)
    assert "zart.testing" in str(caught.value)


def test_context_outside_an_execution_is_told_with_its_line() -> None:
    def outside() -> None:
        zart.context()  # here

    with pytest.raises(NotInExecution) as caught:
        outside()
    assert str(caught.value).startswith(f"context() was called outside an execution at {at(outside)};")


async def test_a_call_after_the_end_of_its_turn_is_told_with_its_line(database: Database) -> None:
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        await mail("x")  # here

    @zart_durable("forgets")
    async def forgets() -> None:
        TASKS.append(asyncio.create_task(late()))

    async with Engine(database, [forgets]) as engine:
        await engine.start("order-7", forgets)
        await engine.ended("order-7")
        await eventually(lambda: not engine.loops[0].turns)
        ended.set()
        with pytest.raises(NotInExecution) as caught:
            await TASKS.pop()
    assert str(caught.value).startswith(f"execution 'order-7' has ended its turn, but is called at {at(late)};")
    assert "await everything" in str(caught.value)


async def test_the_names_in_these_errors_are_shortened(database: Database) -> None:
    with pytest.raises(NotInExecution) as caught:
        await zart.now("x" * 10_000)
    assert len(str(caught.value)) < 500


async def test_a_body_may_go_on_after_a_mistake(database: Database) -> None:
    @zart_durable("goes-on")
    async def goes_on() -> str:
        await mail("x")
        try:
            await mail("x")
        except zart.DuplicateStepName:
            return await mail("y")
        except StepFailed:
            return "a mistake of the program is no failure of the step"
        return "not told"

    async with Engine(database, [goes_on]) as engine:
        await engine.start("order-7", goes_on)
        assert (await engine.ended("order-7")).output == "y"
