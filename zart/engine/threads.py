"""Threads for plain-function steps: zart's own, so that long steps never keep others of the program waiting.

The event loop's default executor has a handful of threads, and host names are looked up there too: a worker whose steps
fill it could not make a lost connection again.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from zart.engine.host import Host
from zart.engine.scope import current_scope
from zart.metrics import MOST_THREADS as MOST_NOTED

P = ParamSpec("P")
T = TypeVar("T")

MOST_THREADS = 256
MOST_DEFAULT_THREADS = MOST_NOTED - MOST_THREADS

_own = threading.local()
_indexes = itertools.count()


class NotingThreads(ThreadPoolExecutor):
    """Threads that note on their worker's place whose code they run, while they do."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        scope = current_scope.get()
        if scope is None:
            return super().submit(fn, *args, **kwargs)
        return super().submit(_noted, scope.whose(), functools.partial(fn, *args, **kwargs))


def _noted(whose: tuple[Host, int], function: Callable[[], T]) -> T:
    host, claim_id = whose
    index: int | None = getattr(_own, "index", None)
    if index is None:
        index = _own.index = next(_indexes)
    if index >= MOST_NOTED:  # threads of a process that was forked after it had made some
        return function()
    host.place.note_thread(index, claim_id)
    try:
        return function()
    finally:
        host.place.note_thread(index, 0)


def default_threads() -> NotingThreads:
    """What a worker process has for `asyncio.to_thread` and `run_in_executor(None, ...)`."""
    return NotingThreads(MOST_DEFAULT_THREADS)


@functools.cache
def _threads() -> NotingThreads:
    """Made in the process that uses it, never before a fork; threads are started as they are needed."""
    return NotingThreads(MOST_THREADS, thread_name_prefix="zart-step")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread, with this task's context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, function)
