"""A body in flight: one pass of a durable function under one claim. No SQL.

Everything a body does through zart passes here: it is answered from the history, or done and handed to the ticker.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from time import monotonic_ns, perf_counter
from typing import Any, NoReturn

from zart import tracing
from zart.codec import Codec, codec_for, step_key
from zart.config import DEFAULT_PRIORITY, DEFAULT_QUEUE
from zart.engine import failure, handler, waits
from zart.engine.attempt import TRX_BELONGS, StepRun
from zart.engine.children import CHILDLESS, Child, Family
from zart.engine.host import Host
from zart.engine.life import ABANDON_AFTER, MOST_REFUSALS, TurnLife
from zart.engine.replay import Checkpoint
from zart.engine.scope import current_scope
from zart.engine.signals import Stop
from zart.engine.spec import ChildInvocation, DurableSpec, StepInvocation
from zart.engine.where import where
from zart.errors import DuplicateStepName, NotInBody, NotInExecution, NotInStep, SerializationError
from zart.meters import STEP_DURATION, STEPS_COMPLETED, STEPS_REPLAYED
from zart.model import ExecutionInfo, KeySpace, Kind, Outcome
from zart.names import FAILURE_PREFIX
from zart.postgres.connection import Connection

_STEP_SPACE = int(KeySpace.STEP)
_TIME_CODEC = codec_for(datetime, where="now()")


class Turn(TurnLife):
    """One turn. Made at the claim, begun when its input (and history, if any) is loaded."""

    __slots__ = ()

    # -- from begin to end

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
        if self.span is not None:
            context.run(tracing.enter, self.span)
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
                self.host.place.words[self.tally + STEPS_REPLAYED] += 1
                return replayed(stored, spec.codec, spec.raises)
            tries = self.history.tries.get(key)
        self._know_caller()
        run = StepRun(self, call, name, key, tries)
        if self.apart:
            self.host.place.note_step(name)
        value: Any = None
        failed: BaseException | None = None
        token = current_scope.set(run)
        self.running += 1
        try:
            if self.storing or self.family.unmade:
                await self._earlier_checkpoints()
                run.began = perf_counter()
            if monotonic_ns() > self.host.sure_until[self.bucket]:
                await self.host.make_sure(self)
            try:
                plain = spec.timeout is None and tries is None and self.span is None
                value = await (call.invoke() if plain else run.first_try())
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
        # The checkpoint is kept even when the body is being handed back: the effect has happened.
        if self.stop is not None and self.is_interrupted():
            raise self.suspended()
        if run.transaction is not None:  # it has taken the checkpoint with it
            if run.transaction.stored is not None:
                return replayed(run.transaction.stored, spec.codec, spec.raises)
            self.host.place.count_all(STEPS_COMPLETED, STEP_DURATION, [run.transaction.took], self.tally)
            return value
        try:
            result, value = spec.codec.round_trip(value)
            self.check_size(result)
        except SerializationError as error:
            await run.fail(error, "serialization")
        except Exception as error:  # code of the value's own type
            await run.fail(SerializationError(failure.one_line(error)), "serialization")
        if self.spec.is_step:  # its result is the execution's own, which its ending keeps
            self.took = perf_counter() - run.began
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

    def whose(self) -> tuple[Host, int]:
        """Scope.whose."""
        return self.host, self.id

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
            self.step_failure, self.took = record, seconds
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
