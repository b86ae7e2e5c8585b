"""`Run`: one execution of a durable function without a database, on a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, overload

from zart.durable import DurableExecution
from zart.duration import Duration, seconds_of
from zart.engine.batch import VerbRow
from zart.engine.tasks import follow_tasks, leave_tasks
from zart.errors import InvalidArgument, ZartError, shown
from zart.model import EventAnswer, ExecutionStatus, StepRecord, StoredStatus, Verb
from zart.names import checked_name
from zart.terms import checked_own_id, encoded_plain, spec_of, terms_of
from zart.testing.crashes import CrashPlan, Moment, Point
from zart.testing.journal import Clock, Journal
from zart.testing.turns import Pass, Starts
from zart.waiting import Ending

D = TypeVar("D")
R = TypeVar("R")

MAX_PASSES = 10_000
# A parked turn says when it wants to go on as of its end, a moment after the time that it means: it is looked up.
_LATE = 0.001


class RunStuck(ZartError):
    """The run waits for what nobody will bring, or comes to no end."""


class CrashNotReached(ZartError):
    """A crash was asked for at something that the run never stored."""


class Run(Generic[R]):
    """One execution, run in this event loop with a journal in memory: real steps, real replay, no database.

    Its clock stands still while code runs and jumps over waits, so that a sleep of 30 days takes no time. Each wait
    parks the body, and it is replayed from the journal, as in a worker. Nothing starts before `result` or `advance`.

    Args:
        durable: the durable function.
        data: its input.
        execution_id: what `context()` tells of it.
        start: what its clock shows at first, with a timezone; by default the present time.

    Raises:
        InvalidArgument: an argument cannot be used.
        SerializationError: the input cannot be kept.

    Example:
        >>> run = zart.testing.Run(onboarding, Signup("ada@example.com"))
        >>> run.offer_event("approved", Approval(by="eve"), after="2d")
        >>> run.crash_after("send-email")
        >>> assert await run.result() == Receipt("ada@example.com")
        >>> assert run.elapsed == timedelta(days=2)
    """

    @overload
    def __init__(
        self,
        durable: DurableExecution[None, R],
        data: None = None,
        *,
        execution_id: str = ...,
        start: datetime | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self, durable: DurableExecution[D, R], data: D, *, execution_id: str = ..., start: datetime | None = ...
    ) -> None: ...
    def __init__(
        self,
        durable: DurableExecution[Any, R],
        data: Any = None,
        *,
        execution_id: str = "test",
        start: datetime | None = None,
    ) -> None:
        spec = spec_of(durable)
        self._spec, self._execution_id = spec, checked_own_id(execution_id)
        self._input = terms_of(spec, queue=None, priority=None, delay=None).encode(self._execution_id, data)
        self._clock = Clock() if start is None else Clock(_checked_start(start))
        self._journal = Journal(self._clock)
        self._plan, self._starts = CrashPlan(), Starts()
        self._deadline = math.inf if spec.timeout is None else spec.timeout
        self._run_at = 0.0
        self._to_come: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._attempt = self._passes = self._crashes = 0
        self._pass: Pass | None = None
        self._ending: Ending | None = None
        self._driving = asyncio.Lock()

    # -- what happens to it

    @overload
    def offer_event(self, name: str, payload: Any = None) -> EventAnswer: ...
    @overload
    def offer_event(self, name: str, payload: Any = None, *, after: Duration) -> None: ...
    def offer_event(self, name: str, payload: Any = None, *, after: Duration | None = None) -> EventAnswer | None:
        """Offer an event, as a scheduler does: now, or when the run's clock has gone on by `after`.

        Returns:
            What became of it; None when it is yet to come.

        Raises:
            InvalidArgument: name or duration cannot be used.
            SerializationError: the payload cannot be kept.
        """
        checked_name(name, "the event")
        text = encoded_plain(payload, f"payload of event {name!r} of execution {self._execution_id!r}")
        if after is None:
            return self._offer(name, text)
        self._plan_for(after, lambda: self._offer(name, text))
        return None

    def cancel(self, *, after: Duration | None = None) -> None:
        """Cancel the execution: now, or when the run's clock has gone on by `after`."""
        if after is None:
            self._cancel()
        else:
            self._plan_for(after, self._cancel)

    def crash_before(self, name: str, *, attempt: int | None = None) -> None:
        """The worker dies, once, right before the result of this name is stored: what the step did, it has done.

        Args:
            name: of a step, captured value, sleep or event; of the latter two, that the wait begins is stored.
            attempt: of a step that is retried, right before its failed try of this number (from 1) is stored instead.
        """
        self._plan.points.append(Point(Moment.BEFORE, checked_name(name, "the crash"), attempt))

    def crash_after(self, name: str, *, attempt: int | None = None) -> None:
        """As `crash_before`, but right after it is stored: the body has not heard of it."""
        self._plan.points.append(Point(Moment.AFTER, checked_name(name, "the crash"), attempt))

    # -- running it

    async def result(self) -> R:
        """Run it to its end; asked again, the answer is the same.

        Returns:
            The result, decoded as a scheduler's handle does.

        Raises:
            ExecutionFailed: it ended without one; ExecutionCancelled when it was cancelled.
            RunStuck: it waits for an event that nobody offers, or comes to no end. It may go on after `offer_event`.
            CrashNotReached: it ended, but a crash that was asked for never happened.
        """
        await self._drive(math.inf)
        assert self._ending is not None
        missed = self._missed_crashes()
        try:
            result: R = self._ending.output_by(self._spec.output_codec)
        except ZartError as failure:
            if missed:
                failure.add_note(missed)
            raise
        if missed:
            raise CrashNotReached(missed)
        return result

    async def advance(self, duration: Duration) -> ExecutionStatus:
        """Run until the clock has gone on by this much, or the run has ended; tells what it does then.

        Example:
            >>> assert await run.advance("2d") is ExecutionStatus.WAITING
            >>> run.offer_event("approved", Approval(by="eve"))
        """
        await self._drive(self._clock.now + seconds_of(duration, "duration"))
        return self.status

    # -- what has become of it

    @property
    def status(self) -> ExecutionStatus:
        """What the execution is doing, or how it ended."""
        if self._ending is not None:
            return ExecutionStatus(StoredStatus(self._ending.status).name.lower())
        if self._pass is not None:
            return ExecutionStatus.RUNNING
        return ExecutionStatus.WAITING if self._passes else ExecutionStatus.PENDING

    @property
    def now(self) -> datetime:
        """What the run's clock shows."""
        return self._clock.at(self._clock.now)

    @property
    def elapsed(self) -> timedelta:
        """How far its clock has gone since the start: the waits alone, as code takes no time on it."""
        return timedelta(seconds=self._clock.now)

    @property
    def history(self) -> list[StepRecord]:
        """The journal as `scheduler.history` gives it, in the order of writing."""
        return self._journal.records()

    @property
    def starts(self) -> Mapping[str, int]:
        """How often each step was begun, tries after failures and crashes included."""
        return dict(self._starts.count)

    @property
    def crashes(self) -> int:
        """How often its worker died."""
        return self._crashes

    @property
    def passes(self) -> int:
        """How often the body was begun: once, and again after each wait, crash and retry."""
        return self._passes

    # -- inside

    async def _drive(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        async with self._driving:
            follow_tasks(loop)
            try:
                while self._ending is None and self._move_clock(until):
                    if self._to_come and self._to_come[0][0] <= self._clock.now:
                        heapq.heappop(self._to_come)[2]()
                    else:
                        await self._begin_pass()
            finally:
                leave_tasks(loop)

    def _move_clock(self, until: float) -> bool:
        """Go on to what comes next; False when that is after `until`."""
        at = min(self._run_at, self._to_come[0][0] if self._to_come else math.inf)
        if until == at == math.inf:
            raise RunStuck(self._why_stuck())
        if self._passes >= MAX_PASSES:
            raise RunStuck(f"execution {self._execution_id!r} has not ended after {MAX_PASSES:,} passes of its body")
        self._clock.now = max(self._clock.now, min(at, until))
        return at <= until

    async def _begin_pass(self) -> None:
        self._passes += 1
        self._pass = current = Pass(self._journal, self._plan, self._starts, self._passes)
        deadline_in = None if self._deadline == math.inf else self._deadline - self._clock.now
        data = self._spec.input_codec.decode(self._input) if self._spec.takes_data else None
        try:
            await current.run(self._spec, self._execution_id, data, self._attempt, deadline_in)
        finally:
            self._pass = None
            self._crashes += current.crashed
            if current.ending is not None and self._ending is None:
                self._take(current.ending)

    def _take(self, row: VerbRow) -> None:
        """What the tick does with the queue row."""
        due = self._clock.now + (row.due or 0.0)
        if row.verb == Verb.FINISH:
            self._end(StoredStatus(row.status), row.output, row.error)
        elif row.verb == Verb.PARK:
            self._run_at = self._clock.now if row.seen != self._journal.wakes else self._due_at(due)
        else:
            self._run_at = due
        if row.verb == Verb.RETRY:
            self._attempt += 1
            self._journal.begin_retry()

    def _due_at(self, about: float) -> float:
        """The stored moment that a parked turn waits for."""
        known = (*self._journal.dues(), self._deadline)
        return min((due for due in known if due > self._clock.now and due >= about - _LATE), default=about)

    def _end(self, status: StoredStatus, output: bytes | None = None, error: bytes | None = None) -> None:
        texts = (None if text is None else text.decode() for text in (output, error))
        self._ending = Ending(self._execution_id, self._spec.task_name, status, *texts)

    def _offer(self, name: str, text: str) -> EventAnswer:
        if self._ending is not None:
            return EventAnswer.FINISHED
        answer = self._journal.offer(name, text)
        if answer is EventAnswer.ACCEPTED:
            self._run_at = min(self._run_at, self._clock.now)
            if self._pass is not None:
                self._pass.hear_soon()
        return answer

    def _cancel(self) -> None:
        if self._ending is None:
            self._end(StoredStatus.CANCELLED)
            if self._pass is not None:
                self._pass.drop()

    def _plan_for(self, after: Duration, action: Callable[[], object]) -> None:
        at = self._clock.now + seconds_of(after, "after")
        heapq.heappush(self._to_come, (at, next(self._order), action))

    def _why_stuck(self) -> str:
        names = self._journal.awaited_events()
        which = " and ".join(map(repr, names))
        return (
            f"execution {self._execution_id!r} waits for the event {which}, and nobody will offer it;"
            f" say run.offer_event({names[0]!r}, ...) before, with after=... for later, or give the wait a timeout"
        )

    def _missed_crashes(self) -> str:
        left = ", ".join(str(point) for point in self._plan.points if point.name)
        stored = ", ".join(dict.fromkeys(write.name for write in self._plan.writes if write.name)) or "nothing"
        return f"the run ended without {left}: it stored {stored}" if left else ""


def _checked_start(start: object) -> datetime:
    if not isinstance(start, datetime) or start.tzinfo is None:
        raise InvalidArgument(f"start must be a datetime with a timezone, got {shown(start)}")
    return start
