"""The arbiter: forks control and the workers, and makes again what dies.

It has no event loop, no thread and no connection, and runs no user code (except imports, under `preload`), so nothing
that workers do can take it down. Children are killed by the kernel when it ends, so `kill -9` of the arbiter ends all.

Signals: SIGTERM, SIGINT or SIGHUP stop the runner once running steps are through, for `shutdown_timeout` at most; a
second one, or SIGQUIT, kills the workers at once. Either way what they held is handed back before the runner ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from zart.errors import ZartError
from zart.log import logger
from zart.metrics import ALONE
from zart.registry import load_registry
from zart.runner import board as header
from zart.runner import child, control
from zart.runner.board import Board
from zart.runner.health import Watchdog
from zart.runner.link import DeathLink
from zart.runner.options import RunnerOptions
from zart.runner.process import blamed, describe_status, fork
from zart.runner.rendering import render_logs
from zart.runner.seat import Seat
from zart.runner.signals import Signals

__all__ = ["EXIT_CANNOT_GO_ON", "EXIT_CANNOT_START", "EXIT_STOPPED", "Children", "RunnerOptions", "run"]

EXIT_STOPPED: Final = 0
"""The runner was told to stop, and did."""
EXIT_CANNOT_START: Final = 2
"""Settings, application or database cannot be used; nothing was started."""
EXIT_CANNOT_GO_ON: Final = 3
"""Workers could be started once, but no longer."""

_STOP_MARGIN: Final = 1.0  # workers keep shutdown_timeout themselves; those still there so long after it are killed
_RELEASE_MARGIN: Final = 3.0  # for control to hand back what the last workers held
_FAILED_STARTS: Final = 3
_LOOK_INTERVAL: Final = 1.0
_FORKS_AT_ONCE: Final = 16  # signals are looked at in between

_log = logger("runner")


@dataclass(frozen=True, slots=True)
class Children:
    """What the forked processes do; each answer is an exit code."""

    probe: Callable[[RunnerOptions, Board], int] = child.probe
    worker: Callable[[RunnerOptions, Board, int, int], int] = child.main
    control: Callable[[RunnerOptions, Board, tuple[int, ...], int], int] = control.main


def run(options: RunnerOptions, children: Children | None = None) -> int:
    """Serve until told to stop; give the exit code. Call it in the main thread of a process without other threads.

    When the application or the database cannot be used, one line on stderr says why and what to do.
    """
    render_logs(options.log_format)
    with Signals() as signals:
        return _Arbiter(options, children or Children(), signals).run()


class _Arbiter:
    def __init__(self, options: RunnerOptions, children: Children, signals: Signals) -> None:
        self._options, self._children, self._signals = options, children, signals
        self._board = options.board or Board(options.procs)
        self._wakes = tuple(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(options.procs))
        self._link = DeathLink()
        self._control = Seat()
        self._workers = tuple(Seat() for _ in range(options.procs))
        self._watchdog = Watchdog(options.stuck_seconds)
        self._stop_at: float | None = None
        self._end_at: float | None = None
        self._failed_starts = 0
        self._exit_code = EXIT_STOPPED

    def run(self) -> int:
        self._board.header[header.ARBITER_PID] = os.getpid()
        try:
            reason = self._preload() or self._probe()
            if reason:
                _say(reason)
                return EXIT_CANNOT_START
            if self._stop_at is None:
                gc.freeze()
                workers = "1 worker" if self._options.procs == 1 else f"{self._options.procs} workers"
                _log.info("serving %s with %s", self._options.app, workers)
                self._serve()
                _log.info("stopped")
            return self._exit_code
        finally:
            self._leave_nobody()

    def _preload(self) -> str:
        """Import the app if that is wanted; give the reason why it cannot be, or ""."""
        if self._options.preload:
            try:
                load_registry(self._options.app)
            except ZartError as error:
                return str(error)
        return ""

    def _probe(self) -> str:
        """Try everything that a worker needs, in a child that is gone afterwards; give what is wrong, or ""."""
        probe = Seat()
        probe.begin(fork(partial(self._live, self._children.probe, self._options, self._board)), time.monotonic())
        while (status := probe.reap()) is None:
            if self._stop_at is not None:
                probe.kill()
            self._wait(_LOOK_INTERVAL)
        if status == 0 or self._stop_at is not None:
            return ""
        ending = describe_status(status)
        return self._board.said() or f"{self._options.app} cannot be served: loading it to try ended with {ending}"

    def _serve(self) -> None:
        while not self._is_over():
            now = time.monotonic()
            self._fork_due(now)
            self._link.exchange()
            self._wait(self._patience(time.monotonic()))
            self._reap()
            self._enforce(time.monotonic())

    def _is_over(self) -> bool:
        """True when all workers are gone for good and control has handed back what they held, or had its time."""
        if self._stop_at is None or any(seat.pid for seat in self._workers):
            return False
        self._link.stop()
        now = time.monotonic()
        if self._end_at is None:
            self._end_at = now + _RELEASE_MARGIN
        if now >= self._end_at:
            _log.warning("the work of %d workers could not be handed back; their leases run out", self._link.waiting)
            return True
        return not self._control.pid and not self._link.waiting

    # Forking

    def _fork_due(self, now: float) -> None:
        if not self._control.pid and self._control.due <= now:
            with self._link.open() as link:
                main = partial(self._children.control, self._options, self._board, self._wakes, link.fileno())
                self._start(self._control, partial(self._live, main, keep=self._wakes), now)
            self._board.header[header.CONTROL_PID] = self._control.pid
        due = [index for index, seat in enumerate(self._workers) if not seat.pid and seat.due <= now]
        for index in due[:_FORKS_AT_ONCE] if self._stop_at is None else ():
            self._fork_worker(index, now)

    def _fork_worker(self, index: int, now: float) -> None:
        seat, place, wake = self._workers[index], self._board.places[index], self._wakes[index]
        place.clear()
        place.worker_id = secrets.randbelow(2**63 - 1) + 1
        self._board.say("", index)
        main = partial(self._children.worker, self._options, self._board, index, wake)
        self._start(seat, partial(self._live, main, keep=(wake,)), now)
        place.pid = seat.pid
        self._board.header[header.FORKS] += bool(seat.pid)

    def _start(self, seat: Seat, main: Callable[[], int], now: float) -> None:
        try:
            seat.begin(fork(main), now)
        except OSError as error:  # no memory, or a limit on processes
            seat.put_off(now)
            _log.error("no process can be made: %s; trying again", error.strerror)

    def _live(self, main: Callable[..., int], *arguments: object, keep: tuple[int, ...] = ()) -> int:
        """A child's life: first let go of what belongs to the arbiter alone."""
        self._signals.close()
        self._link.abandon()
        for wake in self._wakes:
            if wake not in keep:
                os.close(wake)
        return main(*arguments)

    # Waiting

    def _patience(self, now: float) -> float:
        """Seconds until there may be something to do without a signal or a message."""
        seats = (self._control,) if self._stop_at is not None else (self._control, *self._workers)
        return max(0.0, min([now + _LOOK_INTERVAL, *(seat.due for seat in seats if not seat.pid)]) - now)

    def _wait(self, seconds: float) -> None:
        waiter = select.poll()
        waiter.register(self._signals.fileno(), select.POLLIN)
        if self._link.fileno() >= 0:
            waiter.register(self._link.fileno(), select.POLLIN | (select.POLLOUT if self._link.has_unsent else 0))
        waiter.poll(seconds * 1000)
        for number in self._signals.taken():
            self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        again = self._stop_at is not None
        self._stop(signal.Signals(number).name)
        if again or number == signal.SIGQUIT:
            self._kill_workers("asked to")

    # Deaths

    def _reap(self) -> None:
        status = self._control.reap()
        if status is not None:
            self._link.close()
            self._board.header[header.CONTROL_PID] = 0
            if self._end_at is None or status:
                _log.error("control ended (%s); made again", describe_status(status))
        for index, seat in enumerate(self._workers):
            status = seat.reap()
            if status is not None:
                self._bury(index, seat, status)

    def _bury(self, index: int, seat: Seat, status: int) -> None:
        """Have control release what the worker held, and empty its place."""
        place = self._board.places[index]
        asked = self._stop_at is not None and (seat.killed or status in (0, signal.SIGTERM))
        worker_ids = [worker_id for worker_id in (place.previous_id, place.worker_id) if worker_id]
        how = "its event loop stood still" if seat.killed else describe_status(status)
        step = place.step if place.alone == ALONE else ""
        self._link.report(worker_ids, [] if asked else blamed(place, status, stuck=seat.killed), how, step)
        was_at_work = bool(place.ready)
        place.clear()
        if asked:
            return
        self._board.header[header.DEATHS] += 1
        self._board.header[header.LAST_DEATH_NS] = time.monotonic_ns()
        _log.warning("worker %d ended (%s)", index, describe_status(status))
        if was_at_work:
            self._failed_starts = 0
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == child.EXIT_CANNOT_START:
            self._failed_starts += 1
            self._give_up_if_hopeless(self._board.said(index))

    def _give_up_if_hopeless(self, reason: str) -> None:
        """End when workers cannot start, again and again, and none is at work."""
        if any(place.ready for place in self._board.places):
            self._failed_starts = 0
        elif self._failed_starts >= _FAILED_STARTS and self._stop_at is None:
            _say(reason or "workers cannot start")
            self._exit_code = EXIT_CANNOT_GO_ON
            self._stop("workers cannot start")

    # Stopping

    def _stop(self, why: str) -> None:
        """Have the workers drain; those that take too long are killed."""
        if self._stop_at is not None:
            return
        _log.info("stopping (%s)", why)
        self._stop_at = time.monotonic() + self._options.config.shutdown_seconds + _STOP_MARGIN
        for seat in self._workers:
            seat.send(signal.SIGTERM)

    def _enforce(self, now: float) -> None:
        """Kill whoever is over time."""
        if self._stop_at is not None and now >= self._stop_at:
            self._kill_workers("out of time")
        for index in self._watchdog.stuck(self._board.places, now):
            if self._stop_at is None and self._workers[index].pid:
                _log.error("worker %d is killed: its loop stood still for %g s", index, self._options.stuck_seconds)
                self._workers[index].kill()

    def _kill_workers(self, why: str) -> None:
        for index, seat in enumerate(self._workers):
            if seat.pid and not seat.killed:
                _log.warning("worker %d is killed (%s)", index, why)
                seat.kill()

    def _leave_nobody(self) -> None:
        """However the arbiter ends, no child outlives it."""
        for seat in (*self._workers, self._control):
            seat.kill()
            while seat.pid and seat.reap() is None:
                time.sleep(0.01)
        self._link.close()
        for wake in self._wakes:
            with contextlib.suppress(OSError):
                os.close(wake)
        self._board.header[header.CONTROL_PID] = self._board.header[header.ARBITER_PID] = 0


def _say(reason: str) -> None:
    print(f"zart-runner: {reason}", file=sys.stderr, flush=True)
