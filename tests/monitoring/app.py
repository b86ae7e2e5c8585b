"""The application of the monitoring tests: executions that end in every way there is."""

from __future__ import annotations

import os
import signal

import zart
from zart import zart_durable, zart_step


@zart_step("greet-{n}")
async def greet(n: int) -> str:
    return "hello " * n


@zart_step("stumble", retry="fixed(1, 50ms)")
async def stumble() -> str:
    if zart.context().current_attempt == 0:
        raise ConnectionError("once more")
    return "up"


@zart_step("refuse")
async def refuse() -> None:
    raise zart.NonRetryable("as it should")


@zart_step("die")
async def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@zart_durable("greets")
async def greets(n: int) -> str:
    """Retries a step, is parked in the middle, and replays what came before."""
    text = await greet(n) + await stumble()
    await zart.sleep("pause", "1500ms")
    return text + await greet(n + 1)


@zart_durable("fails", retry="fixed(1, 50ms)")
async def fails() -> None:
    await refuse()


@zart_durable("dies")
async def dies() -> None:
    await die()


registry = zart.TaskRegistry()
for durable in (greets, fails, dies):
    registry.register(durable)
