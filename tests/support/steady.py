"""An application that needs no database of its own: each try of a step leaves a line in the file `EFFECTS_FILE`."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import zart
from zart import zart_durable, zart_step

STEPS = 6


@dataclass(frozen=True, slots=True)
class Effect:
    """A try of a step: whose, where, and when by the machine's clock."""

    execution_id: str
    step: str
    pid: int
    began: float


def effects_in(file: Path) -> list[Effect]:
    """What the steps have left. Of the line that is being written, a reader may see a part: it is left out."""
    lines = [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Effect(line[0], line[1], int(line[2]), float(line[3])) for line in lines]


def leave_effect(step: str) -> None:
    """Note that a step begins, in one write."""
    line = f"{zart.context().execution_id} {step} {os.getpid()} {time.time():.6f}\n"
    with open(os.environ["EFFECTS_FILE"], "ab", buffering=0) as file:
        file.write(line.encode())


@zart_step("add-{n}")
async def add(total: int, n: int, seconds: float) -> int:
    leave_effect(f"add-{n}")
    await asyncio.sleep(seconds)
    return total + n


@zart_durable("steady")
async def steady(seconds: float) -> int:
    total = 0
    for n in range(STEPS):
        total = await add(total, n, seconds)
    return total


@zart_step("write-{n}")
async def write(n: int, seconds: float) -> int:
    connection = await zart.trx()
    leave_effect(f"write-{n}")
    await asyncio.sleep(seconds)
    await connection.execute("insert into written values ($1, $2)", zart.context().execution_id, n)
    return n


@zart_durable("writing")
async def writing(seconds: float) -> int:
    return sum([await write(n, seconds) for n in range(STEPS)])


registry = zart.TaskRegistry()
for durable in (steady, writing):
    registry.register(durable)
