"""A hundred restarts of workers leave no trace: no file, no memory, no connection."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import asyncpg

from tests.support import workflows
from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from zart.runner.recycling import resident_bytes

PROCS = 20
ROUNDS = 5
MOST_GROWTH = 2**20


@dataclass(frozen=True, slots=True)
class _Use:
    """What the arbiter and control have."""

    files: tuple[int, int]
    memory: tuple[int, int]
    connections: int


async def test_files_memory_and_connections_do_not_grow(database: Database, connection: asyncpg.Connection) -> None:
    await workflows.make_effects(connection)
    with Fleet(database, procs=PROCS, options={"preload": True}) as fleet:
        control = await fleet.control()
        await _restart_all(fleet)
        before = await _use(fleet, control, connection)
        for _ in range(ROUNDS):
            await _restart_all(fleet)
        after = await _use(fleet, control, connection)
        assert await fleet.control() == control
        code, words, _ = fleet.stop()
    print(before, after, words)
    assert code == 0
    assert words["DEATHS"] == PROCS * (ROUNDS + 1)
    assert (after.files, after.connections) == (before.files, before.connections)
    for then, now in zip(before.memory, after.memory, strict=True):
        assert now - then < MOST_GROWTH


async def _restart_all(fleet: Fleet) -> None:
    old = await fleet.ready()
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    async def others() -> bool:
        young = set((await fleet.workers()).values())
        return len(young) == PROCS and not young & set(old)

    await eventually(others, within=60, every=0.1)


async def _use(fleet: Fleet, control: int, connection: asyncpg.Connection) -> _Use:
    text = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'zart %'"

    async def settled() -> int:
        count = int(await connection.fetchval(text))
        return count if count == PROCS + 3 else 0

    connections = await eventually(settled)
    pids = (fleet.pid, control)
    files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
    memory = [resident_bytes(pid) for pid in pids]
    return _Use((files[0], files[1]), (memory[0], memory[1]), connections)
