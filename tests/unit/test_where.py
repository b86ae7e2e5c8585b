"""Where a call came from, as errors say it."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from types import FunctionType
from typing import Any, cast

from zart.calls import Call
from zart.codec import Attribution
from zart.engine.spec import ChildSpec
from zart.engine.where import where

HERE = os.path.basename(__file__)


def line_of(function: Callable[..., Any], text: str) -> int:
    """The number of the first line in a function that has this text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def of_module(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same function, as if it stood in a module of this name."""

    def move(function: Callable[..., Any]) -> Callable[..., Any]:
        plain = cast("FunctionType", function)
        made = FunctionType(plain.__code__, {**plain.__globals__, "__name__": name}, plain.__name__)
        made.__kwdefaults__ = plain.__kwdefaults__
        return made

    return move


@of_module("zart.flow")
def plain_call() -> str:
    return where()


@of_module("zart.flow")
async def awaited_call(*, tasks: Sequence[asyncio.Task[Any]] = ()) -> str:
    await asyncio.sleep(0)
    return where(tasks[0] if tasks else None)


@of_module("asyncio.timeouts")
async def awaiting_of_asyncio(call: Any) -> Any:
    return await call


class ZartCall(Call[str, Exception]):
    """A call whose innermost frames are all zart's."""

    def __init__(self, tasks: Sequence[asyncio.Task[Any]] = ()) -> None:
        self.tasks = tasks

    @property
    def raises(self) -> tuple[type[Exception], ...]:
        return ()

    def resolved_name(self) -> str:
        return "call"

    def as_child(self) -> ChildSpec:
        raise NotImplementedError

    def _begin(self) -> Coroutine[Any, Any, str]:
        begun: Coroutine[Any, Any, str] = awaited_call(tasks=self.tasks)
        return begun


def test_a_plain_call_comes_from_the_line_that_makes_it() -> None:
    found = plain_call()  # this one
    assert found == f" at {HERE}:{line_of(test_a_plain_call_comes_from_the_line_that_makes_it, 'this one')}"


async def test_an_awaited_call_comes_from_the_line_that_awaits_it() -> None:
    async def body() -> str:
        return await ZartCall()  # this one

    assert await body() == f" at {HERE}:{line_of(body, 'this one')}"


async def test_the_innermost_function_of_the_user_is_named() -> None:
    async def inner() -> str:
        return await ZartCall()  # this one

    async def outer() -> str:
        return await inner()

    assert await outer() == f" at {HERE}:{line_of(inner, 'this one')}"


async def test_a_plain_function_between_body_and_zart_is_the_place() -> None:
    def between() -> str:
        found: str = plain_call()  # this one
        return found

    assert await asyncio.create_task(_awaiting(between)) == f" at {HERE}:{line_of(between, 'this one')}"


async def test_a_function_of_asyncio_between_body_and_zart_is_not_the_place() -> None:
    async def body() -> Any:
        return await awaiting_of_asyncio(ZartCall())  # this one

    assert await body() == f" at {HERE}:{line_of(body, 'this one')}"


async def test_an_awaitable_of_the_user_is_a_place_in_a_task_of_its_own() -> None:
    class Wrapped:
        def __await__(self) -> Generator[Any, Any, str]:
            return (yield from ZartCall().__await__())  # this one

    (found,) = await asyncio.gather(Wrapped())
    assert found == f" at {HERE}:{line_of(Wrapped.__await__, 'this one')}"


async def test_an_async_generator_is_a_place_too() -> None:
    async def items() -> AsyncIterator[str]:
        yield await ZartCall()  # this one

    assert [found async for found in items()] == [f" at {HERE}:{line_of(items, 'this one')}"]


async def test_a_task_of_nothing_but_a_call_is_found_where_the_body_waits() -> None:
    async def body() -> tuple[str, str]:
        return await asyncio.gather(ZartCall(tasks), ZartCall(tasks))  # this one

    tasks: list[asyncio.Task[Any]] = []
    tasks.append(asyncio.create_task(body()))
    found = await tasks[0]
    assert list(found) == [f" while the body waits at {HERE}:{line_of(body, 'this one')}"] * 2


async def test_a_body_whose_coroutine_is_attributed_is_looked_into() -> None:
    async def body() -> str:
        return await asyncio.create_task(ZartCall(tasks))  # this one

    tasks: list[asyncio.Task[Any]] = []
    tasks.append(asyncio.create_task(Attribution(memoryview(bytearray(8)).cast("q"), 0).wrap(body(), 1)))
    assert await tasks[0] == f" while the body waits at {HERE}:{line_of(body, 'this one')}"


async def test_whoever_runs_the_event_loop_is_not_the_place() -> None:
    assert await asyncio.create_task(ZartCall()) == ""


def test_a_callback_is_a_place() -> None:
    found: list[str] = []

    def callback() -> None:
        found.append(plain_call())  # this one

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert found == [f" at {HERE}:{line_of(callback, 'this one')}"]


async def test_a_function_in_a_thread_is_a_place() -> None:
    def in_thread() -> str:
        found: str = plain_call()  # this one
        return found

    assert await asyncio.to_thread(in_thread) == f" at {HERE}:{line_of(in_thread, 'this one')}"


def test_a_module_whose_name_only_begins_like_zarts_is_the_users() -> None:
    code = compile("found = call()  # the first line", "/srv/app/zartist.py", "exec")
    names: dict[str, Any] = {"__name__": "zartist", "call": plain_call}
    exec(code, names)
    assert names["found"] == " at zartist.py:1"


async def _awaiting(function: Callable[[], str]) -> str:
    await asyncio.sleep(0)
    return function()
