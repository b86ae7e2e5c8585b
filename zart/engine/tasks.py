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


class _Guarded(Coroutine[Any, Any, Any]):
    """A task's coroutine whose exits are errors: asyncio lets SystemExit and KeyboardInterrupt of a task end its loop,
    and with it the worker and everybody else's work. It is what `Attribution.wrap` has made of the coroutine.
    """

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def send(self, value: Any, /) -> Any:
        try:
            return self.coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _as_error(error) from error

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        try:
            return self.coroutine.throw(typ) if val is None and tb is None else self.coroutine.throw(typ, val, tb)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _as_error(error) from error

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise RuntimeError("this coroutine belongs to a task; await the task")

    def __repr__(self) -> str:
        return repr(self.coroutine.coroutine)


def _as_error(error: BaseException) -> RuntimeError:
    return RuntimeError(f"a task raised {type(error).__name__}({error}); user code does not end its worker")


class _Follower:
    """A task factory that tells the scope a task is made in, guards it, and has its code attributed. The factory before
    it makes the task."""

    def __init__(self, before: _MakeTask | None) -> None:
        self.before, self.users = before, 0

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> _Task:
        make = self.before
        context: Context | None = options.get("context")
        scope = current_scope.get() if context is None else context.get(current_scope)
        if scope is None:
            made: Any = coro
        else:
            host, claim_id = scope.whose()
            made = _Guarded(host.attribution.wrap(cast("Coroutine[Any, Any, Any]", coro), claim_id))
        task = asyncio.Task(made, loop=loop, **options) if make is None else make(loop, made, **options)
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
    if awaited is None or awaited.done():
        return False
    if isinstance(awaited, asyncio.Task) or hasattr(awaited, "_children"):
        return _is_of(awaited, body)
    innermost = _innermost(task.get_coro())
    if innermost is None or innermost.cr_frame is None:
        return False
    known = innermost.cr_frame.f_locals
    if innermost.cr_code in _GROUP_ENDS:
        return all(_is_of(member, body) for member in getattr(known.get("self"), "_tasks", ()))
    if innermost.cr_code is _WAIT:
        return known.get("timeout") is None and all(_is_of(future, body) for future in known.get("fs", ()))
    return False


def _is_of(future: Any, body: Container[_Task]) -> bool:
    """True when a future is done, a task of the body, or a gather of such futures."""
    if future.done() or future in body:
        return True
    children = getattr(future, "_children", None)
    return children is not None and all(_is_of(child, body) for child in children)


def _innermost(coroutine: Any) -> types.CoroutineType[Any, Any, Any] | None:
    """The coroutine at the end of a chain of awaits. A task's is inside what `_Guarded` and `Attribution.wrap` made."""
    found = None
    while hasattr(coroutine, "coroutine"):
        coroutine = coroutine.coroutine
    while inspect.iscoroutine(coroutine):
        found, coroutine = coroutine, coroutine.cr_await
    return found
