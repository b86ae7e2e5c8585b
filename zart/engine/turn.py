"""A body in flight: one pass of a durable function under one claim. No SQL.

Everything a body does through zart passes here: it is answered from the history, or done and handed to the ticker.
When the turn has to stop, every further zart call in it raises `Suspended` and records nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic_ns, perf_counter
from typing import Any, NoReturn

from zart.codec import Codec, codec_for, step_key
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE
from zart.engine import failure, handler, waits
from zart.engine.attempt import TRX_BELONGS, StepRun
from zart.engine.batch import NEVER
from zart.engine.children import CHILDLESS, Child, Family
from zart.engine.host import Host
from zart.engine.replay import Checkpoint, History
from zart.engine.retry import delay_before_retry
from zart.engine.scope import current_scope
from zart.engine.signals import Stop, Suspended
from zart.engine.spec import ChildInvocation, DurableSpec, StepInvocation
from zart.engine.tasks import is_joining
from zart.engine.where import where
from zart.errors import DuplicateStepName, NotInBody, NotInExecution, NotInStep, SerializationError
from zart.metrics import STEPS_COMPLETED, STEPS_REPLAYED
from zart.model import ExecutionInfo, KeySpace, Kind, Outcome, StoredStatus, Verb
from zart.names import FAILURE_PREFIX
from zart.postgres.connection import Connection

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

_STEP_SPACE = int(KeySpace.STEP)
_PAST_DEADLINE = {
    "kind": "deadline_exceeded",
    "type": "DeadlineExceeded",
    "message": "the execution's deadline passed",
}
_TIME_CODEC = codec_for(datetime, where="now()")


class Turn:
    """One turn. Made at the claim, begun when its input (and history, if any) is loaded.

    Attributes:
        id, run, epoch, bucket: the claim.
        history: what the journal had; None for an execution that nobody ran before.
        seen: how many wake-ups its history knows of; more mean that an event may have come.
        stop: why it has to stop, None while it may go on.
        ended: its ending was sent, or its claim is gone.
        first_failure: how the body failed, if this turn runs the failure handler in its place.
        prefix: what its names begin with in the journal.
    """

    __slots__ = (
        "abandon_timer", "adopted", "attempt", "began", "bucket", "crashes", "cut", "data", "deadline_at",
        "deadline_timer", "done_at", "ended", "epoch", "events", "execution_id", "failed", "family", "first_failure",
        "handled", "history", "host", "id", "late", "latest", "loop", "made", "main", "names", "parent", "prefix",
        "priority", "queue", "refusal", "refusals", "run", "running", "seen", "spec", "step_failure", "stop",
        "storing", "tasks", "thrown_out", "unread", "waiting_since", "waits", "wake_at",
    )  # fmt: skip

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
        self.adopted, self.crashes = adopted, crashes
        self.running = 0  # steps, those in a delay between two tries left out
        self.began = self.waiting_since = 0.0

    # -- life, in order

    def begin(
        self,
        spec: DurableSpec,
        execution_id: str,
        data: Any,
        attempt: int,
        deadline_in: float | None,
        loop: asyncio.AbstractEventLoop,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        parent: ExecutionInfo | None = None,
    ) -> None:
        """Start the body in a task of its own, unless its time is up; the failure handler, if the body has failed.

        Args:
            deadline_in: seconds, None for no deadline. It does not count for the failure handler.
            parent: of a scheduled step, what `context()` tells there.
        """
        self.spec, self.execution_id, self.data, self.attempt, self.loop = spec, execution_id, data, attempt, loop
        self.queue, self.priority, self.parent = queue, priority, parent
        self.began = loop.time()
        self.family = Family.of(self)
        if self.history is not None:
            self.first_failure = handler.journaled_failure(self.history)
        self.handled = spec.on_failure is not None and self.first_failure is None
        if self.first_failure is not None:
            deadline_in, self.prefix = None, FAILURE_PREFIX
            if spec.on_failure is None:  # the code that failed had one
                self._end(None, None)
                return
        if deadline_in is not None and deadline_in <= 0:
            self.stop = Stop.DEADLINE
            self._end(None, None)
            return
        if deadline_in is not None:
            self.deadline_at = self.began + deadline_in
            self.deadline_timer = loop.call_later(deadline_in, self.interrupt, Stop.DEADLINE)
        context = contextvars.copy_context()
        context.run(current_scope.set, self)
        # Not by the loop's task factory: an eager one would run the body before it is known which task it is.
        self.main = asyncio.Task(self.host.attribution.wrap(self._run(), self.id), loop=loop, context=context)
        self.main.add_done_callback(self._end_anyway, context=context)

    def _end_anyway(self, _: object) -> None:
        """No turn outlives its body unended: a claim that nobody ends is held for ever. Runs in the body's context."""
        current_scope.set(None)  # or turn, task and context are a circle, which only the garbage collector frees
        if not self.ended:
            self._end(RuntimeError("the body's task ended without an answer"), None)

    async def _run(self) -> None:
        error: BaseException | None = None
        output: bytes | None = None
        try:
            value = await self._invoke()
            if self.made or self.tasks or self.family is not CHILDLESS:
                await self._await_started()
            output = b"null" if self.cut else self._encoded_output(value)
        except BaseException as raised:
            error = raised
        try:
            if error is not None:
                await self._cancel_started()
        finally:  # also when cancelled once more
            self._end(error, output)

    def _invoke(self) -> Awaitable[Any]:
        if self.first_failure is not None:
            assert self.spec.on_failure is not None
            return self.spec.on_failure(self.data, handler.rebuild_failure(self.first_failure))
        return self.spec.invoke(self.data)

    def _encoded_output(self, value: Any) -> bytes | None:
        """The result to keep; None: a failure handler gives none, and the failure stands."""
        if value is None and self.first_failure is not None:
            return None
        try:
            return self.check_size(self.spec.output_codec.encode(value))
        except SerializationError as error:
            raise error.located(f"result of execution {self.execution_id!r}") from error.__cause__

    async def _await_started(self) -> None:
        """A body that returns waits for the steps it started and that still run; their failure is its own."""
        if self.made:
            await asyncio.sleep(0)  # tasks that have not begun call zart now
        while (running := [task for task in self.tasks if not task.done()]) or self.family.has_left_over():
            if not running:
                await self.family.left_over()
                continue
            for task in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                if not task.cancelled():
                    task.result()

    async def _cancel_started(self) -> None:
        if running := [task for task in self.tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=ABANDON_AFTER)

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
            self.abandon_timer = self.loop.call_later(ABANDON_AFTER, self._abandon)

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

    def name(self) -> str:
        """How logs call it: the caller's id, or the number of one that was not begun."""
        return repr(self.execution_id) if self.main is not None else f"number {self.id}"

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

    # -- what a body says

    async def run_step(self, call: StepInvocation) -> Any:
        """Scope.run_step."""
        if self.ended or self.stop is not None:
            await self._refuse_call()
        name = self.prefix + call.resolved_name()
        key = self.claim_name(name)
        spec = call.spec
        tries = None
        if self.history is not None:
            stored = self.history.find(key, name, Kind.STEP, self.main)
            if stored is not None:
                self.host.place.words[STEPS_REPLAYED] += 1
                return replayed(stored, spec.codec, spec.raises)
            tries = self.history.tries.get(key)
        self._know_caller()
        run = StepRun(self, call, name, key, tries)
        thread = self.host.place.enter_thread(self.id) if spec.in_thread else None
        value: Any = None
        failed: BaseException | None = None
        token = current_scope.set(run)
        self.running += 1
        try:
            if self.storing or self.family.unmade:
                await self._earlier_checkpoints()
            if monotonic_ns() > self.host.sure_until[self.bucket]:
                await self.host.make_sure(self)
            try:
                value = await (call.invoke() if spec.timeout is None and tries is None else run.first_try())
                if run.transaction is not None:
                    value = await run.commit(value)
            except BaseException as error:
                failed = error
            if failed is not None:  # not in the handler: a later try's error does not come of an earlier one's
                value = await run.later_tries(failed)
        finally:
            failed = None
            run.trying = False
            self.running -= 1
            current_scope.reset(token)
            if thread is not None:
                self.host.place.leave_thread(thread)
        # The checkpoint is kept even when the body is being handed back: the effect has happened.
        if self.stop is not None and self.is_interrupted():
            raise self.suspended()
        if run.transaction is not None:  # it has taken the checkpoint with it
            if run.transaction.stored is not None:
                return replayed(run.transaction.stored, spec.codec, spec.raises)
            self.host.place.words[STEPS_COMPLETED] += 1
            return value
        try:
            result, value = spec.codec.round_trip(value)
            self.check_size(result)
        except SerializationError as error:
            await run.fail(error, "serialization")
        except Exception as error:  # code of the value's own type
            await run.fail(SerializationError(failure.one_line(error)), "serialization")
        if self.spec.is_step:  # its result is the execution's own, which its ending keeps
            return value
        # As `store` does, without a coroutine more: this is the way of every step.
        self.latest = future = self.host.rows.checkpoint(
            self, key, 1, 1, run.number, None, perf_counter() - run.began, name, result, None
        )
        self.storing.add(future)
        try:
            stored = await future
        finally:
            self.storing.discard(future)
        if stored is not None:
            return replayed(stored, spec.codec, spec.raises)
        self.host.place.words[STEPS_COMPLETED] += 1
        return value

    async def capture(self, name: str, function: Callable[[], Any], codec: Codec) -> Any:
        """Scope.capture."""
        name = self.prefix + name
        key, stored = await self.begin_operation(name, Kind.CAPTURE)
        return replayed(stored, codec, ()) if stored is not None else await self._keep(name, key, function(), codec)

    async def now(self, name: str) -> datetime:
        """Scope.now."""
        name = self.prefix + name
        key, stored = await self.begin_operation(name, Kind.CAPTURE)
        if stored is not None:
            kept: datetime = replayed(stored, _TIME_CODEC, ())
        else:
            kept = await self._keep(name, key, (await self.host.database_time()).astimezone(UTC), _TIME_CODEC)
        return kept

    async def sleep(self, name: str, seconds: float) -> None:
        """Scope.sleep."""
        await waits.sleep(self, self.prefix + name, seconds)

    async def sleep_until(self, name: str, when: datetime) -> None:
        """Scope.sleep_until."""
        await waits.sleep_until(self, self.prefix + name, when)

    async def wait_for_event(self, name: str, codec: Codec, timeout: float | None) -> Any:
        """Scope.wait_for_event."""
        return await waits.wait_for_event(self, name, codec, timeout)

    async def _keep(self, name: str, key: int, value: Any, codec: Codec) -> Any:
        if self.ended or self.is_interrupted():
            raise self.suspended()
        try:
            result, value = codec.round_trip(value)
            self.check_size(result)
        except SerializationError as error:
            raise error.named(name) from None
        stored = await self.store(key, Kind.CAPTURE, Outcome.COMPLETED, 1, 0.0, name, result, None)
        return value if stored is None else replayed(stored, codec, ())

    def schedule(self, call: ChildInvocation) -> Child:
        """Scope.schedule."""
        spec = call.as_child()
        if self.family is CHILDLESS:
            self.family = Family(self)
        return self.family.schedule(dataclasses.replace(spec, name=self.prefix + spec.name) if self.prefix else spec)

    async def wait_for_children(self, children: Sequence[Child]) -> None:
        """Scope.wait_for_children."""
        if self.family is CHILDLESS:
            self.family = Family(self)
        await self.family.outcomes(children)

    async def trx(self) -> Connection:
        """Refused: there is no step whose checkpoint it could go with."""
        raise NotInStep(f"trx() was called in the body of execution {self.execution_id!r}{where()}; {TRX_BELONGS}")

    def info(self) -> ExecutionInfo:
        """Scope.info."""
        if self.parent is not None:
            return self.parent
        return ExecutionInfo(self.execution_id, self.spec.task_name, self.data, self.attempt, self.spec.retry.retries)

    def know_task(self, task: asyncio.Task[Any]) -> None:
        """Scope.know_task."""
        if not self.ended:
            self.made.add(task)
            task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self.made.discard(task)
        if task.cancelled():
            return
        if self.cut:
            task.exception()
        elif getattr(task, "_exception", None) is not None:  # asking for it by exception() would hide it
            self.failed.append(task)

    # -- parts

    async def begin_operation(self, name: str, kind: Kind) -> tuple[int, Checkpoint | None]:
        """The key of an operation other than a step, and its checkpoint if there is one."""
        await self.may_call()
        key = self.claim_name(name)
        return key, None if self.history is None else self.history.find(key, name, kind, self.main)

    async def begin_event(self, name: str) -> tuple[int, Checkpoint | None]:
        """The key of an event to be waited for, and what the history has under it."""
        await self.may_call()
        key = step_key(KeySpace.EVENT, name)
        if key in self.names:
            raise DuplicateStepName(
                f"execution {self.execution_id!r} waits twice for the event {name!r}{where(self.main)};"
                f' only one event of a name is kept in a run: give each its own name, as "{name}-2"'
            )
        self.names.add(key)
        return key, None if self.history is None else self.history.find(key, name, Kind.EVENT, self.main)

    async def store(
        self,
        key: int,
        kind: int,
        status: int,
        attempts: int,
        seconds: float,
        name: str,
        result: bytes | None,
        error: bytes | None,
        due: float | None = None,
    ) -> Checkpoint | None:
        """Commit one journal row; None when it is stored, else the row that stands there instead."""
        self.latest = future = self.host.rows.checkpoint(
            self, key, kind, status, attempts, due, seconds, name, result, error
        )
        self.storing.add(future)
        try:
            return await future
        finally:
            self.storing.discard(future)

    def keep_late(self, storing: asyncio.Future[Any]) -> None:
        """Something is being stored that checkpoints after it may overtake."""
        for one in (self.storing, self.late):
            one.add(storing)
            storing.add_done_callback(one.discard)

    def _know_caller(self) -> None:
        """Remember a task of the body's own that calls zart: the turn ends only when it has ended.

        Raises:
            NotInBody: it is a task of another event loop, so of another thread.
        """
        task = asyncio.current_task()
        if task is not self.main and task is not None and task not in self.tasks:
            if asyncio.get_running_loop() is not self.loop:
                raise self._in_thread("zart")
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _in_thread(self, what: str) -> NotInBody:
        return NotInBody(
            f"{what} was called in a thread by the body of execution {self.execution_id!r}{where()}; call it in the"
            " body itself"
        )

    async def store_failure(self, key: int, number: int, record: failure.Record, seconds: float, name: str) -> None:
        """Commit a step's failure; raise or return what stands there instead, if something does."""
        if self.spec.is_step:
            self.step_failure = record
            return
        status = failure.outcome_of(record)
        stored = await self.store(key, Kind.STEP, status, number, seconds, name, None, failure.encode(record))
        if stored is not None:
            record.clear()
            record.update(failure.decode(stored.error or "{}"))

    def check_size(self, data: bytes) -> bytes:
        """The data, if it is not over the limit.

        Raises:
            SerializationError: it is.
        """
        if len(data) > self.host.max_result_bytes:
            raise SerializationError(
                f"it takes {len(data):,} bytes, the limit is {self.host.max_result_bytes:,};"
                " keep it elsewhere and return a reference, or raise max_result_bytes"
            )
        return data

    def claim_name(self, name: str) -> int:
        """The key of a name that was not used before in this turn.

        Raises:
            DuplicateStepName: it was.
        """
        key = step_key(_STEP_SPACE, name)
        if key in self.names:
            given = name.removeprefix(self.prefix)
            raise DuplicateStepName(
                f"{'on_failure of ' * bool(self.prefix)}execution {self.execution_id!r} uses the name {given!r}"
                f" twice{where(self.main)}; names identify checkpoints: give each its own, as with"
                f' .named("{given}-2") or a template like "{given}-{{item}}"'
            )
        self.names.add(key)
        return key

    async def may_call(self) -> None:
        """Return when the body may go on; raise or wait as the turn's state asks for."""
        if self.ended or self.stop is not None:
            await self._refuse_call()
        self._know_caller()

    def check_may_call(self, what: str) -> None:
        """As `may_call`, of a call that is no coroutine. While running steps are let end, it goes on to its next await.

        Raises:
            NotInBody: it is called in a thread.
        """
        if _running_loop() is not self.loop:
            raise self._in_thread(what)
        if self.stop is Stop.HAND_BACK and not self.cut and (self.running or self.storing):
            return
        if self.stop is not None and not self._is_over():
            raise self.suspended()
        if self.ended or self.stop is not None:
            raise self._outlived()
        self._know_caller()

    def _is_over(self) -> bool:
        return self.ended and self.main is not None and self.main.done()

    async def _refuse_call(self) -> NoReturn:
        await asyncio.sleep(0)  # a task that tries again and again must not keep the event loop to itself
        if self.stop is not None and not self._is_over():
            caller = asyncio.current_task(self.loop)
            self.refusals[caller] = refusals = self.refusals.get(caller, 0) + 1
            if refusals > MOST_REFUSALS:
                await self._abandon_for_good()
            await self.step_aside()
        raise self._outlived()

    def _outlived(self) -> NotInExecution:
        return NotInExecution(
            f"execution {self.execution_id!r} has ended its turn, but is called{where() or ' again'};"
            " await everything that a body starts before it returns"
        )

    async def _earlier_checkpoints(self) -> None:
        """No effect starts before every checkpoint is durable that was there when its step was called."""
        self.family.make()
        latest = self.latest
        while earlier := {one for one in (latest, *self.late) if one is not None and not one.done()}:
            await asyncio.wait(earlier)  # one of them may be late only now
        if self.stop is not None:
            self.running -= 1  # the caller, which has not begun
            try:
                await self.step_aside()
            finally:
                self.running += 1


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def replayed(stored: Checkpoint, codec: Codec, raises: tuple[type[Exception], ...]) -> Any:
    """What a stored checkpoint comes back as: its value, or its error raised."""
    if stored.status == Outcome.COMPLETED:
        try:
            return codec.decode(stored.result or "null")
        except SerializationError as error:
            raise error.named(stored.name) from error.__cause__
    raise failure.rebuild(failure.decode(stored.error or "{}"), stored.name, raises) from None
