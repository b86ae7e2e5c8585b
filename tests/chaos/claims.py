"""Watches who holds claims while faults go on: nothing claimed outlives its worker by more than lease and sweep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg

from tests.chaos.effects import LOST
from tests.support.database import Database
from tests.support.fleet import is_alive

_EVERY = 0.2
_HELD = (
    "select q.worker, w.pid, count(*) as claims from zart.zart_queue q left join zart.zart_workers w on w.id = q.worker"
    " where q.worker is not null group by 1, 2"
)
_SUPERVISED = "select exists (select from pg_stat_activity where application_name = 'zart supervisor')"


@dataclass(slots=True)
class ClaimWatch:
    """Looks at all claims again and again.

    Args:
        troubled_until: when the last fault was healed; the moment that it is given, while there is one.
        bound: seconds that a dead worker's claims may last, counted from its death or the end of the last fault:
            who would free them may have been hit by that. While no supervisor is there, as between the kill of the
            last runner and the start of another, nobody can free them.
    """

    database: Database
    troubled_until: Callable[[float], float]
    bound: float
    violations: list[str] = field(default_factory=list[str])
    _alone_until: float = 0.0
    _dead_since: dict[int, float] = field(default_factory=dict[int, float])

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            with contextlib.suppress(*LOST):
                connection = await asyncpg.connect(self.database.dsn, timeout=5, command_timeout=5)
                try:
                    while True:
                        if not await connection.fetchval(_SUPERVISED):
                            self._alone_until = time.time()
                        self._look(await connection.fetch(_HELD))
                        await asyncio.sleep(_EVERY)
                finally:
                    connection.terminate()
            await asyncio.sleep(_EVERY)

    def _look(self, rows: list[asyncpg.Record]) -> None:
        now, before = time.time(), self._dead_since
        self._dead_since = {}
        for row in rows:
            if row["pid"] is None:
                self._tell(f"{row['claims']} claims are held by worker {row['worker']}, which has no row")
            elif not is_alive(row["pid"]):
                since = self._dead_since[row["worker"]] = before.get(row["worker"], now)
                quiet_since = max(since, self._alone_until, self.troubled_until(now))
                if now - quiet_since > self.bound:
                    self._tell(f"{row['claims']} claims of the dead process {row['pid']}, for {now - since:.1f} s")

    def _tell(self, what: str) -> None:
        self.violations.append(f"nothing claimed outlives lease + sweep: {what}")
