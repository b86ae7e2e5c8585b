"""An order of several things: reserved side by side, shipped by a child execution, and taken back when it fails.

Watch three orders from start to end, in one process and with a PostgreSQL of its own:

    python examples/orders.py

or serve it from the directory above this one, and try others:

    zart-runner --app examples.orders --procs 2 --embedded ./db
    zart start order --id tea-1 --data '{"street": "", "lines": [{"item": "tea", "count": 2}]}' --embedded ./db
    zart wait tea-1 --embedded ./db
    zart history tea-1 --embedded ./db
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import zart
from zart import NonRetryable, zart_durable, zart_step
from zart.embedded import EmbeddedPostgres


@dataclass(frozen=True)
class Line:
    item: str
    count: int


@dataclass(frozen=True)
class Order:
    street: str
    lines: list[Line]


class OutOfStock(Exception):
    """A decision of the warehouse."""


@zart_step("reserve-{item}", raises=OutOfStock, retry="exponential(5, 100ms)")
async def reserve(order: str, item: str, count: int) -> int:
    if item == "unicorn":
        raise OutOfStock(f"no {item} left")
    return 250 * count  # what it costs


@zart_step("charge", retry="exponential(5, 100ms)")
async def charge(order: str, cents: int) -> str:
    return f"{cents / 100:.2f} paid"


@zart_step("pack")
async def pack(lines: list[Line]) -> str:
    return ", ".join(f"{line.count} {line.item}" for line in lines)


@zart_step("hand-over", retry="exponential(5, 100ms)")
async def hand_over(parcel: str, street: str) -> str:
    if not street:
        raise NonRetryable("there is no street to ship to")
    return f"{parcel} to {street}"


@zart_durable("ship", max_retries=2)
async def ship(order: Order) -> str:
    """An execution of its own: with its own history and retries, on any worker, cancelled with its parent."""
    return await hand_over(await pack(order.lines), order.street)


# Whether the failed body came so far is not known here: what takes something back must not mind if there is nothing.


@zart_step("release-{item}", retry="exponential(10, 1s)")
async def release(order: str, item: str) -> str:
    return f"{item} is free again"


@zart_step("refund", retry="exponential(10, 1s)")
async def refund(order: str) -> str:
    return f"nothing is paid for {order}"


async def take_back(order: Order, failure: zart.Failure) -> str:
    """Runs after any failure of the order, to its end, also when its worker dies on the way. Returns the result."""
    id = zart.context().execution_id
    released = [zart.schedule(release(id, line.item)) for line in order.lines]
    refunded = await refund(id)
    told = [outcome.unwrap() for outcome in await zart.wait(released)]
    match failure:
        case zart.BodyFailed():  # the decision that the body lets through
            why = failure.detail
        case zart.ChildFailed():
            why = f"could not {failure.step}"
        case _:
            why = "something is wrong"
    return f"called off, {why}: {', '.join([*told, refunded])}"


@zart_durable("order", timeout="7d", on_failure=take_back)
async def fulfil(order: Order) -> str:
    id = zart.context().execution_id
    # Made together, run by whichever worker is free; the order holds no worker while it waits for them.
    reserved = [zart.schedule(reserve(id, line.item, line.count)) for line in order.lines]
    cents = sum(outcome.unwrap() for outcome in await zart.wait(reserved))  # raises the first OutOfStock
    paid = await charge(id, cents)
    return f"{await ship(order)}, {paid}"


ORDERS = {
    "fine": Order("1 Main St", [Line("tea", 2), Line("cup", 1)]),
    "rare": Order("1 Main St", [Line("tea", 1), Line("unicorn", 1)]),
    "nowhere": Order("", [Line("tea", 1)]),
}


async def main() -> None:
    registry = zart.TaskRegistry()
    for task in (fulfil, ship, reserve, release):  # what runs as an execution of its own
        registry.register(task)
    with EmbeddedPostgres() as postgres:
        async with zart.PostgresScheduler.connect(postgres.dsn) as scheduler:
            await scheduler.migrate()
            worker = zart.Worker(scheduler, registry)
            running = asyncio.create_task(worker.run())
            for execution_id, order in ORDERS.items():
                print(await scheduler.start_and_wait_for(fulfil, execution_id, order, timeout="30s"))
            worker.stop()
            await running


if __name__ == "__main__":
    asyncio.run(main())
