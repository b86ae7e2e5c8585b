"""One place in the process tree: who sits there, and when the next one may."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

_LONG_LIFE: Final = 10.0
_FIRST_DELAY: Final = 0.1
_MAX_DELAY: Final = 10.0
_MOST_FAILED_STARTS: Final = 5


def restart_delay(quick_deaths: int) -> float:
    """Seconds to wait before a process is made again, after so many short lives in a row: 0, 0.1, 0.2, ... 10."""
    return 0.0 if quick_deaths <= 1 else min(_FIRST_DELAY * 2 ** min(quick_deaths - 2, 30), _MAX_DELAY)


class Seat:
    """A child process and its successors. Only processes that were not reaped are ever signalled.

    Attributes:
        pid: the process, 0 when there is none.
        due: `time.monotonic()` from when on the next one may be made.
        leaving_until: `time.monotonic()` until when the process, asked to end, may take; None while nobody asked.
        killed: the process was killed from here.
        stalled: it was killed for its event loop, so its end is a death, even if it was asked to end before.
        failed_starts: how many processes in a row ended before they were at work.
    """

    __slots__ = ("_quick_deaths", "_since", "due", "failed_starts", "killed", "leaving_until", "pid", "stalled")

    def __init__(self) -> None:
        self.pid, self.due, self.failed_starts = 0, 0.0, 0
        self.leaving_until: float | None = None
        self.killed = self.stalled = False
        self._since, self._quick_deaths = 0.0, 0

    def begin(self, pid: int, now: float) -> None:
        """A process was forked for this seat."""
        self.pid, self._since = pid, now
        self.leaving_until = None
        self.killed = self.stalled = False

    def put_off(self, now: float) -> None:
        """No process lives here; the next one comes later the more often that happened in a row."""
        self._quick_deaths += 1
        self.due = now + restart_delay(self._quick_deaths)

    def hurry(self, now: float) -> None:
        """Forget what failed: the next process may come at once, as the first one did."""
        self.due, self._quick_deaths, self.failed_starts = now, 0, 0

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

    def note_start(self, *, worked: bool) -> bool:
        """The process that was reaped had come to work, or not; True when too many in a row had not."""
        self.failed_starts = 0 if worked else self.failed_starts + 1
        return self.failed_starts >= _MOST_FAILED_STARTS

    def was_asked_to_end(self, status: int) -> bool:
        """Whether the process, reaped with this status, ended because it was asked to."""
        return self.leaving_until is not None and not self.stalled and (self.killed or status in (0, signal.SIGTERM))

    def leave(self, until: float) -> None:
        """Ask the process, if there is one, to end; whoever asked kills it when it takes longer."""
        if self.pid and self.leaving_until is None:
            self.leaving_until = until
            self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Signal the process, if there is one."""
        if self.pid:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self.pid:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)
