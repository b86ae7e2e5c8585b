"""What a body may say besides awaiting its steps: outcomes, fallbacks, kept values, timers, events, the context."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar, overload

from zart.annotations import annotation_of
from zart.calls import Call, E_co, T_co, as_step_failure, is_declared
from zart.codec import Codec, codec_for
from zart.duration import MAX_SECONDS, Duration, seconds_of
from zart.engine.scope import require_scope
from zart.errors import InvalidArgument, StepFailed, shown
from zart.model import ExecutionInfo
from zart.names import checked_name, checked_operation
from zart.postgres.connection import Connection

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)

_IN_A_STEP = (
    "call it in an async step of an execution that a worker runs; zart.testing.Run has no database, so test such a step"
    " with a worker on the database of the fixture zart_database"
)


@dataclass(frozen=True, slots=True)
class Ok(Generic[T_co]):
    """A call gave a value."""

    value: T_co

    def unwrap(self) -> T_co:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class BusinessErr(Generic[E_co]):
    """A call ended with an error that it declares in `raises`."""

    error: E_co

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


@dataclass(frozen=True, slots=True)
class ZartErr:
    """A call failed: every retry used up, time up, or an error it does not declare."""

    error: StepFailed

    def unwrap(self) -> NoReturn:
        """Raise the failure."""
        raise self.error


StepOutcome: TypeAlias = Ok[T] | BusinessErr[E] | ZartErr


async def step(call: Call[T, Any]) -> T:
    """The value of a call, kept; the same as awaiting the call.

    Raises:
        StepFailed: it failed. An error that it declares comes back as itself.
    """
    _check_call(call, "step")
    return await call


async def outcome(call: Call[T, E]) -> StepOutcome[T, E]:
    """How a call ended, for `match`: its value, an error that it declares, or its failure.

    Example:
        >>> match await zart.outcome(charge(card)):
        ...     case Ok(receipt): ...
        ...     case BusinessErr(CardDeclined() as declined): ...
        ...     case ZartErr(failure): ...
    """
    _check_call(call, "outcome")
    try:
        return Ok(await call)
    except StepFailed as failure:
        return ZartErr(failure)
    except Exception as error:
        if is_declared(call, error):
            return BusinessErr(error)  # type: ignore[arg-type]  # of the declared types, so an E
        raise


async def require(call: Call[T, Any]) -> T:
    """The value of a call that must not fail.

    Raises:
        StepFailed: it ended in any other way; a declared error is its cause.
    """
    _check_call(call, "require")
    try:
        return await call
    except StepFailed:
        raise
    except Exception as error:
        if is_declared(call, error):
            raise as_step_failure(call, error) from error
        raise


async def step_or(call: Call[T, Any], default: R) -> T | R:
    """The value of a call, or `default` when it ended in any other way."""
    _check_call(call, "step_or")
    try:
        return await call
    except StepFailed:
        return default
    except Exception as error:
        if is_declared(call, error):
            return default
        raise


async def step_or_else(call: Call[T, E], fallback: Callable[[E], R]) -> T | R:
    """The value of a call, or what `fallback` makes of an error that it declares.

    Raises:
        StepFailed: it failed in another way.
    """
    _check_call(call, "step_or_else")
    try:
        return await call
    except StepFailed:
        raise
    except Exception as error:
        if is_declared(call, error):
            return fallback(error)  # type: ignore[arg-type]  # of the declared types, so an E
        raise


@overload
async def capture(name: str, function: Callable[[], T]) -> T: ...
@overload
async def capture(name: str, function: Callable[[], Any], type: TypeForm[T]) -> T: ...
async def capture(name: str, function: Any, type: Any = None) -> Any:
    """Keep what a pure synchronous function gives: called once, the value is the same on every pass.

    Args:
        name: identity of the value in its run.
        function: without parameters and side effects, as `uuid4` or `lambda: random.random()`.
        type: what the value is kept as; by default the function's return annotation.

    Raises:
        NotInExecution, NotInBody: called in the wrong place.
        SerializationError: the value cannot be kept.
        InvalidArgument: name or function cannot be used.
    """
    scope = require_scope(f"capture({shown(name)})")
    name = checked_operation(name, "a captured value")
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InvalidArgument(
            f"capture({name!r}) takes a plain function, got {shown(function)}; make async work a step"
        )
    where = f"captured value {name!r}"
    annotation = annotation_of(function, "return", where) if type is None else type
    return await scope.capture(name, function, _codec(annotation, where))


async def now(name: str) -> datetime:
    """The database's time in UTC, kept under `name`: the same on every pass.

    Raises:
        NotInExecution, NotInBody: called in the wrong place.
    """
    scope = require_scope(f"now({shown(name)})")
    return await scope.now(checked_operation(name, "a moment"))


async def sleep(name: str, duration: Duration) -> None:
    """Wait durably: no process, connection or memory is held, and a crash makes it no longer.

    Args:
        name: identity of the wait in its run; the first pass fixes when it ends.
        duration: a timedelta, seconds, or text such as "90s", "1h", "30d"; up to 100 years. Zero ends at once.

    Raises:
        NotInExecution, NotInBody: called in the wrong place.
        InvalidArgument: name or duration cannot be used.

    Example:
        >>> await zart.sleep("cool-down", "1h")
    """
    scope = require_scope(f"sleep({shown(name)})")
    await scope.sleep(checked_operation(name, "a sleep"), seconds_of(duration, f"the duration of sleep {name!r}"))


async def sleep_until(name: str, when: datetime) -> None:
    """Wait durably until a moment, by the database's clock. One in the past ends at once.

    Args:
        name: identity of the wait in its run; the first pass fixes when it ends.
        when: with a timezone, at most 100 years ahead.

    Raises:
        NotInExecution, NotInBody: called in the wrong place.
        InvalidArgument: name or moment cannot be used.

    Example:
        >>> await zart.sleep_until("new-year", datetime(2030, 1, 1, tzinfo=UTC))
    """
    scope = require_scope(f"sleep_until({shown(name)})")
    await scope.sleep_until(checked_operation(name, "a sleep"), _checked_moment(when, name))


@overload
async def wait_for_event(name: str, *, timeout: Duration | None = None) -> Any: ...
@overload
async def wait_for_event(name: str, type: TypeForm[T], *, timeout: Duration | None = None) -> T: ...
async def wait_for_event(name: str, type: Any = Any, *, timeout: Duration | None = None) -> Any:
    """Wait durably for an event that `offer_event` brings. One that came before is there at once.

    Args:
        name: the event's name; the first one offered under it is kept, and it is waited for once per run.
        type: what the payload is read as.
        timeout: how long to wait, None for ever. Fixed by the first pass; zero only looks.

    Returns:
        The payload.

    Raises:
        EventTimeout: it did not come in time. Event or timeout: whichever is stored first stands.
        SerializationError: the payload does not fit the type.
        NotInExecution, NotInBody: called in the wrong place.
        InvalidArgument: an argument cannot be used.

    Example:
        >>> approval = await zart.wait_for_event("approved", Approval, timeout="3d")
    """
    scope = require_scope(f"wait_for_event({shown(name)})")
    name = checked_name(name, "an event")
    seconds = None if timeout is None else seconds_of(timeout, f"the timeout of event {name!r}")
    return await scope.wait_for_event(name, _codec(type, f"event {name!r}"), seconds)


async def trx() -> Connection:
    """A connection of asyncpg in an open transaction, which commits together with the step's result, or not at all.

    In an async step, once in each try. It commits when the step returns and its result can be kept, and rolls back
    when the step raises, is cancelled or out of time; statements after that fail. `conn.transaction()` makes
    savepoints. A try that PostgreSQL ends for a serialization failure or a deadlock (40001, 40P01) is run again after a
    moment, without using a retry. Waits while all connections of the worker are taken, or the database is away.

    Returns:
        The connection. Do not commit, roll back or close it.

    Raises:
        NotInExecution, NotInStep: called in the wrong place.
        TransactionMisused: called twice in one try.

    Example:
        >>> @zart_step("transfer")
        ... async def transfer(source: str, target: str, amount: int) -> None:
        ...     conn = await zart.trx()
        ...     await conn.execute("update accounts set balance = balance - $2 where name = $1", source, amount)
        ...     await conn.execute("update accounts set balance = balance + $2 where name = $1", target, amount)
    """
    return await require_scope("trx()", _IN_A_STEP).trx()


def context() -> ExecutionInfo:
    """Which execution this code runs for; in a step, `current_attempt` is the step's.

    Raises:
        NotInExecution: it runs for none.
    """
    return require_scope("context()").info()


def _check_call(call: object, what: str) -> None:
    if not isinstance(call, Call):
        raise InvalidArgument(
            f"{what}() takes a call of a step or of a durable function, as in {what}(pay(order)), got {shown(call)};"
            " handles are for wait()"
        )


def _checked_moment(when: object, name: str) -> datetime:
    if not isinstance(when, datetime):
        raise InvalidArgument(f"sleep_until({name!r}) takes a datetime, got {shown(when)}; sleep() takes a duration")
    if when.tzinfo is None or when.utcoffset() is None:
        raise InvalidArgument(
            f"sleep_until({name!r}) got {when!r}, which says nothing of its timezone; add one, as in tzinfo=UTC"
        )
    if (when - datetime.now(UTC)).total_seconds() > MAX_SECONDS:
        raise InvalidArgument(f"sleep_until({name!r}) takes a moment at most 100 years ahead, got {when.isoformat()}")
    return when


def _codec(annotation: Any, where: str) -> Codec:
    try:
        return _kept_codec(annotation)
    except TypeError:  # an annotation that cannot be hashed, as Annotated[int, []]
        return codec_for(annotation, where=where)


@functools.lru_cache(maxsize=1024, typed=True)
def _kept_codec(annotation: Any) -> Codec:
    return codec_for(annotation, where=f"captured value of type {annotation!r}")
