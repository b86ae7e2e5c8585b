"""Signals as something to wait for: each arrives as a byte in a pipe."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

_TAKEN: Final = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip
_JUST_NOW: Final = 3.0


class Signals:
    """Takes SIGCHLD and the signals of an operator while it is open (SIGHUP too, unless it is ignored, as under nohup).

    Used as a context manager in the main thread; handlers are as before afterwards.
    """

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._terminal_seen: float | None = time.monotonic() if _has_terminal() else None
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        taken = _TAKEN if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*_TAKEN, signal.SIGHUP)
        self._handlers: dict[int, Any] = {number: signal.signal(number, _nothing) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self.close()

    def close(self) -> None:
        """Let go of the pipe; the forked child, whose handlers are reset, needs no more than this."""
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """What to wait on."""
        return self._read

    def taken(self) -> list[int]:
        """Signals that came since the last call, in order. To be called once a second or more often."""
        if self._terminal_seen is not None and _has_terminal():
            self._terminal_seen = time.monotonic()
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def terminal_is_gone(self) -> bool:
        """True when the terminal that this process was started on was closed just now: then SIGHUP came from there.

        A process that outlived its terminal long ago, as a disowned job, is told something by a SIGHUP.
        """
        seen = self._terminal_seen
        return seen is not None and not _has_terminal() and time.monotonic() - seen < _JUST_NOW


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _nothing(_: int, __: FrameType | None) -> None:
    """A signal's byte in the pipe says all; without a handler the kernel would not deliver it to Python."""
