"""Waiting for endings: one poller asks for every execution that this process waits for.

Rejected: LISTEN for each ending (a NOTIFY per execution serializes their commits), and one query per waiter.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from zart.codec import PLAIN, Codec
from zart.errors import (
    DatabaseError,
    DatabaseUnreachable,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    InvalidArgument,
    SerializationError,
    WaitTimedOut,
)
from zart.log import logger
from zart.model import StoredStatus

FASTEST_LOOK = 0.002
SLOWEST_LOOK = 0.25

# A look at many ids takes time of its own: at least this many times as long passes before the next one.
_REST = 3.0
# More ids than this wait for the next look, so that no single statement runs long.
_MOST_IDS = 5_000
_FIRST_RETRY = 0.05
_SLOWEST_RETRY = 1.0

_log = logger("waiting")


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ended. `output` and `error` are stored JSON texts."""

    execution_id: str
    task_name: str
    status: StoredStatus
    output: str | None
    error: str | None

    def output_of(self, task_name: str, codec: Codec) -> Any:
        """The result of a durable function, as `output_by`.

        Raises:
            InvalidArgument: the execution is of another one.
        """
        if self.task_name != task_name:
            raise InvalidArgument(
                f"execution {self.execution_id!r} is of {self.task_name!r}, not of {task_name!r};"
                " wait with the durable function that it was started for"
            )
        return self.output_by(codec)

    def output_by(self, codec: Codec) -> Any:
        """The result, decoded.

        Raises:
            ExecutionFailed: it ended without one; ExecutionCancelled when it was cancelled.
            SerializationError: the result does not fit the codec's annotation.
        """
        match self.status:
            case StoredStatus.COMPLETED:
                try:
                    return codec.decode(self.output if self.output is not None else "null")
                except SerializationError as error:
                    where = f"result of execution {self.execution_id!r}"
                    remedy = "wait with the type it was stored with"
                    raise error.located(where, remedy=remedy) from error.__cause__
            case StoredStatus.CANCELLED:
                raise ExecutionCancelled(self.execution_id, self.task_name)
            case StoredStatus.QUARANTINED:
                record = PLAIN.decode(self.error or "null")
                why = record["message"] if record else "its process died too often"
                text = f"execution {self.execution_id!r} ({self.task_name}) was quarantined: {why}"
                remedy = "when that is mended, `zart release` has it go on"
                raise ExecutionFailed(self.execution_id, self.task_name, record, f"{text}; {remedy}")
            case _:
                raise ExecutionFailed(self.execution_id, self.task_name, PLAIN.decode(self.error or "null"))


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of a look: the executions that have ended, by id, and the ids that no execution has."""

    endings: Mapping[str, Ending]
    missing: Collection[str]


Look: TypeAlias = Callable[[Sequence[str], Sequence[str]], Awaitable[Found]]
"""Looks at the executions of the first ids; the second are those among them that may not exist.

Raises DatabaseUnreachable when it is worth asking again.
"""


def look_interval(age: float) -> float:
    """Seconds between two looks at an execution that has been waited for `age` seconds.

    About an eighth of the age, so that waiting costs a bounded share of the work waited for; in powers of two of
    FASTEST_LOOK, so that the looks of many waiters fall on the same times.
    """
    interval = FASTEST_LOOK
    while interval < SLOWEST_LOOK and interval * 16 <= age:
        interval *= 2
    return min(interval, SLOWEST_LOOK)


@dataclass(slots=True, eq=False)
class _Waiter:
    execution_id: str
    since: float
    exists: bool
    ending: asyncio.Future[Ending] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class EndingPoller:
    """Serves all waiters of one scheduler with one query at a time; rests while nobody waits."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._order = itertools.count()
        self._due: list[tuple[float, int, _Waiter]] = []
        self._waiters: set[_Waiter] = set()
        self._changed = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._retry_in = 0.0
        self._closed = False

    async def wait(self, execution_id: str, seconds: float | None, *, exists: bool = False) -> Ending:
        """Wait until an execution has ended, and through times without a database.

        Args:
            execution_id: which one.
            seconds: how long at most, None for no limit.
            exists: the execution is known to exist.

        Raises:
            ExecutionNotFound: no execution has this id.
            WaitTimedOut: the time is up.
            DatabaseError: the database refuses to answer, or the poller is closed.
        """
        if self._closed:
            raise DatabaseError(f"the scheduler is closed; waiting for execution {execution_id!r} needs an open one")
        waiter = self._add(execution_id, exists)
        try:
            async with asyncio.timeout(seconds):
                return await waiter.ending
        except TimeoutError:
            raise WaitTimedOut(execution_id, seconds or 0.0) from None
        finally:
            self._remove(waiter)

    async def close(self) -> None:
        """End every wait with an error."""
        self._closed = True
        for waiter in self._waiters:
            _fail(waiter, _closed(waiter.execution_id))
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])

    def _add(self, execution_id: str, exists: bool) -> _Waiter:
        now = asyncio.get_running_loop().time()
        waiter = _Waiter(execution_id, now, exists)
        self._waiters.add(waiter)
        heapq.heappush(self._due, (now, next(self._order), waiter))
        self._changed.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="zart-endings")
        return waiter

    def _remove(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)
        self._changed.set()
        if waiter.ending.done() and not waiter.ending.cancelled():
            waiter.ending.exception()  # asyncio reports an error that nobody has looked at
        waiter.ending.cancel()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiters:
            rest = 0.0
            if due := self._take_due(loop.time()):
                began = loop.time()
                await self._settle(due)
                rest = self._retry_in or min((loop.time() - began) * _REST, SLOWEST_LOOK)
                for waiter in due:
                    self._put_back(waiter, loop.time())
            await self._pause(rest)
        self._due.clear()

    def _take_due(self, now: float) -> list[_Waiter]:
        """The waiters whose next look is due, without those that have gone."""
        due: list[_Waiter] = []
        while self._due and self._due[0][0] <= now and len(due) < _MOST_IDS:
            waiter = heapq.heappop(self._due)[2]
            if not waiter.ending.done():
                due.append(waiter)
        return due

    async def _settle(self, due: Sequence[_Waiter]) -> None:
        """Look once, and tell each waiter what was found."""
        ids = {waiter.execution_id: None for waiter in due}
        unsure = {waiter.execution_id: None for waiter in due if not waiter.exists}
        try:
            found = await self._look(list(ids), list(unsure))
        except DatabaseUnreachable as error:
            self._retry_in = min(max(self._retry_in * 2, _FIRST_RETRY), _SLOWEST_RETRY)
            _log.warning(
                "no answer for %d waiters, asking again: %s",
                len(self._waiters),
                error,
                extra={"waiters": len(self._waiters)},
            )
            return
        except Exception as error:
            for waiter in due:
                _fail(waiter, error)
            return
        self._retry_in = 0.0
        for waiter in due:
            waiter.exists = True
            if waiter.execution_id in found.missing:
                _fail(waiter, ExecutionNotFound(waiter.execution_id))
            elif waiter.execution_id in found.endings and not waiter.ending.done():
                waiter.ending.set_result(found.endings[waiter.execution_id])

    def _put_back(self, waiter: _Waiter, now: float) -> None:
        if not waiter.ending.done():
            interval = look_interval(now - waiter.since)
            heapq.heappush(self._due, ((now // interval + 1) * interval, next(self._order), waiter))

    async def _pause(self, rest: float) -> None:
        """Rest, then sleep until the next look is due; end at once when everybody has gone."""
        rested_at = asyncio.get_running_loop().time() + rest
        while self._waiters:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(max(rested_at, self._due[0][0]) if self._due else None):
                    await self._changed.wait()
            except TimeoutError:
                return


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.ending.done():
        waiter.ending.set_exception(error)


def _closed(execution_id: str) -> DatabaseError:
    return DatabaseError(f"the scheduler was closed while execution {execution_id!r} was waited for; it goes on")
