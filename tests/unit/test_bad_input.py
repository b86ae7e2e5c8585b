"""Values that cannot be used are refused where they are given: by an error of zart's, one line that names them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.support.junk import HUGE, NAMES, NO_COUNT, NO_DURATION, NO_NAME, Broken, refused, shown
from zart import (
    DurableExecution,
    InvalidArgument,
    PostgresScheduler,
    RegistrationError,
    RetryConfig,
    TaskRegistry,
    WorkerConfig,
)
from zart import zart_durable as durable
from zart import zart_step as step
from zart.duration import seconds_of
from zart.names import NameTemplate


async def function(n: int = 1) -> int:
    return n


@durable("ordinary")
async def ordinary() -> None: ...


def _class_with(**keywords: Any) -> object:
    async def run(self: object, data: int) -> int:
        return data

    return type("Some", (DurableExecution,), {"run": run}, **keywords)


def _instance_with(**attributes: Any) -> object:
    async def run(self: object, data: int) -> int:
        return data

    made: Any = type("Some", (DurableExecution,), {"run": run, "task_name": "some", **attributes})
    return made().spec


def _called(name: Any) -> object:
    call = step("x")(function)()
    call.close()
    return call.named(name)


def _filled(value: Any) -> object:
    template = NameTemplate.read("step-{n}", function)
    assert template is not None
    return template.fill((value,), {})


# -- names

WITH_NAME: dict[str, tuple[Callable[[Any], object], str]] = {
    "zart_step": (lambda name: step(name)(function), "the name of a step"),
    "zart_durable": (lambda name: durable(name)(function), "the name of a durable function"),
    "DurableExecution": (lambda name: _class_with(name=name), "the name of a durable function"),
    "task_name": (lambda name: _instance_with(task_name=name), "name"),
    "named": (_called, "the name of a call"),
    "queue of zart_step": (lambda name: step("x", queue=name)(function), "the queue of step 'x'"),
    "queue of zart_durable": (lambda name: durable("x", queue=name)(function), "the queue of durable function 'x'"),
    "queue of DurableExecution": (lambda name: _class_with(name="x", queue=name), "the queue of Some"),
    "queue of an instance": (lambda name: _instance_with(queue=name), "the queue of durable function 'some'"),
    "queues": (lambda name: WorkerConfig(queues=(name,)), "a queue"),
}


@pytest.mark.parametrize("name", NO_NAME, ids=shown)
@pytest.mark.parametrize("place", WITH_NAME)
def test_a_name_that_cannot_be_one_is_refused_by_its_place(place: str, name: Any) -> None:
    give, what = WITH_NAME[place]
    refused(lambda: give(name), what)


@pytest.mark.parametrize("name", [*NO_NAME[:7], "\0" * 600], ids=shown)
def test_a_durable_function_is_registered_under_a_name_only(name: Any) -> None:
    refused(lambda: TaskRegistry().register(name, ordinary), "name of a durable function")


@pytest.mark.parametrize("name", NAMES, ids=shown)
@pytest.mark.parametrize("place", WITH_NAME)
def test_any_other_text_is_a_name(place: str, name: str) -> None:
    if place == "zart_step":
        name = name.replace("{}", "{{}}")  # a template otherwise
    WITH_NAME[place][0](name)


# -- templates


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0}", "{m}", "{n.real}", "{n!r}", "{n:>3}", "{n", "{%}", "{\0}"])
def test_a_template_that_cannot_be_filled_is_refused_at_decoration(text: str) -> None:
    refused(lambda: step(text)(function), "step name" if "\0" not in text else "name of a step")


@pytest.mark.parametrize(
    "value", [None, 1.5, math.nan, b"x", [], {}, object(), HUGE, timedelta(1), Broken()], ids=shown
)
def test_a_value_that_cannot_be_part_of_a_name_is_refused_by_parameter(value: Any) -> None:
    refused(lambda: _filled(value), "step name 'step-{n}': n ")


@pytest.mark.parametrize("value", ["\0", "x" * 10_000, "\ud800"], ids=shown)
def test_a_text_that_cannot_be_part_of_a_name_is_refused(value: str) -> None:
    refused(lambda: _filled(value), "the name of step 'step-{n}'")


# -- numbers and durations

WITH_COUNT: dict[str, tuple[Callable[[Any], object], str]] = {
    "fixed": (lambda count: RetryConfig.fixed(count, 1), "retries"),
    "exponential": (lambda count: RetryConfig.exponential(count, 1), "retries"),
    "RetryConfig": (lambda count: RetryConfig(count), "retries"),
    "max_retries": (lambda count: durable("x", max_retries=count)(function), "max_retries of durable function 'x'"),
    "priority": (lambda count: durable("x", priority=count)(function), "priority of durable function 'x'"),
    "priority of DurableExecution": (lambda count: _class_with(name="x", priority=count), "priority of"),
    "priority of an instance": (lambda count: _instance_with(priority=count), "priority of"),
    "max_concurrent_tasks": (lambda count: WorkerConfig(max_concurrent_tasks=count), "max_concurrent_tasks"),
    "max_result_bytes": (lambda count: WorkerConfig(max_result_bytes=count), "max_result_bytes"),
    "max_crashes": (lambda count: WorkerConfig(max_crashes=count), "max_crashes"),
    "trx_pool_size": (lambda count: WorkerConfig(trx_pool_size=count), "trx_pool_size"),
}

WITH_DURATION: dict[str, tuple[Callable[[Any], object], str]] = {
    "seconds_of": (lambda duration: seconds_of(duration, "the time"), "the time"),
    "fixed": (lambda duration: RetryConfig.fixed(1, duration), "the delay of a retry"),
    "exponential": (lambda duration: RetryConfig.exponential(1, duration), "the delay of a retry"),
    "max_delay": (lambda duration: RetryConfig.exponential(1, 0, max_delay=duration), "max_delay"),
    "base": (lambda duration: RetryConfig(1, duration), "the delay of a retry"),
    "max_delay of RetryConfig": (lambda duration: RetryConfig(1, max_delay=duration), "max_delay"),
    "timeout of zart_step": (lambda duration: step("x", timeout=duration)(function), "timeout of step 'x'"),
    "timeout of zart_durable": (lambda duration: durable("x", timeout=duration)(function), "timeout of durable"),
    "poll_interval": (lambda duration: WorkerConfig(poll_interval=duration), "poll_interval"),
    "lease_timeout": (lambda duration: WorkerConfig(lease_timeout=duration), "lease_timeout"),
    "shutdown_timeout": (lambda duration: WorkerConfig(shutdown_timeout=duration), "shutdown_timeout"),
    "park_grace": (lambda duration: WorkerConfig(park_grace=duration), "park_grace"),
}


@pytest.mark.parametrize("count", NO_COUNT, ids=shown)
@pytest.mark.parametrize("place", WITH_COUNT)
def test_a_number_that_cannot_be_one_is_refused_by_its_place(place: str, count: Any) -> None:
    give, what = WITH_COUNT[place]
    refused(lambda: give(count), what)


@pytest.mark.parametrize("duration", NO_DURATION, ids=shown)
@pytest.mark.parametrize("place", WITH_DURATION)
def test_what_is_no_duration_is_refused_by_its_place(place: str, duration: Any) -> None:
    give, what = WITH_DURATION[place]
    refused(lambda: give(duration), what)


@pytest.mark.parametrize("duration", ["1.5s", 1.5, timedelta(seconds=1.5)])
def test_a_retry_made_by_its_class_takes_every_form_of_a_duration(duration: Any) -> None:
    assert RetryConfig(3, duration, max_delay=duration) == RetryConfig(3, 1.5, max_delay=1.5)


@pytest.mark.parametrize("number", [None, -1, 1.001, math.nan, math.inf, "0.1", True, HUGE, [], Broken()], ids=shown)
def test_what_is_no_share_is_refused(number: Any) -> None:
    refused(lambda: RetryConfig.exponential(1, 1, jitter=number), "jitter")


@pytest.mark.parametrize("number", [None, 0, -1, 1001, math.nan, math.inf, "2", True, HUGE, [], Broken()], ids=shown)
def test_what_is_no_factor_is_refused(number: Any) -> None:
    refused(lambda: RetryConfig(1, factor=number), "factor")


@pytest.mark.parametrize("flag", [0, 1, "yes", "", [], Broken()], ids=shown)
async def test_what_is_neither_true_nor_false_is_refused(flag: Any) -> None:
    refused(lambda: WorkerConfig(prepared_statements=flag), "prepared_statements")
    with pytest.raises(InvalidArgument, match="prepared_statements must be"):
        await PostgresScheduler.connect("postgresql://nowhere/", prepared_statements=flag)


@pytest.mark.parametrize("url", [0, True, "", b"postgresql://ada:s3cr3t@host/db", []], ids=shown)
def test_what_is_no_url_is_refused_and_not_shown(url: Any) -> None:
    with pytest.raises(InvalidArgument, match="listen_url must be") as raised:
        WorkerConfig(listen_url=url)
    assert "s3cr3t" not in str(raised.value)


def test_settings_do_not_show_the_password_in_a_url() -> None:
    assert "s3cr3t" not in repr(WorkerConfig(listen_url="postgresql://ada:s3cr3t@host/db"))


async def _asynchronous(error: BaseException) -> bool:
    return True


@pytest.mark.parametrize(
    "retry_on", [0, "ValueError", int, (int,), (ValueError, "x"), [ValueError], _asynchronous, Broken()], ids=shown
)
def test_what_does_not_tell_errors_apart_is_refused(retry_on: Any) -> None:
    refused(lambda: RetryConfig.fixed(1, 1, retry_on=retry_on), "retry_on")


RETRIES: list[Any] = [
    "", " ", "sometimes", "fixed", "fixed()", "fixed(3)", "fixed(3, soon)", "fixed(-1, 1s)", "fixed(1.5, 1s)",
    "fixed(3, 1s, 2s)", "fixed(3, -1s)", "fixed(99999999, 1s)", "exponential(3, 2s, jitter=2)",
    "exponential(3, 2s, jitter=nan)", "exponential(3, 2s, max_delay=1ms)", "exponential(3, 2s, x=1)", "x" * 10_000,
    "fixed(" + "9" * 10_000 + ", 1s)", "fixed(3, " + "9" * 10_000 + "s)", "\0", "\ud800", 3, 1.5, True, b"none", [],
    ValueError, HUGE, Broken(),
]  # fmt: skip


@pytest.mark.parametrize("retry", RETRIES, ids=shown)
def test_what_is_no_retry_is_refused_by_its_place(retry: Any) -> None:
    refused(lambda: step("x", retry=retry)(function), "retry of step 'x'")
    refused(lambda: durable("x", retry=retry)(function), "retry of durable function 'x'")
    refused(lambda: RetryConfig.parse(retry), "retry")


# -- functions, types and the rest

NO_FUNCTION: list[Any] = [None, 0, "text", int, object(), staticmethod(function), ordinary, HUGE, Broken()]


@pytest.mark.parametrize("given", NO_FUNCTION, ids=shown)
def test_what_is_no_function_is_refused_by_the_decorators(given: Any) -> None:
    refused(lambda: durable("x")(given), "durable function 'x'")
    if given is not ordinary:  # any callable can be a step
        refused(lambda: step("x")(given), "step 'x'")


@pytest.mark.parametrize("raises", [None, 0, "x", int, KeyboardInterrupt, [ValueError], (1,), Broken()], ids=shown)
def test_what_is_no_type_of_errors_is_refused(raises: Any) -> None:
    refused(lambda: step("x", raises=raises)(function), "raises of step 'x'")


@pytest.mark.parametrize("scope", [None, 0, "", "local", [], "x" * 10_000, Broken()], ids=shown)
def test_what_is_no_scope_of_a_timeout_is_refused(scope: Any) -> None:
    refused(lambda: step("x", timeout_scope=scope)(function), "timeout_scope of step 'x'", "per_attempt")


@pytest.mark.parametrize("queues", ["default", ["a"], (), {"a"}, 0, Broken()], ids=shown)
def test_what_is_no_tuple_of_queues_is_refused(queues: Any) -> None:
    refused(lambda: WorkerConfig(queues=queues), "queues must be a tuple")


@pytest.mark.parametrize("given", [None, 0, function, object(), HUGE, Broken()], ids=shown)
def test_a_registry_takes_durable_functions_and_steps_only(given: Any) -> None:
    with pytest.raises(RegistrationError):
        TaskRegistry().register(given)
    refused(lambda: TaskRegistry().register("x", given), "neither a durable function nor a step")


def test_a_registry_refuses_name_and_function_the_wrong_way_round() -> None:
    refused(lambda: TaskRegistry().register(ordinary, "x"), "register(name, durable)")  # type: ignore[call-overload]


def test_a_registry_takes_a_step_under_its_own_name_only() -> None:
    refused(lambda: TaskRegistry().register("y", step("x")(function)), "<Step 'x'>", "leave out 'y'")  # type: ignore[call-overload]


@pytest.mark.parametrize("module", [None, "os", ordinary, 0, HUGE, Broken()], ids=shown)
def test_a_registry_takes_modules_as_modules_only(module: Any) -> None:
    refused(lambda: TaskRegistry().register_module(module), "register_module takes a module")


@pytest.mark.parametrize("lifespan", [0, "x", HUGE, Broken()], ids=shown)
def test_a_registry_takes_functions_as_lifespan_only(lifespan: Any) -> None:
    refused(lambda: TaskRegistry(lifespan), "lifespan")


@pytest.mark.parametrize("call", [None, 0, function, step("x")(function), HUGE, Broken()], ids=shown)
def test_what_is_no_call_is_refused_where_a_call_belongs(call: Any) -> None:
    from zart import outcome, require, step_or, step_or_else
    from zart import step as step_of

    for ask in (step_of, outcome, require, lambda it: step_or(it, 1), lambda it: step_or_else(it, str)):
        with pytest.raises(InvalidArgument, match="takes a call of a step"):
            asyncio.run(ask(call))
