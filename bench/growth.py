"""What one step or one child costs in executions of ten and of ten thousand: it must not grow with how many there are.

One worker in this process, on a PostgreSQL of its own; seconds from the start to the result, as a caller meets them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import zart
from zart import zart_durable, zart_step
from zart.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zart.durable import DurableExecution

COUNTS = (10, 1_000, 10_000)


@zart_step("double-{number}")
async def double(number: int) -> int:
    return 2 * number


@zart_durable("one-after-the-other")
async def one_after_the_other(count: int) -> int:
    total = 0
    for number in range(count):
        total += await double(number)
    return total


@zart_durable("side-by-side")
async def side_by_side(count: int) -> int:
    return sum(await asyncio.gather(*(double(number) for number in range(count))))


@zart_durable("scheduled")
async def scheduled(count: int) -> int:
    handles = [zart.schedule(double(number)) for number in range(count)]
    return sum(outcome.unwrap() for outcome in await zart.wait(handles))


DURABLES = (one_after_the_other, side_by_side, scheduled)


@dataclass(frozen=True, slots=True)
class Point:
    """How long executions of so many steps or children took, in seconds, each from its start to its result."""

    what: str
    slots: int
    count: int
    seconds: Sequence[float]

    @property
    def microseconds(self) -> float:
        """Of one step or child, by the median."""
        return median(self.seconds) / self.count * 1e6


def points(repeats: int, counts: Sequence[int] = COUNTS) -> Iterator[Point]:
    """Every kind of execution by its count; scheduled steps also with a single slot for parent and children."""
    for durable, slots in [*((durable, 256) for durable in DURABLES), (scheduled, 1)]:
        for count in counts:
            yield Point(durable.task_name, slots, count, asyncio.run(_measure(durable, slots, count, repeats)))


async def _measure(durable: DurableExecution[int, int], slots: int, count: int, repeats: int) -> list[float]:
    taken: list[float] = []
    async with _served(slots) as scheduler:
        for repeat in range(repeats):
            began = time.perf_counter()
            total = await scheduler.start_and_wait_for(durable, f"growth-{repeat}", count)
            taken.append(time.perf_counter() - began)
            if total != count * (count - 1):
                raise AssertionError(f"{durable.task_name} of {count} gave {total}")
    return taken


@asynccontextmanager
async def _served(slots: int) -> AsyncGenerator[zart.PostgresScheduler]:
    """A worker with so many slots, warmed up by one execution."""
    registry = zart.TaskRegistry()
    for one in (*DURABLES, double):
        registry.register(one)
    with EmbeddedPostgres() as server:
        async with zart.PostgresScheduler.connect(server.dsn) as scheduler:
            await scheduler.migrate()
            worker = zart.Worker(scheduler, registry, zart.WorkerConfig(max_concurrent_tasks=slots))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run())
                await worker.ready()
                await scheduler.start_and_wait_for(scheduled, "warm-up", 10)
                yield scheduler
                worker.stop()
