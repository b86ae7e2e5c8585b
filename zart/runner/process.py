"""One child process: forked clean, and gone when its parent is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Final

from zart.log import logger
from zart.metrics import Place

_PR_SET_PDEATHSIG: Final = 1
_OWN_SIGNALS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
)
_libc = ctypes.CDLL(None, use_errno=True)
_log = logger("runner")


def fork(main: Callable[[], int]) -> int:
    """Fork a child that runs `main` and exits with its answer (1 if it raised); give its process id.

    The child starts with default signal handlers, except that it ignores SIGINT and SIGHUP: a terminal sends these to
    all, and the arbiter alone decides. It is killed when the process that forked it ends, however that ends.
    """
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(parent, main)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _live(parent: int, main: Callable[[], int]) -> None:
    """The child's whole life; never returns."""
    code = 1
    try:
        _reset_signals()
        _die_with(parent)
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        _log.exception("a child process of the runner failed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def _reset_signals() -> None:
    """Forget the parent's handlers before signals that came in the meantime are let in."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; if that happened already, end now."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def reap_orphans(own: Iterable[int]) -> None:
    """As the first process of a container: take leave of ended processes that were left to us by their dead parents.

    Args:
        own: our own children, whose endings are for others to read.
    """
    if os.getpid() != 1:
        return
    ours = set(own)
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in ours:
            os.waitpid(ended.si_pid, os.WNOHANG)


def describe_status(status: int) -> str:
    """How a process ended, from `os.waitpid`'s status: `exit code 3`, `signal SIGKILL`."""
    if not os.WIFSIGNALED(status):
        return f"exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


def status_fields(status: int) -> dict[str, object]:
    """The same as fields of a log line: `signal` or `exit_code`."""
    kind, _, value = describe_status(status).rpartition(" ")
    return {"signal": value} if kind == "signal" else {"exit_code": int(value)}


def blamed(place: Place, status: int, *, stalled: bool) -> list[int] | None:
    """Whose code is held to have ended a worker's process.

    Args:
        place: as the worker left it.
        status: from `os.waitpid`.
        stalled: it was killed because its event loop stood still.

    Returns:
        Numeric ids of executions: those whose code ran at that moment. None when there are none, and yet the process
        has ended by what it did itself (a thread of the user's own, say): then it may be any that the worker held.
    """
    if stalled and place.executing:
        return [place.executing]
    running = place.running()
    if running or place.draining or not place.ready:
        return running
    by_itself = os.WIFEXITED(status) or os.WTERMSIG(status) in _OWN_SIGNALS
    return None if by_itself else []
