"""PgBouncer in transaction mode before a test's server."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg

MISSING = "" if shutil.which("pgbouncer") else "pgbouncer is not installed: apt-get install pgbouncer"
"""Why there can be none here; empty where it can."""

PORT = 6432


def sharing(sessions: int) -> dict[str, str]:
    """Settings with which the transactions of all clients of a database share so many sessions."""
    return {"pool_mode": "transaction", "default_pool_size": str(sessions), "max_client_conn": "500"}


class Pooler:
    """Started on entry, gone on exit.

    Args:
        server_dsn: the server behind it.
        settings: of PgBouncer, besides those that say where it is and who may enter.
    """

    def __init__(self, server_dsn: str, settings: Mapping[str, str]) -> None:
        place = parse_qs(urlsplit(server_dsn).query)
        self._server, self._server_port, self._settings = place["host"][0], place["port"][0], settings
        self.directory = Path(tempfile.mkdtemp(prefix="zart-pooler-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        (self.directory / "users").write_text('"postgres" ""\n"pgbouncer" ""\n')
        place = {
            "listen_addr": "",
            "listen_port": str(PORT),
            "unix_socket_dir": str(self.directory),
            "auth_type": "trust",
            "auth_file": str(self.directory / "users"),
            "admin_users": "pgbouncer",
            "logfile": str(self.directory / "log"),
        }
        parser = configparser.ConfigParser()
        parser["databases"] = {"*": f"host={self._server} port={self._server_port}"}
        parser["pgbouncer"] = {**self._settings, **place}
        with (self.directory / "pgbouncer.ini").open("w") as file:
            parser.write(file)
        if os.geteuid() == 0:  # it refuses root; the server's own user can reach the server's socket
            owner = os.stat(self._server)
            for path in (self.directory, *self.directory.iterdir()):
                os.chown(path, owner.st_uid, owner.st_gid)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start it; returns when it listens."""
        owner: dict[str, Any] = {}
        if os.geteuid() == 0:
            found = os.stat(self._server)
            owner = {"user": found.st_uid, "group": found.st_gid, "extra_groups": []}
        self._process = subprocess.Popen(
            ["pgbouncer", str(self.directory / "pgbouncer.ini")], stderr=subprocess.DEVNULL, cwd="/", **owner
        )
        give_up = time.monotonic() + 20
        while not self._listens():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < give_up, "pgbouncer does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, and every client's connection with it."""
        if self._process is not None:
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def before(self, dsn: str) -> str:
        """The URL of the same database through the pooler."""
        place = {"host": str(self.directory), "port": str(PORT)}
        return urlsplit(dsn)._replace(query=urlencode(place, safe="/")).geturl()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:  # the file is there a moment before it listens
            return client.connect_ex(str(self._socket)) == 0

    @property
    def _socket(self) -> Path:
        return self.directory / f".s.PGSQL.{PORT}"


async def order(dsn: str, *commands: str) -> None:
    """Say something to the console of a pooler that a URL leads to, as PAUSE or `KILL database`."""
    url = urlsplit(dsn)._replace(netloc="pgbouncer@", path="/pgbouncer").geturl()
    console = await asyncpg.connect(url, statement_cache_size=0)
    async with asyncio.timeout(20):
        for command in commands:
            await console.execute(command)
    console.terminate()


async def cut_clients(dsn: str) -> None:
    """Cut all connections to a database through its pooler, on either side."""
    name = urlsplit(dsn).path[1:]
    await order(dsn, f"KILL {name}", f"RESUME {name}")
