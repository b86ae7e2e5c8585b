"""`Run`: one execution of a durable function, and its children, without a database, on a clock of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, overload

from zart.durable import DurableExecution
from zart.duration import Duration, seconds_of
from zart.engine.tasks import follow_tasks, leave_tasks
from zart.errors import InvalidArgument, ZartError, shown
from zart.model import EventAnswer, ExecutionStatus, StepRecord, StoredStatus
from zart.names import checked_name
from zart.registry import TaskRegistry
from zart.terms import checked_own_id, encoded_plain, spec_of, terms_of
from zart.testing.agenda import Action, Agenda
from zart.testing.crashes import Moment, Point
from zart.testing.execution import Execution
from zart.testing.journal import Clock
from zart.testing.world import RunStuck, World

D = TypeVar("D")
R = TypeVar("R")


class CrashNotReached(ZartError):
    """A crash was asked for at something that the run never stored."""


class Run(Generic[R]):
    """One execution, run in this event loop with a journal in memory: real steps, real replay, no database.

    Its clock stands still while code runs and jumps over waits, so that a sleep of 30 days takes no time. Each wait
    parks the body, and it is replayed from the journal, as in a worker. Nothing starts before `result` or `advance`.
    Scheduled steps and child executions are run too, each with a journal of its own, on the same clock, one after the
    other in the order they were made.

    Args:
        durable: the durable function.
        data: its input.
        execution_id: what `context()` tells of it.
        start: what its clock shows at first, with a timezone; by default the present time.
        registry: what can be scheduled and called as a child, as in a worker that serves it; by default everything.
        seed: what is due at one moment runs in a random order instead, the same for the same seed.

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
        registry: TaskRegistry | None = ...,
        seed: int | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        durable: DurableExecution[D, R],
        data: D,
        *,
        execution_id: str = ...,
        start: datetime | None = ...,
        registry: TaskRegistry | None = ...,
        seed: int | None = ...,
    ) -> None: ...
    def __init__(
        self,
        durable: DurableExecution[Any, R],
        data: Any = None,
        *,
        execution_id: str = "test",
        start: datetime | None = None,
        registry: TaskRegistry | None = None,
        seed: int | None = None,
    ) -> None:
        spec, execution_id = spec_of(durable), checked_own_id(execution_id)
        text = terms_of(spec, queue=None, priority=None, delay=None).encode(execution_id, data)
        self._clock = Clock() if start is None else Clock(_checked_start(start))
        self._agenda = Agenda(self._clock, seed)
        self._world = World(self._agenda, None if registry is None else registry.served)
        self._plan, self._starts = self._world.plan, self._world.starts
        self._execution = Execution(self._world, spec, execution_id, text, timeout=spec.timeout)
        self._driving = asyncio.Lock()

    # -- what happens to it

    @overload
    def offer_event(self, name: str, payload: Any = None, *, child: str = ...) -> EventAnswer: ...
    @overload
    def offer_event(self, name: str, payload: Any = None, *, after: Duration, child: str = ...) -> None: ...
    def offer_event(
        self, name: str, payload: Any = None, *, after: Duration | None = None, child: str = ""
    ) -> EventAnswer | None:
        """Offer an event, as a scheduler does: now, or when the run's clock has gone on by `after`.

        Args:
            child: name of the child execution that it is for, "order/payment" for a child's child.

        Returns:
            What became of it; None when it is yet to come.

        Raises:
            InvalidArgument: name or duration cannot be used, or there is no such child at that time.
            SerializationError: the payload cannot be kept.
        """
        checked_name(name, "the event")
        text = encoded_plain(payload, f"payload of event {name!r} of execution {self._execution.id!r}")
        if after is None:
            return self._execution.child_at(child).offer(name, text)
        self._plan_for(after, lambda: self._execution.child_at(child).offer(name, text))
        return None

    def cancel(self, *, after: Duration | None = None) -> None:
        """Cancel the execution, its children with it: now, or when the run's clock has gone on by `after`."""
        if after is None:
            self._execution.cancel()
        else:
            self._plan_for(after, self._execution.cancel)

    def crash_before(self, name: str, *, attempt: int | None = None) -> None:
        """The worker dies, once, right before the result of this name is stored: what the step did, it has done.

        Args:
            name: of a step, scheduled ones too, of a child execution, captured value, sleep or event; of the latter
                two, that the wait begins is stored. Of what is in a child execution, "order/pay".
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
        ending = self._execution.ending
        assert ending is not None
        missed = self._plan.missed()
        try:
            result: R = ending.output_by(self._execution.spec.output_codec)
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
        execution = self._execution
        if execution.ending is not None:
            return ExecutionStatus(StoredStatus(execution.ending.status).name.lower())
        if execution.current is not None:
            return ExecutionStatus.RUNNING
        return ExecutionStatus.WAITING if execution.passes else ExecutionStatus.PENDING

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
        return self._execution.journal.records()

    @property
    def starts(self) -> Mapping[str, int]:
        """How often each step was begun, tries after failures and crashes included. In a child: "order/pay"."""
        return dict(self._starts.count)

    @property
    def crashes(self) -> int:
        """How often a worker died, those of its children included."""
        return self._world.crashes

    @property
    def passes(self) -> int:
        """How often the body was begun: once, and again after each wait, crash and retry."""
        return self._execution.passes

    # -- inside

    async def _drive(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        async with self._driving:
            follow_tasks(loop)
            try:
                while self._execution.ending is None and (action := self._next(until)) is not None:
                    doing = action()
                    if isinstance(doing, Coroutine):
                        await doing
            finally:
                leave_tasks(loop)

    def _next(self, until: float) -> Action | None:
        if until == self._agenda.next_at() == math.inf:
            raise RunStuck(self._execution.why_stuck())
        return self._agenda.take(until)

    def _plan_for(self, after: Duration, action: Action) -> None:
        self._agenda.add(self._clock.now + seconds_of(after, "after"), action)


def _checked_start(start: object) -> datetime:
    if not isinstance(start, datetime) or start.tzinfo is None:
        raise InvalidArgument(f"start must be a datetime with a timezone, got {shown(start)}")
    return start
