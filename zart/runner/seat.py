"""One place in the process tree: who sits there, and when the next one may."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

_LONG_LIFE: Final = 10.0
_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 10.0


def restart_delay(quick_deaths: int) -> float:
    """Seconds to wait before a process is made again, after so many short lives in a row: 0, 0.1, 0.2, ... 10."""
    return 0.0 if quick_deaths <= 1 else min(_FIRST_DELAY * 2 ** min(quick_deaths - 2, 30), _MAX_DELAY)


class Seat:
    """A child process and its successors. Only processes that were not reaped are ever signalled.

    Attributes:
        pid: the process, 0 when there is none.
        due: `time.monotonic()` from when on the next one may be made.
        killed: the process was killed from here.
    """

    __slots__ = ("_quick_deaths", "_since", "due", "killed", "pid")

    def __init__(self) -> None:
        self.pid, self.due, self.killed = 0, 0.0, False
        self._since, self._quick_deaths = 0.0, 0

    def begin(self, pid: int, now: float) -> None:
        """A process was forked for this seat."""
        self.pid, self._since, self.killed = pid, now, False

    def put_off(self, now: float) -> None:
        """No process lives here; the next one comes later the more often that happened in a row."""
        self._quick_deaths += 1
        self.due = now + restart_delay(self._quick_deaths)

    def reap(self) -> int | None:
        """The status of the process if it has ended, as `os.waitpid` has it; then the seat is empty."""
        if not self.pid:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        now = time.monotonic()
        if now - self._since >= _LONG_LIFE:
            self._quick_deaths = 0
        self.pid = 0
        self.put_off(now)
        return status

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if there is one."""
        if self.pid:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self.pid:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)
