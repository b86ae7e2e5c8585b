"""One embedded PostgreSQL per test session, a fresh database per test.

`ZART_TEST_BUCKETS` (default 1) is the number of buckets of every schema, so that the whole suite can run with several;
tests that have no database of these are left out then, since they would do the same again.
With `ZART_TEST_POOLER=1` everything that a test does goes through PgBouncer in transaction mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from tests.support.clock import check_shift, true_clock
from tests.support.pooler import Pooler, sharing
from zart.embedded import EmbeddedPostgres
from zart.postgres.connection import ServerConnection
from zart.store.migrate import migrate

SCHEMA = "zart"
BUCKETS = int(os.environ.get("ZART_TEST_BUCKETS", "1"))
POOLED = os.environ.get("ZART_TEST_POOLER") == "1"

# A worker's tick, the transactions of its steps (4), and one of the test's own.
_POOL_SIZE = 6

_TEMPLATE = "zart_template"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several buckets, take only what they can make a difference to."""
    if BUCKETS > 1:
        same = [item for item in items if "database" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=same)
        items[:] = [item for item in items if "database" in getattr(item, "fixturenames", ())]


@dataclass(frozen=True, slots=True)
class Database:
    """A database of its own for one test. `bucket` is the last one, for tests that need only one.

    `pooled`: the URL leads through a pooler.
    """

    dsn: str
    schema: str = SCHEMA
    buckets: int = BUCKETS
    pooled: bool = False

    @property
    def bucket(self) -> int:
        return self.buckets - 1

    async def connect(self) -> asyncpg.Connection:
        """A connection that the caller closes; what it leaves open ends with the database."""
        made: ServerConnection = await asyncpg.connect(
            self.dsn, statement_cache_size=0 if self.pooled else 100, connection_class=ServerConnection
        )
        made.pooled = self.pooled
        return made


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """URL of the session's server, superuser postgres. It has the true clock, whatever the tests have."""
    with true_clock():
        server = EmbeddedPostgres().start()
    with server:
        asyncio.run(check_shift(server.dsn))
        yield server.dsn


@pytest.fixture(scope="session")
def pooler(server_dsn: str) -> Iterator[Pooler | None]:
    """What is between the tests and the server, if anything is."""
    with Pooler(server_dsn, sharing(_POOL_SIZE)) if POOLED else contextlib.nullcontext() as pooler:
        yield pooler


@pytest.fixture(scope="session")
def template(server_dsn: str) -> str:
    """Name of a database with a migrated schema, to make copies of."""

    async def make() -> None:
        await _run(server_dsn, f"create database {_TEMPLATE}")
        connection = await asyncpg.connect(_named(server_dsn, _TEMPLATE))
        await migrate(connection, SCHEMA, BUCKETS)
        await connection.close()

    asyncio.run(make())
    return _TEMPLATE


@pytest_asyncio.fixture
async def database(server_dsn: str, template: str, pooler: Pooler | None) -> AsyncIterator[Database]:
    """A database with a migrated schema."""
    made = await make_database(server_dsn, template)
    yield made if pooler is None else dataclasses.replace(made, dsn=pooler.before(made.dsn), pooled=True)
    await drop_database(server_dsn, made)


@pytest_asyncio.fixture
async def empty_database(server_dsn: str) -> AsyncIterator[Database]:
    """A database without a schema."""
    made = await make_database(server_dsn, "template1")
    yield made
    await drop_database(server_dsn, made)


@pytest_asyncio.fixture
async def connection(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database."""
    made = await database.connect()
    yield made
    await made.close()


async def make_database(server_dsn: str, template: str) -> Database:
    """A copy of the database named `template`."""
    name = f"test_{next(_numbers)}"
    await _run(server_dsn, f"create database {name} template {template}")
    return Database(_named(server_dsn, name))


async def drop_database(server_dsn: str, database: Database) -> None:
    """Drop it, whoever is connected."""
    await _run(server_dsn, f"drop database {urlsplit(database.dsn).path[1:]} with (force)")


async def _run(dsn: str, text: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(text)
    await connection.close()


def _named(dsn: str, name: str) -> str:
    """The URL with another database's name."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()
