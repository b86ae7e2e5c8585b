"""The board: memory that all processes of one runner share, made before the first fork.

A header of counters, one `Place` per worker, and one line of text per worker in which a child that cannot start says
why. It is anonymous memory: it has no name, and is gone with the last process that has it.
"""

from __future__ import annotations

import mmap
from typing import Final

from zart.errors import InvalidArgument
from zart.metrics import Place

MAX_PROCS: Final = 512  # past it, a board's processes want more connections than one PostgreSQL serves well

TAKEN_OVER: Final = 0
"""Executions freed from workers of this runner that died."""
DEATHS: Final = 1
"""Workers that ended though nobody had asked them to."""
LAST_DEATH_NS: Final = 2
"""`time.monotonic_ns()` when the last of them was found."""
FORKS: Final = 3
"""Worker processes made."""
CONTROL_PID: Final = 4
"""The process of control, 0 while there is none."""
ARBITER_PID: Final = 5
"""The process that forks, 0 before it runs."""
CONTROL_READY: Final = 6
"""1 once that process is at work."""
ARBITER_BEAT: Final = 7
"""Rises while the process that forks goes round."""
STARTED: Final = 8
"""1 once a worker was registered; control notes it."""

_HEADER_BYTES: Final = 4096
_LINE_BYTES: Final = 1024


class Board:
    """Shared memory for one runner.

    Args:
        procs: number of places, 1 to 512; those of workers that are never made cost nothing.

    Attributes:
        header: 64-bit words at the constants of this module; each has one writer.
        places: one per worker.

    Raises:
        InvalidArgument: `procs` is out of its bounds.
    """

    def __init__(self, procs: int) -> None:
        if not 1 <= procs <= MAX_PROCS:
            raise InvalidArgument(f"procs must be from 1 to {MAX_PROCS}, got {procs!r}")
        lines_at = _HEADER_BYTES + procs * Place.size()
        memory = memoryview(mmap.mmap(-1, lines_at + (procs + 1) * _LINE_BYTES))
        self.header: memoryview[int] = memory[:_HEADER_BYTES].cast("q")
        self.places = tuple(
            Place(memory[start : start + Place.size()]) for start in range(_HEADER_BYTES, lines_at, Place.size())
        )
        self._lines = memory[lines_at:]

    def say(self, line: str, index: int = -1) -> None:
        """Leave one line of text at a place, in the place of the line before; -1 is the runner's own place."""
        text = " ".join(line.split()).encode("utf-8", "replace")[:_LINE_BYTES]
        start = (index % (len(self.places) + 1)) * _LINE_BYTES
        self._lines[start : start + _LINE_BYTES] = text.ljust(_LINE_BYTES, b"\0")

    def said(self, index: int = -1) -> str:
        """The line left at a place, or ""."""
        start = (index % (len(self.places) + 1)) * _LINE_BYTES
        return bytes(self._lines[start : start + _LINE_BYTES]).rstrip(b"\0").decode("utf-8", "replace")
