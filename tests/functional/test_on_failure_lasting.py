"""Failure handlers last as bodies do: over crashes, waits and deadlines."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import crash, has, operations, parked
from zart import DeadlineExceeded, Failure, NonRetryable, zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import EventTimeout
from zart.model import EventAnswer, ExecutionStatus
from zart.store import executions

RAN: collections.Counter[str] = collections.Counter()
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

PARKED = WorkerConfig(lease_timeout="1h", park_grace=0)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    GATES.clear()


@zart_step("note-{text}")
async def note(text: str) -> str:
    RAN[text] += 1
    return text


@zart_step("hang-{text}")
async def hang(text: str) -> str:
    RAN[text] += 1
    await GATES[text].wait()
    return text


async def fail() -> Any:
    await note("body")
    raise ValueError("it broke")


async def kind_of(failure: Failure) -> str:
    return await note(type(failure).__name__)


# -- crashes


async def test_a_crash_in_the_middle_resumes_it_and_its_steps_run_once(database: Database) -> None:
    async def handler(failure: Failure) -> str:
        await note("first")
        return await hang("second")

    durable = zart_durable("resumed", on_failure=handler)(fail)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        for times in (1, 2):
            await eventually(lambda times=times: RAN["second"] >= times)  # type: ignore[misc]
            await crash(engine)
        await eventually(lambda: RAN["second"] >= 3)
        GATES["second"].set()
        record = await engine.ended("a")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, "second")
        assert (RAN["body"], RAN["first"]) == (1, 1)


async def test_a_crash_before_the_failure_is_kept_replays_the_body(database: Database) -> None:
    async def body() -> Any:
        await note("body")
        await hang("last")
        raise ValueError("it broke")

    durable = zart_durable("replayed", on_failure=kind_of)(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        await eventually(lambda: RAN["last"])
        await crash(engine)
        await eventually(lambda: RAN["last"] >= 2)
        GATES["last"].set()
        assert (await engine.ended("a")).output == "BodyFailed"
        assert (RAN["body"], RAN["BodyFailed"]) == (1, 1)


async def test_lost_connections_change_nothing(database: Database) -> None:
    async def body() -> Any:
        await hang("before")
        raise ValueError("it broke")

    async def handler(failure: Failure) -> str:
        await note("between")
        return await hang("after")

    durable = zart_durable("cut", on_failure=handler)(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        for name in ("before", "after"):
            await eventually(lambda name=name: RAN[name] > 0)  # type: ignore[misc, arg-type]
            await engine.cut_connections()
            GATES[name].set()
        assert (await engine.ended("a")).output == "after"
        assert RAN["between"] == 1


async def test_a_handler_taken_out_of_the_code_leaves_the_failure(database: Database) -> None:
    async def handler(failure: Failure) -> str:
        await zart.wait_for_event("go")
        return "never"

    before = zart_durable("changed", on_failure=handler)(fail)
    after = zart_durable("changed")(fail)
    async with Engine(database, [before], config=PARKED) as engine:
        await engine.start("a", before)
        await parked(engine, "a")
    async with Engine(database, [after]) as engine:
        await engine.offer("a", "go", None)
        record = await engine.ended("a")
        assert (record.status, record.error["message"]) == (ExecutionStatus.FAILED, "it broke")
        assert "on_failure" not in record.error
        assert RAN["body"] == 1


async def test_input_that_fits_no_more_leaves_the_failure(database: Database) -> None:
    async def body(data: int) -> Any:
        raise ValueError("it broke")

    async def other(data: list[str]) -> None: ...

    async def handler(data: int, failure: Failure) -> None:
        await zart.wait_for_event("go")

    async def other_handler(data: list[str], failure: Failure) -> None:
        await note("never")

    before = zart_durable("changed", on_failure=handler)(body)
    after = zart_durable("changed", on_failure=other_handler)(other)
    async with Engine(database, [before], config=PARKED) as engine:
        await engine.start("a", before, 7)
        await parked(engine, "a")
    async with Engine(database, [after]) as engine:
        await engine.offer("a", "go", None)
        record = await engine.ended("a")
        assert (record.status, record.error["message"]) == (ExecutionStatus.FAILED, "it broke")
        assert record.error["on_failure"]["kind"] == "input_refused"


async def test_a_restart_begins_with_the_body_again(database: Database) -> None:
    async def body() -> str:
        if RAN["body"] == 0:
            await fail()
        return await note("well")

    durable = zart_durable("restarted", on_failure=kind_of)(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == "BodyFailed"
        await executions.restart(engine.connection, engine.schema, engine.bucket("a"), "a")
        record = await engine.ended("a")
        assert (record.run, record.output) == (2, "well")
        assert await operations(engine, "a") == ["note-well"]


# -- waits


async def test_it_sleeps_waits_and_keeps_values_as_a_body_does(database: Database) -> None:
    async def handler(failure: Failure) -> list[Any]:
        drawn = await zart.capture("drawn", lambda: RAN.total())
        before = await zart.now("before")
        await zart.sleep("nap", "300ms")
        payload = await zart.wait_for_event("go")
        return [drawn, payload, ((await zart.now("after")) - before).total_seconds() >= 0.3]

    durable = zart_durable("waits", on_failure=handler)(fail)
    async with Engine(database, [durable], config=PARKED) as engine:
        await engine.start("a", durable)
        await eventually(lambda: has(engine, "a", "on_failure/go"))
        await parked(engine, "a")
        assert (await engine.record("a")).error["message"] == "it broke"
        await engine.offer("a", "go", "payload")
        assert (await engine.ended("a")).output == [1, "payload", True]
        assert await operations(engine, "a") == [
            "go",
            "note-body",
            "on_failure",
            *(f"on_failure/{name}" for name in ("after", "before", "drawn", "nap")),
        ]


async def test_an_event_that_the_body_got_is_there_for_the_handler(database: Database) -> None:
    async def body() -> Any:
        await zart.wait_for_event("go")
        await fail()

    async def handler(failure: Failure) -> Any:
        return await zart.wait_for_event("go")

    durable = zart_durable("same-event", on_failure=handler)(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        await engine.offer("a", "go", 7)
        assert (await engine.ended("a")).output == 7


async def test_the_handler_waits_by_its_own_timeout_for_an_event_that_the_body_waited_for(database: Database) -> None:
    async def body() -> Any:
        await zart.wait_for_event("go", timeout="1h")

    async def handler(failure: Failure) -> str:
        try:
            return str(await zart.wait_for_event("go", timeout="20ms"))
        except EventTimeout:
            return "too late"

    durable = zart_durable("own-timeout", on_failure=handler, timeout="200ms")(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == "too late"
        assert await engine.offer("a", "go", 7) == EventAnswer.FINISHED


async def test_its_steps_have_transactions_of_their_own(database: Database) -> None:
    @zart_step("write", retry="fixed(1, 1ms)")
    async def write(text: str) -> str:
        RAN[text] += 1
        await (await zart.trx()).execute("insert into notes values ($1)", text)
        if RAN[text] == 1:
            raise ValueError("once")
        return text

    async def body() -> Any:
        await write("body")
        await fail()

    async def handler(failure: Failure) -> str:
        return await write("handler")

    durable = zart_durable("writes", on_failure=handler)(body)
    async with Engine(database, [durable]) as engine:
        await engine.connection.execute("create table notes(text text)")
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == "handler"
        rows = await engine.connection.fetch("select text from notes order by text")
        assert [row["text"] for row in rows] == ["body", "handler"]
        assert await has(engine, "a", "on_failure/write", "completed")


async def test_cancelling_it_is_cancelling_the_execution(database: Database) -> None:
    async def handler(failure: Failure) -> str:
        return await hang("endless")

    durable = zart_durable("cancelled", on_failure=handler)(fail)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        await eventually(lambda: RAN["endless"])
        await executions.cancel(engine.connection, engine.schema, engine.bucket("a"), "a")
        assert (await engine.ended("a")).status == ExecutionStatus.CANCELLED
        await eventually(lambda: not any(loop.turns for loop in engine.loops))


async def test_a_handler_that_kills_its_process_is_quarantined(database: Database) -> None:
    async def handler(failure: Failure) -> None:
        await zart.wait_for_event("go")

    durable = zart_durable("poison", on_failure=handler)(fail)
    async with Engine(database, [durable], config=PARKED) as engine:
        await engine.start("a", durable)
        await parked(engine, "a")
        await engine.connection.execute("update zart.zart_queue set crashes = 99")
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).status == ExecutionStatus.QUARANTINED


async def test_retries_that_the_execution_has_left_do_not_apply_to_it(database: Database) -> None:
    async def hopeless() -> Any:
        raise NonRetryable("it broke")

    async def handler(failure: Failure) -> None:
        await note("handler")
        raise ValueError("the handler broke")

    durable = zart_durable("retried", on_failure=handler, retry="fixed(2, 1ms)")(hopeless)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        record = await engine.ended("a")
        assert (record.attempt, record.error["message"]) == (0, "it broke")
        assert RAN == {"handler": 1}


# -- deadlines


async def sleeping() -> Any:
    await zart.sleep("nap", "1h")


async def running() -> Any:
    await hang("endless")


async def busy() -> Any:
    RAN["busy"] += 1
    await GATES["busy"].wait()


@pytest.mark.parametrize("body", [sleeping, running, busy])
async def test_it_runs_after_the_deadline_and_is_not_bound_by_it(
    database: Database, body: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    async def handler(failure: Failure) -> str:
        assert isinstance(failure, DeadlineExceeded)
        await zart.sleep("nap", "1s")
        return await kind_of(failure)

    durable = zart_durable("hurried", on_failure=handler, timeout="300ms")(body)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        record = await engine.ended("a")
        assert (record.status, record.output) == (ExecutionStatus.COMPLETED, "DeadlineExceeded")
        assert RAN["DeadlineExceeded"] == 1


async def test_it_runs_when_the_deadline_passes_in_the_queue(database: Database) -> None:
    durable = zart_durable("queued", on_failure=kind_of, timeout="50ms")(fail)
    async with Engine(database, [durable]) as engine:
        for loop in engine.loops:
            loop.stop()
        await asyncio.gather(*engine.tasks)
        await engine.start("a", durable)
        await asyncio.sleep(0.1)
    async with Engine(database, [durable]) as engine:
        assert (await engine.ended("a")).output == "DeadlineExceeded"
        assert RAN == {"DeadlineExceeded": 1}


async def test_a_failed_body_that_goes_on_can_do_nothing_any_more(database: Database) -> None:
    async def stubborn() -> str:
        try:
            await hang("endless")
        except BaseException:
            with contextlib.suppress(BaseException):
                await note("late")
            RAN["refused"] += 1
        return "late"

    async def handler(failure: Failure) -> str:
        await zart.sleep("nap", "300ms")
        return await kind_of(failure)

    durable = zart_durable("stubborn", on_failure=handler, timeout="1s")(stubborn)
    async with Engine(database, [durable]) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == "DeadlineExceeded"
        assert (RAN["late"], RAN["refused"], RAN["DeadlineExceeded"]) == (0, 1, 1)
