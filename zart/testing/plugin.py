"""Fixtures for pytest, there as soon as zart is installed. Loaded by every pytest: what they need, they import.

zart_crash_everywhere    `zart.testing.crash_everywhere`
zart_database            URL of an empty, migrated database of the test's own, on an embedded PostgreSQL
zart_scheduler           a PostgresScheduler on it, to be opened: `async with zart_scheduler as scheduler`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from zart.scheduler import Connecting
    from zart.testing.databases import Databases


@pytest.fixture
def zart_crash_everywhere() -> Any:
    """Runs a workflow once for each point where its worker can die; see `zart.testing.crash_everywhere`.

    Example:
        >>> async def test_onboarding_survives(zart_crash_everywhere):
        ...     await zart_crash_everywhere(onboarding, Signup("ada@example.com"))
    """
    from zart.testing import crash_everywhere

    return crash_everywhere


@pytest.fixture(scope="session")
def zart_databases() -> Iterator[Databases]:
    """The session's embedded server: `new()` makes a migrated database, for tests that need several."""
    from zart.errors import DatabaseError
    from zart.testing.databases import Databases

    databases = Databases()
    try:
        databases.start()
    except DatabaseError as error:
        pytest.fail(f"the fixture zart_database: {error}", pytrace=False)
    yield databases
    databases.stop()


@pytest.fixture
def zart_database(zart_databases: Databases) -> Iterator[str]:
    """URL of an empty, migrated database, gone after the test. The server is started once in a session.

    Example:
        >>> def test_the_command_line(zart_database):
        ...     subprocess.run(["zart", "list", "--dsn", zart_database], check=True)
    """
    dsn = zart_databases.new()
    yield dsn
    zart_databases.drop(dsn)


@pytest.fixture
def zart_scheduler(zart_database: str) -> Connecting:
    """A PostgresScheduler on `zart_database`, not connected yet, so that it is of the test's own event loop.

    Example:
        >>> async def test_it_starts(zart_scheduler):
        ...     async with zart_scheduler as scheduler:
        ...         await scheduler.start_for(onboarding, "run-1", Signup("ada@example.com"))
    """
    from zart.scheduler import PostgresScheduler

    return PostgresScheduler.connect(zart_database)
