"""A pool of connections for short calls, whose failures come out as zart's errors, one clear line each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import asyncpg

from zart.errors import DatabaseError, DatabaseUnreachable, InvalidArgument, SchemaMissing, ZartError
from zart.postgres.connection import CONNECT_TIMEOUT, Connection, create_pool, is_demoted
from zart.postgres.sqlstate import Fault, classify
from zart.postgres.url import describe

# Longer than any call of a healthy database, shorter than anyone's patience.
CALL_TIMEOUT = 30.0

# Of a call that may be sent again: how long one try may take, and the pauses in between.
TRY_TIMEOUT = 10.0
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

# What a server that is slow, but not gone, writes.
LEAST_ROWS_PER_SECOND = 10_000

T = TypeVar("T")

_MISSING = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError)


class Database:
    """Connections to one database, each call with a deadline.

    `dsn` is kept for whoever needs a connection of its own and never printed; `place` names the database in messages.

    Args:
        dsn: the database's URL.
        application_name: how its connections show in pg_stat_activity.
        min_size, max_size: how many connections are kept open, and how many there may be. The last one is kept for
            `connection_for_all`.
        prepared_statements: as `connect`.

    Raises:
        DatabaseUnreachable: (`open`) the first connection cannot be made.
        ValueError: (`open`) the sizes contradict each other.
    """

    def __init__(self, dsn: str, pool: asyncpg.Pool, prepared_statements: bool | None = None) -> None:
        self.dsn, self._pool, self.prepared_statements = dsn, pool, prepared_statements
        self.place = describe(dsn)
        self._calls = asyncio.Semaphore(max(1, pool.get_max_size() - 1))
        self._closed = False

    @classmethod
    async def open(
        cls, dsn: str, *, application_name: str, min_size: int, max_size: int, prepared_statements: bool | None = None
    ) -> Database:
        pool = await create_pool(
            dsn,
            application_name=application_name,
            min_size=min_size,
            max_size=max_size,
            timeout=CONNECT_TIMEOUT,
            command_timeout=CALL_TIMEOUT,
            prepared_statements=prepared_statements,
        )
        return cls(dsn, pool, prepared_statements)

    async def close(self) -> None:
        """Close the connections, those in use after their call."""
        self._closed = True
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def call(self, doing: str, work: Callable[[Connection], Awaitable[T]], rows: int = 0) -> T:
        """Do `work` on a connection; again, on another one, while the database is away or its answer was lost.

        Args:
            doing: as for `connection`.
            work: what comes to the same end however often it is done; a token tells it what it has done already.
            rows: how many it writes. Many have more time.

        Raises: as `connection`; DatabaseUnreachable when it could not be done for CALL_TIMEOUT.
        """
        clock, pause = asyncio.get_running_loop().time, FIRST_PAUSE
        one_try = TRY_TIMEOUT + rows / LEAST_ROWS_PER_SECOND
        give_up = clock() + CALL_TIMEOUT / TRY_TIMEOUT * one_try
        while True:
            try:
                async with self.connection(doing) as connection:
                    return await _in_time(connection, work, one_try)
            except DatabaseUnreachable:
                if clock() + pause + one_try > give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    @asynccontextmanager
    async def connection(self, doing: str) -> AsyncGenerator[Connection]:
        """A connection for one call. `doing` says in errors what failed: "starting execution 'a'".

        Raises:
            DatabaseUnreachable: no connection, no answer in time, or the server has no room now.
            InvalidArgument: the server refused a value.
            SchemaMissing: a table or function is not there.
            DatabaseError: any other answer of the server, or `close` was called.
        """
        with translated(doing, self.place):
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._calls.acquire()
            try:
                async with self._taken(doing) as connection:
                    yield connection
            finally:
                self._calls.release()

    @asynccontextmanager
    async def connection_for_all(self, doing: str) -> AsyncGenerator[Connection]:
        """As `connection`, for what is done on behalf of many calls: it does not queue behind them."""
        with translated(doing, self.place):
            async with self._taken(doing) as connection:
                yield connection

    @asynccontextmanager
    async def _taken(self, doing: str) -> AsyncGenerator[Connection]:
        if self._closed:
            raise DatabaseError(f"the scheduler is closed; {doing} needs an open one")
        async with self._pool.acquire(timeout=CALL_TIMEOUT) as connection:
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) or classify(error) is Fault.LOST:
                    connection.terminate()  # a cancel request may come late, and would hit the next call
                raise
            if is_demoted(connection):
                connection.terminate()


async def _in_time(connection: Connection, work: Callable[[Connection], Awaitable[T]], seconds: float) -> T:
    """Do `work`, and close the connection if that takes too long: a transaction must not wait for its rollback then.

    Raises:
        TimeoutError: it took too long.
    """
    late = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        return await work(connection)
    except Exception as error:
        if connection.is_closed() and asyncio.get_running_loop().time() >= late.when():
            raise TimeoutError from error
        raise
    finally:
        late.cancel()


@contextmanager
def translated(doing: str, place: str) -> Generator[None]:
    """Turn the driver's errors into zart's; zart's own pass."""
    try:
        yield
    except ZartError:
        raise
    except Exception as error:
        raise _translate(error, doing, place) from error


def _translate(error: Exception, doing: str, place: str) -> Exception:
    text = str(error.args[0]) if isinstance(error, asyncpg.PostgresError) and error.args else type(error).__name__
    match classify(error):
        case Fault.LOST if isinstance(error, TimeoutError):
            return DatabaseUnreachable(f"{place} did not answer in time while {doing}; try again")
        case Fault.LOST:
            return DatabaseUnreachable(
                f"the connection to {place} was lost while {doing} ({text}); whether it was done is unknown, try again"
            )
        case Fault.RETRY:
            return DatabaseUnreachable(f"{place} could not serve while {doing} ({text}); try again")
        case Fault.DATA:
            return InvalidArgument(f"PostgreSQL refused a value while {doing} ({text})")
        case Fault.BUG if isinstance(error, _MISSING):
            return SchemaMissing(f"{place} lacks what is needed for {doing} ({text}); run `zart migrate`")
        case Fault.BUG if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            return DatabaseError(f"{place} refused while {doing}: {text}")
        case _:
            return error
