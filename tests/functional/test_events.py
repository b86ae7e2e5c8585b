"""Events, from the waiter's side."""

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
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.errors import DuplicateStepName, EventTimeout, InvalidArgument, NotInBody, NotInExecution, StepFailed
from zart.model import EventAnswer, ExecutionStatus


@dataclass
class Approval:
    by: str
    amount: int = 0


@zart_durable("waits")
async def waits() -> str:
    return (await zart.wait_for_event("approved", Approval)).by


@zart_durable("waits-a-while")
async def waits_a_while(seconds: float) -> str:
    try:
        return (await zart.wait_for_event("approved", Approval, timeout=seconds)).by
    except EventTimeout as error:
        return str(error)


async def _is_waiting(engine: Engine, execution_id: str) -> bool:
    return (await engine.record(execution_id)).status == ExecutionStatus.WAITING


async def test_a_waiting_body_gets_the_event(database: Database) -> None:
    async with Engine(database, [waits]) as engine:
        await engine.start("a", waits)
        await eventually(lambda: engine.history("a"))
        assert await engine.offer("a", "approved", {"by": "ann"}) is EventAnswer.ACCEPTED
        assert (await engine.ended("a", within=3)).output == "ann"


async def test_a_parked_body_gets_the_event(database: Database) -> None:
    config = WorkerConfig(lease_timeout="1h", park_grace=0)
    async with Engine(database, [waits], config=config) as engine:
        await engine.start("a", waits)
        await eventually(lambda: _is_waiting(engine, "a"))
        await eventually(lambda: not any(loop.turns for loop in engine.loops))
        await engine.offer("a", "approved", {"by": "ann"})
        assert (await engine.ended("a", within=3)).output == "ann"


async def test_an_event_that_came_before_the_wait_is_kept(database: Database) -> None:
    @zart_durable("waits-late")
    async def waits_late() -> str:
        await zart.sleep("first", "0.3s")
        return (await zart.wait_for_event("approved", Approval)).by

    async with Engine(database, [waits_late]) as engine:
        await engine.start("a", waits_late)
        await eventually(lambda: engine.history("a"))
        await engine.offer("a", "approved", {"by": "ann"})
        assert (await engine.ended("a", within=3)).output == "ann"


async def test_an_event_offered_before_any_worker_ran_is_kept(database: Database) -> None:
    async with Engine(database, [waits]) as engine:
        await engine.start("z", waits)
        await engine.offer("z", "approved", {"by": "ann"})
        await engine.offer("z", "approved", {"by": "ann"})
        assert (await engine.ended("z", within=3)).output == "ann"


async def test_the_first_event_of_a_name_wins_and_later_senders_are_told(database: Database) -> None:
    @zart_durable("waits-later")
    async def waits_later() -> str:
        await zart.wait_for_event("go")
        return (await zart.wait_for_event("approved", Approval)).by

    async with Engine(database, [waits_later]) as engine:
        await engine.start("a", waits_later)
        assert await engine.offer("a", "approved", {"by": "ann"}) is EventAnswer.ACCEPTED
        assert await engine.offer("a", "approved", {"by": "bob"}) is EventAnswer.ALREADY_OFFERED
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).output == "ann"
        assert await engine.offer("a", "more", None) is EventAnswer.FINISHED


async def test_a_wait_that_takes_too_long_times_out(database: Database) -> None:
    async with Engine(database, [waits_a_while]) as engine:
        await engine.start("a", waits_a_while, 0.3)
        assert (await engine.ended("a", within=5)).output == "event 'approved' of execution 'a' did not come in time"


async def test_a_timeout_is_the_outcome_of_the_wait_for_ever(database: Database) -> None:
    """An event that comes after it changes nothing, also for later passes."""

    @zart_durable("times-out-first")
    async def times_out_first() -> list[str]:
        told = "came"
        try:
            await zart.wait_for_event("approved", timeout=0.2)
        except EventTimeout:
            told = "timed out"
        await zart.wait_for_event("go")
        return [told]

    async with Engine(database, [times_out_first]) as engine:
        await engine.start("a", times_out_first)
        await eventually(lambda: _status_of(engine, "a", "approved", "timed_out"))
        assert await engine.offer("a", "approved", None) is EventAnswer.ALREADY_OFFERED
        for loop in engine.loops:
            await engine.take_over(loop)
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).output == ["timed out"]


async def test_a_timeout_counts_from_the_first_pass_over_a_crash(database: Database) -> None:
    async with Engine(database, [waits_a_while]) as engine:
        await engine.start("a", waits_a_while, 2)
        await eventually(lambda: engine.history("a"))
        for loop in engine.loops:
            await engine.take_over(loop)
        record = await engine.ended("a", within=10)
        assert record.started_at is not None
        assert record.finished_at is not None
        assert timedelta(seconds=1.9) < record.finished_at - record.started_at < timedelta(seconds=3)


async def test_a_timeout_of_zero_only_looks(database: Database) -> None:
    async with Engine(database, [waits_a_while]) as engine:
        await engine.start("none", waits_a_while, 0)
        assert "did not come in time" in (await engine.ended("none")).output

    async with Engine(database, []) as idle:
        idle.lanes |= engine.lanes
        await idle.start("one", waits_a_while, 0)
        await idle.offer("one", "approved", {"by": "ann"})
    async with Engine(database, [waits_a_while]) as engine:
        assert (await engine.ended("one")).output == "ann"


async def test_events_of_several_names_are_waited_for_in_parallel(database: Database) -> None:
    @zart_durable("waits-for-three")
    async def waits_for_three() -> list[Any]:
        names = ["a", "b", "c"]
        return await asyncio.gather(*(zart.wait_for_event(name, int) for name in names))

    async with Engine(database, [waits_for_three]) as engine:
        await engine.start("x", waits_for_three)
        for number, name in enumerate(["c", "a", "b"]):
            await engine.offer("x", name, number)
            await asyncio.sleep(0.05)
        assert (await engine.ended("x", within=5)).output == [1, 2, 0]


async def test_an_event_beside_others_that_are_not_waited_for_is_not_lost(database: Database) -> None:
    """Each wake-up is counted; those of events that nobody awaits yet hide none of the awaited ones."""

    @zart_durable("waits-in-order")
    async def waits_in_order() -> list[int]:
        return [await zart.wait_for_event(f"event-{n}", int) for n in range(5)]

    async with Engine(database, [waits_in_order]) as engine:
        await engine.start("x", waits_in_order)
        await eventually(lambda: engine.history("x"))
        for n in reversed(range(5)):
            await engine.offer("x", f"event-{n}", n)
        assert (await engine.ended("x", within=5)).output == [0, 1, 2, 3, 4]


async def test_an_event_in_an_open_transaction_comes_when_it_commits(database: Database) -> None:
    async with Engine(database, [waits_a_while]) as engine:
        await engine.start("a", waits_a_while, 0.4)
        await eventually(lambda: engine.history("a"))
        sender = await database.connect()
        async with sender.transaction():
            await engine.offer("a", "approved", {"by": "ann"}, sender)
            await asyncio.sleep(0.8)  # the timeout comes meanwhile, and has to wait for who was first
            assert not (await engine.record("a")).status.is_terminal
        await sender.close()
        assert (await engine.ended("a", within=5)).output == "ann"


async def test_events_have_their_own_names(database: Database) -> None:
    @zart_step("approved")
    async def approve() -> int:
        return 1

    @zart_durable("same-names")
    async def same_names() -> int:
        return await approve() + await zart.wait_for_event("approved", int)

    async with Engine(database, [same_names]) as engine:
        await engine.start("a", same_names)
        await engine.offer("a", "approved", 2)
        assert (await engine.ended("a")).output == 3


async def test_an_event_is_waited_for_once_per_run(database: Database) -> None:
    @zart_durable("waits-twice")
    async def waits_twice() -> str:
        await zart.wait_for_event("approved")
        try:
            await zart.wait_for_event("approved")
        except DuplicateStepName as error:
            return str(error)
        return "again"

    async with Engine(database, [waits_twice]) as engine:
        await engine.start("a", waits_twice)
        await engine.offer("a", "approved", None)
        assert "waits twice for the event 'approved'" in (await engine.ended("a")).output


async def test_a_payload_that_does_not_fit_fails_the_wait_alike_on_every_pass(database: Database) -> None:
    told: list[str] = []

    @zart_durable("picky")
    async def picky() -> str:
        try:
            await zart.wait_for_event("approved", Approval)
        except StepFailed as error:
            told.append(str(error))
        await zart.sleep("later", 0.1)
        return told[-1]

    async with Engine(database, [picky]) as engine:
        await engine.start("a", picky)
        await engine.offer("a", "approved", {"by": 3})
        text = (await engine.ended("a")).output
        assert text.startswith("payload of event 'approved' of execution 'a' at $.by")
        assert set(told) == {text}


async def test_a_payload_without_a_type_comes_as_plain_json(database: Database) -> None:
    @zart_durable("takes-any")
    async def takes_any() -> Any:
        return await zart.wait_for_event("x")

    async with Engine(database, [takes_any]) as engine:
        await engine.start("a", takes_any)
        await engine.offer("a", "x", {"list": [1, None, 2.5], "text": "ä"})
        assert (await engine.ended("a")).output == {"list": [1, None, 2.5], "text": "ä"}


async def test_the_history_tells_since_when_an_event_is_waited_for_and_what_came(database: Database) -> None:
    async with Engine(database, [waits_a_while]) as engine:
        await engine.start("a", waits_a_while, 60)
        await eventually(lambda: engine.history("a"))
        [step] = await engine.history("a")
        assert (step.name, step.kind, step.status, step.finished_at) == ("approved", "event", "waiting", None)
        assert step.due is not None
        await engine.offer("a", "approved", {"by": "ann"})
        await engine.ended("a")
        [step] = await engine.history("a")
        assert (step.kind, step.status, step.result) == ("event", "completed", {"by": "ann"})
        assert step.started_at is not None
        assert step.finished_at is not None
        assert step.started_at <= step.finished_at


@pytest.mark.parametrize("name", ["", "x" * 10_000, "nul\0", 3])
async def test_a_name_that_cannot_be_used_is_refused(database: Database, name: Any) -> None:
    @zart_durable("refused")
    async def refused() -> str:
        try:
            await zart.wait_for_event(name)
        except InvalidArgument as error:
            return str(error)[:100]
        return "waited"

    async with Engine(database, [refused]) as engine:
        await engine.start("a", refused)
        assert "event" in (await engine.ended("a")).output
        assert await engine.history("a") == []


async def test_a_wait_inside_a_step_is_refused(database: Database) -> None:
    @zart_step("waiting")
    async def waiting() -> str:
        try:
            await zart.wait_for_event("x")
        except NotInBody as error:
            return str(error)
        return "waited"

    @zart_durable("has-waiting")
    async def has_waiting() -> str:
        return await waiting()

    async with Engine(database, [has_waiting]) as engine:
        await engine.start("a", has_waiting)
        assert "inside step 'waiting'" in (await engine.ended("a")).output


async def test_a_wait_outside_an_execution_is_refused() -> None:
    with pytest.raises(NotInExecution, match=r"wait_for_event\('x'\)"):
        await zart.wait_for_event("x")


async def _status_of(engine: Engine, execution_id: str, name: str, status: str) -> bool:
    return any((step.name, step.status) == (name, status) for step in await engine.history(execution_id))
