"""An order on which nearly everything can go wrong: retries, decisions, fallbacks, and what the rest becomes.

Watch four orders from start to end, in one process and with a PostgreSQL of its own:

    python examples/errors.py

or serve it from the directory above this one, and try others:

    zart-runner --app examples.errors --procs 2 --embedded ./db
    zart start order --id tea-1 --data '{"item": "tea", "card": "4242", "street": "1 Main St"}' --embedded ./db
    zart wait tea-1 --embedded ./db
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zart
from zart import BusinessErr, NonRetryable, Ok, ZartErr, zart_durable, zart_step
from zart.embedded import EmbeddedPostgres


@dataclass(frozen=True)
class Order:
    item: str
    card: str
    street: str
    count: int = 1


class OutOfStock(Exception):
    """A decision. Its attributes are kept with it, so they must be plain JSON values."""

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"only {left} of {item} left")
        self.left = left


class CardDeclined(Exception):
    """A decision of the bank."""


@zart_step("reserve", raises=OutOfStock)
async def reserve(item: str, count: int) -> int:
    if count > 10:
        raise OutOfStock(item, left=10)
    return count


@zart_step("charge", retry="exponential(5, 100ms)", timeout="1m", raises=CardDeclined)
async def charge(card: str, count: int) -> str:
    if zart.context().current_attempt == 0:
        raise ConnectionError("the bank does not answer")  # not declared, so it is retried
    if card.endswith("0000"):
        raise CardDeclined(f"card {card}")  # declared, so it is not
    return f"payment for {count}"


@zart_step("find-gift", retry="fixed(1, 100ms)")
async def find_gift(item: str) -> str:
    raise TimeoutError("the service for gifts is down")


@zart_step("ship", retry="exponential(5, 100ms)")
async def ship(item: str, count: int, street: str) -> str:
    if not street:
        raise NonRetryable("there is no street to ship to")  # no retry can help
    return f"{count} {item} to {street}"


@zart_step("refund-{payment}", retry="exponential(10, 1s)")
async def refund(payment: str) -> None:
    print(f"refunded: {payment}")


@zart_durable("order")
async def fulfil(order: Order) -> str:
    # A declared error has an answer: take what is left.
    count = await zart.step_or_else(reserve(order.item, order.count), lambda short: short.left)

    # Each of the three ways a call can end has an answer of its own.
    match await zart.outcome(charge(order.card, count)):
        case Ok(payment):
            pass
        case BusinessErr(CardDeclined() as declined):
            return f"not paid: {declined}"
        case ZartErr(failure):
            return f"ask the bank: {failure}"

    # Nice to have: whatever goes wrong, the order goes on.
    gift = await zart.step_or(find_gift(order.item), "no gift")

    # Must be: any failure is a StepFailed here, and the execution's own if nobody catches it.
    try:
        parcel = await zart.require(ship(order.item, count, order.street))
    except zart.StepFailed:
        await refund(payment)
        raise
    return f"{parcel}, {gift}"


ORDERS = {
    "fine": Order("tea", "4242", "1 Main St", 2),
    "too-many": Order("tea", "4242", "1 Main St", 99),
    "declined": Order("tea", "0000", "1 Main St"),
    "nowhere": Order("tea", "4242", ""),
}


async def main() -> None:
    registry = zart.TaskRegistry()
    registry.register(fulfil)
    with EmbeddedPostgres() as postgres:
        async with zart.PostgresScheduler.connect(postgres.dsn) as scheduler:
            await scheduler.migrate()
            worker = zart.Worker(scheduler, registry)
            running = asyncio.create_task(worker.run())
            for execution_id, order in ORDERS.items():
                try:
                    print(await scheduler.start_and_wait_for(fulfil, execution_id, order, timeout="30s"))
                except zart.ExecutionFailed as error:
                    print(error)
            worker.stop()
            await running


if __name__ == "__main__":
    asyncio.run(main())
