"""A step being run for the first time in its run: its tries, their timeouts, and what becomes of their failures."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime
from time import monotonic_ns, perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from zart.codec import Codec
from zart.engine import failure
from zart.engine.replay import FailedTries
from zart.engine.retry import delay_before_retry
from zart.engine.signals import Suspended
from zart.engine.spec import ChildInvocation, StepInvocation
from zart.engine.transactions import NotKept, Row, Transaction, is_run_again
from zart.engine.waits import pause
from zart.engine.where import where
from zart.errors import NotInBody, NotInExecution, NotInStep, SerializationError, StepFailed, TransactionMisused
from zart.model import ExecutionInfo, Kind
from zart.postgres.connection import Connection
from zart.postgres.sqlstate import Fault, classify

if TYPE_CHECKING:
    from zart.engine.children import Child
    from zart.engine.host import Host
    from zart.engine.turn import Turn

_FIRST = FailedTries()

TRX_BELONGS = "call it in an `async def` step that is awaited in the body, whose result is committed with it"

# Before a try is run again that lost against another transaction: doubled each time, less up to a half by chance.
FIRST_RERUN_AFTER, LAST_RERUN_AFTER = 0.01, 1.0

# A try whose transaction was lost with its connection so often in a row is held to be the cause of that.
MOST_LOSSES = 5

# The step that runs inside of another one here.
_inline: ContextVar[str | None] = ContextVar("zart_inline_step", default=None)


class OutOfTime(Exception):
    """The step's timeout has passed."""


class StepRun:
    """One step of one turn. It is the scope its user code runs in, so body-only calls are refused here.

    Attributes:
        attempt: number of the try under way in this pass of the execution, 0-based.
        number: its number in the journal, which goes on over execution retries.
        transaction: what the try under way has asked for; once the step is done, what its checkpoint was committed in.
        losses: how often this try has lost its transaction with the connection.
        trying: a try is under way.
    """

    __slots__ = (
        "attempt", "began", "call", "key", "losses", "name", "number", "time_limit", "transaction", "tries",
        "try_limit", "trying", "turn",
    )  # fmt: skip

    def __init__(self, turn: Turn, call: StepInvocation, name: str, key: int, tries: FailedTries | None) -> None:
        self.turn, self.call, self.name, self.key = turn, call, name, key
        self.tries = tries
        self.attempt = 0 if tries is None else tries.count
        self.number = 1 if tries is None else tries.numbered + 1
        self.began = perf_counter()
        self.time_limit: float | None = None
        self.try_limit: float | None = None
        self.transaction: Transaction | None = None
        self.trying, self.losses = True, 0

    # -- tries

    async def first_try(self) -> Any:
        """The first try of this turn: after what is left of a stored delay, within what is left of the timeout."""
        turn, spec, tries = self.turn, self.call.spec, self.tries or _FIRST
        now = turn.loop.time()
        since_load = now - turn.history.loaded_at if turn.history is not None else 0.0
        if spec.timeout is not None and spec.timeout_scope == "global":
            self.time_limit = now + spec.timeout - (tries.began_ago + since_load if self.tries else 0.0)
        if tries.due_in is not None and tries.due_in > since_load:
            await self._pause(now + tries.due_in - since_load)
            self.began = perf_counter()
        return await self._one_try()

    async def later_tries(self, error: BaseException) -> Any:
        """What follows a failed try: others, until one gives a value or none is left. Raises what the body gets."""
        reruns = 0
        while True:
            self.trying = False
            if await self._is_run_again(error, reruns):
                reruns += 1
            else:
                await self._after_failure(error)
                self.attempt += 1
                self.number += 1
                self.try_limit, reruns, self.losses = None, 0, 0
            self.began, self.trying = perf_counter(), True
            if monotonic_ns() > self.turn.host.sure_until[self.turn.bucket]:
                await self.turn.host.make_sure(self.turn)
            try:
                value = await self._one_try()
                return value if self.transaction is None else await self.commit(value)
            except BaseException as next_error:
                error = next_error

    async def _one_try(self) -> Any:
        spec = self.call.spec
        if spec.timeout is None:
            return await self.call.invoke()
        now = self.turn.loop.time()
        if self.try_limit is None:
            self.try_limit = now + spec.timeout if self.time_limit is None else self.time_limit
        limit = self.try_limit - now
        if limit <= 0:
            raise OutOfTime
        clock = asyncio.timeout(limit)
        try:
            async with clock:
                value = await self.call.invoke()
        except TimeoutError:
            if clock.expired():
                raise OutOfTime from None
            raise
        if clock.expired():
            raise OutOfTime
        return value

    async def _after_failure(self, error: BaseException) -> None:
        """Return after the delay when another try follows; else raise what the failure comes back as."""
        turn, spec = self.turn, self.call.spec
        self._let_stop_through(error)
        if isinstance(error, OutOfTime):
            await self.fail(error, "timed_out")
        if isinstance(error, NotKept):
            await self.fail(error.reason, "serialization")
        if failure.is_declared(error, spec.raises):
            await self.fail(error, "declared")
        try:
            delay = delay_before_retry(spec.retry, self.attempt, error)
        except BaseException as broken:  # the user's retry_on
            await self.fail(broken, "failed")
        if delay is None:
            used_up = 0 < spec.retry.retries <= self.attempt
            await self.fail(error, "exhausted" if used_up else "failed")
            return
        due = turn.loop.time() + delay
        if self.time_limit is not None and due >= self.time_limit:
            late = OutOfTime()
            late.__cause__ = error
            await self.fail(late, "timed_out")
        record = failure.encode(failure.step_failure(error, "failed", self.attempt + 1))
        await turn.store(self.key, Kind.ATTEMPT, 0, self.number, self._seconds(), self.name, None, record, due=delay)
        await self._pause(due)

    def _let_stop_through(self, error: BaseException) -> None:
        """A cancelled or stopped turn records nothing; a CancelledError that nobody asked for is the step's own."""
        if self.turn.is_interrupted():
            raise self.turn.suspended() from None
        if isinstance(error, Suspended) or (isinstance(error, GeneratorExit) and not self.turn.is_calling()):
            raise error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if self.turn.stop is not None:
                raise self.turn.suspended() from None
            if task is not None and task.cancelling():
                raise error

    async def _pause(self, due: float) -> None:
        """Wait for the next try. A body that only waits gives its slot back meanwhile."""
        self.turn.running -= 1
        try:
            await pause(self.turn, due)
        finally:
            self.turn.running += 1

    # -- the transaction of a try

    async def trx(self) -> Connection:
        """Scope.trx."""
        turn, inner = self.turn, _inline.get()
        if not self.trying:
            raise NotInStep(f"trx() was called{where()} by a task that step {self.name!r} has left behind; await it")
        if turn.is_interrupted():
            raise turn.suspended()
        if turn.host.transactions is None:
            raise NotInExecution(
                f"trx() was called in step {self.name!r}{where()}, but zart.testing.Run has no database;"
                " test such a step with a worker on the database of the fixture zart_database"
            )
        if inner is not None:
            raise NotInStep(
                f"trx() was called in step {inner!r}{where()}, which runs inside of step {self.name!r} and has no"
                f" checkpoint of its own; {TRX_BELONGS}, or give it the connection of the outer step as an argument"
            )
        if self.call.spec.in_thread or asyncio.get_running_loop() is not turn.loop:
            raise NotInStep(f"trx() was called in a thread of step {self.name!r}{where()}; {TRX_BELONGS}")
        if self.transaction is not None:
            raise TransactionMisused(
                f"trx() was called twice in one try of step {self.name!r}{where()}; pass its connection on, or make"
                " two steps"
            )
        self.transaction = transaction = Transaction(turn.host.transactions)
        try:
            return await transaction.open()
        except BaseException:
            if self.transaction is transaction:
                self.transaction = None
            raise

    async def commit(self, value: Any) -> Any:
        """End a successful try that has a transaction: keep its value by that. As the body gets it."""
        turn, transaction = self.turn, self.transaction
        if transaction is None or not transaction.is_open:
            await self._roll_back()
            return value
        if turn.is_interrupted():
            raise turn.suspended()
        try:
            result, value = self.call.spec.codec.round_trip(value)
            turn.check_size(result)
        except SerializationError as error:
            raise NotKept(error) from error
        except Exception as error:  # code of the value's own type
            raise NotKept(SerializationError(failure.one_line(error))) from error
        self.trying = False
        await transaction.commit(Row(turn, self.key, self.name, self.number, self._seconds(), result))
        return value

    async def _is_run_again(self, error: BaseException, reruns: int) -> bool:
        """End the transaction of a failed try. True, after a moment, when the try is to be run again."""
        if self.transaction is None:
            return False
        if isinstance(error, GeneratorExit):
            self.transaction.drop()
            return False
        try:
            run_again = is_run_again(error) or self._has_lost(self.transaction, error)
            await self._roll_back()
            if not run_again:
                return False
            self._let_stop_through(error)
            await self._rest(min(FIRST_RERUN_AFTER * 2**reruns, LAST_RERUN_AFTER) * random.uniform(0.5, 1))
        except asyncio.CancelledError as cancelled:
            self._let_stop_through(cancelled)
            raise
        return True

    def _has_lost(self, transaction: Transaction, error: BaseException) -> bool:
        """Whether the try failed because its connection is gone: so its code is not to blame, unless that recurs."""
        own = not isinstance(error, Exception) or isinstance(error, OutOfTime)
        decided = failure.is_declared(error, self.call.spec.raises) and classify(error) is not Fault.LOST
        if own or decided or not transaction.was_lost():
            return False
        self.losses += 1
        return self.losses <= MOST_LOSSES

    async def _roll_back(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            await transaction.roll_back()

    async def _rest(self, seconds: float) -> None:
        """As `_pause`, of a try that has not failed: it is not put down, as nothing would tell that it has begun."""
        self.turn.running -= 1
        try:
            await asyncio.sleep(seconds)
            if self.turn.stop is not None:
                await self.turn.step_aside()
        finally:
            self.turn.running += 1

    # -- failures

    async def fail(self, error: BaseException, kind: str) -> NoReturn:
        """Keep the failure and raise what it comes back as."""
        attempts = self.attempt + 1
        record = self._record(error, kind, attempts)
        await self.turn.store_failure(self.key, self.number, record, self._seconds(), self.name)
        raise failure.rebuild(record, self.name, self.call.spec.raises) from None

    def _record(self, error: BaseException, kind: str, attempts: int) -> failure.Record:
        if kind == "declared" and isinstance(error, Exception):
            try:
                return failure.declared_failure(error, attempts, self.turn.host.max_result_bytes)
            except SerializationError as refused:
                error, kind = refused, "serialization"
        record = failure.step_failure(error, kind, attempts)
        if kind == "timed_out":
            spec = self.call.spec
            whole = "the whole step" if spec.timeout_scope == "global" else "one try"
            record["type"], record["message"] = "TimeoutError", f"{spec.timeout:g} s for {whole} have passed"
        return record

    def _seconds(self) -> float:
        return perf_counter() - self.began

    # -- scope of the step's own code

    async def run_step(self, call: StepInvocation) -> Any:
        """Inside a step, other steps run inline and leave no checkpoint; their errors are mapped as in a body."""
        token = _inline.set(call.resolved_name())
        try:
            return await call.invoke()
        except Exception as error:
            if isinstance(error, StepFailed) or failure.is_declared(error, call.spec.raises):
                raise
            record = failure.step_failure(error, "failed", 1)
            raise failure.rebuild(record, call.resolved_name(), ()) from error
        finally:
            _inline.reset(token)

    async def capture(self, name: str, function: Callable[[], Any], codec: Codec) -> Any:
        """Refused: a checkpoint inside a step would outlive the try it belongs to."""
        raise NotInBody(self._misplaced("capture", name))

    async def now(self, name: str) -> datetime:
        """Refused, as `capture`."""
        raise NotInBody(self._misplaced("now", name))

    async def sleep(self, name: str, seconds: float) -> None:
        """Refused: a step that is suspended would begin anew."""
        raise NotInBody(self._misplaced("sleep", name))

    async def sleep_until(self, name: str, when: datetime) -> None:
        """Refused, as `sleep`."""
        raise NotInBody(self._misplaced("sleep_until", name))

    async def wait_for_event(self, name: str, codec: Codec, timeout: float | None) -> Any:
        """Refused, as `sleep`."""
        raise NotInBody(self._misplaced("wait_for_event", name))

    def schedule(self, call: ChildInvocation) -> Child:
        """Refused: what a step starts belongs to its try; a body's children outlive it."""
        raise NotInBody(self._misplaced("schedule", call.resolved_name()))

    async def wait_for_children(self, children: Sequence[Child]) -> None:
        """Refused, as `sleep`."""
        raise NotInBody(self._misplaced("wait", "..."))

    def whose(self) -> tuple[Host, int]:
        """Scope.whose."""
        return self.turn.whose()

    def know_task(self, task: asyncio.Task[Any]) -> None:
        """A step's tasks are its own affair."""

    def info(self) -> ExecutionInfo:
        """The execution's id, name and input with this step's own attempt."""
        return dataclasses.replace(
            self.turn.info(), current_attempt=self.attempt, max_retries=self.call.spec.retry.retries
        )

    def _misplaced(self, what: str, name: str) -> str:
        return (
            f"{what}({name!r}) was called inside step {self.name!r}{where()}; call it in the body,"
            " and pass what the step needs of it as an argument"
        )
