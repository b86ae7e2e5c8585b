"""Bodies and asyncio: what a body may do with tasks, timeouts and ordinary awaits."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import has, is_waiting, operations, parked
from tests.support.modes import Mode
from tests.support.steps import GATES, PARKED, RAN, note
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import NotInExecution, StepFailed
from zart.model import ExecutionStatus

TASKS: list[asyncio.Task[Any]] = []
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@pytest.fixture(autouse=True)
def _forget() -> None:
    TASKS.clear()


@zart_step("fails")
async def fails() -> str:
    raise ValueError("on purpose")


async def event(name: str) -> str:
    return str(await zart.wait_for_event(name))


# -- tasks over steps and waits: each gives the same result in every mode, parked or not


async def gathers() -> list[Any]:
    return list(await asyncio.gather(note("step"), zart.sleep("nap", "1200ms"), event("go")))


async def gathers_with_exceptions() -> list[Any]:
    step, failed, came = await asyncio.gather(note("step"), fails(), event("go"), return_exceptions=True)
    assert isinstance(failed, StepFailed)
    return [step, failed.detail, came]


async def groups() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(note("step")), group.create_task(event("go"))]
        group.create_task(zart.sleep("nap", "1200ms"))
    return [task.result() for task in tasks]


async def nests() -> list[Any]:
    async def inner() -> list[Any]:
        return list(await asyncio.gather(note("inner"), event("go")))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(inner())
    return [*task.result(), await asyncio.create_task(note("outer"))]


async def makes_tasks() -> list[Any]:
    waiting, step = asyncio.create_task(event("go")), asyncio.create_task(note("step"))
    return [await step, await waiting]


async def takes_as_completed() -> list[Any]:
    return sorted([await each for each in asyncio.as_completed([note("step"), event("go"), event("go-2")])])


async def waits_for_all() -> list[Any]:
    tasks = [asyncio.create_task(note("step")), asyncio.create_task(event("go"))]
    done, pending = await asyncio.wait(tasks)
    assert not pending
    return [task.result() for task in tasks if task in done]


async def waits_for_the_first() -> list[Any]:
    slow, quick = asyncio.create_task(event("never")), asyncio.create_task(event("go"))
    done, pending = await asyncio.wait([slow, quick], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [task.result() for task in done]


async def waits_with_a_timeout() -> list[Any]:
    tasks = [asyncio.create_task(note("step")), asyncio.create_task(event("go"))]
    await asyncio.wait(tasks, timeout=30)
    return [task.result() for task in tasks]


async def waits_for() -> list[Any]:
    return [await asyncio.wait_for(note("step"), 30), await asyncio.wait_for(event("go"), 30)]


async def shields() -> list[Any]:
    return [await asyncio.shield(note("step")), await asyncio.shield(event("go"))]


async def limits() -> list[Any]:
    async with asyncio.timeout(30):
        return [await note("step"), await event("go")]


SHAPES: dict[str, tuple[Callable[[], Awaitable[list[Any]]], list[Any]]] = {
    "gather": (gathers, ["step", None, "went"]),
    "gather, return_exceptions": (gathers_with_exceptions, ["step", "on purpose", "went"]),
    "TaskGroup": (groups, ["step", "went"]),
    "nested": (nests, ["inner", "went", "outer"]),
    "create_task": (makes_tasks, ["step", "went"]),
    "as_completed": (takes_as_completed, ["step", "went", "went"]),
    "wait": (waits_for_all, ["step", "went"]),
    "wait, FIRST_COMPLETED": (waits_for_the_first, ["went"]),
    "wait, timeout": (waits_with_a_timeout, ["step", "went"]),
    "wait_for": (waits_for, ["step", "went"]),
    "shield": (shields, ["step", "went"]),
    "asyncio.timeout": (limits, ["step", "went"]),
}


@pytest.mark.parametrize("config", [WorkerConfig(lease_timeout="1h"), PARKED], ids=["grace", "no grace"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_steps_and_waits_in_tasks_give_their_results_and_no_step_runs_twice(
    database: Database, shape: str, config: WorkerConfig
) -> None:
    body, expected = SHAPES[shape]

    @zart_durable("combines")
    async def combines() -> list[Any]:
        return await body()

    async with Engine(database, [combines], config=config) as engine:
        await engine.start("a", combines)
        await eventually(lambda: has(engine, "a", "go", "waiting"))
        await engine.offer("a", "go-2", "went")
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a", within=10)).output == expected
        assert set(RAN.values()) <= {1}


PARKING = ["gather", "gather, return_exceptions", "TaskGroup", "nested", "create_task", "wait", "wait, FIRST_COMPLETED"]


@pytest.mark.parametrize("shape", PARKING)
async def test_a_body_whose_tasks_all_wait_is_parked(database: Database, shape: str) -> None:
    body, expected = SHAPES[shape]

    @zart_durable("combines")
    async def combines() -> list[Any]:
        return await body()

    async with Engine(database, [combines], config=PARKED) as engine:
        await engine.start("a", combines)
        await eventually(lambda: has(engine, "a", "go", "waiting"))
        await parked(engine, "a", within=5)
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a", within=10)).output == expected


# -- tasks that are left over


async def test_a_step_that_was_not_awaited_is_awaited_at_the_end(database: Database) -> None:
    @zart_durable("leaves")
    async def leaves() -> str:
        TASKS.append(asyncio.create_task(note("left over")))
        return "done"

    async with Engine(database, [leaves]) as engine:
        await engine.start("a", leaves)
        assert (await engine.ended("a")).output == "done"
        assert (RAN["left over"], await operations(engine, "a")) == (1, ["note-left over"])


async def test_a_wait_that_was_not_awaited_is_awaited_at_the_end(database: Database) -> None:
    @zart_durable("leaves")
    async def leaves() -> str:
        TASKS.append(asyncio.create_task(event("go")))
        return "done"

    async with Engine(database, [leaves], config=PARKED) as engine:
        await engine.start("a", leaves)
        await parked(engine, "a")
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).output == "done"


async def test_a_failure_of_a_step_that_was_not_awaited_fails_the_execution(database: Database) -> None:
    @zart_durable("leaves")
    async def leaves() -> str:
        TASKS.append(asyncio.create_task(fails()))
        return "done"

    async with Engine(database, [leaves]) as engine:
        await engine.start("a", leaves)
        record = await engine.ended("a")
        assert (record.status, record.error["step"]) == (ExecutionStatus.FAILED, "fails")


async def test_steps_that_run_when_the_body_fails_are_cancelled(database: Database) -> None:
    @zart_step("endless")
    async def endless() -> None:
        RAN["endless"] += 1
        try:
            await asyncio.Event().wait()
        finally:
            RAN["interrupted"] += 1

    @zart_durable("fails-first")
    async def fails_first() -> None:
        TASKS.append(asyncio.create_task(endless()))
        await eventually(lambda: RAN["endless"])
        raise ValueError("first")

    async with Engine(database, [fails_first]) as engine:
        await engine.start("a", fails_first)
        record = await engine.ended("a", within=5)
        assert (record.error["message"], RAN["interrupted"]) == ("first", 1)
        assert await operations(engine, "a") == []


async def test_a_task_that_outlives_its_turn_gets_not_in_execution(database: Database) -> None:
    async def later() -> str:
        await GATES["ended"].wait()
        try:
            return await note("too late")
        except NotInExecution as error:
            return str(error)

    @zart_durable("leaves")
    async def leaves() -> str:
        TASKS.append(asyncio.create_task(later()))
        return "done"

    async with Engine(database, [leaves]) as engine:
        await engine.start("a", leaves)
        assert (await engine.ended("a")).output == "done"
        GATES["ended"].set()
        assert "execution 'a' has ended its turn" in await TASKS[0]
        assert (RAN["too late"], await operations(engine, "a")) == (0, [])


async def test_an_ordinary_task_that_is_left_over_keeps_nothing_from_ending(database: Database) -> None:
    @zart_durable("leaves")
    async def leaves() -> str:
        TASKS.append(asyncio.create_task(asyncio.sleep(0.5)))
        return "done"

    async with Engine(database, [leaves]) as engine:
        await engine.start("a", leaves)
        assert (await engine.ended("a", within=5)).output == "done"
        await asyncio.wait(TASKS)


# -- ordinary awaits: they hold the slot, and are no checkpoints


async def awaits_beside() -> None:
    await asyncio.sleep(1.5)
    await note("beside")


async def in_a_task_of_its_own() -> None:
    await asyncio.create_task(awaits_beside())


async def behind_a_semaphore() -> None:
    semaphore = asyncio.Semaphore(1)

    async def hold() -> None:
        async with semaphore:
            await asyncio.sleep(1.5)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    async with semaphore:
        await note("beside")
    await holder


async def behind_a_queue() -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().call_later(1.5, queue.put_nowait, "beside")
    await note(await queue.get())


async def behind_a_thread() -> None:
    def wait() -> str:
        threading.Event().wait(1.5)
        return "beside"

    await note(await asyncio.to_thread(wait))


@pytest.mark.parametrize(
    "beside", [awaits_beside, in_a_task_of_its_own, behind_a_semaphore, behind_a_queue, behind_a_thread]
)
@pytest.mark.parametrize("config", [WorkerConfig(lease_timeout="1h"), PARKED], ids=["grace", "no grace"])
async def test_a_body_in_an_ordinary_await_beside_a_wait_is_not_parked(
    database: Database, beside: Callable[[], Awaitable[None]], config: WorkerConfig
) -> None:
    """What comes after the ordinary await happens, though the event never does."""

    @zart_durable("busy")
    async def busy() -> None:
        await asyncio.gather(event("never"), beside())

    async with Engine(database, [busy], config=config) as engine:
        await engine.start("a", busy)
        await eventually(lambda: has(engine, "a", "note-beside"), within=8)
        await eventually(lambda: is_waiting(engine, "a"), within=8)
        assert RAN["beside"] == 1


async def test_an_ordinary_await_in_the_body_itself_beside_a_waiting_task_is_not_parked(database: Database) -> None:
    @zart_durable("busy")
    async def busy() -> str:
        TASKS.append(task := asyncio.create_task(event("never")))
        await awaits_beside()
        task.cancel()
        return "done"

    async with Engine(database, [busy], config=PARKED) as engine:
        await engine.start("a", busy)
        await eventually(lambda: has(engine, "a", "note-beside"), within=8)
        if engine.mode is Mode.AS_IS:
            assert (await engine.ended("a", within=8)).output == "done"


# -- asyncio's own timeouts follow this process's clock


async def test_a_timeout_shorter_than_the_grace_interrupts_a_wait_and_uses_its_name_up(
    database: Database, mode: Mode
) -> None:
    if mode is not Mode.AS_IS:
        pytest.skip("there is no grace")

    @zart_durable("impatient")
    async def impatient() -> list[str]:
        told = []
        try:
            async with asyncio.timeout(0.2):
                await event("go")
        except TimeoutError:
            told.append("timed out")
        try:
            await event("go")
        except zart.DuplicateStepName:
            told.append("used up")
        return [*told, await event("other")]

    async with Engine(database, [impatient]) as engine:
        await engine.start("a", impatient)
        await eventually(lambda: has(engine, "a", "other"))
        await engine.offer("a", "other", "went")
        assert (await engine.ended("a")).output == ["timed out", "used up", "went"]


async def test_a_timeout_longer_than_the_grace_begins_anew_with_each_pass(database: Database) -> None:
    """The body is parked before it fires: so it never does, and the event comes."""

    @zart_durable("patient")
    async def patient() -> str:
        try:
            async with asyncio.timeout(0.5):
                return await event("go")
        except TimeoutError:
            return "timed out"

    async with Engine(database, [patient], config=PARKED) as engine:
        await engine.start("a", patient)
        await parked(engine, "a", within=0.5)
        await asyncio.sleep(0.6)
        assert await is_waiting(engine, "a")
        await engine.offer("a", "go", "went")
        assert (await engine.ended("a")).output == "went"


async def test_a_timeout_around_a_step_interrupts_it_and_leaves_no_checkpoint(database: Database) -> None:
    @zart_step("endless")
    async def endless() -> None:
        await asyncio.Event().wait()

    @zart_durable("impatient")
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.2):
                await endless()
        except TimeoutError:
            return "timed out"
        return "ended"

    async with Engine(database, [impatient]) as engine:
        await engine.start("a", impatient)
        assert (await engine.ended("a")).output == "timed out"
        assert await operations(engine, "a") == []


# -- contextvars of the user


async def test_context_variables_reach_tasks_and_threads_and_steps(database: Database) -> None:
    def tenant() -> str:
        return f"{TENANT.get()} of {zart.context().execution_id}"

    @zart_step("tells")
    async def tells() -> str:
        return tenant()

    @zart_step("tells-in-a-thread")
    def tells_in_a_thread() -> str:
        return tenant()

    async def helper() -> str:
        return tenant()

    @zart_durable("rents")
    async def rents() -> list[str]:
        TENANT.set("ann")
        return [
            tenant(),
            await asyncio.create_task(helper()),
            await asyncio.to_thread(tenant),
            await tells(),
            await tells_in_a_thread(),
        ]

    async with Engine(database, [rents]) as engine:
        await engine.start("a", rents)
        assert (await engine.ended("a")).output == ["ann of a"] * 5
        assert TENANT.get() == "nobody"


async def test_the_execution_is_not_known_in_an_executor_of_asyncio(database: Database) -> None:
    def asks() -> str:
        try:
            return zart.context().execution_id
        except NotInExecution:
            return "not in execution"

    @zart_durable("asks")
    async def asks_there() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, asks)

    async with Engine(database, [asks_there]) as engine:
        await engine.start("a", asks_there)
        assert (await engine.ended("a")).output == "not in execution"
