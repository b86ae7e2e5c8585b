"""A workflow run again and again, its worker killed at another point each time: it must come to the same end."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, overload

from zart.durable import DurableExecution
from zart.errors import ExecutionFailed, ZartError
from zart.model import ExecutionStatus
from zart.testing.crashes import Moment, Point, Write
from zart.testing.run import Run

D = TypeVar("D")
R = TypeVar("R")

_MOST_TOLD = 5
_MOST_CHARACTERS = 500


class CrashMattered(AssertionError):
    """A workflow came to another end because its worker died, or it is not the same without a crash either."""


@overload
async def crash_everywhere(
    durable: DurableExecution[None, R],
    data: None = None,
    *,
    prepare: Callable[[Run[R]], object] | None = None,
    key: Callable[[R], object] | None = None,
) -> R: ...
@overload
async def crash_everywhere(
    durable: DurableExecution[D, R],
    data: D,
    *,
    prepare: Callable[[Run[R]], object] | None = None,
    key: Callable[[R], object] | None = None,
) -> R: ...
async def crash_everywhere(
    durable: DurableExecution[Any, Any],
    data: Any = None,
    *,
    prepare: Callable[[Run[Any]], object] | None = None,
    key: Callable[[Any], object] | None = None,
) -> Any:
    """Run a workflow without a crash, then once for each point where its worker can die, before and after each write.

    The writes are results and failures of steps, failed tries, captured values, timers, waits, timeouts, the making of
    children and their outcomes, and the end of each turn. The result, or the failure, must be the same, and no step or
    child may begin whose result was kept.

    Args:
        durable, data: as for `Run`.
        prepare: called with every run before it starts: offer events and cancel here, and reset your fakes.
        key: what of a result must be the same; by default all of it. For results with random parts.

    Returns:
        The result.

    Raises:
        CrashMattered: something differed; tells where the worker died, and what came of it.
        ExecutionFailed: the workflow fails, and it fails alike wherever its worker dies.

    Example:
        >>> def approve(run):
        ...     sent.clear()
        ...     run.offer_event("approved", Approval(by="eve"), after="2d")
        >>> receipt = await crash_everywhere(onboarding, Signup("ada@example.com"), prepare=approve)
    """

    def new_run(start: datetime | None, *points: Point) -> Run[Any]:
        run: Run[Any] = Run(durable, data, start=start)
        if prepare is not None:
            prepare(run)
        run._plan.points += points  # pyright: ignore[reportPrivateUsage]
        return run

    calm = new_run(None)
    start = calm.now
    wanted = await _end_of(calm, key)
    again = await _end_of(new_run(start), key)
    if again != wanted:
        raise CrashMattered(
            f"{durable.task_name!r} differs from run to run, without any crash:\n    {wanted}\n    {again}\n"
            "reset in prepare=... what its steps change; if its result has random parts, say key=... for the rest"
        )
    differences: list[str] = []
    writes = list(calm._plan.writes)  # pyright: ignore[reportPrivateUsage]
    for write in writes:
        for moment in Moment:
            run = new_run(start, Point(moment, number=write.number))
            found = await _end_of(run, key)
            differences += _differences(write, moment, wanted, found, run)
    if differences:
        raise CrashMattered(_report(durable.task_name, 2 * len(writes), differences))
    return await calm.result()


async def _end_of(run: Run[Any], key: Callable[[Any], object] | None) -> str:
    """How a run ends, in words that are the same for the same end."""
    try:
        result = await run.result()
    except ExecutionFailed as failure:
        return _failure(failure, run.status)
    except ZartError as stuck:
        return f"{type(stuck).__name__}: {stuck}"
    if key is not None:
        return f"a result with the key {key(result)!r}"
    ending = run._execution.ending  # pyright: ignore[reportPrivateUsage]
    assert ending is not None
    return f"the result {ending.output}"


def _failure(failure: ExecutionFailed, status: ExecutionStatus) -> str:
    record: dict[str, Any] = failure.error or {}
    told = {name: record.get(name) for name in ("kind", "step", "type", "message")}
    return f"{status}: {json.dumps(told)}"


def _differences(write: Write, moment: Moment, wanted: str, found: str, run: Run[Any]) -> list[str]:
    what: list[str] = []
    if found != wanted:
        what.append(f"it ended with\n        {_cut(found)}\n    and without a crash with\n        {_cut(wanted)}")
    for name in dict.fromkeys(run._starts.again):  # pyright: ignore[reportPrivateUsage]
        what.append(f"step {name!r} began again, though its result was kept")
    return [f"  killed {moment} {write} was stored (write {write.number}): {each}" for each in what]


def _report(task_name: str, kills: int, differences: list[str]) -> str:
    more = len(differences) - _MOST_TOLD
    return "\n".join(
        [
            f"{task_name!r} does not survive {len(differences)} of {kills} crashes:",
            *differences[:_MOST_TOLD],
            *([f"  and {more} more"] if more > 0 else []),
        ]
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
