"""Calls that run side by side, maybe on other workers: `schedule` has one made, `wait` gives the outcomes of many."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Generic, TypeVar

from zart.calls import Call, E_co, T_co
from zart.engine.children import Child
from zart.engine.failure import is_declared
from zart.engine.scope import require_scope
from zart.errors import InvalidArgument, StepFailed, shown
from zart.flow import BusinessErr, Ok, StepOutcome, ZartErr

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class StepHandle(Generic[T_co, E_co]):
    """A scheduled call. Awaiting it gives its result or raises its error, as often as it is awaited.

    Attributes:
        name: what its outcome is kept under.
    """

    __slots__ = ("_child", "name")

    def __init__(self, child: Child) -> None:
        self._child = child
        self.name = child.spec.name

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._result().__await__()

    async def _result(self) -> T_co:
        await _wait_for([self._child], f"awaiting the handle of {self.name!r}")
        result: T_co = self._child.unwrap()
        return result

    def __repr__(self) -> str:
        return f"<StepHandle {self.name!r}>"


def schedule(call: Call[T, E]) -> StepHandle[T, E]:
    """Have a call run as a work item of its own, by any worker that serves its step or durable function.

    It does not wait. What is scheduled without an `await` in between is made together, under ids that a crash does not
    change: none is ever made twice. A handle that is never awaited is waited for at the end of the body, and its
    failure is the body's.

    Args:
        call: of a registered step, whose arguments are kept as its annotations say, or of a durable function.

    Raises:
        StepNotRegistered: the registry of this worker does not have it.
        SerializationError: an argument cannot be kept.
        DuplicateStepName: its name is used already in this run.
        NotInExecution, NotInBody: called in the wrong place.

    Example:
        >>> handles = [zart.schedule(provision(region)) for region in data.regions]
        >>> outcomes = await zart.wait(handles)
    """
    if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            "schedule() takes a call of a step or of a durable function, as in schedule(provision(region)),"
            f" got {shown(call)}"
        )
    if call._begun is not None:  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError(f"cannot reuse already awaited {call!r}")
    try:
        return StepHandle(require_scope(f"schedule({call!r})").schedule(call))
    finally:
        call.close()


async def wait(handles: Iterable[StepHandle[T, E]]) -> list[StepOutcome[T, E]]:
    """How scheduled calls ended, in the order given, failures included. The body holds no slot meanwhile.

    Raises:
        InvalidArgument: one is no handle, or that of another execution.
        NotInExecution, NotInBody: called in the wrong place.

    Example:
        >>> for outcome in await zart.wait(handles):
        ...     match outcome:
        ...         case Ok(address): ...
        ...         case ZartErr(failure): ...
    """
    children = [_child_of(handle) for handle in _listed(handles)]
    await _wait_for(children, "wait()")
    return [_outcome_of(child) for child in children]


def _listed(handles: Any) -> list[Any]:
    try:
        return list(iter(handles))
    except TypeError:
        raise InvalidArgument(
            f"wait() takes a list of handles, got {shown(handles)}; one handle is awaited by itself"
        ) from None


def _child_of(handle: object) -> Child:
    if not isinstance(handle, StepHandle):
        raise InvalidArgument(f"wait() takes handles, as schedule() gives them, got {shown(handle)}")
    return handle._child  # pyright: ignore[reportPrivateUsage]


async def _wait_for(children: list[Child], what: str) -> None:
    scope = require_scope(what)
    await scope.wait_for_children(children)


def _outcome_of(child: Child) -> StepOutcome[Any, Any]:
    try:
        return Ok(child.unwrap())
    except StepFailed as failure:
        return ZartErr(failure)
    except Exception as error:
        if is_declared(error, child.spec.raises):
            return BusinessErr(error)
        raise
