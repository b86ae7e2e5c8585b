"""Callers: they start executions of every workflow, offer the events and ask for the cancels that these wait for."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, TypeVar

import asyncpg

from tests.chaos import app
from tests.chaos.effects import LOST
from tests.chaos.invariants import Accepted
from zart import PostgresScheduler
from zart.errors import DatabaseError

T = TypeVar("T")

_AGAIN_AFTER = 0.05
_LOOK_EVERY = 0.05
_LATEST = 0.7  # seconds after its start that an event is offered, or a cancel asked for
_ENDED = "select execution_id from zart.zart_executions where execution_id = any($1) and status <> 0"


@dataclass(slots=True)
class Load:
    """Callers of the database at `dsn`. What it does not answer they ask again.

    Attributes:
        accepted: executions whose start was answered.
    """

    scheduler: PostgresScheduler
    chance: random.Random
    accepted: list[Accepted] = field(default_factory=list[Accepted])
    _stopped: bool = False
    _open: set[str] = field(default_factory=set[str])
    _senders: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])

    async def run(self, seconds: float = inf, *, at_once: int = 60, per_second: float = 60.0) -> None:
        """Start executions for so long, or until `stop`: so many a second at most, and so many at once."""
        end = monotonic() + seconds
        while monotonic() < end and not self._stopped:
            began = monotonic()
            if len(self._open) < at_once:
                await self.start(self.chance.choice(list(app.ENDINGS)))
                await asyncio.sleep(max(0.0, began + 1 / per_second - monotonic()))
            else:
                await self._look()

    def stop(self) -> None:
        """Have `run` return once its last start is answered."""
        self._stopped = True

    async def start(self, task_name: str) -> None:
        """Start an execution. What it waits for from outside comes soon after."""
        number = len(self.accepted)
        name = f"{task_name}-{number}"
        await _insist(lambda: self.scheduler.start_for(getattr(app, task_name), name, number))
        self.accepted.append(Accepted(name, task_name, number))
        self._open.add(name)
        if task_name == "approval":
            self._send(lambda: self.scheduler.offer_event(name, "go", number))
        elif task_name == "doomed":
            self._send(lambda: self.scheduler.cancel(name))

    async def all_ended(self, within: float) -> bool:
        """Whether every execution ends in time."""
        end = monotonic() + within
        while self._open and monotonic() < end:
            await self._look()
        return not self._open

    async def close(self) -> None:
        """Drop what was not sent yet."""
        for task in self._senders:
            task.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    def _send(self, ask: Callable[[], Awaitable[object]]) -> None:
        async def later() -> None:
            await asyncio.sleep(self.chance.random() * _LATEST)
            await _insist(ask)

        self._keep(later())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._senders.add(task)
        task.add_done_callback(self._senders.discard)

    async def _look(self) -> None:
        async def ended() -> list[str]:
            connection = await asyncpg.connect(self.scheduler.dsn, timeout=5, command_timeout=5)
            try:
                return [row["execution_id"] for row in await connection.fetch(_ENDED, list(self._open))]
            finally:
                connection.terminate()

        self._open.difference_update(await _insist(ended))
        await asyncio.sleep(_LOOK_EVERY)


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer; each of these things happens once, however often it is asked for."""
    while True:
        with contextlib.suppress(DatabaseError, *LOST):
            return await ask()
        await asyncio.sleep(_AGAIN_AFTER)
