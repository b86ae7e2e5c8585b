"""An application of which everything is counted: by zart, and by metrics of its own.

`held` steps go on once the file `HOLD` is gone; each try of one leaves its process id in the folder `TRIES`.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import prometheus_client

import zart
from zart import zart_durable, zart_step

ORDERS = prometheus_client.Counter("app_orders", "Tries of steps.", ["kind"])
SIZES = prometheus_client.Histogram("app_size", "Sizes.", buckets=(1, 10))
BUSY = prometheus_client.Gauge("app_busy", "Steps that run.", multiprocess_mode="livesum")
LAST = prometheus_client.Gauge("app_last", "One per worker.")
CLASHING = prometheus_client.Counter("zart_executions_claimed", "Not zart's.")


@zart_step("add-{n}")
async def add(total: int, n: int) -> int:
    ORDERS.labels("add").inc()
    SIZES.observe(n)
    CLASHING.inc()
    LAST.set(n)
    return total + n


@zart_durable("sums")
async def sums(total: int) -> int:
    for n in range(3):
        total = await add(total, n)
    return total


@zart_step("flaky", retry="fixed(2, 10ms)")
async def flaky() -> None:
    if zart.context().current_attempt < 2:
        raise ValueError


@zart_durable("retries")
async def retries() -> None:
    await flaky()


@zart_durable("fails")
async def fails() -> None:
    raise ValueError


@zart_durable("parks")
async def parks() -> None:
    await zart.sleep("a moment", "300ms")


def _leave_try() -> None:
    Path(os.environ["TRIES"], uuid.uuid4().hex).write_text(str(os.getpid()))


@zart_step("hold")
async def hold() -> None:
    with BUSY.track_inprogress():
        ORDERS.labels('ho"ld\n').inc()
        SIZES.observe(100)
        _leave_try()
        while Path(os.environ["HOLD"]).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


@zart_durable("held")
async def held() -> None:
    await hold()
