"""zart.testing.Run: the engine's own turns, on a journal in memory and a clock that jumps."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

import zart
import zart.testing
from zart import ExecutionStatus, zart_durable, zart_step
from zart.errors import EventTimeout, ExecutionCancelled, ExecutionFailed, InvalidArgument, SerializationError
from zart.model import EventAnswer
from zart.testing import CrashNotReached, Run, RunStuck

DONE: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    DONE.clear()


@dataclass
class Approval:
    by: str


@zart_step("note-{text}")
async def note(text: str) -> str:
    DONE.append(text)
    return text


@zart_durable("approval")
async def approval(item: str) -> str:
    await note(item)
    try:
        granted = await zart.wait_for_event("approved", Approval, timeout="3d")
    except EventTimeout:
        return await note("too late")
    return await note(f"by {granted.by}")


@zart_durable("naps")
async def naps() -> float:
    before = await zart.now("before")
    await zart.sleep("nap", "30d")
    return ((await zart.now("after")) - before).total_seconds()


async def test_a_sleep_of_thirty_days_takes_milliseconds_and_exactly_thirty_days_of_its_clock() -> None:
    run, began = Run(naps), time.perf_counter()
    assert await run.result() == 30 * 86_400
    assert run.elapsed == timedelta(days=30)
    assert time.perf_counter() - began < 1


async def test_each_wait_is_a_replay_and_no_kept_step_starts_again() -> None:
    run = Run(approval, "book")
    run.offer_event("approved", Approval("eve"), after="2d")
    assert await run.result() == "by eve"
    assert (run.passes, run.elapsed) == (2, timedelta(days=2))
    assert DONE == ["book", "by eve"]
    assert run.starts == {"note-book": 1, "note-by eve": 1}


async def test_an_event_offered_before_is_there_at_once() -> None:
    run = Run(approval, "book")
    assert run.offer_event("approved", Approval("ada")) is EventAnswer.ACCEPTED
    assert run.offer_event("approved", Approval("eve")) is EventAnswer.ALREADY_OFFERED
    assert await run.result() == "by ada"
    assert run.elapsed == timedelta(0)
    assert run.offer_event("approved", Approval("eve")) is EventAnswer.FINISHED


async def test_an_event_that_comes_too_late_finds_the_timeout() -> None:
    run = Run(approval, "book")
    run.offer_event("approved", Approval("eve"), after="4d")
    assert await run.result() == "too late"
    assert run.elapsed == timedelta(days=3)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_step_may_offer_an_event_that_a_sibling_waits_for(in_thread: bool) -> None:
    @zart_step("offer")
    async def offer() -> None:
        await asyncio.sleep(0.01)
        run.offer_event("go", 7)

    @zart_step("offer")
    def offer_in_thread() -> None:
        run.offer_event("go", 7)

    @zart_durable("hears")
    async def hears() -> int:
        step = offer_in_thread() if in_thread else offer()
        return (await asyncio.gather(zart.wait_for_event("go", int), step))[0]

    run = Run(hears)
    assert await run.result() == 7
    assert run.passes == 1


async def test_a_wait_for_an_event_that_nobody_offers_is_an_error_that_names_it() -> None:
    @zart_durable("waits-for-ever")
    async def waits() -> int:
        return await zart.wait_for_event("never", int)

    run = Run(waits)
    with pytest.raises(RunStuck, match="waits for the event 'never', and nobody will offer it"):
        await run.result()
    assert run.status is ExecutionStatus.WAITING
    run.offer_event("never", 3)
    assert await run.result() == 3


async def test_an_event_that_comes_while_the_body_is_put_down_is_not_lost() -> None:
    @zart_durable("leaves")
    async def leaves() -> int:
        try:
            return await zart.wait_for_event("go", int, timeout="30d")
        finally:
            run.offer_event("go", 7)

    run = Run(leaves)
    assert await run.result() == 7
    assert run.elapsed == timedelta(0)


async def test_parallel_waits_are_over_when_each_is_due() -> None:
    @zart_durable("parallel")
    async def parallel() -> list[str]:
        async def nap(name: str, duration: str) -> None:
            await zart.sleep(name, duration)
            await note(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(nap("long", "2d"))
            group.create_task(nap("short", "1d"))
        await asyncio.gather(nap("c", "1h"), note("beside"))
        return DONE

    run = Run(parallel)
    assert await run.result() == ["short", "long", "beside", "c"]
    assert run.elapsed == timedelta(days=2, hours=1)


async def test_what_is_due_but_not_waited_for_any_more_wakes_nobody() -> None:
    @zart_durable("stale")
    async def stale() -> None:
        await zart.wait_for_event("early", int, timeout="3d")
        await zart.sleep("nap", "30d")

    run = Run(stale)
    run.offer_event("early", 1, after="1d")
    await run.result()
    assert (run.passes, run.elapsed) == (3, timedelta(days=31))


@pytest.mark.parametrize("turns", range(8))
async def test_a_body_is_not_put_down_while_the_end_of_a_task_is_on_its_way_to_another(turns: int) -> None:
    at: list[timedelta] = []

    async def joins() -> None:
        await asyncio.gather(asyncio.create_task(note("a")), note("b"))
        at.append(run.elapsed)
        await note("c")

    async def sleeps() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await zart.sleep("nap", "30d")

    @zart_durable("joins")
    async def body() -> None:
        await asyncio.gather(joins(), sleeps())

    run = Run(body)
    await run.result()
    assert at[0] == timedelta(0)


async def test_delays_of_retries_pass_on_its_clock_and_tries_are_told() -> None:
    @zart_step("pay", retry="fixed(3, 1h)")
    async def pay() -> int:
        attempt = zart.context().current_attempt
        if attempt < 2:
            raise ConnectionError(f"try {attempt}")
        return attempt

    @zart_durable("pays")
    async def pays() -> int:
        return await pay()

    run = Run(pays)
    assert await run.result() == 2
    assert (run.elapsed, run.starts) == (timedelta(hours=2), {"pay": 3})
    [record] = run.history
    assert (record.name, record.status, len(record.failed_attempts)) == ("pay", "completed", 2)


async def test_an_execution_retry_runs_failed_steps_again_and_no_others() -> None:
    @zart_step("fails")
    async def fails() -> str:
        if not zart.context().current_attempt and len(DONE) < 2:
            DONE.append("failed")
            raise ValueError("no")
        return "at last"

    @zart_durable("retried", retry="fixed(1, 10s)")
    async def retried() -> str:
        await note("first")
        return await fails()

    run = Run(retried)
    assert await run.result() == "at last"
    assert run.starts == {"note-first": 1, "fails": 2}
    assert run.elapsed == timedelta(seconds=10)


async def test_the_deadline_is_reached_on_its_clock() -> None:
    @zart_durable("hurried", timeout="1h")
    async def hurried() -> None:
        await zart.sleep("nap", "2h")

    run = Run(hurried)
    with pytest.raises(ExecutionFailed, match="deadline"):
        await run.result()
    assert (run.elapsed, run.status) == (timedelta(hours=1), ExecutionStatus.FAILED)


async def test_a_cancelled_run_is_cancelled_when_its_clock_says_so() -> None:
    run = Run(naps)
    run.cancel(after="1d")
    with pytest.raises(ExecutionCancelled):
        await run.result()
    assert (run.elapsed, run.status) == (timedelta(days=1), ExecutionStatus.CANCELLED)


async def test_a_running_step_is_interrupted_by_a_cancel() -> None:
    @zart_step("endless")
    async def endless() -> None:
        asyncio.get_running_loop().call_soon(run.cancel)
        await asyncio.Event().wait()

    @zart_durable("cancelled")
    async def cancelled() -> None:
        await endless()

    run = Run(cancelled)
    async with asyncio.timeout(5):
        with pytest.raises(ExecutionCancelled):
            await run.result()
    assert run.history == []


async def test_advance_stops_in_between_and_shows_what_is_there() -> None:
    run = Run(approval, "book")
    assert run.status is ExecutionStatus.PENDING
    assert await run.advance("1d") is ExecutionStatus.WAITING
    assert (DONE, run.elapsed) == (["book"], timedelta(days=1))
    assert [(record.name, record.status) for record in run.history] == [
        ("note-book", "completed"),
        ("approved", "waiting"),
    ]
    run.offer_event("approved", Approval("eve"))
    assert await run.result() == "by eve"


async def test_its_clock_starts_where_it_is_told_to() -> None:
    @zart_durable("until")
    async def until(when: datetime) -> datetime:
        await zart.sleep_until("until", when)
        return await zart.now("then")

    start = datetime(2030, 1, 1, tzinfo=UTC)
    assert await Run(until, start + timedelta(days=9), start=start).result() == start + timedelta(days=9)


async def test_a_failure_is_raised_as_by_a_handle() -> None:
    @zart_durable("wrong")
    async def wrong() -> None:
        raise KeyError("x")

    run = Run(wrong, execution_id="order-7")
    with pytest.raises(ExecutionFailed, match=r"'order-7' \(wrong\) failed: KeyError"):
        await run.result()


async def test_values_are_refused_as_by_a_scheduler() -> None:
    with pytest.raises(SerializationError, match="input of execution 'test'"):
        Run(approval, object())  # type: ignore[misc]
    with pytest.raises(SerializationError, match="payload of event 'approved'"):
        Run(approval, "book").offer_event("approved", object())
    with pytest.raises(InvalidArgument, match="timezone"):
        Run(approval, "book", start=datetime(2030, 1, 1))


async def test_a_crash_before_a_checkpoint_repeats_the_step_and_one_after_it_does_not() -> None:
    run = Run(approval, "book")
    run.offer_event("approved", Approval("eve"))
    run.crash_before("note-book")
    run.crash_after("note-by eve")
    assert await run.result() == "by eve"
    assert DONE == ["book", "book", "by eve"]
    assert run.crashes == 2


async def test_what_was_to_be_stored_with_a_crash_is_lost_with_it() -> None:
    @zart_step("at-once-{name}")
    async def at_once(name: str) -> str:
        await asyncio.sleep(0)
        return name

    @zart_durable("pair")
    async def pair() -> list[str]:
        return list(await asyncio.gather(at_once("a"), at_once("b")))

    run = Run(pair)
    run.crash_after("at-once-a")
    assert await run.result() == ["a", "b"]
    assert run.starts == {"at-once-a": 1, "at-once-b": 2}


async def test_a_crash_in_mid_wait_makes_it_no_longer() -> None:
    run = Run(naps)
    run.crash_after("nap")
    run.crash_after("before")
    assert await run.result() == 30 * 86_400
    assert run.crashes == 2


async def test_a_crash_between_two_tries_changes_neither_count_nor_time() -> None:
    @zart_step("flaky", retry="fixed(2, 1h)")
    async def flaky() -> int:
        if zart.context().current_attempt < 2:
            raise ConnectionError
        return zart.context().current_attempt

    @zart_durable("flakes")
    async def flakes() -> int:
        return await flaky()

    run = Run(flakes)
    run.crash_after("flaky", attempt=1)
    run.crash_after("flaky", attempt=2)
    assert await run.result() == 2
    assert (run.elapsed, run.crashes, run.starts) == (timedelta(hours=2), 2, {"flaky": 3})


async def test_a_crash_that_never_happens_is_an_error_that_tells_what_was_stored() -> None:
    run = Run(naps)
    run.crash_after("napp")
    with pytest.raises(CrashNotReached, match=r"crash_after\('napp'\): it stored before, nap, after"):
        await run.result()


async def test_two_that_ask_for_the_result_at_once_get_the_same() -> None:
    run = Run(approval, "book")
    run.offer_event("approved", Approval("eve"))
    assert set(await asyncio.gather(run.result(), run.result())) == {"by eve"}
    assert DONE == ["book", "by eve"]


async def test_a_run_that_is_interrupted_stores_nothing_more_and_may_go_on() -> None:
    gate = asyncio.Event()

    @zart_step("held")
    async def held() -> str:
        try:
            if not gate.is_set():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            DONE.append("interrupted")
            raise
        return "held"

    @zart_durable("holds")
    async def holds() -> str:
        return await held()

    run = Run(holds)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run.result(), 0.05)
    await asyncio.sleep(0.01)
    assert (run.history, DONE) == ([], ["interrupted"])
    gate.set()
    assert await run.result() == "held"
