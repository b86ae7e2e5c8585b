"""The engine at work: the real runner with its worker processes, watched from outside through its board."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from functools import partial
from typing import IO

from bench.cpu import CpuTimes, cpu_times
from bench.drain import Drain, Ticks
from bench.rig import SCHEMA, BenchError, Database
from zart.meters import (
    CLAIM_LATENCY,
    EXECUTIONS_CLAIMED,
    EXECUTIONS_COMPLETED,
    EXECUTIONS_FAILED,
    TICK_DURATION,
    TICK_ROWS,
    TICKS,
)
from zart.metrics import merged, observed, quantile, total
from zart.runner import arbiter
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.options import RunnerOptions
from zart.runner.process import fork

APP = "bench.workflows"

_LOOK_FOR_BEGIN = 0.001
_LOOK_FOR_END = 0.01
_PATIENCE = 60.0


def drain(database: Database, executions: int, *, procs: int) -> Drain:
    """Have a runner complete all executions of the database.

    Args:
        executions: how many there are.
        procs: worker processes.

    Raises:
        BenchError: the runner failed, or nothing moved for a minute.
    """
    board = Board(procs)
    options = RunnerOptions(dsn=database.dsn, app=APP, procs=procs, schema=SCHEMA, preload=True, board=board)
    with tempfile.TemporaryFile("w+") as log:
        runner = _Runner(fork(partial(_run, options, log)), board, log)
        try:
            runner.wait(EXECUTIONS_CLAIMED, 1, _LOOK_FOR_BEGIN)
            begin, before = time.monotonic(), runner.cpu(database)
            runner.wait(EXECUTIONS_COMPLETED, executions, _LOOK_FOR_END)
            seconds, cpu = time.monotonic() - begin, runner.cpu(database).since(before)
        finally:
            runner.stop()
    return Drain(seconds, cpu, _ticks(board))


def _run(options: RunnerOptions, log: IO[str]) -> int:
    os.dup2(log.fileno(), 2)
    return arbiter.run(options)


class _Runner:
    """The runner's process, seen from the process that measures."""

    def __init__(self, pid: int, board: Board, log: IO[str]) -> None:
        self._pid, self._board, self._log = pid, board, log

    def wait(self, counter: int, wanted: int, interval: float) -> None:
        """Return when the workers together have counted so much."""
        seen, deadline = -1, time.monotonic() + _PATIENCE
        while (now := total(self._board.places, counter)) < wanted:
            if total(self._board.places, EXECUTIONS_FAILED):
                raise BenchError(f"executions failed{self._said()}")
            if now > seen:
                seen, deadline = now, time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
                raise BenchError(f"nothing moved for {_PATIENCE:g} s at {now} of {wanted}{self._said()}")
            if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise BenchError(f"the runner ended before its work{self._said()}")
            time.sleep(interval)

    def cpu(self, database: Database) -> CpuTimes:
        """Processor time until now."""
        workers = [place.pid for place in self._board.places]
        supervisors = [self._board.header[header.CONTROL_PID], self._board.header[header.ARBITER_PID]]
        return cpu_times(database.postmaster, workers, supervisors)

    def stop(self) -> None:
        """Drain the runner and wait for its end."""
        if not os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)

    def _said(self) -> str:
        self._log.seek(0)
        text = self._log.read().strip()
        return f"; the runner said:\n{text}" if text else ""


def _ticks(board: Board) -> Ticks:
    latencies = merged(board.places, CLAIM_LATENCY)
    return Ticks(
        ticks=total(board.places, TICKS),
        rows=round(observed(board.places, TICK_ROWS)),
        duration_p50=quantile(merged(board.places, TICK_DURATION), 0.5),
        claim_latency_p50=quantile(latencies, 0.5),
        claim_latency_p99=quantile(latencies, 0.99),
    )
