"""A worker's one held connection, and its identity: the id under which it is registered and holds claims.

A lost connection ends the identity. What the old one really holds is asked for under the new id, which is the only way
to know whether a tick that got no answer was committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from zart.config import WorkerConfig
from zart.errors import DatabaseUnreachable
from zart.meters import DATABASE_ERRORS, RECONNECTS
from zart.metrics import Place
from zart.postgres.connection import RECONNECT_TIMEOUT, STATEMENT_TIMEOUT, ServerConnection, connect
from zart.postgres.sqlstate import Fault, classify
from zart.store import workers
from zart.store.migrate import check_schema

log = logging.getLogger("zart.engine")

REGISTER_TIMEOUT = 30.0  # in all buckets; a backend of the old identity may have to be ended in each
FIRST_BACKOFF, LAST_BACKOFF = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Held:
    """A claim as the database has it."""

    bucket: int
    id: int
    run: int
    epoch: int
    wakes: int
    done: int
    lane: int

    @property
    def apart(self) -> bool:
        """Whether it is set apart."""
        return self.lane < 0


def new_worker_id() -> int:
    """63 random bits, never 0; not a sequence, because a failover gives sequence numbers out again."""
    return secrets.randbits(63) or 1


class Session:
    """The connection and the identity.

    Attributes:
        connection: for ticks and the few statements between them; one at a time.
        worker_id: the identity now.
        buckets: how many buckets the schema has.
        lost: the connection is gone, and the next one not yet registered.
        timeline: of the server's history, as it was at the last registration; another one is that of a replica that
            was promoted, and what was kept last may not be there.
    """

    connection: ServerConnection

    def __init__(
        self,
        *,
        dsn: str,
        schema: str,
        config: WorkerConfig,
        place: Place,
        worker_id: int,
        task_names: Sequence[str],
        host: str | None = None,
    ) -> None:
        self.dsn, self.schema, self.config, self.place = dsn, schema, config, place
        self.worker_id, self.task_names = worker_id, list(task_names)
        self.host = host or socket.gethostname()
        self.buckets, self.lost = 1, True
        self.timeline = self._found_timeline = ""

    async def open(self) -> None:
        """Connect, check the schema, register in every bucket; waits for a database that cannot be reached.

        Raises:
            DatabaseError: the database cannot serve this worker.
        """
        self.place.worker_id = self.worker_id
        await self._until_registered(workers.NOBODY)

    async def renew(self) -> tuple[list[Held], bool]:
        """A fresh connection under a new identity, however long it takes; what the old one holds comes along.

        The new id stays the same from try to try: registering again under it is harmless, and its answer is complete.

        Returns:
            All that is held; and whether the server's history is still the one that the turns here are part of.
        """
        old, timeline = self.worker_id, self.timeline
        self.lost = True
        self.connection.terminate()
        self.place.previous_id, self.worker_id = old, new_worker_id()
        self.place.worker_id = self.worker_id
        held = await self._until_registered(old)
        self.place.previous_id = workers.NOBODY
        self.place.add(RECONNECTS)
        return held, self.timeline == timeline

    async def _until_registered(self, old: int) -> list[Held]:
        """Connect and register, again and again while that may help. The answer is all that is held."""
        backoff, told = FIRST_BACKOFF, ""
        while True:
            try:
                await self._connect()
                held = await self._register(old)
            except Exception as error:
                if classify(error) not in (Fault.LOST, Fault.RETRY):
                    raise
                self.place.add(DATABASE_ERRORS)
                if str(error) != told:
                    about = {"worker_id": self.worker_id}
                    log.warning("worker cannot register yet, trying again: %s", error, extra=about)
                told = str(error)
            else:
                self.lost, self.timeline = False, self._found_timeline
                if told:
                    log.info("worker is registered", extra={"worker_id": self.worker_id})
                return held
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)

    async def check_schema(self) -> None:
        """Raise what is wrong with the schema, if the connection still tells.

        Raises:
            DatabaseError: it is gone, or does not serve this library any more.
        """
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await check_schema(self.connection, self.schema)

    async def check_timeline(self) -> None:
        """See that the history is the same still. Behind a pooler a link outlives its server.

        Raises:
            DatabaseUnreachable: another server is the primary.
        """
        if await workers.read_timeline(self.connection, self.schema) != self.timeline:
            raise DatabaseUnreachable("another server has become the primary behind the pooler")

    async def close(self) -> None:
        """Forget the identity, if it holds nothing, and close."""
        try:
            async with asyncio.timeout(2):
                for bucket in range(self.buckets):
                    await workers.take_over_worker(
                        self.connection, self.schema, bucket, self.worker_id, proof=True, blame=[]
                    )
                await self.connection.close()
        except Exception as error:
            about = {"worker_id": self.worker_id}
            log.debug("worker %d left without saying so: %s", self.worker_id, type(error).__name__, extra=about)
            self.connection.terminate()

    async def _connect(self) -> None:
        connection = await connect(
            self.dsn,
            application_name="zart worker",
            timeout=RECONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            prepared_statements=self.config.prepared_statements,
        )
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT):
                self.buckets = (await check_schema(connection, self.schema)).buckets
                self._found_timeline = await workers.read_timeline(connection, self.schema)
        except BaseException:
            connection.terminate()
            raise
        self.connection = connection

    async def _register(self, old: int) -> list[Held]:
        """Register in every bucket, as the heir of an earlier identity. The answer is all that is held."""
        held: list[Held] = []
        try:
            async with asyncio.timeout(REGISTER_TIMEOUT):
                for bucket in range(self.buckets):
                    held += await self._take_from(bucket, old)
        except BaseException:
            self.connection.terminate()
            raise
        self.place.ready = 1
        return held

    async def _take_from(self, bucket: int, old: int) -> list[Held]:
        """The claims of an earlier identity. A backend that still sits on its fence is ended."""
        while True:
            try:
                rows = await workers.reregister(
                    self.connection,
                    self.schema,
                    bucket,
                    old,
                    self.worker_id,
                    lease=self.config.lease_seconds,
                    host=self.host,
                    pid=os.getpid(),
                    task_names=self.task_names,
                    queues=self.config.queues,
                )
            except asyncpg.LockNotAvailableError:
                await workers.evict_backend(self.connection, self.schema, bucket, old)
            else:
                return [Held(bucket, *row) for row in rows]
