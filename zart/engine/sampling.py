"""Takes the figures of all queues every few seconds, in one process of the cluster, and notes how the database is.

It has a connection of its own, so that a statement that takes long delays no lease and no claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from zart.engine.keeping import keep, one_line
from zart.errors import DatabaseError
from zart.log import logger
from zart.postgres.connection import RECONNECT_TIMEOUT, ServerConnection, check_not_demoted, connect
from zart.postgres.url import describe
from zart.store import figures
from zart.store.figures import SAMPLE, QueueFigures
from zart.store.migrate import check_schema, check_version

INTERVAL: Final = 5.0
_MISSED: Final = 2.5  # intervals without a word from who has the duty, after which another takes it
_PATIENCE: Final = 2.0
_PARTING: Final = 0.5
_MOST_OF_THE_TIME: Final = 0.05  # samples that take long are taken less often

_log = logger("supervisor")


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of all queues at one moment.

    Attributes:
        queues: by the queue's name, the oldest queue first.
        taken_at: `time.monotonic()` before the first statement.
        seconds: how long the statements took.
    """

    queues: Mapping[str, QueueFigures]
    taken_at: float
    seconds: float

    @property
    def age(self) -> float:
        """Seconds since it was taken."""
        return time.monotonic() - self.taken_at


class Sampler:
    """Samples the queues for as long as `run` runs.

    Args:
        dsn, schema: the database.
        prepared_statements: as in WorkerConfig.
        elected: sample only while no other process of the cluster does; else always.

    Attributes:
        holder: under which number it stands for election.
        fault: why the database or its schema cannot be used, in one line; None while it can.
    """

    def __init__(self, dsn: str, schema: str, *, prepared_statements: bool | None = None, elected: bool = True) -> None:
        self._dsn, self._schema, self._prepared, self._elected = dsn, schema, prepared_statements, elected
        self._duty = SAMPLE if elected else ""
        self.holder = secrets.randbelow(2**63 - 1) + 1
        self._sample: Sample | None = None
        self._held_until = self._due = float("-inf")
        self.fault: str | None = "not asked yet"

    @property
    def sample(self) -> Sample | None:
        """The last sample; None while another process samples, and when the database has not answered for so long that
        another one may."""
        return self._sample if time.monotonic() < self._held_until else None

    async def run(self) -> None:
        """Sample until cancelled; then another process may, at once."""
        await keep("sampling", self._attend)

    async def _attend(self, connected: Callable[[], None]) -> None:
        connection: ServerConnection | None = None
        try:
            connection = await connect(
                self._dsn,
                application_name="zart sampling",
                timeout=RECONNECT_TIMEOUT,
                command_timeout=_PATIENCE,
                prepared_statements=self._prepared,
            )
            buckets = (await check_schema(connection, self._schema)).buckets
            connected()
            await self._go_round(connection, range(buckets))
        except asyncio.CancelledError:
            await self._resign(connection)
            raise
        except Exception as error:
            expected = isinstance(error, DatabaseError)
            self.fault = one_line(error) if expected else f"{describe(self._dsn)}: {one_line(error)}"
            raise
        finally:
            if connection is not None:
                connection.terminate()

    async def _go_round(self, connection: ServerConnection, buckets: range) -> None:
        """Go round until the connection is lost."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        while True:
            began = time.monotonic()
            seconds = INTERVAL * _MISSED
            duty = await figures.hold_duty(connection, self._schema, self._duty, self.holder, seconds)
            check_version(self._schema, duty.version, duty.serves_from)
            check_not_demoted(connection, describe(self._dsn))
            self.fault = None
            if duty.held or not self._elected:
                self._held_until = began + seconds
                await self._take(connection, buckets)
            else:
                self._sample = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL * random.uniform(0.8, 1.2)):
                    await lost.wait()
                    return  # the next connection tells whether that is a fault

    async def _take(self, connection: ServerConnection, buckets: range) -> None:
        """Take a sample, unless the last one took too long for that."""
        began = time.monotonic()
        if began < self._due:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await figures.sample_queues(connection, self._schema, buckets)
            self._sample = Sample(found, began, time.monotonic() - began)
        except TimeoutError:
            self._sample = None
            _log.warning("the figures of the queues take longer than %g s to find; left out", _PATIENCE)
        self._due = began + (time.monotonic() - began) / _MOST_OF_THE_TIME

    async def _resign(self, connection: ServerConnection | None) -> None:
        if connection is None or self.sample is None or not self._elected:
            return
        with contextlib.suppress(Exception):  # then the duty passes by itself
            async with asyncio.timeout(_PARTING):
                await figures.drop_duty(connection, self._schema, SAMPLE, self.holder)
