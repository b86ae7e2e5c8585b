"""What blocks a process that no longer answers: its Python stacks, which it writes itself on a signal.

The interpreter's own handler (`faulthandler`) writes them, so it makes no difference whether the loop is blocked in
Python or in C. Only a process that is stopped, or waits inside the kernel, cannot answer.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import signal
from typing import Final

_SIGNAL: Final = signal.SIGRTMAX  # user code has better uses for SIGUSR1 and SIGUSR2

_OWN_FRAME: Final = f'  File "{os.path.dirname(__file__)}{os.sep}'


class Stacks:
    """A file without a name that all processes of a runner share; one at a time is asked to write into it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("zart-stacks")

    def fileno(self) -> int:
        return self._fd

    def answer_on_signal(self) -> None:
        """In a child: be ready to write."""
        faulthandler.register(_SIGNAL, file=self._fd, all_threads=True)

    def ask(self, pid: int) -> None:
        """Have a child write the stacks of all its threads."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.kill(pid, _SIGNAL)

    def are_whole(self) -> bool:
        """True when nothing more will come: the main thread is written last, and begins with our own first frame."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_back is not None:
            frame = frame.f_back
        return frame is not None and self._text().endswith(f"line {frame.f_lineno} in {frame.f_code.co_name}\n")

    def answer(self) -> str:
        """What was written so far: the main thread's stack, which has the event loop, then those of other threads.

        The frames in which the main thread came here are left out.
        """
        *others, main = self._text().strip().split("\n\n")
        own = main.partition(_OWN_FRAME)[0].rstrip()
        return "\n\n".join([own if "\n" in own else main, *reversed(others)])

    def close(self) -> None:
        os.close(self._fd)

    def _text(self) -> str:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode("utf-8", "replace")
