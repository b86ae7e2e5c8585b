"""`zart demo`: onboard many customers, kill a worker half-way, and check in the database that nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zart.cli.audit import Audit, execution_id_of
from zart.cli.command import Failed
from zart.cli.course import Course, draw
from zart.cli.display import Display, completed
from zart.cli.figure import check_can_write
from zart.cli.onboarding import customer_of, onboarding
from zart.cli.output import counted
from zart.config import DEFAULT_SCHEMA
from zart.embedded import EmbeddedPostgres
from zart.postgres.connection import Connection, connect
from zart.runner.arbiter import run
from zart.runner.board import Board
from zart.runner.options import RunnerOptions
from zart.runner.process import describe_status, fork
from zart.scheduler import PostgresScheduler
from zart.store.audit import audit_executions, count_unfinished

_APP = "zart.cli.onboarding"
_BUCKET = 0
_LOOK_INTERVAL = 0.02
_ASK_INTERVAL = 0.2
_STANDSTILL = 60.0
_STOP_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker that was killed, and when, by the database's clock just before."""

    pid: int
    held: int
    done: int
    at: datetime


def demo(
    procs: Annotated[int, typer.Option(metavar="N", help="Worker processes.")] = 2,
    executions: Annotated[
        int, typer.Option(metavar="N", min=1, max=9_999_999, help="Executions, of five steps each.")
    ] = 20_000,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw throughput and claim latency over time there, too.")
    ] = None,
) -> None:
    """See it work: 20,000 durable executions, a worker killed half-way, every result checked.

    Needs no database and leaves nothing behind. Exit code 1: the check found something wrong.
    """
    if plot is not None:
        check_can_write(plot, "--plot")
    console = Console(highlight=False)
    board = Board(procs)
    with EmbeddedPostgres() as server:
        console.print(f"PostgreSQL runs in {server.directory}", markup=False)
        asyncio.run(_start(server.dsn, executions, console))
        runner, course = _Runner(server.dsn, procs, board, server.directory / "runner.log"), Course(board)
        try:
            kill = asyncio.run(_drain(server.dsn, runner, Display(board, executions, console), executions, course))
            runner.stop()
        finally:
            runner.kill()
        audit = asyncio.run(_audit(server.dsn, executions))
    report(audit, kill, console)
    if plot is not None:
        draw(course, executions, plot)
    if not audit.passed:
        raise Failed("the check failed")


async def _start(dsn: str, executions: int, console: Console) -> None:
    async with PostgresScheduler.connect(dsn) as scheduler:
        await scheduler.migrate()
        began = time.monotonic()
        await scheduler.start_many(
            onboarding, ((execution_id_of(number), customer_of(number)) for number in range(executions))
        )
        console.print(f"{counted(executions, 'execution')} of five steps started in {time.monotonic() - began:.1f} s")


class _Runner:
    """A runner in a forked process; its log goes to a file."""

    def __init__(self, dsn: str, procs: int, board: Board, log: Path) -> None:
        self.board, self._log = board, log
        self._options = RunnerOptions(dsn=dsn, app=_APP, procs=procs, board=board)
        self._pid = fork(self._live)

    def _live(self) -> int:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 2)
        return run(self._options)

    def check(self) -> None:
        """Raise if the runner has ended."""
        pid, status = os.waitpid(self._pid, os.WNOHANG) if self._pid else (1, 0)
        if pid:
            self._pid = 0
            lines = self._log.read_text(errors="replace").splitlines()
            raise Failed(f"the runner ended ({describe_status(status)}): {lines[-1] if lines else 'it said nothing'}")

    def stop(self) -> None:
        """End it as an operator does, and wait for it."""
        os.kill(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                raise Failed(f"the runner did not stop within {_STOP_TIMEOUT:g} s")
            time.sleep(_LOOK_INTERVAL)
        self._pid = 0

    def kill(self) -> None:
        """End it and its workers at once, if it still runs."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


async def _drain(dsn: str, runner: _Runner, display: Display, executions: int, course: Course) -> Kill | None:
    """Watch until every execution has ended, and kill a worker half-way; None if it was over before."""
    kill: Kill | None = None
    connection = await connect(dsn, application_name="zart demo")
    try:
        with display:
            done = 0
            moved_at = asked_at = time.monotonic()
            while done < executions:
                await asyncio.sleep(_LOOK_INTERVAL)
                runner.check()
                before, done, now = done, max(done, completed(runner.board)), time.monotonic()
                if done == before and now - asked_at > _ASK_INTERVAL:  # a worker that was killed left some uncounted
                    done, asked_at = executions - await count_unfinished(connection, DEFAULT_SCHEMA, _BUCKET), now
                moved_at = now if done > before else moved_at
                if now - moved_at > _STANDSTILL:
                    raise Failed(
                        f"{counted(executions - done, 'execution')} did not end: nothing moved for {_STANDSTILL:g} s"
                    )
                if kill is None and executions // 2 <= done < executions:
                    kill = await _kill_a_worker(connection, runner.board, done)
                    if kill is not None:
                        course.note_kill(kill.held)
                        display.say(
                            f"killed worker {kill.pid} (SIGKILL) while it held {counted(kill.held, 'execution')}"
                        )
                display.show(done, at_once=done >= executions)
                course.note(at_once=done >= executions)
    finally:
        await connection.close()
    return kill


async def _kill_a_worker(connection: Connection, board: Board, done: int) -> Kill | None:
    """SIGKILL the worker that holds most."""
    now = await connection.fetchval("select clock_timestamp()")
    victim = max(board.places, key=lambda place: place.held)
    pid, held = victim.pid, victim.held
    if not pid or not held:
        return None
    os.kill(pid, signal.SIGKILL)
    return Kill(pid, held, done, now)


async def _audit(dsn: str, executions: int) -> Audit:
    audit = Audit(executions)
    connection = await connect(dsn, application_name="zart demo")
    try:
        async for found in audit_executions(connection, DEFAULT_SCHEMA, _BUCKET, onboarding.spec.task_name):
            audit.add(found)
    finally:
        await connection.close()
    return audit


def report(audit: Audit, kill: Kill | None, console: Console) -> None:
    """The summary; all of it was read back from the database."""
    steps = audit.executions * 5
    lines = ["", "read back from the database:"]
    if audit.began_at is not None and audit.ended_at is not None:
        seconds = max((audit.ended_at - audit.began_at).total_seconds(), 1e-6)
        rates = f"{audit.completed / seconds:,.0f} executions/s, {audit.steps / seconds:,.0f} steps/s"
        lines.append(f"  time, first to last   {seconds:.2f} s ({rates})")
    lines.append(f"  completed             {audit.completed:,} of {audit.executions:,}")
    lines.append(f"  right step results    {audit.right_steps:,} of {steps:,}, found {audit.steps:,}")
    if kill is None:
        lines.append("  killed                nobody: all was over before half-way; try more --executions")
    else:
        lines.append(f"  taken over            {_taken_over(audit, kill)}")
        if audit.again_at is not None:
            again = (audit.again_at - kill.at).total_seconds()
            lines.append(f"  ran again             {again:.3f} s after the kill, the first of them")
    lines += [f"  wrong                 {fault}" for fault in audit.faults]
    lines.append("check passed" if audit.passed else "check FAILED")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _taken_over(audit: Audit, kill: Kill) -> str:
    """What became of the executions that the killed worker held. One that ended in its first claim was not lost: the
    worker's last transactions were committed when it died, or while it did."""
    if not audit.taken_over:
        return f"none: what the worker held had ended before the takeover ({counted(kill.held, 'execution')})"
    rest = kill.held - audit.taken_over
    ended = f"; {rest:,} more had ended before the takeover" if audit.passed and rest > 0 else ""
    return f"{counted(audit.taken_over, 'execution')} of the killed worker{ended}"
