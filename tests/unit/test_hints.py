"""Hints are sent behind the caller's back, once for the same work, and may be lost."""

from __future__ import annotations

import asyncio

from zart.errors import DatabaseUnreachable
from zart.hints import HintSender


class Wire:
    """Takes hints when it is open."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str | None, str | None]] = []
        self.open = asyncio.Event()
        self.broken = False

    async def send(self, bucket: int, queue: str | None, task_name: str | None) -> None:
        await self.open.wait()
        self.sent.append((bucket, queue, task_name))
        if self.broken:
            raise DatabaseUnreachable("gone")


async def test_hints_for_the_same_work_that_come_meanwhile_become_one() -> None:
    wire = Wire()
    hints = HintSender(wire.send)
    hints.send(0, "default", "first")
    await asyncio.sleep(0)
    for _ in range(100):
        hints.send(0, "default", "task")
        hints.send(1, "default", "task")
    wire.open.set()
    await hints.close()
    assert wire.sent == [(0, "default", "first"), (0, "default", "task"), (1, "default", "task")]


async def test_a_hint_asked_for_while_the_same_is_on_its_way_is_sent_again() -> None:
    wire = Wire()
    hints = HintSender(wire.send)
    hints.send(0, "default", "task")
    await asyncio.sleep(0)
    hints.send(0, "default", "task")
    wire.open.set()
    await hints.close()
    assert wire.sent == [(0, "default", "task")] * 2


async def test_a_lost_hint_does_not_keep_back_the_next() -> None:
    wire = Wire()
    wire.open.set()
    wire.broken = True
    hints = HintSender(wire.send)
    hints.send(0, "default", "task")
    hints.send(0, "default", "other")
    await hints.close()
    assert wire.sent == [(0, "default", "task"), (0, "default", "other")]
