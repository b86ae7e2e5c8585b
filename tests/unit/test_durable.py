"""Durable functions: their specs, calling them outside an execution, and what is refused at decoration."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from zart.codec import PLAIN
from zart.durable import Durable, DurableExecution, DurableWithoutData, zart_durable
from zart.duration import RetryConfig
from zart.errors import Failure, InvalidArgument, RegistrationError, SerializationError, StepFailed
from zart.registry import TaskRegistry
from zart.steps import zart_step


@dataclass
class Order:
    cents: int


@dataclass
class Receipt:
    order: Order
    charged: int


@zart_step("charge")
async def charge(cents: int) -> int:
    return cents


@zart_durable("order", timeout="10m", max_retries=3, queue="shop", priority=5)
async def order(data: Order) -> Receipt:
    """Sell it."""
    return Receipt(data, await charge(data.cents))


@zart_durable("nightly")
async def nightly() -> str:
    return "done"


class Doubling(DurableExecution[int, str], name="doubling", queue="math", priority=0):
    async def run(self, data: int) -> str:
        return str(2 * data)

    def max_retries(self) -> int:
        return 2

    def timeout(self) -> str:
        return "1h"


def decorated(function: Any, name: Any = "x", **options: Any) -> Any:
    return zart_durable(name, **options)(function)


# -- calling


async def test_outside_an_execution_a_call_runs_the_body_and_its_steps() -> None:
    assert await order(Order(7)) == Receipt(Order(7), 7)
    assert await nightly() == "done"
    assert await Doubling()(4) == "8"


async def test_calls_of_durable_functions_gather() -> None:
    assert list(await asyncio.gather(Doubling()(1), nightly(), nightly())) == ["2", "done", "done"]


async def test_an_error_of_the_body_comes_as_step_failed_with_its_cause() -> None:
    @zart_durable("broken")
    async def broken(data: int) -> None:
        raise ValueError("no")

    with pytest.raises(StepFailed, match=r"^durable function 'broken' failed: ValueError: no$") as caught:
        await broken(1)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_an_error_of_a_step_of_the_body_names_the_step() -> None:
    @zart_step("fragile")
    async def fragile() -> None:
        raise ValueError("no")

    @zart_durable("outer")
    async def outer() -> None:
        await fragile()

    with pytest.raises(StepFailed, match=r"^step 'fragile' failed: ValueError: no$"):
        await outer()


def test_a_call_that_a_body_returns_without_awaiting_it_is_asked_about() -> None:
    for call in (charge(1), nightly()):
        with pytest.raises(SerializationError, match=r"it is <\w+Call '\w+'>, not its result; did you forget `await`"):
            order.spec.output_codec.encode(call)
        call.close()


async def test_the_body_itself_stays_callable() -> None:
    assert await order.function(Order(1)) == Receipt(Order(1), 1)
    assert await order.run(Order(1)) == Receipt(Order(1), 1)
    assert await nightly.run() == "done"
    assert (order.__name__, order.__doc__) == ("order", "Sell it.")  # type: ignore[attr-defined]


async def test_a_dropped_call_warns() -> None:
    with pytest.warns(RuntimeWarning, match="<ChildCall 'nightly'> was never awaited"):
        nightly()  # type: ignore[unused-awaitable]


# -- specs


def test_the_spec_holds_what_was_declared() -> None:
    spec = order.spec
    assert (spec.task_name, spec.timeout, spec.queue, spec.priority) == ("order", 600.0, "shop", 5)
    assert spec.retry == RetryConfig.exponential(3, "1s", max_delay="5m")
    assert (spec.input_codec.annotation, spec.output_codec.annotation) == (Order, Receipt)
    assert spec.takes_data
    assert order.spec is spec


def test_the_spec_of_a_class_holds_what_its_methods_say() -> None:
    spec = Doubling().spec
    assert (spec.task_name, spec.timeout, spec.queue, spec.priority) == ("doubling", 3600.0, "math", 0)
    assert spec.retry == RetryConfig.exponential(2, "1s", max_delay="5m")
    assert (spec.input_codec.annotation, spec.output_codec.annotation) == (int, str)


async def test_the_engine_invokes_bodies_with_and_without_data_alike() -> None:
    assert await order.spec.invoke(Order(1)) == Receipt(Order(1), 1)
    assert await Doubling().spec.invoke(1) == "2"
    assert not nightly.spec.takes_data
    assert await nightly.spec.invoke(None) == "done"


def test_retry_gives_count_and_delays_of_execution_retries() -> None:
    assert decorated(order.function, retry="fixed(4, 2s)").spec.retry == RetryConfig.fixed(4, 2)


def test_without_options_there_are_no_retries_and_no_timeout() -> None:
    assert (nightly.spec.retry, nightly.spec.timeout) == (RetryConfig.none(), None)


def test_a_body_without_annotations_is_kept_plain() -> None:
    async def body(data):  # type: ignore[no-untyped-def]
        return data

    spec = decorated(body).spec
    assert (spec.input_codec, spec.output_codec) == (PLAIN, PLAIN)


def test_both_forms_are_durable_executions() -> None:
    assert isinstance(order, Durable)
    assert isinstance(nightly, DurableWithoutData)
    assert all(isinstance(one, DurableExecution) for one in (order, nightly, Doubling()))


def test_a_subclass_keeps_queue_and_priority_of_its_base() -> None:
    class Tripling(Doubling, name="tripling"):
        pass

    assert (Tripling.task_name, Tripling.queue, Tripling.priority) == ("tripling", "math", 0)


# -- refused


async def _two(data: int, other: int) -> None: ...
async def _variadic(*data: int) -> None: ...
async def _keyword(*, data: int) -> None: ...
def _plain(data: int) -> None: ...


async def _generator(data: int) -> Any:
    yield data


def test_a_body_with_two_parameters_is_refused_with_the_remedy() -> None:
    with pytest.raises(RegistrationError, match=r"'x' takes 2 parameters \(data, other\).*dataclass"):
        decorated(_two)


@pytest.mark.parametrize("function", [_variadic, _keyword])
def test_a_body_whose_parameter_takes_no_single_value_is_refused(function: Any) -> None:
    with pytest.raises(RegistrationError, match="its one parameter must be a plain one"):
        decorated(function)


@pytest.mark.parametrize("function", [_plain, _generator, 3, Order, charge])
def test_a_body_must_be_an_async_function(function: Any) -> None:
    with pytest.raises(RegistrationError, match=r"durable function 'x' must be an `async def` function"):
        decorated(function)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 600, None])
def test_an_unusable_name_is_refused(name: Any) -> None:
    with pytest.raises(RegistrationError, match="name of a durable function"):
        decorated(order.function, name)


def test_a_decorator_without_a_name_says_how_to_write_it() -> None:
    function: Any = order.function
    with pytest.raises(RegistrationError, match=r'needs a name; write `@zart_durable\("order"\)`'):
        zart_durable(function)


def test_retry_and_max_retries_exclude_each_other() -> None:
    with pytest.raises(RegistrationError, match="'x' has both retry and max_retries"):
        decorated(order.function, retry="fixed(1, 1s)", max_retries=1)


# -- failure handlers


FAILURE = StepFailed("no", step="charge")


async def _refund(data: Order, failure: Failure) -> Receipt:
    return Receipt(data, 0)


async def _alone(failure: Failure) -> str:
    return f"after {failure}"


async def test_the_engine_calls_handlers_with_and_without_data_alike() -> None:
    with_data = decorated(order.function, on_failure=_refund).spec.on_failure
    without = decorated(nightly.function, on_failure=_alone).spec.on_failure
    assert await with_data(Order(3), FAILURE) == Receipt(Order(3), 0)
    assert await without(None, FAILURE) == "after step 'charge' failed: no"


async def test_a_handler_can_be_called_for_itself() -> None:
    assert await decorated(order.function, on_failure=_refund).on_failure(Order(3), FAILURE) == Receipt(Order(3), 0)
    assert (
        await decorated(nightly.function, on_failure=_alone).on_failure(None, FAILURE)
        == "after step 'charge' failed: no"
    )
    assert await order.on_failure(Order(3), FAILURE) is None
    assert await Doubling().on_failure(3, FAILURE) is None


def test_without_a_handler_the_spec_has_none() -> None:
    assert order.spec.on_failure is None
    assert Doubling().spec.on_failure is None


async def test_a_class_has_the_handler_of_its_base_or_its_own() -> None:
    class Refunding(Doubling, name="refunding"):
        async def on_failure(self, data: int, failure: Failure) -> str:
            return f"{data} back"

    class Same(Refunding, name="same"):
        pass

    for one in (Refunding(), Same()):
        handler = one.spec.on_failure
        assert handler is not None
        assert await handler(3, FAILURE) == "3 back"


async def test_a_registered_name_keeps_the_handler() -> None:
    registry = TaskRegistry()
    registry.register("renamed", decorated(nightly.function, on_failure=_alone))
    handler = registry.durables["renamed"].on_failure
    assert handler is not None
    assert await handler(None, FAILURE) == "after step 'charge' failed: no"


@pytest.mark.parametrize(
    ("body", "handler", "message"),
    [
        (order.function, charge, "on_failure of durable function 'x' must be an `async def` function, got <Step"),
        (order.function, _plain, "on_failure of durable function 'x' must be an `async def` function"),
        (order.function, _alone, r"'x' takes failure; it must take what the body takes .*: \(data, failure\)"),
        (nightly.function, _refund, r"'x' takes data, failure; it must take what .*: \(failure\)"),
        (nightly.function, nightly.function, r"'x' takes nothing; it must take what .*: \(failure\)"),
    ],
)
def test_a_handler_that_cannot_be_called_is_refused_at_the_decoration(body: Any, handler: Any, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        decorated(body, on_failure=handler)


def test_a_method_that_cannot_be_the_handler_is_refused_when_the_spec_is_made() -> None:
    class Odd(Doubling, name="odd"):
        async def on_failure(self, failure: Failure) -> None:  # type: ignore[override]
            pass

    with pytest.raises(RegistrationError, match=r"on_failure of durable function 'odd' takes failure; .*data, failure"):
        _ = Odd().spec


def test_a_name_that_begins_as_those_of_handlers_in_the_journal_is_refused() -> None:
    with pytest.raises(RegistrationError, match="must not begin with 'on_failure/'") as caught:
        decorated(order.function, "on_failure/x")
    assert "zart puts that before the names in failure handlers by itself" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "soon"}, "timeout of durable function 'x' must be a timedelta"),
        ({"timeout": 0}, "timeout of durable function 'x' must be more than 0"),
        ({"max_retries": -1}, "max_retries of durable function 'x'"),
        ({"max_retries": "3"}, "max_retries of durable function 'x'"),
        ({"max_retries": True}, "max_retries of durable function 'x'"),
        ({"retry": "often"}, "retry of durable function 'x': cannot read the retry text 'often'"),
        ({"priority": -1}, "priority of durable function 'x' must be a whole number"),
        ({"priority": "high"}, "priority of durable function 'x' must be a whole number"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        decorated(order.function, **options)


def test_an_empty_queue_is_refused() -> None:
    with pytest.raises(RegistrationError, match="the name of the queue of durable function 'x' must not be empty"):
        decorated(order.function, queue="")


def test_a_class_without_a_name_is_refused_when_its_spec_is_made() -> None:
    class Nameless(DurableExecution[int, int]):
        async def run(self, data: int) -> int:
            return data

    with pytest.raises(RegistrationError, match=r"Nameless has no name; write `class .*name="):
        _ = Nameless().spec


def test_annotations_that_cannot_be_used_are_refused_when_the_spec_is_made() -> None:
    async def takes(data: threading.Thread) -> None: ...
    async def gives(data: int) -> threading.Thread:
        raise NotImplementedError

    async def lost(data: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, message in ((takes, "input of"), (gives, "result of"), (lost, "input of .* cannot be resolved")):
        with pytest.raises(RegistrationError, match=message):
            _ = decorated(function).spec
