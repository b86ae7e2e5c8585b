"""What users write, and the types they get: clean under mypy --strict and pyright strict. Never run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, assert_never, assert_type
from uuid import UUID, uuid4

import zart
from zart import BusinessErr, Ok, RetryConfig, StepFailed, TaskRegistry, ZartErr, ZartStep, zart_durable, zart_step


class CardDeclined(Exception): ...


class NoFunds(Exception): ...


class Expired(Exception): ...


@dataclass
class Order:
    email: str
    cents: int


@zart_step("send-email", retry="exponential(3, 2s)", timeout="30s", timeout_scope="per_attempt", queue="mail")
async def send_email(email: str) -> None: ...


@zart_step("bill-{email}", raises=CardDeclined)
async def bill(email: str, *, cents: int = 1) -> str:
    return "x"


@zart_step("bill-one", raises=(CardDeclined,), retry=RetryConfig.fixed(3, timedelta(seconds=1)))
async def bill_one(email: str) -> str:
    return "x"


@zart_step("bill-two", raises=(CardDeclined, NoFunds))
async def bill_two(email: str) -> str:
    return "x"


@zart_step("bill-three", raises=(CardDeclined, NoFunds, Expired))
async def bill_three(email: str) -> str:
    return "x"


@zart_step("bill-four", raises=(CardDeclined, NoFunds, Expired, ValueError))
async def bill_four(email: str) -> str:
    return "x"


@zart_step("plain", raises=CardDeclined, timeout=3)
def plain(n: int) -> float:
    return 1.0


class Billing:
    @zart_step("charge-{n}")
    async def charge(self, n: int) -> int:
        return n


@dataclass
class LookUpZip(ZartStep[tuple[str, str]]):
    code: str

    def step_name(self) -> str:
        return f"zip-{self.code}"

    def retry_config(self) -> RetryConfig:
        return RetryConfig.exponential(3, "2s", retry_on=lambda error: isinstance(error, OSError))

    def timeout(self) -> str:
        return "5s"

    def timeout_scope(self) -> Literal["per_attempt"]:
        return "per_attempt"

    async def run(self) -> tuple[str, str]:
        return ("a", "b")


@dataclass(frozen=True, slots=True)
class Charge(ZartStep[int, CardDeclined | NoFunds]):
    cents: int

    def step_name(self) -> str:
        return "charge"

    async def run(self) -> int:
        return self.cents


@zart_durable("order", timeout="10m", max_retries=3, queue="shop", priority=1)
async def order(data: Order) -> str:
    return await bill(data.email, cents=data.cents)


@zart_durable("nightly", retry="fixed(3, 1s)")
async def nightly() -> date:
    return date(2024, 1, 1)


class Double(zart.DurableExecution[int, str], name="double", queue="math"):
    async def run(self, data: int) -> str:
        return str(data * 2)

    def max_retries(self) -> int:
        return 3

    def timeout(self) -> timedelta:
        return timedelta(hours=1)


async def calls() -> None:
    assert_type(await send_email("a"), None)
    assert_type(await bill("a", cents=3), str)
    assert_type(await bill("a").named("b"), str)
    assert_type(await plain(3), float)
    assert_type(await Billing().charge(3), int)
    assert_type(await LookUpZip("1"), tuple[str, str])
    assert_type(await LookUpZip("1").named("first"), tuple[str, str])
    assert_type(await Double()(3), str)
    assert_type(await order(Order("a", 1)), str)
    assert_type(await nightly(), date)
    assert_type(await zart.step(LookUpZip("1")), tuple[str, str])
    assert_type(await zart.step(order(Order("a", 1)).named("second")), str)
    assert_type(plain.function(3), Any)


async def together() -> None:
    a, b, c = await asyncio.gather(bill("a"), plain(1), Double()(1))
    assert_type(a, str)
    assert_type(b, float)
    assert_type(c, str)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bill("a"))
    assert_type(task.result(), str)


async def outcomes() -> None:
    two = await zart.outcome(bill_two("a"))
    match two:
        case Ok(value):
            assert_type(value, str)
        case BusinessErr(CardDeclined() as declined):
            assert_type(declined, CardDeclined)
        case BusinessErr(error):
            assert_type(error, CardDeclined | NoFunds)
        case ZartErr(failure):
            assert_type(failure, StepFailed)
        case _:
            assert_never(two)
    assert_type(two.unwrap(), str)
    three = await zart.outcome(bill_three("a"))
    if isinstance(three, BusinessErr):
        assert_type(three.error, CardDeclined | NoFunds | Expired)
    four = await zart.outcome(bill_four("a"))
    if isinstance(four, BusinessErr):
        assert_type(four.error, Exception)
    of_class = await zart.outcome(Charge(1))
    if isinstance(of_class, BusinessErr):
        assert_type(of_class.error, CardDeclined | NoFunds)


async def fallbacks() -> None:
    def fallback(error: CardDeclined) -> int:
        return 1

    assert_type(await zart.require(bill("a")), str)
    assert_type(await zart.step_or_else(bill_one("a"), fallback), str | int)
    assert_type(await zart.step_or(bill("a"), None), str | None)


async def kept_values() -> None:
    assert_type(await zart.capture("id", uuid4), UUID)
    assert_type(await zart.capture("chance", lambda: 0.5), float)
    assert_type(await zart.capture("ids", lambda: [uuid4()], list[UUID]), list[UUID])
    assert_type(await zart.capture("mode", lambda: "on", Literal["on", "off"]), Literal["on", "off"])
    assert_type(await zart.now("start"), datetime)
    assert_type(zart.context().current_attempt, int)


async def waits() -> None:
    assert_type(await zart.sleep("a", "1h"), None)
    assert_type(await zart.sleep_until("b", datetime.now()), None)
    assert_type(await zart.wait_for_event("x"), Any)
    assert_type(await zart.wait_for_event("x", UUID, timeout="3d"), UUID)
    assert_type(await zart.wait_for_event("x", type=list[int] | None), list[int] | None)
    assert_type(await zart.wait_for_event("x", Literal["yes", "no"]), Literal["yes", "no"])
    order_of_event, _ = await asyncio.gather(zart.wait_for_event("x", Order), zart.sleep("c", 1.5))
    assert_type(order_of_event, Order)


@zart_step("write")
async def write() -> str:
    conn = await zart.trx()
    async with conn.transaction():
        assert_type(await conn.execute("select 1"), str)
    return await conn.execute("select 2")


async def executions(scheduler: zart.PostgresScheduler) -> None:
    handle = await scheduler.start_for(order, "order-1", Order("a", 1))
    assert_type(await handle.result(timeout="5s"), str)
    assert_type(await (await scheduler.start_for(nightly, "nightly-1")).result(), date)
    assert_type(await scheduler.start_and_wait_for(Double(), "double-1", 3), str)


def why(failure: zart.Failure) -> str:
    match failure:
        case StepFailed():
            return failure.step
        case zart.BodyFailed():
            return failure.type_name
        case zart.RetriesExhausted():
            return f"{failure.attempts}: {why(failure.last)}"
        case zart.DeadlineExceeded():
            return "late"
        case _:
            assert_never(failure)


async def refund(data: Order, failure: zart.Failure) -> str:
    return why(failure)


async def refund_or_not(data: Order, failure: zart.Failure) -> str | None:
    return None


async def clean_up(data: Order, failure: zart.Failure) -> None: ...


async def alert(data: object, failure: zart.Failure) -> None: ...


async def alert_any(data: Any, failure: zart.Failure) -> None: ...


async def after_nightly(failure: zart.Failure) -> date:
    return date.today()


async def alert_nightly(failure: zart.Failure) -> None: ...


@zart_durable("refunded", timeout="10m", max_retries=3, queue="shop", priority=1, on_failure=refund)
async def refunded(data: Order) -> str:
    return "x"


class Refunded(zart.DurableExecution[Order, str], name="refunded-class"):
    async def run(self, data: Order) -> str:
        return "x"

    async def on_failure(self, data: Order, failure: zart.Failure) -> str | None:
        return why(failure)


async def handlers(scheduler: zart.PostgresScheduler) -> None:
    assert_type(await refunded(Order("a", 1)), str)
    assert_type(await zart_durable("a", on_failure=refund_or_not)(order.function)(Order("a", 1)), str)
    assert_type(await zart_durable("b", on_failure=clean_up)(refunded.run)(Order("a", 1)), str)
    assert_type(await zart_durable("c", on_failure=alert)(refunded.run)(Order("a", 1)), str)
    assert_type(await zart_durable("d", on_failure=alert_any)(refunded.run)(Order("a", 1)), str)
    assert_type(await zart_durable("e", on_failure=after_nightly)(nightly.run)(), date)
    assert_type(await zart_durable("f", on_failure=alert_nightly)(nightly.run)(), date)
    assert_type(await scheduler.start_and_wait_for(refunded, "a", Order("a", 1)), str)
    assert_type(await refunded.on_failure(Order("a", 1), zart.DeadlineExceeded("late")), str | None)
    assert_type(await scheduler.start_and_wait_for(Refunded(), "a", Order("a", 1)), str)


def registered() -> None:
    registry = TaskRegistry()
    registry.register(order)
    registry.register(nightly)
    registry.register("renamed", order)
    registry.register(Double)
    registry.register(Double())
    registry.register("twice", Double)
    registry.register(bill)
    registry.register(plain)
    registry.register_module(asyncio)
    assert_type(len(registry), int)
