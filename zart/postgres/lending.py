"""Connections lent to user code, one transaction each: a small pool that trusts nothing of what comes back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Self, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from zart.postgres.connection import ServerConnection, connect

log = logging.getLogger("zart.postgres")

# Our own statements on a lent connection take milliseconds. One that takes this long is on a connection of no use.
DEADLINE = 5.0

# A worker whose steps have no use for them any more gives its connections up.
IDLE_SECONDS = 60.0

# What `reset all` leaves: the role, temporary tables. Prepared statements stay, asyncpg knows of them. Behind a pooler
# this would reset a session that may be another one, and of others.
_RESET = (
    "select pg_advisory_unlock_all(); close all; unlisten *; discard temp; set session authorization default; reset all"
)


class LentConnection(ServerConnection):
    """A connection that knows what its borrower has done to it.

    Attributes:
        altered: it converts types in another way than a connection does that was just made.
        closed_by_hand: its borrower has closed it. (So does asyncpg, when the server does not let a statement be
            cancelled that its borrower has given up.)
    """

    altered = closed_by_hand = False

    @property
    def itself(self) -> Self:
        """This object; asked of the proxy that the borrower has."""
        return self

    async def commit_all(self, timeout: float) -> bool:
        """Commit whatever is open. False when there was nothing to commit: the server rolled back instead."""
        status = await self.execute("commit", timeout=timeout)
        self._top_xact = None  # asyncpg's own mark of an open transaction, as its Transaction.commit leaves it
        return status == "COMMIT"

    async def roll_back_all(self, timeout: float) -> None:
        """Roll back whatever is open."""
        if self.is_in_transaction():
            await self.execute("rollback", timeout=timeout)
        self._top_xact = None

    async def close(self, *, timeout: float | None = None) -> None:
        self.closed_by_hand = True
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self.closed_by_hand = True
        super().terminate()

    def drop(self) -> None:
        """Close at once, not by the borrower's hand."""
        super().terminate()

    async def set_type_codec(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        await super().set_type_codec(*args, **keywords)

    async def set_builtin_type_codec(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        await super().set_builtin_type_codec(*args, **keywords)

    async def reset_type_codec(self, *args: Any, **keywords: Any) -> None:
        self.altered = True
        await super().reset_type_codec(*args, **keywords)


@dataclass(frozen=True, slots=True)
class Loan:
    """One connection on loan: `connection` is what the borrower gets, `raw` what is under it."""

    connection: PoolConnectionProxy
    raw: LentConnection


class Lender:
    """Up to `size` connections, made when they are needed; who finds none free waits for one."""

    def __init__(self, dsn: str, *, application_name: str, size: int, prepared_statements: bool | None = None) -> None:
        self.dsn, self.application_name, self.size = dsn, application_name, size
        self.prepared_statements = prepared_statements
        self.closed = False
        self._opening = asyncio.Lock()
        self._pool: asyncpg.Pool | None = None
        self._out: set[LentConnection] = set()

    async def lend(self) -> Loan:
        """A connection without an open transaction, as if it were just made.

        Raises:
            DatabaseUnreachable: none can be made.
            asyncpg.InterfaceError: `close` was called.
        """
        if self.closed:
            raise asyncpg.InterfaceError("the pool is closed")
        connection = await (self._pool or await self._open()).acquire()
        raw: LentConnection = cast(Any, connection).itself
        self._out.add(raw)
        return Loan(connection, raw)

    async def drop(self) -> None:
        """Close the connections on loan at once, and those that are not before they are lent again."""
        if self._pool is not None:
            await self._pool.expire_connections()
        for raw in list(self._out):
            raw.drop()

    async def take_back(self, loan: Loan) -> None:
        """Roll back what is open, make the connection as good as new, or drop it."""
        self._out.discard(loan.raw)
        try:
            if loan.raw.altered:
                loan.raw.terminate()
            if not loan.raw.is_closed():
                await loan.raw.roll_back_all(DEADLINE)
            if self._pool is not None:
                await self._pool.release(loan.connection, timeout=DEADLINE)
        except BaseException as error:
            loan.raw.terminate()
            if not isinstance(error, Exception):
                raise
            log.debug("a lent connection is dropped: %s", type(error).__name__)

    async def close(self) -> None:
        """Close all connections, those on loan too when they do not come back at once."""
        self.closed = True
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(2):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _open(self) -> asyncpg.Pool:
        async def make(*_: object, **__: object) -> asyncpg.Connection:
            return await connect(
                self.dsn,
                application_name=self.application_name,
                prepared_statements=self.prepared_statements,
                kind=LentConnection,
            )

        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    min_size=0,
                    max_size=self.size,
                    max_inactive_connection_lifetime=IDLE_SECONDS,
                    connection_class=LentConnection,
                    connect=make,
                    reset=_reset,
                )
            return self._pool


async def _reset(connection: Any) -> None:
    if not connection.itself.pooled:
        await connection.execute(_RESET)
