"""`trx()` among everything else that a body says: its writes are there once, however the worker runs it."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

import zart
from tests.support.database import Database
from tests.support.engine import Engine
from tests.support.steps import RAN
from zart import WorkerConfig, zart_durable, zart_step
from zart.errors import StepFailed
from zart.model import ExecutionStatus


class Declined(Exception): ...


@zart_step("write-{name}", retry="fixed(2, 5ms)", raises=Declined, timeout="30s")
async def write(name: str, fails: int = 0, *, declined: bool = False) -> str:
    """Writes its name; fails so many times before it does not."""
    RAN[name] += 1
    conn = await zart.trx()
    await conn.execute("insert into notes values ($1)", name)
    await asyncio.sleep(0.005)
    if RAN[name] <= fails:
        raise ValueError(name)
    if declined:
        raise Declined(name)
    return name


@zart_step("plain-{name}")
async def plain(name: str) -> str:
    await asyncio.sleep(0)
    return name


@zart_durable("mixed")
async def mixed(name: str) -> list[Any]:
    said: list[Any] = [await plain(f"{name}-1"), await write(f"{name}-2")]
    await zart.sleep("nap", 0.01)
    said += await asyncio.gather(write(f"{name}-3"), plain(f"{name}-4"), write(f"{name}-5", 1), write(f"{name}-6"))
    try:
        await write(f"{name}-7", 99)
    except StepFailed as error:
        said.append(error.attempts)
    try:
        await write(f"{name}-8", declined=True)
    except Declined as error:
        said.append(str(error))
    return [*said, await write(f"{name}-9", 2)]


async def test_writes_of_steps_that_succeed_are_there_once_and_of_no_others(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("create table notes(text text)")
    config = WorkerConfig(lease_timeout="1h", trx_pool_size=2)
    async with Engine(database, [mixed], config=config) as engine:
        for name in "abc":
            await engine.start(name, mixed, name)
        for name in "abc":
            record = await engine.ended(name)
            assert record.status == ExecutionStatus.COMPLETED, record.error
            assert record.output == [*(f"{name}-{n}" for n in range(1, 7)), 3, f"{name}-8", f"{name}-9"]
    notes = await connection.fetch("select text from notes order by text")
    assert [row[0] for row in notes] == [f"{name}-{n}" for name in "abc" for n in (2, 3, 5, 6, 9)]
