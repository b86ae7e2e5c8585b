"""The worker processes as the arbiter sees them: who is forked, who is replaced, what becomes of those that ended.

Nothing in it waits. Only one worker at a time is replaced for a reason of ours (its age, new code, ...), and only while
all others are at work.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zart.log import logger
from zart.metrics import ALONE, Place
from zart.runner import board as header
from zart.runner import child
from zart.runner.board import Board
from zart.runner.health import Watchdog, loop_beats
from zart.runner.link import DeathLink
from zart.runner.options import RunnerOptions
from zart.runner.process import blamed, describe_status
from zart.runner.recycling import Life, begin_life
from zart.runner.seat import Seat
from zart.runner.stack import Stacks

_STOP_MARGIN: Final = 1.0  # workers keep shutdown_timeout themselves; those still there so long after it are killed
_FORKS_AT_ONCE: Final = 16  # signals are looked at in between
_STACK_PATIENCE: Final = 1.0
_STACK_LOOK: Final = 0.01
_REPLACING_LOOK: Final = 0.1

_log = logger("runner")


@dataclass(frozen=True, slots=True)
class _Stall:
    """A worker that was asked for the stack that blocks it."""

    index: int
    pid: int
    since: float
    until: float


class Workers:
    """The workers of one runner, as many as `size` says; the first places of the board are theirs.

    Args:
        options, board, stacks: what all processes of the runner share.
        link: where control is told of deaths.
        make: forks the worker of a place for its seat.
        forget: told of the place whose worker has ended.
    """

    def __init__(
        self,
        options: RunnerOptions,
        board: Board,
        stacks: Stacks,
        link: DeathLink,
        make: Callable[[int, Seat, float], None],
        forget: Callable[[int], None],
    ) -> None:
        self._options, self._board, self._stacks, self._link = options, board, stacks, link
        self._make, self._forget = make, forget
        self.size = options.procs
        self.seats = tuple(Seat() for _ in board.places)
        self._lives = [Life() for _ in board.places]
        self._watchdog = Watchdog[int](options.stall_seconds)
        self._stall: _Stall | None = None
        self._outdated: set[int] = set()
        self._last_replaced = -1

    @property
    def are_gone(self) -> bool:
        return not any(seat.pid for seat in self.seats)

    def patience(self, now: float) -> float:
        """Seconds until there may be something to do without a signal."""
        if self._stall is not None:
            return _STACK_LOOK
        fleet = self.seats[: self.size]
        due = [seat.due for seat in fleet if not seat.pid]
        if self._outdated or any(seat.leaving_until is not None for seat in fleet):
            due.append(now + _REPLACING_LOOK)
        return max(0.0, min(due, default=now + _STACK_PATIENCE) - now)

    # Forking

    def fork_due(self, now: float) -> None:
        """Make workers where they are missing and may be made."""
        due = [index for index, seat in enumerate(self.seats[: self.size]) if not seat.pid and seat.due <= now]
        for index in due[:_FORKS_AT_ONCE]:
            seat, place = self.seats[index], self._board.places[index]
            place.clear()
            place.worker_id = secrets.randbelow(2**63 - 1) + 1
            self._board.say("", index)
            self._lives[index] = begin_life(self._options, place, now)
            self._make(index, seat, now)
            place.pid = seat.pid
            self._board.header[header.FORKS] += bool(seat.pid)

    def grow(self) -> None:
        """One worker more."""
        if self.size == len(self.seats):
            _log.warning("there is no room for more than %d workers", self.size)
            return
        self.seats[self.size].hurry(time.monotonic())
        self.size += 1
        _log.info("growing to %s", self.counted())

    def shrink(self) -> None:
        """One worker less: the last one drains."""
        if self.size == 1:
            _log.warning("the last worker stays; SIGTERM stops the runner")
            return
        self.size -= 1
        self._leave(self.seats[self.size])
        _log.info("shrinking to %s", self.counted())

    def counted(self) -> str:
        return "1 worker" if self.size == 1 else f"{self.size} workers"

    # Replacing

    def outdate(self) -> None:
        """There is new code: have all workers replaced. Those that could not start may with it."""
        self._outdated = {seat.pid for seat in self.seats if seat.pid}
        for seat in self.seats:
            seat.hurry(time.monotonic())

    def replace_due(self, now: float) -> None:
        """Have one worker drain that is to go, if all are at work."""
        if any(self.seats[i].leaving_until is not None or not self._board.places[i].ready for i in range(self.size)):
            return
        for step in range(1, self.size + 1):
            index = (
                self._last_replaced + step
            ) % self.size  # else one that has to go all the time keeps out the others
            seat = self.seats[index]
            why = (
                "new code" if seat.pid in self._outdated else self._lives[index].is_over(self._board.places[index], now)
            )
            if why:
                _log.info("worker %d is replaced (%s)", index, why)
                self._leave(seat)
                self._last_replaced = index
                return
        if self._outdated:
            self._outdated.clear()
            _log.info("reloaded: %s with the new code", self.counted())

    # Deaths

    def reap(self) -> str:
        """Bury those that have ended; when that is hopeless, give the reason why workers cannot start, else ""."""
        hopeless = ""
        for index, seat in enumerate(self.seats):
            status = seat.reap()
            if status is not None:
                hopeless = self._bury(index, seat, status) or hopeless
        return hopeless

    def _bury(self, index: int, seat: Seat, status: int) -> str:
        """Have control release what the worker held, and empty its place."""
        place = self._board.places[index]
        asked = seat.was_asked_to_end(status)
        worker_ids = [worker_id for worker_id in (place.previous_id, place.worker_id) if worker_id]
        how = "its event loop stood still" if seat.stalled else describe_status(status)
        step = place.step if place.alone == ALONE else ""
        self._link.report(worker_ids, [] if asked else blamed(place, status, stalled=seat.stalled), how, step)
        was_at_work = bool(place.ready)
        place.clear()
        self._forget(index)
        if asked:
            seat.hurry(time.monotonic())
            return ""
        self._board.header[header.DEATHS] += 1
        self._board.header[header.LAST_DEATH_NS] = time.monotonic_ns()
        _log.warning("worker %d ended (%s)", index, describe_status(status))
        found_no_database = os.WIFEXITED(status) and os.WEXITSTATUS(status) == child.EXIT_NO_DATABASE
        if not seat.note_start(worked=was_at_work or found_no_database):
            return ""
        reason = self._board.said(index)
        return self._judge(
            reason or f"workers end before they are at work, the last one with {describe_status(status)}"
        )

    def _judge(self, reason: str) -> str:
        """After too many starts that failed: the reason to give up if there is no hope, or ""."""
        if self._outdated:
            self._outdated.clear()
            _log.error("reloading ends here, the other workers keep the old code: %s", reason)
        return reason if all(seat.failed_starts for seat in self.seats[: self.size]) else ""

    # Stalls

    def watch(self, now: float) -> None:
        """Deal with one stalled worker after the other: first its stack is logged, then it is killed."""
        stalled = self._watchdog.stalled(loop_beats(self._board.places), now)
        if self._stall is None:
            for index, seconds in stalled.items():
                seat = self.seats[index]
                if seat.pid:
                    self._stall = _Stall(index, seat.pid, now - seconds, now + _STACK_PATIENCE)
                    self._stacks.ask(seat.pid)
                    return
            return
        seat = self.seats[self._stall.index]
        if seat.pid != self._stall.pid or not (seat.killed or self._stall.index in stalled):  # gone, or going on again
            self._stall = None
        elif not seat.killed and (now >= self._stall.until or self._stacks.are_whole()):
            self._report(self._stall, self._board.places[self._stall.index], now)
            seat.stalled = True
            seat.kill()

    def _report(self, stall: _Stall, place: Place, now: float) -> None:
        running = place.running()
        seconds = now - stall.since
        _log.error(
            "worker %d (process %d) is killed: its event loop has been blocked for %.1f s, %s",
            stall.index,
            stall.pid,
            seconds,
            _who_ran(running),
            extra={
                "worker": place.worker_id,
                "worker_pid": stall.pid,
                "blocked_seconds": round(seconds, 1),
                "executions": running,
                "stack": self._stacks.answer() or "it gave no stack: it is stopped, or waits inside the kernel",
            },
        )

    # Stopping

    def stop(self) -> None:
        """Have all drain."""
        for seat in self.seats:
            self._leave(seat)

    def _leave(self, seat: Seat) -> None:
        seat.leave(time.monotonic() + self._options.config.shutdown_seconds + _STOP_MARGIN)

    def kill_late(self, now: float) -> None:
        """Kill those that were asked to end and take too long."""
        for index, seat in enumerate(self.seats):
            if seat.leaving_until is not None and now >= seat.leaving_until:
                self._kill(index, "out of time")

    def kill_all(self, why: str) -> None:
        for index in range(len(self.seats)):
            self._kill(index, why)

    def _kill(self, index: int, why: str) -> None:
        seat = self.seats[index]
        if seat.pid and not seat.killed:
            _log.warning("worker %d is killed (%s)", index, why)
            seat.kill()


def _who_ran(running: list[int] | None) -> str:
    """What a stalled worker ran, by the numeric ids of the executions."""
    if running is None:
        return "while too many executions ran to name them"
    if not running:
        return "by no execution"
    named = ", ".join(map(str, running))
    return f"while execution {named} ran" if len(running) == 1 else f"while executions {named} ran"
