"""Keeps the workers of one process tree (or the one worker of a program) alive for the database, from outside of their
event loops: renews their leases, wakes them for work, frees what dead workers held, here or elsewhere.

It has three connections: one for leases, one that listens for hints, one for all else. Each is made again when it is
lost, for as long as that takes. Behind a pooler nobody can listen: hints then need a URL of the server itself, or are
done without.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from zart.config import WorkerConfig
from zart.engine.attendant import Attendant
from zart.engine.keeping import keep
from zart.engine.lease import Observer, Pulse
from zart.engine.takeover import Takeover
from zart.log import logger
from zart.metrics import Place
from zart.postgres.connection import (
    RECONNECT_TIMEOUT,
    STATEMENT_TIMEOUT,
    ServerConnection,
    check_not_demoted,
    connect,
)
from zart.postgres.url import describe
from zart.store import workers
from zart.store.migrate import check_schema

_LISTEN_CHECK: Final = 5.0  # a dead link that nobody writes to is never noticed
_NO_HINTS: Final = (
    "the %s leads through a pooler, where nobody can listen for hints: ready work is found by polling, within %g s; a"
    " listen_url (--listen-url) that leads to the PostgreSQL server itself makes that faster"
)

_log = logger("supervisor")


class Supervisor:
    """Supervises the workers at some places. All methods belong to the event loop that `run` runs in.

    Args:
        dsn, schema: the database.
        config: the workers' settings.
        places: where the workers show how they are.
        wake: called with a place's index when there may be work for it.
    """

    def __init__(
        self, *, dsn: str, schema: str, config: WorkerConfig, places: Sequence[Place], wake: Callable[[int], None]
    ) -> None:
        self._dsn, self._schema, self._config, self._places = dsn, schema, config, places
        self._interval = config.lease_seconds / 3
        self._pulse = Pulse()
        self._wake, self._attendant = wake, Attendant(schema, config, places, wake)
        self._buckets, self._knows_buckets = 0, asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Supervise until `stop()`. An outage of the database never ends it."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(keep(purpose, partial(self._work_on, name, work)), name=f"zart {name}")
                for name, purpose, work in (
                    ("leases", "leases", self._keep_leases),
                    ("supervisor", "polling", self._attend),
                    ("listen", "hints", self._listen),
                )
            ]
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    def stop(self) -> None:
        """Have `run` return soon; takeovers that are under way are left as they are."""
        self._stop.set()

    async def report_death(
        self, worker_ids: Sequence[int], executing: Sequence[int] | None, how: str = "", step: str = ""
    ) -> int:
        """Free what a worker held whose process is known to be dead; returns when nothing names it any more.

        Args:
            worker_ids: its ids, earlier ones first.
            executing: numeric ids of the executions whose code ran at that moment; None when that is not known.
            how: how it ended, as `signal SIGSEGV`.
            step: the step begun last by an execution that it ran alone, or "".

        Returns:
            How many claims were freed.
        """
        await self._knows_buckets.wait()
        takeovers: list[Takeover] = []
        for bucket in range(self._buckets):
            before: Takeover | None = None
            for worker_id in worker_ids:
                before = Takeover(bucket, worker_id, proof=True, blame=executing, how=how, step=step, after=before)
                takeovers.append(before)
        return await self._attendant.take_over(takeovers)

    # The three connections

    async def _work_on(
        self,
        name: str,
        work: Callable[[ServerConnection, int], Awaitable[None]],
        connected: Callable[[], None],
    ) -> None:
        """Do some work on a connection of this name, until it is lost."""
        async with self._connected(name) as (connection, buckets):
            connected()
            await work(connection, buckets)

    @contextlib.asynccontextmanager
    async def _connected(self, name: str) -> AsyncGenerator[tuple[ServerConnection, int]]:
        connection = await connect(
            (self._config.listen_url if name == "listen" else None) or self._dsn,
            application_name=f"zart {name}",
            timeout=RECONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            prepared_statements=self._config.prepared_statements,
        )
        try:
            buckets = (await check_schema(connection, self._schema)).buckets
            if name != "listen":  # it may be told another URL
                self._buckets = buckets
                self._knows_buckets.set()
            yield connection, buckets
        finally:
            connection.terminate()

    async def _keep_leases(self, connection: ServerConnection, buckets: int) -> None:
        """Renew the leases of live workers, and watch those of all."""
        observer, renewed_at, everywhere = Observer(self._interval), float("-inf"), list(range(buckets))
        while True:
            if time.monotonic() >= renewed_at + self._interval * 0.95:
                renewed_at = time.monotonic()
                if alive := self._pulse.alive(self._places):
                    for bucket in everywhere:
                        await workers.renew_leases(connection, self._schema, bucket, alive, self._config.lease_seconds)
            asked = time.monotonic()
            leases = await workers.read_leases(connection, self._schema, everywhere)
            for lease in observer.takeable(leases, asked, time.monotonic()):
                self._attendant.take_over_expired(lease)
            until_renewal = renewed_at + self._interval - time.monotonic()
            await asyncio.sleep(max(0.0, min(until_renewal, observer.patience(leases))))

    async def _attend(self, connection: ServerConnection, buckets: int) -> None:
        try:
            await self._attendant.attend(connection, buckets)
        except Exception:
            for index in range(len(self._places)):  # they may have lost theirs as well, and the idle do not know
                self._wake(index)
            raise

    async def _listen(self, connection: ServerConnection, _: int) -> None:
        if connection.pooled:
            connection.terminate()
            _log.info(_NO_HINTS, "listen_url" if self._config.listen_url else "database URL", self._config.poll_seconds)
            await asyncio.Event().wait()
        await connection.add_listener(workers.channel(self._schema), self._on_hint)
        self._attendant.hint()  # what was sent while nobody listened
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        while not connection.is_closed():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LISTEN_CHECK):
                    await lost.wait()
            await connection.execute("select")
            check_not_demoted(connection, describe(self._config.listen_url or self._dsn))

    def _on_hint(self, *_: object) -> None:
        self._attendant.hint()
