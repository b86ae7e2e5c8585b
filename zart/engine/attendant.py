"""What a supervisor does on its main connection, in turn: takeovers, idle marks, polls, signals.

Nothing here waits for a lock, so one connection is enough and its order is plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from zart.config import WorkerConfig
from zart.engine.polling import AT_ONCE, LEAST_INTERVAL, Pace, Presence
from zart.engine.seclusion import Seclusion
from zart.engine.takeover import Takeover
from zart.meters import EXECUTIONS_CLAIMED, TICKS
from zart.metrics import Place, total
from zart.postgres.connection import Connection, check_not_demoted
from zart.store import journal, queue, workers
from zart.store.workers import WorkerLease

_WATCH: Final = 0.05  # how often places are looked at while one may run out of work
_SETTLED_WATCH: Final = 0.25
_SIGNALS_LEFT: Final = 0.1


class Attendant:
    """Attends to the workers at some places.

    Args:
        schema: the schema's name.
        config: the workers' settings.
        places: where the workers show how they are.
        wake: called with a place's index when there may be work for it.
    """

    def __init__(self, schema: str, config: WorkerConfig, places: Sequence[Place], wake: Callable[[int], None]) -> None:
        self._schema, self._config, self._places, self._wake = schema, config, places, wake
        self._presence = Presence(places, config.max_concurrent_tasks)
        self._takeovers: list[Takeover] = []
        self._seclusion = Seclusion(places)
        self._pace, self._poll_at, self._polled_at = AT_ONCE, 0.0, 0.0
        self._claimed = 0
        self._signals_at = 0.0
        self._hinted: tuple[int, int] | None = None
        self._served: dict[int, workers.Service] = {}
        self._nudge = asyncio.Event()

    # Called by the supervisor

    def hint(self) -> None:
        """Someone has made work: wake a worker at once, and see soon whether that was enough.

        A worker that was woken and has not ticked since will see this work too.
        """
        now = time.monotonic()
        takers = self._presence.takers(now)
        if takers and (self._hinted is None or self._places[self._hinted[0]].words[TICKS] != self._hinted[1]):
            self._hinted = takers[0], self._places[takers[0]].words[TICKS]
            self._wake(takers[0])
        self._pace = Pace(LEAST_INTERVAL, max(1, self._pace.wakes))
        self._poll_at = min(self._poll_at, now + LEAST_INTERVAL)
        self._nudge.set()

    def take_over_expired(self, lease: WorkerLease) -> None:
        """Take over a worker whose lease has run out; nobody is blamed for that."""
        known = {(takeover.bucket, takeover.worker_id) for takeover in self._takeovers}
        if (lease.bucket, lease.id) not in known:
            self._takeovers.append(Takeover(lease.bucket, lease.id, proof=False, blame=()))
            self._nudge.set()

    async def take_over(self, takeovers: Sequence[Takeover]) -> int:
        """See takeovers through; give how many claims they freed."""
        self._takeovers.extend(takeovers)
        self._nudge.set()
        for takeover in takeovers:
            await takeover.finished.wait()
        return sum(takeover.freed for takeover in takeovers)

    # The rounds

    async def attend(self, connection: Connection, buckets: int) -> None:
        """Go round until the connection is lost."""
        self._presence.forget_marks()
        self._look_now()
        while True:
            self._nudge.clear()
            await self._advance_takeovers(connection)
            now = time.monotonic()
            takers = self._presence.takers(now)
            await self._mark(connection, buckets, takers, now)
            if now >= self._next_poll(bool(takers)):
                await self._poll(connection, buckets)
            if now >= self._signals_at:
                await self._deliver_signals(connection, buckets)
            check_not_demoted(connection, "the database")
            await self._pause(bool(takers))

    async def _advance_takeovers(self, connection: Connection) -> None:
        for takeover in [one for one in self._takeovers if one.is_due(time.monotonic())]:
            freed = await takeover.advance(connection, self._schema, time.monotonic())
            if freed:
                self._look_now(wakes=freed)
            if takeover.done:
                self._takeovers.remove(takeover)
                self._signals_at = 0.0  # it may have left some that it was told to deliver

    async def _mark(self, connection: Connection, buckets: int, takers: Sequence[int], now: float) -> None:
        """Tell starters for whom a hint is of use; then look again, for what was started just before sent none."""
        marked, unmarked = self._presence.marks(takers, now)
        for worker_ids, idle in ((marked, True), (unmarked, False)):
            told = set(worker_ids)
            for bucket in range(buckets if worker_ids else 0):
                told &= await workers.mark_idle(connection, self._schema, bucket, worker_ids, idle)
            self._presence.told(told, idle)
        if marked:
            self._look_now()

    async def _poll(self, connection: Connection, buckets: int) -> None:
        """Ask for ready work, and wake workers for it."""
        lanes: set[int] = set()
        task_names, queues = await self._services(connection)
        for bucket in range(buckets if task_names else 0):
            lanes.update(await queue.ready_lanes(connection, self._schema, bucket, task_names, queues))
        takers = self._presence.takers(time.monotonic())
        asked = self._seclusion.ask(any(lane < 0 for lane in lanes), time.monotonic())
        if asked is not None:
            self._wake(asked)
        if not any(lane > 0 for lane in lanes):
            takers = []
        claimed = total(self._places, EXECUTIONS_CLAIMED)
        self._pace = self._pace.polled(
            found=bool(lanes and (takers or asked is not None)),
            claimed=claimed != self._claimed,
            most=self._config.poll_seconds,
        )
        self._claimed = claimed
        self._polled_at = time.monotonic()
        self._poll_at = self._polled_at + self._pace.interval
        for index in takers[: self._pace.wakes]:
            self._wake(index)

    def _next_poll(self, takers: bool) -> float:
        """Workers that are all busy look for work themselves, but for what is set apart."""
        return self._poll_at if takers else max(self._poll_at, self._polled_at + self._config.poll_seconds)

    async def _services(self, connection: Connection) -> tuple[list[str], list[str] | None]:
        """Task names and queues (None: all) that the workers here have registered."""
        ids = {place.worker_id for place in self._places if place.ready}
        if not ids <= self._served.keys():
            found = await workers.read_services(connection, self._schema, 0, sorted(ids))
            self._served = {service.id: service for service in found}
        served = [service for worker_id, service in self._served.items() if worker_id in ids]
        task_names = sorted({name for service in served for name in service.task_names})
        queues: set[str] = set()
        for service in served:
            if service.queues is None:
                return task_names, None
            queues.update(service.queues)
        return task_names, sorted(queues)

    async def _deliver_signals(self, connection: Connection, buckets: int) -> None:
        """Bring wake-ups to parents that were locked, where those who left them have not."""
        left = False
        for bucket in range(buckets):
            seen, _ = await journal.deliver_signals(connection, self._schema, bucket)
            left = left or seen > 0
        rest = self._config.lease_seconds / (1 if all(place.idle for place in self._places if place.ready) else 3)
        self._signals_at = time.monotonic() + (_SIGNALS_LEFT if left else rest)

    def _look_now(self, wakes: int = 0) -> None:
        self._pace, self._poll_at = Pace(0.0, wakes), 0.0

    async def _pause(self, takers: bool) -> None:
        """Wait until something is due, or told."""
        due = [takeover.due for takeover in self._takeovers if takeover.after is None or takeover.after.entered]
        due += [self._signals_at, time.monotonic() + (_SETTLED_WATCH if self._presence.is_settled() else _WATCH)]
        due.append(self._next_poll(takers))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(due) - time.monotonic())):
                await self._nudge.wait()
