"""Which database a command works on: three ways to name it, and none that is taken for granted."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from zart.cli.command import one_line
from zart.config import DEFAULT_SCHEMA
from zart.embedded import EmbeddedPostgres, default_directory, has_data
from zart.errors import InvalidArgument
from zart.scheduler import PostgresScheduler

T = TypeVar("T")

_PANEL = "Database"
_BY_DEFAULT = "@default"  # what `--embedded` without a directory is turned into

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="As postgresql://USER:PASSWORD@HOST:PORT/DATABASE; without it, the environment's DATABASE_URL.",
        rich_help_panel=_PANEL,
    ),
]
Embedded = Annotated[
    str | None,
    typer.Option(
        "--embedded",
        metavar="[DIR]",
        help="Run a PostgreSQL of your own in DIR (by default in your data directory), as long as somebody uses it.",
        rich_help_panel=_PANEL,
    ),
]
Schema = Annotated[
    str, typer.Option("--schema", metavar="NAME", help="Schema of zart's tables.", rich_help_panel=_PANEL)
]

NO_DATABASE = "no database was named: give --database-url URL or --embedded [DIR], or set DATABASE_URL"


def with_default_directory(arguments: Sequence[str]) -> list[str]:
    """The arguments with a directory after a bare `--embedded`: options with a value that may be left out are unknown
    to typer."""
    result: list[str] = []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1 : position + 2]
        bare = argument == "--embedded" and (not following or following[0].startswith("-"))
        result.append(f"--embedded={_BY_DEFAULT}" if bare else argument)
    return result


@contextlib.contextmanager
def opened(
    database_url: str | None, embedded: str | None, schema: str, *, makes_data: bool = True
) -> Generator[str, None, None]:
    """The URL of the database that was named; an embedded one runs, with its schema made, until the block ends.

    Args:
        makes_data: a directory without data is made an embedded database; else it is refused.

    Raises:
        InvalidArgument: none was named, or two were, or the directory is refused.
        DatabaseError: the embedded one does not start.
    """
    if database_url is not None and embedded is not None:
        raise InvalidArgument("--database-url and --embedded name two databases; give one of them")
    if embedded is not None:
        with EmbeddedPostgres(_directory_of(embedded, makes_data=makes_data)) as server:
            asyncio.run(_migrate(server.dsn, schema))
            yield server.dsn
        return
    url = database_url or os.environ.get("DATABASE_URL")
    if not url:
        raise InvalidArgument(NO_DATABASE)
    yield url


def ask(
    database_url: str | None,
    embedded: str | None,
    schema: str,
    work: Callable[[PostgresScheduler], Awaitable[T]],
    *,
    makes_data: bool = True,
) -> T:
    """Do `work` with a scheduler for the database that was named; see `opened`."""

    async def connect_and_work(dsn: str) -> T:
        async with PostgresScheduler.connect(dsn, schema=schema) as scheduler:
            return await work(scheduler)

    with opened(database_url, embedded, schema, makes_data=makes_data) as dsn:
        return asyncio.run(connect_and_work(dsn))


def _directory_of(embedded: str, *, makes_data: bool) -> Path:
    if not embedded:
        raise InvalidArgument("--embedded names no directory; give one, or leave it out for the one by default")
    directory = default_directory() if embedded == _BY_DEFAULT else Path(embedded)
    if not makes_data and not has_data(directory):
        raise InvalidArgument(
            f"{one_line(str(directory))} has no PostgreSQL data; name the directory that `zart-runner`, `zart start` or"
            " `zart migrate` was given with --embedded"
        )
    return directory


async def _migrate(dsn: str, schema: str) -> None:
    async with PostgresScheduler.connect(dsn, schema=schema) as scheduler:
        await scheduler.migrate()


SchemaDefault = DEFAULT_SCHEMA
