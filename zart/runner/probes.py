"""What Kubernetes and others ask about a runner: does it live, can it work, has it started.

A process that stands still shows after 5 seconds, before the arbiter kills it: the limit is for whoever asks, and short
enough that somebody sees it. Workers that are not registered (starting, or replaced) are nobody's fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zart.engine.sampling import Sampler
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.health import Watchdog, loop_beats

STILL: Final = 5.0
_LOOK: Final = 0.5
_ARBITER: Final = -1


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a probe is about. `fault`: what is wrong, None when it is well."""

    name: str
    fault: str | None = None


Probe = Callable[[], Sequence[Check]]
"""Looks at what is known at this moment, without waiting for anything."""


class Probes:
    """Looks after a runner's processes from control, while `watch` runs."""

    def __init__(self, board: Board, sampler: Sampler) -> None:
        self._board, self._sampler = board, sampler
        self._watchdog = Watchdog[int](STILL)
        self._stalled: Mapping[int, float] = {}

    async def watch(self) -> None:
        """Go on looking until cancelled."""
        while True:
            beats = loop_beats(self._board.places)
            if beats:
                self._board.header[header.STARTED] = 1
            beats[_ARBITER] = self._board.header[header.ARBITER_BEAT]
            self._stalled = self._watchdog.stalled(beats, time.monotonic())
            await asyncio.sleep(_LOOK)

    def pages(self) -> dict[str, Probe]:
        """The checks by path."""
        return {"/livez": self.live, "/readyz": self.ready, "/startupz": self.started}

    def live(self) -> Sequence[Check]:
        """Whether every process goes on; the database is none of its business."""
        workers = [Check(f"worker {index}", self._still(index)) for index in sorted(self._stalled) if index != _ARBITER]
        return Check("arbiter", self._still(_ARBITER)), Check("control"), *(workers or [Check("workers")])

    def ready(self) -> Sequence[Check]:
        """Whether work that is started would be done."""
        at_work = any(place.ready and not place.draining for place in self._board.places)
        return Check("database", self._sampler.fault), Check("workers", None if at_work else "none is registered")

    def started(self) -> Sequence[Check]:
        """Whether a worker was ever registered."""
        started = self._board.header[header.STARTED]
        return (Check("workers", None if started else "none has been registered so far"),)

    def _still(self, index: int) -> str | None:
        seconds = self._stalled.get(index)
        return None if seconds is None else f"stands still for {seconds:.0f} s"
