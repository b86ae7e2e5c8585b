"""The application of the chaos suite: one small workflow for each thing that a workflow can say.

How each must end follows from its input alone. Every step leaves an effect first.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import zart
from tests.chaos import points
from tests.chaos.effects import leave_effect, open_pool
from zart import NonRetryable, zart_durable, zart_step
from zart.model import StoredStatus

PARTS = 4
ROUNDS = 2
LONGEST = 0.05  # seconds that a step takes

LEDGER = "create table ledger(execution_id text not null, amount int not null)"


@zart_step("plain-{number}")
async def plain(total: int, number: int) -> int:
    points.reach("before the effect")
    await leave_effect(f"plain-{number}")
    points.reach("after the effect")
    await asyncio.sleep(random.random() * LONGEST)
    return total + number


@zart_step("flaky", retry="fixed(2, 30ms)")
async def flaky(number: int) -> int:
    await leave_effect("flaky", tries=3)
    if zart.context().current_attempt < number % 3:
        raise RuntimeError("not yet")
    return number


@zart_step("part-{number}")
async def part(of: int, number: int) -> int:
    await leave_effect(f"part-{number}")
    points.reach("in a step of a parallel group")
    await asyncio.sleep(random.random() * LONGEST)
    return of * number


@zart_step("break", retry="fixed(1, 20ms)")
async def break_down(fatal: bool) -> int:
    await leave_effect("break", tries=1 if fatal else 2)
    raise NonRetryable("no") if fatal else RuntimeError("no")


@zart_step("mend")
async def mend(number: int) -> int:
    await leave_effect("on_failure/mend")
    points.reach("in on_failure")
    return -number


@zart_step("book")
async def book(amount: int) -> int:
    await leave_effect("book")
    connection = await zart.trx()
    await connection.execute("insert into public.ledger values ($1, $2)", zart.context().execution_id, amount)
    points.reach("in a transaction")
    return amount


@zart_step("show-up")
async def show_up(seconds: float) -> int:
    await leave_effect("show-up")
    await asyncio.sleep(seconds)
    return os.getpid()


@zart_durable("steps")
async def steps(number: int) -> int:
    total = await flaky(number)
    for each in range(3):
        total = await plain(total, each)
    return total


@zart_durable("sleeper")
async def sleeper(number: int) -> int:
    total = await plain(number, 0)
    await zart.sleep("nap", "300ms")
    return await plain(total, 1)


@zart_durable("approval")
async def approval(number: int) -> int:
    total = await plain(number, 0)
    total += await zart.wait_for_event("go", int, timeout="1h")
    return await plain(total, 1)


@zart_durable("impatient")
async def impatient(number: int) -> int:
    try:
        await zart.wait_for_event("never", int, timeout="300ms")
    except zart.EventTimeout:
        return await plain(number, 0)
    return 0


@zart_durable("group")
async def group(number: int) -> int:
    total = 0
    for _ in range(ROUNDS):
        handles = [zart.schedule(part(number, total + each)) for each in range(PARTS)]
        await zart.wait(handles)
        total += PARTS
    return await plain(total, 0)


@zart_durable("leaf")
async def leaf(number: int) -> int:
    return await plain(number, 1)


@zart_durable("family")
async def family(number: int) -> int:
    twin = zart.schedule(leaf(number).named("twin"))
    return await leaf(number) + await twin


async def on_failure(number: int, failure: zart.Failure) -> int:
    """Mends even numbers; odd ones stay failed."""
    mended = await mend(number)
    if number % 2:
        raise RuntimeError("past mending")
    return mended


@zart_durable("rescue", on_failure=on_failure)
async def rescue(number: int) -> int:
    return await break_down(number % 4 < 2)


@zart_durable("banker")
async def banker(number: int) -> int:
    return await plain(await book(number), 0)


@zart_durable("noted")
async def noted(number: int) -> int:
    seen = await zart.capture("chance", random.random, float)
    first = await zart.now("first")
    await plain(number, 0)
    again = await zart.capture("chance-again", lambda: seen, float)
    return number if again == seen and await zart.now("then") >= first else -1


@zart_durable("late", timeout="700ms")
async def late(number: int) -> int:
    await plain(number, 0)
    await zart.sleep("too-long", "1h")
    return number


@zart_durable("again", retry="fixed(2, 50ms)")
async def again(number: int) -> int:
    total = await plain(number, 0)
    if zart.context().current_attempt < 2:
        raise RuntimeError("once more")
    return total


@zart_durable("minor")
async def minor(number: int) -> int:
    return await zart.wait_for_event("never", int)


@zart_durable("doomed")
async def doomed(number: int) -> int:
    handle = zart.schedule(minor(number))
    await plain(number, 0)
    return await handle


@zart_durable("probe")
async def probe(seconds: float) -> int:
    return await show_up(seconds)


Ending = tuple[StoredStatus, Any]


def _completed(output: Callable[[int], Any]) -> Callable[[int], Ending]:
    return lambda number: (StoredStatus.COMPLETED, output(number))


def _of_rescue(number: int) -> Ending:
    return (StoredStatus.FAILED, None) if number % 2 else (StoredStatus.COMPLETED, -number)


ENDINGS: dict[str, Callable[[int], Ending]] = {
    "steps": _completed(lambda number: number + 3),
    "sleeper": _completed(lambda number: number + 1),
    "approval": _completed(lambda number: 2 * number + 1),
    "impatient": _completed(lambda number: number),
    "group": _completed(lambda _: ROUNDS * PARTS),
    "family": _completed(lambda number: 2 * number + 2),
    "rescue": _of_rescue,
    "banker": _completed(lambda number: number),
    "noted": _completed(lambda number: number),
    "late": lambda _: (StoredStatus.FAILED, None),
    "again": _completed(lambda number: number),
    "doomed": lambda _: (StoredStatus.CANCELLED, None),
}
"""How an execution of each workflow ends, by its input."""

registry = zart.TaskRegistry(lifespan=open_pool)
registry.register_module(sys.modules[__name__])
points.watch()
