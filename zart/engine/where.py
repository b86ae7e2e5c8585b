"""Where in the user's source something was said, for the text of an error. Looked for only when an error is made."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from types import CodeType, FrameType
from typing import Any

# What lies between the user's code and zart, in either direction.
_BETWEEN = frozenset({"zart", "asyncio", "uvloop", "concurrent", "threading"})
_ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE


def where(body: asyncio.Task[Any] | None = None) -> str:
    """The place in the user's source that the running call comes from, to be put after a word of a sentence.

    That is the innermost frame outside zart and asyncio. A task that runs nothing but a zart call, as `gather` makes
    them, has no such frame: then it is the place where the body waits meanwhile.

    Args:
        body: the task that runs the execution's body, if there is one.

    Returns:
        As " at orders.py:41", or " while the body waits at orders.py:44"; empty when neither is known.
    """
    if frame := _innermost_caller(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
        return f" at {_place(frame.f_code, frame.f_lineno)}"
    if body is not None and (frame := _innermost_awaiting(body.get_coro())):
        return f" while the body waits at {_place(frame.f_code, frame.f_lineno)}"
    return ""


def is_between(frame: FrameType) -> bool:
    """Whether a frame is one of zart or asyncio, and so not of the user."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN


def _innermost_caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user, of the task that runs.

    Below a task's outermost coroutine are the event loop and whoever started it: that is not where a call comes from.
    """
    found: FrameType | None = None
    in_task = _is_in_task()
    while frame is not None:
        if found is None and not is_between(frame):
            found = frame
        if found is not None and (not in_task or frame.f_code.co_flags & _ASYNC):
            return found
        frame = frame.f_back
    return None


def _innermost_awaiting(coroutine: Any) -> FrameType | None:
    """The innermost frame of the user in a chain of suspended coroutines."""
    found: FrameType | None = None
    coroutine = getattr(coroutine, "coroutine", coroutine)  # in what `Attribution.wrap` makes
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if not is_between(frame):
            found = frame
        coroutine = coroutine.cr_await
    return found


def _is_in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no event loop runs in this thread
        return False


def _place(code: CodeType, line: int) -> str:
    return f"{os.path.basename(code.co_filename)}:{line}"
