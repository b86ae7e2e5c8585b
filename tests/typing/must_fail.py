"""Mistakes that the types catch. Never run.

A line that ends in `# E` is an error under mypy and under pyright, one in `# E mypy` under mypy alone. No other is.
"""

# ruff: noqa: B018, F841
from __future__ import annotations

from must_pass import (
    Billing,
    Double,
    LookUpZip,
    NoFunds,
    Order,
    alert_nightly,
    bill,
    bill_two,
    clean_up,
    nightly,
    order,
    plain,
    send_email,
)

import zart
from zart import RetryConfig, TaskRegistry, ZartStep, zart_durable, zart_step


async def calls() -> None:
    await send_email(3)  # E
    await send_email()  # E
    await bill("a", dollars=3)  # E
    await Billing().charge("a")  # E
    await LookUpZip(3)  # E
    await order("a")  # E
    await order()  # E
    await nightly(3)  # E
    await Double()("a")  # E
    await bill("a").named(3)  # E
    number: int = await bill("a")  # E
    text: str = await order.run(Order("a", 1)) + 1  # E
    send_email("a")  # E mypy


async def functions() -> None:
    def fallback(error: NoFunds) -> str:
        return ""

    await zart.step_or_else(bill("a"), fallback)  # E
    await zart.step(plain)  # E
    await zart.outcome(bill)  # E
    await zart.require(plain.function)  # E
    found = await zart.outcome(bill_two("a"))
    found.value  # E
    kept: int = await zart.capture("id", lambda: "x", str)  # E
    await zart.capture("id", lambda argument: 1)  # E
    await zart.now()  # E


async def waits() -> None:
    event: int = await zart.wait_for_event("x", str)  # E
    await zart.wait_for_event("x", str, "3d")  # E
    await zart.sleep("a")  # E
    await zart.sleep(1)  # E
    await zart.sleep_until("a", 3600)  # E
    nothing = await zart.sleep("a", 1)  # E mypy
    zart.sleep("a", 1)  # E


async def executions(scheduler: zart.PostgresScheduler) -> None:
    await scheduler.start_for(order, "order-1", "a")  # E
    await scheduler.start_for(order, "order-1")  # E
    number: int = await scheduler.start_and_wait_for(order, "order-1", Order("a", 1))  # E


async def two(data: int, other: int) -> None: ...


def not_async(data: int) -> None: ...


class Half(ZartStep[int]):
    def step_name(self) -> str:
        return "half"


async def refund_number(data: Order, failure: zart.Failure) -> int:
    return 1


async def refund_text(data: str, failure: zart.Failure) -> str:
    return ""


async def only_steps(data: Order, failure: zart.StepFailed) -> None: ...


async def with_order(data: Order) -> str:
    return ""


async def without() -> str:
    return ""


class Mistaken(zart.DurableExecution[Order, str], name="mistaken"):
    async def run(self, data: Order) -> str:
        return ""

    async def on_failure(self, data: Order, failure: zart.Failure) -> int:  # E
        return 1


zart_durable("x", on_failure=refund_number)(with_order)  # E
zart_durable("x", on_failure=refund_text)(with_order)  # E
zart_durable("x", on_failure=only_steps)(with_order)  # E
zart_durable("x", on_failure=clean_up)(without)  # E
zart_durable("x", on_failure=alert_nightly)(with_order)  # E
zart_durable("x", on_failure=clean_up, retries=3)(with_order)  # E
zart_durable("x", on_failure=3)  # E
zart_durable("two")(two)  # E
zart_durable("plain")(not_async)  # E
zart_durable("x", timeout=[3])  # E
zart_durable("x", retries=3)  # E
zart_durable()  # E
zart_step("x", timeout_scope="each")  # E
zart_step("x", raises=3)  # E
zart_step("x", raises=(NoFunds, 3))  # E
zart_step("x", raises=(BaseException,))  # E
zart_step("x", retry=3)  # E
RetryConfig.fixed("3", "1s")  # E
RetryConfig.exponential(3, "1s", retry_on="ValueError")  # E
TaskRegistry().register(two)  # E
TaskRegistry().register("x", plain)  # E
zart.step_or(Half(), None)  # E
