"""A fleet under load before, during and after a trouble of its database, and what must hold then."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from tests.support.database import Database
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, all_ended, start
from tests.support.servers import answers
from tests.support.steady import STEPS, effects_in

APP = "tests.support.steady:registry"
BACK_AT_WORK = 10.0
"""Within so many seconds after the database is back every worker has claimed again."""


class Trouble:
    """A fleet of two workers, and a database that something happens to.

    Args:
        fleet: the database as the fleet reaches it.
        database: the same one as the test reaches it.
        directory: for the steps' effects.
    """

    def __init__(self, fleet: Database, database: Database, directory: Path, *, lease: float = 15) -> None:
        self.file = directory / "effects"
        self.file.touch()
        self.database = database
        self.fleet = Fleet(
            fleet,
            procs=2,
            app=APP,
            config={"max_concurrent_tasks": 16, "lease_timeout": lease},
            environment={"EFFECTS_FILE": str(self.file)},
            seen_from=database,
        )
        self.pids: set[int] = set()
        self.started: set[str] = set()

    async def __aenter__(self) -> Self:
        connection = await self.database.connect()
        await connection.execute("create table if not exists written(execution_id text, n int)")
        await connection.close()
        self.fleet.__enter__()
        self.pids = set(await self.fleet.ready())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fleet.__exit__(kind, error, trace)

    async def load(self, name: str, count: int = 40, seconds: float = 0.1, task_name: str = "steady") -> None:
        """Start executions, and wait until work on them has begun: that of "before" in every worker."""
        names = [f"{name}-{n}" for n in range(count)]
        await start(self.database, task_name, dict.fromkeys(names, seconds))
        self.started.update(names)
        if name == "before":
            await self.at_work(name)
        else:
            await eventually(lambda: self._at_work_on(name))

    async def at_work(self, name: str, within: float = 20.0) -> None:
        """Returns when every worker has begun steps of the executions called so."""
        await eventually(lambda: self._at_work_on(name) == self.pids, within=within)

    async def back_at_work(self, name: str = "after", since: float | None = None) -> float:
        """The database is back: every worker claims of what is started now. Gives how many seconds that took.

        Args:
            since: `time.monotonic()` when it was back; the moment at which it takes a connection and a write, if None.
        """
        if since is None:
            await eventually(lambda: answers(self.database.dsn), within=60)
        began = time.monotonic() if since is None else since
        number = 0
        while self._at_work_on(name) != self.pids:
            late = f"{BACK_AT_WORK:g} s after, at work are {self._at_work_on(name)} of {self.pids}"
            assert time.monotonic() < began + BACK_AT_WORK, late
            if number < 10 * (time.monotonic() - began) + 40:  # there is always something to claim
                names = [f"{name}-{number + n}" for n in range(20)]
                await start(self.database, "steady", dict.fromkeys(names, 0.1))
                self.started.update(names)
                number += len(names)
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def check(self) -> None:
        """Nothing is lost, nothing that was kept was done again, every journal is whole, the processes are the same."""
        await all_ended(self.database, within=60)
        connection = await self.database.connect()
        rows = await connection.fetch(
            "select execution_id, status, output::text, crashes from zart.zart_executions order by id"
        )
        ended = {row["execution_id"]: (row["status"], row["output"], row["crashes"]) for row in rows}
        assert ended == dict.fromkeys(self.started, (1, str(sum(range(STEPS))), 0))
        await self._check_no_step_began_again(connection)
        incomplete = (
            "select id from zart.zart_executions"
            " where id not in (select id from zart.zart_tasks group by id having count(*) = $1)"
        )
        assert await connection.fetch(incomplete, STEPS) == []
        twice = "select execution_id, n, count(*) from written group by 1, 2 having count(*) <> 1"
        assert await connection.fetch(twice) == []
        await connection.close()
        self.fleet.seen_from = self.database
        assert set((await self.fleet.workers()).values()) == self.pids
        code, words, errors = self.fleet.stop()
        assert (code, words["DEATHS"], words["FORKS"]) == (0, 0, 2)
        assert "Traceback" not in errors, errors

    def has_begun(self, execution_id: str) -> bool:
        """Whether a step of this execution has begun."""
        return any(effect.execution_id == execution_id for effect in effects_in(self.file))

    def _at_work_on(self, name: str) -> set[int]:
        return {effect.pid for effect in effects_in(self.file) if effect.execution_id.startswith(f"{name}-")}

    async def _check_no_step_began_again(self, connection: asyncpg.Connection) -> None:
        """No try of a step began after its checkpoint was written, and each step has begun before that."""
        rows = await connection.fetch(
            "select e.execution_id, t.name, extract(epoch from t.created_at)::float8 as kept"
            " from zart.zart_tasks t join zart.zart_executions e using (id)"
        )
        kept = {(row["execution_id"], row["name"]): row["kept"] for row in rows}
        effects = effects_in(self.file)
        again = [one for one in effects if one.began > kept.get((one.execution_id, one.step), one.began)]
        assert again == []
        assert kept.keys() <= {(one.execution_id, one.step) for one in effects}
