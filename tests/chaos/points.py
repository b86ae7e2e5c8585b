"""Points at which a worker process kills itself: each armed once, for whichever process gets there first.

A file of the point's name in the directory that CHAOS_POINTS names arms it; the process that removes it is the one to
die. Without the variable nothing here does anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from zart.engine.batch import Batch
from zart.engine.ticker import TickAnswer, Ticker
from zart.engine.transactions import Row, Transactions
from zart.model import Kind, Verb
from zart.postgres.lending import Loan

DIRECTORY: Final = "CHAOS_POINTS"

CARRIED: Final[Mapping[str, Callable[[Batch], bool]]] = {
    "a checkpoint": lambda batch: any(row.kind == Kind.STEP for row in batch.checkpoints),
    "a failed try": lambda batch: any(row.kind == Kind.ATTEMPT for row in batch.checkpoints),
    "the registration of an event": lambda batch: any(row.kind == Kind.WAIT for row in batch.checkpoints),
    "a parking": lambda batch: any(row.verb == Verb.PARK for row in batch.verbs),
    "the children of a group": lambda batch: bool(batch.children),
    "a failure to handle": lambda batch: any(row.verb == Verb.HANDLE for row in batch.verbs),
    "a completion": lambda batch: any(row.verb == Verb.FINISH for row in batch.verbs),
}
"""What ticks carry, by name."""

MOMENTS: Final = ("before a tick with", "in a tick with", "after a tick with")

POINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "a claim": ("after a claim",),
    "an effect": ("before the effect", "after the effect"),
    "a parallel group": ("in a step of a parallel group",),
    "on_failure": ("in on_failure",),
    "a transaction": (
        "in a transaction",
        "before COMMIT of a transaction",
        "in COMMIT of a transaction",
        "after COMMIT of a transaction",
    ),
    **{f"a tick with {what}": tuple(f"{moment} {what}" for moment in MOMENTS) for what in CARRIED},
}
"""All points, by what goes on there."""


def arm(directory: Path, point: str) -> Path:
    """Have the next process die that reaches the point; the file is there until then."""
    armed = directory / point
    armed.touch()
    return armed


def reach(point: str) -> None:
    """Die here, if this point is armed."""
    if directory := os.environ.get(DIRECTORY):
        try:
            os.unlink(os.path.join(directory, point))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def watch() -> None:
    """Have the engine of this process pass by the points that are in its own code."""
    if DIRECTORY in os.environ:
        Ticker.send = _send  # type: ignore[method-assign]
        Transactions._send_commit = _send_commit  # type: ignore[method-assign]


_real_send, _real_commit = Ticker.send, Transactions._send_commit


async def _send(self: Ticker, batch: Batch, lanes: Sequence[int], limit: int) -> TickAnswer:
    carried = [what for what, is_carried in CARRIED.items() if is_carried(batch)]
    before, within, after = ([f"{moment} {what}" for what in carried] for moment in MOMENTS)
    for point in before:
        reach(point)
    sending = asyncio.ensure_future(_real_send(self, batch, lanes, limit))
    await _until_sent()
    for point in within:
        reach(point)
    answer = await sending
    for point in after:
        reach(point)
    if answer.claims:
        reach("after a claim")
    return answer


async def _send_commit(self: Transactions, loan: Loan, row: Row) -> None:
    reach("before COMMIT of a transaction")
    sending = asyncio.ensure_future(_real_commit(self, loan, row))
    await _until_sent()
    reach("in COMMIT of a transaction")
    await sending
    reach("after COMMIT of a transaction")


async def _until_sent() -> None:
    """A few rounds of the loop: what was written is with the kernel, what comes back is not read yet, or just."""
    for _ in range(3):
        await asyncio.sleep(0)
