"""Waiting for facts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")


@overload
async def eventually(fact: Callable[[], Awaitable[T]], *, within: float = ..., every: float = ...) -> T: ...
@overload
async def eventually(fact: Callable[[], T], *, within: float = ..., every: float = ...) -> T: ...
async def eventually(fact: Callable[[], Awaitable[T] | T], *, within: float = 20.0, every: float = 0.01) -> T:
    """Ask until the answer is true, and give it back.

    Args:
        fact: asked again and again; may be a coroutine function.
        within: seconds after which the last answer is an assertion error.
    """
    give_up = asyncio.get_running_loop().time() + within
    while True:
        answer = fact()
        found = cast(T, await answer if inspect.isawaitable(answer) else answer)
        if found:
            return found
        assert asyncio.get_running_loop().time() < give_up, f"{fact} was still {found!r} after {within} s"
        await asyncio.sleep(every)
