"""The arbiter: forks control and the workers, and makes again what dies.

It has no event loop, no thread and no connection, and runs no user code (except imports, under `preload`), so nothing
that workers do can take it down. Children are killed by the kernel when it ends, so `kill -9` of the arbiter ends all.

Signals: SIGTERM or SIGINT stop the runner once running steps are through, for `shutdown_timeout` at most; a second one,
or SIGQUIT, kills the workers at once. Either way what they held is handed back before the runner ends. SIGHUP reloads
the application worker by worker; SIGTTIN and SIGTTOU make the fleet larger and smaller by one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Final

from zart.errors import InvalidArgument
from zart.log import logger
from zart.runner import board as header
from zart.runner import child, control
from zart.runner.board import Board
from zart.runner.link import DeathLink
from zart.runner.listener import listen, url_of
from zart.runner.options import RunnerOptions
from zart.runner.preload import preload
from zart.runner.process import describe_status, fork, reap_orphans
from zart.runner.rendering import render_logs
from zart.runner.seat import Seat
from zart.runner.signals import Signals
from zart.runner.stack import Stacks
from zart.runner.values import SharedValues
from zart.runner.workers import Workers

__all__ = ["EXIT_CANNOT_GO_ON", "EXIT_CANNOT_START", "EXIT_STOPPED", "Children", "RunnerOptions", "run"]

EXIT_STOPPED: Final = 0
"""The runner was told to stop, and did."""
EXIT_CANNOT_START: Final = 2
"""Settings, application or database cannot be used; nothing was started."""
EXIT_CANNOT_GO_ON: Final = 3
"""Workers could be started once, but no longer."""

_RELEASE_MARGIN: Final = 3.0  # for control to hand back what the last workers held
_LOOK_INTERVAL: Final = 1.0

_log = logger("runner")


@dataclass(frozen=True, slots=True)
class Children:
    """What the forked processes do; each answer is an exit code."""

    probe: Callable[[RunnerOptions, Board], int] = child.probe
    worker: Callable[[RunnerOptions, Board, int, int], int] = child.main
    control: Callable[[RunnerOptions, Board, tuple[int, ...], int, socket.socket | None], int] = control.main


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
        self._board = options.board or Board(options.most_procs)
        self._wakes = tuple(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in self._board.places)
        self._stacks, self._link, self._values = Stacks(), DeathLink(), SharedValues()
        self._workers = Workers(options, self._board, self._stacks, self._link, self._fork_worker, self._values.forget)
        self._control, self._probe = Seat(), Seat()
        self._listener: socket.socket | None = None
        self._serving = self._stopping = False
        self._end_at: float | None = None
        self._exit_code = EXIT_STOPPED

    def run(self) -> int:
        self._board.header[header.ARBITER_PID] = os.getpid()
        try:
            reason = self._listen() or (preload(self._options.app) if self._options.preload else "") or self._try_out()
            if reason:
                _say(reason)
                return EXIT_CANNOT_START
            if not self._stopping:
                gc.freeze()  # so that no child's collector writes to the pages that it shares
                _log.info("serving %s with %s", self._options.app, self._workers.counted())
                if self._listener is not None:
                    _log.info("metrics and health on %s", url_of(self._listener))
                self._warn_of_short_leases()
                self._serve()
                _log.info("stopped")
            return self._exit_code
        finally:
            self._leave_nobody()

    def _warn_of_short_leases(self) -> None:
        stall, lease = self._options.stall_seconds, self._options.config.lease_seconds
        if stall >= lease:
            _log.warning(
                "the stall timeout (%g s) is not shorter than the lease (%g s): what a blocked worker holds is taken"
                " over before the worker is reported",
                stall,
                lease,
            )

    def _listen(self) -> str:
        """Take the HTTP port, if one is wanted, before anything is started; give why it cannot be had, or ""."""
        if self._options.http_port is None:
            return ""
        try:
            self._listener = listen(
                self._options.http_host,
                self._options.http_port,
                host_option="--http-host",
                port_option="--http-port",
            )
        except InvalidArgument as error:
            return str(error)
        import_module("zart.runner.endpoint")  # for every control to come, as it is on disk now
        return ""

    def _try_out(self) -> str:
        """Try everything that a worker needs, in a child that is gone afterwards; give what is wrong, or ""."""
        self._begin_probe()
        while (status := self._probe.reap()) is None:
            if self._stopping:
                self._probe.kill()
            self._wait(_LOOK_INTERVAL)
        return "" if self._stopping else self._found(status)

    def _begin_probe(self) -> None:
        self._board.say("")
        pid = fork(partial(self._live, self._children.probe, self._options, self._board))
        self._probe.begin(pid, time.monotonic())

    def _found(self, status: int) -> str:
        """What the probe, which ended with this status, found wrong, or ""."""
        if not status:
            return ""
        ending = describe_status(status)
        return self._board.said() or f"{self._options.app} cannot be served: loading it to try ended with {ending}"

    def _serve(self) -> None:
        self._serving = True
        while not self._is_over():
            now = time.monotonic()
            if not self._control.pid and self._control.due <= now:
                self._fork_control(now)
            if not self._stopping:
                self._workers.fork_due(now)
            self._link.exchange()
            self._wait(self._patience(time.monotonic()))
            self._reap()
            self._enforce(time.monotonic())

    def _is_over(self) -> bool:
        """True when all workers are gone for good and control has handed back what they held, or had its time."""
        if not self._stopping or not self._workers.are_gone:
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

    def _fork_control(self, now: float) -> None:
        self._board.header[header.CONTROL_READY] = 0
        try:
            link = self._link.open()
        except OSError as error:
            self._put_off(self._control, error, now)
            return
        with link:
            main = partial(
                self._children.control, self._options, self._board, self._wakes, link.fileno(), self._listener
            )
            self._start(self._control, partial(self._live, main, keep=self._wakes, listens=True), now)
        self._board.header[header.CONTROL_PID] = self._control.pid

    def _fork_worker(self, index: int, seat: Seat, now: float) -> None:
        wake = self._wakes[index]
        main = partial(self._children.worker, self._options, self._board, index, wake)
        self._start(seat, partial(self._live, main, keep=(wake,), place=index), now)

    def _start(self, seat: Seat, main: Callable[[], int], now: float) -> None:
        try:
            seat.begin(fork(main), now)
        except OSError as error:
            self._put_off(seat, error, now)

    def _put_off(self, seat: Seat, error: OSError, now: float) -> None:
        """There is no memory for a process, or a limit on processes or files."""
        seat.put_off(now)
        _log.error("no process can be made: %s; trying again", error.strerror)

    def _live(
        self,
        main: Callable[..., int],
        *arguments: object,
        keep: tuple[int, ...] = (),
        place: int | None = None,
        listens: bool = False,
    ) -> int:
        """A child's life: first let go of what belongs to the arbiter alone."""
        self._signals.close()
        self._link.abandon()
        if self._listener is not None and not listens:
            self._listener.close()
        for wake in self._wakes:
            if wake not in keep:
                os.close(wake)
        if place is not None:
            self._stacks.answer_on_signal()
            self._values.sit(place)
        else:
            self._stacks.close()
            self._values.abstain()
        return main(*arguments)

    # Waiting

    def _patience(self, now: float) -> float:
        """Seconds until there may be something to do without a signal or a message."""
        seconds = [_LOOK_INTERVAL]
        if not self._control.pid:
            seconds.append(max(0.0, self._control.due - now))
        if not self._stopping:
            seconds.append(self._workers.patience(now))
        return min(seconds)

    def _wait(self, seconds: float) -> None:
        self._board.header[header.ARBITER_BEAT] += 1
        waiter = select.poll()
        waiter.register(self._signals.fileno(), select.POLLIN)
        if self._link.fileno() >= 0:
            waiter.register(self._link.fileno(), select.POLLIN | (select.POLLOUT if self._link.has_unsent else 0))
        waiter.poll(seconds * 1000)
        for number in self._signals.taken():
            self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP and not self._signals.terminal_is_gone():
            self._reload()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            if not self._stopping:
                self._workers.grow() if number == signal.SIGTTIN else self._workers.shrink()
        elif number != signal.SIGCHLD:
            again = self._stopping
            self._stop(number.name)
            if again or number == signal.SIGQUIT:
                self._workers.kill_all("asked to")

    # Deaths

    def _reap(self) -> None:
        status = self._control.reap()
        if status is not None:
            self._bury_control(status)
        status = self._probe.reap()
        if status is not None:
            self._finish_reload(status)
        hopeless = self._workers.reap()
        if hopeless:
            self._give_up(hopeless)
        reap_orphans(seat.pid for seat in self._seats())

    def _bury_control(self, status: int) -> None:
        self._link.close()
        self._board.header[header.CONTROL_PID] = 0
        if self._end_at is None or status:
            _log.error("control ended (%s); made again", describe_status(status))
        if self._control.note_start(worked=bool(self._board.header[header.CONTROL_READY])):
            self._give_up(f"control ends before it is at work, the last one with {describe_status(status)}")

    def _give_up(self, reason: str) -> None:
        if not self._stopping:
            _say(reason)
            self._exit_code = EXIT_CANNOT_GO_ON
            self._stop("a process that is needed cannot start")

    def _seats(self) -> tuple[Seat, ...]:
        return (*self._workers.seats, self._control, self._probe)

    # Reloading

    def _reload(self) -> None:
        """Try the new code, in a process of its own; the workers are not touched before that has worked."""
        if not self._serving or self._stopping:
            return
        if self._options.preload:
            _log.warning("not reloaded: under --preload the arbiter holds the code, so restart the runner")
            return
        _log.info("reloading (SIGHUP)")
        if self._probe.pid:
            self._probe.kill()  # it may have read half of what is there now; the next one follows
        else:
            self._finish_reload(None)

    def _finish_reload(self, status: int | None) -> None:
        """The probe of a reload has ended; or there is none yet, and the status is None."""
        if self._stopping:
            return
        if status is None or self._probe.killed:
            try:
                self._begin_probe()
            except OSError as error:
                _log.error("not reloaded: no process can be made: %s", error.strerror)
        elif reason := self._found(status):
            _log.error("not reloaded, the workers keep the old code: %s", reason)
        else:
            self._workers.outdate()

    # Stopping

    def _stop(self, why: str) -> None:
        """Have the workers drain; those that take too long are killed."""
        if not self._stopping:
            _log.info("stopping (%s)", why)
            self._stopping = True
            self._probe.kill()
            self._workers.stop()

    def _enforce(self, now: float) -> None:
        """Kill whoever is over time, and replace whoever is to go."""
        self._workers.kill_late(now)
        if not self._stopping:
            self._workers.watch(now)
            self._workers.replace_due(now)

    def _leave_nobody(self) -> None:
        """However the arbiter ends, no child outlives it."""
        for seat in self._seats():
            seat.kill()
            while seat.pid and seat.reap() is None:
                time.sleep(0.01)
        self._link.close()
        self._stacks.close()
        self._values.close()
        if self._listener is not None:
            self._listener.close()
        for wake in self._wakes:
            with contextlib.suppress(OSError):
                os.close(wake)
        self._board.header[header.CONTROL_PID] = self._board.header[header.ARBITER_PID] = 0


def _say(reason: str) -> None:
    print(f"zart-runner: {reason}", file=sys.stderr, flush=True)
