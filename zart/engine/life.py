"""How a turn ends, and how it is stopped before that. No SQL.

When a turn has to stop, every further zart call in its body raises `Suspended` and records nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from zart.engine import failure, handler
from zart.engine.batch import NEVER
from zart.engine.children import CHILDLESS
from zart.engine.host import Host
from zart.engine.replay import Checkpoint, History
from zart.engine.retry import delay_before_retry
from zart.engine.signals import Stop, Suspended
from zart.engine.spec import DurableSpec
from zart.engine.tasks import is_joining
from zart.model import ExecutionInfo, StoredStatus, Verb

log = logging.getLogger("zart.engine")

# A body that swallows its cancellation is left to itself after this long; nothing it does is recorded any more.
ABANDON_AFTER = 5.0

# Or when one of its tasks was refused so often: it swallows the signal, and tries again and again.
MOST_REFUSALS = 1_000

# Rounds of the event loop. From the end of a task to the next line of one that joins it in a group or gather: two.
SETTLED_AFTER = 3

# How long a body that is handed back may take to end by itself, when it was refused something.
THROW_OUT_AFTER = 1.0

RUNNING_CHECKED_EVERY = 0.02

# Tasks of bodies that swallow every signal. Never freed: that would let them go on, outside of any execution.
_given_up: set[asyncio.Task[Any]] = set()
_forget_task: Callable[[asyncio.Task[Any]], None] = getattr(asyncio.tasks, "_unregister_task", _given_up.add)

_PAST_DEADLINE = {
    "kind": "deadline_exceeded",
    "type": "DeadlineExceeded",
    "message": "the execution's deadline passed",
}


class TurnLife:
    """What a turn is, from its claim to its end.

    Attributes:
        id, run, epoch, bucket: the claim.
        history: what the journal had; None for an execution that nobody ran before.
        seen: how many wake-ups its history knows of; more mean that an event may have come.
        stop: why it has to stop, None while it may go on.
        ended: its ending was sent, or its claim is gone.
        apart: it was set apart, and is the only one here.
        first_failure: how the body failed, if this turn runs the failure handler in its place.
        prefix: what its names begin with in the journal.
        tally: what to add to the offsets of what is counted per task.
        born: `time.monotonic()` of its execution's start.
        took: of a scheduled step that has ended, the seconds of its last try, if its ending is what commits it.
    """

    __slots__ = (
        "abandon_timer", "adopted", "apart", "attempt", "began", "born", "bucket", "crashes", "cut", "data",
        "deadline_at", "deadline_timer", "done_at", "ended", "epoch", "events", "execution_id", "failed", "family",
        "first_failure", "handled", "history", "host", "id", "late", "latest", "loop", "made", "main", "names",
        "parent", "prefix", "priority", "queue", "refusal", "refusals", "run", "running", "seen", "spec",
        "step_failure", "stop", "storing", "tally", "tasks", "thrown_out", "took", "unread", "waiting_since", "waits",
        "wake_at",
    )  # fmt: skip

    spec: DurableSpec
    data: Any
    attempt: int
    loop: asyncio.AbstractEventLoop
    queue: str
    priority: int
    parent: ExecutionInfo | None
    took: float | None

    def __init__(
        self,
        host: Host,
        claim_id: int,
        run: int,
        epoch: int,
        bucket: int,
        seen: int,
        *,
        adopted: bool = False,
        crashes: int = 0,
        tally: int = 0,
    ) -> None:
        self.host, self.id, self.run, self.epoch, self.bucket, self.seen = host, claim_id, run, epoch, bucket, seen
        self.history: History | None = None
        self.stop: Stop | None = None
        self.refusal: failure.Record | None = None
        self.step_failure: failure.Record | None = None  # of a scheduled step: how the execution fails
        self.first_failure: failure.Record | None = None
        self.handled = False  # its failure is for the handler
        self.prefix = ""
        self.ended = False
        self.execution_id = ""
        self.main: asyncio.Task[None] | None = None
        self.names: set[int] = set()
        self.tasks: set[asyncio.Task[Any]] = set()  # that called zart
        self.made: set[asyncio.Task[Any]] = set()  # by the body's own code
        self.failed: list[asyncio.Task[Any]] = []  # of those made
        self.storing: set[asyncio.Future[Any]] = set()
        self.latest: asyncio.Future[Any] | None = None  # of those; they are stored in the order they came
        self.late: set[asyncio.Future[Any]] = set()  # those of them that are not
        self.waits: dict[asyncio.Task[Any], float] = {}
        self.events: dict[int, asyncio.Future[Checkpoint]] = {}
        self.refusals: dict[asyncio.Task[Any] | None, int] = {}
        self.unread: set[int] = set()  # those of them that nobody has looked for yet
        self.family = CHILDLESS
        self.done_at = NEVER
        self.deadline_timer: asyncio.TimerHandle | None = None
        self.abandon_timer: asyncio.TimerHandle | None = None
        self.deadline_at = self.wake_at = math.inf
        self.cut = self.thrown_out = False
        self.adopted, self.crashes, self.tally = adopted, crashes, tally
        self.born, self.took = 0.0, None
        self.apart = False
        self.running = 0  # steps, those in a delay between two tries left out
        self.began = self.waiting_since = 0.0

    # -- ending

    def _end(self, error: BaseException | None, output: bytes | None) -> None:
        if self.ended:
            return
        retry_in, record = self._judge(error, output)
        self.close()
        end = self.host.rows.end
        if self.stop is not None and (self.cut or self.stop is not Stop.HAND_BACK):
            self._end_stopped(self.stop)
        elif record is None:
            end(self, Verb.FINISH, seen=self.family.unwanted(), status=StoredStatus.COMPLETED, output=output)
        elif retry_in is not None:
            end(self, Verb.RETRY, due=min(retry_in, self.deadline_at - self.loop.time()), error=failure.encode(record))
        else:
            self._fail(record)

    def _fail(self, record: failure.Record) -> None:
        """End in failure. If there is a handler, it is asked first; of its own failure, the body's stands."""
        first, end = self.first_failure, self.host.rows.end
        if self.handled:
            end(self, Verb.HANDLE, error=failure.encode(record))
            return
        if first is not None:
            record = handler.final_record(first, None if record is first else record)
        end(self, Verb.FINISH, status=StoredStatus.FAILED, error=failure.encode(record))

    def _judge(self, error: BaseException | None, output: bytes | None) -> tuple[float | None, failure.Record | None]:
        """Seconds until the execution is retried, if it is, and the record of its failure, if it failed."""
        if error is None:
            return None, self.first_failure if output is None else None
        if self.step_failure is not None:
            return None, self.step_failure
        retry = self.spec.retry
        try:
            record = failure.execution_failure(error)
            retry_in = None if self.first_failure is not None else delay_before_retry(retry, self.attempt, error)
        except BaseException as broken:  # the user's retry_on
            return None, {**failure.describe(broken), "kind": "body_failed"}
        if self.handled and retry_in is None:
            used_up = 0 < retry.retries <= self.attempt
            record = handler.for_handler(record, error, self.attempt + 1 if used_up else None)
        return retry_in, record

    def _end_stopped(self, stop: Stop) -> None:
        end = self.host.rows.end
        if stop is Stop.HAND_BACK:
            end(self, Verb.PUT_OFF, due=0.0)
        elif stop is Stop.PARK:
            end(self, Verb.PARK, seen=self.seen, done_at=self.done_at, due=max(0.0, self.wake_at - self.loop.time()))
        elif stop is Stop.DEADLINE:
            self._fail(_PAST_DEADLINE)
        elif stop is Stop.REFUSED:
            self._fail(self.refusal or {})

    def close(self) -> None:
        """Nothing is recorded from here on."""
        self.ended = True
        for timer in (self.deadline_timer, self.abandon_timer):
            if timer is not None:
                timer.cancel()

    # -- stopping

    def hand_back(self) -> None:
        """Let running steps end and be kept; begin nothing else. A body that only waits is suspended at once."""
        if self.stop is None:
            self.stop = Stop.HAND_BACK
            self.put_down()

    def rest(self, now: float) -> None:
        """Give the slot back when the body has only waited for a while. Called all the time."""
        if self.waits and (self.stop is not None or now - self.waiting_since >= self.host.grace):
            self.put_down()

    def put_down(self) -> None:
        """Park, or hand back, a body that only waits, when nothing in it has changed for a few rounds of the loop.

        A task that has just ended wakes those that wait for it only then; they would go on when the wait is over.
        """
        self._put_down_if_still(None, SETTLED_AFTER)

    def _put_down_if_still(self, before: dict[asyncio.Task[Any], Any] | None, rounds: int) -> None:
        if self.ended or self.thrown_out or not self.waits or self.stop not in (None, Stop.HAND_BACK):
            return
        if not self._is_only_waiting():
            if self.stop is Stop.HAND_BACK and not (self.running or self.storing):
                self._cancel()
            return
        body = {task: getattr(task, "_fut_waiter", None) for task in (*self.tasks, *self.made) if not task.done()}
        if self.main is not None:
            body[self.main] = getattr(self.main, "_fut_waiter", None)
        left = rounds - 1 if body == before else SETTLED_AFTER
        if left:
            self.loop.call_soon(self._put_down_if_still, body, left)
        elif not self.unread and not self.cut:
            self.interrupt(Stop.PARK)
        elif self.stop is Stop.HAND_BACK:  # one of its tasks was refused something, or an event may be there
            self._cancel()

    def interrupt(self, stop: Stop) -> None:
        """Cancel what runs; record none of it."""
        if self.ended:
            return
        self.stop = stop
        self.wake_at = min((*self.waits.values(), self.deadline_at))
        self.done_at = self.family.awaited()
        self._cancel()

    def lose(self) -> None:
        """The claim is gone: whatever the body still does is not recorded."""
        self.interrupt(Stop.LOST)
        self.stop = Stop.LOST
        self.close()
        for future in list(self.storing):
            future.cancel()

    def refuse(self, record: failure.Record) -> None:
        """PostgreSQL will not store a value of this turn: the execution fails with this record."""
        if self.is_lost():
            return
        self.refusal = record
        if self.ended:
            self._fail(record)
        else:
            self.interrupt(Stop.REFUSED)

    def _cancel(self) -> None:
        self._cut_off()
        self.thrown_out = True
        for task in self.tasks if self.stop is not Stop.PARK else self.tasks | self.made:
            task.cancel()
        if self.main is not None:
            self.main.cancel()
            # Not in the body's context, which has the turn: asyncio keeps that of a cancelled timer until it was due.
            self.abandon_timer = self.loop.call_later(ABANDON_AFTER, self._abandon, context=contextvars.Context())

    def _abandon(self) -> None:
        if self.main is not None and not self.main.done() and not self.ended:
            log.warning("execution %s does not stop when cancelled; it is left to itself", self.execution_id)
            self._end(None, None)

    async def _abandon_for_good(self) -> None:
        """Leave a body to itself that swallows every signal: the caller never goes on.

        Its tasks are taken off asyncio's list: the end of an event loop would wait for them for ever.
        """
        self._abandon()
        for task in (*self.tasks, *self.made, self.main):
            if task is not None and not task.done():
                _given_up.add(task)
                _forget_task(task)
        await self.loop.create_future()

    async def step_aside(self) -> NoReturn:
        """Raise the signal; of a body that is handed back, when its running steps have ended: it would cancel them."""
        while self.stop is Stop.HAND_BACK and not self.cut and (self.running or self.storing):  # noqa: ASYNC110
            await asyncio.sleep(RUNNING_CHECKED_EVERY)
        if self.stop is Stop.HAND_BACK and not self.cut:
            self.loop.call_later(THROW_OUT_AFTER, self._throw_out)
        raise self.suspended()

    def _throw_out(self) -> None:
        """A task of the body was refused something, and another waits for what does not come any more."""
        if not self.ended and not self.thrown_out:
            self._cancel()

    def suspended(self) -> Suspended:
        """The signal to raise; from now on the body did not run to its end, whatever it makes of the signal."""
        self._cut_off()
        return Suspended()

    def _cut_off(self) -> None:
        """From now on nobody asks the body's tasks how they ended: asyncio need not complain of it."""
        self.cut = True
        while self.failed:
            self.failed.pop().exception()

    def _is_only_waiting(self) -> bool:
        """True when each task of the body waits durably, or for others that do."""
        if self.running or self.storing or self.family.is_busy() or any(one.done() for one in self.events.values()):
            return False
        body = self.tasks | self.made
        if self.main is not None:
            body.add(self.main)
        return all(task in self.waits or task.done() or is_joining(task, body) for task in body)

    def hear(self, wakes: int, found: Mapping[int, Checkpoint], looked_for: Iterable[int]) -> None:
        """Take in what was looked for. `wakes` was read before the events were: none of them is ever missed."""
        if self.thrown_out:  # it parks with the counter that its body knows of
            return
        self.seen = wakes
        self.unread = self.events.keys() - looked_for  # those whose wait began meanwhile
        for key, event in found.items():
            future = self.events.get(key)
            if future is not None and not future.done():
                future.set_result(event)
        self.family.hear(found)
        if not self.host.grace:
            self.put_down()

    def keep_late(self, storing: asyncio.Future[Any]) -> None:
        """Something is being stored that checkpoints after it may overtake."""
        for one in (self.storing, self.late):
            one.add(storing)
            storing.add_done_callback(one.discard)

    def name(self) -> str:
        """How logs call it: the caller's id, or the number of one that was not begun."""
        return repr(self.execution_id) if self.execution_id else f"number {self.id}"

    def is_running(self) -> bool:
        """True while the body has not come to its end."""
        return self.main is not None and not self.main.done()

    def is_calling(self) -> bool:
        """True in a task of its body; not while its coroutines are closed from elsewhere."""
        caller = asyncio.current_task(self.loop)
        return caller is not None and (caller is self.main or caller in self.tasks)

    def is_lost(self) -> bool:
        """True when the claim is gone."""
        return self.stop is Stop.LOST

    def is_resumed(self) -> bool:
        """True when the journal may hold something of this run."""
        return self.epoch > 1 or self.seen > 0 or self.adopted

    def is_interrupted(self) -> bool:
        """True when not even what is already running may be recorded."""
        return self.ended or (self.stop is not None and self.stop is not Stop.HAND_BACK)
