"""A program whose user code asks for the end of its process in every place where it can. Run as `python -m`.

It runs each workflow in one embedded worker and prints how they ended, as JSON. Arguments: a database's URL, and
"asyncio" or "uvloop".
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop

import zart
from zart import RetryConfig, zart_durable, zart_step

EXITS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("^C"),
}


async def leave(how: str) -> None:
    await asyncio.sleep(0)
    raise EXITS[how]()


def leave_at_once(how: str) -> None:
    raise EXITS[how]()


@zart_step("task")
async def in_task(how: str) -> None:
    await asyncio.create_task(leave(how))


@zart_step("forgotten task")
async def in_forgotten_task(how: str) -> None:
    task = asyncio.create_task(leave(how))
    await asyncio.wait([task])
    raise LookupError("nobody asked the task")


@zart_step("gather")
async def in_gather(how: str) -> None:
    await asyncio.gather(leave(how), asyncio.sleep(0))


@zart_step("group")
async def in_group(how: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(how))


@zart_step("wait_for")
async def in_wait_for(how: str) -> None:
    await asyncio.wait_for(leave(how), 10)


@zart_step("shield")
async def in_shield(how: str) -> None:
    await asyncio.shield(leave(how))


@zart_step("thread")
async def in_thread(how: str) -> None:
    await asyncio.to_thread(leave_at_once, how)


@zart_step("plain")
def plainly(how: str) -> None:
    leave_at_once(how)


@zart_step("step")
async def itself(how: str) -> None:
    await leave(how)


def _leave_by(error: BaseException) -> bool:
    leave_at_once(str(error))
    return True


@zart_step("retry_on", retry=RetryConfig.fixed(1, "1ms", retry_on=_leave_by))
async def in_retry_on(how: str) -> None:
    raise ValueError(how)


STEPS = {
    step.name: step
    for step in (
        in_task, in_forgotten_task, in_gather, in_group, in_wait_for, in_shield, in_thread, plainly, itself,
        in_retry_on,
    )
}  # fmt: skip


@zart_durable("of a step")
async def of_a_step(where: list[str]) -> str:
    name, how = where
    try:
        await STEPS[name](how)
    except zart.StepFailed:
        return "the step failed"
    return "nothing happened"


@zart_durable("of the body")
async def of_the_body(how: str) -> None:
    await leave(how)


@zart_durable("of a task of the body")
async def of_a_task_of_the_body(how: str) -> None:
    await asyncio.gather(leave(how), itself(how))


@zart_durable("of a task nobody awaits")
async def of_a_task_nobody_awaits(how: str) -> str:
    task = asyncio.create_task(leave(how))
    await asyncio.wait([task])
    return "went on"


@zart_durable("of retry_on", retry=RetryConfig.fixed(1, "1ms", retry_on=_leave_by))
async def of_retry_on(how: str) -> None:
    raise ValueError(how)


@dataclass
class Leaving:
    how: str

    def __post_init__(self) -> None:
        leave_at_once(self.how)


@zart_durable("of the input")
async def of_the_input(data: Leaving) -> None: ...


@zart_step("ordinary step")
async def ordinary_step() -> int:
    return 1


@zart_durable("ordinary")
async def ordinary() -> int:
    return await ordinary_step()


async def main(dsn: str) -> None:
    registry = zart.TaskRegistry()
    for durable in (
        of_a_step, of_the_body, of_a_task_of_the_body, of_a_task_nobody_awaits, of_retry_on, of_the_input, ordinary,
    ):  # fmt: skip
        registry.register(durable)
    async with zart.PostgresScheduler.connect(dsn) as scheduler:
        worker = zart.Worker(scheduler, registry)
        working = asyncio.create_task(worker.run())
        ended: dict[str, Any] = {}
        for how in EXITS:
            for name in STEPS:
                await scheduler.start(f"{name}: {how}", "of a step", [name, how])
            for durable in (of_the_body, of_a_task_of_the_body, of_a_task_nobody_awaits, of_retry_on):
                await scheduler.start(f"{durable.task_name}: {how}", durable.task_name, how)
            await scheduler.start(f"of the input: {how}", "of the input", {"how": how})
        for record in (await scheduler.list_executions()).items:
            done = await scheduler.wait(record.execution_id, timeout="20s")
            ended[record.execution_id] = done.output if done.error is None else done.error["kind"]
        ended["ordinary"] = await scheduler.start_and_wait_for(ordinary, "ordinary")
        worker.stop()
        await working
    print(json.dumps(ended))


if __name__ == "__main__":
    run: Callable[[Coroutine[Any, Any, None]], None] = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]]
    run(main(sys.argv[1]))
