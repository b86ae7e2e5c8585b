"""A runner in a process of its own, and what tests do to it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson

from tests.support.database import Database
from tests.support.eventually import eventually
from zart.codec import bucket_of
from zart.config import WorkerConfig
from zart.runner import arbiter
from zart.runner import board as header
from zart.runner.board import Board
from zart.runner.options import RunnerOptions
from zart.store import executions, queue

ROOT = Path(__file__).parents[2]
_STARTED_WITHIN = 60.0  # on a machine that has other things to do
APP = "tests.support.workflows:registry"


@dataclass(slots=True)
class Fleet:
    """A runner, started on entry and killed on exit if it is still there.

    Args:
        config: fields of WorkerConfig.
        options: further fields of RunnerOptions.
        children: a module whose CHILDREN are the children's functions instead of the real ones.
        within: a command that runs the runner as its last arguments and waits for it, as `unshare`.
        terminal: its standard input.
        root: the folder that the runner imports zart from.
        log_file: gets what the runner writes on stderr, and keeps it.
        under: command that runs it, and becomes it.
        seen_from: the database as the test reaches it, where the runner's URL is not for it.
    """

    database: Database
    procs: int = 2
    app: str = APP
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    children: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    within: tuple[str, ...] = ()
    terminal: int | None = None
    root: Path = ROOT
    log_file: Path | None = None
    under: Sequence[str] = ()
    seen_from: Database | None = None
    process: subprocess.Popen[str] = field(init=False)
    _log: IO[str] = field(init=False)

    def __enter__(self) -> Self:
        orders = {
            "options": {
                "dsn": self.database.dsn,
                "schema": self.database.schema,
                "app": self.app,
                "procs": self.procs,
                **self.options,
            },
            "config": self.config,
            "children": self.children,
        }
        self._log = tempfile.TemporaryFile("w+") if self.log_file is None else self.log_file.open("a+")
        self.process = subprocess.Popen(
            [*self.within, *self.under, sys.executable, "-m", "tests.support.fleet", json.dumps(orders)],
            cwd=self.root,
            env={**os.environ, "EFFECTS_DSN": self.database.dsn, **self.environment},
            stdin=self.terminal,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.members():
            _signal(pid, signal.SIGCONT)
        for pid in (self.pid, self.process.pid):
            _signal(pid, signal.SIGKILL)
        output, _ = self.process.communicate()
        if kind is not None:
            print(output, self.log(), file=sys.stderr)
        self._log.close()

    @property
    def pid(self) -> int:
        """The arbiter."""
        if not self.within:
            return self.process.pid
        return next((pid for pid, parent, _ in _processes() if parent == self.process.pid), 0)

    def log(self) -> str:
        """What the runner has written on stderr."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode()

    def members(self) -> list[int]:
        """Processes that the arbiter has forked and that are alive, in order of age."""
        arbiter = self.pid
        return sorted(pid for pid, parent, state in _processes() if parent == arbiter and state != "Z")

    def send(self, number: signal.Signals) -> None:
        """Signal the arbiter."""
        os.kill(self.pid, number)

    def end(self, within: float = 30) -> tuple[int, dict[str, int], str]:
        """Wait for the runner's end: its exit code, the board's header, what it wrote on stderr."""
        output, _ = self.process.communicate(timeout=within)
        return self.process.returncode, json.loads(output or "{}"), self.log()

    def stop(self, within: float = 30) -> tuple[int, dict[str, int], str]:
        """SIGTERM, then as `end`."""
        self.send(signal.SIGTERM)
        return self.end(within)

    async def workers(self) -> dict[int, int]:
        """Registered workers that live: process id by worker id."""
        connection = await (self.seen_from or self.database).connect()
        rows = await connection.fetch("select distinct id, pid from zart.zart_workers where not dead")
        await connection.close()
        alive = set(self.members())
        return {row["id"]: row["pid"] for row in rows if row["pid"] in alive}

    async def ready(self, count: int | None = None) -> list[int]:
        """Process ids of the workers, once all of them (or `count`) are registered."""
        wanted = self.procs if count is None else count

        async def registered() -> list[int]:
            assert self.process.poll() is None, f"the runner ended: {self.log()}"
            found = sorted((await self.workers()).values())
            return found if len(found) >= wanted else []

        return await eventually(registered, within=_STARTED_WITHIN)

    async def control(self) -> int:
        """The process id of control, once all workers are registered."""
        workers = await self.ready()
        return next(pid for pid in self.members() if pid not in workers)


def is_alive(pid: int) -> bool:
    """True while a process runs, zombies not counted."""
    return any(found == pid and state != "Z" for found, _, state in _processes())


async def start(database: Database, task_name: str, inputs: dict[str, Any]) -> None:
    """Start executions of a task: their inputs by id."""
    connection = await database.connect()
    lanes = await queue.add_lanes(connection, database.schema, [("default", task_name)])
    for bucket in range(database.buckets):
        chosen = [name for name in inputs if bucket_of(name, database.buckets) == bucket]
        if chosen:
            await executions.start(
                connection,
                database.schema,
                bucket,
                chosen,
                [orjson.dumps(inputs[name]).decode() for name in chosen],
                task_name=task_name,
                lane=lanes["default", task_name],
                priority=2,
            )
    await connection.close()


async def unfinished(database: Database) -> int:
    """How many executions have not ended."""
    return int(await _value(database, "select count(*) from zart.zart_queue"))


async def all_ended(database: Database, within: float = 60) -> None:
    """Returns when no execution is left to do."""

    async def none_left() -> bool:
        return not await unfinished(database)

    await eventually(none_left, within=within, every=0.05)


async def effects(database: Database) -> int:
    """How many steps have begun."""
    return int(await _value(database, "select count(*) from effects"))


async def _value(database: Database, text: str, *arguments: Any) -> Any:
    connection = await database.connect()
    value = await connection.fetchval(text, *arguments)
    await connection.close()
    return value


def _processes() -> list[tuple[int, int, str]]:
    """Process id, parent's id and state of every process."""
    found: list[tuple[int, int, str]] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            found.append((int(entry.name), int(parent), state))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


def main(arguments: Sequence[str]) -> int:
    """Run as told in JSON, then write the board's header to stdout."""
    orders = json.loads(arguments[0])
    config = WorkerConfig(**orders["config"])
    board = Board(RunnerOptions(**orders["options"], config=config).most_procs)
    options = RunnerOptions(**orders["options"], config=config, board=board)
    if orders["children"]:
        code = arbiter.run(options, importlib.import_module(orders["children"]).CHILDREN)
    else:
        code = arbiter.run(options)
    words = {name: board.header[getattr(header, name)] for name in ("TAKEN_OVER", "DEATHS", "FORKS")}
    print(json.dumps(words))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
