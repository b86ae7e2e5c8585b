"""Which asyncio tasks belong to a body, and which of them only wait for others of it.

A body is parked only when nothing in it does anything: so its tasks have to be known from the moment they are made, as
an ordinary await in one of them (an HTTP call, say) holds the slot.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Container, Coroutine, Generator
from contextvars import Context
from typing import Any, Protocol, TypeAlias, cast

from zart.engine.scope import current_scope

_Task: TypeAlias = asyncio.Task[Any]


class _MakeTask(Protocol):
    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, /, **options: Any) -> _Task: ...


class _Follower:
    """A task factory that tells the scope a task is made in. Whatever factory was there before makes the task."""

    def __init__(self, before: _MakeTask | None) -> None:
        self.before, self.users = before, 0

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> _Task:
        make = self.before
        task = asyncio.Task(coro, loop=loop, **options) if make is None else make(loop, coro, **options)
        context: Context | None = options.get("context")
        scope = current_scope.get() if context is None else context.get(current_scope)
        if scope is not None:
            scope.know_task(task)
        return task


def follow_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on, tell scopes of the tasks made in them. Ends with as many calls of `leave_tasks`."""
    factory = loop.get_task_factory()
    if not isinstance(factory, _Follower):
        factory = _Follower(cast("_MakeTask | None", factory))
        loop.set_task_factory(cast("Any", factory))
    factory.users += 1


def leave_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Undo one `follow_tasks`."""
    factory = loop.get_task_factory()
    if isinstance(factory, _Follower):
        factory.users -= 1
        if not factory.users:
            loop.set_task_factory(cast("Any", factory.before))


def _code_of(function: Any) -> types.CodeType | None:
    return getattr(function, "__code__", None)


# The coroutines of asyncio that wait for tasks: `wait` and `as_completed`, a task group's end (since 3.12 a method of
# its own), and `wait_for`, which up to 3.11 makes a task.
_WAIT = _code_of(getattr(asyncio.tasks, "_wait", None))
_GROUP_ENDS = frozenset(
    {_code_of(asyncio.TaskGroup.__aexit__), _code_of(getattr(asyncio.TaskGroup, "_aexit", None))} - {None}
)


def is_joining(task: _Task, body: Container[_Task]) -> bool:
    """True when a task does nothing but wait for tasks of the same body: by await, gather, wait or a task group.

    Anything else counts as busy; so does whatever this Python does not let us see.

    Args:
        task: not done.
        body: all tasks of the body.
    """
    awaited = getattr(task, "_fut_waiter", None)
    if awaited is None:
        return False
    if isinstance(awaited, asyncio.Task):
        return awaited in body
    children = getattr(awaited, "_children", None)  # of a gather
    if children is not None:
        return all(child.done() or child in body for child in children)
    innermost = _innermost(task.get_coro())
    if innermost is None or innermost.cr_frame is None:
        return False
    if innermost.cr_code in _GROUP_ENDS:
        return True
    if innermost.cr_code is _WAIT:
        known = innermost.cr_frame.f_locals
        return known.get("timeout") is None and all(future.done() or future in body for future in known.get("fs", ()))
    return False


def _innermost(coroutine: Any) -> types.CoroutineType[Any, Any, Any] | None:
    """The coroutine at the end of a chain of awaits. That of a body is inside the one that `Attribution.wrap` makes."""
    found, coroutine = None, getattr(coroutine, "coroutine", coroutine)
    while inspect.iscoroutine(coroutine):
        found, coroutine = coroutine, coroutine.cr_await
    return found
