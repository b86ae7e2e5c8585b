"""The free functions: what they make of a call's value, of its declared errors and of its failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from zart.codec import PLAIN, Codec
from zart.engine.children import Child
from zart.engine.scope import current_scope
from zart.engine.spec import ChildInvocation, StepInvocation
from zart.errors import DuplicateStepName, InvalidArgument, NotInExecution, RegistrationError, StepFailed
from zart.flow import (
    BusinessErr,
    Ok,
    ZartErr,
    capture,
    context,
    now,
    outcome,
    require,
    sleep,
    sleep_until,
    step,
    step_or,
    step_or_else,
    wait_for_event,
)
from zart.model import ExecutionInfo
from zart.postgres.connection import Connection
from zart.steps import zart_step

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
INFO = ExecutionInfo("id-1", "order", {"cents": 1}, 0, 3)


class Declined(Exception):
    pass


@zart_step("pay-{cents}", raises=Declined)
async def pay(cents: int) -> str:
    if cents < 0:
        raise Declined("negative")
    if cents == 0:
        raise ValueError("nothing")
    return f"paid {cents}"


@zart_step("anything", raises=(Exception,))
async def anything(error: Exception) -> None:
    raise error


class Body:
    """A scope that keeps nothing, and shows what reached it."""

    def __init__(self) -> None:
        self.codecs: dict[str, Codec] = {}
        self.waits: list[tuple[str, float | datetime | None]] = []

    async def run_step(self, call: StepInvocation) -> Any:
        raise DuplicateStepName(call.resolved_name())

    async def capture(self, name: str, function: Callable[[], Any], codec: Codec) -> Any:
        self.codecs[name] = codec
        return codec.round_trip(function())[1]

    async def now(self, name: str) -> datetime:
        return NOON

    async def sleep(self, name: str, seconds: float) -> None:
        self.waits.append((name, seconds))

    async def sleep_until(self, name: str, when: datetime) -> None:
        self.waits.append((name, when))

    async def wait_for_event(self, name: str, codec: Codec, timeout: float | None) -> Any:
        self.codecs[name] = codec
        self.waits.append((name, timeout))

    def schedule(self, call: ChildInvocation) -> Child:
        raise DuplicateStepName(call.resolved_name())

    async def wait_for_children(self, children: Sequence[Child]) -> None:
        pass

    async def trx(self) -> Connection:
        raise NotImplementedError

    def whose(self) -> Any:
        raise NotImplementedError

    def know_task(self, task: asyncio.Task[Any]) -> None:
        pass

    def facts(self) -> dict[str, object]:
        return {}

    def info(self) -> ExecutionInfo:
        return INFO


@pytest.fixture
def body() -> Iterator[Body]:
    scope = Body()
    token = current_scope.set(scope)
    yield scope
    current_scope.reset(token)


# -- values


async def test_every_function_gives_the_value_of_a_call_that_succeeds() -> None:
    assert await step(pay(1)) == "paid 1"
    assert await require(pay(1)) == "paid 1"
    assert await step_or(pay(1), None) == "paid 1"
    assert await step_or_else(pay(1), lambda error: "else") == "paid 1"
    found = await outcome(pay(1))
    assert found == Ok("paid 1")
    assert found.unwrap() == "paid 1"


# -- declared errors


async def test_step_raises_a_declared_error_as_itself() -> None:
    with pytest.raises(Declined):
        await step(pay(-1))


async def test_outcome_gives_a_declared_error_as_business_error() -> None:
    found = await outcome(pay(-1))
    match found:
        case BusinessErr(Declined() as error):
            assert error.args == ("negative",)
        case _:
            pytest.fail(f"got {found}")
    with pytest.raises(Declined):
        found.unwrap()


async def test_require_makes_a_declared_error_a_failure_with_its_cause() -> None:
    with pytest.raises(StepFailed) as caught:
        await require(pay(-1))
    assert isinstance(caught.value.__cause__, Declined)
    assert (caught.value.step, caught.value.detail) == ("pay--1", "negative")


async def test_step_or_gives_the_default_for_a_declared_error() -> None:
    assert await step_or(pay(-1), 7) == 7


async def test_step_or_else_gives_what_the_function_makes_of_a_declared_error() -> None:
    assert await step_or_else(pay(-1), lambda error: error.args[0]) == "negative"


# -- failures


@pytest.mark.parametrize("function", [step, require, lambda call: step_or_else(call, str)])
async def test_a_failure_is_raised(function: Any) -> None:
    with pytest.raises(StepFailed, match="ValueError: nothing"):
        await function(pay(0))


async def test_outcome_gives_a_failure_as_zart_error() -> None:
    found = await outcome(pay(0))
    assert isinstance(found, ZartErr)
    with pytest.raises(StepFailed, match="nothing"):
        found.unwrap()


async def test_step_or_gives_the_default_for_a_failure() -> None:
    assert await step_or(pay(0), None) is None


# -- mistakes of the program


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize(
    "function", [outcome, require, lambda call: step_or(call, 1), lambda call: step_or_else(call, str)]
)
async def test_a_mistake_of_the_program_is_no_outcome_even_when_exception_is_declared(function: Any) -> None:
    with pytest.raises(DuplicateStepName):
        await function(anything(ValueError()))


async def test_a_call_is_used_up_by_the_function_it_is_passed_to() -> None:
    call = pay(1)
    await outcome(call)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await outcome(call)


# -- kept values, the time, the context


def annotated() -> UUID:
    return UUID(int=1)


async def test_capture_keeps_by_the_given_type_else_by_the_functions_annotation(body: Body) -> None:
    assert await capture("a", lambda: UUID(int=2), UUID) == UUID(int=2)
    assert await capture("b", annotated) == UUID(int=1)
    assert await capture("c", lambda: 3) == 3
    assert (body.codecs["a"].annotation, body.codecs["b"].annotation) == (UUID, UUID)
    assert body.codecs["c"] is PLAIN


@pytest.mark.usefixtures("body")
async def test_capture_takes_functions_written_in_c() -> None:
    assert isinstance(await capture("id", uuid4), UUID)
    assert 0 <= await capture("chance", random.random) < 1


async def test_capture_makes_the_codec_of_a_type_once(body: Body) -> None:
    await capture("a", lambda: [1], list[int])
    await capture("b", lambda: [2], list[int])
    assert body.codecs["a"] is body.codecs["b"]


@pytest.mark.usefixtures("body")
async def test_capture_refuses_a_coroutine_function_and_what_cannot_be_called() -> None:
    wrong: Any
    for wrong in (pay.function, 3):
        with pytest.raises(InvalidArgument, match=r"capture\('x'\) takes a plain function"):
            await capture("x", wrong)


@pytest.mark.usefixtures("body")
async def test_names_of_kept_values_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="captured value must not be empty"):
        await capture("", annotated)
    with pytest.raises(InvalidArgument, match="moment must not be empty"):
        await now("")


@pytest.mark.usefixtures("body")
async def test_capture_of_a_type_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(RegistrationError, match="captured value"):
        await capture("x", lambda: body, type(body))


@pytest.mark.usefixtures("body")
async def test_now_and_context_are_the_executions() -> None:
    assert await now("start") == NOON
    assert context() is INFO


async def test_waits_reach_the_execution_in_seconds_and_with_their_types(body: Body) -> None:
    await sleep("a", "1.5m")
    await sleep("b", timedelta(days=2))
    await sleep_until("c", NOON)
    await wait_for_event("d", list[int], timeout="2h")
    await wait_for_event("e")
    assert body.waits == [("a", 90.0), ("b", 172_800.0), ("c", NOON), ("d", 7200.0), ("e", None)]
    assert (body.codecs["d"].annotation, body.codecs["e"].annotation) == (list[int], Any)


async def test_outside_an_execution_they_say_where_they_belong() -> None:
    for call in (lambda: capture("x", annotated), lambda: now("x")):
        with pytest.raises(NotInExecution, match=r"'x'\) was called outside an execution.*that a worker runs"):
            await call()
    with pytest.raises(NotInExecution, match=r"context\(\) was called outside an execution"):
        context()
