"""The disk under zart's tables is full: nothing is written, nothing is lost, and work goes on when there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.database import SCHEMA, Database
from tests.support.eventually import eventually
from tests.support.servers import a_directory, a_server
from tests.support.trouble import Trouble
from zart.embedded.programs import find_programs
from zart.store.migrate import migrate

SIZE = 24 * 1024 * 1024


@contextlib.contextmanager
def _small_disk() -> Iterator[Path]:
    """A file system of its own, for PostgreSQL's user."""
    with a_directory() as directory:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            reason = "a full disk needs a file system that this user may mount: not tested"
            print(reason)
            pytest.skip(reason)
        try:
            space = directory / "space"
            space.mkdir()
            programs = find_programs()
            if programs.uid is not None and programs.gid is not None:
                os.chown(space, programs.uid, programs.gid)
            yield space
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = disk.parent / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65_536)):
            pass
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass
    return ballast


async def _refused(dsn: str) -> str:
    """The SQLSTATE with which a table that needs room is refused."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("create table needs_room as select repeat('x', 7000) from generate_series(1, 100)")
    except asyncpg.PostgresError as error:
        return error.sqlstate or ""
    finally:
        await connection.close()
    return ""


async def test_a_full_disk(tmp_path: Path) -> None:
    with _small_disk() as disk, a_server() as server:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(f"create tablespace small location '{disk}'")
        await connection.execute("create database app tablespace small")
        await connection.close()
        database = Database(urlsplit(server.dsn)._replace(path="/app").geturl(), buckets=1)
        connection = await database.connect()
        await migrate(connection, SCHEMA, 1)
        async with Trouble(database, database, tmp_path) as trouble:
            await trouble.load("before", 60)
            ballast = _fill(disk)
            assert await _refused(database.dsn) == "53100"

            async def stuck() -> bool:
                """Rows do not fit any more: ticks are refused."""
                before = await connection.fetchval("select count(*) from zart.zart_tasks")
                await connection.execute("select pg_sleep(1)")
                return bool(before == await connection.fetchval("select count(*) from zart.zart_tasks"))

            await eventually(stuck, within=30)
            left = await connection.fetchval("select count(*) from zart.zart_queue")
            ballast.unlink()
            print(f"{left} executions were stuck; {await trouble.back_at_work():.2f} s")
            await trouble.check()
            assert left > 0
        await connection.close()
