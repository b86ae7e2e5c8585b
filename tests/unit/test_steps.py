"""Steps: what a call is, what runs when it is awaited, and what is refused at decoration."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from zart.calls import Call
from zart.codec import PLAIN
from zart.duration import RetryConfig
from zart.engine.scope import current_scope
from zart.engine.spec import StepInvocation, StepSpec
from zart.errors import InvalidArgument, NonRetryable, RegistrationError, StepFailed
from zart.metrics import Place
from zart.steps import Step, StepCall, ZartStep, zart_step

outer: contextvars.ContextVar[str] = contextvars.ContextVar("outer", default="unset")


class Declined(Exception):
    pass


class NoFunds(Exception):
    pass


@zart_step("double", retry="fixed(3, 1s)", timeout="30s", timeout_scope="per_attempt", queue="slow")
async def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


@zart_step("plain-{n}")
def plain(n: int, *, by: int = 2) -> int:
    return n * by


@zart_step("fail")
async def fail(error: Exception) -> None:
    raise error


@zart_step("decide", raises=(Declined, NoFunds))
async def decide(error: Exception) -> str:
    raise error


class Billing:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @zart_step("charge-{cents}")
    async def charge(self, cents: int) -> int:
        """Take the money."""
        return cents * self.factor

    @classmethod
    @zart_step("kind")
    async def kind(cls) -> str:
        return cls.__name__

    @staticmethod
    @zart_step("constant")
    async def constant() -> int:
        return 1


@dataclass
class LookUp(ZartStep[tuple[str, int]]):
    code: str

    def step_name(self) -> str:
        return f"zip-{self.code}"

    def retry_config(self) -> str:
        return "exponential(2, 1s)"

    def timeout(self) -> str:
        return "5s"

    async def run(self) -> tuple[str, int]:
        return (self.code, 1)


@dataclass(frozen=True, slots=True)
class Frozen(ZartStep[int, Declined | NoFunds]):
    n: int

    def step_name(self) -> str:
        return "frozen"

    async def run(self):  # type: ignore[no-untyped-def]  # annotated by the class alone
        if self.n < 0:
            raise Declined
        return self.n


class Recorder:
    """A scope that notes which calls reach it, and runs them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, StepSpec]] = []
        self.place = Place.private()

    async def run_step(self, call: StepInvocation) -> Any:
        self.seen.append((call.resolved_name(), call.spec))
        return await call.invoke()

    def whose(self) -> tuple[Any, int]:
        return self, 1

    @contextmanager
    def entered(self) -> Iterator[None]:
        token = current_scope.set(self)  # type: ignore[arg-type]  # not all of it is called
        try:
            yield
        finally:
            current_scope.reset(token)


# -- calling


async def test_a_step_runs_its_function_when_awaited_outside_an_execution() -> None:
    assert await double(2) == 4


async def test_nothing_runs_before_the_await() -> None:
    ran: list[int] = []

    @zart_step("note")
    async def note() -> None:
        ran.append(1)

    call = note()
    assert ran == []
    await call
    assert ran == [1]


async def test_a_call_is_used_once() -> None:
    call = double(2)
    await call
    with pytest.raises(RuntimeError, match="cannot reuse already awaited <StepCall 'double'>"):
        await call
    with pytest.raises(RuntimeError, match="cannot reuse"):
        call.send(None)


async def test_a_closed_call_cannot_be_awaited() -> None:
    call = double(2)
    call.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await call


@pytest.mark.parametrize("make", [lambda: double(2), lambda: LookUp("1"), lambda: plain(1)])
def test_a_dropped_call_warns_as_a_coroutine_does(make: Any) -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        make()


def test_an_awaited_or_closed_call_does_not_warn() -> None:
    gc.collect()  # what other tests have left behind warns here, not below
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(_gathered())
        double(2).close()
        gc.collect()
    assert caught == []


async def _gathered() -> list[Any]:
    return list(await asyncio.gather(double(1), double(1), LookUp("a"), LookUp("a"), plain(3)))


async def test_gather_tasks_groups_and_wait_for_take_a_call() -> None:
    assert await _gathered() == [2, 2, ("a", 1), ("a", 1), 6]
    assert await asyncio.create_task(double(4)) == 8
    assert await asyncio.wait_for(double(5), 10) == 10
    async with asyncio.TaskGroup() as group:
        task = group.create_task(double(6))
    assert task.result() == 12


async def test_a_cancelled_task_throws_into_the_function() -> None:
    entered, stopped = asyncio.Event(), asyncio.Event()

    @zart_step("wait")
    async def wait() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()


def test_a_call_is_a_coroutine_and_equals_only_itself() -> None:
    calls: list[Call[Any, Any]] = [double(1), double(1), LookUp("1"), LookUp("1"), Frozen(1), Frozen(1)]
    assert all(isinstance(call, Coroutine) for call in calls)
    assert len(set(calls)) == len(calls)
    for call in calls:
        call.close()


def test_a_call_has_no_dict() -> None:
    call = double(1)
    assert not hasattr(call, "__dict__")
    call.close()


async def test_a_plain_function_runs_in_a_thread_with_the_tasks_context() -> None:
    @zart_step("where")
    def where() -> tuple[int, str]:
        return threading.get_ident(), outer.get()

    outer.set("set")
    thread, value = await where()
    assert thread != threading.get_ident()
    assert value == "set"


async def test_stop_iteration_of_a_plain_function_is_an_error_and_no_hang() -> None:
    @zart_step("empty")
    def empty() -> int:
        return next(iter([]))

    with pytest.raises(StepFailed, match="StopIteration"):
        await asyncio.wait_for(empty(), 10)


async def test_a_plain_function_that_hands_out_a_coroutine_gives_its_value() -> None:
    @zart_step("indirect")
    def indirect(n: int) -> Coroutine[Any, Any, int]:
        return double.function(n)  # type: ignore[no-any-return]

    assert await indirect(4) == 8
    assert indirect.spec.codec.annotation is int


async def test_steps_are_methods_too() -> None:
    billing = Billing(3)
    assert await billing.charge(5) == 15
    assert await Billing.charge(billing, 5) == 15
    assert billing.charge.spec is Billing.charge.spec


async def test_steps_are_class_and_static_methods_too() -> None:
    billing: Any = Billing(3)
    assert await billing.kind() == "Billing"
    assert await billing.constant() == 1


def test_the_function_stays_reachable_and_described() -> None:
    assert double.function.__name__ == "double"
    assert (double.__name__, double.__doc__, double.__module__) == ("double", "Twice the number.", __name__)  # type: ignore[attr-defined]
    assert repr(double) == "<Step 'double'>"


# -- names


def name_of(call: Call[Any, Any]) -> str:
    name = call.resolved_name()
    call.close()
    return name


def test_the_name_is_the_declared_one_filled_in() -> None:
    assert name_of(double(1)) == "double"
    assert name_of(plain(3)) == "plain-3"
    assert name_of(Billing(1).charge(cents=4)) == "charge-4"
    assert name_of(LookUp("8000")) == "zip-8000"


def test_named_overrides_every_kind_of_name() -> None:
    for call in (double(1), plain(3), LookUp("1"), Frozen(1)):
        assert name_of(call.named("other")) == "other"


def test_named_refuses_an_unusable_name() -> None:
    call = double(1)
    with pytest.raises(InvalidArgument, match="must not be empty"):
        _ = call.named("")
    call.close()


async def test_a_value_that_cannot_be_in_a_name_is_refused_before_the_function_runs() -> None:
    ran: list[object] = []

    @zart_step("s-{x}")
    async def note(x: object) -> None:
        ran.append(x)

    with pytest.raises(InvalidArgument, match="x is of type float"):
        await note(1.5)
    assert ran == []


def test_the_name_of_a_step_class_is_checked() -> None:
    class Nameless(LookUp):
        def step_name(self) -> str:
            return ""

    call = Nameless("1")
    with pytest.raises(InvalidArgument, match=r"step .*Nameless must not be empty"):
        call.resolved_name()
    call.close()


# -- errors outside an execution


async def test_an_error_comes_as_step_failed_with_its_cause() -> None:
    error = ValueError("no")
    with pytest.raises(StepFailed) as caught:
        await fail(error)
    assert (caught.value.step, caught.value.type_name, caught.value.detail) == ("fail", "ValueError", "no")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [Declined("x"), NoFunds()])
async def test_a_declared_error_comes_as_itself(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await decide(error)
    assert caught.value is error


async def test_a_step_class_declares_errors_in_its_second_argument() -> None:
    with pytest.raises(Declined):
        await Frozen(-1)


async def test_the_failure_of_an_inner_step_keeps_its_name() -> None:
    @zart_step("outer")
    async def outer_step() -> None:
        await fail(ValueError("no"))

    with pytest.raises(StepFailed, match="step 'fail' failed"):
        await outer_step()


async def test_cancellation_is_no_failure() -> None:
    with pytest.raises(asyncio.CancelledError):
        await fail(asyncio.CancelledError())  # type: ignore[arg-type]


# -- inside an execution


async def test_in_a_scope_every_kind_of_call_goes_through_it() -> None:
    scope = Recorder()
    with scope.entered():
        assert await double(2) == 4
        assert await plain(3, by=3) == 9
        assert await Billing(2).charge(4) == 8
        assert await LookUp("x") == ("x", 1)
        assert list(await asyncio.gather(double(1).named("again"))) == [2]
    assert [name for name, _ in scope.seen] == ["double", "plain-3", "charge-4", "zip-x", "again"]


def test_the_spec_holds_what_was_declared() -> None:
    spec = double.spec
    assert (spec.declared_name, spec.retry, spec.timeout) == ("double", RetryConfig.fixed(3, 1), 30.0)
    assert (spec.timeout_scope, spec.raises, spec.queue) == ("per_attempt", (), "slow")
    assert spec.codec.annotation is int
    assert double.spec is spec


def test_one_declared_error_needs_no_tuple() -> None:
    @zart_step("one", raises=Declined)
    async def one() -> None: ...

    assert one.spec.raises == (Declined,)


def test_the_spec_of_a_step_class_holds_what_its_methods_say() -> None:
    call, frozen = LookUp("x"), Frozen(1)
    spec = call.spec
    assert (spec.declared_name, spec.retry, spec.timeout) == ("LookUp", RetryConfig.exponential(2, 1), 5.0)
    assert spec.codec.annotation == tuple[str, int]
    assert call.spec is spec
    assert (frozen.spec.codec.annotation, frozen.spec.raises) == (int, (Declined, NoFunds))
    call.close()
    frozen.close()


def test_a_result_without_annotation_is_kept_plain() -> None:
    @zart_step("untyped")
    async def untyped():  # type: ignore[no-untyped-def]
        return 1

    assert untyped.spec.codec is PLAIN


# -- refused at decoration


def decorated(name: Any = "x", function: Any = double.function, **options: Any) -> Step[..., Any, Any]:
    made: Step[..., Any, Any] = zart_step(name, **options)(function)
    return made


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 600, 3, None])
def test_an_unusable_name_is_refused_at_decoration(name: Any) -> None:
    with pytest.raises(RegistrationError, match="name of a step"):
        decorated(name)


@pytest.mark.parametrize("function", [double.function, StepCall])
def test_a_decorator_without_a_name_says_how_to_write_it(function: Any) -> None:
    with pytest.raises(RegistrationError, match=rf'needs a name; write `@zart_step\("{function.__name__}"\)`'):
        zart_step(function)


def test_a_template_with_an_unknown_parameter_is_refused_at_decoration() -> None:
    with pytest.raises(RegistrationError, match=r"\{region\} is no parameter of double; its parameters: n"):
        decorated("x-{region}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "soon"}, "timeout of step 'x' must be a timedelta"),
        ({"timeout": 0}, "timeout of step 'x' must be more than 0"),
        ({"retry": "sometimes"}, "retry of step 'x': cannot read the retry text 'sometimes'"),
        ({"timeout_scope": "each"}, "timeout_scope of step 'x' must be"),
    ],
)
def test_options_that_cannot_be_read_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        decorated(**options)


@pytest.mark.parametrize("raises", [int, (Declined, 3), "Declined", BaseException, asyncio.CancelledError, [Declined]])
def test_raises_takes_exception_types_only(raises: Any) -> None:
    with pytest.raises(RegistrationError, match="raises of step 'x' must hold exception types"):
        decorated(raises=raises)


def test_raises_refuses_errors_of_zart() -> None:
    with pytest.raises(RegistrationError, match="your own exception types; StepFailed is one of zart's"):
        decorated(raises=(StepFailed,))


def test_raises_takes_a_decision_that_is_not_retryable() -> None:
    class Final(NonRetryable):
        pass

    assert decorated(raises=Final).raises == (Final,)


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


@pytest.mark.parametrize("function", [3, int, double, staticmethod(len), _generator, _async_generator])
def test_what_is_no_function_with_one_result_is_refused(function: Any) -> None:
    with pytest.raises(RegistrationError, match="step 'x'"):
        decorated(function=function)


def test_an_annotation_that_cannot_be_resolved_is_refused_when_the_spec_is_made() -> None:
    class Local:
        pass

    @zart_step("local")
    async def local() -> Local:
        return Local()

    with pytest.raises(RegistrationError, match=r"result of step 'local': .*Local.* cannot be resolved.*module level"):
        _ = local.spec


def test_an_annotation_that_cannot_be_kept_is_refused_when_the_spec_is_made() -> None:
    @zart_step("socket")
    async def connect() -> threading.Thread:
        raise NotImplementedError

    with pytest.raises(RegistrationError, match="result of step 'socket'"):
        _ = connect.spec


def test_annotations_of_parameters_are_not_looked_at() -> None:
    @zart_step("any")
    async def anything(connection: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    assert anything.spec.codec.annotation is int


def test_a_step_class_lacking_its_methods_cannot_be_made() -> None:
    class Half(ZartStep[int]):
        def step_name(self) -> str:
            return "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract, unused-awaitable]


def test_the_class_of_a_call_is_a_step_class() -> None:
    call = double(1)
    assert isinstance(call, StepCall)
    assert isinstance(call, ZartStep)
    call.close()
