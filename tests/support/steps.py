"""Steps and bodies that many tests run, and where they note what ran."""

from __future__ import annotations

import asyncio
import collections
import threading
import time

import zart
from zart import zart_step
from zart.config import WorkerConfig

RAN: collections.Counter[str] = collections.Counter()
GATES: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)
RELEASED = threading.Event()
"""Lets `blocked` go on."""

KEPT = WorkerConfig(lease_timeout="1h", park_grace="1h")
"""Bodies that wait stay in memory."""
PARKED = WorkerConfig(lease_timeout="1h", park_grace=0)
"""Bodies that wait are parked at once."""


def forget() -> None:
    """Nothing has run yet."""
    RAN.clear()
    GATES.clear()
    RELEASED.clear()


def let_go() -> None:
    """Whatever still waits goes on; what runs in threads has ended."""
    RELEASED.set()
    for gate in GATES.values():
        gate.set()
    while RAN["unblocked"] < RAN["blocked"]:
        time.sleep(0.001)


@zart_step("note-{text}")
async def note(text: str) -> str:
    RAN[text] += 1
    return text


@zart_step("hang-{text}")
async def hang(text: str) -> str:
    RAN[text] += 1
    await GATES[text].wait()
    return text


@zart_step("endless")
async def endless() -> None:
    RAN["endless"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        RAN["interrupted"] += 1
        raise


@zart_step("blocked")
def blocked() -> str:
    RAN["blocked"] += 1
    RELEASED.wait(30)
    RAN["unblocked"] += 1
    return "late"


@zart_step("retried", retry="fixed(9, 1h)")
async def retried() -> None:
    RAN["retried"] += 1
    raise ValueError("not yet")


async def sleeping() -> None:
    await zart.sleep("nap", "1h")


async def waiting() -> None:
    await zart.wait_for_event("go")
