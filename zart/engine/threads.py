"""Threads for plain-function steps: zart's own, so that long steps never keep others of the program waiting.

The event loop's default executor has a handful of threads, and host names are looked up there too: a worker whose steps
fill it could not make a lost connection again.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 256


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Made in the process that uses it, never before a fork; threads are started as they are needed."""
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="zart-step")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread, with this task's context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, function)
