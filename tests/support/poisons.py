"""The application of the tests of poison: executions that kill their process, each in a way of its own.

Each try of a deadly act leaves a line with its execution's id in the file that `DEADLY_ACTS` names: a plain write works
wherever the act is done, and survives it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zart
from tests.support import workflows
from zart import zart_durable, zart_step


def note(name: str) -> None:
    """Leave word that a deadly act is about to be done."""
    with Path(os.environ["DEADLY_ACTS"]).open("a") as acts:
        acts.write(f"{name}\n")


def noted(path: Path) -> Counter[str]:
    """How often each execution has done its deadly act."""
    return Counter(path.read_text().split()) if path.exists() else Counter()


def _exit(name: str, code: int = 7) -> None:
    note(name)
    os._exit(code)


def _segfault(name: str) -> None:
    note(name)
    ctypes.string_at(0)


def _be_killed(name: str) -> None:
    """As the kernel kills a process that takes too much memory."""
    note(name)
    os.kill(os.getpid(), signal.SIGKILL)


@zart_step("first")
async def first() -> str:
    note("first")
    return "kept"


@zart_step("exits")
async def exits(name: str) -> None:
    _exit(name)


@zart_step("exits-in-thread")
def exits_in_thread(name: str) -> None:
    _exit(name)


@zart_step("segfaults-in-thread")
def segfaults_in_thread(name: str) -> None:
    _segfault(name)


@zart_step("is-killed")
async def is_killed(name: str) -> None:
    _be_killed(name)


@zart_step("calls-a-thread")
async def calls_a_thread(name: str) -> None:
    await asyncio.to_thread(_be_killed, name)


@zart_step("begins-a-thread")
async def begins_a_thread(name: str) -> None:
    threading.Thread(target=_exit, args=(name,)).start()
    await asyncio.sleep(60)


@zart_step("fails")
async def fails() -> None:
    raise zart.NonRetryable("as it should")


async def _handles(me: str, failure: zart.Failure) -> None:
    note("handled")


def _durable(name: str, step: Any) -> Any:
    async def body(me: str) -> str:
        await first()
        await step(me)
        return "alive"

    return zart_durable(name, on_failure=_handles)(body)


@zart_durable("body")
async def dies_in_body(me: str) -> None:
    await first()
    _exit(me, 0)


@zart_durable("scheduled")
async def schedules(me: str) -> str:
    await first()
    try:
        await zart.schedule(exits(me))
    except zart.StepFailed as failed:
        return f"{failed.type_name}: {failed.detail}"
    return "alive"


_as_child: Any = _durable("as-child", exits)


@zart_durable("child")
async def has_a_child(me: str) -> str:
    await first()
    try:
        await _as_child(me)
    except zart.ChildFailed as failed:
        return f"{failed.kind}: {failed.detail}"
    return "alive"


async def _dies_handling(me: str, failure: zart.Failure) -> None:
    _exit(me)


@zart_durable("handler", on_failure=_dies_handling)
async def dies_in_handler(me: str) -> None:
    await fails()


@zart_durable("gathered")
async def gathers(me: str) -> None:
    await asyncio.gather(first(), exits(me))


@dataclass(frozen=True)
class Deadly:
    """An input that cannot even be read."""

    me: str

    def __post_init__(self) -> None:
        _be_killed(self.me)


@zart_durable("input")
async def has_deadly_input(data: Deadly) -> None: ...


@zart_durable("mendable")
async def mendable(me: str) -> str:
    kept = await first()
    if not Path(os.environ["DEADLY_ACTS"]).with_name("mended").exists():
        await exits(me)
    return f"mended, {kept}"


@zart_step("nap")
def nap(seconds: float) -> float:
    note("nap")
    time.sleep(seconds)
    return seconds


@zart_durable("naps")
async def naps(seconds: float) -> float:
    return await nap(seconds)


DURABLES = (
    _durable("step", exits),
    _durable("thread", exits_in_thread),
    _durable("segfault", segfaults_in_thread),
    _durable("killed", is_killed),
    _durable("to-thread", calls_a_thread),
    _durable("own-thread", begins_a_thread),
    dies_in_body,
    schedules,
    has_a_child,
    dies_in_handler,
    gathers,
    has_deadly_input,
)

registry = zart.TaskRegistry(lifespan=workflows.lifespan)
for each in (*DURABLES, _as_child, exits, mendable, naps, workflows.sum_up, workflows.slow):
    registry.register(each)
