"""Execution retries: another pass over the same run, which repeats only what failed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import crash, left_in_queue, operation, parked
from tests.support.steps import RAN, note
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.duration import RetryConfig
from zart.errors import NonRetryable, StepFailed
from zart.model import ExecutionStatus

PASSES: list[tuple[int, bool]] = []
BEGAN: list[float] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    PASSES.clear()
    BEGAN.clear()


@zart_step("third-time")
async def third_time() -> str:
    RAN["third-time"] += 1
    BEGAN.append(time.monotonic())
    if RAN["third-time"] < 3:
        raise ValueError(f"try {RAN['third-time']}")
    return "third"


def note_pass() -> None:
    """Keep what `context` tells of this pass; a pass over several turns is kept once."""
    told = (zart.context().current_attempt, zart.context().is_retry())
    if told not in PASSES:
        PASSES.append(told)


@zart_durable("again", retry="fixed(2, 300ms)")
async def again() -> list[Any]:
    note_pass()
    done = [await note("first"), await zart.capture("drawn", lambda: RAN.total())]
    return [*done, await third_time()]


async def _attempt(engine: Engine, number: int) -> bool:
    return (await engine.record("a")).attempt >= number


async def test_completed_checkpoints_replay_and_failed_steps_run_again(database: Database) -> None:
    async with Engine(database, [again]) as engine:
        await engine.start("a", again)
        record = await engine.ended("a")
        assert (record.status, record.output, record.attempt) == (ExecutionStatus.COMPLETED, ["first", 1, "third"], 2)
        assert RAN == {"first": 1, "third-time": 3}
        assert PASSES == [(0, False), (1, True), (2, True)]


async def test_failures_of_earlier_passes_are_kept_as_attempts(database: Database) -> None:
    async with Engine(database, [again]) as engine:
        await engine.start("a", again)
        await engine.ended("a")
        step = await operation(engine, "a", "third-time")
        assert step is not None
        assert (step.status, step.result, step.attempts) == ("completed", "third", 3)
        told = [(each.attempt, each.error["message"], each.due) for each in step.failed_attempts]
        assert told == [(1, "try 1", None), (2, "try 2", None)]


async def test_sleeps_and_events_that_are_over_are_not_waited_for_again(database: Database) -> None:
    @zart_durable("waits-first", max_retries=0, retry="fixed(2, 10ms)")
    async def waits_first() -> list[Any]:
        before = await zart.now("before")
        await zart.sleep("nap", "1.2s")
        event = await zart.wait_for_event("go")
        with_timeout = False
        try:
            await zart.wait_for_event("never", timeout="1.2s")
        except zart.EventTimeout:
            with_timeout = True
        await third_time()
        return [event, with_timeout, ((await zart.now("after")) - before).total_seconds()]

    async with Engine(database, [waits_first]) as engine:
        await engine.start("a", waits_first)
        await engine.offer("a", "go", "came")
        event, with_timeout, seconds = (await engine.ended("a")).output
        assert (event, with_timeout) == ("came", True)
        assert 2.4 <= seconds < 3.6
        assert RAN["third-time"] == 3


async def test_a_body_that_fails_by_itself_is_passed_over_again(database: Database) -> None:
    @zart_durable("unsure", retry="fixed(3, 10ms)")
    async def unsure() -> str:
        note_pass()
        await note("first")
        if zart.context().current_attempt < 2:
            raise ValueError("not yet")
        return "sure"

    async with Engine(database, [unsure]) as engine:
        await engine.start("a", unsure)
        assert (await engine.ended("a")).output == "sure"
        assert (PASSES, RAN["first"]) == ([(0, False), (1, True), (2, True)], 1)


async def test_delays_between_passes_are_kept_and_hold_no_slot(database: Database) -> None:
    @zart_durable("again-later", retry="fixed(2, 1.2s)")
    async def again_later() -> str:
        return await third_time()

    async with Engine(database, [again_later], config=WorkerConfig(lease_timeout="1h", park_grace="1h")) as engine:
        await engine.start("a", again_later)
        await eventually(lambda: _attempt(engine, 1))
        assert not any(loop.turns for loop in engine.loops)
        assert (await engine.ended("a")).output == "third"
        first, second, third = BEGAN
        assert 1.2 <= second - first < 2.2
        assert 1.2 <= third - second < 2.2


async def test_delays_and_count_survive_crashes(database: Database) -> None:
    @zart_durable("again-later", retry="fixed(2, 1.2s)")
    async def again_later() -> str:
        note_pass()
        return await third_time()

    async with Engine(database, [again_later]) as engine:
        await engine.start("a", again_later)
        for number in (1, 2):
            await eventually(lambda number=number: _attempt(engine, number))  # type: ignore[misc]
            await crash(engine)
        assert (await engine.ended("a")).output == "third"
        first, second, third = BEGAN
        assert 1.2 <= second - first < 2.2
        assert 1.2 <= third - second < 2.2
        assert [number for number, _ in PASSES] == [0, 1, 2]


async def test_a_crash_is_no_retry(database: Database) -> None:
    @zart_durable("lives", retry="fixed(1, 10ms)")
    async def lives() -> str:
        note_pass()
        RAN["body"] += 1
        if RAN["body"] < 3:
            await asyncio.Event().wait()
        return "lived"

    async with Engine(database, [lives]) as engine:
        await engine.start("a", lives)
        for number in (1, 2):
            await eventually(lambda number=number: RAN["body"] == number)  # type: ignore[misc]
            await crash(engine)
        record = await engine.ended("a")
        assert (record.output, record.attempt, PASSES) == ("lived", 0, [(0, False)])


async def test_retries_used_up_fail_with_the_last_error(database: Database) -> None:
    @zart_durable("never", max_retries=0, retry="fixed(2, 10ms)")
    async def never() -> None:
        note_pass()
        raise ValueError(f"pass {zart.context().current_attempt} of {zart.context().max_retries}")

    async with Engine(database, [never]) as engine:
        await engine.start("a", never)
        record = await engine.ended("a")
        assert (record.status, record.attempt, record.max_retries) == (ExecutionStatus.FAILED, 2, 2)
        assert (record.error["type"], record.error["message"]) == ("ValueError", "pass 2 of 2")
        assert [number for number, _ in PASSES] == [0, 1, 2]
        assert await left_in_queue(engine) == 0


async def test_max_retries_counts_passes_after_the_first(database: Database) -> None:
    @zart_durable("counted", max_retries=1)
    async def counted() -> None:
        note_pass()
        await third_time()

    async with Engine(database, [counted]) as engine:
        await engine.start("a", counted)
        record = await engine.ended("a")
        assert (record.status, record.error["message"]) == (
            ExecutionStatus.FAILED,
            "step 'third-time' failed: ValueError: try 2",
        )
        assert [number for number, _ in PASSES] == [0, 1]
        assert 0.8 < BEGAN[1] - BEGAN[0] < 2


@pytest.mark.parametrize(("error", "passes"), [(NonRetryable("never"), 1), (OSError("disk"), 1), (KeyError("k"), 3)])
async def test_only_errors_that_retry_on_chooses_are_passed_over_again(
    database: Database, error: Exception, passes: int
) -> None:
    @zart_durable("choosy", retry=RetryConfig.fixed(2, "10ms", retry_on=LookupError))
    async def choosy() -> None:
        note_pass()
        raise error

    async with Engine(database, [choosy]) as engine:
        await engine.start("a", choosy)
        assert (await engine.ended("a")).status == ExecutionStatus.FAILED
        assert len(PASSES) == passes


async def test_a_failure_that_the_body_handles_moves_too_and_its_step_runs_again(database: Database) -> None:
    """Also a handled failure is none that is completed: each pass tries its step anew."""

    @zart_durable("handles", retry="fixed(2, 10ms)")
    async def handles() -> list[str]:
        told = "third"
        try:
            await third_time()
        except StepFailed as failure:
            told = failure.detail
        if zart.context().current_attempt < 1:
            raise ValueError("not yet")
        return [told]

    async with Engine(database, [handles]) as engine:
        await engine.start("a", handles)
        assert (await engine.ended("a")).output == ["try 2"]


async def test_a_step_beside_the_failing_one_is_interrupted_and_runs_again(database: Database) -> None:
    """What runs beside a failure is cancelled with it; it leaves nothing, and begins anew in the next pass."""

    @zart_step("beside")
    async def beside() -> str:
        RAN["beside"] += 1
        if RAN["beside"] == 1:
            await asyncio.Event().wait()
        return "beside"

    @zart_step("fails-once")
    async def fails_once() -> str:
        await eventually(lambda: RAN["beside"])
        RAN["fails-once"] += 1
        if RAN["fails-once"] == 1:
            raise ValueError("once")
        return "fails once"

    @zart_durable("gathers", retry="fixed(2, 10ms)")
    async def gathers() -> list[str]:
        return list(await asyncio.gather(fails_once(), beside()))

    async with Engine(database, [gathers]) as engine:
        await engine.start("a", gathers)
        assert (await engine.ended("a")).output == ["fails once", "beside"]
        assert RAN == {"beside": 2, "fails-once": 2}


async def test_a_pass_that_is_parked_goes_on_as_the_same_attempt(database: Database) -> None:
    @zart_durable("parks-on-retry", retry="fixed(2, 10ms)")
    async def parks_on_retry() -> int:
        if zart.context().current_attempt == 0:
            raise ValueError("first")
        await zart.wait_for_event("go")
        return zart.context().current_attempt

    config = WorkerConfig(lease_timeout="1h", park_grace=0)
    async with Engine(database, [parks_on_retry], config=config) as engine:
        await engine.start("a", parks_on_retry)
        await eventually(lambda: _attempt(engine, 1))
        await parked(engine, "a")
        await engine.offer("a", "go", None)
        assert (await engine.ended("a")).output == 1
