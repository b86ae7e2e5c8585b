"""The name of the database's host comes to mean another machine: whoever connects again finds that one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.database import Database
from tests.support.servers import Server, a_server, free_port
from tests.support.trouble import Trouble

NAME = "database.zart.test"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A file that is /etc/hosts for processes which run with `_IN_NAMESPACE`; skips where that cannot be."""
    file = tmp_path / "hosts"
    _point_to("127.0.0.2", file)
    probe = [*_with_hosts(file), "getent", "hosts", NAME]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True, check=False).returncode:
        reason = "a name that moves needs a mount namespace, which this user may not make: not tested"
        print(reason)
        pytest.skip(reason)
    return file


def _point_to(address: str, file: Path) -> None:
    """From here on, the name means this address."""
    file.write_text(f"{address} {NAME}\n")


def _with_hosts(file: Path) -> list[str]:
    """The beginning of a command whose process has this file as /etc/hosts."""
    return ["unshare", "-m", "sh", "-c", f'mount --bind {file} /etc/hosts && exec "$@"', "sh"]


async def test_the_workers_follow_a_name_to_the_promoted_replica(hosts: Path, tmp_path: Path) -> None:
    with a_server() as first:
        database = await first.database()
        with a_server(standby_of=first) as second:
            port = free_port("127.0.0.2")
            relays = [await _relay("127.0.0.2", port, first), await _relay("127.0.0.3", port, second)]
            named = Database(f"postgresql://postgres@{NAME}:{port}/postgres?sslmode=disable", buckets=1)
            trouble = Trouble(named, database, tmp_path)
            trouble.fleet.under = _with_hosts(hosts)
            async with trouble:
                await trouble.load("before")
                _point_to("127.0.0.3", hosts)
                first.stop("fast")
                second.promote()
                trouble.database = Database(second.dsn, buckets=1)
                print(f"{await trouble.back_at_work():.2f} s")
                await trouble.check()
            for relay in relays:
                relay.close()


async def _relay(host: str, port: int, server: Server) -> asyncio.Server:
    """Listens at an address, and passes everything on to a server."""

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
        except ConnectionError:
            pass
        finally:
            target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer))

    return await asyncio.start_server(serve, host, port)
