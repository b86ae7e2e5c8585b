"""Which tasks only wait for others of their body: by what asyncio lets us see, on each Python and event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import pytest
import uvloop

from zart.engine.tasks import is_joining

Tasks: TypeAlias = "list[asyncio.Task[Any]]"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on an event loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return run


async def awaits(children: Tasks) -> None:
    await children[0]


async def awaits_deeply(children: Tasks) -> None:
    async def deeper() -> None:
        await children[0]

    await deeper()


async def gathers(children: Tasks) -> None:
    await asyncio.gather(*children)


async def gathers_with_exceptions(children: Tasks) -> None:
    await asyncio.gather(*children, return_exceptions=True)


async def waits(children: Tasks) -> None:
    await asyncio.wait(children)


async def waits_for_the_first(children: Tasks) -> None:
    await asyncio.wait(children, return_when=asyncio.FIRST_COMPLETED)


async def leaves_a_group(children: Tasks) -> None:
    async def join(child: asyncio.Task[Any]) -> None:
        await child

    async with asyncio.TaskGroup() as group:
        for child in children:
            group.create_task(join(child))


JOINING = [awaits, awaits_deeply, gathers, gathers_with_exceptions, waits, waits_for_the_first, leaves_a_group]


async def waits_with_a_timeout(children: Tasks) -> None:
    await asyncio.wait(children, timeout=60)


async def waits_for(children: Tasks) -> None:
    await asyncio.wait_for(children[0], 60)


async def takes_as_completed(children: Tasks) -> None:
    for each in asyncio.as_completed(children):
        await each


async def shields(children: Tasks) -> None:
    await asyncio.shield(children[0])


async def sleeps(_: Tasks) -> None:
    await asyncio.sleep(60)


async def waits_for_an_event(_: Tasks) -> None:
    await asyncio.Event().wait()


async def waits_for_a_lock(_: Tasks) -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()


async def waits_for_a_queue(_: Tasks) -> None:
    await asyncio.Queue[int]().get()


async def waits_for_a_future(_: Tasks) -> None:
    await asyncio.get_running_loop().create_future()


async def waits_for_a_thread(_: Tasks) -> None:
    await asyncio.to_thread(lambda: None)


async def gathers_a_future(children: Tasks) -> None:
    await asyncio.gather(children[0], asyncio.get_running_loop().create_future())


BUSY = [
    waits_with_a_timeout, sleeps, waits_for_an_event, waits_for_a_lock, waits_for_a_queue,
    waits_for_a_future, gathers_a_future,
]  # fmt: skip

# Joining or busy, as this Python lets us see: either is safe. `wait_for` awaits the task itself from 3.12 on, within an
# `asyncio.timeout`, which cannot be seen.
EITHER = [takes_as_completed, shields, waits_for]


async def _judged(
    body: Callable[[Tasks], Awaitable[None]], *, foreign: bool = False, done: bool = False
) -> tuple[bool, bool]:
    """Whether the task is found to be joining; and whether it ends when its children do.

    Args:
        foreign: its children are no tasks of the body.
        done: one of them has ended.
    """
    release = asyncio.Event()
    children = [asyncio.create_task(_until(release)) for _ in range(2)]
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(body(children))
    for _ in range(5):
        await asyncio.sleep(0)
    own = asyncio.all_tasks() - before
    if done:
        children[1].cancel()
        await asyncio.wait([children[1]])
    members = own if foreign else own | set(children)
    joining = is_joining(task, members)
    release.set()
    await asyncio.wait([task], timeout=0.05)
    ended = task.done()
    for each in own:
        each.cancel()
    await asyncio.gather(*own, *children, return_exceptions=True)
    return joining, ended


async def _until(release: asyncio.Event) -> None:
    await release.wait()


@pytest.mark.parametrize("body", JOINING)
def test_a_task_that_waits_for_tasks_of_its_body_joins(
    run: Callable[[Any], Any], body: Callable[[Tasks], Awaitable[None]]
) -> None:
    assert run(_judged(body)) == (True, True)


@pytest.mark.parametrize("body", [gathers_with_exceptions, waits])
def test_children_that_have_ended_do_not_matter(
    run: Callable[[Any], Any], body: Callable[[Tasks], Awaitable[None]]
) -> None:
    assert run(_judged(body, done=True)) == (True, True)


@pytest.mark.parametrize("body", [each for each in JOINING if each is not leaves_a_group])
def test_a_task_that_waits_for_tasks_of_others_is_busy(
    run: Callable[[Any], Any], body: Callable[[Tasks], Awaitable[None]]
) -> None:
    assert run(_judged(body, foreign=True)) == (False, True)


def test_a_group_joins_as_its_tasks_do(run: Callable[[Any], Any]) -> None:
    """The tasks of a group are made in the body, so they are known and looked at themselves."""

    async def judge() -> list[bool]:
        gate, grouped = asyncio.Event(), list[asyncio.Task[Any]]()

        async def body() -> None:
            async with asyncio.TaskGroup() as group:
                grouped.append(group.create_task(gate.wait()))

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = [is_joining(each, {task, *grouped}) for each in (task, *grouped)]
        gate.set()
        await task
        return found

    assert run(judge()) == [True, False]


@pytest.mark.parametrize("body", BUSY)
def test_a_task_that_does_anything_else_is_busy(
    run: Callable[[Any], Any], body: Callable[[Tasks], Awaitable[None]]
) -> None:
    assert run(_judged(body))[0] is False


@pytest.mark.parametrize("body", [*EITHER, waits_for_a_thread])
@pytest.mark.parametrize("foreign", [True, False])
def test_asking_disturbs_nothing(
    run: Callable[[Any], Any], body: Callable[[Tasks], Awaitable[None]], foreign: bool
) -> None:
    joining, ended = run(_judged(body, foreign=foreign))
    assert ended
    assert not (joining and foreign)


def test_a_task_that_has_not_begun_is_busy(run: Callable[[Any], Any]) -> None:
    async def judge() -> bool:
        task = asyncio.create_task(asyncio.sleep(0))
        found = is_joining(task, {task})
        await task
        return found

    assert run(judge()) is False


def test_what_asyncio_calls_its_waiting_is_known() -> None:
    """Where these are None, nothing but awaits and gathers is seen to join: bodies are parked less often."""
    from zart.engine import tasks

    assert tasks._WAIT is not None  # pyright: ignore[reportPrivateUsage]
    assert tasks._GROUP_ENDS  # pyright: ignore[reportPrivateUsage]
