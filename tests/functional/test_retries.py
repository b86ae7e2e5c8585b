"""Retries of steps: they go by what is stored, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import collections
import time
from datetime import timedelta
from typing import Any

import pytest

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from tests.support.facts import crash, has, operation, parked
from tests.support.modes import Mode
from tests.support.steps import GATES
from zart import zart_durable, zart_step
from zart.config import WorkerConfig
from zart.duration import RetryConfig
from zart.errors import NonRetryable, RetryExhausted, StepFailed, StepTimedOut
from zart.model import ExecutionStatus

TRIES: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
ATTEMPTS: list[tuple[int, bool]] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    TRIES.clear()
    ATTEMPTS.clear()


def begin_try(name: str) -> int:
    """Note that a try begins; gives back how many there were before it."""
    TRIES[name].append(time.monotonic())
    ATTEMPTS.append((zart.context().current_attempt, zart.context().is_retry()))
    return len(TRIES[name]) - 1


@zart_step("flaky", retry="fixed(2, 1.2s)")
async def flaky() -> str:
    if (number := begin_try("flaky")) < 2:
        raise ValueError(f"try {number}")
    return f"try {number}"


@zart_durable("relies-on-flaky")
async def relies_on_flaky() -> str:
    return await flaky()


@zart_step("hopeless", retry="fixed(2, 100ms)")
async def hopeless() -> str:
    raise ValueError(f"try {begin_try('hopeless')}")


@zart_durable("relies-on-hopeless")
async def relies_on_hopeless() -> list[Any]:
    try:
        return [await hopeless()]
    except RetryExhausted as error:
        return [error.attempts, error.last_error]


async def _failed_tries(engine: Engine, name: str, count: int) -> bool:
    step = await operation(engine, "a", name)
    return step is not None and len(step.failed_attempts) >= count


async def crash_for_good(engine: Engine) -> None:
    """All workers die, and what they ran has stopped."""
    dead = {loop.place.worker_id for loop in engine.loops}
    await crash(engine)
    await eventually(lambda: all(loop.place.ready and loop.place.worker_id not in dead for loop in engine.loops))
    await eventually(lambda: not any(loop.place.previous_id for loop in engine.loops))


# -- what is stored


async def test_each_failed_try_is_kept_with_its_number_its_error_and_when_the_next_is_due(database: Database) -> None:
    async with Engine(database, [relies_on_flaky]) as engine:
        await engine.start("a", relies_on_flaky)
        assert (await engine.ended("a")).output == "try 2"
        [step] = await engine.history("a")
        assert (step.status, step.attempts, step.error) == ("completed", 3, None)
        assert [(each.attempt, each.error["message"]) for each in step.failed_attempts] == [(1, "try 0"), (2, "try 1")]
        for each in step.failed_attempts:
            assert each.due is not None
            assert each.due - each.failed_at == timedelta(seconds=1.2)
        assert ATTEMPTS == [(0, False), (1, True), (2, True)]


async def test_a_step_between_two_tries_is_shown_as_retrying(database: Database) -> None:
    @zart_step("later", retry="fixed(3, 1h)")
    async def later() -> None:
        raise ValueError("not now")

    @zart_durable("tries-later")
    async def tries_later() -> None:
        await later()

    async with Engine(database, [tries_later]) as engine:
        await engine.start("a", tries_later)
        await eventually(lambda: has(engine, "a", "later"))
        [step] = await engine.history("a")
        assert (step.status, step.attempts, step.error["message"]) == ("retrying", 1, "not now")
        assert step.due == step.failed_attempts[0].due


async def test_a_delay_longer_than_the_grace_frees_the_slot(database: Database) -> None:
    @zart_step("later", retry="fixed(1, 1h)")
    async def later() -> None:
        raise ValueError("not now")

    @zart_durable("tries-later")
    async def tries_later() -> None:
        await later()

    config = WorkerConfig(lease_timeout="1h", max_concurrent_tasks=1)
    async with Engine(database, [tries_later, relies_on_hopeless], config=config) as engine:
        await engine.start("a", tries_later)
        await parked(engine, "a", within=5)
        row = await engine.connection.fetchrow("select worker, run_at - now() as left from zart.zart_queue")
        assert row is not None
        assert row["worker"] is None
        assert timedelta(minutes=59) < row["left"] <= timedelta(hours=1)
        await engine.start("other", relies_on_hopeless)
        assert (await engine.ended("other")).output == [3, "ValueError: try 2"]


async def test_delays_are_kept(database: Database) -> None:
    async with Engine(database, [relies_on_flaky]) as engine:
        await engine.start("a", relies_on_flaky)
        await engine.ended("a")
        first, second, third = TRIES["flaky"]
        assert 1.2 <= second - first < 2
        assert 1.2 <= third - second < 2


# -- which errors


@pytest.mark.parametrize(
    ("error", "tried"), [(NonRetryable("never"), 1), (KeyError("k"), 3), (OSError("disk"), 1)], ids=repr
)
@pytest.mark.parametrize("chosen", ["type", "types", "predicate"])
async def test_only_errors_that_retry_on_chooses_are_retried(
    database: Database, error: Exception, tried: int, chosen: str
) -> None:
    def is_chosen(error: BaseException) -> bool:
        return isinstance(error, LookupError)

    retry_on: Any = {"type": LookupError, "types": (ArithmeticError, LookupError), "predicate": is_chosen}[chosen]

    @zart_step("choosy", retry=RetryConfig.fixed(2, "10ms", retry_on=retry_on))
    async def choosy() -> str:
        begin_try("choosy")
        raise error

    @zart_durable("relies-on-choosy")
    async def relies_on_choosy() -> list[Any]:
        try:
            return [await choosy()]
        except StepFailed as failure:
            return [type(failure).__name__, failure.attempts, failure.type_name.rpartition(".")[2]]

    async with Engine(database, [relies_on_choosy]) as engine:
        await engine.start("a", relies_on_choosy)
        kind = "RetryExhausted" if tried == 3 else "StepFailed"
        assert (await engine.ended("a")).output == [kind, tried, type(error).__name__]
        assert len(TRIES["choosy"]) == tried


async def test_non_retryable_is_not_retried_whatever_retry_on_says(database: Database) -> None:
    @zart_step("stubborn", retry=RetryConfig.fixed(5, "1ms", retry_on=Exception))
    async def stubborn() -> None:
        begin_try("stubborn")
        raise NonRetryable("no")

    @zart_durable("relies-on-stubborn")
    async def relies_on_stubborn() -> None:
        await stubborn()

    async with Engine(database, [relies_on_stubborn]) as engine:
        await engine.start("a", relies_on_stubborn)
        record = await engine.ended("a")
        assert (record.status, record.error["attempts"]) == (ExecutionStatus.FAILED, 1)
        assert len(TRIES["stubborn"]) == 1


# -- over crashes


@pytest.mark.parametrize("grace", ["1h", "0s"])
async def test_a_worker_killed_during_a_delay_changes_neither_count_nor_due_time(
    database: Database, grace: str
) -> None:
    config = WorkerConfig(lease_timeout="1h", park_grace=grace)
    async with Engine(database, [relies_on_flaky], config=config) as engine:
        await engine.start("a", relies_on_flaky)
        for number in (1, 2):
            await eventually(lambda number=number: _failed_tries(engine, "flaky", number))  # type: ignore[misc]
            before = await engine.history("a")
            await crash(engine)
            assert await engine.history("a") == before
        assert (await engine.ended("a")).output == "try 2"
        first, second, third = TRIES["flaky"]
        assert 1.2 <= second - first < 2.2
        assert 1.2 <= third - second < 2.2
        assert [number for number, _ in ATTEMPTS] == [0, 1, 2]


async def test_retries_are_used_up_over_several_workers(database: Database) -> None:
    @zart_step("gated", retry="fixed(2, 100ms)")
    async def gated() -> str:
        await GATES[f"try {zart.context().current_attempt}"].wait()
        raise ValueError(f"try {begin_try('gated')}")

    @zart_durable("relies-on-gated")
    async def relies_on_gated() -> list[Any]:
        try:
            return [await gated()]
        except RetryExhausted as error:
            return [error.attempts, error.last_error]

    async with Engine(database, [relies_on_gated]) as engine:
        await engine.start("a", relies_on_gated)
        for number in (1, 2):
            GATES[f"try {number - 1}"].set()
            await eventually(lambda number=number: _failed_tries(engine, "gated", number))  # type: ignore[misc]
            await crash_for_good(engine)
        GATES["try 2"].set()
        assert (await engine.ended("a")).output == [3, "ValueError: try 2"]
        assert len(TRIES["gated"]) == 3


async def test_a_try_that_a_crash_cut_off_is_not_counted(database: Database) -> None:
    @zart_step("cut", retry="fixed(1, 10ms)")
    async def cut() -> str:
        begin_try("cut")
        if zart.context().is_retry() and not GATES["fail"].is_set():
            await asyncio.Event().wait()  # until a crash
        raise ValueError(f"attempt {zart.context().current_attempt}")

    @zart_durable("relies-on-cut")
    async def relies_on_cut() -> str:
        try:
            return await cut()
        except RetryExhausted as error:
            return f"{error.attempts}, {error.last_error}"

    async with Engine(database, [relies_on_cut]) as engine:
        await engine.start("a", relies_on_cut)
        for number in (2, 3):
            await eventually(lambda number=number: len(TRIES["cut"]) >= number)  # type: ignore[misc]
            await crash(engine)
        await eventually(lambda: len(TRIES["cut"]) >= 4)
        GATES["fail"].set()
        await crash(engine)
        assert (await engine.ended("a")).output == "2, ValueError: attempt 1"
        assert [number for number, _ in ATTEMPTS] == [0] + [1] * (len(ATTEMPTS) - 1)


async def test_a_retry_that_is_due_while_no_worker_runs_is_only_delayed(database: Database) -> None:
    async with Engine(database, [relies_on_flaky]) as engine:
        await engine.start("a", relies_on_flaky)
        await eventually(lambda: _failed_tries(engine, "flaky", 1))
    connection = await database.connect()
    await eventually(lambda: connection.fetchval("select due < clock_timestamp() from zart.zart_attempts"))
    await connection.close()
    assert len(TRIES["flaky"]) == 1
    async with Engine(database, [relies_on_flaky]) as engine:
        assert (await engine.ended("a")).output == "try 2"
        assert [number for number, _ in ATTEMPTS] == [0, 1, 2]


# -- timeouts


async def test_a_global_timeout_goes_on_over_a_crash(database: Database) -> None:
    @zart_step("slow", timeout="2s", timeout_scope="global", retry="fixed(9, 1.3s)")
    async def slow() -> None:
        if begin_try("slow") == 0:
            raise ValueError("first")
        await asyncio.Event().wait()

    @zart_durable("relies-on-slow")
    async def relies_on_slow() -> str:
        try:
            await slow()
        except StepTimedOut as error:
            return str(error)
        return "ended"

    async with Engine(database, [relies_on_slow]) as engine:
        await engine.start("a", relies_on_slow)
        await eventually(lambda: _failed_tries(engine, "slow", 1))
        await crash(engine)
        await eventually(lambda: len(TRIES["slow"]) == 2)
        await crash(engine)
        assert (await engine.ended("a")).output == "step 'slow' timed out: 2 s for the whole step have passed"
        step = await operation(engine, "a", "slow")
        assert step is not None
        assert step.started_at is not None
        assert step.finished_at is not None
        assert timedelta(seconds=1.9) < step.finished_at - step.started_at < timedelta(seconds=3)


async def test_a_timeout_per_attempt_begins_anew_with_each_try_over_evictions_and_crashes(database: Database) -> None:
    @zart_step("slow", timeout="600ms", timeout_scope="per_attempt", retry="fixed(3, 1.2s)")
    async def slow() -> str:
        number = begin_try("slow")
        await asyncio.sleep(0.2)
        if number < 2:
            raise ValueError(f"try {number}")
        return f"try {number}"

    @zart_durable("relies-on-slow")
    async def relies_on_slow() -> str:
        return await slow()

    async with Engine(database, [relies_on_slow]) as engine:
        await engine.start("a", relies_on_slow)
        await eventually(lambda: _failed_tries(engine, "slow", 1))
        await crash(engine)
        assert (await engine.ended("a")).output == "try 2"


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
@pytest.mark.parametrize("failing", [0, 1])
async def test_a_timeout_is_terminal(database: Database, scope: Any, failing: int) -> None:
    """No try follows it, be it on the first one or on a retry."""

    @zart_step("slow", timeout="400ms", timeout_scope=scope, retry="fixed(9, 50ms)")
    async def slow() -> None:
        if begin_try("slow") < failing:
            raise ValueError("at first")
        await asyncio.Event().wait()

    @zart_durable("relies-on-slow")
    async def relies_on_slow() -> list[Any]:
        try:
            await slow()
        except StepTimedOut as error:
            return [error.attempts]
        return []

    async with Engine(database, [relies_on_slow]) as engine:
        await engine.start("a", relies_on_slow)
        assert (await engine.ended("a")).output == [failing + 1]
        assert len(TRIES["slow"]) == failing + 1
        step = await operation(engine, "a", "slow")
        assert step is not None
        assert (step.status, step.attempts) == ("timed_out", failing + 1)


async def test_a_delay_that_would_outlast_the_global_timeout_ends_the_step_at_once(database: Database) -> None:
    @zart_step("slow", timeout="10s", retry="fixed(9, 1h)")
    async def slow() -> None:
        begin_try("slow")
        raise ValueError("at first")

    @zart_durable("relies-on-slow")
    async def relies_on_slow() -> None:
        await slow()

    async with Engine(database, [relies_on_slow]) as engine:
        await engine.start("a", relies_on_slow)
        record = await engine.ended("a", within=5)
        assert record.error["type"] == "zart.errors.StepTimedOut"
        assert len(TRIES["slow"]) == 1


async def test_a_step_that_outlives_its_timeout_in_a_thread_is_a_timeout_and_not_a_value(database: Database) -> None:
    @zart_step("thread", timeout="200ms")
    def thread() -> str:
        time.sleep(0.6)
        return "late"

    @zart_durable("relies-on-thread")
    async def relies_on_thread() -> str:
        try:
            return await thread()
        except StepTimedOut:
            return "timed out"

    async with Engine(database, [relies_on_thread]) as engine:
        await engine.start("a", relies_on_thread)
        assert (await engine.ended("a")).output == "timed out"


# -- beside others


async def test_a_retry_beside_running_siblings_keeps_their_results_and_repeats_none(
    database: Database, mode: Mode
) -> None:
    @zart_step("gated-{name}")
    async def gated(name: str) -> str:
        begin_try(name)
        await GATES[name].wait()
        return name

    @zart_durable("gathers")
    async def gathers() -> list[str]:
        return list(await asyncio.gather(gated("first"), flaky(), gated("last")))

    config = WorkerConfig(lease_timeout="1h", park_grace="200ms")
    async with Engine(database, [gathers], config=config) as engine:
        await engine.start("a", gathers)
        await eventually(lambda: _failed_tries(engine, "flaky", 1))
        GATES["first"].set()
        await eventually(lambda: has(engine, "a", "gated-first", "completed"))
        assert len(TRIES["flaky"]) == 1 + (time.monotonic() - TRIES["flaky"][0] >= 1.2)
        GATES["last"].set()
        assert (await engine.ended("a")).output == ["first", "try 2", "last"]
        assert {name: len(tries) for name, tries in TRIES.items()} == {"first": 1, "flaky": 3, "last": 1}
