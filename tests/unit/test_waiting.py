"""One poller serves all waiters, asks no more than it must, and rests while nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.support.eventually import eventually
from zart.errors import (
    DatabaseError,
    DatabaseUnreachable,
    ExecutionNotFound,
    SchemaMissing,
    WaitTimedOut,
)
from zart.model import StoredStatus
from zart.waiting import FASTEST_LOOK, SLOWEST_LOOK, Ending, EndingPoller, Found, look_interval


class Executions:
    """Executions that exist, and those of them that have ended."""

    def __init__(self, *execution_ids: str) -> None:
        self.known = set(execution_ids)
        self.ended: set[str] = set()
        self.looks: list[tuple[list[str], list[str]]] = []
        self.trouble: Exception | None = None

    async def look(self, ids: Sequence[str], unsure: Sequence[str]) -> Found:
        self.looks.append((list(ids), list(unsure)))
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        endings = {each: ending(each) for each in ids if each in self.ended}
        return Found(endings, [each for each in unsure if each not in self.known])


def ending(execution_id: str) -> Ending:
    return Ending(execution_id, "task", StoredStatus.COMPLETED, "null", None)


async def is_polling() -> bool:
    await asyncio.sleep(0)
    return any(task.get_name() == "zart-endings" for task in asyncio.all_tasks())


def test_a_fresh_wait_is_looked_at_often_and_an_old_one_seldom() -> None:
    intervals = [look_interval(age) for age in (0, 0.01, 0.1, 1, 10, 3600)]
    assert intervals == sorted(intervals)
    assert (intervals[0], intervals[-1]) == (FASTEST_LOOK, SLOWEST_LOOK)


def test_the_interval_stays_within_an_eighth_of_the_age() -> None:
    assert all(look_interval(age / 1000) <= max(FASTEST_LOOK, age / 8000) for age in range(0, 20_000, 7))


async def test_an_ending_is_given_to_its_waiter() -> None:
    executions = Executions("a", "b")
    poller = EndingPoller(executions.look)
    waits = [asyncio.create_task(poller.wait(each, 10)) for each in "ab"]
    executions.ended.add("b")
    assert await waits[1] == ending("b")
    assert not waits[0].done()
    executions.ended.add("a")
    assert await waits[0] == ending("a")


async def test_all_waiters_share_one_look() -> None:
    executions = Executions(*(str(n) for n in range(100)))
    poller = EndingPoller(executions.look)
    waits = [asyncio.create_task(poller.wait(str(n % 50), 10)) for n in range(100)]
    await eventually(lambda: executions.looks)
    assert sorted(executions.looks[0][0], key=int) == [str(n) for n in range(50)]
    executions.ended = executions.known
    await asyncio.gather(*waits)


async def test_an_id_is_asked_to_exist_only_once() -> None:
    executions = Executions("a")
    poller = EndingPoller(executions.look)
    wait = asyncio.create_task(poller.wait("a", 10))
    await eventually(lambda: len(executions.looks) > 2)
    assert [unsure for _, unsure in executions.looks[:3]] == [["a"], [], []]
    executions.ended.add("a")
    await wait


async def test_an_execution_known_to_exist_is_never_asked_to() -> None:
    executions = Executions()
    poller = EndingPoller(executions.look)
    with pytest.raises(WaitTimedOut):
        await poller.wait("a", 0.02, exists=True)
    assert all(unsure == [] for _, unsure in executions.looks)


async def test_an_unknown_id_is_not_waited_for() -> None:
    with pytest.raises(ExecutionNotFound, match="'a'"):
        await EndingPoller(Executions("b").look).wait("a", 10)


async def test_a_wait_ends_when_its_time_is_up() -> None:
    with pytest.raises(WaitTimedOut, match=r"0\.02 s"):
        await EndingPoller(Executions("a").look).wait("a", 0.02)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("waiting", "execution 'a' is still waiting after 2 s; it goes on, wait again"),
        ("completed", "execution 'a' was completed just after the 2 s were up; wait again for its result"),
    ],
)
def test_what_an_execution_does_when_the_time_is_up_is_told(status: str, told: str) -> None:
    assert str(WaitTimedOut("a", 2.0, task_name="task", status=status)) == told


async def test_polling_stops_when_nobody_waits() -> None:
    executions = Executions("a", "b")
    poller = EndingPoller(executions.look)
    wait = asyncio.create_task(poller.wait("a", 10))
    assert await eventually(is_polling)
    executions.ended.add("a")
    await wait
    await eventually(lambda: not_polling())


async def not_polling() -> bool:
    return not await is_polling()


async def test_a_cancelled_waiter_is_asked_for_no_more() -> None:
    executions = Executions("a", "b")
    poller = EndingPoller(executions.look)
    gone, wait = (asyncio.create_task(poller.wait(each, 10)) for each in "ab")
    await eventually(lambda: executions.looks)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    before = len(executions.looks)
    await eventually(lambda: len(executions.looks) > before + 2)
    assert all(ids == ["b"] for ids, _ in executions.looks[before + 1 :])
    executions.ended.add("b")
    await wait


async def test_waiting_begins_again_after_a_rest() -> None:
    executions = Executions("a")
    executions.ended.add("a")
    poller = EndingPoller(executions.look)
    for _ in range(3):
        await poller.wait("a", 10)
        await eventually(not_polling)


async def test_a_lost_database_is_waited_for() -> None:
    executions = Executions("a")
    executions.trouble = DatabaseUnreachable("gone")
    poller = EndingPoller(executions.look)
    wait = asyncio.create_task(poller.wait("a", 10))
    await eventually(lambda: len(executions.looks) > 1)
    executions.trouble = None
    executions.ended.add("a")
    assert await wait == ending("a")


async def test_a_database_that_stays_lost_ends_the_wait_at_its_time() -> None:
    executions = Executions("a")
    executions.trouble = DatabaseUnreachable("gone")
    with pytest.raises(WaitTimedOut):
        await EndingPoller(executions.look).wait("a", 0.02)


async def test_an_answer_that_no_retry_will_change_ends_the_wait() -> None:
    executions = Executions("a")
    executions.trouble = SchemaMissing("run `zart migrate`")
    with pytest.raises(SchemaMissing):
        await EndingPoller(executions.look).wait("a", 10)


async def test_closing_ends_every_wait_with_an_error() -> None:
    executions = Executions("a", "b")
    poller = EndingPoller(executions.look)
    waits = [asyncio.create_task(poller.wait(each, None)) for each in "ab"]
    await eventually(lambda: executions.looks)
    await poller.close()
    for wait in waits:
        with pytest.raises(DatabaseError, match="closed"):
            await wait
    with pytest.raises(DatabaseError, match="closed"):
        await poller.wait("a", None)
