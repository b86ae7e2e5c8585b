"""The application that runner tests serve. Each try of a step leaves a row in the table `effects`.

It is written by a connection of its own. `EFFECTS_DSN` names the database; `make_effects` makes the table.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

import zart
from zart import zart_durable, zart_step

STEPS = 3

_pool: asyncpg.Pool | None = None


async def make_effects(connection: asyncpg.Connection) -> None:
    """Make the table of effects."""
    await connection.execute("create table effects(execution_id text, step text, pid int, began timestamptz)")


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """A pool per worker process, whose commits need not reach the disk."""
    global _pool
    async with asyncpg.create_pool(
        os.environ["EFFECTS_DSN"], min_size=1, max_size=4, server_settings={"synchronous_commit": "off"}
    ) as _pool:
        yield


async def leave_effect(step: str) -> None:
    """Note that a step begins, at this moment: it may be a while until a connection is free, or the process goes on."""
    began = time.time()  # on the machine that the database runs on
    assert _pool is not None
    execution_id = zart.context().execution_id
    await _pool.execute(
        "insert into effects values ($1, $2, $3, to_timestamp($4))", execution_id, step, os.getpid(), began
    )


@zart_step("add-{n}")
async def add(total: int, n: int) -> int:
    await leave_effect(f"add-{n}")
    return total + n


@zart_durable("sum")
async def sum_up(start: int) -> int:
    total = start
    for n in range(STEPS):
        total = await add(total, n)
    return total


@zart_step("linger")
async def linger(seconds: float) -> float:
    await leave_effect("linger")
    await asyncio.sleep(seconds)
    return seconds


@zart_durable("slow")
async def slow(seconds: float) -> float:
    return await linger(seconds)


@zart_step("stumble", retry="fixed(1, 1500ms)")
async def stumble() -> int:
    await leave_effect("stumble")
    if zart.context().current_attempt == 0:
        raise RuntimeError("once more")
    return STEPS


@zart_durable("stumbling")
async def stumbling() -> int:
    return await stumble()


@zart_durable("dawdling")
async def dawdling() -> int:
    await asyncio.sleep(1.5)
    return await add(0, STEPS)


@zart_step("block")
async def block(seconds: float) -> float:
    await leave_effect("block")
    time.sleep(seconds)  # noqa: ASYNC251 - a body that blocks its event loop
    return seconds


@zart_durable("blocking")
async def blocking(seconds: float) -> float:
    return await block(seconds)


@zart_step("pass-gate")
async def pass_gate(path: str) -> float:
    await leave_effect("pass-gate")
    while not Path(f"{path}.{os.getpid()}").exists():  # noqa: ASYNC110, ASYNC240 - who opens it is not of this program
        await asyncio.sleep(0.01)
    Path(f"{path}.{os.getpid()}.passed").touch()  # noqa: ASYNC240
    return 1.0


@zart_durable("gated")
async def gated(path: str) -> float:
    """Ends once there is a file PATH.PID with the id of the process it is in; then one PATH.PID.passed says so."""
    return await pass_gate(path)


@zart_step("die")
async def die() -> None:
    await leave_effect("die")
    os.kill(os.getpid(), signal.SIGKILL)


@zart_durable("deadly")
async def deadly() -> None:
    await die()


registry = zart.TaskRegistry(lifespan=lifespan)
for durable in (sum_up, slow, stumbling, dawdling, blocking, gated, deadly):
    registry.register(durable)
