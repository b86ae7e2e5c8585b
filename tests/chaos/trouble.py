"""What is done to a fleet and its database, one fault after the other, chosen by a seed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.chaos.invariants import Fault
from tests.chaos.links import Links
from tests.support.database import Database
from tests.support.fleet import Fleet
from zart.embedded import EmbeddedPostgres
from zart.embedded.keeper import DATA
from zart.embedded.programs import find_programs

_LONGEST_SILENCE = 3.0
_NAMES = "('zart worker', 'zart trx', 'zart leases', 'zart supervisor')"


@dataclass(slots=True)
class Trouble:
    """The source of all faults.

    Args:
        database: reached directly.
        make_runner: one that is not started yet.
        runners: those that run.
        lease: of their workers, seconds.

    Attributes:
        faults: all that was done.
    """

    server: EmbeddedPostgres
    database: Database
    links: Links
    chance: random.Random
    make_runner: Callable[[], Fleet]
    runners: list[Fleet]
    lease: float
    faults: list[Fault] = field(default_factory=list[Fault])
    _first: list[str] = field(default_factory=list[str])
    _at_work: bool = False
    _started: list[Fleet] = field(default_factory=list[Fleet])

    def start_runner(self) -> Fleet:
        """Another runner, which `kill_all` knows of."""
        self._started.append(self.make_runner().__enter__())
        return self._started[-1]

    def kill_all(self) -> None:
        """End every runner that was ever started here and is still there, their children with them."""
        for runner in self._started:
            runner.process.kill()
            runner.process.wait()

    async def make(self) -> Fault:
        """Make one fault, and return when it is healed as far as it is for others to heal it.

        Each kind comes once before any comes again.
        """
        kinds = self._kinds()
        if len(self.faults) < len(kinds):
            self._first = self._first or self.chance.sample(list(kinds), len(kinds))
            kind = self._first.pop()
        else:
            kind = self.chance.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        await self._start_again()
        began, self._at_work = time.time(), True
        whom = await kinds[kind][1]()
        self.faults.append(Fault(kind, whom, began, time.time()))
        self._at_work = False
        return self.faults[-1]

    def _kinds(self) -> dict[str, tuple[int, Callable[[], Awaitable[str]]]]:
        """How often each comes, and what makes it."""
        return {
            "worker killed": (6, self._kill_worker),
            "control killed": (2, self._kill_control),
            "runner killed, another started": (1, self._kill_runner),
            "worker frozen": (3, self._freeze_worker),
            "runner frozen": (1, self._freeze_runner),
            "worker drained (SIGTERM)": (2, self._drain_worker),
            "runner replaced (SIGTERM)": (2, self._replace_runner),
            "link cut": (3, self._cut_link),
            "all links cut": (1, self._cut_all_links),
            "link silent": (2, self._silence_link),
            "session terminated": (3, self._terminate_session),
            "LISTEN terminated": (1, self._terminate_listen),
            "database restarted, fast": (1, partial(self._restart_database, "fast")),
            "database restarted, immediate": (1, partial(self._restart_database, "immediate")),
        }

    def troubled_until(self, now: float) -> float:
        """When the last fault was healed; `now`, while there is one."""
        return now if self._at_work else max((fault.healed for fault in self.faults[-1:]), default=0.0)

    def by_kind(self) -> dict[str, int]:
        return dict(sorted(Counter(fault.kind for fault in self.faults).items()))

    async def heal(self) -> None:
        """Nothing is frozen, silent or missing any more; every worker is registered."""
        self.links.heal()
        await self._start_again()
        for runner in self.runners:
            await runner.ready()

    async def _start_again(self) -> None:
        """As an orchestrator does with a runner that found no database when it started."""
        for number, runner in enumerate(self.runners):
            if runner.process.poll() is not None:
                await asyncio.to_thread(runner.__exit__, None, None, None)
                self.runners[number] = self.start_runner()

    # Processes

    async def _kill_worker(self) -> str:
        return self._send(self._pick(self.workers()), signal.SIGKILL)

    async def _kill_control(self) -> str:
        controls = [pid for runner in self.runners for pid in runner.members() if _is_control(pid)]
        return self._send(self._pick(controls), signal.SIGKILL)

    async def _kill_runner(self) -> str:
        number = self.chance.randrange(len(self.runners))
        old, self.runners[number] = self.runners[number], self.start_runner()
        self._send(old.pid, signal.SIGKILL)
        await asyncio.to_thread(old.__exit__, None, None, None)
        return str(old.pid)

    async def _freeze_worker(self) -> str:
        pid = self._pick(self.workers())
        await self._freeze([pid])
        return str(pid)

    async def _freeze_runner(self) -> str:
        runner = self.chance.choice(self.runners)
        await self._freeze([runner.pid, *runner.members()])
        return str(runner.pid)

    async def _freeze(self, pids: list[int]) -> None:
        for pid in pids:
            self._send(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.1, self.lease + 2))
        for pid in reversed(pids):
            self._send(pid, signal.SIGCONT)

    async def _drain_worker(self) -> str:
        return self._send(self._pick(self.workers()), signal.SIGTERM)

    async def _replace_runner(self) -> str:
        """As an orchestrator rolls them: the next one is there before the last one goes."""
        number = self.chance.randrange(len(self.runners))
        old, self.runners[number] = self.runners[number], self.start_runner()
        await self.runners[number].ready()
        code, _, _ = await asyncio.to_thread(old.stop)
        assert code == 0, f"a runner that was told to stop ended with exit code {code}"
        return str(old.pid)

    def workers(self) -> list[int]:
        """Processes that are neither arbiter nor control, in the order of the runners and of their age."""
        return [pid for runner in self.runners for pid in runner.members() if not _is_control(pid)]

    def _pick(self, pids: list[int]) -> int:
        return self.chance.choice(pids) if pids else 0

    def _send(self, pid: int, number: signal.Signals) -> str:
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)
        return str(pid)

    # Links and database

    async def _cut_link(self) -> str:
        if links := self.links.open():
            self.chance.choice(links).cut()
        return "a link"

    async def _cut_all_links(self) -> str:
        links = self.links.open()
        for link in links:
            link.cut()
        return f"{len(links)} links"

    async def _silence_link(self) -> str:
        if links := self.links.open():
            self.chance.choice(links).silent.set()
        await asyncio.sleep(self.chance.uniform(0.1, _LONGEST_SILENCE))
        self.links.heal()
        return "a link"

    async def _terminate_session(self) -> str:
        return await self._terminate(f"application_name in {_NAMES} order by md5(pid || $1::text) limit 1")

    async def _terminate_listen(self) -> str:
        return await self._terminate("application_name = 'zart listen' and $1::text is not null")

    async def _terminate(self, which: str) -> str:
        connection = await self.database.connect()
        text = f"select pg_terminate_backend(p), p from (select pid from pg_stat_activity where {which}) s(p)"
        rows = await connection.fetch(text, str(self.chance.random()))
        await connection.close()
        return ", ".join(str(row["p"]) for row in rows)

    async def _restart_database(self, mode: str) -> str:
        directory = self.server.directory
        command = (
            "pg_ctl",
            "restart",
            "-w",
            "-m",
            mode,
            "-D",
            str(directory / DATA),
            "-l",
            str(directory / "server.log"),
        )
        done = await asyncio.to_thread(find_programs().run, *command)
        assert done.returncode == 0, done.stdout
        return str(self.server.pid)


def _is_control(pid: int) -> bool:
    """Of a runner's children, control alone ignores SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGTERM - 1) & 1)
