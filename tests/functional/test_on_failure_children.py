"""Failure handlers and children: those of the failed body end, those of the handler go on."""

from __future__ import annotations

import asyncio
from typing import Any

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import left_in_queue
from tests.support.steps import GATES, RAN, hang, note
from zart import ChildFailed, Failure, zart_durable
from zart.config import WorkerConfig


async def fail() -> Any:
    raise ValueError("it broke")


async def running() -> Any:
    await hang("endless")


async def kind_of(failure: Failure) -> str:
    return await note(type(failure).__name__)


@zart_durable("nested")
async def nested(text: str) -> str:
    await zart.schedule(hang(text))
    return text


async def ended_as(engine: Engine, name: str) -> str:
    rows = await engine.connection.fetch(
        "select e.status from zart.zart_executions e where e.step_name = $1 order by e.id", name
    )
    return ",".join(str(row["status"]) for row in rows)


async def test_children_of_the_body_are_cancelled_and_those_of_the_handler_live_on(database: Database) -> None:
    async def body() -> Any:
        _handles = zart.schedule(hang("scheduled")), zart.schedule(nested("deep"))
        await zart.sleep("nap", "100ms")
        await eventually(lambda: RAN["scheduled"] and RAN["deep"])
        raise ValueError("it broke")

    async def handler(failure: Failure) -> str:
        first, second = await asyncio.gather(zart.schedule(hang("of-handler")), zart.schedule(note("another")))
        return first + await nested(second)

    durable = zart_durable("family", on_failure=handler)(body)
    async with Engine(database, [durable, hang, note, nested]) as engine:
        await engine.start("a", durable)
        await eventually(lambda: RAN["of-handler"])
        await eventually(lambda: _is(engine, "hang-scheduled", "4"))
        await eventually(lambda: _is(engine, "hang-deep", "4"))
        assert await ended_as(engine, "nested") == "4"
        GATES["of-handler"].set()
        GATES["another"].set()
        assert (await engine.ended("a")).output == "of-handleranother"
        assert await left_in_queue(engine) == 0


async def _is(engine: Engine, name: str, statuses: str) -> bool:
    return await ended_as(engine, name) == statuses


async def test_children_of_a_handler_that_fails_are_cancelled(database: Database) -> None:
    async def handler(failure: Failure) -> None:
        _handle = zart.schedule(hang("of-handler"))
        await zart.sleep("nap", "100ms")
        await eventually(lambda: RAN["of-handler"])
        raise LookupError("too")

    durable = zart_durable("childless", on_failure=handler)(fail)
    async with Engine(database, [durable, hang]) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).error["on_failure"]["message"] == "too"
        await eventually(lambda: _is(engine, "on_failure/hang-of-handler", "4"))
        await engine.all_ended()


async def test_children_of_a_handler_are_not_bound_by_the_parents_deadline(database: Database) -> None:
    @zart_durable("slow-child")
    async def slow_child() -> str:
        await zart.sleep("nap", "100ms")
        return await note("of-child")

    async def handler(failure: Failure) -> str:
        return await slow_child() + await zart.schedule(note("of-step"))

    durable = zart_durable("overdue", on_failure=handler, timeout="100ms")(running)
    async with Engine(database, [durable, slow_child, note]) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == "of-childof-step"


async def test_one_slot_is_enough_for_a_handler_and_its_children(database: Database) -> None:
    async def handler(failure: Failure) -> list[str]:
        handles = [zart.schedule(note(f"child-{number}")) for number in range(3)]
        return [outcome.unwrap() for outcome in await zart.wait(handles)]

    durable = zart_durable("one-slot", on_failure=handler)(fail)
    config = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1)
    async with Engine(database, [durable, note], config=config) as engine:
        await engine.start("a", durable)
        assert (await engine.ended("a")).output == ["child-0", "child-1", "child-2"]


async def test_a_child_handles_its_own_failure_before_its_parent_hears_of_it(database: Database) -> None:
    well = zart_durable("well", on_failure=kind_of)(fail)

    async def give_up(failure: Failure) -> None:
        await note("gave-up")

    ill = zart_durable("ill", on_failure=give_up)(fail)

    @zart_durable("parent")
    async def parent() -> list[str]:
        try:
            return [await well(), await ill()]
        except ChildFailed as failed:
            return [await well().named("again"), f"{failed.step}: {failed.detail}", failed.kind]

    async with Engine(database, [parent, well, ill]) as engine:
        await engine.start("a", parent)
        assert (await engine.ended("a")).output == ["BodyFailed", "ill: it broke", "body_failed"]
        assert RAN["gave-up"] == 1
