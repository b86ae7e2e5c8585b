"""Hints to idle workers, sent after the caller has its answer: a committed start stands, whatever becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from zart.errors import DatabaseError
from zart.log import logger

_PATIENCE = 2.0

_log = logger("hints")

Send: TypeAlias = Callable[[int, str | None, str | None], Awaitable[object]]
"""Sends one hint: bucket, queue, task_name (None: not known)."""


class HintSender:
    """Sends hints one after the other; those for the same work that come meanwhile become one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._wanted: dict[tuple[int, str | None, str | None], None] = {}
        self._sending: asyncio.Task[None] | None = None

    def send(self, bucket: int, queue: str | None = None, task_name: str | None = None) -> None:
        """Send a hint soon. If it is lost, workers find the work at their next poll."""
        self._wanted[bucket, queue, task_name] = None
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), name="zart-hints")

    async def close(self) -> None:
        """Wait a moment for the hints that are due, and give up the rest."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=_PATIENCE)
            self._sending.cancel()

    async def _send_all(self) -> None:
        while self._wanted:
            work = next(iter(self._wanted))
            del self._wanted[work]
            try:
                await self._send(*work)
            except DatabaseError as error:
                _log.warning(
                    "a hint for %r in queue %r was lost, polling will find the work: %s",
                    work[2],
                    work[1],
                    error,
                    extra={"task": work[2], "queue": work[1]},
                )
