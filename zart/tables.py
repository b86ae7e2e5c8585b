"""The tables of one schema: connections to them, and where in them an execution is."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import asyncpg

from zart.codec import bucket_of
from zart.errors import InvalidArgument
from zart.postgres.connection import Connection
from zart.postgres.pool import Database
from zart.store.migrate import Settings, check_schema
from zart.store.statements import quoted
from zart.terms import CHILD_PREFIX

T = TypeVar("T")


class Tables:
    """A schema in a database.

    Raises:
        InvalidArgument: the schema's name cannot be used.
    """

    def __init__(self, database: Database, schema: str) -> None:
        quoted(schema)
        self.database, self.schema = database, schema
        self._settings: Settings | None = None
        self._asking = asyncio.Lock()

    def connection(self, doing: str) -> AbstractAsyncContextManager[Connection]:
        """A connection for one call; `doing` says in errors what failed. Raises as Database.connection."""
        return self.database.connection(doing)

    async def call(self, doing: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        """As Database.call."""
        return await self.database.call(doing, work)

    async def write(
        self, conn: Connection | None, doing: str, work: Callable[[Connection, int | None], Awaitable[T]], rows: int = 1
    ) -> T:
        """Do `work` in the caller's transaction; without one, sent again as `call` does, with a token that tells it so.

        Errors of the caller's connection come as asyncpg raises them: they are about the caller's transaction.

        Raises:
            InvalidArgument: `conn` is no asyncpg connection, or not in a transaction.
        """
        if conn is not None:
            check_joined(conn)
            return await work(conn, None)
        token = secrets.randbits(63)
        return await self.database.call(doing, lambda connection: work(connection, token), rows)

    def connection_for_all(self, doing: str) -> AbstractAsyncContextManager[Connection]:
        """As `connection`, for what is done on behalf of many calls: it does not queue behind them."""
        return self.database.connection_for_all(doing)

    async def buckets(self) -> int:
        """Over how many buckets executions are spread. The first call checks the schema's version.

        Raises:
            SchemaMissing: there is none, or it is older than this zart needs.
            SchemaMismatch: it is newer.
        """
        if self._settings is None:
            async with self._asking:
                if self._settings is None:
                    self._settings = await self.call(
                        "reading the schema's version", lambda connection: check_schema(connection, self.schema)
                    )
        return self._settings.buckets

    async def buckets_of(self, execution_id: str) -> Sequence[int]:
        """Where an execution can be: in one bucket, or in any, if it is a child, which lives with its root."""
        return _buckets_of(execution_id, await self.buckets())

    async def by_bucket(self, execution_ids: Iterable[str]) -> Mapping[int, list[str]]:
        """The ids, grouped by the buckets they can be in."""
        buckets = await self.buckets()
        groups: defaultdict[int, list[str]] = defaultdict(list)
        for execution_id in execution_ids:
            for bucket in _buckets_of(execution_id, buckets):
                groups[bucket].append(execution_id)
        return groups


def check_joined(conn: Connection) -> None:
    """See that a caller's connection can be joined.

    Raises:
        InvalidArgument: it is no asyncpg connection, or not in a transaction.
    """
    if not isinstance(conn, asyncpg.Connection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"conn must be an asyncpg connection, got {type(conn).__name__}; SQLAlchemy lends its own, and other"
            " clients call SQL functions in place of this (docs/integration.md)"
        )
    if not conn.is_in_transaction():
        raise InvalidArgument("conn must be in a transaction: use it inside `async with conn.transaction():`")


def _buckets_of(execution_id: str, buckets: int) -> Sequence[int]:
    return range(buckets) if execution_id.startswith(CHILD_PREFIX) else (bucket_of(execution_id, buckets),)
