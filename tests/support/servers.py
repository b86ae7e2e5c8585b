"""PostgreSQL servers of a test's own, which it may stop, crash, fill up or replace by a replica."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from tests.support.database import SCHEMA, Database
from zart.embedded.programs import find_programs, open_base
from zart.store.migrate import migrate

SETTINGS = {
    "fsync": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "min_wal_size": "32MB",
    "timezone": "UTC",
}


class Server:
    """A server on a free TCP port and a socket; superuser postgres, no password.

    Attributes:
        directory: its files.
        port: where it listens, always the same.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.data = directory, directory / "data"
        self.port = free_port()
        self._programs = find_programs()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    @property
    def socket_dsn(self) -> str:
        """As the test's proxy wants it."""
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    def make(self) -> None:
        """Make an empty cluster."""
        self._own()
        self._run("initdb", "-D", str(self.data), "--username=postgres", "--auth=trust", "--no-sync", "--locale=C")

    def copy(self, primary: Server) -> None:
        """Make this a standby of another server, which streams from it once it is started."""
        self._own()
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        self._run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source)

    def start(self) -> None:
        settings = {
            **SETTINGS,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
        }
        options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        log = str(self.directory / "server.log")
        self._run("pg_ctl", "start", "-w", "-t", "60", "-D", str(self.data), "-l", log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "fast" ends all sessions, "immediate" is a crash."""
        self._run("pg_ctl", "stop", "-w", "-D", str(self.data), "-m", mode)

    def promote(self) -> None:
        """Make a standby a primary."""
        self._run("pg_ctl", "promote", "-w", "-D", str(self.data))

    def demote(self, primary: Server) -> None:
        """Have it start as a standby the next time."""
        (self.data / "standby.signal").touch()
        line = f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=postgres'\n"
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(line)

    async def database(self) -> Database:
        """The server's database, with a migrated schema."""
        connection = await asyncpg.connect(self.dsn)
        await migrate(connection, SCHEMA, 1)
        await connection.close()
        return Database(self.dsn, buckets=1)

    def _own(self) -> None:
        if self._programs.uid is not None and self._programs.gid is not None:
            os.chown(self.directory, self._programs.uid, self._programs.gid)

    def _run(self, *command: str) -> None:
        done = self._programs.run(*command)
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def a_directory() -> Iterator[Path]:
    """A directory in which a server may live, removed afterwards."""
    made = Path(tempfile.mkdtemp(prefix="zart-test-", dir=open_base(find_programs().uid)))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def a_server(*, standby_of: Server | None = None) -> Iterator[Server]:
    """A running server, empty or a standby; crashed and removed afterwards."""
    with a_directory() as directory:
        server = Server(directory)
        if standby_of is None:
            server.make()
        else:
            server.copy(standby_of)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # it is stopped already
                server.stop("immediate")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server((host, 0)) as found:
        port: int = found.getsockname()[1]
    return port


async def answers(dsn: str) -> bool:
    """Whether a primary takes connections and writes there."""
    try:
        connection = await asyncpg.connect(dsn, timeout=2)
    except (OSError, asyncpg.PostgresError):
        return False
    try:
        writes: bool = await connection.fetchval("select current_setting('transaction_read_only') = 'off'")
        return writes
    except (OSError, asyncpg.PostgresError):
        return False
    finally:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncio.TimeoutError):
            await connection.close(timeout=2)
