"""Whatever user code raises, and wherever: a bounded record of it, the same error live and replayed, a worker that
goes on.
"""

from __future__ import annotations

import asyncio
import collections
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.eventually import eventually
from zart import DurableExecution, ExecutionRecord, ExecutionStatus, RetryConfig, StepFailed, zart_durable, zart_step
from zart.calls import Call

LARGEST_RECORD = 64 * 1024

RAN: collections.Counter[str] = collections.Counter()
MET: collections.defaultdict[str, list[tuple[Any, ...]]] = collections.defaultdict(list)
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()
    MET.clear()
    GATES.clear()


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class StrExits(Exception):
    def __str__(self) -> str:
        sys.exit("the text wants to end the process")


class StrIsNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class ReprRaises(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class WantsArguments(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Unnamed(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class OfUnnamedType(Exception, metaclass=Unnamed):
    pass


def chained(depth: int) -> BaseException:
    error = ValueError("the last")
    for number in range(depth):
        outer = ValueError(f"number {number}")
        outer.__cause__ = error
        error = outer
    return error


def circular(attribute: str) -> BaseException:
    first, second, third = ValueError("first"), ValueError("second"), ValueError("third")
    for error, cause in ((first, second), (second, third), (third, first)):
        setattr(error, attribute, cause)
    return first


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for number in range(depth):
        error = ExceptionGroup(f"group {number}", [error])
    return error


def wide(width: int) -> BaseException:
    return BaseExceptionGroup("wide", [ValueError(number) for number in range(width)] + [KeyboardInterrupt()])


def of_type_named(name: str, module: str = __name__) -> BaseException:
    made: BaseException = type(name, (Exception,), {"__module__": module})("its name is odd")
    return made


def recursion() -> BaseException:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        return error
    raise AssertionError


def from_a_long_file() -> BaseException:
    try:
        exec(compile("raise ValueError('far away')", "/" + "x" * 100_000, "exec"))
    except ValueError as error:
        return error
    raise AssertionError


AWKWARD: dict[str, tuple[Callable[[], BaseException], str]] = {
    "its __str__ raises": (StrRaises, "(its text cannot be read: RuntimeError)"),
    "its __str__ exits": (StrExits, "(its text cannot be read: SystemExit)"),
    "its __str__ gives no text": (StrIsNone, "(its text cannot be read: TypeError)"),
    "its __repr__ raises": (ReprRaises, ""),
    "its constructor wants arguments": (lambda: WantsArguments(1, two=2), "1 and 2"),
    "its type has no name": (OfUnnamedType, ""),
    "10 MB of text": (lambda: ValueError("x" * 10_000_000), "xxx... (10000000 characters)"),
    "10 MB in a class of its own": (lambda: WantsArguments(1, two=10**4_000), "characters)"),
    "NUL and half a surrogate pair": (lambda: ValueError("a\0b\ud800c"), r"a\0b\ud800c"),
    "10,000 causes": (lambda: chained(10_000), "number 9999"),
    "a circle of causes": (lambda: circular("__cause__"), "first"),
    "a circle of contexts": (lambda: circular("__context__"), "first"),
    "500 groups in each other": (lambda: nested(500), "group 499 (1 sub-exception)"),
    "a group of 10,000": (lambda: wide(10_000), "wide (10001 sub-exceptions)"),
    "a name of 10,000 characters": (lambda: of_type_named("N" * 10_000), "its name is odd"),
    "a name that cannot be stored": (lambda: of_type_named("Odd", module="\ud800\0"), "its name is odd"),
    "endless recursion": (recursion, "maximum recursion depth exceeded"),
    "a file with a long name": (from_a_long_file, "far away"),
    "MemoryError": (MemoryError, ""),
    "StopIteration": (lambda: StopIteration("stop"), "raised StopIteration"),
    "StopAsyncIteration": (lambda: StopAsyncIteration("stop"), "stop"),
    "KeyboardInterrupt": (lambda: KeyboardInterrupt("^C"), "^C"),
    "SystemExit": (lambda: SystemExit(3), "3"),
    "CancelledError": (lambda: asyncio.CancelledError("mine"), "mine"),
}


@zart_step("raises")
async def raises(what: str) -> None:
    RAN[what] += 1
    raise AWKWARD[what][0]()


@zart_step("raises in a thread")
def raises_in_thread(what: str) -> None:
    RAN[what] += 1
    raise AWKWARD[what][0]()


@zart_step("raises once", retry=RetryConfig.fixed(1, "1ms", retry_on=BaseException))
async def raises_once(what: str) -> str:
    RAN[what] += 1
    if RAN[what] == 1:
        raise AWKWARD[what][0]()
    return what


@zart_step("hold")
async def hold() -> None:
    RAN["hold"] += 1
    await GATES["hold"].wait()


async def meets(what: str, step: Callable[[str], Call[None, Any]]) -> None:
    """Tell what the step's error is, live; and, as its worker is taken over while it holds, once more replayed."""
    try:
        await step(what)
    except Exception as error:
        MET[what].append((type(error), error.args, error.__dict__))
        await hold()
        raise


@zart_durable("meets")
async def meets_error_of_step(what: str) -> None:
    await meets(what, raises)


@zart_durable("meets error of a thread")
async def meets_error_of_thread(what: str) -> None:
    await meets(what, raises_in_thread)


@zart_durable("raises in its body")
async def raises_in_body(what: str) -> None:
    raise AWKWARD[what][0]()


@zart_durable("goes on after a failed try")
async def goes_on(what: str) -> str:
    return await raises_once(what)


async def _ended(engine: Engine, durable: DurableExecution[str, Any]) -> dict[str, ExecutionRecord]:
    """One execution for each awkward error, all in one worker, which goes on afterwards; every record is bounded."""
    for what in AWKWARD:
        await engine.start(what, durable, what)
    if durable in (meets_error_of_step, meets_error_of_thread):
        await eventually(lambda: RAN["hold"] == len(AWKWARD))
        await engine.take_over(engine.loops[0])
        await eventually(lambda: RAN["hold"] == 2 * len(AWKWARD))
        GATES["hold"].set()
    records = {what: await engine.ended(what) for what in AWKWARD}
    assert await _largest_record(engine) < LARGEST_RECORD
    await engine.start("another", goes_on, "MemoryError")
    assert (await engine.ended("another")).output == "MemoryError"
    assert not engine.tasks[0].done()
    return records


async def _largest_record(engine: Engine) -> int:
    """Bytes of the largest error that is stored anywhere."""
    size: int = await engine.connection.fetchval(
        "select max(octet_length(error::text)) from (select error from zart.zart_tasks union all"
        " select error from zart.zart_attempts union all select error from zart.zart_executions) stored"
    )
    return size


@pytest.mark.parametrize("durable", [meets_error_of_step, meets_error_of_thread], ids=["async", "plain"])
async def test_whatever_a_step_raises_is_the_same_failure_live_and_replayed(
    database: Database, durable: DurableExecution[str, Any]
) -> None:
    async with Engine(database, [durable, goes_on]) as engine:
        records = await _ended(engine, durable)
    for what, (_, text) in AWKWARD.items():
        live, replayed = MET[what]
        assert live == replayed, what
        assert live[0] is StepFailed, what
        assert text in live[2]["detail"], what
        assert (records[what].status, records[what].error["kind"]) == (ExecutionStatus.FAILED, "step_failed"), what
        assert RAN[what] == 1 + (what == "MemoryError"), what


async def test_whatever_a_body_raises_fails_its_execution_alone(database: Database) -> None:
    async with Engine(database, [raises_in_body, goes_on]) as engine:
        records = await _ended(engine, raises_in_body)
    for what, (_, text) in AWKWARD.items():
        assert (records[what].status, records[what].error["kind"]) == (ExecutionStatus.FAILED, "body_failed"), what
        assert text in records[what].error["message"], what


async def test_whatever_a_try_raised_the_next_one_may_succeed(database: Database) -> None:
    async with Engine(database, [goes_on]) as engine:
        records = await _ended(engine, goes_on)
        for what, (_, text) in AWKWARD.items():
            assert records[what].output == what
            (step,) = await engine.history(what)
            assert text in step.failed_attempts[0].error["message"]


async def test_a_step_that_raises_generator_exit_fails_like_any_other(database: Database) -> None:
    @zart_step("closes")
    async def closes() -> None:
        raise GeneratorExit("mine")

    @zart_durable("goes on behind it")
    async def goes_on_behind() -> str:
        try:
            await closes()
        except StepFailed as failed:
            return str(failed)
        return "no"

    async with Engine(database, [goes_on_behind]) as engine:
        await engine.start("g", goes_on_behind)
        assert (await engine.ended("g")).output == "step 'closes' failed: GeneratorExit: mine"
